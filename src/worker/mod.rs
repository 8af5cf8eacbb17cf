//! Leases tasks, trains, hands in what came out.
//!
//! [`Labour`] is the core, [`Worker`] the actor.

mod actor;
mod core;

pub use self::core::{Effect, Event, Labour};
pub use actor::{Worker, WorkerPorts};
