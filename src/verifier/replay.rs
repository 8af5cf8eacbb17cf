//! The fourth layer: doing a task again.
//!
//! A task is a pure function, so whoever has the base model and the data can compute the update that was handed in.
//! Devices differ in the last bits of a sum, and training grows that; [`Tolerance`] says by how much, and
//! `benches/replay.rs` measures it beside the smallest cheat.

use crate::protocol::{Codec, Reason, Task, limits};
use crate::training::{CodecError, Corpus, Difference, Engine, Layout, Params, TaskError, do_task};

/// How far an honest update may be from its replay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The share of codes that may differ.
    pub codes: f64,
    /// The relative L2 distance of scales, and of numbers that travel as such.
    pub distance: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { codes: limits::REPLAY_CODES_MAX, distance: limits::REPLAY_DISTANCE_MAX }
    }
}

impl Tolerance {
    /// Whether `difference` is that of two honest computations; otherwise why not.
    pub fn check(&self, difference: &Difference) -> Result<(), Reason> {
        let measured =
            [(difference.codes, self.codes), (difference.scales, self.distance), (difference.exact, self.distance)];
        // A distance that is no number is no proof of honesty.
        let beyond = measured.into_iter().find(|(distance, most)| distance.is_nan() || distance > most);
        beyond.map_or(Ok(()), |(distance, tolerance)| {
            Err(Reason::ReplayMismatch { distance: distance as f32, tolerance: tolerance as f32 })
        })
    }
}

/// Does `task` again, and compares `payload` and `losses` with what comes out.
///
/// The outer error is the verifier's own: it could not do the task, which says nothing about the submission. The inner
/// result is the finding.
pub fn replay(
    engine: &dyn Engine,
    task: &Task,
    base: &Params,
    corpus: &Corpus,
    payload: &[u8],
    tolerance: Tolerance,
) -> Result<Result<Difference, Reason>, TaskError> {
    let again = do_task(engine, task, base, corpus, |_| true)?;
    Ok(compare(task.codec, &Layout::of(&task.model), payload, &again.payload, tolerance))
}

/// Compares a payload that nobody vouches for with what doing the task again gave.
pub fn compare(
    codec: Codec,
    layout: &Layout,
    payload: &[u8],
    again: &[u8],
    tolerance: Tolerance,
) -> Result<Difference, Reason> {
    let difference = codec.difference(layout, payload, again).map_err(|error| match error {
        CodecError::NotFinite => Reason::NotFinite,
        other => Reason::PayloadMalformed(other.to_string()),
    })?;
    tolerance.check(&difference).map(|()| difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BurnEngine, DeviceChoice};
    use crate::protocol::{Digest, InnerOptimizer, Round};
    use crate::testing;

    #[test]
    fn an_honest_update_passes_its_replay_and_one_with_a_step_too_few_does_not() {
        let mut corpus = Corpus::default();
        corpus.push(&b"to be or not to be, that is the question; ".repeat(40)).unwrap();
        for optimizer in [InnerOptimizer::muon(), InnerOptimizer::adamw()] {
            let spec = crate::protocol::RunSpec { optimizer, ..testing::spec(1) };
            let base = Params::initial(&spec.model, &spec.seed);
            let task = Task::of_round(&spec, Round(0), 0, Digest::of(b"base"));
            let (worker, verifier) = (BurnEngine::plain(DeviceChoice::NdArray), BurnEngine::new(DeviceChoice::NdArray));
            let audit = |task: &Task, payload: &[u8]| {
                replay(&verifier, task, &base, &corpus, payload, Tolerance::default()).unwrap()
            };
            let honest = do_task(&worker, &task, &base, &corpus, |_| true).unwrap().payload;
            assert!(audit(&task, &honest).is_ok());
            let mut shorter = task.clone();
            shorter.inner_steps -= 1;
            let cheat = do_task(&worker, &shorter, &base, &corpus, |_| true).unwrap().payload;
            assert!(matches!(audit(&task, &cheat), Err(Reason::ReplayMismatch { .. })));
            assert!(matches!(audit(&task, &honest[1..]), Err(Reason::PayloadMalformed(_))));
        }
    }

    #[test]
    fn a_distance_that_is_no_number_fails() {
        let difference = Difference { codes: 0.0, scales: f64::NAN, exact: 0.0 };
        assert!(Tolerance::default().check(&difference).is_err());
    }
}
