//! `hydra up` and `hydra generate` as a person meets them: real processes, real files.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod common;

use std::fs;

use common::{Hydra, text};

#[test]
fn a_run_trains_pays_and_tells_what_came_of_it() {
    let hydra = Hydra::new();
    let summary = hydra.up_json(&["--rounds", "3"]);
    assert_eq!(summary["rounds"], 3);
    assert_eq!(summary["tokens"], 3 * 2 * 3 * 2 * 16);
    assert!(summary["val_loss_last"].as_f64() < summary["val_loss_first"].as_f64());
    assert_eq!(summary["debits_equal_credits"], true);
    let amount = |value: &serde_json::Value| value.as_str().unwrap().parse::<i64>().unwrap();
    let workers = summary["workers"].as_array().unwrap();
    assert_eq!(workers.iter().map(|worker| amount(&worker["pay"])).sum::<i64>(), amount(&summary["emitted"]));
    assert_eq!(amount(&summary["emitted"]), 3 * 100_000_000);
    assert_eq!(amount(&summary["supply"]), amount(&summary["emitted"]));
    let accounts = summary["accounts"].as_object().unwrap();
    assert_eq!(accounts.values().map(amount).sum::<i64>(), 0, "all accounts together hold nothing");
    for worker in workers {
        assert_eq!(accounts[&format!("wallet:{}", worker["id"].as_str().unwrap())], "0", "nothing has vested");
        assert_eq!((&worker["unvested"], &worker["spendable"]), (&worker["pay"], &serde_json::json!("0")));
    }
}

#[test]
fn running_again_goes_on_where_it_stopped() {
    let hydra = Hydra::new();
    let first = hydra.up_json(&["--rounds", "2"]);
    let second = hydra.up_json(&["--rounds", "2"]);
    assert_eq!((first["rounds"].as_u64(), second["rounds"].as_u64()), (Some(2), Some(4)));
    assert_eq!(first["val_loss_first"], second["val_loss_first"]);
    assert_eq!(first["run"], second["run"]);
    assert_ne!(first["model_digest"], second["model_digest"]);
}

#[test]
fn the_same_seed_and_data_give_the_same_model_whoever_trains() {
    let digest = |seed| Hydra::new().up_json(&["--rounds", "2", "--seed", seed])["model_digest"].clone();
    assert_eq!(digest("4"), digest("4"));
    assert_ne!(digest("4"), digest("5"));
}

#[test]
fn the_newest_model_writes_and_a_seed_makes_it_repeat_itself() {
    let hydra = Hydra::new();
    hydra.up_json(&["--rounds", "1"]);
    let write = || hydra.ok(&["generate", "to be", "--tokens", "30", "--seed", "3"]);
    assert!(write().starts_with("to be"));
    assert_eq!(write(), write());
}

#[test]
fn a_fresh_run_keeps_the_old_one_aside_and_the_keys_in_place() {
    let hydra = Hydra::new();
    let old = hydra.up_json(&["--rounds", "1"]);
    let new = hydra.up_json(&["--rounds", "1", "--fresh", "--seed", "9"]);
    assert_eq!(new["rounds"], 1);
    assert_ne!(old["run"], new["run"]);
    let ids = |summary: &serde_json::Value| -> Vec<String> {
        summary["workers"].as_array().unwrap().iter().map(|worker| worker["id"].to_string()).collect()
    };
    assert_eq!(ids(&old), ids(&new));
    assert!(hydra.state().join("earlier-run-1/hydra.db").exists());
}

#[test]
fn wrong_usage_is_one_sentence_and_exit_code_two() {
    let hydra = Hydra::new();
    for (arguments, said) in [
        (&["--workers", "0"][..], "--workers"),
        (&["--rounds", "0"], "--rounds"),
        (&["--batch", "0"], "batch"),
        (&["--batch", "5000"], "batch"),
        (&["--context", "1"], "context"),
        (&["--context", "1000000"], "context"),
        (&["--inner-steps", "0"], "inner steps"),
        (&["--inner-steps", "1000000"], "inner steps"),
        (&["--lr", "nan"], "learning rate"),
        (&["--lr", "-1"], "learning rate"),
        (&["--device", "abacus"], "abacus"),
        (&["--preset", "gigantic"], "gigantic"),
    ] {
        let error = hydra.fails(&[&["up"], arguments].concat(), 2);
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(!hydra.state().exists(), "{arguments:?} touched the disk");
    }
    let error = hydra.fails(&["generate", "x", "--temperature", "99"], 2);
    assert!(error.contains("temperature"), "{error}");
}

