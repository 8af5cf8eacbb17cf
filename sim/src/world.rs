use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::Duration;

use actix::{Actor, System};
use hydra::compute::{Compute, ComputeError};
use hydra::coordinator::{Inspect, Record, RecordStore, RecordStoreError, Report, State};
use hydra::data::{self, DataError};
use hydra::ledger::{Direct, EconomyConfig, EconomyError, Ledger, LedgerConfig, MemoryJournal, StoreError};
use hydra::model::{BurnEngine, DeviceChoice};
use hydra::protocol::{Keypair, Layer, PublicKey, Round, Seed, Time};
use hydra::runtime::{Clock, Executor, Note, Threads, Watch, Work, WorkKind};
use hydra::store::{Blobs, MemoryBlobs};
use hydra::swarm::{self, LedgerPlace, Member, Swarm};
use hydra::training::{CorpusError, Params};
use hydra::verifier::{Audit, Verifier, VerifierPorts};
use tokio::sync::mpsc;

use crate::behaviour::Tamper;
use crate::network::Link;
use crate::outcome::{Caught, Outcome, Played, outcome};
use crate::panel::{Judge, Panel};
use crate::{Behaviour, Device, Scenario, VerifierBehaviour};

/// When virtual time begins: 2026-01-01T00:00:00Z.
const EPOCH: Time = Time(1_767_225_600_000);

/// Virtual time after which a run that is not finished is given up: a month.
const PATIENCE: Duration = Duration::from_hours(30 * 24);

/// How long checks, aggregation and the like take, virtual.
const SERVICE_TIME: Duration = Duration::from_millis(50);

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
    let engine = |device: Device| -> Arc<dyn hydra::training::Engine> {
        Arc::new(match device {
            Device::Fused => BurnEngine::new(DeviceChoice::NdArray),
            Device::Plain => BurnEngine::plain(DeviceChoice::NdArray),
        })
    };
    let compute = |behaviour: Behaviour, device: Device| {
        let blobs = Arc::clone(&blobs) as Arc<dyn Blobs>;
        Arc::new(Compute::new(behaviour.engine(engine(device)), blobs))
    };
    let central = compute(Behaviour::Honest, Device::Fused);
    let base = central.save(&Params::initial(&spec.model, &spec.seed))?;
    let opened = Record::RoundOpened { round: Round(0), base, momentum: None, at: EPOCH };
    let state = State::replay(spec.clone(), [opened]);

    let threads = Rc::new(Threads::new(threads, threads)?);
    let machine = |tokens_per_second| Rc::new(Machine { threads: Rc::clone(&threads), tokens_per_second });
    let cast = Cast::of(scenario, &spec.seed);
    let mut members = Vec::new();
    for group in &scenario.workers {
        let shared = compute(group.behaviour, group.device);
        for _ in 0..group.count {
            // A cheat keeps things of its own; the honest share what they have read.
            let compute =
                if group.behaviour.is_honest() { Arc::clone(&shared) } else { compute(group.behaviour, group.device) };
            let key = worker_key(&spec.seed, members.len());
            members.push(Member { key, compute, executor: machine(group.tokens_per_second) });
        }
    }
    let journal = MemoryJournal::default();
    let audit = spec.audits.map(|audits| audits.policy).unwrap_or_default();
    let economy = EconomyConfig { audit, ..EconomyConfig::emitting(spec.emission) }.check()?;
    let speeds = scenario.verifiers.iter().flat_map(|group| (0..group.count).map(|_| group.tokens_per_second));
    let machines: Vec<Rc<Machine>> = speeds.map(machine).collect();
    let trusted: BTreeSet<PublicKey> = cast.verifiers.iter().map(|(key, _)| *key).collect();
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
        secrets: scenario.audits.is_some().then(|| scenario.secrets(seed)),
        verifier: verifier_key(&spec.seed, 0),
        others: trusted.clone(),
        judge: Some(panel(&cast, machines, &central, &watch, spec.seed)),
        records: Box::new(MemoryRecords),
        economy,
        ledger: LedgerPlace::Here(Box::new(Direct::new(journal.clone(), key(&spec.seed, "ledger key", 0)))),
        clock: Arc::new(VirtualClock),
        compute: central,
        executor: machine(u64::MAX),
        watch,
    };

    let system = System::with_tokio_rt(|| {
        #[expect(clippy::expect_used, reason = "actix takes no error here; without a runtime there is nothing to do")]
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("an event queue")
    });
    let caught: RefCell<BTreeMap<PublicKey, Caught>> = RefCell::default();
    let (network, links) = (scenario.network, spec.seed.derive("network", 0));
    let (state, took) = system.block_on(async {
        let start = tokio::time::Instant::now();
        START.set(Some(start));
        let running = swarm.start(members, |worker, coordinator| {
            let (key, behaviour) = (worker_key(&spec.seed, worker), cast.workers[worker].1);
            let tamper = Tamper { behaviour, key, blobs: Arc::clone(&blobs) as Arc<dyn Blobs>, first: None };
            Link::new(worker, network, &links, coordinator, tamper, Rc::clone(&log)).start().recipient()
        })?;
        let finished = follow(&mut heard, &log, &caught);
        match tokio::time::timeout(PATIENCE, finished).await {
            Ok(result) => result?,
            Err(_) => log.borrow_mut().write("patience ran out"),
        }
        let took = start.elapsed();
        let state = running.coordinator.send(Inspect).await;
        state.map(|state| (*state, took)).map_err(|error| SimError::Broken(error.to_string()))
    })?;

    let config = LedgerConfig { economy, verifiers: trusted };
    let ledger = Ledger::open(config, &mut journal.clone())?;
    ledger.book().assert_invariants();
    let (workers, verifiers) = (cast.workers, cast.verifiers);
    let played = Played { state, ledger, workers, verifiers, caught: caught.take(), took, log: log.take().lines };
    Ok(outcome(scenario, seed, played))
}

