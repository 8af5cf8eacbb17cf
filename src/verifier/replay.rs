//! The fourth layer: doing a task again.
//!
//! A task is a pure function, so whoever has the base model and the data can compute the update that was handed in.
//! Devices differ in the last bits of a sum, and training grows that; [`Tolerance`] says by how much, and is what decides.
//! A worker also commits to its states on the way. Between devices of one kind these are the same to the bit as long as
//! both did the same, so of false work the replay can say where it went wrong.

use super::Tolerance;
use crate::protocol::{Codec, Parting, Reason, Task, Trail};
use crate::training::{CodecError, Corpus, Difference, Engine, Layout, Params, TaskError, do_task};

/// Does `task` again, and compares `payload` with what comes out; `trail` is how whoever handed it in says that it came
/// about.
///
/// The outer error is the verifier's own: it could not do the task, which says nothing about the submission. The inner
/// result is the finding.
pub fn replay(
    engine: &dyn Engine,
    task: &Task,
    base: &Params,
    corpus: &Corpus,
    payload: &[u8],
    trail: &Trail,
) -> Result<Result<Difference, Reason>, TaskError> {
    let again = do_task(engine, task, base, corpus, |_| true)?;
    let tolerance = Tolerance::between(trail.device, again.trail.device, task.codec);
    let parting = || parting(task, trail, &again.trail);
    Ok(compare(task.codec, &Layout::of(&task.model), payload, &again.payload, tolerance, parting))
}

/// The first place at which two sequences of `length` differ, by comparing at most ⌈log₂(length + 1)⌉ places, where `same`
/// says whether they are the same at one. Where they come together again after they have parted, which the digests of
/// [`Trail::states`] do not, it is one of the places at which they part.
pub fn bisect(length: usize, mut same: impl FnMut(usize) -> bool) -> Option<usize> {
    let (mut known_same, mut known_different) = (0, length);
    while known_same < known_different {
        let middle = known_same.midpoint(known_different);
        if same(middle) {
            known_same = middle + 1;
        } else {
            known_different = middle;
        }
    }
    (known_same < length).then_some(known_same)
}

/// Where a worker's states part from those of a replay.
fn parting(task: &Task, trail: &Trail, again: &Trail) -> Parting {
    if trail.device != again.device || trail.states.len() != again.states.len() {
        return Parting::Unknown;
    }
    let same = |segment: usize| trail.states.get(segment) == again.states.get(segment);
    match bisect(again.states.len(), same) {
        None => Parting::Payload,
        Some(segment) => task
            .segments()
            .nth(segment)
            .map_or(Parting::Unknown, |steps| Parting::Steps { first: steps.start, last: steps.end.saturating_sub(1) }),
    }
}

