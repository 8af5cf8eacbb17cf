use burn::tensor::Tensor;

use super::device::Operations;
use super::fused::{self, Fused};
use super::optimizer::{self, Optimizer};
use super::transformer::Plain;
use super::weights::groups;
use crate::protocol::{InnerOptimizer, ModelSpec};
use crate::training::Layout;

/// The network and its optimiser.
#[derive(Debug, Clone)]
pub(super) struct Network {
    plain: Plain,
    fused: Option<Fused>,
    operations: Operations,
}

impl Network {
    /// The network of `model`.
    pub fn new(model: &ModelSpec, operations: Operations) -> Self {
        let fused = (operations != Operations::Plain).then(|| Fused::new(model));
        Self { plain: Plain::new(model), fused, operations }
    }

    /// A fresh optimiser.
    pub fn optimizer(&self, model: &ModelSpec, settings: &InnerOptimizer) -> Box<dyn Optimizer> {
        let groups = groups(&Layout::of(model));
        match self.operations {
            Operations::Plain | Operations::Extended => Box::new(optimizer::Plain::new(groups, *settings)),
            Operations::Ours => Box::new(fused::Optimizer::new(groups, *settings)),
        }
    }

    /// The mean cross-entropy of `targets` after `tokens` (sequences of `context`), nats a token.
    pub fn loss(&self, weights: &[Tensor<1>], tokens: &[u16], targets: &[u16], context: usize) -> Tensor<1> {
        match &self.fused {
            None => self.plain.loss(weights, tokens, targets, context),
            Some(fused) => fused.loss(weights, tokens, targets, context),
        }
    }

    /// The logits after the last of `tokens`.
    pub fn logits(&self, weights: &[Tensor<1>], tokens: &[u16]) -> Tensor<1> {
        let states = match &self.fused {
            None => self.plain.states(weights, tokens, tokens.len()),
            Some(fused) => fused.states(weights, tokens, tokens.len()),
        };
        self.plain.logits(states.narrow(0, tokens.len() - 1, 1), weights)
    }
}
