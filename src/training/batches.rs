use super::{Batch, Corpus, Split};
use crate::protocol::{RunSpec, Seed, Task, below};

/// Sequences that are measured at a time.
const VALIDATION_BATCH: u32 = 32;

/// The batch of inner step `step` of `task`: windows drawn uniformly from the training split. It follows from the
/// task and the dataset alone.
#[must_use]
pub fn training_batch(corpus: &Corpus, task: &Task, step: u32) -> Batch {
    windows(&corpus.train, &task.seed.derive("batch", step.into()), task.batch, task.model.context)
}

/// The windows of the validation split that every base model of the run is measured on, in batches.
pub fn validation_batches<'a>(corpus: &'a Corpus, spec: &RunSpec) -> impl Iterator<Item = Batch> + 'a {
    let (seed, windows_left, context) = (spec.seed, spec.validation_windows, spec.model.context);
    (0..windows_left.div_ceil(VALIDATION_BATCH)).map(move |index| {
        let sequences = VALIDATION_BATCH.min(windows_left - index * VALIDATION_BATCH);
        windows(&corpus.validation, &seed.derive("validation", index.into()), sequences, context)
    })
}

fn windows(split: &Split, seed: &Seed, sequences: u32, context: u32) -> Batch {
    let mut rng = seed.rng();
    let length = context as usize + 1;
    let starts = split.tokens().saturating_sub(length as u64) + 1;
    let mut tokens = Vec::with_capacity(sequences as usize * length);
    for _ in 0..sequences {
        split.read(below(&mut rng, starts), length, &mut tokens);
    }
    Batch { context: context as usize, tokens }
}
