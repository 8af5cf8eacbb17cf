use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hydra::coordinator::ReplyTo;
use hydra::protocol::{
    Commitment, DeviceKind, Digest, InnerOptimizer, Keypair, Layer, Lease, ModelSpec, Outcome, PublicKey, Reason,
    RunSpec, Seed, Signed, Submission, Task, TaskId, Verdict, WorkerReply, WorkerRequest, below, wire,
};
use hydra::store::Blobs;
use hydra::training::{Batch, Engine, EngineError, Params, Session};
use serde::Deserialize;

/// What a worker does with its tasks. A cheat is an engine that computes something else than was asked for; all else
/// about the worker is as in production.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// Trains as asked.
    #[default]
    Honest,
    /// Multiplies its update: by 10 to drown the others out, by −10 to undo them.
    Scale(f32),
    /// Adds noise this many times as long as its update.
    Noise(f32),
    /// Does this share of the steps, and stretches what comes out to the length of the whole.
    Partial(f32),
    /// Does one step, and stretches it.
    FreeRider,
    /// Trains on something else: every byte is one more than it should be.
    WrongData,
    /// Trains from the base model of an earlier task.
    Stale,
    /// Hands in, again and again, the first update that it made.
    Repeat,
    /// Teaches the model that this byte is followed by itself, beside what it is asked for.
    Poison(u8),
    /// Hands in something that is not finite.
    NotFinite,
    /// The whole group hands in one update, made from a text of its own instead of what each was asked to train on.
    Copy,
    /// Does honest work this many times, then does one step and stretches it.
    Turncoat(u32),
    /// Adds this many times its update's length in a direction that the whole group agrees on.
    Collude(f32),
    /// Takes tasks and never hands anything in.
    Grief,
    /// Commits to something else than it uploads.
    Mismatch,
    /// Hands in something much too long.
    Oversized,
    /// Hands in, again and again, the first payload that it committed to.
    Replay,
    /// Does the task after its own instead, and hands that in: what whoever was lent that task gets too, and brings later.
    Frame,
    /// Does its work, and makes up messages besides: gives back, commits to, hands in and appeals against what others were
    /// lent, names tasks that there are not, and judges as if it were a verifier.
    Forge,
    /// Whatever the program that plays the scenario says: see
    /// [`Simulation::behaviour`](crate::Simulation::behaviour).
    Custom,
}

impl Behaviour {
    /// Whether it does what it is asked for.
    #[must_use]
    pub fn is_honest(self) -> bool {
        self == Self::Honest
    }

    /// What its tasks are computed with.
    pub(crate) fn engine(self, honest: Arc<dyn Engine>) -> Arc<dyn Engine> {
        match self {
            Self::Honest
            | Self::Grief
            | Self::Mismatch
            | Self::Oversized
            | Self::Replay
            | Self::Frame
            | Self::Forge
            | Self::Custom => honest,
            _ => Arc::new(Cheat { honest, behaviour: self, kept: Arc::default(), tasks: AtomicU32::new(0) }),
        }
    }
}

/// What a cheat does to its messages, once they have left the worker as in production.
pub(crate) struct Tamper {
    pub behaviour: Behaviour,
    pub key: Keypair,
    pub blobs: Arc<dyn Blobs>,
    /// The first payload that it committed to.
    pub first: Option<Digest>,
    /// What has gone over all lines.
    pub overheard: Overheard,
    pub neighbours: Neighbours,
}

/// The tasks that a worker does in place of those that it was lent. Replies carry it to wherever they are called.
#[derive(Clone)]
pub(crate) struct Neighbours {
    spec: RunSpec,
    /// What it was lent, by what it does.
    lent: Arc<Mutex<BTreeMap<TaskId, TaskId>>>,
}

impl Neighbours {
    pub fn new(spec: RunSpec) -> Self {
        Self { spec, lent: Arc::default() }
    }

