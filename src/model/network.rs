use burn::tensor::Tensor;

use super::fused::{self, Fused};
use super::optimizer::{self, Optimizer};
use super::transformer::Plain;
use super::weights::groups;
use crate::protocol::{InnerOptimizer, ModelSpec};
use crate::training::Layout;

/// The network and its optimiser, as fast as a device can.
#[derive(Debug, Clone)]
pub(super) enum Network {
    /// Plain burn operations: any device.
    Plain(Plain),
    /// Operations of our own: the processor.
    Fused(Fused, Plain),
}

impl Network {
    /// The network of `model`; with operations of our own, where they run, or without.
    pub fn new(model: &ModelSpec, fused: bool) -> Self {
        if fused { Self::Fused(Fused::new(model), Plain::new(model)) } else { Self::Plain(Plain::new(model)) }
    }

    /// A fresh optimiser.
    pub fn optimizer(&self, model: &ModelSpec, settings: &InnerOptimizer) -> Box<dyn Optimizer> {
        let groups = groups(&Layout::of(model));
        match self {
            Self::Plain(_) => Box::new(optimizer::Plain::new(groups, *settings)),
            Self::Fused(..) => Box::new(fused::Optimizer::new(groups, *settings)),
        }
    }

    /// The mean cross-entropy of `targets` after `tokens` (sequences of `context`), nats a token.
    pub fn loss(&self, weights: &[Tensor<1>], tokens: &[u16], targets: &[u16], context: usize) -> Tensor<1> {
        match self {
            Self::Plain(plain) => plain.loss(weights, tokens, targets, context),
            Self::Fused(fused, _) => fused.loss(weights, tokens, targets, context),
        }
    }

    /// The logits after the last of `tokens`.
    pub fn logits(&self, weights: &[Tensor<1>], tokens: &[u16]) -> Tensor<1> {
        let (states, plain) = match self {
            Self::Plain(plain) => (plain.states(weights, tokens, tokens.len()), plain),
            Self::Fused(fused, plain) => (fused.states(weights, tokens, tokens.len()), plain),
        };
        plain.logits(states.narrow(0, tokens.len() - 1, 1), weights)
    }
}
