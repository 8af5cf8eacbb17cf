//! The vocabulary that every other part speaks: ids, digests, amounts, tasks, submissions, verdicts,
//! signed envelopes, and the limits on all of them.
//!
//! Nothing here does I/O, reads a clock or knows an actor. Values are valid by construction: whoever holds a
//! [`PublicKey`] or an [`Amount`] need not check it again.

mod amount;
mod call;
mod digest;
mod draw;
mod envelope;
mod id;
pub mod limits;
mod message;
mod seed;
mod spec;
mod submission;
mod task;
mod verdict;
pub mod wire;

pub use amount::{Amount, AmountError, Balance, MICRO_PER_HYD};
pub use call::{Call, ExchangeKey, ExchangeSecret, PassId, PassKey, PassedCall, SessionId};
pub use digest::{Digest, DigestError, Digester};
pub use draw::{AuditPolicy, Auditors, Audits, Ppm, SecretChain, is_drawn, secret_before};
pub use envelope::{EnvelopeError, Keypair, Message, PublicKey, PublicKeyError, Signed};
pub use id::{Lateness, Round, RunId, TaskId, Time};
pub use message::{RefusalReason, WorkerReply, WorkerRequest};
pub use seed::{Seed, below};
pub use spec::{
    AdamW, Aggregation, Codec, Emission, InnerOptimizer, ModelSpec, Muon, OuterOptimizer, Rule, RunSpec, Schedule,
    ShortTasks, SpecError, Timing, VOCABULARY, VOCABULARY_BYTES, VOCABULARY_END,
};
pub use submission::{Commitment, DeviceKind, Submission, Trail};
pub use task::{Lease, Task};
pub use verdict::{Layer, Outcome, Parting, Reason, Verdict};
