//! Claim: a coordinator on two cores, with its database on disk, serves thousands of connected workers. Measured are
//! whole cycles of signed requests (lease, commit, submit) and their latency, the memory of workers that wait, and blobs
//! against a plain server of the same file.
//!
//! `cargo bench --profile dev --config 'profile.dev.package.hydra.debug-assertions=false' --bench http [-- workers]`.
//! Clients sign and check on the same cores; what a deployment sees is better.

#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "a bench keeps time, and stops where it fails")]

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};
use hydra::compute::Compute;
use hydra::coordinator::{Record, State};
use hydra::http::{
    Admission, AdmissionRule, Client, Hub, LedgerAt, LedgerParts, Server, ServerConfig, ServerLimits, ServerParts,
    api::path,
};
use hydra::ledger::{EconomyConfig, LedgerConfig};
use hydra::model::{BurnEngine, DeviceChoice, Preset};
use hydra::protocol::limits::Rate;
use hydra::protocol::{
    Aggregation, Codec, DeviceKind, Digest, Emission, InnerOptimizer, Keypair, Lease, OuterOptimizer, Round, RunSpec,
    Schedule, Seed, Signed, Submission, Timing, Trail, WorkerReply, WorkerRequest,
};
use hydra::runtime::{Clock, SystemClock, Threads, Watch};
use hydra::store::{Archive, Blobs, Database, FolderBlobs, GroupCommit, History, LedgerStore, RunStore};
use hydra::swarm::{LedgerPlace, Swarm};
use hydra::verifier;

const TASKS: u32 = 4096;
const BLOB_BYTES: usize = 64 << 20;

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
    let workers: u32 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1000);
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
    }
}

fn bench(folder: &std::path::Path, workers: u32) -> Result<()> {
    let blobs = Arc::new(FolderBlobs::open(&folder.join("blobs"))?);
    let blob = blobs.put(&vec![7; BLOB_BYTES])?;
    let database = folder.join("hydra.db");
    let spec = spec(TASKS);
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
        let address = server.address();
        let file = blobs.file(&blob);
        let clients = std::thread::spawn(move || clients(address, workers, &blob, &file));
        while !clients.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.stop().await;
        clients.join().map_err(|_| "the clients failed")?
    })
}

fn clients(address: SocketAddr, workers: u32, blob: &Digest, file: &std::path::Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let before = resident();
    let everybody: Vec<Arc<Client>> = (0..workers)
        .map(|n| {
            let key = Keypair::from_secret(Seed::from_number(5).derive("worker", u64::from(n)).as_bytes());
            Ok(Arc::new(Client::new(&format!("http://{address}"), key, Arc::new(SystemClock), None)?))
        })
        .collect::<Result<_>>()?;
    let cycles = (TASKS / workers).max(1);
    // More workers than tasks: the rest only wait.
    let busy = workers.min(TASKS) as usize;
    let began = Instant::now();
    let mut latencies = runtime.block_on(async {
        let tasks: Vec<_> =
            everybody[..busy].iter().map(|client| tokio::spawn(work(Arc::clone(client), cycles))).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await??);
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(all)
    })?;
    let took = began.elapsed().as_secs_f64();
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{workers} workers: {:.0} cycles a second (3 signed requests each); a request takes {:.1} ms (median), {:.1} ms (p99)",
        f64::from(cycles) * busy as f64 / took,
        at(0.5),
        at(0.99),
    );

    let waiting = wait_for_work(&everybody, &runtime);
    let each = resident().saturating_sub(before) as f64 / waiting.len() as f64;
    println!(
        "{} workers wait for work: {each:.0} KiB each, with both ends of the connection and the client's TLS settings",
        waiting.len()
    );
    drop(waiting);

    let plain = plain_server(file)?;
    let (mut hydra, mut other) = (f64::MAX, f64::MAX);
    for _ in 0..5 {
        hydra = hydra.min(download(address, &format!("{}/{blob}", path::BLOBS))?);
        other = other.min(download(plain, "/")?);
    }
    let rate = |seconds: f64| BLOB_BYTES as f64 / 1e9 / seconds;
    println!(
        "blobs: {:.2} GB/s; a plain server of the same file {:.2} GB/s ({:.2}×)",
        rate(hydra),
        rate(other),
        other / hydra
    );
    Ok(())
}

async fn work(client: Arc<Client>, cycles: u32) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for _ in 0..cycles {
        let reply = ask(&client, path::LEASE, &WorkerRequest::Lease { tokens_per_second: 1 }, &mut latencies).await?;
        let WorkerReply::Leased(lease) = reply else { return Err(format!("{reply:?}").into()) };
        let Lease { task, .. } = *lease;
        let payload = Digest::of(task.id().0.as_bytes());
        let states = task.segments().map(|_| payload).collect();
        let trail = Trail { device: DeviceKind::Ndarray, states };
        let submission = Submission::new(task.id(), payload, vec![1.0; 30], trail, task.tokens());
        ask(&client, path::COMMIT, &WorkerRequest::Commit(submission.commitment), &mut latencies).await?;
        ask(&client, path::SUBMIT, &WorkerRequest::Submit(submission), &mut latencies).await?;
    }
    Ok(latencies)
}

async fn ask(
    client: &Client,
    path: &str,
    request: &WorkerRequest,
    latencies: &mut Vec<Duration>,
) -> Result<WorkerReply> {
    let request = Signed::seal(client.key(), request);
    loop {
        let began = Instant::now();
        match client.post(path, &request).await {
            Ok(reply) => {
                latencies.push(began.elapsed());
                return Ok(reply);
            }
            Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Has everybody ask for work of which there is none, and waits until all requests are held.
fn wait_for_work(everybody: &[Arc<Client>], runtime: &tokio::runtime::Runtime) -> Vec<tokio::task::JoinHandle<()>> {
    let waiting = everybody
        .iter()
        .map(|client| {
            let client = Arc::clone(client);
            runtime.spawn(async move {
                let request = Signed::seal(client.key(), &WorkerRequest::Lease { tokens_per_second: 1 });
                // Held for longer than anybody looks.
                let _ = client.post::<_, WorkerReply>(path::LEASE, &request).await;
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(3));
    waiting
}

/// Resident memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Seconds for a whole download.
fn download(address: SocketAddr, path: &str) -> Result<f64> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    // All at once: a server that closes with something unread resets the connection.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => total += read,
        }
    }
    if total < BLOB_BYTES {
        return Err(format!("{total} bytes came").into());
    }
    Ok(began.elapsed().as_secs_f64())
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
