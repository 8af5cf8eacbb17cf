use serde::{Deserialize, Serialize};

use super::spec::{Codec, InnerOptimizer, ModelSpec, Schedule};
use super::{Digest, Message, Round, RunId, RunSpec, Seed, TaskId, Time, limits, wire};

/// One piece of training work, and all that its result depends on.
///
/// A task is a pure function: the same task on the same base model and data gives the same payload, whoever
/// computes it (up to the rounding of the device, which verification allows for). So it names
/// no worker, no time and nothing that a worker carries over from earlier work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The run it belongs to.
    pub run: RunId,
    /// The round it belongs to.
    pub round: Round,
    /// Which of the round's tasks it is, from 0.
    pub index: u32,
    /// The model to start from (a safetensors blob).
    pub base: Digest,
    /// The architecture of that model.
    pub model: ModelSpec,
    /// The dataset manifest to draw from.
    pub dataset: Digest,
    /// Where the batches and the rounding of the payload come from.
    pub seed: Seed,
    /// Inner steps to take (H).
    pub inner_steps: u32,
    /// Sequences in a step.
    pub batch: u32,
    /// The inner optimiser, fresh at the start of the task.
    pub optimizer: InnerOptimizer,
    /// The learning rate over the whole run.
    pub schedule: Schedule,
    /// The step of the run that the first inner step is.
    pub first_step: u64,
    /// How the pseudo-gradient is to be encoded.
    pub codec: Codec,
}

impl Task {
    /// The `index`-th task of `round` in the run `spec`, from the model `base`. It follows from the run and the
    /// round alone.
    #[must_use]
    pub fn of_round(spec: &RunSpec, round: Round, index: u32, base: Digest) -> Self {
        Self {
            run: spec.id(),
            round,
            index,
            base,
            model: spec.model,
            dataset: spec.dataset,
            seed: spec.seed.derive("task", (u64::from(round.0) << 32) | u64::from(index)),
            inner_steps: spec.steps_of(index),
            batch: spec.batch,
            optimizer: spec.optimizer,
            schedule: spec.schedule,
            first_step: u64::from(round.0) * u64::from(spec.inner_steps),
            codec: spec.codec,
        }
    }

    /// The digest of its canonical encoding.
    #[must_use]
    pub fn id(&self) -> TaskId {
        TaskId(Digest::in_domain("hydra task v1", &wire::encode(self)))
    }

    /// The pieces that its inner steps are cut into, equally long to within a step: after each, the state is committed to.
    #[must_use]
    pub fn segments(&self) -> impl ExactSizeIterator<Item = std::ops::Range<u32>> + use<> {
        let steps = self.inner_steps;
        let count = steps.min(limits::SEGMENTS_MAX);
        let end = move |segment: u32| (u64::from(segment) * u64::from(steps) / u64::from(count.max(1))) as u32;
        (0..count as usize).map(move |segment| end(segment as u32)..end(segment as u32 + 1))
    }

    /// How many tokens it trains on: inner steps × batch × context.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        u64::from(self.inner_steps) * u64::from(self.batch) * u64::from(self.model.context)
    }
}

/// A task lent to one worker until a deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// The work.
    pub task: Task,
    /// When the coordinator may lend it to somebody else.
    pub deadline: Time,
}

impl Message for Lease {
    const DOMAIN: &'static str = "lease v1";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn segments_cover_every_step_once_and_are_equally_long() {
        for inner_steps in [1, 2, 15, 16, 17, 30, 500, limits::INNER_STEPS_MAX] {
            let spec = RunSpec { inner_steps, ..testing::spec(1) };
            let segments: Vec<_> = Task::of_round(&spec, Round(0), 0, Digest::of(b"base")).segments().collect();
            assert!(segments.len() <= limits::SEGMENTS_MAX as usize);
            assert_eq!((segments[0].start, segments[segments.len() - 1].end), (0, inner_steps));
            assert!(segments.windows(2).all(|pair| pair[0].end == pair[1].start));
            let lengths = || segments.iter().map(|segment| segment.end - segment.start);
            assert!(lengths().min().unwrap() > 0 && lengths().max().unwrap() - lengths().min().unwrap() <= 1);
        }
    }
}
