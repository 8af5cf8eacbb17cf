use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext};
use anyhow::{Context, anyhow};
use clap::Args;
use tokio::sync::mpsc;

use super::verdicts::VerifierCommand;
use super::{Failure, device};
use crate::compute::Compute;
use crate::http::api::path;
use crate::http::{GiveUpJob, JobCourier, RemoteBlobs, Throttle};
use crate::model::BurnEngine;
use crate::protocol::Seed;
use crate::runtime::{Clock, Executor, Note, SystemClock, Threads, entropy};
use crate::store::{Blobs, StateDir};
use crate::verifier::{Audit, Verifier, VerifierPorts};

/// The name of the key that verdicts are signed with.
const KEY: &str = "verifier";

/// Verify submissions for a coordinator on another computer
///
/// The coordinator must have been started with this verifier's public key (`--verifier KEY`), which is shown here.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct VerifierArgs {
    #[command(subcommand)]
    command: Option<VerifierCommand>,
    /// Where the coordinator is: http://host:port or https://host:port
    #[arg(long, value_name = "URL", required = true)]
    coordinator: Option<String>,
    /// Print the public key and do nothing else
    #[arg(long)]
    show_key: bool,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Where the key is kept [default: a folder in the platform's data directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What to compute on: a name from `hydra device list`; auto takes the fastest
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(super) fn run(args: &VerifierArgs) -> Result<(), Failure> {
    if let Some(VerifierCommand::Recheck(args)) = &args.command {
        return super::verdicts::run_recheck(args);
    }
    let coordinator = args.coordinator.as_ref().context("--coordinator is missing")?;
    let folder = match &args.state_dir {
        Some(folder) => folder.clone(),
        None => super::state_dir(None)?.join("verifier"),
    };
    if args.show_key {
        println!("{}", super::public_key(&folder, KEY)?);
        return Ok(());
    }
    let folder = StateDir::open(&folder)?;
    let key = folder.key(KEY)?;
    let device = device(&args.device)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let client = super::client(coordinator, key.clone(), &clock, args.tls_ca.as_deref())?;
    eprintln!("  verifier    {}", key.public());
    eprintln!("  coordinator {}", client.base());
    // Transfers have a thread of their own, which outlives those that wait for them.
    let network = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let blobs = Arc::new(RemoteBlobs::open(
        Arc::clone(&client),
        network.handle().clone(),
        &StateDir::blobs(folder.path()),
        clock,
        Throttle::new(None),
        Throttle::new(None),
    )?);
    let compute = Arc::new(Compute::new(Arc::new(BurnEngine::new(device)), Arc::clone(&blobs) as Arc<dyn Blobs>));
    let executor: Rc<dyn Executor> = Rc::new(Threads::with_service(super::cores(), 1)?);
    let mut random = [0; 8];
    entropy(&mut random).context("the operating system gives no random numbers")?;
    let seed = Seed::from_number(u64::from_le_bytes(random));

    let (tell, mut heard) = mpsc::unbounded_channel();
    let system = super::run::system();
    let result: Result<(), Failure> = system.block_on(async {
        let mut stops = super::run::stop_signals()?;
        // One for what is quick and one for what takes long, so that a replay holds up nobody's submission.
        let lane = |path: &'static str, number: u64| {
            let (watch, notes) = super::run::listen(|_| ());
            let courier = JobCourier::create(|ctx| {
                let (compute, executor) = (Arc::clone(&compute), Rc::clone(&executor));
                let ports = VerifierPorts { compute, executor, watch, coordinator: ctx.address().recipient() };
                let verifier = Verifier::new(Audit::new(key.clone()), ports).start().recipient();
                let tell = tell.clone();
                JobCourier::new(Arc::clone(&client), path, seed.derive("lane", number), verifier, move |error| {
                    // Nobody hears it any more when the command is over.
                    let _ = tell.send(error.map(ToString::to_string));
                })
            });
            (courier, notes)
        };
        let (checks, mut of_checks) = lane(path::CHECKS, 0);
        let (replays, mut of_replays) = lane(path::REPLAYS, 1);
        let mut trouble = None;
        loop {
            tokio::select! {
                biased;
                _ = stops.recv() => return Ok(()),
                note = of_checks.recv() => hear(note, &checks)?,
                note = of_replays.recv() => hear(note, &replays)?,
                news = heard.recv() => {
                    let problem = news.flatten();
                    match (&problem, &trouble) {
                        (Some(new), _) if problem != trouble => eprintln!("  {new}; trying again"),
                        (None, Some(_)) => eprintln!("  the coordinator answers again"),
                        _ => {}
                    }
                    trouble = problem;
                }
            }
        }
    });
    blobs.stop();
    drop(system);
    network.shutdown_background();
    result
}

/// What a lane's verifier tells. A job that cannot be done is left to somebody else, or to later.
fn hear(note: Option<Note>, courier: &Addr<JobCourier>) -> Result<(), Failure> {
    match note {
        Some(Note::CheckFailed { error }) => {
            eprintln!("  a check could not be done: {error}");
            courier.do_send(GiveUpJob);
            Ok(())
        }
        Some(Note::Fatal(error)) => Err(anyhow!(error).into()),
        Some(_) => Ok(()),
        None => Err(anyhow!("the verifier has stopped").into()),
    }
}
