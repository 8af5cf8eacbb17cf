//! What goes wrong changes when things happen and who does them, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hydra::protocol::{DeviceKind, InnerOptimizer, ModelSpec};
use hydra::training::{Batch, Engine, EngineError, Params, Session};
use hydra_sim::{Outcome, Scenario, SimError, Simulation, Strike, Trouble, Victim, run};

const SMALL: &str = "about = 'a small swarm'\n\
    job = { rounds = 4, inner_steps = 4, batch = 4, lease_seconds = 30, objective = 'surrogate', learning_rate = 0.02, \
    model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 } }\n\
    workers = [{ name = 'all', count = 6, tokens_per_second = [20, 60] }]\n";

fn scenario(more: &str) -> Scenario {
    Scenario::parse(Path::new("small.toml"), &format!("{SMALL}{more}")).unwrap()
}

fn play(more: &str) -> Outcome {
    let outcome = run(&scenario(more), 5, 2).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new(), "{more}");
    outcome
}

#[test]
fn whatever_breaks_and_is_mended_the_model_and_what_everybody_is_paid_in_all_stay_the_same() {
    let calm = play("");
    let total = |outcome: &Outcome| outcome.workers.iter().map(|worker| worker.pay.micro()).sum::<i64>();
    for fault in [
        "what = 'crash'\nwho = 'coordinator'\neach_round_within_seconds = 8\nfor_seconds = 3",
        "what = 'crash'\nwho = 'ledger'\nat_seconds = [3, 9, 20]",
        "what = 'crash'\nwho = 'workers'\nshare = 0.5\nevery_seconds = 10\nuntil_seconds = 60\nfor_seconds = 4",
        "what = 'crash-writing'\nwho = 'coordinator'\nat_seconds = [1, 6, 14, 22]\nfor_seconds = 2",
        "what = 'pause'\nwho = 'coordinator'\nat_seconds = [4]\nfor_seconds = 25",
        "what = 'pause'\nwho = 'workers'\nshare = 0.3\nat_seconds = [4]\nfor_seconds = 60",
        "what = 'cut'\nwho = 'workers'\nshare = 0.5\nat_seconds = [4]\nfor_seconds = 60",
        "what = 'deaf'\nwho = 'coordinator'\nat_seconds = [4]\nfor_seconds = 30",
        "what = 'mute'\nwho = 'workers'\nat_seconds = [4]\nfor_seconds = 30",
        "what = 'disk-full'\nwho = 'ledger'\nat_seconds = [1]\nfor_seconds = 45",
        "what = 'disk-full'\nwho = 'coordinator'\nat_seconds = [5]\nfor_seconds = 30",
        "what = { slow-disk = 800 }\nwho = 'coordinator'\nat_seconds = [1]\nfor_seconds = 30",
    ] {
        let outcome = play(&format!("[[faults]]\n{fault}\n[expect]\nhonest_lose_nothing = true\nstrikes_at_least = 1"));
        assert_eq!(outcome.model, calm.model, "{fault}");
        assert_eq!(total(&outcome), total(&calm), "{fault}");
        assert!(outcome.virtual_seconds > calm.virtual_seconds, "{fault} did nothing");
    }
}

#[test]
fn lines_that_bring_messages_twice_and_clocks_that_are_off_change_nothing_either() {
    let calm = play("");
    let twice = play("[network]\nduplicates = 0.5\nloss = 0.2\n[expect]\nhonest_lose_nothing = true");
    assert_eq!(twice.model, calm.model);
    let changed = SMALL.replace("tokens_per_second = [20, 60]", "tokens_per_second = 40, clock_skew_seconds = 120");
    let skewed = Scenario::parse(Path::new("small.toml"), &changed).unwrap();
    assert_eq!(run(&skewed, 5, 2).unwrap().model, calm.model);
}

#[test]
fn what_arrives_damaged_is_noticed_and_fetched_again() {
    let calm = play("");
    let workers =
        play("[[faults]]\nwhat = 'corrupt-blob'\nwho = 'workers'\nshare = 0.5\nat_seconds = [6]\nfor_seconds = 12");
    assert!(workers.log.iter().any(|line| line.contains("TaskFailed") && line.contains("not what its name says")));
    assert_eq!(workers.model, calm.model);
    let verifiers = "[[verifiers]]\ncount = 2\ntokens_per_second = 200\n[audits]\n";
    let damaged = "[[faults]]\nwhat = 'corrupt-blob'\nwho = 'verifiers'\nat_seconds = [3, 15]\nfor_seconds = 10";
    let outcome = play(&format!("{verifiers}{damaged}\n[expect]\nhonest_lose_nothing = true"));
    assert_eq!(outcome.model, calm.model);
}

