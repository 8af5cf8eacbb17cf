use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::prefixes::Prefixes;
use super::scheduler::{Finish, Full, Job, Scheduler, SequenceId, Step, Written};
use crate::model::{Cache, Decoder, Turn};
use crate::protocol::{Digest, limits};
use crate::training::EngineError;

/// A model that answers queries.
#[derive(Debug)]
pub struct Model {
    /// Its blob.
    pub digest: Digest,
    /// Itself.
    pub decoder: Decoder,
}

/// What comes of a sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was chosen. The text may come later, when it is certain that it is no stop text.
    Token(Vec<Written>),
    /// It has ended. Nothing follows.
    Ended(Finish),
    /// The model failed. Nothing follows.
    Failed(String),
}

/// Takes events, on the engine's thread, and says whether to go on.
pub type Sink = Box<dyn FnMut(Event) -> bool + Send>;

/// Answers queries on a thread of its own: many at a time, each with the model that was the newest when it came.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Room for some sequences of one query, which all have the same model. It is given back when dropped, and what has not
/// ended then is not gone on with.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    model: Arc<Model>,
    left: usize,
    begun: Vec<SequenceId>,
}

/// No query can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// Too many are under way.
    #[error(transparent)]
    Full(#[from] Full),
    /// There is no model.
    #[error("there is no model yet")]
    NoModel,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    scheduler: Scheduler,
    sequences: BTreeMap<SequenceId, Sequence>,
    newest: Option<Arc<Model>>,
    /// Of the newest model.
    prefixes: Prefixes<Cache>,
    reuse: Reuse,
    stopping: bool,
}

/// What came of keeping the beginnings of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reuse {
    /// Tokens of prompts that were looked for.
    pub asked: u64,
    /// Those that did not need to be computed.
    pub found: u64,
    /// Bytes that are kept.
    pub bytes: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

struct Sequence {
    model: Arc<Model>,
    /// Tokens that it may come to have.
    tokens: usize,
    /// Those that the model has been given.
    given: Vec<u16>,
    /// How many of them are its prompt.
    prompt: usize,
    /// Away while a step is computed.
    cache: Option<Cache>,
    sink: Sink,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Starts with no model, on so many threads. It keeps up to so many bytes of what was computed for texts, for others
    /// that begin like them.
    pub fn start(threads: usize, kept_bytes: usize) -> std::io::Result<Self> {
        let scheduler = Scheduler::new(
            limits::QUERIES_RUNNING_MAX,
            limits::QUERIES_WAITING_MAX,
            limits::PROMPT_PIECE,
            limits::PROMPTS_READ_AT_A_TIME,
        );
        let state = State {
            scheduler,
            sequences: BTreeMap::new(),
            newest: None,
            prefixes: Prefixes::new(kept_bytes),
            reuse: Reuse::default(),
            stopping: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new() });
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("inference-{n}")).build();
        let pool = pool.map_err(std::io::Error::other)?;
        let thread = std::thread::Builder::new().name("inference".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || pool.install(|| work(&shared))
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has queries that come from now on answered by `model`. Those under way end with the one that they began with.
    pub fn swap(&self, model: Model) {
        let mut state = self.shared.lock();
        state.newest = Some(Arc::new(model));
        state.prefixes.clear();
    }

    /// How much of prompts was known already.
    #[must_use]
    pub fn reuse(&self) -> Reuse {
        let state = self.shared.lock();
        Reuse { bytes: state.prefixes.bytes(), ..state.reuse }
    }

    /// The model that the next query gets.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Model>> {
        self.shared.lock().newest.clone()
    }

    /// Sequences under way, and those that wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        self.shared.lock().scheduler.load()
    }

    /// Room for a query of so many sequences.
    pub fn reserve(&self, sequences: usize) -> Result<Place, NoPlace> {
        let mut state = self.shared.lock();
        let model = state.newest.clone().ok_or(NoPlace::NoModel)?;
        state.scheduler.reserve(sequences)?;
        Ok(Place { shared: Arc::clone(&self.shared), model, left: sequences, begun: Vec::new() })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process.
            let _ = thread.join();
        }
    }
}

