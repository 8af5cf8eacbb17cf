//! Leases tasks, trains, hands in what came out.
//!
//! [`Labour`] is the core, [`Worker`] the actor.

mod actor;
mod core;

pub use self::core::{Effect, Event, Finished, Labour};
pub use actor::{Worker, WorkerPorts};

/// Keeps a finished result until the coordinator has acknowledged it.
pub trait ResultStore {
    /// Keeps this durably, instead of what was kept before. Returns why it cannot.
    fn keep(&mut self, finished: &Finished) -> Result<(), String>;

    /// Lets go of it.
    fn let_go(&mut self) -> Result<(), String>;
}

/// Keeps nothing: for worlds in which a worker does not outlive its coordinator.
#[derive(Debug)]
pub struct KeepNothing;

impl ResultStore for KeepNothing {
    fn keep(&mut self, _: &Finished) -> Result<(), String> {
        Ok(())
    }

    fn let_go(&mut self) -> Result<(), String> {
        Ok(())
    }
}
