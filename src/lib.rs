//! Hydra trains one neural network on many people's computers.
pub mod ledger;
pub mod protocol;
pub mod store;
pub mod training;