#[test]
fn bad_data_is_named_and_nothing_is_begun() {
    let hydra = Hydra::new();
    let folder = hydra.folder();
    fs::write(folder.join("empty.txt"), "").unwrap();
    fs::write(folder.join("short.txt"), "only this").unwrap();
    for (path, said) in [("missing.txt", "missing.txt"), ("empty.txt", "no text"), ("short.txt", "smaller context")] {
        let path = folder.join(path);
        let error = hydra.fails(&["up", "--rounds", "1", "--data", path.to_str().unwrap()], 1);
        assert!(error.contains(said), "{error}");
    }
    // The same directory is still good for a proper run.
    assert_eq!(hydra.up_json(&["--rounds", "1"])["rounds"], 1);
}

#[test]
fn any_bytes_can_be_trained_on() {
    let hydra = Hydra::new();
    let path = hydra.folder().join("noise.bin");
    fs::write(&path, (0..20_000u32).map(|i| ((i * i) >> 7) as u8).collect::<Vec<_>>()).unwrap();
    let summary = hydra.up_json(&["--rounds", "1", "--data", path.to_str().unwrap()]);
    assert_eq!(summary["rounds"], 1);
}

#[test]
fn settings_of_another_run_are_refused_and_harm_nothing() {
    let hydra = Hydra::new();
    let before = hydra.up_json(&["--rounds", "1"]);
    let other = hydra.folder().join("other.txt");
    fs::write(&other, text().repeat(2)).unwrap();
    let other = other.to_str().unwrap().to_owned();
    for arguments in [
        &["--preset", "micro"][..],
        &["--lr", "0.5"],
        &["--seed", "99"],
        &["--codec", "int8"],
        &["--optimizer", "adamw"],
        &["--data", &other],
    ] {
        let error = hydra.fails(&[&["up", "--rounds", "1"], arguments].concat(), 1);
        assert!(error.contains(arguments[0]) && error.contains("--fresh"), "{arguments:?}: {error}");
    }
    let after = hydra.up_json(&["--rounds", "1"]);
    assert_eq!((after["run"].clone(), after["rounds"].as_u64()), (before["run"].clone(), Some(2)));
}

#[test]
fn a_damaged_model_or_database_is_named_and_left_as_it_is() {
    let hydra = Hydra::new();
    let summary = hydra.up_json(&["--rounds", "1"]);
    let digest = summary["model_digest"].as_str().unwrap();
    let model = hydra.state().join("blobs").join(&digest[..2]).join(digest);
    let sound = fs::read(&model).unwrap();
    let mut damaged = sound.clone();
    damaged[5000] ^= 1;
    fs::write(&model, &damaged).unwrap();
    for command in [&["up", "--rounds", "1"][..], &["generate", "x"]] {
        let error = hydra.fails(command, 1);
        assert!(error.contains("damaged") && error.contains(digest), "{error}");
    }
    assert_eq!(fs::read(&model).unwrap(), damaged);
    fs::write(&model, sound).unwrap();

    let database = hydra.state().join("hydra.db");
    let sound = fs::read(&database).unwrap();
    fs::write(&database, b"this is no database, though it is long enough to be looked at as if it were one").unwrap();
    let error = hydra.fails(&["up", "--rounds", "1"], 1);
    assert!(error.contains("hydra.db"), "{error}");
    fs::write(&database, sound).unwrap();
    assert_eq!(hydra.up_json(&["--rounds", "1"])["rounds"], 2);
}

#[test]
fn a_state_directory_has_one_process_at_a_time() {
    let hydra = Hydra::new();
    let mut first = hydra.spawn(&["up"]);
    common::wait_for(|| hydra.state().join("hydra.db").exists());
    let error = hydra.fails(&["up", "--rounds", "1"], 1);
    assert!(error.contains("in use"), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
}
