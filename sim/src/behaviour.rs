use std::sync::Arc;

use hydra::protocol::{InnerOptimizer, ModelSpec};
use hydra::training::{Batch, Engine, EngineError, Params, Session};
use serde::Deserialize;

/// What a worker does with its tasks. A cheat is an engine that computes something else than was asked for; all else
/// about the worker is as in production.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// Trains as asked.
    #[default]
    Honest,
    /// Multiplies its update: by 10 to drown the others out, by −10 to undo them.
    Scale(f32),
    /// Hands in something that is not finite.
    NotFinite,
}

impl Behaviour {
    /// Whether it does what it is asked for.
    #[must_use]
    pub fn is_honest(self) -> bool {
        self == Self::Honest
    }

    pub(crate) fn engine(self, honest: Arc<dyn Engine>) -> Arc<dyn Engine> {
        if self.is_honest() { honest } else { Arc::new(Cheat { honest, behaviour: self }) }
    }
}

struct Cheat {
    honest: Arc<dyn Engine>,
    behaviour: Behaviour,
}

struct CheatSession {
    honest: Box<dyn Session>,
    base: Params,
    behaviour: Behaviour,
}

impl Engine for Cheat {
    fn train(
        &self,
        model: &ModelSpec,
        base: &Params,
        optimizer: &InnerOptimizer,
    ) -> Result<Box<dyn Session>, EngineError> {
        let honest = self.honest.train(model, base, optimizer)?;
        Ok(Box::new(CheatSession { honest, base: base.clone(), behaviour: self.behaviour }))
    }

    fn loss(
        &self,
        model: &ModelSpec,
        params: &Params,
        batches: &mut dyn Iterator<Item = Batch>,
    ) -> Result<f64, EngineError> {
        self.honest.loss(model, params, batches)
    }
}

impl Session for CheatSession {
    fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError> {
        let loss = self.honest.step(batch, rate)?;
        Ok(if self.behaviour == Behaviour::NotFinite { f32::NAN } else { loss })
    }

    fn finish(self: Box<Self>) -> Result<Params, EngineError> {
        let mut local = self.honest.finish()?;
        if let Behaviour::Scale(by) = self.behaviour {
            for (local, base) in local.values_mut().iter_mut().zip(self.base.values()) {
                *local = base + by * (*local - base);
            }
        }
        Ok(local)
    }
}
