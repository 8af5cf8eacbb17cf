//! What whoever runs the command sees.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SMALL: &str = "about = 'a small swarm'\n\
    job = { rounds = 3, inner_steps = 4, batch = 4, objective = 'surrogate', learning_rate = 0.02, \
    model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 } }\n\
    workers = [{ count = 4, tokens_per_second = 40 }, { count = 2, tokens_per_second = 40, behaviour = { scale = -10.0 } }]\n\
    faults = [{ what = 'pause', who = 'workers', at_seconds = [5] }]\n";

fn sim(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_hydra-sim")).args(arguments).output().unwrap();
    let text = format!("{}{}", String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    (status.code().unwrap(), text)
}

fn small(folder: &Path) -> (PathBuf, String) {
    let path = folder.join("small.toml");
    fs::write(&path, SMALL).unwrap();
    let name = path.display().to_string();
    (path, name)
}

#[test]
fn a_run_says_its_seed_first_and_how_to_play_it_again_last() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scenario) = small(folder.path());
    let (code, text) = sim(&[&scenario, "--seed", "9", "--set", "job.rounds=2", "--check-determinism"]);
    assert_eq!(code, 0, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("seed 9, commit ") && lines[0].contains("scenario "), "{text}");
    assert!(lines[lines.len() - 2].starts_with("state "), "{text}");
    assert!(lines.last().unwrap().ends_with("--seed 9 --set 'job.rounds=2'"), "{text}");
}

#[test]
fn json_is_one_object_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scenario) = small(folder.path());
    let (code, text) = sim(&[&scenario, "--json", "--seeds", "1..4", "--jobs", "2"]);
    assert_eq!(code, 0, "{text}");
    let objects: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 3);
    for object in objects {
        for key in ["seed", "state_hash", "passed", "events", "virtual_seconds", "wall_seconds"] {
            assert!(object.get(key).is_some(), "{key} is not in {object}");
        }
    }
}

#[test]
fn an_expectation_that_fails_gives_1_and_a_scenario_that_cannot_be_played_2() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scenario) = small(folder.path());
    let (code, text) = sim(&[&scenario, "--set", "expect.loss_below=0.001"]);
    assert!(code == 1 && text.contains("FAILED: the validation loss"), "{text}");
    for (change, said) in [
        ("workers=[]", "no workers"),
        ("job.ronds=3", "ronds"),
        ("expect.verifiers_struck_off=1", "audits"),
        ("faults.0.group='none'", "none"),
        ("network.loss=1.5", "loss"),
        ("job.rounds.x=1", "value on the way"),
    ] {
        let (code, text) = sim(&[&scenario, "--set", change]);
        assert!(code == 2 && text.contains(said), "{change}: {text}");
    }
    assert_eq!(sim(&["nowhere.toml"]).0, 2);
    assert_eq!(sim(&[]).0, 2);
}

#[test]
fn a_folder_is_played_again_shrunk_and_compared_and_not_believed_when_it_was_edited() {
    let folder = tempfile::tempdir().unwrap();
    let (_, scenario) = small(folder.path());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (one, other) = (at("one"), at("other"));
    let (code, text) = sim(&[&scenario, "--set", "expect.loss_below=0.001", "--out", &one]);
    assert_eq!(code, 1, "{text}");
    assert_eq!(sim(&[&scenario, "--seed", "2", "--out", &other]).0, 0);
    let report = fs::read_to_string(Path::new(&one).join("report.html")).unwrap();
    assert!(report.contains("<polyline") && report.contains("FAILED") && !report.contains("http"), "self-contained");
    let again = format!("cargo sim {scenario} --seed 1 --set 'expect.loss_below=0.001'");
    assert!(report.contains(&format!("again: <code>{again}</code>")), "{again} is not in the report");
    assert_eq!(fs::read_to_string(Path::new(&one).join("metrics.csv")).unwrap().lines().count(), 4);

    let (code, text) = sim(&["replay", &one]);
    assert!(code == 0 && text.contains("the same again"), "{text}");
    let (code, text) = sim(&["diff", &one, &other]);
    assert!(code == 1 && text.contains("they part at event"), "{text}");
    assert_eq!(sim(&["diff", &one, &one]).0, 0);
    assert_eq!(sim(&["shrink", &other]).0, 2, "it did not fail");
    let (code, text) = sim(&["shrink", &one]);
    assert!(code == 0 && text.contains("FAILED: the validation loss"), "{text}");
    let shrunk = fs::read_to_string(Path::new(&one).join("shrunk.toml")).unwrap();
    assert!(text.trim_end().ends_with("shrunk.toml --seed 1"), "{text}");
    assert!(shrunk.contains("rounds = 1") && !shrunk.contains("pause") && !shrunk.contains("scale"), "{shrunk}");

    let until = at("until");
    assert_eq!(sim(&[&scenario, "--until", "9", "--out", &until]).0, 0);
    let report = fs::read_to_string(Path::new(&until).join("report.html")).unwrap();
    assert!(report.contains("--seed 1 --until 9</code>"), "a run that was cut short is cut short again");

    let events = Path::new(&one).join("events.jsonl");
    let text = fs::read_to_string(&events).unwrap();
    fs::write(&events, &text[..text.len() / 2]).unwrap();
    let (code, text) = sim(&["replay", &one]);
    assert!(code == 2 && text.contains("events.jsonl was cut off or edited"), "{text}");
}

#[test]
fn a_new_scenario_can_be_played_and_does_not_overwrite_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml").display().to_string();
    assert_eq!(sim(&["new", &path]).0, 0);
    assert_eq!(sim(&["new", &path]).0, 2);
    let (code, text) = sim(&[&path]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = sim(&["list", &folder.path().display().to_string()]);
    assert!(code == 0 && text.contains("What this scenario shows"), "{text}");
}

#[test]
fn the_published_schema_is_that_of_scenario_files() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/scenario.schema.json");
    let published: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(published, hydra_sim::Scenario::schema(), "cargo sim schema > docs/src/scenario.schema.json");
    let properties = &published["properties"];
    assert!(properties["job"].is_object() && published["additionalProperties"] == false);
}

#[test]
fn every_help_has_examples_of_its_own() {
    for subcommand in ["list", "new", "replay", "shrink", "diff", "schema", "sweep"] {
        let (code, text) = sim(&[subcommand, "--help"]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("Examples:\n") && text.contains(&format!("cargo sim {subcommand}")), "{text}");
    }
}