/// Writes down what happens until everything is done.
async fn follow(
    heard: &mut mpsc::UnboundedReceiver<Note>,
    log: &RefCell<Log>,
    caught: &RefCell<BTreeMap<PublicKey, Caught>>,
) -> Result<(), SimError> {
    let mut open = Round(0);
    while let Some(note) = heard.recv().await {
        let found = match &note {
            Note::Coordinator(Report::Rejected { worker, layer, .. }) => Some((*worker, *layer)),
            Note::Coordinator(Report::Convicted { worker, .. }) => Some((*worker, Layer::Replay)),
            Note::Coordinator(Report::RoundClosed { round, .. }) => {
                open = round.next();
                None
            }
            _ => None,
        };
        if let Some((worker, layer)) = found {
            caught.borrow_mut().entry(worker).or_insert(Caught { round: open, layer });
        }
        log.borrow_mut().write(&format!("{note:?}"));
        match note {
            Note::Coordinator(Report::Finished) => return Ok(()),
            Note::Fatal(error) => return Err(SimError::Broken(error)),
            _ => {}
        }
    }
    Err(SimError::Broken("everybody who could say anything is gone".to_owned()))
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

/// All verifiers, each on its machine.
fn panel(cast: &Cast, machines: Vec<Rc<Machine>>, compute: &Arc<Compute>, watch: &Watch, seed: Seed) -> swarm::Judge {
    let (compute, watch, behaviours) = (Arc::clone(compute), watch.clone(), cast.verifiers.clone());
    Box::new(move |coordinator| {
        let judge = |(index, ((_, behaviour), executor)): (usize, ((PublicKey, VerifierBehaviour), Rc<Machine>))| {
            let (compute, watch) = (Arc::clone(&compute), watch.clone());
            let key = verifier_key(&seed, index);
            let ports = VerifierPorts { compute, executor, watch, coordinator: coordinator.clone() };
            let verifier = Verifier::new(Audit::new(key.clone()), ports).start().recipient();
            Judge { key, behaviour, verifier }
        };
        let judges = behaviours.into_iter().zip(machines).enumerate().map(judge).collect();
        Panel { judges, coordinator: coordinator.clone(), turn: 0 }.start().recipient()
    })
}
