//! Claim: a coordinator on two cores, with its database on disk, serves thousands of connected workers. Measured are
//! whole cycles (lease, commit, submit) and their latency, the processor time of coordinator and clients apart, the
//! coordinator's memory for workers that wait, and blobs against a plain server of the same file.
//!
//! `cargo bench --profile dev --config 'profile.dev.package.hydra.debug-assertions=false' --bench http [-- workers]`.
//! The clients are a process of their own on the same cores, as lean as they can be: what they take is told too, and a
//! deployment has it elsewhere.

#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "a bench keeps time, and stops where it fails")]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use hydra::compute::Compute;
use hydra::coordinator::{Record, State};
use hydra::http::{
    Admission, AdmissionRule, Hub, LedgerAt, LedgerParts, Server, ServerConfig, ServerLimits, ServerParts,
};
use hydra::ledger::{EconomyConfig, LedgerConfig};
use hydra::model::{BurnEngine, DeviceChoice, Preset};
use hydra::protocol::limits::Rate;
use hydra::protocol::{
    Aggregation, Codec, Digest, Emission, InnerOptimizer, Keypair, OuterOptimizer, Round, RunSpec, Schedule, Seed,
    Timing,
};
use hydra::runtime::{Clock, SystemClock, Threads, Watch, raise_open_files};
use hydra::store::{Archive, Blobs, Database, FolderBlobs, GroupCommit, History, LedgerStore, RunStore};
use hydra::swarm::{LedgerPlace, Swarm};
use hydra::verifier;

/// Cycles in all: some seconds. More tasks than a round may have, so that it need not be closed meanwhile.
const CYCLES: u32 = 40_000;
/// What makes this program the clients' process: the server's address, a plain server's, the workers, their cycles, the blob.
const CLIENTS: &str = "HYDRA_BENCH_CLIENTS";
const BLOB_BYTES: usize = 64 << 20;

mod clients;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Never judges, so that a round never ends.
struct Nobody;

impl Actor for Nobody {
    type Context = Context<Self>;
}

impl Handler<verifier::Event> for Nobody {
    type Result = ();

    fn handle(&mut self, _: verifier::Event, _: &mut Self::Context) {}
}

fn main() -> Result<()> {
    if let Ok(arguments) = std::env::var(CLIENTS) {
        return clients::run(&arguments.split(' ').collect::<Vec<_>>());
    }
    let workers: u32 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1000);
    raise_open_files();
    let folder = std::env::temp_dir().join(format!("hydra-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = bench(&folder, workers);
    std::fs::remove_dir_all(&folder)?;
    result
}

fn spec(tasks_per_round: u32) -> RunSpec {
    RunSpec {
        seed: Seed::from_number(1),
        model: Preset::Nano.recipe().model,
        dataset: Digest::of(b"dataset"),
        tasks_per_round,
        inner_steps: 30,
        batch: 12,
        optimizer: InnerOptimizer::muon(),
        schedule: Schedule::new(3e-3, None),
        codec: Codec::Ternary,
        aggregation: Aggregation::MEAN,
        outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
        validation_windows: 8,
        emission: Emission::default(),
        timing: Timing {
            lease: Duration::from_hours(1),
            round: Duration::from_hours(10),
            appeal: Duration::from_hours(1),
        },
        audits: None,
        short: None,
    }
}

fn bench(folder: &std::path::Path, workers: u32) -> Result<()> {
    let blobs = Arc::new(FolderBlobs::open(&folder.join("blobs"))?);
    let blob = blobs.put(&vec![7; BLOB_BYTES])?;
    let database = folder.join("hydra.db");
    let cycles = (CYCLES / workers).max(1);
    let spec = spec(workers * cycles);
    let records = [Record::RoundOpened { round: Round(0), base: blob, momentum: None, at: SystemClock.now() }];
    let mut store = RunStore::new(Database::open(&database)?);
    store.create(&spec, &records)?;
    let engine = Arc::new(BurnEngine::new(DeviceChoice::NdArray));
    let compute = Arc::new(Compute::new(engine, Arc::clone(&blobs) as Arc<dyn Blobs>));

    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event queue")
    });
    system.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let journal = LedgerStore::new(Database::open(&database)?)?;
        let ledger_key = Keypair::from_secret(&[2; 32]);
        let key = ledger_key.public();
        let journal = GroupCommit::start(journal, LedgerStore::read_only(&database)?, ledger_key)?;
        let economy = EconomyConfig::default().check()?;
        let swarm = Swarm {
            secrets: None,
            state: State::replay(spec, records),
            end: None,
            verifier: Keypair::from_secret(&[1; 32]),
            others: BTreeSet::new(),
            judge: Some(Box::new(|_| Nobody.start().recipient())),
            records: Box::new(store),
            economy,
            ledger: LedgerPlace::Here(Box::new(journal)),
            clock: Arc::clone(&clock),
            compute,
            executor: std::rc::Rc::new(Threads::new(1, 1)?),
            watch: Watch::new(|_| ()),
        };
        let running = swarm.start(vec![], |_, coordinator| coordinator)?;
        let ledger = LedgerParts {
            actor: running.ledger.ok_or("the ledger is elsewhere")?,
            archive: Arc::new(Archive::open(LedgerStore::read_only(&database)?)?),
            config: LedgerConfig { economy, verifiers: [].into() },
            key,
        };
        let parts = ServerParts {
            coordinator: running.coordinator.clone(),
            ledger: LedgerAt::Here(ledger),
            desk: None,
            blobs: Arc::clone(&blobs),
            uploads: folder.join("uploads"),
            dataset: BTreeSet::from([blob]),
            admission: Admission::open(AdmissionRule::Open, &folder.join("admission.json"), [])?,
            queries: None,
            query_ledger: None,
            history: History::open(&database)?.ok_or("there is no run")?,
            clock,
            hub: Arc::new(Hub::default()),
        };
        let plenty = Rate { per_second: 1_000_000, burst: 1_000_000 };
        let limits = ServerLimits {
            per_key: plenty,
            per_address: plenty,
            connections_per_address: 20_000,
            ..Default::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = Server::start(listener, parts, ServerConfig { limits, ..Default::default() })?;
        let plain = plain_server(&blobs.file(&blob))?;
        let arguments = format!("{} {plain} {workers} {cycles} {blob}", server.address());
        let watch = std::thread::spawn(move || watch(&arguments, workers, cycles));
        while !watch.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.stop().await;
        watch.join().map_err(|_| "the clients failed")?
    })
}

