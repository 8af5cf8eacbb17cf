//! Coordinator, workers and verifiers as processes of their own, on loopback: they train what one process would, and
//! outlive each other's deaths.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(unix)]

#[path = "common/asking.rs"]
mod asking;
mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Hydra;
use hydra::protocol::{Keypair, Seed, below};
use serde_json::Value;

/// The job of `Hydra::up_json`, as the flags of a coordinator.
const JOB: [&str; 8] = ["--tasks", "2", "--inner-steps", "3", "--batch", "2", "--context", "16"];

/// As in one process, where nobody is audited: replays are paid too, which changes the ledger.
const TRUSTING: [&str; 3] = ["--json", "--audits", "none"];

/// A coordinator's address and the folders of everybody. Whatever still runs at its end is killed.
struct Net {
    folder: tempfile::TempDir,
    port: u16,
    children: Vec<Child>,
    /// The certificate of a coordinator that speaks TLS.
    certificate: Option<PathBuf>,
}

/// Free a moment ago, and the system hands out others first.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Net {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.txt"), common::text()).unwrap();
        Self { folder, port: free_port(), children: Vec::new(), certificate: None }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    fn coordinator(&self, arguments: &[&str]) -> Child {
        self.coordinator_of(&JOB, arguments)
    }

    fn coordinator_of(&self, job: &[&str], arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.arg("coordinator").args(job).args(arguments).args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        command
            .arg("--data")
            .arg(self.folder.path().join("text.txt"))
            .arg("--state-dir")
            .arg(self.state("coordinator"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn member(&mut self, role: &str, name: &str) -> usize {
        self.member_at(&self.url(), role, name)
    }

    fn member_at(&mut self, coordinator: &str, role: &str, name: &str) -> usize {
        self.member_with(coordinator, role, name, &[])
    }

    fn member_with(&mut self, coordinator: &str, role: &str, name: &str, arguments: &[&str]) -> usize {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args([role, "--coordinator", coordinator]).args(arguments).arg("--state-dir").arg(self.state(name));
        if let Some(certificate) = &self.certificate {
            command.arg("--tls-ca").arg(certificate);
        }
        let log = std::fs::File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.children.push(child);
        self.children.len() - 1
    }

    fn verifier_key(&self, name: &str) -> String {
        let mut show = Command::new(env!("CARGO_BIN_EXE_hydra"));
        show.args(["verifier", "--coordinator", &self.url(), "--show-key", "--state-dir"]).arg(self.state(name));
        String::from_utf8(show.output().unwrap().stdout).unwrap().trim().to_owned()
    }

    /// A ledger of its own, which pays by the verdicts of this coordinator.
    fn ledger(&self, port: u16, [coordinator, verifier]: &[String; 2]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args(["ledger", "serve", "--listen", &format!("127.0.0.1:{port}"), "--payer", coordinator]);
        command.args(["--verifier", verifier, "--state-dir"]).arg(self.state("books"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Waits until the coordinator tells wallets that its ledger is at `ledger`.
    fn wait_until_it_names(&self, ledger: &str) {
        let key = Keypair::from_secret(&[5; 32]).public().to_string();
        let ask = ["wallet", "balance", &key, "--coordinator", &self.url()];
        common::wait_for(|| {
            let asked = Command::new(env!("CARGO_BIN_EXE_hydra")).args(ask).output().unwrap();
            String::from_utf8_lossy(&asked.stderr)
                .contains(&format!("the ledger of this run is at {ledger}; ask there"))
        });
    }

    /// A command about this folder of its.
    fn command(&self, arguments: &[&str], state: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args(arguments).arg("--state-dir").arg(self.state(state));
        command
    }

    /// Runs a command to its end, which must be a good one: its standard output.
    fn ok(&self, arguments: &[&str], state: &str) -> String {
        let output = self.command(arguments, state).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a worker says of itself; null before it can.
    fn worker_status(&self, worker: &str) -> Value {
        let asked = self.command(&["worker", "status", "--json"], worker).output().unwrap();
        serde_json::from_slice(&asked.stdout).unwrap_or(Value::Null)
    }

    fn kill(&mut self, member: usize) {
        self.children[member].kill().unwrap();
        self.children[member].wait().unwrap();
    }

    fn logs(&self) -> String {
        let logs = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.fold(String::new(), |all, path| all + &std::fs::read_to_string(&path).unwrap() + "\n")
    }

    /// Waits for a coordinator that was started with `--json`: its summary.
    fn summary(&self, coordinator: Child) -> Value {
        let output = coordinator.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{}", self.logs());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn assert_same_run(summary: &Value, expected: &Value) {
    for what in ["run", "rounds", "model_digest", "val_loss_last", "transfers", "emitted"] {
        assert_eq!(summary[what], expected[what], "another {what} than in one process");
    }
    assert_eq!(summary["debits_equal_credits"], true);
}

#[test]
fn separate_processes_train_what_one_process_would() {
    let rounds = [&TRUSTING[..], &["--rounds", "4"]].concat();
    let mut net = Net::new();
    let coordinator = net.coordinator(&rounds);
    let members: Vec<usize> = (1..=3).map(|n| net.member("worker", &format!("worker-{n}"))).collect();
    let summary = net.summary(coordinator);
    assert_same_run(&summary, &Hydra::new().up_json(&rounds[3..]));
    for member in members {
        let status = net.children[member].wait().unwrap();
        assert!(status.success(), "a worker that is told that the run is over ends well");
    }
}

#[test]
fn lines_that_are_cut_or_slow_change_nothing_that_is_learned_or_paid() {
    let rounds = [&TRUSTING[..], &["--rounds", "2"]].concat();
    let mut net = Net::new();
    let coordinator = net.coordinator(&rounds);
    let line = proxy::BadLine::to(net.port, 11);
    let url = format!("http://127.0.0.1:{}", line.port);
    for n in 1..=2 {
        net.member_at(&url, "worker", &format!("worker-{n}"));
    }
    let summary = net.summary(coordinator);
    let connections = line.connections();
    assert!(connections > 9, "the line was too good to show anything: {connections} connections");
    assert_same_run(&summary, &Hydra::new().up_json(&rounds[3..]));
}

#[test]
fn killed_coordinators_and_workers_lose_nothing_and_are_paid_once() {
    let rounds = [&TRUSTING[..], &["--rounds", "8"]].concat();
    let mut net = Net::new();
    let mut rng = Seed::from_number(7).rng();
    let mut coordinator = net.coordinator(&rounds);
    let mut members: Vec<usize> = (1..=2).map(|n| net.member("worker", &format!("worker-{n}"))).collect();
    for turn in 0..6 {
        std::thread::sleep(Duration::from_millis(300 + below(&mut rng, 500)));
        if coordinator.try_wait().unwrap().is_some() {
            break;
        }
        if turn % 2 == 0 {
            coordinator.kill().unwrap();
            coordinator.wait().unwrap();
            coordinator = net.coordinator(&rounds);
        } else {
            let name = format!("worker-{}", members.len());
            net.kill(members[members.len() - 1]);
            let last = members.len() - 1;
            members[last] = net.member("worker", &name);
        }
    }
    let summary = net.summary(coordinator);
    assert_same_run(&summary, &Hydra::new().up_json(&rounds[3..]));
}

#[test]
fn a_computer_that_sleeps_with_a_task_is_not_waited_for_and_its_result_counts_for_less() {
    const STEPS: u64 = 60;
    let mut net = Net::new();
    let steps = STEPS.to_string();
    let job = ["--tasks", "3", "--inner-steps", &steps, "--batch", "2", "--context", "16", "--round-time", "5s"];
    let coordinator = net.coordinator_of(&job, &TRUSTING);
    let url = net.url();
    let sleeper = net.member_with(&url, "worker", "sleeper", &["--cpu-percent", "20"]);
    let sleeper = net.children[sleeper].id();
    let signal = |process: u32, signal: &str| {
        assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
    };
    let address = ([127, 0, 0, 1], net.port).into();
    let round = |round: u64| asking::request(address, "GET", &format!("/hydra/v1/rounds/{round}"), None, "").1;
    common::wait_for(|| net.worker_status("sleeper")["steps"].as_u64() > Some(STEPS / 2));
    signal(sleeper, "-STOP");
    let asleep =
        round(0)["tasks"].as_array().unwrap().iter().find_map(|task| task["worker"].as_str()).unwrap().to_owned();
    net.member("worker", "worker");
    common::wait_for(|| !round(0)["closed"].is_null());
    assert_eq!((&round(0)["accepted"], &round(0)["late"]), (&2.into(), &0.into()));
    signal(sleeper, "-CONT");
    // On a busy machine something of the other worker may be late too.
    let late = || {
        let is_its = |result: &&Value| result["worker"] == *asleep;
        let in_round = |after| Some((after, round(after)["late_results"].as_array()?.iter().find(is_its)?.clone()));
        (1..3).find_map(in_round)
    };
    let is_paid = |after| round(after)["paid"].as_str().is_some_and(|paid| paid != "0");
    common::wait_for(|| late().is_some_and(|(after, _)| is_paid(after)));
    let (after, late) = late().unwrap();
    assert_eq!(late["tokens"].as_u64().unwrap(), (STEPS * 2 * 16) >> after, "{late}");
    signal(coordinator.id(), "-TERM");
    let summary = net.summary(coordinator);
    assert_eq!(summary["debits_equal_credits"], true);
    let paid = |worker: &Value| worker["pay"].as_str().unwrap().parse::<u64>().unwrap() > 0;
    assert_eq!(summary["workers"].as_array().unwrap().iter().filter(|worker| paid(worker)).count(), 2, "{summary}");
}

#[test]
fn a_ledger_of_its_own_that_is_killed_again_and_again_pays_everybody_once() {
    const ROUNDS: u64 = 10;
    let rounds = ROUNDS.to_string();
    let rounds = [&TRUSTING[..], &["--rounds", &rounds]].concat();
    let mut net = Net::new();
    let shown = net.ok(&["coordinator", "--show-keys"], "coordinator");
    let mut keys = shown.lines().map(|line| line.split(' ').next().unwrap().to_owned());
    let keys = [keys.next().unwrap(), keys.next().unwrap()];
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let arguments = [&rounds[..], &["--ledger", &url]].concat();
    let mut rng = Seed::from_number(11).rng();
    let mut ledger = net.ledger(port, &keys);
    let mut coordinator = net.coordinator(&arguments);
    for n in 1..=2 {
        net.member("worker", &format!("worker-{n}"));
    }
    net.wait_until_it_names(&url);
    assert_eq!(net.ok(&["coordinator", "--show-keys"], "coordinator"), shown, "also while it runs");
    let mut kills = 0;
    while coordinator.try_wait().unwrap().is_none() && kills < 40 {
        std::thread::sleep(Duration::from_millis(100 + below(&mut rng, 400)));
        ledger.kill().unwrap();
        ledger.wait().unwrap();
        kills += 1;
        if kills == 3 {
            coordinator.kill().unwrap();
            coordinator.wait().unwrap();
            coordinator = net.coordinator(&arguments);
        }
        // Now and then it is away for longer than a round takes.
        std::thread::sleep(Duration::from_millis(below(&mut rng, 600)));
        ledger = net.ledger(port, &keys);
    }
    assert!(kills >= 4, "killed {kills} times only: this test shows nothing");
    let summary = net.summary(coordinator);
    let expected = Hydra::new().up_json(&rounds[3..]);
    assert_same_run(&summary, &expected);
    for what in ["supply", "unvested", "burned", "debits", "credits", "debits_pending", "credits_pending"] {
        assert_eq!(summary[what], expected[what], "another {what} than in one process");
    }
    let earned = |summary: &Value| -> i64 {
        let workers = summary["workers"].as_array().unwrap().iter();
        workers.map(|worker| worker["pay"].as_str().unwrap().parse::<i64>().unwrap()).sum()
    };
    assert_eq!(earned(&summary), earned(&expected));

    // What is there, over the network and on the disk: every task once, and nothing else.
    let over_network = net.ok(&["ledger", "verify", "--coordinator", &url], "nowhere");
    let entries = net.ok(&["ledger", "export", "--coordinator", &url], "nowhere");
    ledger.kill().unwrap();
    ledger.wait().unwrap();
    let sound = net.ok(&["ledger", "verify"], "books");
    assert!(sound.starts_with(&format!("sound: {} transfers, ", 2 * ROUNDS)), "{sound}");
    assert_eq!(over_network, sound);
    let entries: Vec<Value> = entries.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut tasks: Vec<&str> = entries.iter().map(|entry| entry["purpose"]["pay"]["task"].as_str().unwrap()).collect();
    tasks.sort_unstable();
    tasks.dedup();
    assert_eq!((entries.len() as u64, tasks.len() as u64), (2 * ROUNDS, 2 * ROUNDS));
}

#[test]
fn a_coordinator_whose_ledger_is_away_serves_and_stops_when_told() {
    let net = Net::new();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut coordinator = net.coordinator(&["--ledger", &nobody]);
    net.wait_until_it_names(&nobody);
    let began = hydra::runtime::Stopwatch::start();
    let terminated = Command::new("kill").args(["-TERM", &coordinator.id().to_string()]).status().unwrap();
    assert!(terminated.success());
    assert!(coordinator.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
}

#[test]
fn a_verifier_on_another_computer_does_the_verifying() {
    let mut net = Net::new();
    let key = net.verifier_key("verifier");
    let rounds = [&TRUSTING[..], &["--rounds", "2"]].concat();
    let coordinator = net.coordinator(&[&rounds[..], &["--verifier", &key]].concat());
    let stranger = net.member("verifier", "stranger");
    net.member("worker", "worker-1");
    let verifier = net.member("verifier", "verifier");
    let summary = net.summary(coordinator);
    assert_same_run(&summary, &Hydra::new().up_json(&rounds[3..]));
    net.kill(stranger);
    net.kill(verifier);
    assert!(net.logs().contains("no verifier of this run"), "a stranger was let in:\n{}", net.logs());
}

#[test]
fn whoever_is_audited_is_drawn_replayed_by_verifiers_elsewhere_and_can_be_rechecked_by_anybody() {
    let mut net = Net::new();
    let keys = ["one", "two"].map(|name| net.verifier_key(name));
    let verifiers = ["--verifier", &keys[0], &keys[1]];
    let mut coordinator = net.coordinator(&[&["--json", "--rounds", "4"][..], &verifiers].concat());
    for name in ["one", "two"] {
        net.member("verifier", name);
    }
    let first = net.member("worker", "worker-1");
    net.member("worker", "worker-2");
    let url = net.url();
    let hydra = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hydra")).args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    // While it runs, from outside; and through the death of the coordinator and of a worker.
    common::wait_for(|| hydra(&["verifier", "recheck", "0", "--coordinator", &url]).is_some());
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    net.kill(first);
    net.member("worker", "worker-1");
    coordinator = net.coordinator(&[&["--json", "--rounds", "4"][..], &verifiers].concat());
    let summary = net.summary(coordinator);
    let expected = Hydra::new().up_json(&["--rounds", "4"]);
    assert_eq!((&summary["model_digest"], &summary["emitted"]), (&expected["model_digest"], &expected["emitted"]));
    assert_eq!(summary["debits_equal_credits"], true);

    let state = net.state("coordinator");
    let state = state.to_str().unwrap();
    let all = hydra(&["verdicts", "--json", "--state-dir", state]).unwrap();
    let results: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(results.len(), 8);
    for result in &results {
        assert_eq!(result["ending"], "clean", "new keys are always audited: {result}");
        let by = result["verdicts"][0]["verifier"].as_str().unwrap();
        assert!(keys.iter().any(|key| key == by));
    }
    assert!(hydra(&["verdicts", "--state-dir", state]).unwrap().contains("8 of 8 results"));
    for round in ["0", "1", "2", "3"] {
        let rechecked = hydra(&["verifier", "recheck", round, "--json", "--state-dir", state]).unwrap();
        let rechecked: Value = serde_json::from_str(&rechecked).unwrap();
        assert_eq!([&rechecked["drawn"], &rechecked["open"]], [2, 0]);
    }
    let verified = hydra(&["ledger", "verify", "--state-dir", state]).unwrap();
    assert!(verified.starts_with("sound: "), "{verified}");
}

#[test]
fn where_nobody_is_trusted_to_compute_workers_check_each_other() {
    let mut net = Net::new();
    let coordinator = net.coordinator(&["--json", "--rounds", "3", "--audits", "peers"]);
    for n in 1..=3 {
        net.member("worker", &format!("worker-{n}"));
    }
    let summary = net.summary(coordinator);
    assert_eq!(summary["model_digest"], Hydra::new().up_json(&["--rounds", "3"])["model_digest"]);
    let state = net.state("coordinator");
    let hydra = |arguments: &[&str]| {
        let mut hydra = Command::new(env!("CARGO_BIN_EXE_hydra"));
        String::from_utf8(hydra.args(arguments).arg("--state-dir").arg(&state).output().unwrap().stdout).unwrap()
    };
    let endings: Vec<Value> =
        hydra(&["verdicts", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(endings.len(), 6);
    assert!(endings.iter().all(|result| result["ending"] == "clean"), "{endings:?}");
    assert!(hydra(&["verifier", "recheck", "1"]).contains("2 of 2 results"));
}

#[test]
fn a_coordinator_serves_tls_to_those_who_trust_its_certificate() {
    let mut net = Net::new();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (net.state("certificate.pem"), net.state("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let paths = ["--tls-cert", certificate.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let rounds = [&TRUSTING[..], &["--rounds", "1"]].concat();
    let coordinator = net.coordinator(&[&rounds[..], &paths].concat());
    net.certificate = Some(certificate.clone());
    net.member("worker", "worker-1");
    let summary = net.summary(coordinator);
    assert_same_run(&summary, &Hydra::new().up_json(&rounds[3..]));
}

/// Bytes of the largest file below a folder.
fn largest(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let size = |entry: std::fs::DirEntry| {
        let about = entry.metadata().unwrap();
        if about.is_dir() { largest(&entry.path()) } else { about.len() }
    };
    entries.map(size).max().unwrap_or(0)
}

/// Seconds of processor time that a process has taken.
#[cfg(target_os = "linux")]
fn processor_time(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields = text.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

#[test]
#[cfg(target_os = "linux")]
fn an_owners_bounds_on_line_and_processor_are_kept() {
    const STEPS: u64 = 120;
    let mut net = Net::new();
    let steps = STEPS.to_string();
    let mut coordinator =
        net.coordinator_of(&["--tasks", "1", "--inner-steps", &steps, "--batch", "2", "--context", "16"], &[]);
    let url = net.url();
    let bounds = ["--cpus", "1", "--cpu-percent", "20", "--down-kbps", "1000", "--up-kbps", "50"];
    let watch = hydra::runtime::Stopwatch::start();
    let worker = net.member_with(&url, "worker", "worker-1", &bounds);
    let process = net.children[worker].id();
    let status = || net.worker_status("worker-1");
    common::wait_for(|| status()["steps"].as_u64() > Some(0));
    // What is sent within the first second passes at once.
    let model = largest(&net.state("coordinator").join("blobs")) as f64;
    let (took, least) = (watch.elapsed().as_secs_f64(), (model / 1e6 - 1.0) * 0.9);
    assert!(took > least, "{model} bytes came within {took} s");
    let (before, watch) = (processor_time(process), hydra::runtime::Stopwatch::start());
    std::thread::sleep(Duration::from_secs(2));
    let share = (processor_time(process) - before) / watch.elapsed().as_secs_f64();
    assert!(status()["steps"].as_u64() < Some(STEPS), "it was done before it was measured");
    assert!(share < 0.4, "a fifth of a core was allowed, {share} was taken");
    common::wait_for(|| status()["steps"].as_u64() == Some(STEPS));
    let watch = hydra::runtime::Stopwatch::start();
    common::wait_for(|| status()["handed_in"].as_u64() > Some(0));
    let took = watch.elapsed();
    assert!(took > Duration::from_secs(2), "a payload of some 200 kB went up within {took:?}");
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
}

#[test]
fn an_owner_pauses_resumes_and_finishes_a_worker() {
    let mut net = Net::new();
    let mut coordinator = net.coordinator(&["--json"]);
    let worker = net.member("worker", "worker-1");
    let state = net.state("worker-1");
    let say = |command: &[&str]| {
        let mut hydra = Command::new(env!("CARGO_BIN_EXE_hydra"));
        let output = hydra.arg("worker").args(command).arg("--state-dir").arg(&state).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let status = || serde_json::from_str::<Value>(&say(&["status", "--json"])?).ok();
    common::wait_for(|| status().is_some_and(|status| status["handed_in"].as_u64() > Some(0)));
    say(&["pause"]).unwrap();
    let paused = status().unwrap();
    assert_eq!((&paused["state"], &paused["why"]), (&"paused".into(), &"its owner paused it".into()));
    std::thread::sleep(Duration::from_millis(300));
    let before = status().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let after = status().unwrap();
    assert_eq!((&before["steps"], &before["handed_in"]), (&after["steps"], &after["handed_in"]), "it went on");
    say(&["resume"]).unwrap();
    common::wait_for(|| status().is_some_and(|status| status["handed_in"].as_u64() > after["handed_in"].as_u64()));
    say(&["finish"]).unwrap();
    assert!(net.children[worker].wait().unwrap().success());
    assert!(!state.join("result").exists(), "what it had finished is handed in");
    assert!(say(&["status"]).is_none(), "nobody is there any more");
    let terminated = Command::new("kill").args(["-TERM", &coordinator.id().to_string()]).status().unwrap();
    assert!(terminated.success());
    let began = hydra::runtime::Stopwatch::start();
    assert!(coordinator.wait().unwrap().success());
    assert!(began.elapsed() < Duration::from_secs(8));
}
