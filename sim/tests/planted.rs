//! Bugs that the simulator has to find. All of them are built into one copy of the code, where a variable of the
//! environment says which one is there: the code that is shipped knows nothing of them.
//!
//! `cargo test --test planted -- --ignored --nocapture` builds that copy (as long as the library takes, once) and plays
//! each bug's scenario until a seed finds it.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bugs {
    bug: Vec<Bug>,
}

/// A bug, and what finds it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bug {
    name: String,
    /// In `scenarios/`.
    scenario: String,
    /// Changes of that.
    #[serde(default)]
    set: Vec<String>,
    /// How many seeds it may take.
    seeds: u64,
    change: Vec<Change>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    file: PathBuf,
    old: String,
    new: String,
}

fn root() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

fn bugs() -> Vec<Bug> {
    let text = fs::read_to_string(root().join("sim/planted/bugs.toml")).unwrap();
    toml::from_str::<Bugs>(&text).unwrap().bug
}

#[test]
fn planted_bugs_are_changes_of_the_code_as_it_is() {
    let bugs = bugs();
    assert!(bugs.len() >= 12);
    for Bug { name, scenario, change, .. } in &bugs {
        assert!(root().join(format!("scenarios/{scenario}.toml")).exists(), "{name}: there is no scenario {scenario}");
        assert!(change.iter().any(|change| change.new.contains("PLANTED")), "{name} is always there");
        for Change { file, old, .. } in change {
            let source = fs::read_to_string(root().join(file)).unwrap();
            let places = source.matches(old.as_str()).count();
            assert_eq!(places, 1, "{name}: its place in {} has changed:\n{old}", file.display());
        }
    }
}

/// Which bug is there. Part of the copy only.
const SWITCH: &str = r#"
/// Whether this bug is there.
#[allow(clippy::all, clippy::pedantic)]
pub(crate) fn planted(bug: &str) -> bool {
    static THERE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    THERE.get_or_init(|| std::env::var("HYDRA_PLANTED").unwrap_or_default()) == bug
}
"#;

/// Copies what the two packages are made of.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (name, target) = (entry.file_name(), to.join(entry.file_name()));
        if name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Builds the simulator with all bugs in it.
fn build(bugs: &[Bug]) -> PathBuf {
    let tree = root().join("target/planted/tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).unwrap();
    }
    copy(&root(), &tree);
    for Bug { name, change, .. } in bugs {
        for Change { file, old, new } in change {
            let path = tree.join(file);
            let new = new.replace("PLANTED", &format!("crate::planted({name:?})"));
            fs::write(&path, fs::read_to_string(&path).unwrap().replacen(old, &new, 1)).unwrap();
        }
    }
    let library = tree.join("src/lib.rs");
    fs::write(&library, fs::read_to_string(&library).unwrap() + SWITCH).unwrap();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // The dependencies that are built already are those of the copy too.
    let built = Command::new(cargo)
        .args(["build", "--workspace", "--bins", "--target-dir"])
        .arg(root().join("target"))
        .current_dir(&tree)
        .status()
        .unwrap();
    assert!(built.success(), "the code with the bugs does not build");
    let program = root().join("target/planted/hydra-sim");
    fs::rename(root().join("target/debug/hydra-sim"), &program).unwrap();
    // The next build puts the real ones there again.
    fs::remove_file(root().join("target/debug/hydra")).unwrap();
    program
}

/// What a run says is wrong.
fn play(program: &Path, bug: &Bug, there: bool, seed: u64) -> Option<String> {
    let scenario = root().join(format!("scenarios/{}.toml", bug.scenario));
    let mut command = Command::new(program);
    command.arg(scenario).args(["--seed", &seed.to_string()]).env("HYDRA_PLANTED", if there { &bug.name } else { "" });
    for change in &bug.set {
        command.args(["--set", change]);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let failed = said.lines().find_map(|line| line.strip_prefix("FAILED: ")).map(str::to_owned);
    if output.status.success() { None } else { Some(failed.unwrap_or(said)) }
}

#[test]
#[ignore = "builds the library once more"]
fn every_planted_bug_is_found_within_its_seeds() {
    let bugs = bugs();
    let program = build(&bugs);
    let mut missed = Vec::new();
    for bug in &bugs {
        assert_eq!(play(&program, bug, false, 1), None, "{} fails without the bug", bug.scenario);
        let found = (1..=bug.seeds).find_map(|seed| Some((seed, play(&program, bug, true, seed)?)));
        match found {
            Some((seed, how)) => println!("| {} | `{}` | {seed} | {how} |", bug.name, bug.scenario),
            None => missed.push(&bug.name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
