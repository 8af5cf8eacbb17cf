mod strikes;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, System};
use hydra::compute::{Compute, ComputeError};
use hydra::coordinator::{Coordinator, CoordinatorPorts, Inspect, Record, Report, Rounds, State};
use hydra::data::{self, DataError};
use hydra::ledger::{Desk, Direct, EconomyConfig, EconomyError, Ledger, LedgerActor, LedgerConfig, StoreError};
use hydra::model::{BurnEngine, DeviceChoice};
use hydra::protocol::wire::WireError;
use hydra::protocol::{Keypair, Layer, PublicKey, Round, RunSpec, Seed, Time, below};
use hydra::runtime::{Clock, Note, Threads, Watch};
use hydra::store::Blobs;
use hydra::training::{CorpusError, Engine, Layout, Params};
use hydra::verifier::{Audit, Verifier, VerifierPorts};
use hydra::worker::{Labour, Worker, WorkerPorts};
use rand::rngs::ChaCha8Rng;
use tokio::sync::mpsc;

use crate::behaviour::Tamper;
use crate::disk::{Journal, KeptResult, OpenRecords, Records};
use crate::faults::{Faults, Strike, Victim};
use crate::network::{Door, Front, Link, Place, Standing};
use crate::outcome::{Caught, Outcome, Played, RoundRow, Struck, outcome};
use crate::panel::{Judge, Panel};
use crate::process::{Machine, Process, WorldBlobs};
use crate::prose;
use crate::scenario::Objective;
use crate::surrogate::Surrogate;
use crate::{Behaviour, Device, Scenario, VerifierBehaviour};

/// When virtual time begins: 2026-01-01T00:00:00Z.
const EPOCH: Time = Time(1_767_225_600_000);

/// Virtual time after which a run that is not finished is given up: a month.
const PATIENCE: Duration = Duration::from_hours(30 * 24);

/// How long checks, aggregation and the like take, virtual.
const SERVICE_TIME: Duration = Duration::from_millis(50);

/// How long a coordinator that died of its disk stays away: what service managers wait.
const RESTART: Duration = Duration::from_secs(10);

