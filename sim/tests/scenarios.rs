//! Every scenario that is shipped holds what it promises, and comes out the same twice.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::{Path, PathBuf};

use hydra_sim::{Scenario, run};

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

#[test]
fn shipped_scenarios_hold_what_they_promise_with_their_seed_and_another() {
    for path in shipped() {
        let scenario = Scenario::read(&path).unwrap();
        for seed in [scenario.seed, 77] {
            let outcome = run(&scenario, seed, 2).unwrap();
            let again = format!("again: cargo sim {} --seed {seed}", path.display());
            assert!(outcome.passed, "{:#?}\n{again}", outcome.failures);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_events_model_and_ledger_on_one_thread_and_two() {
    for path in shipped() {
        let scenario = Scenario::read(&path).unwrap();
        let [one, two, again] = [1, 2, 2].map(|threads| run(&scenario, 5, threads).unwrap());
        for other in [two, again] {
            let differs = one.log.iter().zip(&other.log).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{}: {:?}", path.display(), differs.map(|at| (&one.log[at], &other.log[at])));
            assert_eq!((one.model, one.ledger, one.state_hash), (other.model, other.ledger, other.state_hash));
        }
        let different = run(&scenario, 6, 2).unwrap();
        assert_ne!(different.model, one.model, "the seed changes nothing: this test shows nothing");
    }
}

#[test]
fn a_scenario_with_a_mistake_is_refused_with_its_place() {
    let folder = std::env::temp_dir().join(format!("hydra-sim-scenarios-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let sound =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/baseline.toml")).unwrap();
    let refused = |from: &str, to: &str| {
        let path = folder.join("mistake.toml");
        assert!(sound.contains(from), "the scenario has no {from}");
        std::fs::write(&path, sound.replacen(from, to, 1)).unwrap();
        Scenario::read(&path).unwrap_err().to_string()
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
    assert!(Scenario::read(&folder.join("missing.toml")).unwrap_err().to_string().contains("missing.toml"));
    std::fs::remove_dir_all(folder).unwrap();
}
