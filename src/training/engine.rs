use super::Params;
use crate::protocol::{DeviceKind, InnerOptimizer, ModelSpec};

/// Token sequences to train or measure on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Predicted tokens in a sequence.
    pub context: usize,
    /// `sequences × (context + 1)` tokens, sequence after sequence: of each, the first `context` are the input and
    /// the last `context` the target. All are below [`VOCABULARY`](crate::protocol::VOCABULARY).
    pub tokens: Vec<u16>,
}

impl Batch {
    /// How many sequences it holds.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.tokens.len() / (self.context + 1)
    }

    /// How many tokens are predicted.
    #[must_use]
    pub fn predicted(&self) -> usize {
        self.sequences() * self.context
    }
}

/// Computes losses and gradients of one kind of model on one device.
///
/// Results do not depend on the number of threads it uses, bit for bit: audits compute tasks again.
pub trait Engine: Send + Sync {
    /// What it computes on.
    fn kind(&self) -> DeviceKind;

    /// Starts training from `base` with a fresh optimiser.
    fn train(
        &self,
        model: &ModelSpec,
        base: &Params,
        optimizer: &InnerOptimizer,
    ) -> Result<Box<dyn Session>, EngineError>;

    /// The mean loss over all tokens of `batches`, nats a token.
    fn loss(
        &self,
        model: &ModelSpec,
        params: &Params,
        batches: &mut dyn Iterator<Item = Batch>,
    ) -> Result<f64, EngineError>;
}

/// Training under way.
pub trait Session {
    /// One inner step: forward, backward, clip the gradient to global norm 1, optimiser. Gives the loss before the
    /// step, nats a token.
    fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError>;

    /// Shows the weights now, in the order of the [`Layout`](super::Layout), piece by piece.
    fn weights(&self, see: &mut dyn FnMut(&[f32])) -> Result<(), EngineError>;

    /// Ends training: the weights now.
    fn finish(self: Box<Self>) -> Result<Params, EngineError>;
}

/// What a device could not do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The loss or a weight became NaN or infinite.
    #[error("training diverged: {0} is not finite; a smaller learning rate helps")]
    NotFinite(&'static str),
    /// The base weights are not of this architecture.
    #[error("the weights do not fit the model: {0}")]
    Mismatch(String),
    /// A batch that the model cannot take.
    #[error("the batch does not fit the model: {0}")]
    Batch(String),
    /// A batch that does not fit into memory.
    #[error("{0}")]
    Memory(String),
    /// The device failed or is not there.
    #[error("the device failed: {0}")]
    Device(String),
}
