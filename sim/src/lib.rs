//! Deterministic simulation of a Hydra swarm.
//!
//! The actors are the ones that run in production, all in one thread and one process, under virtual time: a
//! [`Scenario`] says who takes part, how fast, over what network; [`run`] plays it and gives an [`Outcome`]. The same
//! scenario and seed give the same events, the same model and the same ledger, on any number of cores.

mod behaviour;
mod network;
mod outcome;
mod panel;
mod scenario;
mod world;

pub use behaviour::Behaviour;
pub use outcome::{Caught, Outcome, VerifierOutcome, WorkerOutcome};
pub use panel::VerifierBehaviour;
pub use scenario::{Audits, Device, Expectations, Group, Job, Network, Scenario, ScenarioError, VerifierGroup};
pub use world::{SimError, run};
