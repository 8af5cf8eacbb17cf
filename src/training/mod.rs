//! What training means, without saying on what hardware: parameters, batches, the inner loop, pseudo-gradients and
//! their codecs, aggregation and the outer optimiser.
//!
//! Pure code. Gradients come from an [`Engine`], which `model` implements with burn and a simulation may implement
//! with a surrogate objective.

mod engine;
mod params;

pub use engine::{Batch, Engine, EngineError, Session};
pub use params::{Layout, Params, ParamsError, Role, TensorSpec};
