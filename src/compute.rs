//! What nodes compute off their actors' threads: blobs in, blobs out.
//!
//! Joins the pure parts (training, verification) to an [`Engine`] and a blob store. Knows nothing of actors.

use std::sync::{Arc, Mutex, PoisonError};

use crate::model::checkpoint::{self, CheckpointError};
use crate::protocol::{
    DeviceKind, Digest, Lateness, Layer, ModelSpec, Outcome, Parting, Reason, RunSpec, Task, Verdict, limits,
};
use crate::store::{BlobError, Blobs};
use crate::training::{
    CodecError, Corpus, CorpusError, Engine, EngineError, Layout, Manifest, Params, TaskError, Trained, Update,
    do_task, validation_batches,
};
use crate::verifier::checks::{self, Compared};
use crate::verifier::{Candidate, CopiesJob, Job, ReplayJob, Tolerance, compare, helps, replay};

/// A blob store and an engine, with what was last used of the store kept at hand.
pub struct Compute {
    engine: Arc<dyn Engine>,
    blobs: Arc<dyn Blobs>,
    corpus: Mutex<Option<(Digest, Arc<Corpus>)>>,
    model: Mutex<Option<(Digest, Arc<Params>)>>,
}

/// What could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// A blob is missing or cannot be kept.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A model is damaged.
    #[error("the model {digest} is damaged: {error}")]
    Checkpoint {
        /// Which.
        digest: Digest,
        /// How.
        error: CheckpointError,
    },
    /// The dataset is damaged.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A task failed.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// An accepted payload does not decode.
    #[error("an accepted payload is damaged: {0}")]
    Codec(#[from] CodecError),
}

/// What aggregation is to be made of.
#[derive(Debug, Clone, PartialEq)]
pub struct AggregateJob {
    /// The base model of the round.
    pub base: Digest,
    /// The outer momentum so far.
    pub momentum: Option<Digest>,
    /// Accepted payloads and their tokens, in task order.
    pub updates: Vec<(Digest, u64)>,
}

/// What aggregation has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aggregated {
    /// The next base model.
    pub model: Digest,
    /// The outer momentum, where there is one.
    pub momentum: Option<Digest>,
    /// Payloads that count for nothing, because they do not decode or because the model would not be finite.
    pub left_out: Vec<Digest>,
}

