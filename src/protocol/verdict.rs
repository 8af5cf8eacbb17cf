use serde::{Deserialize, Serialize};

use super::{Digest, Message, PublicKey, TaskId, wire};

/// A verifier's finding on one submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The task.
    pub task: TaskId,
    /// Who submitted.
    pub worker: PublicKey,
    /// The payload that was judged.
    pub payload: Digest,
    /// Tokens that were trained on to find it: the task's own for a replay, which is paid for like the task; else none.
    pub work: u64,
    /// Who did that work, where it was not the verifier.
    pub by: Option<PublicKey>,
    /// How many opinions on this result there were when its author was asked for one: two opinions of one verifier are two
    /// only if it was asked twice.
    pub turn: u32,
    /// What was found.
    pub outcome: Outcome,
}

impl Verdict {
    /// The name of what a verdict finds: this payload of this worker for this task is false. However many verifiers find
    /// it, it is one finding.
    #[must_use]
    pub fn finding(&self) -> Digest {
        Digest::in_domain("hydra finding v1", &wire::encode(&(self.task, self.worker, self.payload)))
    }
}

impl Message for Verdict {
    const DOMAIN: &'static str = "verdict v1";
}

/// What a verifier found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Good up to and including `layer`; worth `tokens` tokens of pay and weight.
    Accepted {
        /// The deepest layer that looked at it.
        layer: Layer,
        /// Verified tokens.
        tokens: u64,
        /// The L2 norm of the decoded update.
        norm: f32,
    },
    /// Not good.
    Rejected {
        /// The layer that found it.
        layer: Layer,
        /// What it found.
        reason: Reason,
    },
}

/// The layers of verification, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// Form: commitment, size, schema, finite numbers.
    Admission,
    /// Comparison with the other submissions: norm, copies.
    Statistics,
    /// Whether it helps on its own data.
    HeldOut,
    /// Computed again and compared.
    Replay,
}

/// Why a submission was rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The payload is not in the blob store.
    #[error("the payload was never uploaded")]
    PayloadMissing,
    /// The payload is not an encoding of a pseudo-gradient of this model with this codec.
    #[error("the payload is malformed: {0}")]
    PayloadMalformed(String),
    /// A number in it is NaN or infinite.
    #[error("the payload holds a number that is not finite")]
    NotFinite,
    /// The losses are not what was committed.
    #[error("the loss trace is not the committed one")]
    TraceMismatch,
    /// The digests of the states on the way are not what was committed, or not one for each segment.
    #[error("the digests of states are not the committed ones, or not one for each segment of the task")]
    StatesMismatch,
    /// Too few or too many losses, or impossible ones.
    #[error("the loss trace is impossible for this task")]
    TraceImpossible,
    /// The token count is not the task's.
    #[error("{claimed} tokens claimed, the task has {expected}")]
    Tokens {
        /// What the worker said.
        claimed: u64,
        /// What the task says.
        expected: u64,
    },
    /// The update is too large or too small beside the others.
    #[error("the update's norm is {ratio} times the median")]
    NormOutlier {
        /// Norm over the reference norm.
        ratio: f32,
    },
    /// The update is one that the same worker has handed in for another task.
    #[error("the update repeats the one of task {of}")]
    Copy {
        /// The task whose update came first.
        of: TaskId,
    },
    /// The update points against most of the others.
    #[error("the update points against most others: the median cosine is {cosine}")]
    Against {
        /// The median cosine between it and the other updates of the round.
        cosine: f32,
    },
    /// It does not lower the loss on the data it was to be trained on.
    #[error("the update does not help on its own data")]
    NoProgress,
    /// The same task computed again gives something else.
    #[error("a replay differs by {distance}, the tolerance is {tolerance}{}", parting.text())]
    ReplayMismatch {
        /// Relative L2 distance, or what codes differ by on average, in levels.
        distance: f32,
        /// The tolerance for this pair of devices.
        tolerance: f32,
        /// Where the two part.
        parting: Parting,
    },
    /// A worker that was lent the task again got something else, which is what another had got before.
    #[error("two others got the same for this task, which is something else")]
    Outvoted {
        /// The other.
        with: PublicKey,
    },
}

/// Where a replay parts from the states that a worker has committed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parting {
    /// Nobody can tell: the two were computed on different kinds of devices, whose states never agree to the bit.
    Unknown,
    /// After these inner steps the states differ, before them they are the same.
    Steps {
        /// The first of them, from 0.
        first: u32,
        /// The last of them.
        last: u32,
    },
    /// Every state is the same: the payload was not made of the last one.
    Payload,
}

impl Parting {
    /// What follows the sentence that says that a replay differs.
    fn text(&self) -> String {
        match self {
            Self::Unknown => String::new(),
            Self::Steps { first, last } => format!("; the committed states part from it in steps {first} to {last}"),
            Self::Payload => "; the committed states do not, the payload was not made of them".to_owned(),
        }
    }
}
