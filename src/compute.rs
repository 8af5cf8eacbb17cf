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

    /// Makes the next base model of accepted payloads: the digests of the model and of the outer momentum.
    pub fn aggregate(&self, spec: &RunSpec, job: &AggregateJob) -> Result<(Digest, Option<Digest>), ComputeError> {
        let layout = Layout::of(&spec.model);
        let payloads = job.updates.iter().map(|(digest, _)| self.blobs.get(digest)).collect::<Result<Vec<_>, _>>()?;
        let tokens = job.updates.iter().map(|(_, tokens)| *tokens);
        let updates: Vec<Update<'_>> =
            payloads.iter().zip(tokens).map(|(payload, tokens)| Update { payload, tokens }).collect();
        let mean = spec.aggregation.apply(spec.codec, &layout, &updates)?;
        let mut next = Params::clone(&*self.model(&job.base, &spec.model)?);
        let mut momentum = match (spec.outer.momentum > 0.0, job.momentum) {
            (false, _) => None,
            (true, None) => Some(Params::zeros(layout)),
            (true, Some(digest)) => Some(self.load(&digest, &spec.model)?),
        };
        spec.outer.step(&mut next, momentum.as_mut(), &mean);
        drop(mean);
        let momentum = momentum.map(|momentum| self.save(&momentum)).transpose()?;
        let digest = self.save(&next)?;
        *lock(&self.model) = Some((digest, Arc::new(next)));
        Ok((digest, momentum))
    }

    /// The validation loss of a base model, nats a token.
    pub fn evaluate(&self, spec: &RunSpec, model: &Digest) -> Result<f64, ComputeError> {
        let params = self.model(model, &spec.model)?;
        let corpus = self.corpus(&spec.dataset)?;
        let loss = self.engine.loss(&spec.model, &params, &mut validation_batches(&corpus, spec))?;
        Ok(loss)
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
            Ok(Verdict { task: task.id(), worker: *peer, payload: *copy, work: 0, by: None, outcome })
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
        Ok(Verdict { task, worker, payload, work: tokens, by: Some(*peer), outcome })
    }

    /// Does a task again. What was accepted before is in the blob store: if it is not now, that is nobody's fault.
    fn replay(&self, job: &ReplayJob) -> Result<Verdict, ComputeError> {
        let ReplayJob { task, worker, payload, trail, .. } = job;
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
        Ok(Verdict { task: task.id(), worker: *worker, payload: *payload, work: tokens, by: None, outcome })
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