impl Compute {
    /// Computes with `engine` on blobs of `blobs`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, blobs: Arc<dyn Blobs>) -> Self {
        Self { engine, blobs, corpus: Mutex::new(None), model: Mutex::new(None) }
    }

    /// The blob store.
    #[must_use]
    pub fn blobs(&self) -> &dyn Blobs {
        &*self.blobs
    }

    /// Does a task. `on_step` sees each loss and says whether to go on.
    pub fn train(&self, task: &Task, on_step: impl FnMut(f32) -> bool) -> Result<Trained, ComputeError> {
        let base = self.model(&task.base, &task.model)?;
        let corpus = self.corpus(&task.dataset)?;
        corpus.check(task.model.context)?;
        Ok(do_task(&*self.engine, task, &base, &corpus, on_step)?)
    }

    /// Makes the next base model of accepted payloads. Payloads that do not decode count for nothing, and where nothing is
    /// left, or what comes out is not finite, the model stays what it was: a run must not end because of one round.
    pub fn aggregate(&self, spec: &RunSpec, job: &AggregateJob) -> Result<Aggregated, ComputeError> {
        let layout = Layout::of(&spec.model);
        let payloads = job.updates.iter().map(|(digest, _)| self.blobs.get(digest)).collect::<Result<Vec<_>, _>>()?;
        let tokens = job.updates.iter().map(|(_, tokens)| *tokens);
        let mut updates: Vec<Update<'_>> =
            payloads.iter().zip(tokens).map(|(payload, tokens)| Update { payload, tokens }).collect();
        let unchanged = |left_out| Ok(Aggregated { model: job.base, momentum: job.momentum, left_out });
        let of = |updates: &[Update<'_>]| spec.aggregation.apply(spec.codec, &layout, updates);
        let mut left_out = Vec::new();
        let mean = match of(&updates) {
            Ok(mean) => mean,
            // Rare enough to look at each by itself only now.
            Err(_) => {
                let reads = |payload: &[u8]| {
                    spec.codec.norm(&layout, payload).is_ok() && spec.codec.decode(&layout, payload).is_ok()
                };
                let damaged = job.updates.iter().zip(&payloads).filter(|(_, payload)| !reads(payload));
                left_out.extend(damaged.map(|((digest, _), _)| *digest));
                updates.retain(|update| reads(update.payload));
                if updates.is_empty() {
                    return unchanged(left_out);
                }
                of(&updates)?
            }
        };
        let mut next = Params::clone(&*self.model(&job.base, &spec.model)?);
        let mut momentum = match (spec.outer.momentum > 0.0, job.momentum) {
            (false, _) => None,
            (true, None) => Some(Params::zeros(layout)),
            (true, Some(digest)) => Some(self.load(&digest, &spec.model)?),
        };
        spec.outer.step(&mut next, momentum.as_mut(), &mean);
        drop(mean);
        if !next.is_finite() || momentum.as_ref().is_some_and(|momentum| !momentum.is_finite()) {
            return unchanged(job.updates.iter().map(|(digest, _)| *digest).collect());
        }
        let momentum = momentum.map(|momentum| self.save(&momentum)).transpose()?;
        let model = self.save(&next)?;
        *lock(&self.model) = Some((model, Arc::new(next)));
        Ok(Aggregated { model, momentum, left_out })
    }

    /// The validation loss of a base model, nats a token: infinite where the model is so broken that it has none, which is a
    /// finding like any other.
    pub fn evaluate(&self, spec: &RunSpec, model: &Digest) -> Result<f64, ComputeError> {
        let params = self.model(model, &spec.model)?;
        let corpus = self.corpus(&spec.dataset)?;
        match self.engine.loss(&spec.model, &params, &mut validation_batches(&corpus, spec)) {
            Err(EngineError::NotFinite(_)) => Ok(f64::INFINITY),
            loss => Ok(loss?),
        }
    }

    /// Does a verifier's job. A payload that is not there is the worker's fault and makes a verdict; a store that cannot
    /// be read is nobody's, and makes none.
    pub fn check(&self, job: &Job) -> Result<Vec<Verdict>, ComputeError> {
        let mut failure = None;
        let mut fetch = |digest: &Digest| match self.blobs.get(digest) {
            Ok(payload) => Some(payload),
            Err(BlobError::Missing(_)) => None,
            Err(error) => {
                failure = Some(error);
                None
            }
        };
        let verdicts = match job {
            Job::Admission(job) => vec![checks::admit(job, fetch(&job.submission.commitment.payload).as_deref())],
            Job::Statistics(job) => {
                let compared = checks::compare(job, fetch);
                let judged = compared.into_iter().zip(&job.candidates);
                judged.map(|(one, candidate)| self.look_closer(one, candidate)).collect::<Result<_, _>>()?
            }
            Job::Replay(job) => vec![self.replay(job)?],
            Job::Copies(job) => vec![self.copies(job)?],
        };
        failure.map_or(Ok(verdicts), |error| Err(error.into()))
    }

    /// Whether a suspect update helps on its own data.
    fn look_closer(&self, one: Compared, candidate: &Candidate) -> Result<Verdict, ComputeError> {
        let Compared { mut verdict, suspect } = one;
        if suspect {
            let task = &candidate.task;
            let (base, corpus) = (self.model(&task.base, &task.model)?, self.corpus(&task.dataset)?);
            let payload = self.blobs.get(&candidate.payload)?;
            let on_time = candidate.lateness == Lateness::NONE;
            let rise = if on_time { limits::HELD_OUT_RISE_MAX } else { limits::HELD_OUT_RISE_LATE_MAX };
            verdict.outcome = if helps(&*self.engine, task, &base, &corpus, &payload, rise)? {
                Outcome::Accepted { layer: Layer::HeldOut, tokens: candidate.tokens(), norm: candidate.norm }
            } else {
                Outcome::Rejected { layer: Layer::HeldOut, reason: Reason::NoProgress }
            };
        }
        Ok(verdict)
    }

    /// Compares what workers got for one task: a verdict on the result, or on a copy that is of no use.
    fn copies(&self, job: &CopiesJob) -> Result<Verdict, ComputeError> {
        let CopiesJob { task, worker, payload, device, peer, copy: (copy, copied_on), against } = job;
        let handed_in = self.blobs.get(payload)?;
        let layout = Layout::of(&task.model);
        let useless = |reason: Reason| {
            let outcome = Outcome::Rejected { layer: Layer::Admission, reason };
            Ok(Verdict { task: task.id(), worker: *peer, payload: *copy, work: 0, by: None, turn: 0, outcome })
        };
        let again = match self.blobs.get(copy) {
            Err(BlobError::Missing(_)) => return useless(Reason::PayloadMissing),
            again => again?,
        };
        if let Err(error) = task.codec.norm(&layout, &again) {
            return useless(Reason::PayloadMalformed(error.to_string()));
        }
        let (tokens, layer) = (task.tokens(), Layer::Replay);
        let with_copy = |other: &[u8], on: &DeviceKind| {
            let tolerance = Tolerance::between(*on, *copied_on, task.codec);
            compare(task.codec, &layout, other, &again, tolerance, || Parting::Unknown)
        };
        let outcome = match with_copy(&handed_in, device) {
            Ok(_) => Outcome::Accepted { layer, tokens, norm: task.codec.norm(&layout, &handed_in)? as f32 },
            Err(mismatch) => {
                let mut reason = mismatch;
                for (with, other, on) in against {
                    if with_copy(&self.blobs.get(other)?, on).is_ok() {
                        reason = Reason::Outvoted { with: *with };
                        break;
                    }
                }
                Outcome::Rejected { layer, reason }
            }
        };
        let (task, worker, payload) = (task.id(), *worker, *payload);
        Ok(Verdict { task, worker, payload, work: tokens, by: Some(*peer), turn: 0, outcome })
    }

    /// Does a task again. What was accepted before is in the blob store: if it is not now, that is nobody's fault.
    fn replay(&self, job: &ReplayJob) -> Result<Verdict, ComputeError> {
        let ReplayJob { task, worker, payload, trail, turn, .. } = job;
        let handed_in = self.blobs.get(payload)?;
        let base = self.model(&task.base, &task.model)?;
        let corpus = self.corpus(&task.dataset)?;
        let tokens = task.tokens();
        let found = replay(&*self.engine, task, &base, &corpus, &handed_in, trail)?;
        let outcome = match found {
            Ok(_) => {
                let norm = task.codec.norm(&Layout::of(&task.model), &handed_in)? as f32;
                Outcome::Accepted { layer: Layer::Replay, tokens, norm }
            }
            Err(reason) => Outcome::Rejected { layer: Layer::Replay, reason },
        };
        Ok(Verdict {
            task: task.id(),
            worker: *worker,
            payload: *payload,
            work: tokens,
            by: None,
            turn: *turn,
            outcome,
        })
    }

    /// The blobs of a dataset: its manifest and its shards.
    pub fn dataset_blobs(&self, manifest: &Digest) -> Result<Vec<Digest>, ComputeError> {
        let shards = Manifest::decode(&self.blobs.get(manifest)?)?;
        let shards = shards.train.iter().chain(&shards.validation).map(|shard| shard.digest);
        Ok(shards.chain([*manifest]).collect())
    }

    /// Keeps a model: its digest.
    pub fn save(&self, params: &Params) -> Result<Digest, ComputeError> {
        let bytes =
            checkpoint::encode(params).map_err(|error| ComputeError::Checkpoint { digest: Digest::of(&[]), error })?;
        Ok(self.blobs.put(&bytes)?)
    }

    /// The model with this digest.
    pub fn load(&self, digest: &Digest, model: &ModelSpec) -> Result<Params, ComputeError> {
        let bytes = self.blobs.get(digest)?;
        checkpoint::decode(&bytes, model).map_err(|error| ComputeError::Checkpoint { digest: *digest, error })
    }

    fn model(&self, digest: &Digest, model: &ModelSpec) -> Result<Arc<Params>, ComputeError> {
        remember(&self.model, digest, || self.load(digest, model))
    }

    fn corpus(&self, digest: &Digest) -> Result<Arc<Corpus>, ComputeError> {
        remember(&self.corpus, digest, || {
            let manifest = Manifest::decode(&self.blobs.get(digest)?)?;
            Corpus::load(&manifest, |shard| Ok::<_, ComputeError>(self.blobs.get(shard)?))
        })
    }
}