#[test]
fn a_clock_that_is_wrong_for_a_while_and_a_slow_ledger_change_nothing() {
    let calm = play("");
    for fault in [
        "what = { clock-skew = -120 }\nwho = 'workers'\nshare = 0.5\nat_seconds = [4, 20]\nfor_seconds = 12",
        "what = { clock-skew = 120 }\nwho = 'workers'\nat_seconds = [4]\nfor_seconds = 12",
        "what = { slow-disk = 3000 }\nwho = 'ledger'\nat_seconds = [1]\nfor_seconds = 60",
    ] {
        assert_eq!(play(&format!("[[faults]]\n{fault}")).model, calm.model, "{fault}");
    }
}

#[test]
fn what_sqlite_makes_of_torn_writes_is_what_memory_does() {
    let faults = "[[faults]]\nwhat = 'crash-writing'\nwho = 'coordinator'\nat_seconds = [1, 5, 9, 13, 17, 21, 25]\n\
        for_seconds = 1\n[[faults]]\nwhat = 'crash'\nwho = 'ledger'\nevery_seconds = 9\nuntil_seconds = 60\nfor_seconds = 2\n";
    let memory = play(faults);
    let text = format!("{SMALL}{faults}").replace("rounds = 4", "store = 'sqlite', rounds = 4");
    let sqlite = run(&Scenario::parse(Path::new("small.toml"), &text).unwrap(), 5, 2).unwrap();
    assert_eq!(sqlite.failures, Vec::<String>::new());
    assert_eq!(sqlite.state_hash, memory.state_hash);
}

#[test]
fn workers_follow_the_machines_of_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("seen.csv"), "# two machines\na,0,8\nb,4,30\na,20,500\nb,40,500\n").unwrap();
    let text = SMALL.replace("count = 6", "availability = { trace = 'seen.csv' }, count = 6");
    let path = folder.path().join("trace.toml");
    let outcome = run(&Scenario::parse(&path, &text).unwrap(), 5, 2).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new());
    for line in ["4000 worker 1 comes", "8000 worker 4 leaves", "20000 worker 0 comes"] {
        assert!(outcome.log.iter().any(|event| event == line), "{line}");
    }
    for (trace, said) in [("a,8,0\n", "in order"), ("a,1\n", "line 1: write machine,from,to"), ("", "at least one")] {
        std::fs::write(folder.path().join("seen.csv"), trace).unwrap();
        let error = Scenario::parse(&path, &text).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("seen.csv"), "{error}");
    }
}

#[test]
fn slow_lines_take_their_time() {
    let changed = SMALL.replace("tokens_per_second = [20, 60]", "tokens_per_second = 40, download_kbps = 10");
    let slow = run(&Scenario::parse(Path::new("small.toml"), &changed).unwrap(), 5, 2).unwrap();
    // A model of 1180 numbers takes four seconds at ten kilobits a second, in each of four rounds.
    assert!(slow.virtual_seconds > 16.0 + 4.0 * 3.2, "{}", slow.virtual_seconds);
}

#[test]
fn a_swarm_that_never_recovers_fails_its_scenario() {
    let forever = "[[faults]]\nwhat = 'crash'\nwho = 'coordinator'\nat_seconds = [5]\nfor_seconds = 4000000";
    let outcome = run(&scenario(forever), 5, 2).unwrap();
    assert!(outcome.failures.iter().any(|failure| failure.contains("of 4 rounds were done")), "{:?}", outcome.failures);
    let slow = "[[faults]]\nwhat = 'pause'\nwho = 'workers'\nat_seconds = [5]\nfor_seconds = 100\n\
        [expect]\nrecovers_within_seconds = 0.001";
    let outcome = run(&scenario(slow), 5, 2).unwrap();
    assert!(outcome.failures.iter().any(|failure| failure.contains("no round closed for")), "{:?}", outcome.failures);
}

#[test]
fn what_cannot_go_on_is_given_up_where_somebody_says_when() {
    let scenario = scenario("[[faults]]\nwhat = 'crash'\nwho = 'workers'\nat_seconds = [5]\nfor_seconds = 4000000");
    let outcome = Simulation::new(&scenario).give_up(Duration::from_mins(10), 100_000).run(5, 2).unwrap();
    assert!(outcome.failures.iter().any(|why| why.contains("no round has closed for 600 s")), "{:?}", outcome.failures);
    assert!(outcome.virtual_seconds < 1300.0, "one round closed with a quorum, and none after it");
    let outcome = Simulation::new(&scenario).give_up(Duration::from_mins(10), 5).run(5, 2).unwrap();
    assert!(outcome.failures.iter().any(|why| why.contains("more than 5 events")), "{:?}", outcome.failures);
}

