use serde::{Deserialize, Serialize};

use super::{Digest, TaskId, wire};

/// What a worker binds itself to before it shows its result, so that nobody can fit a result to another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// The task that was done.
    pub task: TaskId,
    /// The digest of the encoded pseudo-gradient.
    pub payload: Digest,
    /// The digest of the canonical encoding of the loss trace.
    pub trace: Digest,
    /// Tokens trained on.
    pub tokens: u64,
}

/// A finished task: the commitment again, with what it committed to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// What was committed.
    pub commitment: Commitment,
    /// Training loss of each inner step, nats a token.
    pub losses: Vec<f32>,
}

impl Submission {
    /// The submission of a payload and the losses met while training it.
    #[must_use]
    pub fn new(task: TaskId, payload: Digest, losses: Vec<f32>, tokens: u64) -> Self {
        let trace = Self::trace_digest(&losses);
        Self { commitment: Commitment { task, payload, trace, tokens }, losses }
    }

    /// The digest that a commitment names a loss trace by.
    #[must_use]
    pub fn trace_digest(losses: &[f32]) -> Digest {
        Digest::in_domain("hydra loss trace v1", &wire::encode(&losses))
    }
}
