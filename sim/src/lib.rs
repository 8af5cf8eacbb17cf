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
mod laws;
mod network;
mod outcome;
mod panel;
mod presence;
mod process;
mod prose;
mod queries;
mod report;
mod scenario;
pub mod shrink;
mod simulation;
mod surrogate;
pub mod sweep;
mod world;

pub use behaviour::Behaviour;
pub use faults::{Fault, Faults, Strike, Trouble, Victim};
pub use outcome::{Caught, GroupOutcome, Outcome, RoundRow, Struck, VerifierOutcome, WorkerOutcome};
pub use panel::VerifierBehaviour;
pub use presence::{Availability, Churn, Diurnal};
pub use queries::{Queries, QueryCounts};
pub use scenario::{
    Audits, Device, Economy, Expectations, Group, Job, Network, Objective, Scenario, ScenarioError, Speed, Store,
    VerifierGroup,
};
pub use simulation::{EngineOf, Progress, SimError, Simulation, run};
pub use surrogate::Surrogate;
