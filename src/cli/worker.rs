use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Actor;
use anyhow::{Context, anyhow};
use clap::Args;
use tokio::sync::mpsc;

use super::owner::{self, Allowance, Control, Owner, Schedule};
use super::progress::TaskBar;
use super::{Failure, device};
use crate::compute::Compute;
use crate::http::{Client, Courier, News, RemoteBlobs, Throttle, api};
use crate::model::BurnEngine;
use crate::protocol::{Seed, WorkerReply, limits};
use crate::runtime::{Clock, Executor, Note, SystemClock, Threads, entropy};
use crate::store::{Blobs, ResultFile, StateDir};
use crate::worker::{self, Labour, Worker, WorkerPorts};

/// How often the bar of the task is drawn anew.
const LOOK: Duration = Duration::from_millis(500);

/// Train for a coordinator on another computer, and earn tokens
///
/// Makes outbound HTTP connections only. Stop it whenever you like: finished work is kept and handed in the next time.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct WorkerArgs {
    #[command(subcommand)]
    control: Option<Control>,
    /// Where the coordinator is: http://host:port or https://host:port
    #[arg(long, value_name = "URL", required = true)]
    coordinator: Option<String>,
    /// An invite token, where the coordinator wants one
    #[arg(long, value_name = "TOKEN")]
    invite: Option<String>,
    /// How many processor cores to use [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    cpus: Option<u16>,
    /// Percent of the time to compute; in between, the processor rests [default: 100]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    cpu_percent: Option<u8>,
    /// Memory that training may use: 2GiB, 500MiB. Tasks that need more are given back [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    memory: Option<u64>,
    /// Compute only between these times of day, in UTC: 22:00-07:00
    #[arg(long, value_name = "FROM-UNTIL")]
    schedule: Option<Schedule>,
    /// Compute only while other programs leave the processor alone (Linux)
    #[arg(long)]
    idle_only: bool,
    /// Compute on battery too (that it runs on battery is noticed on Linux only)
    #[arg(long)]
    on_battery: bool,
    /// Most kilobytes a second to send
    #[arg(long, value_name = "KB", value_parser = clap::value_parser!(u32).range(1..))]
    up_kbps: Option<u32>,
    /// Most kilobytes a second to receive
    #[arg(long, value_name = "KB", value_parser = clap::value_parser!(u32).range(1..))]
    down_kbps: Option<u32>,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Where the key and unfinished work are kept [default: a folder in the platform's data directory]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// What to compute on: a name from `hydra device list`; auto takes the fastest
    #[arg(long, default_value = "auto")]
    device: String,
}

/// Bytes from a number and a binary unit.
fn memory_size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "MiB" | "M" => 1u64 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return Err("a size looks like 2GiB or 500MiB".to_owned()),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("{number:?} is not a number"))?;
    let bytes = number * unit as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err("that is no size".to_owned()) }
}

