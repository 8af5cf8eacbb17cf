//! Looks for what would keep a node from working, and says what to do about it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;

use super::Failure;
use super::config::Settings;
use crate::http::{Client, ClientError, api};
use crate::model::{DeviceChoice, memory};
use crate::protocol::{Keypair, limits};
use crate::runtime::{Clock, Stopwatch, SystemClock, entropy, free_disk};
use crate::store::{KeyFile, StateDir, StateDirError, replace_file};

/// A clock that is off by more is about to be refused, at [`limits::HTTP_CLOCK_SKEW`].
const CLOCK_GOOD: Duration = Duration::from_secs(20);

/// Check that this machine can take part: state directory, device, coordinator, clock
///
/// Takes the options of `hydra worker` from the same places, so that it looks at what a worker would use. Exit code 1
/// says that something would not work.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The coordinator to reach: http://host:port or https://host:port
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The state directory to look at [default: the worker's]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What to compute on
    #[arg(long, default_value = "auto")]
    device: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// What was looked at, what was found, and what to do about it.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    result: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, result: Grade::Ok, found: found.into(), remedy: None }
}

fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, result: Grade::Warn, found: found.into(), remedy: Some(remedy.into()) }
}

fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { result: Grade::Fail, ..warn(name, found, remedy) }
}

pub(super) fn run(args: &DoctorArgs, settings: &Settings) -> Result<(), Failure> {
    let folder = match &args.state_dir {
        Some(folder) => folder.clone(),
        None => super::state_dir(None)?.join("worker"),
    };
    // A file that cannot be used is refused before any command runs.
    let file = settings.file().map_or("no hydra.toml".to_owned(), |path| path.display().to_string());
    let mut checks = vec![ok("configuration", file), state(&folder), disk(&folder), device(&args.device)];
    let (key, key_check) = key(&folder);
    checks.push(key_check);
    match &args.coordinator {
        None => checks.push(warn("coordinator", "none was named", "name one with --coordinator URL")),
        Some(url) => {
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            let stranger = || {
                let mut secret = [0; 32];
                entropy(&mut secret).map(|()| Keypair::from_secret(&secret))
            };
            let known = key.is_some();
            let client = super::client(url, key.map_or_else(stranger, Ok)?, &clock, args.tls_ca.as_deref())?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            checks.extend(runtime.block_on(coordinator(&client, &*clock, known)));
        }
    }

    let well = checks.iter().all(|check| check.result != Grade::Fail);
    if args.json {
        println!("{}", serde_json::json!({ "ok": well, "checks": checks }));
    } else {
        for Check { name, result, found, remedy } in &checks {
            let grade = match result {
                Grade::Ok => "ok",
                Grade::Warn => "warn",
                Grade::Fail => "fail",
            };
            let remedy = remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
            println!("{grade:4}  {name:13}  {found}{remedy}");
        }
    }
    if well { Ok(()) } else { Err(anyhow!("something would keep a worker here from working").into()) }
}

fn state(folder: &Path) -> Check {
    let name = "state";
    let place = folder.display();
    match StateDir::open(folder) {
        Err(StateDirError::InUse(_)) => return ok(name, format!("{place} is in use by a running hydra")),
        Err(error) => return fail(name, error.to_string(), "choose another --state-dir, or make it yours"),
        Ok(_) => {}
    }
    let trial = folder.join("doctor");
    let written = replace_file(&trial, b"written by hydra doctor\n").and_then(|()| std::fs::remove_file(&trial));
    match written {
        Ok(()) => ok(name, format!("{place} can be written")),
        Err(error) => fail(name, format!("{place} cannot be written: {error}"), "choose another --state-dir"),
    }
}

fn disk(folder: &Path) -> Check {
    let name = "disk";
    match free_disk(folder) {
        None => warn(name, "the free space is not known", "see that there are some gigabytes"),
        Some(free) => {
            let found = format!("{:.1} GiB are free", free as f64 / f64::from(1 << 30));
            let remedy = "free some space, or choose another --state-dir";
            match free {
                free if free < limits::DISK_FREE_MIN => fail(name, found, remedy),
                free if free < limits::DISK_FREE_GOOD => warn(name, found, remedy),
                _ => ok(name, found),
            }
        }
    }
}