#[test]
fn a_run_can_be_ended_early_and_a_program_can_add_faults() {
    let scenario = scenario("[expect]\nloss_below = 0.001");
    let short = Simulation::new(&scenario).until(Duration::from_secs(10)).run(5, 2).unwrap();
    assert!(short.passed && short.virtual_seconds == 10.0, "only what always holds is demanded");
    let mut left = 2;
    let strike = move |_: &mut _| {
        left -= 1;
        let (what, who) = (Trouble::Crash, Victim::Workers);
        (left >= 0).then_some(Strike { after_seconds: 3.0, what, who, group: None, share: 0.5, for_seconds: 2.0 })
    };
    let outcome = Simulation::new(&scenario).faults(strike).run(5, 2).unwrap();
    assert_eq!(
        outcome.strikes.iter().map(|strike| (strike.at_seconds, strike.hit)).collect::<Vec<_>>(),
        [(3.0, 3), (6.0, 3)]
    );
}

#[test]
fn a_custom_behaviour_that_nobody_gives_is_refused() {
    let text = SMALL.replace("count = 6", "behaviour = 'custom', count = 6");
    let scenario = Scenario::parse(Path::new("small.toml"), &text).unwrap();
    assert!(matches!(run(&scenario, 5, 2), Err(SimError::Custom(name)) if name == "all"));
}

/// Panics in the third task that somebody does with it, as a bug in what it stands for would.
struct Broken(Arc<dyn Engine>, AtomicU32);

impl Engine for Broken {
    fn kind(&self) -> DeviceKind {
        self.0.kind()
    }

    fn train(&self, model: &ModelSpec, base: &Params, with: &InnerOptimizer) -> Result<Box<dyn Session>, EngineError> {
        assert!(self.1.fetch_add(1, Ordering::Relaxed) < 2, "an index that there is not");
        self.0.train(model, base, with)
    }

    fn loss(&self, model: &ModelSpec, at: &Params, on: &mut dyn Iterator<Item = Batch>) -> Result<f64, EngineError> {
        self.0.loss(model, at, on)
    }
}

#[test]
fn a_computation_that_panics_fails_its_scenario_and_leaves_nobody_waiting() {
    let text = SMALL.replace("count = 6", "behaviour = 'custom', count = 6");
    let scenario = Scenario::parse(Path::new("small.toml"), &text).unwrap();
    // With one thread, nothing would be computed any more if it died.
    for threads in [1, 2] {
        let broken = |honest| Arc::new(Broken(honest, AtomicU32::new(0))) as Arc<dyn Engine>;
        let outcome = Simulation::new(&scenario).behaviour("all", broken).run(5, threads).unwrap();
        let told = "always: a computation panicked: an index that there is not";
        assert!(outcome.failures.iter().any(|failure| failure == told), "{:?}", outcome.failures);
    }
}

#[test]
fn a_program_cannot_do_what_files_cannot_and_a_source_of_faults_that_panics_is_heard_of() {
    let scenario = scenario("");
    let failures = |source: fn(&mut _) -> Option<Strike>| {
        Simulation::new(&scenario).faults(source).run(5, 2).unwrap().failures.join("; ")
    };
    let impossible = failures(|_| {
        let (what, who) = (Trouble::DiskFull, Victim::Workers);
        Some(Strike { after_seconds: 3.0, what, who, group: None, share: 1.0, for_seconds: 2.0 })
    });
    assert!(impossible.contains("DiskFull cannot happen to who = Workers"), "{impossible}");
    let panics = failures(|_| panic!("as a bug does"));
    assert!(panics.contains("a source of faults panicked"), "{panics}");
}

#[test]
fn a_torn_write_is_mended_when_the_coordinator_is_back() {
    // Nothing is written while all workers are paused.
    let faults = "[[faults]]\nwhat = 'pause'\nwho = 'workers'\nat_seconds = [2]\nfor_seconds = 60\n\
        [[faults]]\nwhat = 'crash-writing'\nwho = 'coordinator'\nat_seconds = [10]\nfor_seconds = 4\n";
    let outcome = play(faults);
    let torn = outcome.strikes.iter().find(|strike| strike.what == Trouble::CrashWriting).unwrap();
    let again = outcome.log.iter().find_map(|line| line.strip_suffix(" the coordinator starts again")).unwrap();
    assert!(torn.until_seconds > 60.0, "{torn:?}");
    assert_eq!(torn.until_seconds * 1000.0, again.parse::<f64>().unwrap());
}
