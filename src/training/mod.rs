//! What training means, without saying on what hardware: parameters, batches, the inner loop, pseudo-gradients and
//! their codecs, aggregation and the outer optimiser.
//!
//! Pure code. Gradients come from an [`Engine`], which `model` implements with burn and a simulation may implement
//! with a surrogate objective.

mod aggregate;
mod batches;
mod codec;
mod corpus;
mod engine;
mod gram;
mod inner;
mod kernels;
mod outer;
mod params;

pub use aggregate::Update;
pub use batches::{training_batch, validation_batches};
pub use codec::{CODECS, CodecError, Difference};
pub use corpus::{Corpus, CorpusError, Manifest, ShardRef, Split};
pub use engine::{Batch, Engine, EngineError, Session};
pub use inner::{TaskError, Trained, do_task};
pub use params::{Layout, Params, ParamsError, Role, TensorSpec};
