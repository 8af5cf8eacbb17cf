//! What an operator and an owner do: configure, look what is wrong, set bounds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

/// A folder to run the command in, and what is to be killed at the end.
struct Place {
    folder: tempfile::TempDir,
    port: u16,
    children: Vec<Child>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.txt"), common::text()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder, port, children: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The command in this folder, with nothing in its environment that would configure it.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("XDG_DATA_HOME", self.path("data")).env("HOME", self.folder.path());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn spawn(&mut self, mut command: Command) {
        self.children.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    /// A coordinator that is configured by its file and the environment alone.
    fn coordinator(&mut self) {
        let file = format!(
            "[coordinator]\nlisten = '127.0.0.1:{}'\ntasks = 2\ninner-steps = 3\nbatch = 2\ncontext = 16\ndata = ['text.txt']\n",
            self.port
        );
        std::fs::write(self.path("hydra.toml"), file).unwrap();
        let mut command = self.command(&["coordinator"]);
        command.env("HYDRA_STATE_DIR", self.path("coordinator"));
        self.spawn(command);
        let address = ("127.0.0.1", self.port);
        // It listens before it has made its run, so that a port that is taken is known at once.
        common::wait_for(|| ready(address));
        assert!(self.path("coordinator/hydra.db").exists());
    }
}

