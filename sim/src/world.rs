use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::Duration;

use actix::{Actor, System};
use hydra::compute::{Compute, ComputeError};
use hydra::coordinator::{Inspect, Record, RecordStore, RecordStoreError, Report, State};
use hydra::data::{self, DataError};
use hydra::ledger::{Direct, EconomyConfig, EconomyError, Ledger, LedgerConfig, MemoryJournal, StoreError};
use hydra::model::{BurnEngine, DeviceChoice};
use hydra::protocol::{Amount, Digest, Keypair, PublicKey, Round, Time};
use hydra::runtime::{Clock, Executor, Note, Threads, Watch, Work, WorkKind};
use hydra::store::{Blobs, MemoryBlobs};
use hydra::swarm::{LedgerPlace, Member, Swarm};
use hydra::training::{CorpusError, Params};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::network::Link;
use crate::{Behaviour, Scenario};

/// When virtual time begins: 2026-01-01T00:00:00Z.
const EPOCH: Time = Time(1_767_225_600_000);

/// Virtual time after which a run that is not finished is given up: a month.
const PATIENCE: Duration = Duration::from_hours(30 * 24);

/// How long checks, aggregation and the like take, virtual.
const SERVICE_TIME: Duration = Duration::from_millis(50);

/// What came of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The seed that it was played with.
    pub seed: u64,
    /// The digest of the events, the model and the ledger: equal for equal runs.
    pub state_hash: Digest,
    /// Whether everything expected holds.
    pub passed: bool,
    /// What does not hold.
    pub failures: Vec<String>,
    /// Events in the log.
    pub events: usize,
    /// How long it took in the swarm's time.
    pub virtual_seconds: f64,
    /// Validation loss of each base model, nats a token.
    pub losses: Vec<f64>,
    /// The newest model.
    pub model: Digest,
    /// The ledger hash.
    pub ledger: Digest,
    /// Each worker, in the order of the scenario.
    pub workers: Vec<WorkerOutcome>,
    /// The events themselves.
    #[serde(skip)]
    pub log: Vec<String>,
}

