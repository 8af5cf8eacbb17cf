use serde::{Deserialize, Serialize};

use super::{Commitment, Lease, Message, Submission, TaskId};

/// What a worker asks of a coordinator. Always signed; every request may be sent again and then has no second
/// effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WorkerRequest {
    /// "I have nothing to do." A worker that holds a lease is given the same one again.
    Lease {
        /// Measured training speed, tokens a second; 0 when not yet known.
        tokens_per_second: u32,
    },
    /// "I have a result; this is its digest."
    Commit(Commitment),
    /// "The payload is in the blob store; here is the rest."
    Submit(Submission),
    /// "I cannot do this task; lend it to somebody else."
    GiveBack(TaskId),
    /// "I am still at it." Renews the lease.
    Heartbeat(TaskId),
    /// "You found my result for this task false, and I say that it is not."
    Appeal(TaskId),
}

impl WorkerRequest {
    /// The task that it is about.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        match self {
            Self::Lease { .. } => None,
            Self::Commit(commitment) => Some(commitment.task),
            Self::Submit(submission) => Some(submission.commitment.task),
            Self::GiveBack(task) | Self::Heartbeat(task) | Self::Appeal(task) => Some(*task),
        }
    }
}

impl Message for WorkerRequest {
    const DOMAIN: &'static str = "worker request v1";
}

/// What a coordinator answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WorkerReply {
    /// Do this. (Boxed: a lease is far larger than the other replies.)
    Leased(Box<Lease>),
    /// Nothing to do now, or no round open that could take this: ask again.
    Wait,
    /// The commitment stands: upload and submit.
    Committed(TaskId),
    /// The submission is safe with the coordinator; the verdict will come.
    Received(TaskId),
    /// No.
    Refused {
        /// The task it was about, if any.
        task: Option<TaskId>,
        /// Why.
        reason: RefusalReason,
    },
    /// The run is over: there will be no more work.
    Finished,
}

/// Why a coordinator refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// No such task in the open round, nor among those of the rounds before it whose results still count: it is over, or
    /// never was.
    #[error("the task is not one of the open round, and not one of those before it whose results still count")]
    TaskNotOpen,
    /// A result for the task was accepted in an earlier round: another's, or the sender's own.
    #[error("a result for the task was accepted before")]
    TaskDone,
    /// The sender was never lent this task.
    #[error("the task was never lent to this key")]
    NotYourTask,
    /// There is another commitment of the same worker for the task.
    #[error("another result was committed for this task before")]
    CommitmentDiffers,
    /// A submission without a commitment before it.
    #[error("commit before you submit")]
    CommitmentMissing,
    /// Somebody else's submission for the task came first and is under judgement.
    #[error("the task has a submission already")]
    AlreadySubmitted,
    /// This key's earlier submission for the task was rejected.
    #[error("an earlier submission for this task was rejected")]
    RejectedBefore,
    /// The signature does not match.
    #[error("the request is not signed by the key it names")]
    Signature,
    /// Not a request that this build understands.
    #[error("the request is malformed")]
    Malformed,
    /// Work of this key was found false: that for the task named, where an appeal is still possible.
    #[error("work of this key was found false; see the verdicts, and appeal where they are wrong")]
    Banned,
    /// No work of this key for the task was found false, or the time for an appeal is over.
    #[error("there is no finding against this key's result for the task, or not any more")]
    NothingToAppeal,
    /// Every verifier has judged the work already.
    #[error("every verifier has judged this result already")]
    NobodyToAppealTo,
    /// More workers than the coordinator remembers.
    #[error("the coordinator has as many workers as it can remember")]
    TooManyWorkers,
}