/// Whether whatever listens there says that it is ready.
fn ready(address: (&str, u16)) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    asked.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.starts_with("HTTP/1.1 200")
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// How one check of the doctor came out, and what it said.
fn check(report: &Value, name: &str) -> (String, String) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
    (check["result"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
}

#[test]
fn the_configuration_is_shown_with_its_origins() {
    let place = Place::new();
    std::fs::write(place.path("hydra.toml"), "[worker]\ncoordinator = 'http://a:1'\ncpus = 2\ninvite = 'x'\n").unwrap();
    let mut command = place.command(&["config", "show", "worker", "--origin"]);
    let shown = stdout(&command.env("HYDRA_CPUS", "3").output().unwrap());
    for line in [
        "[worker]",
        "coordinator = \"http://a:1\"  # hydra.toml",
        "cpus = 3  # HYDRA_CPUS",
        "device = \"auto\"  # default",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(!shown.contains("\"x\""), "an invite is not shown");
    let all: Value = serde_json::from_str(&stdout(&place.output(&["config", "show", "--json"]))).unwrap();
    assert_eq!(all["file"], "hydra.toml");
    assert_eq!(all["commands"]["worker"]["cpus"]["value"], 2);
    assert_eq!(all["commands"]["coordinator"]["listen"]["origin"], "default");

    // The state directory's file is read where there is none here, and a file that is named wins.
    std::fs::create_dir(place.path("state")).unwrap();
    std::fs::rename(place.path("hydra.toml"), place.path("state/hydra.toml")).unwrap();
    let mut command = place.command(&["config", "show", "--json"]);
    let all: Value = serde_json::from_str(&stdout(&command.env("HYDRA_STATE_DIR", "state").output().unwrap())).unwrap();
    assert_eq!(all["file"], "state/hydra.toml");
    std::fs::write(place.path("other.toml"), "[worker]\ncpuss = 2\n").unwrap();
    let refused = place.output(&["--config", "other.toml", "up"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("other.toml: worker has no key cpuss; did you mean cpus?"), "{refused:?}");
    let refused = place.command(&["up"]).env("HYDRA_CONFIG", "nothing.toml").output().unwrap();
    assert!(stderr(&refused).contains("cannot read nothing.toml"), "{refused:?}");
    std::fs::write(place.path("other.toml"), "[up]\nworkers = 0\n").unwrap();
    let refused = place.output(&["up", "--config=other.toml"]);
    assert!(stderr(&refused).contains("--workers comes from other.toml"), "{refused:?}");
}

#[test]
fn a_doctor_finds_a_well_site_well_and_says_what_is_wrong_with_another() {
    let mut place = Place::new();
    place.coordinator();
    let url = place.url();
    let doctor = |arguments: &[&str]| {
        let output = place.output(&[&["doctor", "--json", "--state-dir", "worker"], arguments].concat());
        let report: Value =
            serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        assert_eq!(report["ok"].as_bool().unwrap(), output.status.success());
        report
    };
    let report = doctor(&["--coordinator", &url]);
    assert_eq!(report["ok"], true, "{report}");
    for name in
        ["configuration", "state", "device", "key", "coordinator", "tls", "clock", "version", "run", "admission"]
    {
        assert_eq!(check(&report, name).0, "ok", "{report}");
    }
    assert!(check(&report, "configuration").1.contains("hydra.toml"));
    assert!(!place.path("worker/keys").exists(), "it makes no key");
    let text = stdout(&place.output(&["doctor", "--state-dir", "worker", "--coordinator", &url]));
    assert!(text.contains("ok    clock "), "{text}");

    assert_eq!(check(&doctor(&[]), "coordinator").0, "warn", "none was named");
    let gone = doctor(&["--coordinator", "http://127.0.0.1:1"]);
    assert_eq!((gone["ok"].as_bool(), check(&gone, "coordinator").0.as_str()), (Some(false), "fail"));
    let tls = doctor(&["--coordinator", &url.replace("http", "https")]);
    assert_eq!(check(&tls, "coordinator").0, "fail");
    std::fs::write(place.path("file-in-the-way"), "").unwrap();
    let output = place.output(&["doctor", "--json", "--state-dir", "file-in-the-way", "--device", "abacus"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((check(&report, "state").0.as_str(), check(&report, "device").0.as_str()), ("fail", "fail"), "{report}");
    assert!(stderr(&output).contains("something would keep a worker here from working"));
}

fn status(place: &Place, folder: &Path) -> Option<Value> {
    let output = place.output(&["worker", "status", "--json", "--state-dir", folder.to_str().unwrap()]);
    serde_json::from_slice(&output.stdout).ok()
}

#[test]
fn a_task_that_does_not_fit_into_the_owners_memory_is_given_back_and_the_owner_told() {
    let mut place = Place::new();
    place.coordinator();
    let folder = place.path("worker");
    let worker = ["worker", "--coordinator", &place.url(), "--state-dir", folder.to_str().unwrap()].map(str::to_owned);
    let worker: Vec<&str> = worker.iter().map(String::as_str).collect();
    let mut command = place.command(&worker);
    command.args(["--memory", "1MiB"]);
    place.spawn(command);
    let failed = |folder: &Path| Some(status(&place, folder)?["failed"].as_str()?.to_owned());
    common::wait_for(|| failed(&folder).is_some());
    let why = failed(&folder).unwrap();
    assert!(why.contains("1 MiB may be used"), "{why}");
    assert_eq!(status(&place, &folder).unwrap()["steps"], 0, "nothing was computed");
    let text = stdout(&place.output(&["worker", "status", "--state-dir", folder.to_str().unwrap()]));
    assert!(text.contains("it gave its last task back") && text.contains("may be used"), "{text}");

    // Somebody with more room does the round.
    let more = place.path("more");
    let mut command = place.command(&worker[..3]);
    command.args(["--memory", "1GiB", "--state-dir"]).arg(&more);
    place.spawn(command);
    common::wait_for(|| status(&place, &more).is_some_and(|status| status["handed_in"].as_u64() > Some(1)));
}

#[test]
fn an_owner_who_allows_other_hours_is_obeyed() {
    let mut place = Place::new();
    place.coordinator();
    let folder = place.path("worker");
    // Ten minutes that are twelve hours away.
    let hours = hydra::runtime::Clock::now(&hydra::runtime::SystemClock).0 / 3_600_000 % 24;
    let (from, until) = (format!("{:02}:00", (hours + 12) % 24), format!("{:02}:10", (hours + 12) % 24));
    let mut command = place.command(&["worker", "--coordinator", &place.url(), "--cpus", "1", "--cpu-percent", "50"]);
    command.args(["--up-kbps", "1000", "--down-kbps", "1000", "--idle-only", "--on-battery", "--schedule"]);
    command.arg(format!("{from}-{until}")).arg("--state-dir").arg(&folder);
    place.spawn(command);
    common::wait_for(|| status(&place, &folder).is_some_and(|status| status["state"] == "paused"));
    let why = status(&place, &folder).unwrap()["why"].as_str().unwrap().to_owned();
    assert_eq!(why, format!("it works {from}-{until} UTC"));
}

/// A coordinator that admits everybody and never says how its run stands: whether it was asked that.
fn silent_coordinator(port: u16) -> Arc<AtomicBool> {
    let (listener, asked) = (TcpListener::bind(("127.0.0.1", port)).unwrap(), Arc::new(AtomicBool::new(false)));
    let said = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut waiting = Vec::new();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut path, mut length, mut line) = (String::new(), 0, String::new());
            while stream.read_line(&mut line).unwrap() > 2 {
                if let Some(said) = line.to_lowercase().strip_prefix("content-length:") {
                    length = said.trim().parse().unwrap();
                }
                path = if path.is_empty() { line.split(' ').nth(1).unwrap().to_owned() } else { path };
                line.clear();
            }
            stream.read_exact(&mut vec![0; length]).unwrap();
            let answer = match path.as_str() {
                "/hydra/v1/hello" => {
                    let session = "0".repeat(64);
                    format!(r#"{{"session":"{session}","time":0,"version":"","run":null,"admission":"open"}}"#)
                }
                "/hydra/v1/register" => r#"{"ok":true}"#.to_owned(),
                _ => {
                    said.store(true, Ordering::Relaxed);
                    waiting.push(stream);
                    continue;
                }
            };
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", answer.len());
            stream.get_mut().write_all(format!("{head}{answer}").as_bytes()).unwrap();
        }
    });
    asked
}

#[test]
fn a_worker_stops_at_once_also_where_its_coordinator_does_not_answer() {
    let mut place = Place::new();
    let asked = silent_coordinator(place.port);
    place.spawn(place.command(&["worker", "--coordinator", &place.url()]));
    common::wait_for(|| asked.load(Ordering::Relaxed));
    let worker = place.children.last_mut().unwrap();
    let began = hydra::runtime::Stopwatch::start();
    assert!(Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap().success());
    assert!(worker.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}