    /// What the worker hears of the task that it does.
    pub fn reply(&self, reply: WorkerReply) -> WorkerReply {
        let mut lent = lock(&self.lent);
        let done = |task: TaskId| lent.iter().find(|(_, other)| **other == task).map_or(task, |(done, _)| *done);
        match reply {
            WorkerReply::Leased(lease) => {
                let Lease { task, deadline } = *lease;
                let next = (task.index + 1) % self.spec.tasks_per_round;
                let done = Task::of_round(&self.spec, task.round, next, task.base);
                lent.insert(done.id(), task.id());
                WorkerReply::Leased(Box::new(Lease { task: done, deadline }))
            }
            WorkerReply::Committed(task) => WorkerReply::Committed(done(task)),
            WorkerReply::Received(task) => WorkerReply::Received(done(task)),
            WorkerReply::Refused { task: Some(task), reason } => {
                WorkerReply::Refused { task: Some(done(task)), reason }
            }
            other => other,
        }
    }

    /// What the coordinator hears of the task that was lent.
    fn request(&self, request: WorkerRequest) -> WorkerRequest {
        let lent = lock(&self.lent);
        let of = |task: TaskId| lent.get(&task).copied().unwrap_or(task);
        let bound = |commitment: Commitment| Commitment { task: of(commitment.task), ..commitment };
        match request {
            WorkerRequest::Commit(commitment) => WorkerRequest::Commit(bound(commitment)),
            WorkerRequest::Submit(submission) => {
                let commitment = bound(submission.commitment);
                WorkerRequest::Submit(Submission { commitment, ..submission })
            }
            WorkerRequest::GiveBack(task) => WorkerRequest::GiveBack(of(task)),
            WorkerRequest::Heartbeat(task) => WorkerRequest::Heartbeat(of(task)),
            WorkerRequest::Appeal(task) => WorkerRequest::Appeal(of(task)),
            WorkerRequest::Lease { .. } => request,
        }
    }
}

/// The newest commitments, and whose they are: what somebody knows who listens to every line.
pub(crate) type Overheard = Rc<RefCell<VecDeque<(PublicKey, Commitment)>>>;

/// How much of it is remembered.
const OVERHEARD: usize = 8;

/// What a liar sends besides.
#[derive(Default)]
pub(crate) struct Forgeries {
    pub requests: Vec<Signed>,
    pub verdicts: Vec<Signed>,
}

/// What those train on who hand in one update.
const TEXT: &[u8] = b"All work and no play makes Jack a dull boy; the quick brown fox jumps over the lazy dog. ";

/// More than any payload of the small models of simulations.
const OVERSIZED: usize = 4 << 20;

impl Tamper {
    /// Listens to what a worker asks, and makes up messages where that is what its behaviour is.
    pub fn forge(&mut self, asked: &WorkerRequest) -> Forgeries {
        let me = self.key.public();
        if let WorkerRequest::Commit(commitment) = asked {
            let mut overheard = self.overheard.borrow_mut();
            overheard.push_back((me, *commitment));
            if overheard.len() > OVERHEARD {
                overheard.pop_front();
            }
        }
        if self.behaviour != Behaviour::Forge {
            return Forgeries::default();
        }
        let mut forged = Forgeries::default();
        for (worker, theirs) in self.overheard.borrow().iter() {
            let nowhere = TaskId(Digest::of(theirs.task.0.as_bytes()));
            let largest = Commitment { task: nowhere, tokens: u64::MAX, ..*theirs };
            let other = Commitment { payload: nowhere.0, ..*theirs };
            let (losses, states) = (vec![f32::MAX; 3], vec![nowhere.0; 3]);
            let hand_in = |commitment| {
                WorkerRequest::Submit(Submission { commitment, losses: losses.clone(), states: states.clone() })
            };
            let requests = [
                WorkerRequest::Commit(*theirs),
                WorkerRequest::Commit(other),
                WorkerRequest::Commit(largest),
                hand_in(*theirs),
                hand_in(other),
                hand_in(largest),
                WorkerRequest::Appeal(theirs.task),
                WorkerRequest::Lease { tokens_per_second: u32::MAX },
            ];
            let theirs_only = [WorkerRequest::GiveBack(theirs.task), WorkerRequest::Heartbeat(theirs.task)];
            let requests = requests.into_iter().chain(theirs_only.into_iter().filter(|_| *worker != me));
            forged.requests.extend(requests.map(|request| Signed::seal(&self.key, &request)));
            let accepted = |layer| Outcome::Accepted { layer, tokens: theirs.tokens, norm: 1.0 };
            let rejected = |layer| Outcome::Rejected { layer, reason: Reason::NotFinite };
            let layers = [Layer::Admission, Layer::Statistics, Layer::Replay];
            for outcome in layers.map(|layer| if *worker == me { accepted(layer) } else { rejected(layer) }) {
                let (task, payload, work) = (theirs.task, theirs.payload, theirs.tokens);
                let verdict = Verdict { task, worker: *worker, payload, work, by: None, turn: 0, outcome };
                // As itself, and as somebody who was never there before.
                let nobody = Keypair::from_secret(Digest::of(&wire::encode(&verdict)).as_bytes());
                forged.verdicts.extend([&self.key, &nobody].map(|key| Signed::seal(key, &verdict)));
            }
        }
        forged
    }