/// How often it is looked whether everybody lives who should.
const ROLL_CALL: Duration = Duration::from_mins(1);

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
    /// The coordinator's records cannot be read back.
    #[error("the coordinator's records cannot be read back: {0}")]
    Records(#[from] WireError),
    /// The economy's numbers do not fit together.
    #[error(transparent)]
    Economy(#[from] EconomyError),
    /// No threads to be had.
    #[error("cannot start threads: {0}")]
    Threads(#[from] std::io::Error),
    /// A group behaves as a program says, and none has said anything.
    #[error("group {0:?} has behaviour = \"custom\", which only a program that says what it is can play")]
    Custom(String),
    /// Something died that must not.
    #[error("the simulated world broke: {0}")]
    Broken(String),
}

/// The events of a world, with their virtual times.
#[derive(Debug, Default)]
pub(crate) struct Log {
    lines: Vec<String>,
}

impl Log {
    pub fn write(&mut self, event: &str) {
        self.lines.push(format!("{} {event}", virtual_now().0 - EPOCH.0));
    }
}

/// Tokio's clock, which stands still while anybody has something to do and jumps when nobody has; ahead by so many
/// milliseconds, or behind.
struct VirtualClock(i64);

impl Clock for VirtualClock {
    fn now(&self) -> Time {
        Time(virtual_now().0.saturating_add_signed(self.0))
    }
}

thread_local! {
    static START: RefCell<Option<tokio::time::Instant>> = const { RefCell::new(None) };
}

pub(crate) fn virtual_now() -> Time {
    let now = tokio::time::Instant::now();
    EPOCH + START.with_borrow(|start| start.map_or(Duration::ZERO, |start| now.duration_since(start)))
}

fn virtual_seconds() -> f64 {
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

/// A scenario about to be played, with whatever a program adds to it.
pub struct Simulation<'a> {
    scenario: &'a Scenario,
    behaviours: BTreeMap<String, EngineOf>,
    faults: Vec<Faults>,
    until: Option<Duration>,
    patience: Duration,
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

    /// Ends after so much virtual time, whatever is done by then. Then only what must always hold is demanded.
    #[must_use]
    pub fn until(mut self, end: Duration) -> Self {
        self.until = Some(end);
        self
    }

    /// Gives up after so much virtual time instead of a month: what is not done by then has failed.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
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
        let Self { scenario, behaviours, faults, until, patience, mut progress } = self;
        let system = System::with_tokio_rt(|| {
            #[expect(clippy::expect_used, reason = "actix takes no error; without a runtime there is nothing to do")]
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("event queue")
        });
        system.block_on(async {
            START.set(Some(tokio::time::Instant::now()));
            let (news, mut heard) = mpsc::unbounded_channel();
            let world = Rc::new(World::new(scenario, &behaviours, seed, threads, news)?);
            world.begin(faults);
            let mut telling = Telling::default();
            let finished = world.follow(&mut heard, &mut telling, &mut *progress);
            let in_time = match tokio::time::timeout(until.unwrap_or(patience), finished).await {
                Ok(result) => result.map(|()| true)?,
                Err(_) => false,
            };
            if !in_time {
                world.log.borrow_mut().write(if until.is_some() { "told to end" } else { "patience ran out" });
            }
            let took = virtual_now().since(EPOCH);
            let (state, mut broken) = world.state().await?;
            broken.extend(world.journal.broken());
            let ledger = Ledger::open(world.ledger_config(), &mut world.journal.clone())?;
            ledger.book().assert_invariants();
            let lost = |model: &&hydra::coordinator::BaseModel| world.blobs.get(&model.digest).is_err();
            broken.extend(state.kept_models().iter().find(lost).map(|model| format!("model {} is lost", model.digest)));
            let played = Played {
                state,
                ledger,
                workers: world.cast.workers.clone(),
                verifiers: world.cast.verifiers.clone(),
                caught: telling.caught,
                rounds: telling.rounds,
                struck: world.struck.take(),
                broken,
                cut_short: !in_time && until.is_some(),
                took,
                log: std::mem::take(&mut world.log.borrow_mut().lines),
            };
            Ok(outcome(scenario, seed, played))
        })
    }
}

/// What the world tells whoever plays it.
enum News {
    Note(Note),
    /// Something is wrong that cannot go on.
    Broken(String),
}

/// What became of the news.
#[derive(Default)]
struct Telling {
    caught: BTreeMap<PublicKey, Caught>,
    rounds: Vec<RoundRow>,
    rejected: u64,
    convicted: u64,
}

/// One worker's machine, which stays while processes on it come and go.
struct Node {
    key: Keypair,
    compute: Arc<Compute>,
    standing: Arc<Standing>,
    link: actix::Recipient<hydra::coordinator::Event<hydra::coordinator::ReplyTo>>,
    kept: KeptResult,
    tokens_per_second: u64,
    upload: Duration,
    download: Duration,
    skew: i64,
    group: usize,
    process: Process<Worker>,
}

struct World {
    scenario: Scenario,
    spec: RunSpec,
    number: u64,
    cast: Cast,
    log: Rc<RefCell<Log>>,
    news: mpsc::UnboundedSender<News>,
    watch: Watch,
    threads: Rc<Threads>,
    blobs: Arc<WorldBlobs>,
    central: Arc<Compute>,
    records: Records,
    journal: Journal,
    front: Rc<Front>,
    payer: Rc<Place<hydra::ledger::Ask>>,
    judges: Vec<(u64, Rc<Place<hydra::verifier::Event>>)>,
    doors: Doors,
    coordinator: Process<Coordinator>,
    ledger: Process<LedgerActor>,
    verifiers: Vec<Process<Verifier>>,
    workers: Vec<Node>,
    /// How long the coordinator stays away when it dies of a write.
    restart: Cell<Duration>,
    struck: RefCell<Vec<Struck>>,
    rounds_begun: Cell<u64>,
}

/// Addresses that stay.
struct Doors {
    coordinator: actix::Recipient<hydra::coordinator::Event<hydra::coordinator::ReplyTo>>,
    ledger: actix::Recipient<hydra::ledger::Ask>,
    panel: actix::Recipient<hydra::verifier::Event>,
}

impl World {
    #[expect(clippy::too_many_lines, reason = "one thing after the other, each used by those after it")]
    fn new(
        scenario: &Scenario,
        behaviours: &BTreeMap<String, EngineOf>,
        seed: u64,
        threads: usize,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self, SimError> {
        let corpus =
            if scenario.job.data.is_empty() { prose::corpus()? } else { data::read(&scenario.job.data)?.corpus };
        corpus.check(scenario.job.model.context)?;
        let blobs = Arc::new(WorldBlobs::default());
        let put = |bytes: &[u8]| blobs.put(bytes).map_err(ComputeError::from);
        let manifest = corpus.store(|shard| put(shard).map(drop))?;
        let spec = scenario.spec(seed, put(&manifest.encode())?);
        let engine = |device: Device| -> Arc<dyn Engine> {
            match (scenario.job.objective, device) {
                (Objective::Surrogate, _) => Arc::new(Surrogate),
                (Objective::Transformer, Device::Fused) => Arc::new(BurnEngine::new(DeviceChoice::NdArray)),
                (Objective::Transformer, Device::Plain) => Arc::new(BurnEngine::plain(DeviceChoice::NdArray)),
            }
        };
        let compute = |engine: Arc<dyn Engine>| Arc::new(Compute::new(engine, Arc::clone(&blobs) as Arc<dyn Blobs>));
        let central = compute(engine(Device::Fused));
        let base = central.save(&Params::initial(&spec.model, &spec.seed))?;
        let records = Records::default();
        records.write(&[Record::RoundOpened { round: Round(0), base, momentum: None, at: EPOCH }]);

        let notes = Mutex::new(news.clone());
        let watch = Watch::new(move |note| {
            // Steps are told from computing threads, in whatever order the machine has.
            if !matches!(note, Note::Step { .. }) {
                // Nobody hears it when the world has ended.
                let _ = notes.lock().unwrap_or_else(PoisonError::into_inner).send(News::Note(note));
            }
        });
        let cast = Cast::of(scenario, &spec.seed);
        let audit = spec.audits.map(|audits| audits.policy).unwrap_or_default();
        let economy = EconomyConfig { audit, ..EconomyConfig::emitting(spec.emission) }.check()?;
        let trusted: BTreeSet<PublicKey> = cast.verifiers.iter().map(|(key, _)| *key).collect();
        let journal = Journal::new(LedgerConfig { economy, verifiers: trusted });

        let log = Rc::new(RefCell::new(Log::default()));
        let (front, payer) = (Rc::new(Front::default()), Rc::new(Place::default()));
        let speeds = scenario.verifiers.iter().flat_map(|group| (0..group.count).map(|_| group.tokens_per_second));
        let judges: Vec<_> = speeds.map(|speed| (speed, Rc::new(Place::default()))).collect();
        let coordinator = Door(Rc::clone(&front.place)).start().recipient();
        let panel = judges.iter().zip(&cast.verifiers).enumerate();
        let panel = panel.map(|(index, ((_, place), (_, behaviour)))| Judge {
            key: verifier_key(&spec.seed, index),
            behaviour: *behaviour,
            verifier: Rc::clone(place),
        });
        let panel = Panel { judges: panel.collect(), coordinator: coordinator.clone(), turn: 0 }.start().recipient();
        let doors = Doors { coordinator, ledger: Door(Rc::clone(&payer)).start().recipient(), panel };

        let layout = Layout::of(&spec.model);
        let (payload, model) = (spec.codec.payload_bytes(&layout) as f64, 4.0 * layout.len() as f64);
        let passage = |bytes: f64, kbps: Option<u64>| {
            kbps.map_or(Duration::ZERO, |kbps| Duration::from_secs_f64(bytes * 8.0 / 1000.0 / kbps as f64))
        };
        let links = spec.seed.derive("network", 0);
        let mut workers = Vec::new();
        for (place, group) in scenario.workers.iter().enumerate() {
            let made = |honest: Arc<dyn Engine>| -> Result<Arc<dyn Engine>, SimError> {
                if group.behaviour != Behaviour::Custom {
                    return Ok(group.behaviour.engine(honest));
                }
                let name = group.name.clone().unwrap_or_default();
                let make = behaviours.get(&name).ok_or(SimError::Custom(name))?;
                Ok(make(honest))
            };
            let shared = compute(made(engine(group.device))?);
            for _ in 0..group.count {
                let index = workers.len();
                // A cheat keeps things of its own; the honest share what they have read.
                let compute = if group.behaviour.is_honest() {
                    Arc::clone(&shared)
                } else {
                    compute(made(engine(group.device))?)
                };
                let (key, standing) = (worker_key(&spec.seed, index), Arc::new(Standing::default()));
                let mut rng = spec.seed.derive("machine", index as u64).rng();
                let tamper = Tamper {
                    behaviour: group.behaviour,
                    key: key.clone(),
                    blobs: Arc::clone(&blobs) as Arc<dyn Blobs>,
                    first: None,
                };
                let (network, standing_there) = (scenario.network, Arc::clone(&standing));
                let link =
                    Link::new(index, network, &links, Rc::clone(&front), standing_there, tamper, Rc::clone(&log));
                let skew = group.clock_skew_seconds * 1000;
                workers.push(Node {
                    key,
                    compute,
                    standing,
                    link: link.start().recipient(),
                    kept: KeptResult::default(),
                    tokens_per_second: group.tokens_per_second.draw(&mut rng),
                    upload: passage(payload, group.upload_kbps),
                    download: passage(model, group.download_kbps),
                    skew: below(&mut rng, 2 * skew + 1) as i64 - skew as i64,
                    group: place,
                    process: Process::default(),
                });
            }
        }
        let verifiers = cast.verifiers.iter().map(|_| Process::default()).collect();
        Ok(Self {
            scenario: scenario.clone(),
            number: seed,
            cast,
            log,
            news,
            watch,
            threads: Rc::new(Threads::new(threads, threads)?),
            blobs,
            central,
            records,
            journal,
            front,
            payer,
            judges,
            doors,
            coordinator: Process::default(),
            ledger: Process::default(),
            verifiers,
            workers,
            restart: Cell::new(RESTART),
            struck: RefCell::default(),
            rounds_begun: Cell::new(0),
            spec,
        })
    }

    /// Starts everybody who is there at the beginning, and everything that happens later.
    fn begin(self: &Rc<Self>, faults: Vec<Faults>) {
        self.start_ledger();
        (0..self.verifiers.len()).for_each(|index| self.start_verifier(index));
        self.start_coordinator();
        for index in 0..self.workers.len() {
            let rng = self.spec.seed.derive("presence", index as u64).rng();
            let mut changes = self.scenario.workers[self.workers[index].group].availability.changes(rng).peekable();
            if changes.next_if(|(at, there)| *at <= 0.0 && *there).is_some() {
                self.start_worker(index);
            } else {
                self.workers[index].process.down.set(1);
            }
            if changes.peek().is_some() {
                actix::spawn(Rc::clone(self).attend(index, changes));
            }
        }
        let rare = self.scenario.faults.iter().filter(|fault| fault.each_round_within_seconds.is_none());
        let sources = rare.map(crate::Fault::source).chain(faults);
        for (index, source) in sources.enumerate() {
            let rng = self.spec.seed.derive("fault", index as u64).rng();
            actix::spawn(Rc::clone(self).suffer(source, rng));
        }
        self.begin_round();
        actix::spawn(Rc::clone(self).call_roll());
    }

    fn say(&self, what: &str) {
        self.log.borrow_mut().write(what);
    }

    fn broken(&self, why: impl ToString) {
        // Nobody hears it when the world has ended.
        let _ = self.news.send(News::Broken(why.to_string()));
    }

    fn ledger_config(&self) -> LedgerConfig {
        self.journal.config()
    }

    fn clock(skew: i64) -> Arc<dyn Clock> {
        Arc::new(VirtualClock(skew))
    }

    /// The real threads, and what is under way on them.
    fn real(&self) -> (Rc<Threads>, Arc<crate::process::UnderWay>) {
        (Rc::clone(&self.threads), Arc::clone(&self.blobs.work))
    }

    fn service(&self, standing: &Arc<Standing>, tokens_per_second: u64) -> Machine {
        Machine::new(self.real(), Arc::clone(standing), tokens_per_second, SERVICE_TIME, Duration::ZERO)
    }

    // --- those who live -------------------------------------------------------------------------------------------

    fn start_ledger(&self) {
        let writer = Direct::new(self.journal.clone(), key(&self.spec.seed, "ledger key", 0));
        match Desk::open(self.ledger_config(), Box::new(writer)) {
            Ok(desk) => {
                let address = self.ledger.start(|_, _| LedgerActor::new(desk, Self::clock(0)));
                self.payer.set(Some(address.recipient()));
            }
            Err(error) => self.broken(error),
        }
    }

    fn start_verifier(&self, index: usize) {
        let (speed, place) = &self.judges[index];
        let address = self.verifiers[index].start(|_, alive| {
            let ports = VerifierPorts {
                compute: Arc::clone(&self.central),
                executor: Rc::new(self.service(&Arc::default(), *speed).of(alive)),
                watch: self.watch.clone(),
                coordinator: self.doors.coordinator.clone(),
            };
            Verifier::new(Audit::new(verifier_key(&self.spec.seed, index)), ports)
        });
        place.set(Some(address.recipient()));
    }

    fn start_coordinator(&self) {
        let records = match self.records.read() {
            Ok(records) => records,
            Err(error) => return self.broken(error),
        };
        let state = State::replay(self.spec.clone(), records);
        let trusted = self.cast.verifiers.iter().map(|(key, _)| *key).collect();
        let secrets = self.scenario.audits.is_some().then(|| self.scenario.secrets(self.number));
        self.records.health.refused.set(false);
        self.journal.health.refused.set(false);
        let address = self.coordinator.start(|_, alive| {
            let (watch, living) = (self.watch.clone(), Arc::clone(alive));
            let ports = CoordinatorPorts {
                clock: Self::clock(0),
                store: Box::new(OpenRecords { records: self.records.clone(), alive: Arc::clone(alive) }),
                compute: Arc::clone(&self.central),
                executor: Rc::new(self.service(&self.front.standing, u64::MAX).of(alive)),
                verifier: self.doors.panel.clone(),
                ledger: self.doors.ledger.clone(),
                // The dead say nothing.
                watch: Watch::new(move |note| {
                    if living.load(Ordering::Relaxed) {
                        watch.note(note);
                    }
                }),
            };
            let end = Some(Round(self.scenario.job.rounds));
            Coordinator::new(Rounds::new(state, trusted, secrets, end), ports)
        });
        self.front.place.set(Some(address.recipient()));
    }

    fn start_worker(&self, index: usize) {
        let node = &self.workers[index];
        let (jitter, starts) = (self.spec.seed.derive("worker", index as u64), node.process.starts());
        let jitter = if starts == 0 { jitter } else { jitter.derive("start", starts) };
        let copies = self.scenario.workers[node.group].behaviour == Behaviour::Copy;
        node.process.start(|_, alive| {
            let machine = Machine::new(
                self.real(),
                Arc::clone(&node.standing),
                node.tokens_per_second,
                SERVICE_TIME + node.upload,
                node.download,
            );
            let ports = WorkerPorts {
                clock: Self::clock(node.skew),
                compute: Arc::clone(&node.compute),
                executor: Rc::new(machine.in_turn(copies).of(alive)),
                coordinator: node.link.clone(),
                results: Box::new(node.kept.clone()),
                watch: self.watch.clone(),
            };
            let left = node.kept.0.borrow().clone();
            Worker::new(Labour::new(&jitter), node.key.clone(), ports).with_left(left)
        });
    }

    /// Kills it, if it lives.
    fn fall(&self, who: Victim, index: usize) {
        match who {
            Victim::Coordinator => {
                self.coordinator.fall();
                self.front.place.set(None);
                self.fall(Victim::Ledger, 0);
            }
            Victim::Ledger => {
                self.ledger.fall();
                self.payer.set(None);
            }
            Victim::Verifiers => {
                self.verifiers[index].fall();
                self.judges[index].1.set(None);
            }
            Victim::Workers => self.workers[index].process.fall(),
        }
    }

    /// Starts it again, if nothing else keeps it down.
    fn rise(&self, who: Victim, index: usize) {
        match who {
            Victim::Coordinator => {
                self.rise(Victim::Ledger, 0);
                if self.coordinator.rise() {
                    self.say("the coordinator starts again");
                    self.start_coordinator();
                }
            }
            Victim::Ledger => {
                if self.ledger.rise() {
                    self.start_ledger();
                }
            }
            Victim::Verifiers => {
                if self.verifiers[index].rise() {
                    self.start_verifier(index);
                }
            }
            Victim::Workers => {
                if self.workers[index].process.rise() {
                    self.start_worker(index);
                }
            }
        }
    }

    fn workers_up(&self) -> usize {
        self.workers.iter().filter(|node| node.process.lives()).count()
    }

    /// A worker comes and goes.
    async fn attend(self: Rc<Self>, index: usize, changes: impl Iterator<Item = (f64, bool)>) {
        for (at, there) in changes {
            sleep_until(at).await;
            self.say(&format!("worker {index} {}", if there { "comes" } else { "leaves" }));
            if there { self.rise(Victim::Workers, index) } else { self.fall(Victim::Workers, index) }
        }
    }

    /// An actor that panics is gone without a word; nobody may be.
    async fn call_roll(self: Rc<Self>) {
        loop {
            tokio::time::sleep(ROLL_CALL).await;
            let dead = (!self.coordinator.is_well()).then_some("the coordinator");
            let dead = dead.or_else(|| (!self.ledger.is_well()).then_some("the ledger"));
            let dead = dead.or_else(|| (!self.verifiers.iter().all(Process::is_well)).then_some("a verifier"));
            let dead = dead.or_else(|| (!self.workers.iter().all(|node| node.process.is_well())).then_some("a worker"));
            if let Some(dead) = dead {
                return self.broken(format!("{dead} is dead, and nothing has killed it"));
            }
        }
    }

    /// The coordinator says that it cannot go on. Of a disk that failed it may die: it is started again.
    fn dies(self: &Rc<Self>, why: String) -> Result<(), SimError> {
        if !self.records.health.refused.get() && !self.journal.health.refused.get() {
            return Err(SimError::Broken(why));
        }
        self.say(&format!("the coordinator dies: {why}"));
        self.fall(Victim::Coordinator, 0);
        let (world, pause) = (Rc::clone(self), self.restart.replace(RESTART));
        actix::spawn(async move {
            tokio::time::sleep(pause).await;
            world.rise(Victim::Coordinator, 0);
        });
        Ok(())
    }

    // --- what is seen ---------------------------------------------------------------------------------------------

    /// Writes down what happens until everything is done.
    async fn follow(
        self: &Rc<Self>,
        heard: &mut mpsc::UnboundedReceiver<News>,
        telling: &mut Telling,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), SimError> {
        while let Some(news) = heard.recv().await {
            let note = match news {
                News::Note(note) => note,
                News::Broken(why) => return Err(SimError::Broken(why)),
            };
            self.say(&format!("{note:?}"));
            match note {
                Note::Fatal(why) => self.dies(why)?,
                Note::Coordinator(Report::Finished) => return Ok(()),
                Note::Coordinator(report) => {
                    if let Report::RoundClosed { .. } = report {
                        self.begin_round();
                        let rounds = telling.rounds.len() as u32 + 1;
                        progress(Progress { rounds, virtual_seconds: virtual_seconds() });
                    }
                    telling.hear(&report, self.workers_up(), self.struck.borrow().len());
                }
                _ => {}
            }
        }
        Err(SimError::Broken("everybody who could say anything is gone".to_owned()))
    }

    /// What the coordinator knows at the end, and what is wrong with it: it must be what its records say.
    async fn state(&self) -> Result<(State, Vec<String>), SimError> {
        for _ in 0..10 {
            let Some(coordinator) = self.coordinator.address() else { break };
            let Ok(live) = coordinator.send(Inspect).await else { break };
            if *live == State::replay(self.spec.clone(), self.records.read()?) {
                return Ok((*live, Vec::new()));
            }
            // Something had been decided that is on its way to the disk.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let state = State::replay(self.spec.clone(), self.records.read()?);
        let lives = self.coordinator.address().is_some_and(|address| address.connected());
        let differs = lives.then(|| "what the coordinator knows is not what its records say".to_owned());
        Ok((state, differs.into_iter().collect()))
    }
}

impl Telling {
    fn hear(&mut self, report: &Report, workers_up: usize, strikes: usize) {
        let open = Round(self.rounds.last().map_or(0, |last| last.round + 1));
        let mut catch = |worker: &PublicKey, layer| {
            self.caught.entry(*worker).or_insert(Caught { round: open, layer });
        };
        match report {
            Report::Rejected { worker, layer, .. } => {
                catch(worker, *layer);
                self.rejected += 1;
            }
            Report::Convicted { worker, .. } => {
                catch(worker, Layer::Replay);
                self.convicted += 1;
            }
            Report::RoundClosed { round, accepted, tokens } => self.rounds.push(RoundRow {
                round: round.0,
                closed_seconds: virtual_seconds(),
                accepted: *accepted,
                tokens: *tokens,
                loss: None,
                workers_up,
                rejected: self.rejected,
                convicted: self.convicted,
                strikes,
            }),
            _ => {}
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(PATIENCE)
}

async fn sleep_until(at_seconds: f64) {
    let at = EPOCH + seconds(at_seconds);
    tokio::time::sleep(at.since(virtual_now())).await;
}

/// Who takes part, and how they behave, in the order of the scenario.
struct Cast {
    workers: Vec<(PublicKey, Behaviour)>,
    verifiers: Vec<(PublicKey, VerifierBehaviour)>,
}

impl Cast {
    fn of(scenario: &Scenario, seed: &Seed) -> Self {
        let workers = scenario.workers.iter().flat_map(|group| (0..group.count).map(|_| group.behaviour));
        let verifiers = scenario.verifiers.iter().flat_map(|group| (0..group.count).map(|_| group.behaviour));
        Self {
            workers: workers.enumerate().map(|(index, does)| (worker_key(seed, index).public(), does)).collect(),
            verifiers: verifiers.enumerate().map(|(index, does)| (verifier_key(seed, index).public(), does)).collect(),
        }
    }
}

fn key(seed: &Seed, label: &str, index: usize) -> Keypair {
    Keypair::from_secret(seed.derive(label, index as u64).as_bytes())
}

fn worker_key(seed: &Seed, index: usize) -> Keypair {
    key(seed, "worker key", index)
}

fn verifier_key(seed: &Seed, index: usize) -> Keypair {
    key(seed, "verifier key", index)
}
