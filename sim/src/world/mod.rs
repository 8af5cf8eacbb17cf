//! A swarm in one process: everybody in it, the machines that they run on, and the lines between them.

mod living;
mod queries;
mod strikes;
mod watching;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::Actor;
use hydra::compute::{Compute, ComputeError};
use hydra::coordinator::{Coordinator, Record};
use hydra::data;
use hydra::ledger::{EconomyConfig, LedgerActor, LedgerConfig};
use hydra::model::{BurnEngine, DeviceChoice};
use hydra::protocol::{Keypair, PublicKey, Round, RunSpec, Seed, below};
use hydra::runtime::{Note, Threads, Watch};
use hydra::store::Blobs;
use hydra::training::{Engine, Layout, Params};
use hydra::verifier::Verifier;
use hydra::worker::Worker;
use tokio::sync::mpsc;

use crate::behaviour::{Neighbours, Overheard, Tamper};
use crate::disk::{Folder, Journal, KeptResult, Records};
use crate::laws::Laws;
use crate::network::{Door, Front, Line, Link, Place, Standing};
use crate::outcome::Struck;
use crate::panel::{Judge, Panel};
use crate::process::{Process, WorldBlobs};
use crate::prose;
use crate::queries::Till;
use crate::scenario::{Objective, Store};
use crate::simulation::{EPOCH, EngineOf, Log, PATIENCE, SimError, virtual_now};
use crate::surrogate::Surrogate;
use crate::{Behaviour, Device, Scenario, Trouble, VerifierBehaviour};
pub(crate) use watching::{News, Telling};

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
    skew: Arc<AtomicI64>,
    group: usize,
    process: Process<Worker>,
}

pub(crate) struct World {
    scenario: Scenario,
    spec: RunSpec,
    number: u64,
    pub cast: Cast,
    pub log: Rc<RefCell<Log>>,
    news: mpsc::UnboundedSender<News>,
    watch: Watch,
    threads: Rc<Threads>,
    blobs: Arc<WorldBlobs>,
    central: Arc<Compute>,
    records: Records,
    pub journal: Journal,
    pub laws: Laws,
    /// Where customers pay, if there are any.
    pub till: Option<Till>,
    front: Rc<Front>,
    payer: Rc<Place<hydra::ledger::Ask>>,
    judges: Vec<(u64, Rc<Place<hydra::verifier::Event>>)>,
    doors: Doors,
    coordinator: Process<Coordinator>,
    ledger: Process<LedgerActor>,
    verifiers: Vec<Process<Verifier>>,
    /// How it stands with the verifiers' machines.
    desks: Vec<Arc<Standing>>,
    workers: Vec<Node>,
    /// How long the coordinator stays away when it dies of a torn write.
    restart: Cell<Duration>,
    pub struck: RefCell<Vec<Struck>>,
    /// Those of them that wait for the coordinator's next write.
    tears: RefCell<Vec<usize>>,
    rounds_begun: Cell<u64>,
    /// When the last of them began, virtual seconds.
    round_since: Cell<f64>,
}

/// Addresses that stay.
struct Doors {
    coordinator: actix::Recipient<hydra::coordinator::Event<hydra::coordinator::ReplyTo>>,
    ledger: actix::Recipient<hydra::ledger::Ask>,
    panel: actix::Recipient<hydra::verifier::Event>,
}

impl World {
    #[expect(clippy::too_many_lines, reason = "one thing after the other, each used by those after it")]
    pub fn new(
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
        let vesting_rewards = scenario.economy.vesting_rewards;
        let economy = EconomyConfig { audit, vesting_rewards, ..EconomyConfig::emitting(spec.emission) }.check()?;
        let trusted: BTreeSet<PublicKey> = cast.verifiers.iter().map(|(key, _)| *key).collect();
        let config = LedgerConfig { economy, verifiers: trusted.clone() };
        let laws = Laws::new(&spec, trusted, Arc::clone(&blobs) as Arc<dyn Blobs>, &config);
        let on_disk = scenario.job.store == Store::Sqlite;
        let folder = (on_disk || !scenario.queries.is_empty()).then(Folder::new).transpose()?.map(Rc::new);
        let database = folder.as_ref().filter(|_| on_disk);
        let journal = Journal::new(config, database, laws.clone());
        let first = Record::RoundOpened { round: Round(0), base, momentum: None, at: EPOCH };
        let records = Records::new(database, &spec, &[first], laws.clone()).map_err(SimError::Disk)?;
        let customers = scenario.queries.iter().flat_map(|queries| scenario.of_group(&queries.group));
        let wallets = customers.map(|index| worker_key(&spec.seed, index).public()).collect();
        let till = folder.filter(|_| !scenario.queries.is_empty()).map(|folder| Till::new(folder, wallets)).transpose();
        let till = till.map_err(|error| SimError::Disk(error.to_string()))?;

        let log = Rc::new(RefCell::new(Log::default()));
        let overheard = Overheard::default();
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
            let damaged = scenario.faults.iter().any(|fault| fault.what == Trouble::CorruptBlob && fault.hits(group));
            for _ in 0..group.count {
                let index = workers.len();
                // A cheat keeps things of its own; the honest share what they have read, unless it may arrive damaged.
                let compute = if group.behaviour.is_honest() && !damaged {
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
                    overheard: Rc::clone(&overheard),
                    neighbours: Neighbours::new(spec.clone()),
                };
                let kept = KeptResult::default();
                let line = Line {
                    worker: index,
                    key: key.public(),
                    network: scenario.network,
                    standing: Arc::clone(&standing),
                    kept: kept.clone(),
                };
                let link = Link::new(line, &links, Rc::clone(&front), tamper, Rc::clone(&log), laws.clone());
                let skew = group.clock_skew_seconds * 1000;
                workers.push(Node {
                    key,
                    compute,
                    standing,
                    link: link.start().recipient(),
                    kept,
                    tokens_per_second: group.tokens_per_second.draw(&mut rng),
                    upload: passage(payload, group.upload_kbps),
                    download: passage(model, group.download_kbps),
                    skew: Arc::new(AtomicI64::new(below(&mut rng, 2 * skew + 1) as i64 - skew as i64)),
                    group: place,
                    process: Process::default(),
                });
            }
        }
        let verifiers: Vec<_> = cast.verifiers.iter().map(|_| Process::default()).collect();
        let desks = verifiers.iter().map(|_| Arc::default()).collect();
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
            laws,
            till,
            front,
            payer,
            judges,
            doors,
            coordinator: Process::default(),
            ledger: Process::default(),
            verifiers,
            desks,
            workers,
            restart: Cell::new(living::RESTART),
            struck: RefCell::default(),
            tears: RefCell::default(),
            rounds_begun: Cell::new(0),
            round_since: Cell::new(0.0),
            spec,
        })
    }
}

pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(PATIENCE)
}

async fn sleep_until(at_seconds: f64) {
    let at = EPOCH + seconds(at_seconds);
    tokio::time::sleep(at.since(virtual_now())).await;
}

/// Who takes part, and how they behave, in the order of the scenario.
pub(crate) struct Cast {
    pub workers: Vec<(PublicKey, Behaviour)>,
    pub verifiers: Vec<(PublicKey, VerifierBehaviour)>,
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
