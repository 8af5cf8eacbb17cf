//! Hydra trains one neural network on many people's computers.
pub mod model;
pub mod protocol;
pub mod training;
