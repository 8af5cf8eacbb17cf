//! Hands out tasks, collects submissions, closes rounds.
//!
//! [`Rounds`] is the core: requests, verdicts and time in; leases, replies and jobs out. Its [`State`] changes only by
//! [`Record`]s, which are on disk before anybody hears of them, so that a coordinator that was killed goes on exactly
//! where it was. [`Coordinator`] is the actor.

mod actor;
mod audits;
mod chronicle;
mod core;
mod recheck;
mod slots;
mod state;

pub use self::core::{Effect, Event, Report, Rounds};
pub use actor::{Coordinator, CoordinatorPorts, Inspect, Look, ReplyTo};
pub use audits::{CaseId, DrawnResult, Ending, RoundDraw, VerifierRecord};
pub use chronicle::{Chronicle, LateResult, Rejection, RoundStory, RoundSummary, TaskStage, TaskStory};
pub use recheck::{RecheckError, Rechecked, recheck};
pub use state::{BaseModel, Record, State, WorkerRecord};

use std::fmt;

/// Keeps a run's records.
pub trait RecordStore {
    /// Appends records durably: when it returns, a crash cannot take them back. All or none.
    fn append(&mut self, records: &[Record]) -> Result<(), RecordStoreError>;
}

/// Records that could not be kept or read.
#[derive(Debug)]
pub struct RecordStoreError(pub String);

impl fmt::Display for RecordStoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RecordStoreError {}
