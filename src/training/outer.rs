use std::sync::Arc;

use super::{CodecError, Layout, Params};
use crate::protocol::{Codec, OuterOptimizer};

/// The token-weighted mean of pseudo-gradients, built from one payload at a time in a fixed order.
///
/// It holds one buffer of the model's size, however many payloads go in. Floating-point addition is not associative,
/// so the order of [`Mean::add`] is part of the result: callers add in task order.
#[derive(Debug)]
pub struct Mean {
    sum: Params,
    total_tokens: u64,
    added_tokens: u64,
}

impl Mean {
    /// The mean of payloads that are together worth `total_tokens`.
    #[must_use]
    pub fn new(layout: Arc<Layout>, total_tokens: u64) -> Self {
        Self { sum: Params::zeros(layout), total_tokens, added_tokens: 0 }
    }

    /// Adds a payload that is worth `tokens`. After an error the mean is spoilt and must be begun again.
    pub fn add(&mut self, codec: Codec, payload: &[u8], tokens: u64) -> Result<(), CodecError> {
        self.added_tokens += tokens;
        let weight = (tokens as f64 / self.total_tokens as f64) as f32;
        let layout = Arc::clone(self.sum.layout());
        let sum = self.sum.values_mut();
        codec.decode_each(&layout, payload, |place, value| sum[place] += weight * value)
    }

    /// The mean.
    ///
    /// # Panics
    /// When the tokens added are not the total that the weights were made for.
    #[must_use]
    pub fn finish(self) -> Params {
        assert_eq!(self.added_tokens, self.total_tokens, "the weights of a mean must add up to one");
        self.sum
    }
}

impl OuterOptimizer {
    /// One outer step, in place: `base` becomes the next base model and `momentum` the next momentum (Nesterov, as in
    /// `DiLoCo`: `m ← μ·m + g; θ ← θ − η·(μ·m + g)`). `momentum` is not touched, and may be `None`, when μ is 0.
    pub fn step(&self, base: &mut Params, momentum: Option<&mut Params>, mean: &Params) {
        match momentum {
            Some(momentum) if self.momentum > 0.0 => {
                let values = base.values_mut().iter_mut().zip(momentum.values_mut()).zip(mean.values());
                for ((value, velocity), gradient) in values {
                    *velocity = self.momentum * *velocity + gradient;
                    *value -= self.rate * (self.momentum * *velocity + gradient);
                }
            }
            _ => {
                for (value, gradient) in base.values_mut().iter_mut().zip(mean.values()) {
                    *value -= self.rate * gradient;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ModelSpec, Seed};

    const MODEL: ModelSpec = ModelSpec { layers: 1, width: 4, heads: 1, hidden: 4, context: 4 };

    fn params(seed: u64) -> Params {
        Params::initial(&MODEL, &Seed::from_number(seed))
    }

    #[test]
    fn the_mean_weighs_by_tokens() {
        let (a, b) = (params(1), params(2));
        let seed = Seed::from_number(0);
        let mut mean = Mean::new(Layout::of(&MODEL), 4);
        mean.add(Codec::Fp32, &Codec::Fp32.encode(&a, &seed).unwrap(), 3).unwrap();
        mean.add(Codec::Fp32, &Codec::Fp32.encode(&b, &seed).unwrap(), 1).unwrap();
        for ((a, b), mean) in a.values().iter().zip(b.values()).zip(mean.finish().values()) {
            assert!((0.75 * a + 0.25 * b - mean).abs() < 1e-6);
        }
    }

    #[test]
    fn rate_one_without_momentum_lands_on_the_mean_of_the_workers_models() {
        let (base, local) = (params(1), params(2));
        let mut update = base.clone();
        update.values_mut().iter_mut().zip(local.values()).for_each(|(base, local)| *base -= local);
        let mut next = base;
        OuterOptimizer { rate: 1.0, momentum: 0.0 }.step(&mut next, None, &update);
        assert!(next.values().iter().zip(local.values()).all(|(next, local)| (next - local).abs() < 1e-6));
    }

    #[test]
    fn nesterov_matches_a_step_done_by_hand() {
        let layout = Layout::of(&MODEL);
        let constant = |value| Params::new(Arc::clone(&layout), vec![value; layout.len()]).unwrap();
        let (mut base, mut momentum) = (constant(1.0), constant(0.5));
        OuterOptimizer { rate: 0.5, momentum: 0.8 }.step(&mut base, Some(&mut momentum), &constant(0.25));
        // m = 0.8 × 0.5 + 0.25 = 0.65; θ = 1 − 0.5 × (0.8 × 0.65 + 0.25) = 0.615
        assert!(momentum.values().iter().all(|value| (value - 0.65).abs() < 1e-6));
        assert!(base.values().iter().all(|value| (value - 0.615).abs() < 1e-6));
    }
}