impl Place {
    /// The model that will answer.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Begins with one of the query's sequences.
    ///
    /// # Errors
    /// When more are begun than there is room for, or one that the model has no room for.
    pub fn begin(&mut self, job: Job, sink: Sink) -> Result<(), EngineError> {
        let prompt = job.prompt.len();
        let tokens = prompt + job.most as usize;
        if self.left == 0 || job.prompt.is_empty() || job.most == 0 || tokens > self.model.decoder.context() {
            return Err(EngineError::Batch(format!("there is no room for a text of {tokens} tokens")));
        }
        self.left -= 1;
        let mut state = self.shared.lock();
        let id = state.scheduler.submit(job);
        self.begun.push(id);
        let model = Arc::clone(&self.model);
        state.sequences.insert(id, Sequence { model, tokens, given: Vec::new(), prompt, cache: None, sink });
        self.shared.work.notify_all();
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.scheduler.release(self.left);
        for id in &self.begun {
            state.scheduler.cancel(*id);
            state.sequences.remove(id);
        }
    }
}

/// A sequence's part in a step: its tokens, and its cache while it is away.
struct Part {
    id: SequenceId,
    tokens: Vec<u16>,
    cache: Cache,
}

fn work(shared: &Shared) {
    loop {
        let mut state = shared.lock();
        if state.stopping {
            return;
        }
        let steps = state.plan();
        if steps.is_empty() {
            drop(shared.work.wait(state));
            continue;
        }
        // By model: there are several while queries that began with an older one are under way.
        let mut batches: Vec<(Arc<Model>, Vec<Part>)> = Vec::new();
        for step in steps {
            let Some(sequence) = state.sequences.get_mut(&step.id) else { continue };
            let cache = sequence.cache.take().unwrap_or_else(|| sequence.model.decoder.cache(sequence.tokens));
            sequence.given.extend_from_slice(&step.tokens);
            let part = Part { id: step.id, tokens: step.tokens, cache };
            match batches.iter_mut().find(|(model, _)| Arc::ptr_eq(model, &sequence.model)) {
                Some((_, parts)) => parts.push(part),
                None => batches.push((Arc::clone(&sequence.model), vec![part])),
            }
        }
        // Whoever comes meanwhile is in the next step.
        drop(state);
        for (model, mut parts) in batches {
            let mut turns: Vec<Turn<'_>> =
                parts.iter_mut().map(|part| Turn { tokens: &part.tokens, cache: &mut part.cache }).collect();
            let logits = model.decoder.step(&mut turns);
            shared.lock().tell(parts, logits);
        }
    }
}

impl State {
    /// Who goes on with what. Whoever begins like a text that was there before goes on from where they part.
    fn plan(&mut self) -> Vec<Step> {
        let Self { scheduler, sequences, newest, prefixes, reuse, .. } = self;
        scheduler.plan(|id, prompt| {
            let Some(sequence) = sequences.get_mut(&id).filter(|_| prefixes.is_on()) else { return 0 };
            if !is_newest(newest.as_ref(), &sequence.model) {
                return 0;
            }
            reuse.asked += prompt.len() as u64;
            let Some((length, kept)) = prefixes.find(prompt) else { return 0 };
            let forked = sequence.model.decoder.fork(kept, length, sequence.tokens);
            let length = forked.as_ref().map_or(0, Cache::tokens);
            sequence.cache = forked.ok();
            sequence.given.extend_from_slice(&prompt[..length]);
            reuse.found += length as u64;
            length
        })
    }

    /// Keeps what a sequence has computed: all of it when it is over, else a copy for those that begin while it goes on.
    fn keep(prefixes: &mut Prefixes<Cache>, sequence: &mut Sequence, over: bool) {
        let Some(cache) = &sequence.cache else { return };
        if !prefixes.is_on() || sequence.given.len() < limits::PREFIX_TOKENS_MIN || prefixes.covers(&sequence.given) {
            return;
        }
        let kept = if over {
            sequence.cache.take()
        } else {
            sequence.model.decoder.fork(cache, cache.tokens(), cache.tokens()).ok()
        };
        if let Some(cache) = kept {
            let bytes = cache.bytes();
            prefixes.keep(sequence.given.clone(), cache, bytes);
        }
    }