/// Starts the clients and tells what they and the coordinator took.
fn watch(arguments: &str, workers: u32, cycles: u32) -> Result<()> {
    let bare = resident();
    let mut clients = Command::new(std::env::current_exe()?);
    let mut clients = clients.env(CLIENTS, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut orders = clients.stdin.take().ok_or("no pipe")?;
    let mut told = BufReader::new(clients.stdout.take().ok_or("no pipe")?).lines();
    let mut next = || told.next().ok_or("the clients died")?.map_err(|error| error.to_string());
    next()?;
    let (before, processor) = (resident(), processor_time("self"));
    let theirs = processor_time(&clients.id().to_string());
    writeln!(orders, "work")?;
    let [took, median, p99, tries]: [f64; 4] = numbers(&next()?)?;
    let each = |time: f64| time * 1e6 / f64::from(workers * cycles);
    println!(
        "{workers} workers: {:.0} cycles a second (3 requests each); a request takes {median:.1} ms (median), {p99:.1} ms (p99); {tries} were to come back later",
        f64::from(workers * cycles) / took,
    );
    println!(
        "processor time of a cycle: coordinator {:.0} µs, clients {:.0} µs",
        each(processor_time("self") - processor),
        each(processor_time(&clients.id().to_string()) - theirs),
    );
    let worked = resident();
    writeln!(orders, "wait")?;
    next()?;
    let each = |more: u64, less: u64| more.saturating_sub(less) as f64 / f64::from(workers);
    println!(
        "memory of the coordinator, KiB a worker: {:.1} connected, with a pass; {:.1} more while it waits for work; {:.1} for each of its cycles",
        each(before, bare),
        each(resident(), worked),
        each(worked, before) / f64::from(cycles),
    );
    writeln!(orders, "download")?;
    let [hydra, other]: [f64; 2] = numbers(&next()?)?;
    let rate = |seconds: f64| BLOB_BYTES as f64 / 1e9 / seconds;
    println!(
        "blobs: {:.2} GB/s; a plain server of the same file {:.2} GB/s ({:.2}×)",
        rate(hydra),
        rate(other),
        other / hydra
    );
    clients.wait()?;
    Ok(())
}

fn numbers<const N: usize>(line: &str) -> Result<[f64; N]> {
    let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
    numbers.try_into().map_err(|_| format!("the clients said {line}").into())
}

/// Seconds of processor time that a process has taken, its kernel's share included.
fn processor_time(process: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// Resident memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// As little as a server of one file can be: a thread that reads and writes.
fn plain_server(file: &std::path::Path) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, file) = (listener.local_addr()?, file.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that fails fails the bench.
            let _ = serve_plain(stream, &file);
        }
    });
    Ok(address)
}

fn serve_plain(mut stream: TcpStream, file: &std::path::Path) -> std::io::Result<()> {
    let mut head = [0; 1024];
    let _ = stream.read(&mut head)?;
    let mut file = std::fs::File::open(file)?;
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", file.metadata()?.len())?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}
