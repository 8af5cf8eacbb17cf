//! The network, and the only home of burn: everybody else sees [`Engine`](crate::training::Engine) and flat
//! [`Params`](crate::training::Params).
//!
//! In reading order:
//! - [`presets`](Preset): named sizes;
//! - `device`: which hardware computes; [`memory`]: how much of it training needs;
//! - [`checkpoint`]: parameters as safetensors; [`formats`]: models for other programs, and from them;
//! - `weights`: parameters as burn tensors;
//! - `transformer`: the network in plain burn operations, for any device, and the reference in tests;
//! - `optimizer`: `AdamW` and Muon, likewise;
//! - `fused`, `matmul`: the same on the processor, several times faster;
//! - `network`: which of the two a device gets;
//! - [`engine`](BurnEngine): training and measuring; [`Predictor`]: the next token; [`Decoder`]: many texts,
//!   token by token;
//! - [`speed`]: what a device achieves.

pub mod checkpoint;
#[cfg(test)]
mod conformance;
mod device;
mod engine;
pub mod formats;
mod fused;
mod matmul;
pub mod memory;
mod network;
mod optimizer;
mod predictor;
mod presets;
pub mod speed;
mod transformer;
mod weights;

pub use checkpoint::CheckpointError;
pub use device::{DeviceChoice, DeviceError};
pub use engine::BurnEngine;
pub use fused::{Cache, Decoder, Turn};
pub use predictor::Predictor;
pub use presets::{Preset, PresetError, Recipe};