    fn tell(&mut self, parts: Vec<Part>, logits: Result<Vec<Vec<f32>>, EngineError>) {
        let mut logits = match logits {
            Ok(logits) => Ok(logits.into_iter()),
            Err(error) => Err(error.to_string()),
        };
        for part in parts {
            let Some(sequence) = self.sequences.get_mut(&part.id) else { continue };
            sequence.cache = Some(part.cache);
            let goes_on = match &mut logits {
                Ok(logits) => {
                    let progress = self.scheduler.advance(part.id, &logits.next().unwrap_or_default());
                    // While the prompt is read there is nothing to tell.
                    let wanted = progress.chosen == 0 || (sequence.sink)(Event::Token(progress.written));
                    match progress.finish {
                        Some(finish) => {
                            (sequence.sink)(Event::Ended(finish));
                            false
                        }
                        None => wanted,
                    }
                }
                Err(error) => {
                    (sequence.sink)(Event::Failed(error.clone()));
                    false
                }
            };
            let newest = is_newest(self.newest.as_ref(), &sequence.model);
            if newest && (!goes_on || sequence.given.len() == sequence.prompt) {
                Self::keep(&mut self.prefixes, sequence, !goes_on);
            }
            if !goes_on {
                self.scheduler.cancel(part.id);
                self.sequences.remove(&part.id);
            }
        }
    }
}

