//! Deterministic simulation of a Hydra swarm.
//!
//! The actors are the ones that run in production, all in one thread and one process, under virtual time: a
//! [`Scenario`] says who takes part, how fast, over what network and what goes wrong; [`run`] plays it and gives an
//! [`Outcome`]. The same scenario and seed give the same events, the same model and the same ledger, on any number of
//! cores. A [`Simulation`] adds behaviours and faults of a program's own; see `examples/`.

mod behaviour;
mod chance;
mod disk;
mod expect;
mod faults;
pub mod folder;
mod network;
mod outcome;
mod panel;
mod presence;
mod process;
mod prose;
mod report;
mod scenario;
pub mod shrink;
mod surrogate;
mod world;

pub use behaviour::Behaviour;
pub use faults::{Fault, Faults, Strike, Trouble, Victim};
pub use outcome::{Caught, GroupOutcome, Outcome, RoundRow, Struck, VerifierOutcome, WorkerOutcome};
pub use panel::VerifierBehaviour;
pub use presence::{Availability, Churn, Diurnal};
pub use scenario::{
    Audits, Device, Expectations, Group, Job, Network, Objective, Scenario, ScenarioError, Speed, VerifierGroup,
};
pub use surrogate::Surrogate;
pub use world::{EngineOf, Progress, SimError, Simulation, run};
