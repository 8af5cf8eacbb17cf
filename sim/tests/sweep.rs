//! Scenarios that nobody wrote. A few that are always the same by default; `HYDRA_SWEEP_SECONDS=600 cargo test --test sweep`
//! plays others for so long, and says with which seed they begin.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::Path;
use std::process::Command;

#[test]
fn whatever_is_made_up_of_workers_lines_and_troubles_holds_the_laws_and_comes_out_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydra-sim"));
    command.args(["sweep", "--keep"]).arg(folder.path());
    match std::env::var("HYDRA_SWEEP_SECONDS") {
        Ok(seconds) => command.args(["--seconds", &seconds]),
        Err(_) => command.args(["--seed", "1", "--count", "10"]),
    };
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    println!("{said}");
    assert!(said.starts_with("seed ") && said.contains("scenarios, each twice"), "{said}");
    if !output.status.success() {
        // The folder is gone after this; what failed is wanted.
        let kept = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let texts: Vec<String> = kept.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        assert!(output.status.success(), "{said}\n{}", texts.join("\n"));
    }
}

#[test]
fn a_browser_shows_the_report_of_a_run_and_asks_nobody_for_anything() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let made = Command::new(root.join("tests/browser/make")).arg("--if-made").output().unwrap();
    if !made.status.success() {
        println!("left out: there is no Chromium or no Playwright; tests/browser/make makes what is needed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let played = Command::new(env!("CARGO_BIN_EXE_hydra-sim"))
        .arg(root.join("scenarios/half-leave.toml"))
        .args(["--set", "faults=[{what='cut', who='workers', at_seconds=[20]}]", "--out"])
        .arg(&run)
        .output()
        .unwrap();
    assert!(played.status.success(), "{}", String::from_utf8_lossy(&played.stdout));
    let mut look = Command::new(String::from_utf8(made.stdout).unwrap().trim());
    look.arg(root.join("tests/browser/report.py")).arg(run.join("report.html"));
    if let Ok(pictures) = std::env::var("HYDRA_TEST_PICTURES") {
        look.arg(pictures);
    }
    let output = look.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}
