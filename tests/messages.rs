//! What people are told when something goes wrong: `messages.txt` beside this file, word for word.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]
#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const KEY: &str = "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c";

/// Mistakes, as they are typed. `=` sets a variable, as in a shell.
const MISTAKES: &[&str] = &[
    // The command line.
    "upp",
    "up --round 3",
    "up --workers 0",
    "up --rounds many",
    "up --preset gigantic",
    "up --context 1",
    "up --lr nan",
    "up --device abacus",
    "coordinator --tls-cert a.pem",
    "coordinator --price 5",
    "coordinator --task-target 5m",
    "worker",
    "worker --coordinator ftp://organiser",
    "worker --coordinator http://127.0.0.1:1 --schedule 25:00-07:00",
    "worker --coordinator http://127.0.0.1:1 --memory lots",
    "serve --coordinator ftp://organiser",
    "top --json",
    "wallet send KEY 1.2345678",
    "wallet send somebody 1",
    "wallet key list",
    "ledger proof",
    "ledger check-proof proof.json",
    "generate text --temperature 99",
    "completions cmd",
    // The configuration.
    "HYDRA_CPUS=two worker --coordinator http://127.0.0.1:1",
    "HYDRA_IDLE_ONLY=perhaps worker --coordinator http://127.0.0.1:1",
    "--config missing.toml up",
    "--config typo.toml up",
    "--config table.toml up",
    // What is not there.
    "up --data missing.txt",
    "up --data empty.txt",
    "generate text",
    "verdicts",
    "verifier recheck 3",
    "ledger verify",
    "ledger head",
    "ledger export",
    "ledger restore missing.bak",
    "ledger check-proof missing.json --key KEY",
    "ledger check-proof empty.txt --key KEY",
    "wallet show",
    "wallet balance",
    "wallet balance KEY",
    "wallet send KEY 1",
    "wallet offer list",
    "worker status",
    // Nobody answers.
    "query text --coordinator http://127.0.0.1:1",
    "top --once --coordinator http://127.0.0.1:1",
    "verdicts --coordinator http://127.0.0.1:1",
    "wallet balance KEY --coordinator organiser",
    // What is in the way.
    "man empty.txt",
    "up --state-dir empty.txt",
];

/// What the command says to a mistake, in a folder where nothing has been done yet.
fn told(mistake: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().join("here");
    fs::create_dir(&here).unwrap();
    fs::write(here.join("empty.txt"), "").unwrap();
    fs::write(here.join("typo.toml"), "[worker]\ncpu-pecent = 50\n").unwrap();
    fs::write(here.join("table.toml"), "[workers]\ncpus = 2\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
    command.current_dir(&here).env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path().join("data"));
    command.env("COLUMNS", "100").env("XDG_CACHE_HOME", folder.path().join("cache")).stdin(Stdio::null());
    for word in mistake.split(' ') {
        match word.split_once('=') {
            Some((name, value)) => command.env(name, value),
            None => command.arg(if word == "KEY" { KEY } else { word }),
        };
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{mistake}: {said}");
    let said = said.replace(folder.path().to_str().unwrap(), "~").replace(KEY, "KEY");
    // Numbers of errors are the system's own.
    let said: String = said.lines().map(|line| format!("{}\n", line.split(" (os error ").next().unwrap())).collect();
    let typed = match mistake.split_once(' ') {
        Some((variable, rest)) if variable.contains('=') => format!("{variable} hydra {rest}"),
        _ => format!("hydra {mistake}"),
    };
    format!("$ {typed}\n{said}exit code {}\n\n", output.status.code().unwrap())
}

/// `HYDRA_TEST_WRITE=1 cargo test --test messages` writes the file anew.
#[test]
fn every_mistake_is_answered_as_it_was() {
    let told: Vec<String> = std::thread::scope(|scope| {
        let halves: Vec<_> = MISTAKES
            .chunks(MISTAKES.len().div_ceil(4))
            .map(|some| scope.spawn(|| some.iter().map(|mistake| told(mistake)).collect::<Vec<_>>()))
            .collect();
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    for told in &told {
        assert!(!told.contains("exit code 0") && told.contains("error: "), "{told}");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/messages.txt");
    let now = told.concat();
    if std::env::var_os("HYDRA_TEST_WRITE").is_some() {
        fs::write(&file, &now).unwrap();
    }
    let before = fs::read_to_string(&file).unwrap_or_default();
    let line = before.lines().zip(now.lines()).find(|(before, now)| before != now);
    assert!(before == now, "first at {line:?}; HYDRA_TEST_WRITE=1 cargo test --test messages writes it anew");
}
