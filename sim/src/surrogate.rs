use hydra::protocol::{DeviceKind, Digest, InnerOptimizer, ModelSpec, Seed, below};
use hydra::training::{Batch, Engine, EngineError, Params, Session};

/// How steep the bowl is: a fresh model's loss is about what an untrained transformer's is.
const STEEPNESS: f64 = 6000.0;

/// How far a step goes towards the optimum, times the learning rate.
const PULL: f32 = 3.0;

/// How long the noise of a batch is beside the way to the optimum.
const NOISE: f32 = 0.5;

/// An objective whose optimum is known: a bowl around one point, with as many numbers as the model has.
///
/// The loss is the mean squared distance to the optimum, so it is 0 there and nowhere else. Each batch pulls towards the
/// optimum and, half as far, in a direction of its own that follows from its tokens: updates of different tasks agree
/// about as much as those of a transformer, and the same task always gives the same update. A step costs a few
/// microseconds, which lets thousands of workers train at a time.
#[derive(Debug, Clone, Copy)]
pub struct Surrogate;

impl Surrogate {
    /// Where the loss is 0.
    #[must_use]
    pub fn optimum(model: &ModelSpec) -> Params {
        Params::initial(model, &Seed::from_number(0).derive("surrogate optimum", 0))
    }
}

struct Descent {
    params: Params,
    optimum: Params,
}

impl Engine for Surrogate {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }

    fn train(&self, model: &ModelSpec, base: &Params, _: &InnerOptimizer) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(Descent { params: base.clone(), optimum: Self::optimum(model) }))
    }

    fn loss(&self, model: &ModelSpec, params: &Params, _: &mut dyn Iterator<Item = Batch>) -> Result<f64, EngineError> {
        Ok(loss(params, &Self::optimum(model)))
    }
}

fn loss(params: &Params, optimum: &Params) -> f64 {
    let square = |(value, best): (&f32, &f32)| f64::from(value - best).powi(2);
    let sum: f64 = params.values().iter().zip(optimum.values()).map(square).sum();
    STEEPNESS * sum / params.values().len() as f64
}

impl Session for Descent {
    fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError> {
        let before = loss(&self.params, &self.optimum);
        if !before.is_finite() {
            return Err(EngineError::NotFinite("the loss"));
        }
        // Uniform noise between −a and a has the deviation a / √3.
        let deviation = (before / STEEPNESS).sqrt() as f32;
        let reach = NOISE * deviation * 3f32.sqrt();
        let bytes: Vec<u8> = batch.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let mut rng = Seed::from_digest(Digest::of(&bytes)).derive("surrogate noise", 0).rng();
        for (value, best) in self.params.values_mut().iter_mut().zip(self.optimum.values()) {
            let noise = (below(&mut rng, 2001) as f32 / 1000.0 - 1.0) * reach;
            *value -= rate * PULL * (*value - best + noise);
        }
        Ok(before as f32)
    }

    fn weights(&self, see: &mut dyn FnMut(&[f32])) -> Result<(), EngineError> {
        see(self.params.values());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Params, EngineError> {
        Ok(self.params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelSpec = ModelSpec { layers: 1, width: 4, heads: 1, hidden: 4, context: 8 };

    fn batch(first: u16) -> Batch {
        Batch { context: 8, tokens: (first..first + 9).collect() }
    }

    #[test]
    fn the_loss_is_nothing_at_the_optimum_and_falls_on_the_way_there() {
        let loss_of = |params: &Params| Surrogate.loss(&MODEL, params, &mut std::iter::empty()).unwrap();
        assert!(loss_of(&Surrogate::optimum(&MODEL)) == 0.0);
        let base = Params::initial(&MODEL, &Seed::from_number(1));
        let mut session = Surrogate.train(&MODEL, &base, &InnerOptimizer::muon()).unwrap();
        for step in 0..200 {
            session.step(&batch(step % 50), 0.02).unwrap();
        }
        let (before, after) = (loss_of(&base), loss_of(&session.finish().unwrap()));
        assert!((3.0..8.0).contains(&before) && after < before / 100.0, "{before} to {after}");
    }

    #[test]
    fn the_same_batches_give_the_same_weights_and_others_give_others() {
        let base = Params::initial(&MODEL, &Seed::from_number(1));
        let trained = |first| {
            let mut session = Surrogate.train(&MODEL, &base, &InnerOptimizer::muon()).unwrap();
            session.step(&batch(first), 0.02).unwrap();
            session.finish().unwrap()
        };
        assert_eq!(trained(3), trained(3));
        assert_ne!(trained(3), trained(4));
    }
}
