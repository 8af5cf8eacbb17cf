//! What a coordinator hears and what it wants done.

use crate::coordinator::audits::Ending;
use crate::coordinator::state::Record;
use crate::protocol::{
    Amount, Digest, Layer, PublicKey, Reason, Round, Signed, TaskId, Time, WorkerReply, WorkerRequest,
};
use crate::verifier::Job;

/// What happens to a coordinator. `R` is whatever takes a reply back to whoever asked.
#[derive(Debug)]
pub enum Event<R> {
    /// It has started, with a state that may come from before a crash.
    Started,
    /// A worker asks for something.
    Request {
        /// The signed [`WorkerRequest`](crate::protocol::WorkerRequest).
        request: Signed,
        /// Where the answer goes.
        reply: R,
    },
    /// A worker asks for something, and it is known that it is this one: whoever brings it has checked a signature, or a
    /// code that only the two know.
    Checked {
        /// Who asks.
        worker: PublicKey,
        /// For what.
        request: WorkerRequest,
        /// Where the answer goes.
        reply: R,
    },
    /// A verifier has judged.
    Verdicts(Vec<Signed>),
    /// The next base model is in the blob store.
    Aggregated {
        /// The round that it was made of.
        round: Round,
        /// The model.
        model: Digest,
        /// The outer momentum, where there is one.
        momentum: Option<Digest>,
        /// Accepted payloads that could not be used.
        left_out: Vec<Digest>,
    },
    /// A base model was measured.
    Evaluated {
        /// The round that starts from it.
        round: Round,
        /// Validation loss, nats a token; infinite where there is none.
        loss: f64,
    },
    /// The ledger has paid for a round.
    RoundPaid {
        /// The round.
        round: Round,
        /// What each worker got.
        pays: Vec<(PublicKey, Amount)>,
    },
    /// The ledger has taken what false work costs.
    Forfeited {
        /// The name of what was found.
        finding: Digest,
        /// Who had done it.
        worker: PublicKey,
        /// Pay and stake that are gone.
        lost: Amount,
    },
    /// No round after the open one.
    FinishRound,
    /// A time that was asked for has come.
    Wake,
}

/// What a coordinator wants done, in order.
#[derive(Debug, PartialEq)]
pub enum Effect<R> {
    /// Keep these records before anything that follows.
    Persist(Vec<Record>),
    /// Answer a worker.
    Reply {
        /// Who asked.
        reply: R,
        /// The answer.
        body: WorkerReply,
    },
    /// Have this judged.
    Judge(Job),
    /// Have the ledger pay for a round, by these verdicts.
    Pay {
        /// The round.
        round: Round,
        /// Accepting verdicts in task order.
        verdicts: Vec<Signed>,
    },
    /// Have the ledger take what false work costs.
    Forfeit {
        /// The verdict that found it.
        verdict: Signed,
    },
    /// Make the next base model.
    Aggregate {
        /// The round.
        round: Round,
        /// Its base model.
        base: Digest,
        /// The outer momentum so far.
        momentum: Option<Digest>,
        /// Accepted payloads and the tokens that they count for: the round's own in task order, then those that came late.
        updates: Vec<(Digest, u64)>,
    },
    /// Measure a base model on the validation split.
    Evaluate {
        /// The round that starts from it.
        round: Round,
        /// The model.
        model: Digest,
    },
    /// These blobs are not needed any more.
    Forget(Vec<Digest>),
    /// Send [`Event::Wake`] at this time, and not at one that was asked for before.
    WakeAt(Time),
    /// Tell whoever watches.
    Report(Report),
}

/// What people may want to know while a run goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// A submission was rejected.
    Rejected {
        /// The round.
        round: Round,
        /// Whose.
        worker: PublicKey,
        /// Which layer of verification found it.
        layer: Layer,
        /// Why.
        reason: Reason,
    },
    /// Nobody who asks for work may do what is left of the round: their results for it were rejected, or they gave it back.
    Stuck {
        /// The round.
        round: Round,
        /// Tasks that are left.
        tasks: u32,
        /// Why the last result was rejected, if one was since this process began.
        reason: Option<Reason>,
    },
    /// A round's work is done.
    RoundClosed {
        /// The round.
        round: Round,
        /// Accepted results.
        accepted: u32,
        /// Those of them that were for tasks of earlier rounds.
        late: u32,
        /// Tokens that they count for.
        tokens: u64,
    },
    /// An accepted payload counts for nothing in the next model: it does not decode, or the model would not be finite.
    LeftOut {
        /// The round.
        round: Round,
        /// The payload.
        payload: Digest,
    },
    /// A base model was measured.
    Evaluated {
        /// The round that starts from it.
        round: Round,
        /// Validation loss, nats a token; infinite where there is none.
        loss: f64,
        /// Tokens it was trained on.
        tokens: u64,
    },
    /// An audit is over.
    Audited {
        /// The round that the work was for.
        round: Round,
        /// Who had done it.
        worker: PublicKey,
        /// How it ended.
        ending: Ending,
    },
    /// Verifiers found work to be false; its worker may appeal.
    Convicted {
        /// The round that the work was for.
        round: Round,
        /// Who had done it.
        worker: PublicKey,
        /// The task.
        task: TaskId,
    },
    /// The ledger has taken what false work costs.
    Forfeited {
        /// Who had done it.
        worker: PublicKey,
        /// Pay and stake that are gone.
        lost: Amount,
    },
    /// A verifier is not believed any more.
    StruckOff {
        /// Which.
        verifier: PublicKey,
    },
    /// Every round asked for is closed, paid and measured, and every audit is over.
    Finished,
}
