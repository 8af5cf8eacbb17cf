use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Recipient, SystemRunner};
use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};

use super::Failure;
use super::ledger_serve::FrontArgs;
use super::page::{self, PageArgs};
use super::progress::Progress;
use super::queries::{QueryArgs, check_ledger};
use super::remote::RemoteLedger;
use super::run::{self, Ended, NewRun, OnStop, OpenRun, RunOptions};
use crate::coordinator::Inspect;
use crate::http::api::ledger::Books;
use crate::http::{
    Admission, AdmissionRule, ClientError, Desk, Hub, LedgerAt, LedgerCourier, LedgerParts, QueryLedger,
    RemoteQueryLedger, Server, ServerConfig, ServerParts,
};
use crate::ledger::{Ask, LedgerConfig};
use crate::protocol::{Auditors, PublicKey, Seed, ShortTasks, Timing, limits};
use crate::runtime::{Clock, Executor, Note, Stopwatch, SystemClock, Threads, Watch, entropy, raise_open_files};
use crate::store::{Archive, Blobs, LedgerStore, StateDir};
use crate::swarm::Judge;
use crate::training::Manifest;

/// How long workers have to hear that the run is over, before the server goes away.
const FAREWELL: Duration = Duration::from_secs(10);

/// Hand out tasks to workers on other computers: coordinator, ledger and verifier in this process
///
/// Serves until the rounds asked for are done, or until Ctrl-C or SIGTERM. Run it again on the same state directory and
/// it goes on where it stopped; workers wait for it meanwhile. With --ledger, rounds are paid by a ledger in a process of
/// its own, which must be told of this coordinator's key and of its verifiers' (--show-keys).
#[derive(Debug, Args)]
pub(super) struct CoordinatorArgs {
    #[command(flatten)]
    options: RunOptions,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Tasks in a round: about as many as there are workers [default: 4, or the run's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::TASKS_PER_ROUND_MAX)))]
    tasks: Option<u32>,
    /// How many of a round's tasks have a quarter of the steps, for slow computers [default: none, or the run's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::TASKS_PER_ROUND_MAX)))]
    short_tasks: Option<u32>,
    /// Computers that need longer than this for a whole task are lent short ones
    #[arg(long, value_name = "TIME", default_value = "1m", requires = "short_tasks", value_parser = humantime::parse_duration)]
    task_target: Duration,
    /// How long a worker keeps a task of which nothing is heard [default: 3m, or the run's]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lease_time: Option<Duration>,
    /// When a round closes as soon as more than half of its tasks are done; what comes later counts for less [default: 30m,
    /// or the run's]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    round_time: Option<Duration>,
    /// Who may take part
    #[arg(long, value_enum, default_value = "open")]
    admission: AdmissionName,
    /// Public keys that may take part where not everybody may
    #[arg(long, value_name = "KEY", num_args = 1..)]
    allow: Vec<PublicKey>,
    /// The public key that may operate this coordinator from outside [default: nobody]
    #[arg(long, value_name = "KEY")]
    admin: Option<PublicKey>,
    /// Public keys of verifiers on other computers, which then do all the verifying [default: verify here]
    #[arg(long, value_name = "KEY", num_args = 1..)]
    verifier: Vec<PublicKey>,
    /// Who computes part of the work again [default: verifiers]
    #[arg(long, value_enum)]
    audits: Option<AuditsName>,
    /// Where the ledger is, if it is a process of its own (`hydra ledger serve`) [default: in this process]
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
    /// Certificates to trust besides the well-known ones when calling the ledger, a PEM file
    #[arg(long, value_name = "FILE", requires = "ledger")]
    tls_ca: Option<PathBuf>,
    /// Print the public keys of this coordinator and its verifier, and do nothing else
    #[arg(long)]
    show_keys: bool,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    queries: QueryArgs,
    #[command(flatten)]
    front: FrontArgs,
}

/// The name of the key that a coordinator calls its ledger with.
const KEY: &str = "coordinator";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AdmissionName {
    /// Everybody
    Open,
    /// Keys given by --allow or by the operator
    Listed,
    /// Those, and whoever has an invite token
    Invited,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AuditsName {
    /// Verifiers, and this process where none are named
    Verifiers,
    /// Other workers, who do not know it: a quorum of two or more, where nobody is trusted to compute
    Peers,
    /// Nobody: whoever may take part is trusted
    None,
}

impl From<AuditsName> for Option<Auditors> {
    fn from(name: AuditsName) -> Self {
        match name {
            AuditsName::Verifiers => Some(Auditors::Verifiers),
            AuditsName::Peers => Some(Auditors::Peers),
            AuditsName::None => None,
        }
    }
}

impl From<AdmissionName> for AdmissionRule {
    fn from(name: AdmissionName) -> Self {
        match name {
            AdmissionName::Open => Self::Open,
            AdmissionName::Listed => Self::Listed,
            AdmissionName::Invited => Self::Invited,
        }
    }
}

/// A courier to the ledger elsewhere, at work in `system`; and that ledger for the report at the end.
fn courier(
    url: &str,
    args: &CoordinatorArgs,
    run: &OpenRun,
    watch: &Watch,
    system: &SystemRunner,
) -> Result<(Recipient<Ask>, RemoteLedger), Failure> {
    if LedgerStore::read_only(&StateDir::database(run.folder.path()))?.head_until(u64::MAX)?.is_some() {
        return Err(anyhow!("the ledger of this run is in its state directory; go on without --ledger").into());
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let key = run.folder.key(KEY)?;
    let client = || super::client(url, key.clone(), &clock, args.tls_ca.as_deref());
    let mut random = [0; 8];
    entropy(&mut random).context("the operating system gives no random numbers")?;
    let seed = Seed::from_number(u64::from_le_bytes(random));
    let tell = {
        let watch = watch.clone();
        move |error: Option<&ClientError>| match error {
            // A clock is set right; nothing else that is refused will be taken later.
            Some(error) if !error.is_passing() && error.code() != Some("clock_skew") => watch.fatal(error),
            error => watch.note(Note::Ledger { trouble: error.map(ToString::to_string) }),
        }
    };
    // With connections of its own: those of the courier end with the system.
    let remote = RemoteLedger::new(client()?)?;
    match remote.books_now()? {
        Some(books) => {
            let own = [run.verifier.public()];
            let verifiers = if args.verifier.is_empty() { &own[..] } else { &args.verifier };
            fits(&books, run, key.public(), verifiers)?;
        }
        None => eprintln!("  ledger      {url} cannot be reached; rounds are paid when it can"),
    }
    if args.queries.is_paid() {
        check_ledger(&remote, key.public());
    }
    let carrying = client()?;
    let courier = system.block_on(async { LedgerCourier::new(carrying, seed, tell).start() });
    Ok((courier.recipient(), remote))
}

/// Refuses a ledger that would not pay for this run, before anybody works for it.
fn fits(books: &Books, run: &OpenRun, coordinator: PublicKey, verifiers: &[PublicKey]) -> Result<(), Failure> {
    if books.emission != run.state.spec().emission {
        return Err(anyhow!("that ledger's rounds emit something else than this run's").into());
    }
    if !books.payers.contains(&coordinator) {
        return Err(anyhow!("that ledger does not know this coordinator: start it with --payer {coordinator}").into());
    }
    match verifiers.iter().find(|verifier| !books.verifiers.contains(verifier)) {
        Some(unknown) => {
            Err(anyhow!("that ledger does not know a verifier of this run: start it with --verifier {unknown}").into())
        }
        None => Ok(()),
    }
}

fn show_keys(args: &CoordinatorArgs) -> Result<(), Failure> {
    let folder = super::state_dir(args.options.state_dir.as_deref())?;
    for name in [KEY, "verifier"] {
        println!("{}  {name}", super::public_key(&folder, name)?);
    }
    Ok(())
}

/// The run that is there, or a new one. Refuses flags that ask for something else than is there.
fn open(args: &CoordinatorArgs) -> Result<OpenRun, Failure> {
    let usual = Timing::default();
    let new = NewRun {
        tasks: args.tasks.unwrap_or(4),
        short: args.short_tasks.map(|tasks| ShortTasks { tasks, target: args.task_target }),
        timing: Timing {
            lease: args.lease_time.unwrap_or(usual.lease),
            round: args.round_time.unwrap_or(usual.round),
            ..usual
        },
        auditors: args.audits.unwrap_or(AuditsName::Verifiers).into(),
    };
    let run = args.options.open(&new, 0)?;
    let there = run.state.spec();
    let by = there.audits.map(|audits| audits.by);
    let differing = [
        ("--audits", args.audits.is_some() && new.auditors != by, "other audits"),
        ("--short-tasks or --task-target", new.short.is_some() && new.short != there.short, "tasks of other sizes"),
        ("--lease-time", args.lease_time.is_some_and(|time| time != there.timing.lease), "leases of another length"),
        ("--round-time", args.round_time.is_some_and(|time| time != there.timing.round), "rounds of another length"),
    ];
    match differing.into_iter().find(|(_, differs, _)| *differs) {
        Some((flag, _, is)) => Err(run::conflict(flag, is)),
        None => Ok(run),
    }
}

pub(super) fn run(args: &CoordinatorArgs) -> Result<(), Failure> {
    if args.show_keys {
        return show_keys(args);
    }
    let options = &args.options;
    // Each worker has a connection or two.
    raise_open_files();
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}; choose another --listen", args.listen))?;
    let run = open(args)?;
    let (blobs, spec) = (Arc::clone(&run.blobs), run.state.spec().clone());
    let manifest = Manifest::decode(&blobs.get(&spec.dataset)?)?;
    let mut dataset: BTreeSet<_> = manifest.shards().collect();
    dataset.insert(spec.dataset);
    let state = run.folder.path().to_owned();
    let admission = Admission::open(args.admission.into(), &state.join("admission.json"), args.allow.iter().copied())?;
    let executor: Rc<dyn Executor> = Rc::new(Threads::with_service(super::cores(), 1)?);

    let address = listener.local_addr()?;
    run::describe(&run, &format!("workers at {}://{address}", args.front.scheme()));
    let mut progress = Progress::new(&spec, run.end);
    progress.header();
    let hub = Arc::new(Hub::default());
    hub.begin(&run.state);
    let (watch, mut heard) = run::listen({
        let hub = Arc::clone(&hub);
        move |note| hub.see(note)
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let others: BTreeSet<PublicKey> = args.verifier.iter().copied().collect();
    let mut config = ServerConfig {
        admin: args.admin,
        verifiers: others.clone(),
        no_page: args.page.no_page,
        reports: args.page.reports.clone(),
        ..args.front.config()
    };
    config.verifiers.insert(run.verifier.public());
    let system = run::system();
    let (payer, elsewhere) = match &args.ledger {
        Some(url) => courier(url, args, &run, &watch, &system).map(|(payer, ledger)| (Some(payer), Some(ledger)))?,
        None => (None, None),
    };
    let queries = args.queries.open(run.folder.path())?;
    let query_ledger = match &args.ledger {
        Some(url) if queries.is_some() => {
            let client = super::client(url, run.folder.key(KEY)?, &clock, args.tls_ca.as_deref())?;
            Some(Arc::new(RemoteQueryLedger::new(client, Arc::clone(&clock))) as Arc<dyn QueryLedger>)
        }
        _ => None,
    };
    let history = page::history(run.folder.path())?;
    let ledger_key = run.folder.key("ledger")?.public();
    let (mut swarm, began) = run.into_swarm(executor, watch, others.clone(), payer)?;
    let books = LedgerConfig { economy: swarm.economy, verifiers: config.verifiers.clone() };

    let result: Result<_, Failure> = system.block_on(async {
        let desk = (!others.is_empty()).then(|| Desk::new(Arc::clone(&clock)).start());
        swarm.judge = desk.clone().map(|desk| Box::new(move |_| desk.recipient()) as Judge);
        let running = swarm.start(vec![], |_, coordinator| coordinator)?;
        let ledger = match (running.ledger, &args.ledger) {
            (Some(actor), _) => {
                let archive = Arc::new(Archive::open(LedgerStore::read_only(&StateDir::database(&state))?)?);
                LedgerAt::Here(LedgerParts { actor, archive, config: books, key: ledger_key })
            }
            (None, url) => LedgerAt::Elsewhere(url.clone().unwrap_or_default()),
        };
        let parts = ServerParts {
            coordinator: running.coordinator.clone(),
            ledger,
            desk,
            blobs,
            uploads: state.join("uploads"),
            dataset,
            admission,
            queries,
            query_ledger,
            history,
            clock: Arc::clone(&clock),
            hub: Arc::clone(&hub),
        };
        let server = Server::start(listener, parts, config)?;
        let done = run::watch_until_done(&running.coordinator, &mut heard, &mut progress, OnStop::StopAtOnce).await;
        if matches!(done, Ok(Ended::Finished)) {
            let watch = Stopwatch::start();
            while !hub.all_told(clock.now()) && watch.elapsed() < FAREWELL {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        server.stop().await;
        done?;
        Ok(running.coordinator.send(Inspect).await.context("the coordinator stopped")?)
    });
    progress.finish();
    drop(system);
    run::report(options, &began, &*result?, elsewhere.as_ref())
}
