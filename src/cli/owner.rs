//! What the owner of a volunteer's computer allows, and says while a worker runs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::protocol::{PublicKey, TaskId, Time, WorkerReply};
use crate::runtime::{Clock, Stopwatch, SystemClock};

/// How often a held worker looks whether it may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How often the machine is asked about its battery and its load.
const ASK_MACHINE: Duration = Duration::from_secs(2);

/// Other programs' share of all cores from which on the machine counts as in use.
const IN_USE: f64 = 0.2;

/// Talk to the worker that runs on a state directory.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Control {
    /// Stop computing, keep what is begun
    Pause,
    /// Go on
    Resume,
    /// Finish the task under way, hand it in, and end
    Finish,
    /// Say what it does, and why
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// What a worker does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkerStatus {
    /// One of `starting`, `waiting`, `training`, `handing_in`, `paused`, `finished`.
    pub state: String,
    /// Why it is so.
    pub why: String,
    /// Whose work it is.
    pub key: PublicKey,
    pub coordinator: String,
    /// The task under way.
    pub task: Option<TaskId>,
    /// Inner steps of it that are done.
    pub steps: u64,
    pub of_steps: u64,
    /// Results that the coordinator has received since this worker started.
    pub handed_in: u64,
    /// What last went wrong between it and the coordinator, while it is still wrong.
    pub trouble: Option<String>,
    /// Why its last task could not be done, until another is.
    pub failed: Option<String>,
    /// Whether it ends after the task under way.
    pub finishing: bool,
}

/// When and how much a worker may compute.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance {
    /// Percent of the time.
    pub cpu_percent: Option<u8>,
    pub schedule: Option<Schedule>,
    pub idle_only: bool,
    pub on_battery: bool,
}

/// Hours of the day in UTC, from the first to before the second; over midnight where the first is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    from: u64,
    until: u64,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let minute = |text: &str| {
            let (hours, minutes) = text.trim().split_once(':')?;
            let (hours, minutes): (u64, u64) = (hours.parse().ok()?, minutes.parse().ok()?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let ends = text.split_once('-').and_then(|(from, until)| Some((minute(from)?, minute(until)?)));
        match ends {
            Some((from, until)) if from != until => Ok(Self { from, until }),
            _ => Err("a schedule looks like 22:00-07:00".to_owned()),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, until } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02} UTC", from / 60, from % 60, until / 60, until % 60)
    }
}

impl Schedule {
    fn allows(self, now: Time) -> bool {
        let minute = now.0 / 60_000 % (24 * 60);
        if self.from < self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }
}

/// What the owner allows and has said, and what the worker does: shared by all threads of its process.
#[derive(Debug)]
pub(super) struct Owner {
    allowance: Allowance,
    said: Mutex<Said>,
    status: Mutex<WorkerStatus>,
    machine: Mutex<Machine>,
    step: Mutex<Option<Stopwatch>>,
}

#[derive(Debug, Default)]
struct Said {
    paused: bool,
    finishing: bool,
    stopped: bool,
}

