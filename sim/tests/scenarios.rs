//! Every scenario that is shipped holds what it promises, and comes out the same twice.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use hydra::runtime::Stopwatch;
use hydra_sim::{Scenario, run};

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Longer than this, one play must do for a second seed.
const LONG: Duration = Duration::from_secs(3);

#[test]
fn shipped_scenarios_hold_what_they_promise_and_come_out_the_same_on_one_thread_and_two() {
    for path in shipped() {
        let name = path.display();
        let scenario = Scenario::read(&path).unwrap();
        let holds = |seed, threads| {
            let outcome = run(&scenario, seed, threads).unwrap();
            let again = format!("again: cargo sim {name} --seed {seed}");
            assert!(outcome.passed, "{:#?}\n{again}", outcome.failures);
            outcome
        };
        let watch = Stopwatch::start();
        let two = holds(scenario.seed, 2);
        let took = watch.elapsed();
        println!("{took:8.2?} {name}");
        let one = holds(scenario.seed, 1);
        let differs = one.log.iter().zip(&two.log).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{name}: {:?}", differs.map(|at| (&one.log[at], &two.log[at])));
        assert_eq!((one.model, one.ledger, one.state_hash), (two.model, two.ledger, two.state_hash));
        if took < LONG {
            let other = holds(77, 2);
            assert_ne!(other.model, one.model, "the seed changes nothing: this test shows nothing");
        }
    }
}

#[test]
fn a_scenario_with_a_mistake_is_refused_with_its_place() {
    let sound =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/baseline.toml")).unwrap();
    let refused = |from: &str, to: &str| {
        assert!(sound.contains(from), "the scenario has no {from}");
        Scenario::parse(Path::new("mistake.toml"), &sound.replacen(from, to, 1)).unwrap_err().to_string()
    };
    let unknown = refused("inner_steps", "iner_steps");
    assert!(
        unknown.contains("mistake.toml") && unknown.contains("iner_steps") && unknown.contains("line"),
        "{unknown}"
    );
    assert!(refused("tokens_per_second = 500", "tokens_per_second = 0").contains("never finishes"));
    assert!(refused("[20, 150]", "[150, 20]").contains("latency_ms"));
    assert!(refused("heads = 2", "heads = 5").contains("heads"));
    assert!(refused("rounds = 6", "rounds = 0").contains("rounds"));
    assert!(Scenario::read(Path::new("nowhere/missing.toml")).unwrap_err().to_string().contains("missing.toml"));
}
