//! Operations of our own on the processor: a transformer block, the embedding, and norm + head + cross-entropy, each
//! with its own backward pass, as an extension of burn's ndarray backend.
//!
//! Plain burn operations spend three quarters of a small model's step on copies, permutations and allocations, on one
//! core. These work on plain slices: matrix products at full speed, everything else fused around them, buffers kept.
//! `decode` is the same network for one token after the other, with what attention has seen kept; `packed` are its
//! products.
//! The code of `transformer` is their definition; tests compare. On libtorch the same operations are libtorch's own.

mod attention;
mod block;
mod decode;
mod head;
mod kernels;
mod ops;
mod optimizer;
mod packed;
mod pool;
#[cfg(test)]
mod tests;
mod threads;
#[cfg(feature = "tch")]
mod torch;

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use self::attention::Rotary;
use self::block::BlockShape;
use self::ops::FusedOps;
use crate::protocol::ModelSpec;

pub use self::decode::{Cache, Decoder, Turn};
pub(super) use self::optimizer::Optimizer;
pub(super) use self::pool::kept_bytes;

/// The network of `transformer`, of these operations.
#[derive(Debug, Clone)]
pub(super) struct Fused {
    width: usize,
    heads: usize,
    hidden: usize,
    rotary: Arc<Rotary>,
}

impl Fused {
    /// The network of `model`.
    pub fn new(model: &ModelSpec) -> Self {
        let [width, heads, hidden, context] =
            [model.width, model.heads, model.hidden, model.context].map(|size| size as usize);
        Self { width, heads, hidden, rotary: Arc::new(Rotary::new(context, width / heads)) }
    }

    /// The residual stream after the last block, `tokens × width`.
    pub fn states(&self, weights: &[Tensor<1>], tokens: &[u16], context: usize) -> Tensor<2> {
        let embedding = weights[0].clone().into_dispatch();
        let mut x = Dispatch::embed(embedding, tokens.into(), self.width);
        for block in &weights[1..weights.len() - 1] {
            let shape = BlockShape {
                width: self.width,
                heads: self.heads,
                hidden: self.hidden,
                context,
                rotary: Arc::clone(&self.rotary),
            };
            x = Dispatch::block(x, block.clone().into_dispatch(), shape);
        }
        Tensor::from_dispatch(x)
    }

    /// The mean cross-entropy of `targets` after `tokens`, nats a token.
    pub fn loss(&self, weights: &[Tensor<1>], tokens: &[u16], targets: &[u16], context: usize) -> Tensor<1> {
        let x = self.states(weights, tokens, context).into_dispatch();
        let [gain, embedding] = [weights.len() - 1, 0].map(|index| weights[index].clone().into_dispatch());
        Tensor::from_dispatch(Dispatch::head(x, gain, embedding, targets.into()))
    }
}