/// What the machine last said of itself.
#[derive(Debug, Default)]
struct Machine {
    asked: Option<Stopwatch>,
    cpu: Option<CpuTimes>,
    hold: Option<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Owner {
    pub fn new(allowance: Allowance, key: PublicKey, coordinator: &str) -> Self {
        let status = WorkerStatus {
            state: "starting".to_owned(),
            why: String::new(),
            key,
            coordinator: coordinator.to_owned(),
            task: None,
            steps: 0,
            of_steps: 0,
            handed_in: 0,
            trouble: None,
            failed: None,
            finishing: false,
        };
        Self {
            allowance,
            said: Mutex::default(),
            status: Mutex::new(status),
            machine: Mutex::default(),
            step: Mutex::default(),
        }
    }

    /// Why nothing is to be computed now, if so.
    pub fn hold(&self) -> Option<String> {
        if lock(&self.said).paused {
            return Some("its owner paused it".to_owned());
        }
        if let Some(schedule) = self.allowance.schedule
            && !schedule.allows(SystemClock.now())
        {
            return Some(format!("it works {schedule}"));
        }
        self.machine().map(str::to_owned)
    }

    fn machine(&self) -> Option<&'static str> {
        let mut machine = lock(&self.machine);
        if machine.asked.is_some_and(|asked| asked.elapsed() < ASK_MACHINE) {
            return machine.hold;
        }
        machine.asked = Some(Stopwatch::start());
        machine.hold = if !self.allowance.on_battery && on_battery(Path::new("/sys/class/power_supply")) {
            Some("the machine runs on battery")
        } else if self.allowance.idle_only {
            let now = CpuTimes::read();
            let busy = now.zip(machine.cpu).is_some_and(|(now, before)| now.others_since(before) > IN_USE);
            machine.cpu = now;
            busy.then_some("the machine is in use")
        } else {
            None
        };
        machine.hold
    }

    /// Called after each step, on the thread that computes: keeps it there as long as it may not go on.
    pub fn after_step(&self) {
        {
            let mut status = lock(&self.status);
            status.steps += 1;
        }
        let worked = lock(&self.step).map(|watch| watch.elapsed());
        if let (Some(percent), Some(worked)) = (self.allowance.cpu_percent, worked) {
            let percent = u32::from(percent.clamp(1, 100));
            std::thread::sleep(worked * (100 - percent) / percent);
        }
        while !lock(&self.said).stopped && self.hold().is_some() {
            std::thread::sleep(LOOK_AGAIN);
        }
        *lock(&self.step) = Some(Stopwatch::start());
    }

    /// Whether another task may be asked for.
    pub fn may_ask(&self) -> bool {
        !self.is_finishing() && self.hold().is_none()
    }

    pub fn is_finishing(&self) -> bool {
        lock(&self.said).finishing
    }

    /// Lets go of a thread that is held.
    pub fn stop(&self) {
        lock(&self.said).stopped = true;
    }

    /// Follows what the coordinator answers.
    pub fn answered(&self, reply: &WorkerReply) {
        let mut status = lock(&self.status);
        status.trouble = None;
        let state = match reply {
            WorkerReply::Leased(lease) => {
                status.task = Some(lease.task.id());
                (status.steps, status.of_steps) = (0, u64::from(lease.task.inner_steps));
                *lock(&self.step) = Some(Stopwatch::start());
                "training"
            }
            WorkerReply::Committed(_) => "handing_in",
            WorkerReply::Received(task) if status.task == Some(*task) && status.state == "handing_in" => {
                status.handed_in += 1;
                (status.task, status.failed) = (None, None);
                "waiting"
            }
            WorkerReply::Wait | WorkerReply::Received(_) | WorkerReply::Refused { .. } => "waiting",
            WorkerReply::Finished => "finished",
        };
        state.clone_into(&mut status.state);
    }

    /// The task under way could not be done, and is given back.
    pub fn failed(&self, why: &str) {
        let mut status = lock(&self.status);
        status.failed = Some(why.to_owned());
        if status.state == "training" {
            status.task = None;
            "waiting".clone_into(&mut status.state);
        }
    }

    pub fn trouble(&self, problem: String) {
        lock(&self.status).trouble = Some(problem);
    }

    pub fn status(&self) -> WorkerStatus {
        let mut status = lock(&self.status).clone();
        status.finishing = self.is_finishing();
        let why = match status.state.as_str() {
            "training" if status.steps == 0 => "it fetches or begins its task",
            "training" => "it computes its task",
            "handing_in" => "its result goes to the coordinator",
            "finished" => "the run is over",
            "starting" => "it looks for the coordinator",
            _ if status.failed.is_some() => "it gave its last task back, and asks again after a while",
            _ => "the coordinator has no task for it now",
        };
        why.clone_into(&mut status.why);
        if let Some(hold) = self.hold() {
            "paused".clone_into(&mut status.state);
            status.why = hold;
        }
        status
    }

