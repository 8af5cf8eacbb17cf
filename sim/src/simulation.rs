use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::System;
use hydra::compute::ComputeError;
use hydra::data::DataError;
use hydra::ledger::{EconomyError, Ledger, MemoryJournal, StoreError};
use hydra::protocol::Time;
use hydra::training::{CorpusError, Engine};
use rand::rngs::ChaCha8Rng;
use tokio::sync::mpsc;

use crate::Scenario;
use crate::faults::{Faults, Strike};
use crate::outcome::{Outcome, Played, outcome};
use crate::queries::Till;
use crate::world::{Telling, World, seconds};

/// When virtual time begins: 2026-01-01T00:00:00Z.
pub(crate) const EPOCH: Time = Time(1_767_225_600_000);

/// Virtual time after which a run that is not finished is given up: a month.
pub(crate) const PATIENCE: Duration = Duration::from_hours(30 * 24);

/// Why a scenario could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data is too short for the model.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// A model could not be made.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// The ledger is unsound.
    #[error(transparent)]
    Ledger(#[from] StoreError),
    /// What a simulated disk keeps cannot be written or read back.
    #[error("a simulated disk cannot be used: {0}")]
    Disk(String),
    /// The economy's numbers do not fit together.
    #[error(transparent)]
    Economy(#[from] EconomyError),
    /// No threads to be had.
    #[error("cannot start threads: {0}")]
    Threads(#[from] std::io::Error),
    /// A group behaves as a program says, and none has said anything.
    #[error("group {0:?} has behaviour = \"custom\", which only a program that says what it is can play")]
    Custom(String),
}

/// The events of a world, with their virtual times.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub lines: Vec<String>,
}

impl Log {
    pub fn write(&mut self, event: &str) {
        self.lines.push(format!("{} {event}", virtual_now().0 - EPOCH.0));
    }
}

thread_local! {
    static START: RefCell<Option<tokio::time::Instant>> = const { RefCell::new(None) };
}

/// Plays `future` from the beginning of virtual time on.
pub(crate) fn in_virtual_time<T>(future: impl Future<Output = T>) -> T {
    let system = System::with_tokio_rt(|| {
        #[expect(clippy::expect_used, reason = "actix takes no error; without a runtime there is nothing to do")]
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("event queue")
    });
    system.block_on(async {
        START.set(Some(tokio::time::Instant::now()));
        future.await
    })
}

pub(crate) fn virtual_now() -> Time {
    let now = tokio::time::Instant::now();
    EPOCH + START.with_borrow(|start| start.map_or(Duration::ZERO, |start| now.duration_since(start)))
}

pub(crate) fn virtual_seconds() -> f64 {
    virtual_now().since(EPOCH).as_secs_f64()
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Rounds that are done.
    pub rounds: u32,
    /// Virtual seconds so far.
    pub virtual_seconds: f64,
}

/// Makes what tasks are computed with of what honest workers use.
pub type EngineOf = Box<dyn Fn(Arc<dyn Engine>) -> Arc<dyn Engine>>;

/// When a run is given up for lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// A round takes longer than this, virtual seconds.
    pub round_seconds: f64,
    /// There are more events than this.
    pub events: usize,
}

/// A scenario about to be played, with whatever a program adds to it.
pub struct Simulation<'a> {
    scenario: &'a Scenario,
    behaviours: BTreeMap<String, EngineOf>,
    faults: Vec<Faults>,
    until: Option<Duration>,
    patience: Duration,
    bounds: Option<Bounds>,
    progress: Box<dyn FnMut(Progress) + 'a>,
}

/// Plays a scenario with `seed`, computing on `threads` real threads (which changes nothing but how long it takes).
///
/// # Panics
/// Where the operating system has no event queue to give.
pub fn run(scenario: &Scenario, seed: u64, threads: usize) -> Result<Outcome, SimError> {
    Simulation::new(scenario).run(seed, threads)
}