/// What the command hears while its worker works.
enum Heard {
    Note(Note),
    Reached,
    Trouble(String),
    Finished(&'static str),
}

pub(super) fn run(args: &WorkerArgs) -> Result<(), Failure> {
    let folder = match &args.state_dir {
        Some(folder) => folder.clone(),
        None => super::state_dir(None)?.join("worker"),
    };
    if let Some(control) = &args.control {
        return owner::control(&folder, control);
    }
    let coordinator = args.coordinator.as_ref().context("--coordinator is missing")?;
    let device = device(&args.device)?;
    let folder = StateDir::open(&folder)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let client = super::client(coordinator, folder.key("worker")?, &clock, args.tls_ca.as_deref())?;
    eprintln!("  worker      {}", client.key().public());
    eprintln!("  coordinator {}", client.base());
    eprintln!("  state       {}", folder.path().display());

    // Transfers have a thread of their own, which outlives those that wait for them.
    let network = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let rate = |kilobytes: Option<u32>| Throttle::new(kilobytes.map(|kilobytes| u64::from(kilobytes) * 1000));
    let blobs = Arc::new(RemoteBlobs::open(
        Arc::clone(&client),
        network.handle().clone(),
        &StateDir::blobs(folder.path()),
        Arc::clone(&clock),
        rate(args.up_kbps),
        rate(args.down_kbps),
    )?);
    let compute = Arc::new(Compute::new(
        Arc::new(BurnEngine::new(device).within(args.memory)),
        Arc::clone(&blobs) as Arc<dyn Blobs>,
    ));
    let cores = args.cpus.map_or_else(super::cores, usize::from);
    let executor: Rc<dyn Executor> = Rc::new(Threads::new(cores, 1)?);
    let results = ResultFile::new(folder.path().join("result"));
    let left = results.load();

    let mut random = [0; 8];
    entropy(&mut random).context("the operating system gives no random numbers")?;
    let seed = Seed::from_number(u64::from_le_bytes(random));
    let (tell, mut heard) = mpsc::unbounded_channel();
    let allowance = Allowance {
        cpu_percent: args.cpu_percent,
        schedule: args.schedule,
        idle_only: args.idle_only,
        on_battery: args.on_battery,
    };
    let owner = Arc::new(Owner::new(allowance, client.key().public(), client.base()));
    let (watch, mut notes) = super::run::listen({
        let owner = Arc::clone(&owner);
        move |note| match note {
            Note::Step { .. } => owner.after_step(),
            Note::TaskFailed { error, .. } => owner.failed(error),
            _ => {}
        }
    });
    let system = super::run::system();
    let result: Result<(), Failure> = system.block_on(async {
        let mut stops = super::run::stop_signals()?;
        owner::listen(folder.path(), Arc::clone(&owner))?;
        tokio::select! {
            biased;
            _ = stops.recv() => return Ok(()),
            begun = begin(&client, args.invite.as_deref(), folder.path()) => begun?,
        }
        let news = listener(Arc::clone(&owner), tell);
        let looker = Arc::clone(&owner);
        let courier = Courier::new(Arc::clone(&client), seed.derive("courier", 0), news);
        let ports = WorkerPorts {
            clock,
            compute,
            executor,
            coordinator: courier.start().recipient(),
            results: Box::new(results),
            watch,
        };
        let worker = Worker::new(Labour::new(&seed), client.key().clone(), ports).with_left(left).start();
        let ended = follow(&looker, &mut stops, &mut notes, &mut heard).await;
        // An error says that it has stopped already.
        let _ = worker.send(worker::Event::Stop).await;
        owner.stop();
        blobs.stop();
        ended
    });
    drop(system);
    network.shutdown_background();
    result
}

/// Tells owner and command what comes from the coordinator.
fn listener(owner: Arc<Owner>, tell: mpsc::UnboundedSender<Heard>) -> impl Fn(News<'_>) -> bool + Send + Sync {
    move |news| {
        let heard = match news {
            News::MayAsk if owner.is_finishing() => Heard::Finished("the last task is handed in"),
            News::MayAsk => return owner.may_ask(),
            News::Answer(reply) => {
                owner.answered(reply);
                if *reply == WorkerReply::Finished { Heard::Finished("the run is over") } else { Heard::Reached }
            }
            News::Trouble(error) => {
                owner.trouble(error.to_string());
                Heard::Trouble(error.to_string())
            }
        };
        let go_on = !owner.is_finishing();
        // Nobody hears it any more when the command is over.
        let _ = tell.send(heard);
        go_on
    }
}

/// Waits until the worker may take part, and tells people what in.
async fn begin(client: &Client, invite: Option<&str>, folder: &Path) -> Result<(), Failure> {
    register(client, invite).await?;
    introduce(client, folder).await;
    Ok(())
}

/// Tells people what they take part in, and what they can do.
async fn introduce(client: &Client, folder: &Path) {
    // Whoever cannot be asked now is asked for work in a moment, and says then what is wrong.
    if let Ok(status) = client.get::<api::Status>(api::path::STATUS).await {
        let loss = status.loss.map_or_else(String::new, |loss| format!(", validation loss {loss:.4}"));
        let parameters = status.parameters as f64 / 1e6;
        eprintln!(
            "  run         {}: {parameters:.1} M parameters, round {}{loss}, {} there lately",
            status.run.0.short(),
            status.round.0,
            if status.workers_seen > 1 { format!("{} workers", status.workers_seen) } else { "one worker".to_owned() }
        );
    }
    let (url, folder) = (client.base(), folder.display());
    eprintln!("  earns       hydra wallet balance --wallet worker --coordinator {url} --state-dir {folder}");
    eprintln!("  controls    hydra worker pause, resume, finish or status; hydra top; Ctrl-C loses nothing\n");
}

/// Tells people what happens, until the work is over or somebody stops it.
async fn follow(
    owner: &Owner,
    stops: &mut mpsc::Receiver<()>,
    notes: &mut mpsc::UnboundedReceiver<Note>,
    heard: &mut mpsc::UnboundedReceiver<Heard>,
) -> Result<(), Failure> {
    let bar = TaskBar::new();
    let mut look = tokio::time::interval(LOOK);
    let mut trouble: Option<String> = None;
    loop {
        let event = tokio::select! {
            biased;
            _ = stops.recv() => return Ok(()),
            note = notes.recv() => note.map(Heard::Note),
            event = heard.recv() => event,
            _ = look.tick() => {
                bar.show(&owner.status());
                continue;
            }
        };
        match event {
            None => return Err(anyhow!("the worker has stopped").into()),
            Some(Heard::Finished(why)) => {
                bar.say(&format!("  {why}"));
                return Ok(());
            }
            Some(Heard::Note(Note::Fatal(error))) => return Err(anyhow!(error).into()),
            Some(Heard::Note(Note::TaskFailed { error, .. })) => bar.say(&format!("  a task failed: {error}")),
            Some(Heard::Note(_)) => {}
            Some(Heard::Reached) => {
                if trouble.take().is_some() {
                    bar.say("  the coordinator answers again");
                }
            }
            Some(Heard::Trouble(problem)) => {
                if trouble.as_ref() != Some(&problem) {
                    bar.say(&format!("  {problem}; trying again"));
                }
                trouble = Some(problem);
            }
        }
    }
}

/// Waits for the coordinator and asks to be admitted.
async fn register(client: &Client, invite: Option<&str>) -> Result<(), Failure> {
    let mut said = None;
    loop {
        let body = api::Register { invite: invite.map(str::to_owned) };
        match client.post::<_, api::Done>(api::path::REGISTER, &body).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_passing() || error.code() == Some("clock_skew") => {
                let problem = error.to_string();
                if said.as_ref() != Some(&problem) {
                    eprintln!("  {problem}; trying again");
                }
                said = Some(problem);
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(limits::REGISTER_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_binary_unit() {
        assert_eq!(memory_size("2GiB"), Ok(2 << 30));
        assert_eq!(memory_size("1.5G"), Ok(3 << 29));
        assert_eq!(memory_size("500MiB"), Ok(500 << 20));
        for wrong in ["", "2", "2GB", "GiB", "-1G", "NaNG", "1e300G", "0M", "2 kilo"] {
            assert!(memory_size(wrong).is_err(), "{wrong}");
        }
    }
}
