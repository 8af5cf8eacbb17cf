use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Actor;
use anyhow::Context;
use clap::{Args, ValueEnum};

use super::Failure;
use super::progress::Progress;
use super::run::{self, Ended, OnStop, RunOptions};
use crate::coordinator::Inspect;
use crate::http::{Admission, AdmissionRule, Desk, Hub, Server, ServerConfig, ServerLimits, ServerParts, TlsFiles};
use crate::protocol::{PublicKey, limits};
use crate::runtime::{Clock, Executor, Stopwatch, SystemClock, Threads, raise_open_files};
use crate::store::Blobs;
use crate::training::Manifest;

/// How long workers have to hear that the run is over, before the server goes away.
const FAREWELL: Duration = Duration::from_secs(10);

/// Hand out tasks to workers on other computers: coordinator, ledger and verifier in this process
///
/// Serves until the rounds asked for are done, or until Ctrl-C or SIGTERM. Run it again on the same state directory and
/// it goes on where it stopped; workers wait for it meanwhile.
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
    /// Certificate chain for HTTPS, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key for HTTPS, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// A reverse proxy stands before this coordinator: believe its X-Forwarded-For
    #[arg(long)]
    behind_proxy: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AdmissionName {
    /// Everybody
    Open,
    /// Keys given by --allow or by the operator
    Listed,
    /// Those, and whoever has an invite token
    Invited,
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

pub(super) fn run(args: &CoordinatorArgs) -> Result<(), Failure> {
    let options = &args.options;
    // Each worker has a connection or two.
    raise_open_files();
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}; choose another --listen", args.listen))?;
    let run = options.open(args.tasks.unwrap_or(4), 0)?;
    let (blobs, spec) = (Arc::clone(&run.blobs), run.state.spec().clone());
    let manifest = Manifest::decode(&blobs.get(&spec.dataset)?)?;
    let mut dataset: BTreeSet<_> = manifest.shards().collect();
    dataset.insert(spec.dataset);
    let state = run.folder.path().to_owned();
    let admission = Admission::open(args.admission.into(), &state.join("admission.json"), args.allow.iter().copied())?;
    let executor: Rc<dyn Executor> = Rc::new(Threads::new(super::cores(), 1)?);

    let address = listener.local_addr()?;
    let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
    run::describe(&run, &format!("workers at {scheme}://{address}"));
    let mut progress = Progress::new(&spec, run.end);
    progress.header();
    let hub = Arc::new(Hub::default());
    let (watch, mut heard) = run::listen({
        let hub = Arc::clone(&hub);
        move |note| hub.see(note)
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let others: BTreeSet<PublicKey> = args.verifier.iter().copied().collect();
    let mut config = ServerConfig {
        admin: args.admin,
        verifiers: others.clone(),
        tls: args.tls_cert.clone().zip(args.tls_key.clone()).map(|(certificate, key)| TlsFiles { certificate, key }),
        behind_proxy: args.behind_proxy,
        limits: ServerLimits::default(),
    };
    config.verifiers.insert(run.verifier.public());
    let (mut swarm, began) = run.into_swarm(executor, watch, others.clone())?;

    let system = run::system();
    let result: Result<_, Failure> = system.block_on(async {
        let desk = (!others.is_empty()).then(|| Desk::new(Arc::clone(&clock)).start());
        swarm.judge = desk.clone().map(actix::Addr::recipient);
        let running = swarm.start(vec![], |_, coordinator| coordinator)?;
        let parts = ServerParts {
            coordinator: running.coordinator.clone(),
            desk,
            blobs,
            uploads: state.join("uploads"),
            dataset,
            admission,
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
    run::report(options, &began, &*result?)
}