impl<'a> Simulation<'a> {
    /// The scenario as it is.
    #[must_use]
    pub fn new(scenario: &'a Scenario) -> Self {
        Self {
            scenario,
            behaviours: BTreeMap::new(),
            faults: Vec::new(),
            until: None,
            patience: PATIENCE,
            bounds: None,
            progress: Box::new(drop),
        }
    }

    /// The workers of the group with this name, which has `behaviour = "custom"`, compute with what `make` makes for each
    /// of them.
    #[must_use]
    pub fn behaviour(mut self, group: &str, make: impl Fn(Arc<dyn Engine>) -> Arc<dyn Engine> + 'static) -> Self {
        self.behaviours.insert(group.to_owned(), Box::new(make));
        self
    }

    /// Adds a source of faults.
    #[must_use]
    pub fn faults(mut self, source: impl FnMut(&mut ChaCha8Rng) -> Option<Strike> + 'static) -> Self {
        self.faults.push(Box::new(source));
        self
    }

    /// Ends after so much virtual time, if any is given, whatever is done by then. Then only what must always hold is
    /// demanded.
    #[must_use]
    pub fn until(mut self, end: impl Into<Option<Duration>>) -> Self {
        self.until = end.into();
        self
    }

    /// Gives up after so much virtual time instead of a month: what is not done by then has failed.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Gives it up for lost when a round takes longer than this, or there are more events: it is looked every virtual minute.
    #[must_use]
    pub fn give_up(mut self, round: Duration, events: usize) -> Self {
        self.bounds = Some(Bounds { round_seconds: round.as_secs_f64(), events });
        self
    }

    /// Says after each round how far it is.
    #[must_use]
    pub fn on_progress(mut self, hear: impl FnMut(Progress) + 'a) -> Self {
        self.progress = Box::new(hear);
        self
    }

    /// Plays it with `seed`, computing on `threads` real threads (which changes nothing but how long it takes).
    ///
    /// # Panics
    /// Where the operating system has no event queue to give.
    pub fn run(self, seed: u64, threads: usize) -> Result<Outcome, SimError> {
        let Self { scenario, behaviours, faults, until, patience, bounds, mut progress } = self;
        in_virtual_time(async {
            let (news, mut heard) = mpsc::unbounded_channel();
            let world = Rc::new(World::new(scenario, &behaviours, seed, threads, news)?);
            world.begin(faults, bounds);
            let mut telling = Telling::default();
            let finished = world.follow(&mut heard, &mut telling, &mut *progress);
            // Whatever takes longer than it may has failed already.
            let patience = scenario.expect.within_seconds.map_or(patience, |most| patience.min(seconds(most as f64)));
            let ended = tokio::time::timeout(until.unwrap_or(patience), finished).await;
            let took = virtual_now().since(EPOCH);
            let finished = matches!(ended, Ok(Ok(())));
            match ended {
                Ok(Ok(())) => world.close_till().await,
                Ok(Err(why)) => world.laws.tell(why),
                Err(_) => world.say(if until.is_some() { "told to end" } else { "patience ran out" }),
            }
            let state = world.state().await?;
            let ledger = match world.journal.check() {
                Ok(ledger) => ledger,
                Err(broken) => {
                    world.laws.tell(broken);
                    // Of one that is no ledger any more, nothing can be said.
                    Ledger::open(world.journal.config(), &mut MemoryJournal::default())?
                }
            };
            world.hold_last_laws(&state, &ledger, finished);
            let played = Played {
                state,
                ledger,
                workers: world.cast.workers.clone(),
                verifiers: world.cast.verifiers.clone(),
                caught: telling.caught,
                rounds: telling.rounds,
                spent: world.laws.spent(),
                queries: world.till.as_ref().map(Till::counts),
                struck: world.struck.take(),
                broken: world.laws.broken(),
                cut_short: !finished && until.is_some(),
                took,
                log: std::mem::take(&mut world.log.borrow_mut().lines),
            };
            Ok(outcome(scenario, seed, played))
        })
    }
}
