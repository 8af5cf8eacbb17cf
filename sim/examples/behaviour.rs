//! A way to cheat of one's own: workers that hand in their update upside down every other task, and whether it pays.
//!
//! `cargo run --example behaviour`

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hydra::protocol::{DeviceKind, InnerOptimizer, ModelSpec};
use hydra::training::{Batch, Engine, EngineError, Params, Session};
use hydra_sim::{Scenario, Simulation};

struct TwoFaced(Arc<dyn Engine>, AtomicU32);

struct Reversed(Box<dyn Session>, Params);

impl Engine for TwoFaced {
    fn kind(&self) -> DeviceKind {
        self.0.kind()
    }

    fn train(&self, model: &ModelSpec, base: &Params, with: &InnerOptimizer) -> Result<Box<dyn Session>, EngineError> {
        let honest = self.0.train(model, base, with)?;
        let cheats = self.1.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        Ok(if cheats { Box::new(Reversed(honest, base.clone())) } else { honest })
    }

    fn loss(&self, model: &ModelSpec, at: &Params, on: &mut dyn Iterator<Item = Batch>) -> Result<f64, EngineError> {
        self.0.loss(model, at, on)
    }
}

impl Session for Reversed {
    fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError> {
        self.0.step(batch, rate)
    }

    fn weights(&self, see: &mut dyn FnMut(&[f32])) -> Result<(), EngineError> {
        self.0.weights(see)
    }

    fn finish(self: Box<Self>) -> Result<Params, EngineError> {
        let mut local = self.0.finish()?;
        local.values_mut().iter_mut().zip(self.1.values()).for_each(|(value, base)| *value = 2.0 * base - *value);
        Ok(local)
    }
}

fn main() -> anyhow::Result<()> {
    let text = include_str!("behaviour.toml");
    let scenario = Scenario::parse("behaviour.toml".as_ref(), text)?;
    let simulation =
        Simulation::new(&scenario).behaviour("two-faced", |honest| Arc::new(TwoFaced(honest, AtomicU32::new(0))));
    let outcome = simulation.run(scenario.seed, 2)?;
    for worker in outcome.workers.iter().filter(|worker| !worker.honest) {
        println!("{} accepted, {} rejected, keeps {}", worker.accepted, worker.rejected, worker.kept);
    }
    anyhow::ensure!(outcome.passed, "{:#?}", outcome.failures);
    Ok(())
}
