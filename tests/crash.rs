//! `kill -9` at any moment: training resumes, nothing is paid twice, nothing acknowledged is lost, the ledger balances.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(unix)]

mod common;

use std::time::Duration;

use common::Hydra;
use hydra::ledger::{EconomyConfig, LedgerConfig, audit};
use hydra::protocol::{Seed, below};
use hydra::store::{DatabaseError, LedgerStore, StateDir};

/// What a killed process left: the transfers of the journal, after checking the journal from the first to the last.
fn transfers(hydra: &Hydra) -> u64 {
    let path = StateDir::database(&hydra.state());
    if !path.exists() {
        return 0;
    }
    let mut store = match LedgerStore::snapshot(&path) {
        Ok(store) => store,
        // Killed before it had made its tables.
        Err(DatabaseError::Older { version: 0..4, .. } | DatabaseError::NotOurs { .. }) => return 0,
        Err(error) => panic!("{error}"),
    };
    let config = LedgerConfig { economy: EconomyConfig::default().check().unwrap(), verifiers: [].into() };
    audit(config, None, &mut store).unwrap().transfers
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_if_it_never_was() {
    const ROUNDS: u64 = 12;
    let rounds = ROUNDS.to_string();
    let up = ["--rounds", &rounds];
    let untouched = Hydra::new();
    let mut expected = untouched.up_json(&up);

    let hydra = Hydra::new();
    let mut rng = Seed::from_number(2026).rng();
    let (mut paid, mut kills, mut in_vain) = (0, 0, 0);
    while paid < 2 * ROUNDS {
        let mut process = hydra.spawn(&["up", "--rounds", &rounds]);
        // A slow machine gets further into a run when it is left alone for longer.
        std::thread::sleep(Duration::from_millis(20 + below(&mut rng, 400 << in_vain)));
        process.kill().unwrap();
        process.wait().unwrap();
        kills += 1;
        let now = transfers(&hydra);
        assert!(now >= paid, "{} transfers were acknowledged and are gone", paid - now);
        in_vain = if now > paid { 0 } else { in_vain + 1 };
        assert!(in_vain < 10, "killed {kills} times, and only {paid} transfers were made");
        paid = now;
    }
    assert!(kills >= 3, "killed {kills} times only: this test shows nothing");

    // This finishes what was asked for. Where the last process had just done so, it is a request of its own, and the run
    // that was never killed gets the same one.
    let summary = hydra.up_json(&up);
    let total = summary["rounds"].as_u64().unwrap();
    while expected["rounds"].as_u64().unwrap() < total {
        expected = untouched.up_json(&up);
    }
    for what in ["rounds", "model_digest", "val_loss_first", "transfers", "emitted", "debits_equal_credits"] {
        assert_eq!(summary[what], expected[what], "a crash changed {what}");
    }
    assert_eq!(summary["debits_equal_credits"], true);
    assert_eq!(summary["transfers"], 2 * total, "one transfer a task");
    assert_eq!(blobs(&hydra), blobs(&untouched), "a crash left something lying about");
}

/// The names of the blobs that are kept.
fn blobs(hydra: &Hydra) -> Vec<String> {
    let files = walkdir::WalkDir::new(StateDir::blobs(&hydra.state())).sort_by_file_name().into_iter();
    let files = files.map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_file());
    files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_disk_that_fills_up_stops_the_run_and_loses_nothing() {
    let untouched = Hydra::new();
    untouched.up_json(&["--rounds", "1"]);
    let expected = untouched.up_json(&["--rounds", "3"]);

    let hydra = Hydra::new();
    hydra.up_json(&["--rounds", "1"]);
    // No file may grow beyond this: the log of the database cannot, or the payloads, or the checkpoint.
    for kib in [8, 64, 200, 1024] {
        let error = hydra.fails_with_full_disk(&["up", "--rounds", "3"], kib);
        assert!(error.contains("error: ") && !error.contains("panicked"), "{kib} KiB: {error}");
    }
    let summary = hydra.up_json(&["--rounds", "3"]);
    for what in ["rounds", "model_digest", "transfers", "emitted", "debits_equal_credits"] {
        assert_eq!(summary[what], expected[what], "a full disk changed {what}");
    }
}

#[test]
fn the_first_interrupt_finishes_the_round() {
    let hydra = Hydra::new();
    let mut process = hydra.spawn(&["up", "--json"]);
    // The keys are made when the database is: before that, looking into it would get in the way.
    common::wait_for(|| hydra.state().join("keys/verifier.key").exists() && transfers(&hydra) >= 4);
    let status = std::process::Command::new("kill").args(["-INT", &process.id().to_string()]).status().unwrap();
    assert!(status.success());
    assert!(process.wait().unwrap().success());
    let paid = transfers(&hydra);
    assert!(paid.is_multiple_of(2), "a round was left half paid: {paid} transfers");
    assert_eq!(hydra.up_json(&["--rounds", "1"])["rounds"].as_u64(), Some(paid / 2 + 1));
}
