use super::Params;
use crate::protocol::OuterOptimizer;

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
    use std::sync::Arc;

    use super::*;
    use crate::protocol::{ModelSpec, Seed};
    use crate::training::Layout;

    const MODEL: ModelSpec = ModelSpec { layers: 1, width: 4, heads: 1, hidden: 4, context: 4 };

    fn params(seed: u64) -> Params {
        Params::initial(&MODEL, &Seed::from_number(seed))
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