fn device(asked: &str) -> Check {
    let name = "device";
    match asked.parse::<DeviceChoice>() {
        Err(error) => fail(name, error.to_string(), "`hydra device list` shows what there is"),
        Ok(choice) => {
            let memory = memory::available().map_or("not known".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
            ok(name, format!("{choice} ({}), free memory: {memory}", choice.describe()))
        }
    }
}

fn key(folder: &Path) -> (Option<Keypair>, Check) {
    let name = "key";
    match StateDir::find_key(folder, "worker") {
        Ok(Some(KeyFile::Open(key))) => {
            let found = key.public().to_string();
            (Some(key), ok(name, found))
        }
        Ok(Some(KeyFile::Locked(_))) => {
            let found = "the worker's key is under a passphrase";
            (None, fail(name, found, "what runs by itself needs a key without one"))
        }
        Ok(None) => (None, ok(name, "none yet; a worker makes one when it first starts")),
        Err(error) => (None, fail(name, error.to_string(), "restore it from a copy")),
    }
}

/// All that a coordinator can be asked. `known` says that the client signs with the worker's own key.
async fn coordinator(client: &Client, clock: &dyn Clock, known: bool) -> Vec<Check> {
    let encrypted = client.base().starts_with("https:");
    let (watch, asked_at) = (Stopwatch::start(), clock.now());
    let hello = match client.hello().await {
        Ok(hello) => hello,
        Err(error) => return vec![unreachable(&error, encrypted)],
    };
    let trip = watch.elapsed();
    let mut checks = vec![ok("coordinator", format!("{} answers within {} ms", client.base(), trip.as_millis()))];

    checks.push(if encrypted {
        ok("tls", "the certificate is trusted")
    } else if is_here(client.base()) {
        ok("tls", "none, on this machine only")
    } else {
        warn("tls", "none: calls are signed, but anybody on the way can read them", "use https:// where it is offered")
    });

    // The server's time is that of the middle of the trip, give or take half of it.
    let middle = asked_at + trip / 2;
    let (ahead, behind) = (middle.since(hello.time), hello.time.since(middle));
    let (off, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let found = format!("{:.1} s {word} the coordinator's (± {:.1} s)", off.as_secs_f64(), trip.as_secs_f64() / 2.0);
    let remedy = "set it right, best with a time service (NTP)";
    checks.push(if off > limits::HTTP_CLOCK_SKEW {
        fail("clock", found, remedy)
    } else if off > CLOCK_GOOD + trip / 2 {
        warn("clock", found, remedy)
    } else {
        ok("clock", found)
    });

    let ours = env!("CARGO_PKG_VERSION");
    checks.push(if hello.version == ours {
        ok("version", format!("{ours}, as the coordinator's"))
    } else {
        let found = format!("{ours} here, {} there", hello.version);
        warn("version", found, "run the same version on both sides")
    });

    checks.push(match client.get::<api::Status>(api::path::STATUS).await {
        Ok(status) => {
            let millions = status.parameters as f64 / 1e6;
            ok("run", format!("round {}, {millions:.1} M parameters, {} workers", status.round.0, status.workers_seen))
        }
        Err(error) => fail("run", error.to_string(), "ask its operator"),
    });

    checks.push(admission(client, &hello.admission, known).await);
    checks
}

async fn admission(client: &Client, rule: &str, known: bool) -> Check {
    let name = "admission";
    if !known && rule != "open" {
        let remedy = "start the worker once, and give its key to the operator or --invite TOKEN to the worker";
        return warn(name, format!("this coordinator is not open to everybody ({rule})"), remedy);
    }
    // Asking to be admitted where one is admitted already changes nothing.
    let asked: Result<api::Done, _> = client.post(api::path::REGISTER, &api::Register::default()).await;
    match asked {
        Ok(_) => ok(name, format!("admitted ({rule})")),
        Err(error) => {
            let remedy = match error.code() {
                Some("not_admitted") => "ask the operator to admit the key above, or for an invite",
                Some("clock_skew") => "set this machine's clock right",
                _ => "ask its operator",
            };
            fail(name, error.to_string(), remedy)
        }
    }
}

fn unreachable(error: &ClientError, encrypted: bool) -> Check {
    let found = error.to_string();
    let remedy = if encrypted && found.contains("certificate") {
        "trust its certificate with --tls-ca FILE, or call it by the name in the certificate"
    } else if matches!(error, ClientError::Unreachable { .. }) {
        "see that the address is right, that the coordinator runs, and that no firewall is in between"
    } else {
        "see that a coordinator of the same version is at this address"
    };
    fail("coordinator", found, remedy)
}

/// Whether an address is of this machine.
fn is_here(base: &str) -> bool {
    let host = base.trim_start_matches("http://");
    ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
}