/// What came of one worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerOutcome {
    /// Whether it did what it was asked for.
    pub honest: bool,
    /// Tasks accepted.
    pub accepted: u64,
    /// Submissions rejected.
    pub rejected: u64,
    /// What it was paid.
    pub pay: Amount,
}

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
    /// The economy's numbers do not fit together.
    #[error(transparent)]
    Economy(#[from] EconomyError),
    /// No threads to be had.
    #[error("cannot start threads: {0}")]
    Threads(#[from] std::io::Error),
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

/// Tokio's clock, which stands still while anybody has something to do and jumps when nobody has.
struct VirtualClock;

impl Clock for VirtualClock {
    fn now(&self) -> Time {
        virtual_now()
    }
}

thread_local! {
    static START: RefCell<Option<tokio::time::Instant>> = const { RefCell::new(None) };
}

fn virtual_now() -> Time {
    let now = tokio::time::Instant::now();
    EPOCH + START.with_borrow(|start| start.map_or(Duration::ZERO, |start| now.duration_since(start)))
}

/// One machine: its work runs on real threads at once, but its result is seen after the time that the machine would
/// have taken.
struct Machine {
    threads: Rc<Threads>,
    tokens_per_second: u64,
}

impl Executor for Machine {
    fn run(&self, Work { kind, job }: Work) {
        let (send, receive) = sync_mpsc::channel();
        let job = Box::new(move || {
            // Nobody receives any more when the world has ended.
            let _ = send.send(job());
            Box::new(|| ()) as hydra::runtime::Delivery
        });
        self.threads.run(Work { kind, job });
        let takes = match kind {
            WorkKind::Train { tokens } => Duration::from_secs_f64(tokens as f64 / self.tokens_per_second as f64),
            WorkKind::Service => SERVICE_TIME,
        };
        actix::spawn(async move {
            tokio::time::sleep(takes).await;
            // Blocks the whole world until the real result is there: that is what makes it deterministic.
            if let Ok(deliver) = receive.recv() {
                deliver();
            }
        });
    }
}

struct MemoryRecords;

impl RecordStore for MemoryRecords {
    fn append(&mut self, _: &[Record]) -> Result<(), RecordStoreError> {
        Ok(())
    }
}

/// Plays a scenario with `seed`, computing on `threads` real threads (which changes nothing but how long it takes).
///
/// # Panics
/// Where the operating system has no event queue to give.
pub fn run(scenario: &Scenario, seed: u64, threads: usize) -> Result<Outcome, SimError> {
    let data = data::read(&scenario.job.data)?;
    data.corpus.check(scenario.job.model.context)?;
    let blobs = Arc::new(MemoryBlobs::default());
    let put = |bytes: &[u8]| blobs.put(bytes).map_err(ComputeError::from);
    let manifest = data.corpus.store(|shard| put(shard).map(drop))?;
    let spec = scenario.spec(seed, put(&manifest.encode())?);
    let honest: Arc<dyn hydra::training::Engine> = Arc::new(BurnEngine::new(DeviceChoice::NdArray));
    let compute = |behaviour: Behaviour| {
        let blobs = Arc::clone(&blobs) as Arc<dyn Blobs>;
        Arc::new(Compute::new(behaviour.engine(Arc::clone(&honest)), blobs))
    };
    let central = compute(Behaviour::Honest);
    let base = central.save(&Params::initial(&spec.model, &spec.seed))?;
    let opened = Record::RoundOpened { round: Round(0), base, momentum: None, at: EPOCH };
    let state = State::replay(spec.clone(), [opened]);

    let threads = Rc::new(Threads::new(threads, threads)?);
    let machine = |tokens_per_second| Rc::new(Machine { threads: Rc::clone(&threads), tokens_per_second });
    let key = |label: &str, index: usize| Keypair::from_secret(spec.seed.derive(label, index as u64).as_bytes());
    let mut members = Vec::new();
    let mut behaviours = Vec::new();
    for group in &scenario.workers {
        let honest = compute(Behaviour::Honest);
        for _ in 0..group.count {
            // A cheat keeps things of its own; the honest share what they have read.
            let compute = if group.behaviour.is_honest() { Arc::clone(&honest) } else { compute(group.behaviour) };
            let key = key("worker key", members.len());
            behaviours.push((key.public(), group.behaviour));
            members.push(Member { key, compute, executor: machine(group.tokens_per_second) });
        }
    }
    let journal = MemoryJournal::default();
    let economy = EconomyConfig::emitting(spec.emission).check()?;
    let verifier = key("verifier key", 0);
    let trusted = verifier.public();
    let log = Rc::new(RefCell::new(Log::default()));

    let (notes, mut heard) = mpsc::unbounded_channel();
    let notes = Mutex::new(notes);
    let watch = Watch::new(move |note| {
        // Steps are told from computing threads, in whatever order the machine has.
        if !matches!(note, Note::Step { .. }) {
            let _ = notes.lock().unwrap_or_else(PoisonError::into_inner).send(note);
        }
    });
    let swarm = Swarm {
        state,
        end: Some(Round(scenario.job.rounds)),
        verifier,
        others: [].into(),
        judge: None,
        records: Box::new(MemoryRecords),
        economy,
        ledger: LedgerPlace::Here(Box::new(Direct::new(journal.clone(), key("ledger key", 0)))),
        clock: Arc::new(VirtualClock),
        compute: central,
        executor: machine(u64::MAX),
        watch,
    };

    let system = System::with_tokio_rt(|| {
        #[expect(clippy::expect_used, reason = "actix takes no error here; without a runtime there is nothing to do")]
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("an event queue")
    });
    let (network, links) = (scenario.network, spec.seed.derive("network", 0));
    let (state, took) = system.block_on(async {
        let start = tokio::time::Instant::now();
        START.set(Some(start));
        let running = swarm.start(members, |worker, coordinator| {
            Link::new(worker, network, &links, coordinator, Rc::clone(&log)).start().recipient()
        })?;
        let finished = async {
            while let Some(note) = heard.recv().await {
                log.borrow_mut().write(&format!("{note:?}"));
                match note {
                    Note::Coordinator(Report::Finished) => return Ok(()),
                    Note::Fatal(error) => return Err(SimError::Broken(error)),
                    _ => {}
                }
            }
            Err(SimError::Broken("everybody who could say anything is gone".to_owned()))
        };
        match tokio::time::timeout(PATIENCE, finished).await {
            Ok(result) => result?,
            Err(_) => log.borrow_mut().write("patience ran out"),
        }
        let took = start.elapsed();
        let state = running.coordinator.send(Inspect).await;
        state.map(|state| (*state, took)).map_err(|error| SimError::Broken(error.to_string()))
    })?;

    let config = LedgerConfig { economy, verifiers: [trusted].into() };
    let ledger = Ledger::open(config, &mut journal.clone())?;
    ledger.book().assert_invariants();
    Ok(outcome(scenario, seed, &state, &behaviours, ledger.journal().head(), took, log.take().lines))
}

fn outcome(
    scenario: &Scenario,
    seed: u64,
    state: &State,
    behaviours: &[(PublicKey, Behaviour)],
    ledger: Digest,
    took: Duration,
    log: Vec<String>,
) -> Outcome {
    let worker = |(key, behaviour): &(PublicKey, Behaviour)| {
        let record = state.workers().get(key).copied().unwrap_or_default();
        WorkerOutcome {
            honest: behaviour.is_honest(),
            accepted: record.accepted,
            rejected: record.rejected,
            pay: record.pay,
        }
    };
    let workers: Vec<WorkerOutcome> = behaviours.iter().map(worker).collect();
    let losses: Vec<f64> = state.lineage().iter().filter_map(|model| model.loss).collect();
    let model = state.lineage().last().map_or(Digest::of(&[]), |model| model.digest);
    let failures = failures(scenario, state, &workers, &losses, took);
    let everything = [log.join("\n").as_bytes(), model.as_bytes(), ledger.as_bytes()].concat();
    Outcome {
        seed,
        state_hash: Digest::in_domain("hydra simulation v1", &everything),
        passed: failures.is_empty(),
        failures,
        events: log.len(),
        virtual_seconds: took.as_secs_f64(),
        losses,
        model,
        ledger,
        workers,
        log,
    }
}

fn failures(
    scenario: &Scenario,
    state: &State,
    workers: &[WorkerOutcome],
    losses: &[f64],
    took: Duration,
) -> Vec<String> {
    let expect = &scenario.expect;
    let mut failures = Vec::new();
    let mut demand = |holds: bool, failure: String| {
        if !holds {
            failures.push(failure);
        }
    };
    let done = state.round().0;
    demand(done == scenario.job.rounds, format!("{done} of {} rounds were done", scenario.job.rounds));
    if let (Some(bound), Some(loss)) = (expect.loss_below, losses.last()) {
        demand(*loss < bound, format!("the validation loss is {loss:.4}, not below {bound}"));
    }
    let cheats = || workers.iter().filter(|worker| !worker.honest);
    if let Some(least) = expect.rejected_at_least {
        let rejected: u64 = cheats().map(|worker| worker.rejected).sum();
        demand(rejected >= least, format!("{rejected} submissions of cheats were rejected, not at least {least}"));
    }
    if expect.honest_lose_nothing {
        let lost: u64 = workers.iter().filter(|worker| worker.honest).map(|worker| worker.rejected).sum();
        demand(lost == 0, format!("{lost} submissions of honest workers were rejected"));
    }
    if expect.cheats_earn_nothing {
        let paid: i64 = cheats().map(|worker| worker.pay.micro()).sum();
        demand(paid == 0, format!("cheats were paid {paid} µHYD"));
    }
    if let Some(within) = expect.within_seconds {
        demand(took.as_secs() < within, format!("it took {:.0} virtual seconds, not {within}", took.as_secs_f64()));
    }
    failures
}