fn is_newest(newest: Option<&Arc<Model>>, model: &Arc<Model>) -> bool {
    newest.is_some_and(|newest| Arc::ptr_eq(newest, model))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::inference::{Sampler, Sampling, generate};
    use crate::model::{DeviceChoice, Predictor, Preset};
    use crate::protocol::{ModelSpec, Seed, VOCABULARY_END};
    use crate::training::Params;

    fn spec() -> ModelSpec {
        ModelSpec { context: 96, ..Preset::Nano.recipe().model }
    }

    fn params(seed: u64) -> Params {
        Params::initial(&spec(), &Seed::from_number(seed))
    }

    fn model(seed: u64) -> Model {
        Model { digest: Digest::of(&seed.to_le_bytes()), decoder: Decoder::new(&spec(), params(seed)).unwrap() }
    }

    fn engine() -> Engine {
        let engine = Engine::start(2, 1 << 20).unwrap();
        engine.swap(model(1));
        engine
    }

    fn sampler(seed: u64, temperature: f32) -> Sampler {
        let sampling = Sampling { temperature, ..Sampling::default() };
        Sampler::new(sampling, &Seed::from_number(seed), &[]).unwrap()
    }

    fn job(text: &str, most: u32, sampler: Sampler) -> Job {
        let prompt = std::iter::once(VOCABULARY_END as u16).chain(text.bytes().map(u16::from)).collect();
        Job { prompt, most, sampler, stop: Vec::new(), likeliest: None }
    }

    fn begin(engine: &Engine, job: Job) -> (Place, mpsc::Receiver<Event>) {
        let (events, heard) = mpsc::channel();
        let sink = Box::new(move |event| events.send(event).is_ok());
        let mut place = engine.reserve(1).unwrap();
        place.begin(job, sink).unwrap();
        (place, heard)
    }

    fn text((_place, heard): (Place, mpsc::Receiver<Event>)) -> Vec<u8> {
        let tokens = heard.into_iter().filter_map(|event| match event {
            Event::Token(written) => Some(written),
            _ => None,
        });
        tokens.flatten().map(|written| written.byte).collect()
    }

    /// The same without a cache, one at a time, with burn's operations around the kernels.
    fn uncached(prompt: &str, most: u32, mut sampler: Sampler, seed: u64) -> Vec<u8> {
        let predictor = Predictor::new(DeviceChoice::Auto, &spec(), &params(seed)).unwrap();
        let mut bytes = Vec::new();
        let emit = |byte| {
            bytes.push(byte);
            Ok(())
        };
        generate(&predictor, prompt.as_bytes(), most, &mut sampler, emit).unwrap();
        bytes
    }

    #[test]
    fn many_at_a_time_write_what_each_writes_alone() {
        let engine = engine();
        let prompts = ["fn main", "", "to be or not to be, that is the question", "line 7: "];
        let all: Vec<_> = (0..12u64)
            .map(|n| {
                let (prompt, hot) = (prompts[n as usize % 4], if n < 4 { 0.0 } else { 0.9 });
                (prompt, n, hot, begin(&engine, job(prompt, 24, sampler(n, hot))))
            })
            .collect();
        for (prompt, n, hot, heard) in all {
            assert_eq!(text(heard), uncached(prompt, 24, sampler(n, hot), 1), "{prompt:?}, seed {n}");
        }
        assert_eq!(engine.load(), (0, 0));
    }

    #[test]
    fn texts_that_begin_alike_are_what_they_are_without_what_was_kept() {
        let shared = "a conversation always begins with the same long words: ";
        let all = |engine: &Engine| -> Vec<Vec<u8>> {
            let one = |n: u64| begin(engine, job(&format!("{shared}{}", n % 4), 12, sampler(n, 0.9)));
            let mut texts = vec![text(one(0))];
            let together: Vec<_> = (1..9).map(one).collect();
            texts.extend(together.into_iter().map(text));
            // The next one goes on from an answer, as in a conversation.
            let said = String::from_utf8_lossy(&texts[0]).into_owned();
            texts.push(text(begin(engine, job(&format!("{shared}0{said} and"), 5, sampler(20, 0.9)))));
            texts
        };
        let without = Engine::start(2, 0).unwrap();
        without.swap(model(1));
        let with = engine();
        assert_eq!(all(&with), all(&without));
        let Reuse { asked, found, bytes } = with.reuse();
        assert!(found > asked * 3 / 4 && found < asked, "{found} of {asked}");
        assert!(bytes > 0 && bytes <= 1 << 20);
        assert_eq!(without.reuse(), Reuse::default());
        with.swap(model(2));
        assert_eq!(with.reuse().bytes, 0, "of another model");
    }

    #[test]
    fn a_newer_model_answers_what_comes_after_it_and_nothing_is_dropped() {
        let engine = engine();
        let before = begin(&engine, job("old", 60, sampler(1, 0.9)));
        engine.swap(model(2));
        let after = begin(&engine, job("new", 60, sampler(1, 0.9)));
        assert_eq!(text(before), uncached("old", 60, sampler(1, 0.9), 1));
        assert_eq!(text(after), uncached("new", 60, sampler(1, 0.9), 2));
    }

    #[test]
    fn who_goes_away_is_not_written_for() {
        let engine = engine();
        let (_place, heard) = begin(&engine, job("x", 90, sampler(1, 0.9)));
        heard.recv().unwrap();
        drop(heard);
        let (place, heard) = begin(&engine, job("x", 90, sampler(1, 0.9)));
        heard.recv().unwrap();
        drop(place);
        let next = begin(&engine, job("y", 2, sampler(1, 0.9)));
        assert!(text(next).len() <= 2);
        assert_eq!(engine.load(), (0, 0), "long before it would have ended");
    }

    #[test]
    fn what_there_is_no_room_for_is_refused() {
        let engine = Engine::start(1, 0).unwrap();
        assert_eq!(engine.reserve(1).unwrap_err(), NoPlace::NoModel);
        engine.swap(model(1));
        let all = limits::QUERIES_RUNNING_MAX + limits::QUERIES_WAITING_MAX;
        assert_eq!(engine.reserve(all + 1).unwrap_err(), NoPlace::Full(Full));
        let place = engine.reserve(all).unwrap();
        assert_eq!(engine.reserve(1).unwrap_err(), NoPlace::Full(Full));
        drop(place);
        let mut place = engine.reserve(1).unwrap();
        assert!(place.begin(job("x", 95, sampler(1, 0.0)), Box::new(|_| true)).is_err());
        place.begin(job("x", 94, sampler(1, 0.0)), Box::new(|_| true)).unwrap();
        assert!(place.begin(job("x", 1, sampler(1, 0.0)), Box::new(|_| true)).is_err());
    }
}