    fn control(&self, command: &str) -> Result<WorkerStatus, String> {
        {
            let mut said = lock(&self.said);
            match command {
                "pause" => said.paused = true,
                "resume" => said.paused = false,
                "finish" => (said.finishing, said.paused) = (true, false),
                "status" => {}
                other => return Err(format!("there is no command {other}")),
            }
        }
        Ok(self.status())
    }
}

/// Whether a power supply of the mains is there and none gives power. Only Linux tells; elsewhere the answer is no.
fn on_battery(supplies: &Path) -> bool {
    let Ok(entries) = fs::read_dir(supplies) else { return false };
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mains: Vec<bool> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| read(path.join("type")) == "Mains")
        .map(|path| read(path.join("online")) == "1")
        .collect();
    !mains.is_empty() && !mains.contains(&true)
}

/// Time that processors have spent, in ticks: all, idle, and for this process.
#[derive(Debug, Clone, Copy)]
struct CpuTimes {
    all: u64,
    idle: u64,
    mine: u64,
}

impl CpuTimes {
    /// Only Linux tells.
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(machine: &str, process: &str) -> Option<Self> {
        let first = machine.lines().next()?.strip_prefix("cpu")?;
        let ticks: Vec<u64> = first.split_whitespace().map_while(|ticks| ticks.parse().ok()).collect();
        // The name of the program may hold anything, but no closing parenthesis follows it.
        let mut fields = process.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mine = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        // Guest time is counted in user time already.
        Some(Self { all: ticks.iter().take(8).sum(), idle: ticks.get(3)? + ticks.get(4)?, mine })
    }

    /// The share of all processors' time that others have used since `before`.
    fn others_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1) as f64;
        let busy = all - self.idle.saturating_sub(before.idle) as f64;
        (busy - self.mine.saturating_sub(before.mine) as f64) / all
    }
}

#[cfg(unix)]
mod socket {
    use std::fs;
    use std::io::{BufRead, Read, Write};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use anyhow::{Context, anyhow};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::Owner;
    use crate::protocol::limits;

    /// How long a worker may take to answer: it does so between two steps of its thread at once.
    const ANSWER_WITHIN: Duration = Duration::from_secs(5);

    fn path(state: &Path) -> PathBuf {
        state.join("worker.sock")
    }

    /// Listens for the owner's commands. The state directory's lock says that nobody else does.
    pub fn listen(state: &Path, owner: Arc<Owner>) -> anyhow::Result<()> {
        let path = path(state);
        // Left behind by a process that was killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        actix::spawn(serve(listener, owner));
        Ok(())
    }

    /// Answers commands: one line each, the answer one line of JSON.
    async fn serve(listener: UnixListener, owner: Arc<Owner>) {
        while let Ok((stream, _)) = listener.accept().await {
            let owner = Arc::clone(&owner);
            actix::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let mut line = String::new();
                let mut reader = BufReader::new(reader.take(limits::CONTROL_BYTES_MAX));
                if reader.read_line(&mut line).await.is_ok() {
                    let answer = match owner.control(line.trim()) {
                        Ok(status) => serde_json::to_string(&status).unwrap_or_default(),
                        Err(problem) => serde_json::json!({ "error": problem }).to_string(),
                    };
                    // Who asked may have gone away.
                    let _ = writer.write_all(format!("{answer}\n").as_bytes()).await;
                }
            });
        }
    }

    /// Says a command to the worker that runs on `state`: its answer.
    pub fn say(state: &Path, command: &str) -> anyhow::Result<String> {
        let nobody = || anyhow!("no worker runs on {}; start one, or name another --state-dir", state.display());
        let mut stream = std::os::unix::net::UnixStream::connect(path(state)).map_err(|_| nobody())?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).context("the worker's socket")?;
        writeln!(stream, "{command}")?;
        let mut line = String::new();
        std::io::BufReader::new(stream.take(limits::CONTROL_ANSWER_BYTES_MAX)).read_line(&mut line)?;
        Ok(line)
    }
}