/// What is kept under `digest`, or else what `make` makes, kept from now on. One thread makes it while others wait.
fn remember<T>(
    kept: &Mutex<Option<(Digest, Arc<T>)>>,
    digest: &Digest,
    make: impl FnOnce() -> Result<T, ComputeError>,
) -> Result<Arc<T>, ComputeError> {
    let mut kept = lock(kept);
    match &*kept {
        Some((known, value)) if known == digest => Ok(Arc::clone(value)),
        _ => {
            let value = Arc::new(make()?);
            *kept = Some((*digest, Arc::clone(&value)));
            Ok(value)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{InnerOptimizer, OuterOptimizer, Round, RunSpec, Seed};
    use crate::store::MemoryBlobs;
    use crate::testing;
    use crate::training::{Batch, Session};

    /// An engine for which every model is broken.
    struct Broken;

    impl Engine for Broken {
        fn kind(&self) -> DeviceKind {
            DeviceKind::Ndarray
        }

        fn train(&self, _: &ModelSpec, _: &Params, _: &InnerOptimizer) -> Result<Box<dyn Session>, EngineError> {
            Err(EngineError::NotFinite("the loss"))
        }

        fn loss(&self, _: &ModelSpec, _: &Params, _: &mut dyn Iterator<Item = Batch>) -> Result<f64, EngineError> {
            Err(EngineError::NotFinite("the loss"))
        }
    }

    /// The run of the tests with its first model in a store, and the digest of that.
    fn world(spec: &RunSpec) -> (Compute, Digest) {
        let compute = Compute::new(Arc::new(Broken), Arc::new(MemoryBlobs::default()));
        let base = compute.save(&Params::initial(&spec.model, &spec.seed)).unwrap();
        (compute, base)
    }

    fn update(compute: &Compute, spec: &RunSpec, seed: u64, scale: f32) -> (Digest, u64) {
        let mut update = Params::initial(&spec.model, &Seed::from_number(seed));
        update.values_mut().iter_mut().for_each(|value| *value *= scale);
        (compute.blobs().put(&spec.codec.encode(&update, &spec.seed).unwrap()).unwrap(), 64)
    }

    #[test]
    fn what_does_not_decode_counts_for_nothing_and_is_told_of() {
        let spec = testing::spec(3);
        let (compute, base) = world(&spec);
        let good: Vec<_> = (0..3).map(|seed| update(&compute, &spec, seed, 0.1)).collect();
        let damaged = (compute.blobs().put(b"no update").unwrap(), 64);
        let make = |updates| compute.aggregate(&spec, &AggregateJob { base, momentum: None, updates }).unwrap();
        let without = make(good.clone());
        assert!(without.left_out.is_empty() && without.model != base);
        let with = make([good[..1].to_vec(), vec![damaged], good[1..].to_vec()].concat());
        assert_eq!(with, Aggregated { left_out: vec![damaged.0], ..without });
        let nothing = Aggregated { model: base, momentum: None, left_out: vec![damaged.0] };
        assert_eq!(make(vec![damaged]), nothing, "the model stays what it was");
    }

    #[test]
    fn a_model_that_would_not_be_finite_is_not_made() {
        let spec = RunSpec { outer: OuterOptimizer { rate: 1e35, momentum: 0.0 }, ..testing::spec(3) };
        let (compute, base) = world(&spec);
        let updates: Vec<_> = (0..3).map(|seed| update(&compute, &spec, seed, 1e9)).collect();
        let made = compute.aggregate(&spec, &AggregateJob { base, momentum: None, updates: updates.clone() }).unwrap();
        assert_eq!(made.model, base);
        assert_eq!(made.left_out, updates.iter().map(|(payload, _)| *payload).collect::<Vec<_>>());
    }

    #[test]
    fn a_model_without_a_finite_loss_is_a_finding_and_an_update_that_leads_to_one_does_not_help() {
        let mut corpus = Corpus::default();
        corpus.push(&b"to be or not to be, that is the question; ".repeat(40)).unwrap();
        let mut spec = testing::spec(3);
        let (compute, base) = world(&spec);
        let manifest = corpus.store(|shard| compute.blobs().put(shard).map(drop)).unwrap();
        spec.dataset = compute.blobs().put(&manifest.encode()).unwrap();
        assert_eq!(compute.evaluate(&spec, &base).unwrap(), f64::INFINITY);
        let task = Task::of_round(&spec, Round(0), 0, base);
        let payload = compute.blobs().get(&update(&compute, &spec, 1, 0.1).0).unwrap();
        let params = Params::initial(&spec.model, &spec.seed);
        assert!(!helps(&Broken, &task, &params, &corpus, &payload, 1.0).unwrap());
    }
}
