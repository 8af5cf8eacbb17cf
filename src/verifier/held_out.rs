//! The third layer: whether an update does no harm on the data that it was to be made of.

use crate::protocol::{Task, limits};
use crate::training::{Corpus, Engine, EngineError, Layout, Params, TaskError, training_batch};

/// Whether the model that `payload` leads to from `base` has a lower loss on the first batches of `task` than `base`, or
/// one that is higher by no more than `rise` of it: what was trained on them has, and what was not,
/// or on something else, mostly has not. Two forward passes over [`limits::HELD_OUT_BATCHES`] batches, where doing the task
/// again takes `inner_steps` steps.
pub fn helps(
    engine: &dyn Engine,
    task: &Task,
    base: &Params,
    corpus: &Corpus,
    payload: &[u8],
    rise: f64,
) -> Result<bool, TaskError> {
    let mut next = task.codec.decode(&Layout::of(&task.model), payload)?;
    next.values_mut().iter_mut().zip(base.values()).for_each(|(update, base)| *update = base - *update);
    let loss = |params: &Params| {
        let batches = 0..task.inner_steps.min(limits::HELD_OUT_BATCHES);
        match engine.loss(&task.model, params, &mut batches.map(|step| training_batch(corpus, task, step))) {
            // Worse than any number.
            Err(EngineError::NotFinite(_)) => Ok(f64::INFINITY),
            loss => loss,
        }
    };
    let after = loss(&next)?;
    Ok(after.is_finite() && after <= loss(base)? * (1.0 + rise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BurnEngine, DeviceChoice};
    use crate::protocol::{Codec, Digest, Round, RunSpec};
    use crate::testing;
    use crate::training::do_task;

    #[test]
    fn honest_work_helps_on_its_own_data_and_its_opposite_does_not() {
        let mut corpus = Corpus::default();
        corpus.push(&b"to be or not to be, that is the question; ".repeat(40)).unwrap();
        let spec = RunSpec { inner_steps: 60, codec: Codec::Fp32, ..testing::spec(1) };
        let engine = BurnEngine::new(DeviceChoice::NdArray);
        let task = Task::of_round(&spec, Round(3), 0, Digest::of(b"base"));
        let update = |base: &Params| {
            let payload = do_task(&engine, &task, base, &corpus, |_| true).unwrap().payload;
            (task.codec.decode(&Layout::of(&task.model), &payload).unwrap(), payload)
        };
        // What was learned on the way here is what the opposite of the next update would undo.
        let mut base = Params::initial(&spec.model, &spec.seed);
        let (way, _) = update(&base);
        base.values_mut().iter_mut().zip(way.values()).for_each(|(base, way)| *base -= way);
        let (mut next, honest) = update(&base);
        assert!(helps(&engine, &task, &base, &corpus, &honest, 0.0).unwrap());
        next.values_mut().iter_mut().for_each(|value| *value = -*value);
        let opposite = task.codec.encode(&next, &task.seed).unwrap();
        assert!(!helps(&engine, &task, &base, &corpus, &opposite, limits::HELD_OUT_RISE_LATE_MAX).unwrap());
    }
}