#[cfg(not(unix))]
mod socket {
    use std::path::Path;
    use std::sync::Arc;

    use super::Owner;

    pub fn listen(_: &Path, _: Arc<Owner>) -> anyhow::Result<()> {
        Ok(())
    }

    pub fn say(_: &Path, _: &str) -> anyhow::Result<String> {
        Err(anyhow::anyhow!("a running worker takes commands on Unix systems only"))
    }
}

pub(super) use socket::listen;

/// Says a command to the worker that runs on `state`: what it does then.
pub(super) fn ask(state: &Path, command: &str) -> anyhow::Result<WorkerStatus> {
    let line = socket::say(state, command)?;
    serde_json::from_str(&line).map_err(|error| anyhow!("the worker's answer is not understood: {error}"))
}

/// Says something to the worker that runs on `state`.
pub(super) fn control(state: &Path, control: &Control) -> Result<(), Failure> {
    let (command, json) = match control {
        Control::Pause => ("pause", false),
        Control::Resume => ("resume", false),
        Control::Finish => ("finish", false),
        Control::Status { json } => ("status", *json),
    };
    let status = ask(state, command)?;
    if json {
        println!("{}", serde_json::to_string(&status)?);
        return Ok(());
    }
    println!("  {}: {}", status.state, status.why);
    if status.of_steps > 0 && status.task.is_some() {
        println!("  step {} of {}", status.steps, status.of_steps);
    }
    println!("  {} results handed in to {} as {}", status.handed_in, status.coordinator, status.key.short());
    if status.finishing {
        println!("  it ends after this task");
    }
    for problem in [status.failed, status.trouble].into_iter().flatten() {
        println!("  {problem}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_may_go_over_midnight() {
        let at = |hours: u64, minutes: u64| Time((hours * 60 + minutes) * 60_000 + 7 * 86_400_000);
        let night: Schedule = "22:00-07:30".parse().unwrap();
        assert!(night.allows(at(22, 0)) && night.allows(at(0, 0)) && night.allows(at(7, 29)));
        assert!(!night.allows(at(7, 30)) && !night.allows(at(21, 59)));
        let day: Schedule = "9:00-17:00".parse().unwrap();
        assert!(day.allows(at(9, 0)) && !day.allows(at(17, 0)) && !day.allows(at(3, 0)));
        for wrong in ["", "9-17", "25:00-07:00", "09:00-09:00", "09:60-10:00", "x"] {
            assert!(wrong.parse::<Schedule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_battery_is_noticed_where_there_is_a_mains_supply_without_power() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!on_battery(folder.path()));
        let supply = |name: &str, kind: &str, online: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("type"), kind).unwrap();
            fs::write(path.join("online"), online).unwrap();
        };
        supply("BAT0", "Battery\n", "");
        assert!(!on_battery(folder.path()));
        supply("AC", "Mains\n", "0\n");
        assert!(on_battery(folder.path()));
        supply("AC", "Mains\n", "1\n");
        assert!(!on_battery(folder.path()));
    }

    #[test]
    fn other_programs_load_is_told_from_ones_own() {
        let process = |ticks: u64| format!("7 (a) b) R 1 1 1 0 -1 4 0 0 0 0 {ticks} 0 0 0 20 0");
        let before = CpuTimes::parse("cpu 100 0 0 1000 0 0 0 0 0 0\ncpu0", &process(50)).unwrap();
        let mine = CpuTimes::parse("cpu 200 0 0 1100 0 0 0 0 0 0\n", &process(150)).unwrap();
        assert!(mine.others_since(before).abs() < 1e-9);
        let theirs = CpuTimes::parse("cpu 200 0 0 1100 0 0 0 0 0 0\n", &process(50)).unwrap();
        assert!((theirs.others_since(before) - 0.5).abs() < 1e-9);
    }
}
