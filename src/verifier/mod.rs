//! Checks submissions, cheap checks first, and signs what it finds.
//!
//! [`checks`] are pure functions of a job and the payloads it names. [`Audit`] is the role's core, [`Verifier`] its
//! actor.

mod actor;
pub mod checks;
mod core;
mod held_out;
mod replay;
mod tolerance;

pub use self::core::{Audit, Effect, Event};
pub use actor::{Verifier, VerifierPorts};
pub use checks::{AdmissionJob, Candidate, CopiesJob, Job, ReplayJob, StatisticsJob};
pub use held_out::helps;
pub use replay::{bisect, compare, replay};
pub use tolerance::Tolerance;