/// Compares a payload that nobody vouches for with what doing the task again gave.
pub fn compare(
    codec: Codec,
    layout: &Layout,
    payload: &[u8],
    again: &[u8],
    tolerance: Tolerance,
    parting: impl FnOnce() -> Parting,
) -> Result<Difference, Reason> {
    let difference = codec.difference(layout, payload, again).map_err(|error| match error {
        CodecError::NotFinite => Reason::NotFinite,
        other => Reason::PayloadMalformed(other.to_string()),
    })?;
    tolerance.check(&difference, parting).map(|()| difference)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{BurnEngine, DeviceChoice};
    use crate::protocol::{DeviceKind, Digest, InnerOptimizer, ModelSpec, Round, RunSpec, Seed, limits};
    use crate::testing;
    use crate::training::{Batch, EngineError, Session, Trained};

    fn corpus() -> Corpus {
        let mut corpus = Corpus::default();
        corpus.push(&b"to be or not to be, that is the question; ".repeat(40)).unwrap();
        corpus
    }

    #[test]
    fn an_honest_update_passes_its_replay_and_one_with_a_step_too_few_does_not() {
        let corpus = corpus();
        for optimizer in [InnerOptimizer::muon(), InnerOptimizer::adamw()] {
            let spec = RunSpec { optimizer, ..testing::spec(1) };
            let base = Params::initial(&spec.model, &spec.seed);
            let task = Task::of_round(&spec, Round(0), 0, Digest::of(b"base"));
            let (worker, verifier) = (BurnEngine::plain(DeviceChoice::NdArray), BurnEngine::new(DeviceChoice::NdArray));
            let audit = |task: &Task, done: &Trained, cut: usize| {
                replay(&verifier, task, &base, &corpus, &done.payload[cut..], &done.trail).unwrap()
            };
            let honest = do_task(&worker, &task, &base, &corpus, |_| true).unwrap();
            assert!(audit(&task, &honest, 0).is_ok());
            let mut shorter = task.clone();
            shorter.inner_steps -= 1;
            let cheat = do_task(&worker, &shorter, &base, &corpus, |_| true).unwrap();
            assert!(matches!(audit(&task, &cheat, 0), Err(Reason::ReplayMismatch { parting: Parting::Unknown, .. })));
            assert!(matches!(audit(&task, &honest, 1), Err(Reason::PayloadMalformed(_))));
        }
    }

    #[test]
    fn on_one_kind_of_device_the_replay_says_in_which_steps_false_work_went_wrong() {
        let corpus = corpus();
        let spec = RunSpec { inner_steps: 40, ..testing::spec(2) };
        let base = Params::initial(&spec.model, &spec.seed);
        let [task, other] = [0, 1].map(|index| Task::of_round(&spec, Round(0), index, Digest::of(b"base")));
        let engine = BurnEngine::new(DeviceChoice::NdArray);
        let honest = do_task(&engine, &task, &base, &corpus, |_| true).unwrap();
        let audit = |done: &Trained| replay(&engine, &task, &base, &corpus, &done.payload, &done.trail).unwrap();
        assert!(audit(&honest).is_ok());
        let parting = |done: &Trained| match audit(done) {
            Err(Reason::ReplayMismatch { parting, .. }) => parting,
            found => panic!("{found:?}"),
        };
        // Segments of forty steps are two or three long: the sixth begins after 12.
        let stale = do_task(&Lazy(&engine, 13), &task, &base, &corpus, |_| true).unwrap();
        assert_eq!(parting(&stale), Parting::Steps { first: 12, last: 14 });
        let elsewhere = do_task(&engine, &other, &base, &corpus, |_| true).unwrap();
        assert_eq!(parting(&elsewhere), Parting::Steps { first: 0, last: 1 });
        let forged = Trained { payload: elsewhere.payload, ..honest };
        assert_eq!(parting(&forged), Parting::Payload);
    }

    /// Leaves out one step.
    struct Lazy<'a>(&'a BurnEngine, u32);

    struct LazySession {
        honest: Box<dyn Session>,
        step: u32,
        left_out: u32,
        loss: f32,
    }

    impl Engine for Lazy<'_> {
        fn kind(&self) -> DeviceKind {
            self.0.kind()
        }

        fn train(
            &self,
            model: &ModelSpec,
            base: &Params,
            with: &InnerOptimizer,
        ) -> Result<Box<dyn Session>, EngineError> {
            let honest = self.0.train(model, base, with)?;
            Ok(Box::new(LazySession { honest, step: 0, left_out: self.1, loss: 0.0 }))
        }

        fn loss(
            &self,
            model: &ModelSpec,
            params: &Params,
            batches: &mut dyn Iterator<Item = Batch>,
        ) -> Result<f64, EngineError> {
            self.0.loss(model, params, batches)
        }
    }

    impl Session for LazySession {
        fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError> {
            if self.step != self.left_out {
                self.loss = self.honest.step(batch, rate)?;
            }
            self.step += 1;
            Ok(self.loss)
        }

        fn weights(&self, see: &mut dyn FnMut(&[f32])) -> Result<(), EngineError> {
            self.honest.weights(see)
        }

        fn finish(self: Box<Self>) -> Result<Params, EngineError> {
            self.honest.finish()
        }
    }

    proptest! {
        #[test]
        fn bisection_ends_at_the_first_difference_after_few_comparisons(
            length in 0usize..5000, first in any::<prop::sample::Index>(),
        ) {
            let first = first.index(length + 1);
            let mut comparisons = 0;
            let found = bisect(length, |place| {
                comparisons += 1;
                place < first
            });
            prop_assert_eq!(found, (first < length).then_some(first));
            prop_assert!(comparisons <= (length + 1).next_power_of_two().ilog2());
        }

        #[test]
        fn bisection_of_anything_ends_where_two_part(same in prop::collection::vec(any::<bool>(), 1..200)) {
            match bisect(same.len(), |place| same[place]) {
                Some(place) => prop_assert!(!same[place] && (place == 0 || same[place - 1])),
                None => prop_assert!(same[same.len() - 1]),
            }
        }
    }

    #[test]
    fn a_few_codes_that_are_far_off_weigh_as_much_as_many_that_are_a_little() {
        let (spec, seed, codec) = (testing::spec(1), Seed::from_number(1), Codec::Int8);
        let layout = Layout::of(&spec.model);
        let honest = Params::initial(&spec.model, &seed);
        let mut forged = honest.clone();
        for tensor in layout.tensors() {
            // In every other block, the smallest number becomes the largest: less than one code in a hundred.
            for blocks in forged.values_mut()[tensor.range()].chunks_mut(2 * limits::CODEC_BLOCK) {
                let block = blocks.chunks_mut(limits::CODEC_BLOCK).next().unwrap();
                let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let smallest = block.iter_mut().min_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
                *smallest = largest;
            }
        }
        let [honest, forged] = [honest, forged].map(|update| codec.encode(&update, &seed).unwrap());
        let compare = |payload: &[u8], kind| {
            let tolerance = Tolerance::between(DeviceKind::Ndarray, kind, codec);
            compare(codec, &layout, payload, &honest, tolerance, || Parting::Payload)
        };
        for kind in [DeviceKind::Ndarray, DeviceKind::Cuda] {
            assert_eq!(compare(&honest, kind), Ok(Difference::default()));
            assert!(matches!(compare(&forged, kind), Err(Reason::ReplayMismatch { .. })), "{kind:?}");
        }
    }

    #[test]
    fn a_distance_that_is_no_number_fails() {
        let difference = Difference { codes: 0.0, scales: f64::NAN, exact: 0.0 };
        let tolerance = Tolerance::between(DeviceKind::Other, DeviceKind::Other, Codec::Ternary);
        assert!(tolerance.check(&difference, || Parting::Unknown).is_err());
    }
}
