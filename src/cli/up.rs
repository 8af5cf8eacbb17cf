use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::Failure;
use super::page::{self, PageArgs};
use super::progress::Progress;
use super::queries::QueryArgs;
use super::run::{self, NewRun, OnStop, OpenRun, RunOptions};
use crate::coordinator::Inspect;
use crate::http::{
    Admission, AdmissionRule, Hub, LedgerAt, LedgerParts, QueryParts, Server, ServerConfig, ServerParts,
};
use crate::ledger::{Economy, LedgerConfig};
use crate::protocol::{Auditors, Keypair, PublicKey, Timing, limits};
use crate::runtime::{Executor, SystemClock, Threads};
use crate::store::{Archive, FolderBlobs, History, LedgerStore, StateDir};
use crate::swarm::{Member, Running};
use crate::worker;

/// Run all of Hydra in this process: coordinator, ledger, verifier and workers
///
/// Trains until the rounds asked for are done, or until Ctrl-C, which finishes the round first. Run it again on the
/// same state directory and it goes on where it stopped. A page for browsers shows the run while it goes on; whoever sees
/// it can change nothing.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    #[command(flatten)]
    options: RunOptions,
    /// How many workers train side by side [default: one a core, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::LOCAL_WORKERS_MAX)))]
    workers: Option<u32>,
    /// Compute part of the work again, as where workers are not trusted [default: they are, they are this process]
    #[arg(long)]
    audits: bool,
    /// Where to serve the page for browsers [default: 127.0.0.1:8787, or another port where that is taken]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    queries: QueryArgs,
}

pub(super) fn run(args: &UpArgs) -> Result<(), Failure> {
    let options = &args.options;
    let wanted = args.workers.unwrap_or_else(default_workers);
    let auditors = args.audits.then_some(Auditors::Verifiers);
    let run = options.open(&NewRun { tasks: wanted, short: None, timing: Timing::default(), auditors }, wanted)?;
    if args.audits && run.state.spec().audits.is_none() {
        return Err(run::conflict("--audits", "no audits"));
    }
    let workers = args.workers.unwrap_or_else(|| default_workers().min(run.state.spec().tasks_per_round));
    let keys: Vec<Keypair> =
        (1..=workers).map(|number| run.folder.key(&format!("worker-{number}"))).collect::<Result<_, _>>()?;
    let executor: Rc<dyn Executor> = Rc::new(Threads::new(super::cores(), keys.len())?);
    let compute = run.compute.clone();

    let front = Front::open(args, &run)?;
    if let Some(front) = &front {
        let what = if args.page.no_page { "queries  " } else { "page     " };
        eprintln!("  {what}   http://{}/", front.listener.local_addr()?);
    }
    run::describe(&run, &format!("{workers} workers"));
    let mut progress = Progress::new(run.state.spec(), run.end);
    progress.header();
    let hub = Arc::new(Hub::default());
    hub.begin(&run.state);
    let (watch, mut heard) = run::listen({
        let hub = Arc::clone(&hub);
        move |note| hub.see(note)
    });
    let (swarm, began) = run.into_swarm(Rc::clone(&executor), watch, BTreeSet::new(), None)?;
    let economy = swarm.economy;
    let system = run::system();
    let result: Result<_, Failure> = system.block_on(async {
        let member = |key| Member { key, compute: compute.clone(), executor: Rc::clone(&executor) };
        let running = swarm.start(keys.into_iter().map(member).collect(), |_, coordinator| coordinator)?;
        let server = front.map(|front| front.serve(&running, economy, hub)).transpose()?;
        let done = run::watch_until_done(&running.coordinator, &mut heard, &mut progress, OnStop::FinishRound).await;
        if let Some(server) = server {
            server.stop().await;
        }
        done?;
        for worker in &running.workers {
            worker.do_send(worker::Event::Stop);
        }
        Ok(running.coordinator.send(Inspect).await.context("the coordinator stopped")?)
    });
    progress.finish();
    // The threads end with the last of their users; nothing that they still do is waited for by anybody.
    drop(system);
    run::report(options, &began, &*result?, None)
}

fn default_workers() -> u32 {
    u32::try_from(super::cores()).unwrap_or(1).clamp(1, 4)
}

/// What the page is made of besides the run at work.
struct Front {
    listener: TcpListener,
    config: ServerConfig,
    state: PathBuf,
    blobs: Arc<FolderBlobs>,
    verifier: PublicKey,
    ledger: PublicKey,
    queries: Option<QueryParts>,
    history: History,
}

impl Front {
    /// Opens a port, unless nothing is to be served. Before anything is trained, so that what cannot be is said at once.
    fn open(args: &UpArgs, run: &OpenRun) -> Result<Option<Self>, Failure> {
        if args.page.no_page && !args.queries.is_on() {
            return Ok(None);
        }
        let state = run.folder.path().to_owned();
        let verifier = run.verifier.public();
        let config = ServerConfig {
            verifiers: [verifier].into(),
            read_only: true,
            no_page: args.page.no_page,
            reports: args.page.reports.clone(),
            ..ServerConfig::default()
        };
        Ok(Some(Self {
            listener: page::listen(args.listen)?,
            config,
            blobs: Arc::clone(&run.blobs),
            verifier,
            ledger: run.folder.key("ledger")?.public(),
            queries: args.queries.open(&state)?,
            history: page::history(&state)?,
            state,
        }))
    }

    /// Serves it.
    fn serve(self, running: &Running, economy: Economy, hub: Arc<Hub>) -> Result<Server, Failure> {
        let actor = running.ledger.clone().context("the ledger is not in this process")?;
        let archive = Arc::new(Archive::open(LedgerStore::read_only(&StateDir::database(&self.state))?)?);
        let config = LedgerConfig { economy, verifiers: [self.verifier].into() };
        let parts = ServerParts {
            coordinator: running.coordinator.clone(),
            ledger: LedgerAt::Here(LedgerParts { actor, archive, config, key: self.ledger }),
            desk: None,
            blobs: self.blobs,
            uploads: self.state.join("uploads"),
            dataset: BTreeSet::new(),
            // Nobody: the workers are in this process.
            admission: Admission::open(AdmissionRule::Listed, &self.state.join("admission.json"), [])?,
            queries: self.queries,
            query_ledger: None,
            history: self.history,
            clock: Arc::new(SystemClock),
            hub,
        };
        Ok(Server::start(self.listener, parts, self.config)?)
    }
}
