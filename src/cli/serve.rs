use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use clap::Args;

use super::Failure;
use super::ledger_serve::DoorArgs;
use super::queries::{AnswerArgs, check_ledger};
use super::remote::RemoteLedger;
use super::run::{stop_signals, system};
use crate::http::{Hub, QueryPorts, RemoteBlobs, RemoteQueryLedger, RemoteRun, Server, ServingNews, Throttle};
use crate::runtime::{Clock, SystemClock, raise_open_files};
use crate::store::{Blobs, StateDir};

/// The name of the key that a server calls coordinator and ledger with.
const KEY: &str = "server";

/// Answer queries to the newest model of a run on another computer, for HYD
///
/// Follows the coordinator: each new base model is fetched and answers what is asked from then on. For queries that are
/// paid, the ledger must have been started with this server's public key (`--server-key KEY`), which is shown here. While
/// the coordinator is away, the last model goes on answering.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where the coordinator is: http://host:port or https://host:port
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// Where the ledger is, if it is a process of its own (`hydra ledger serve`) [default: with the coordinator]
    #[arg(long, value_name = "URL")]
    ledger: Option<String>,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7720")]
    listen: SocketAddr,
    /// Print the public key and do nothing else
    #[arg(long)]
    show_key: bool,
    /// Certificates to trust besides the well-known ones when calling coordinator and ledger, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Where the key, API keys and the model are kept [default: a folder in the platform's data directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    door: DoorArgs,
}

pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let folder = match &args.state_dir {
        Some(folder) => folder.clone(),
        None => super::state_dir(None)?.join("serve"),
    };
    if args.show_key {
        println!("{}", super::public_key(&folder, KEY)?);
        return Ok(());
    }
    let folder = StateDir::open(&folder)?;
    let key = folder.key(KEY)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let client = |url: &str| super::client(url, key.clone(), &clock, args.tls_ca.as_deref());
    let (coordinator, paid) = (client(&args.coordinator)?, args.ledger.as_deref().unwrap_or(&args.coordinator));
    // Each query that is being answered is a connection.
    raise_open_files();
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}; choose another --listen", args.listen))?;
    eprintln!("  server      {}", key.public());
    eprintln!("  coordinator {}", coordinator.base());
    eprintln!("  state       {}", folder.path().display());
    eprintln!("  listening   {}://{}", args.door.scheme(), listener.local_addr()?);
    let parts = args.answers.open(folder.path())?;
    if args.answers.is_paid() {
        // With connections of its own: they end with its runtime.
        check_ledger(&RemoteLedger::new(client(paid)?)?, key.public());
    }
    // Transfers have a thread of their own, which outlives those that wait for them.
    let network = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let blobs = Arc::new(RemoteBlobs::open(
        client(&args.coordinator)?,
        network.handle().clone(),
        &StateDir::blobs(folder.path()),
        Arc::clone(&clock),
        Throttle::new(None),
        Throttle::new(None),
    )?);
    let file = folder.path().join("newest.json");
    let ports = QueryPorts {
        run: Arc::new(RemoteRun::open(coordinator, Arc::clone(&blobs), &file, teller())?),
        blobs: Arc::clone(&blobs) as Arc<dyn Blobs>,
        ledger: Arc::new(RemoteQueryLedger::new(client(paid)?, Arc::clone(&clock))),
    };
    let result = system().block_on(async {
        let hub = Arc::new(Hub::default());
        let server = Server::start_queries(listener, parts, ports, clock, hub, args.door.config())?;
        stop_signals()?.recv().await;
        server.stop().await;
        Ok(())
    });
    blobs.stop();
    network.shutdown_background();
    result
}

/// Tells people which model answers, and what is wrong, once each time.
fn teller() -> impl Fn(ServingNews<'_>) + Send + Sync {
    let trouble: Mutex<Option<String>> = Mutex::default();
    move |news| {
        let mut trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match news {
            ServingNews::Answers(newest) => {
                let (round, digest, parameters) = (newest.round.0, newest.digest.short(), newest.model.parameters());
                let parameters = parameters as f64 / 1e6;
                eprintln!("  round {round:>5}  the model {digest} answers ({parameters:.1} M parameters)");
            }
            ServingNews::CannotAnswer(newest, problem) => {
                let (round, digest) = (newest.round.0, newest.digest.short());
                eprintln!("  round {round:>5}  the model {digest} cannot answer: {problem}; trying again");
            }
            ServingNews::Trouble(error) => {
                let problem = error.to_string();
                if trouble.as_ref() != Some(&problem) {
                    eprintln!("  {problem}; trying again");
                }
                *trouble = Some(problem);
            }
            ServingNews::Reached => {
                if trouble.take().is_some() {
                    eprintln!("  the coordinator answers again");
                }
            }
        }
    }
}