    /// Who hears the answer to what is sent.
    pub fn hear(&self, reply: ReplyTo) -> ReplyTo {
        if self.behaviour != Behaviour::Frame {
            return reply;
        }
        let neighbours = self.neighbours.clone();
        Box::new(move |body| reply(neighbours.reply(body)))
    }

    /// What is sent instead, if anything is.
    pub fn request(&mut self, request: Signed) -> Option<Signed> {
        if self.behaviour.is_honest() {
            return Some(request);
        }
        let Ok((_, asked)) = request.open::<WorkerRequest>() else { return Some(request) };
        if self.behaviour == Behaviour::Frame {
            return Some(Signed::seal(&self.key, &self.neighbours.request(asked)));
        }
        let (mut commitment, shown) = match &asked {
            WorkerRequest::Commit(commitment) => (*commitment, None),
            WorkerRequest::Submit(submission) => (submission.commitment, Some(submission.clone())),
            _ => return Some(request),
        };
        let first = *self.first.get_or_insert(commitment.payload);
        commitment.payload = match self.behaviour {
            Behaviour::Grief => return None,
            Behaviour::Mismatch => Digest::of(commitment.payload.as_bytes()),
            // A store that is full loses it, which changes little.
            Behaviour::Oversized => self.blobs.put(&vec![0; OVERSIZED]).unwrap_or(first),
            Behaviour::Replay => first,
            _ => return Some(request),
        };
        let forged = match shown {
            None => WorkerRequest::Commit(commitment),
            Some(shown) => WorkerRequest::Submit(Submission { commitment, ..shown }),
        };
        Some(Signed::seal(&self.key, &forged))
    }
}

struct Cheat {
    honest: Arc<dyn Engine>,
    behaviour: Behaviour,
    /// What its worker keeps from one task to the next: a base model, or the update made from one.
    kept: Arc<Mutex<Kept>>,
    /// Tasks so far.
    tasks: AtomicU32,
}

#[derive(Default)]
struct Kept {
    base: Option<Params>,
    update: Option<Params>,
}

struct CheatSession {
    honest: Box<dyn Session>,
    behaviour: Behaviour,
    kept: Arc<Mutex<Kept>>,
    /// The base model of the task, and the one that it really starts from.
    base: Params,
    start: Params,
    steps: u32,
    /// Sums of learning rates: of the steps asked for, and of those done.
    rates: f32,
    rates_done: f32,
    loss: f32,
}

impl Engine for Cheat {
    fn kind(&self) -> DeviceKind {
        self.honest.kind()
    }

