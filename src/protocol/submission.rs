use serde::{Deserialize, Serialize};

use super::{Digest, TaskId, wire};

/// What kind of device computed a result. Results from one kind are closer to each other than those from two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// The processor, with operations of Hydra's own.
    Ndarray,
    /// The processor, with plain operations of burn's ndarray backend.
    NdarrayPlain,
    /// The processor, with burn's flex backend.
    Flex,
    /// The processor, with libtorch.
    TchCpu,
    /// A GPU, with libtorch and CUDA (or what stands in for it).
    Cuda,
    /// An Apple GPU, with libtorch.
    Mps,
    /// Something else.
    Other,
}

/// How a result came about: what whoever computes it again needs to say where the two part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trail {
    /// What it was computed on.
    pub device: DeviceKind,
    /// A digest of the weights after each of the task's [segments](super::Task::segments), and of the digest before it:
    /// whoever parts once never comes back.
    pub states: Vec<Digest>,
}

impl Trail {
    /// The digest that a commitment names the states by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::in_domain("hydra state digests v1", &wire::encode(&self.states))
    }
}

/// What a worker binds itself to before it shows its result, so that nobody can fit a result to another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// The task that was done.
    pub task: TaskId,
    /// The digest of the encoded pseudo-gradient.
    pub payload: Digest,
    /// The digest of the canonical encoding of the loss trace.
    pub trace: Digest,
    /// The digest of the canonical encoding of the digests of the states on the way.
    pub states: Digest,
    /// What it was computed on.
    pub device: DeviceKind,
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
    /// The digests of the states on the way: see [`Trail::states`].
    pub states: Vec<Digest>,
}

impl Submission {
    /// The submission of a payload, the losses met while training it, and the way there.
    #[must_use]
    pub fn new(task: TaskId, payload: Digest, losses: Vec<f32>, trail: Trail, tokens: u64) -> Self {
        let (trace, states) = (Self::trace_digest(&losses), trail.digest());
        let commitment = Commitment { task, payload, trace, states, device: trail.device, tokens };
        Self { commitment, losses, states: trail.states }
    }

    /// The digest that a commitment names a loss trace by.
    #[must_use]
    pub fn trace_digest(losses: &[f32]) -> Digest {
        Digest::in_domain("hydra loss trace v1", &wire::encode(&losses))
    }

    /// How it came about, as it says.
    #[must_use]
    pub fn trail(&self) -> Trail {
        Trail { device: self.commitment.device, states: self.states.clone() }
    }
}
