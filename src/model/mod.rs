//! The network, and the only home of burn: everybody else sees [`Engine`](crate::training::Engine) and flat
//! [`Params`](crate::training::Params).
//!
//! In reading order:
//! - [`presets`](Preset): named sizes;
//! - `device`: which hardware computes;
//! - [`checkpoint`]: parameters as safetensors, readable by Hugging Face tools;
//! - `weights`: parameters as burn tensors;
//! - `transformer`: the network in plain burn operations, for any device, and the reference in tests;
//! - `optimizer`: `AdamW` and Muon, likewise;
//! - `fused`, `matmul`: the same on the processor, several times faster;
//! - `network`: which of the two a device gets;
//! - [`engine`](BurnEngine): training and measuring; [`Predictor`]: the next token.

pub mod checkpoint;
mod device;
mod engine;
mod fused;
mod matmul;
mod network;
mod optimizer;
mod predictor;
mod presets;
mod transformer;
mod weights;

pub use checkpoint::CheckpointError;
pub use device::{DeviceChoice, DeviceError};
pub use engine::BurnEngine;
pub use predictor::Predictor;
pub use presets::{Preset, PresetError, Recipe};