    fn train(
        &self,
        model: &ModelSpec,
        base: &Params,
        optimizer: &InnerOptimizer,
    ) -> Result<Box<dyn Session>, EngineError> {
        let before = self.tasks.fetch_add(1, Ordering::Relaxed);
        let behaviour = match self.behaviour {
            Behaviour::Turncoat(honest) if before < honest => Behaviour::Honest,
            Behaviour::Turncoat(_) => Behaviour::FreeRider,
            other => other,
        };
        let earlier = match behaviour {
            Behaviour::Stale => lock(&self.kept).base.replace(base.clone()),
            _ => None,
        };
        let start = earlier.unwrap_or_else(|| base.clone());
        Ok(Box::new(CheatSession {
            honest: self.honest.train(model, &start, optimizer)?,
            behaviour,
            kept: Arc::clone(&self.kept),
            base: base.clone(),
            start,
            steps: 0,
            rates: 0.0,
            rates_done: 0.0,
            loss: 0.0,
        }))
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

impl CheatSession {
    fn does_next_step(&self) -> bool {
        let step = f64::from(self.steps);
        match self.behaviour {
            Behaviour::Partial(share) => {
                let done = |steps: f64| (steps * f64::from(share)).floor();
                self.steps == 0 || done(step + 1.0) > done(step)
            }
            Behaviour::FreeRider => self.steps == 0,
            Behaviour::Repeat => lock(&self.kept).update.is_none(),
            _ => true,
        }
    }

    fn forge(&self, batch: &Batch) -> Batch {
        let mut batch = batch.clone();
        match self.behaviour {
            Behaviour::WrongData => {
                batch.tokens.iter_mut().for_each(|token| *token = (*token + 1) % u16::from(u8::MAX));
            }
            Behaviour::Copy => {
                let text = TEXT.iter().cycle().skip(self.steps as usize);
                batch.tokens.iter_mut().zip(text).for_each(|(token, byte)| *token = u16::from(*byte));
            }
            Behaviour::Poison(byte) => {
                let was = batch.tokens.clone();
                for (token, before) in batch.tokens.iter_mut().skip(1).zip(&was) {
                    if *before == u16::from(byte) {
                        *token = u16::from(byte);
                    }
                }
            }
            _ => {}
        }
        batch
    }
}

impl Session for CheatSession {
    fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError> {
        if self.does_next_step() {
            self.loss = self.honest.step(&self.forge(batch), rate)?;
            self.rates_done += rate;
        }
        self.steps += 1;
        self.rates += rate;
        Ok(if self.behaviour == Behaviour::NotFinite { f32::NAN } else { self.loss })
    }

    fn weights(&self, see: &mut dyn FnMut(&[f32])) -> Result<(), EngineError> {
        self.honest.weights(see)
    }

    fn finish(self: Box<Self>) -> Result<Params, EngineError> {
        let mut update = self.honest.finish()?;
        update.values_mut().iter_mut().zip(self.start.values()).for_each(|(local, start)| *local = start - *local);
        let stretch = match self.behaviour {
            Behaviour::Scale(by) => by,
            Behaviour::Partial(_) | Behaviour::FreeRider => self.rates / self.rates_done,
            _ => 1.0,
        };
        update.values_mut().iter_mut().for_each(|value| *value *= stretch);
        match self.behaviour {
            Behaviour::Noise(times) => {
                let first = update.values().iter().find(|value| **value != 0.0).map_or(0, |value| value.to_bits());
                add_noise(&mut update, times, first.into());
            }
            Behaviour::Collude(times) => add_noise(&mut update, times, 0),
            Behaviour::Repeat => {
                update = lock(&self.kept).update.get_or_insert(update).clone();
            }
            _ => {}
        }
        update.values_mut().iter_mut().zip(self.base.values()).for_each(|(value, base)| *value = base - *value);
        Ok(update)
    }
}

/// Uniform noise, `times` as long as the update; the same for the same seed.
fn add_noise(update: &mut Params, times: f32, seed: u64) {
    let length = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let mut rng = Seed::from_number(seed).derive("noise", 0).rng();
    let noise: Vec<f32> = update.values().iter().map(|_| below(&mut rng, 2001) as f32 - 1000.0).collect();
    let scale = f64::from(times) * length(update.values()) / length(&noise).max(1.0);
    update.values_mut().iter_mut().zip(&noise).for_each(|(value, noise)| *value += scale as f32 * noise);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
