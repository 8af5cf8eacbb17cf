//! `hydra ledger` and `hydra wallet` as a person meets them: a run pays its workers, who send, offer and prove.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

mod common;

use std::fs;

use common::Hydra;

/// A state directory in which something has vested for both workers: 1 round more than it takes.
fn paid() -> Hydra {
    let hydra = Hydra::new();
    let summary = hydra.up_json(&["--rounds", "34", "--inner-steps", "1"]);
    assert_eq!(summary["debits_equal_credits"], true);
    hydra
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn field(hydra: &Hydra, wallet: &str, field: &str) -> i64 {
    let balance = json(&hydra.ok(&["wallet", "balance", "--wallet", wallet, "--json"]));
    balance[field].as_str().unwrap().parse().unwrap()
}

#[test]
fn workers_spend_what_has_vested_trade_it_and_prove_it() {
    let hydra = paid();
    let sound = hydra.ok(&["ledger", "verify"]);
    assert!(sound.starts_with("sound: 72 transfers, 34 signed heads by "), "{sound}");
    assert_eq!(sound.lines().count(), 1);
    let ledger_key = sound.split(" by ").nth(1).unwrap().split(';').next().unwrap().to_owned();

    // 68 pays of 50 HYD, of which 2 have vested for each worker.
    let of = |wallet: &str, what: &str| field(&hydra, wallet, what);
    assert_eq!((of("worker-1", "spendable"), of("worker-1", "unvested")), (100_000_000, 1_600_000_000));
    let me = hydra.ok(&["wallet", "new"]).trim().to_owned();
    assert_eq!(hydra.ok(&["wallet", "show"]).trim(), me);
    let error = hydra.fails(&["wallet", "new"], 1);
    assert!(error.contains("there already"), "{error}");
    let done = hydra.ok(&["wallet", "send", &me, "70.25", "--wallet", "worker-1", "--json"]);
    assert_eq!((of("worker-1", "spendable"), of("wallet", "spendable")), (29_750_000, 70_250_000));
    let error = hydra.fails(&["wallet", "send", &me, "29.750001", "--wallet", "worker-1"], 1);
    assert!(error.contains("can spend 29.75 HYD"), "{error}");
    for bad in ["0.0000001", "-1", "1e3", "0,5", "NaN"] {
        hydra.fails(&["wallet", "send", &me, bad], 2);
    }
    assert_eq!(of("wallet", "spendable"), 70_250_000);

    let made = json(&hydra.ok(&["wallet", "offer", "make", "20", "--terms", "a bicycle", "--json"]));
    let offer = made["id"].as_str().unwrap();
    assert_eq!((of("wallet", "spendable"), of("wallet", "held")), (50_250_000, 20_000_000));
    hydra.ok(&["wallet", "offer", "accept", offer, "--wallet", "worker-2"]);
    hydra.fails(&["wallet", "offer", "cancel", offer], 1);
    assert!(hydra.ok(&["wallet", "offer", "list"]).contains("accepted by"));
    hydra.ok(&["wallet", "offer", "release", offer]);
    assert_eq!((of("wallet", "held"), of("worker-2", "spendable")), (0, 120_000_000));
    assert_eq!(hydra.ok(&["wallet", "offer", "list"]), "");
    hydra.ok(&["wallet", "stake", "10"]);
    hydra.ok(&["wallet", "unstake", "4"]);
    assert_eq!((of("wallet", "stake"), of("wallet", "unvested")), (10_000_000, 4_000_000));
    let history = hydra.ok(&["wallet", "history"]);
    for what in ["sent (single)", "offered (pending)", "traded (post)", "staked (single)", "unstaking (pending)"] {
        assert!(history.contains(what), "{what} is not in {history}");
    }

    // Proofs need nothing but the key.
    let id = json(&done)["id"].as_str().unwrap().to_owned();
    let proof = hydra.folder().join("proof.json");
    let check = |hydra: &Hydra, text: &str, key: &str, code: i32| {
        fs::write(&proof, text).unwrap();
        let arguments = ["ledger", "check-proof", proof.to_str().unwrap(), "--key", key];
        if code == 0 { hydra.ok(&arguments) } else { hydra.fails(&arguments, code) }
    };
    let inclusion = hydra.ok(&["ledger", "proof", &id]);
    assert_eq!(inclusion, hydra.ok(&["ledger", "proof", "73"]), "by its number as well");
    let stranger = Hydra::new();
    let proved = check(&stranger, &inclusion, &ledger_key, 0);
    assert!(proved.contains(&id) && proved.contains("70.25 HYD"), "{proved}");
    let forged = inclusion.replace("\"70250000\"", "\"90250000\"");
    assert_ne!(forged, inclusion);
    assert!(check(&stranger, &forged, &ledger_key, 1).contains("do not lead"));
    assert!(check(&stranger, &inclusion, &me, 1).contains("not the key of the ledger"));
    let growth = hydra.ok(&["ledger", "proof", "--since", "40"]);
    assert!(check(&stranger, &growth, &ledger_key, 0).contains("all 40 transfers"));
    assert!(hydra.fails(&["ledger", "proof", "--since", "41"], 1).contains("nearest size that was signed is 40"));
    hydra.fails(&["ledger", "proof", "xyz"], 2);
    hydra.fails(&["ledger", "proof", "100000"], 1);

    // The run goes on with all of it.
    let summary = hydra.up_json(&["--rounds", "1", "--inner-steps", "1"]);
    assert_eq!(summary["rounds"], 35);
    assert!(hydra.ok(&["ledger", "verify"]).starts_with("sound: "));
}

#[test]
fn a_ledger_is_exported_backed_up_restored_and_its_damage_named() {
    let hydra = Hydra::new();
    hydra.up_json(&["--rounds", "2"]);
    let before = hydra.ok(&["ledger", "verify"]);
    let lines = hydra.ok(&["ledger", "export"]);
    let entries: Vec<serde_json::Value> = lines.lines().map(json).collect();
    assert_eq!(entries.len(), 4);
    assert_eq!((entries[0]["sequence"].as_u64(), entries[0]["amount"].as_str()), (Some(1), Some("50000000")));
    let table = hydra.ok(&["ledger", "export", "--format", "csv"]);
    assert!(table.starts_with("sequence,at_ms,id,kind,") && table.lines().count() == 5, "{table}");

    let copy = hydra.folder().join("copy.db");
    let copy = copy.to_str().unwrap();
    assert!(hydra.ok(&["ledger", "backup", copy]).contains("sound: 4 transfers"));
    assert!(hydra.fails(&["ledger", "backup", copy], 1).contains("there already"));
    let files: Vec<String> = fs::read_dir(hydra.folder())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("copy"))
        .collect();
    assert_eq!(files, ["copy.db"], "one file");

    hydra.up_json(&["--rounds", "1"]);
    let connection = rusqlite::Connection::open(hydra.state().join("hydra.db")).unwrap();
    connection.execute("UPDATE journal SET amount = amount + 1 WHERE sequence = 3", []).unwrap();
    drop(connection);
    for command in
        [&["ledger", "verify"][..], &["ledger", "backup", "nowhere.db"], &["wallet", "send", &"a".repeat(64), "1"]]
    {
        if command[0] == "ledger" {
            assert!(hydra.fails(command, 1).contains("entry 3"), "{command:?}");
        }
    }
    assert!(hydra.fails(&["up", "--rounds", "1"], 1).contains("entry 3"));
    let restored = hydra.ok(&["ledger", "restore", copy]);
    assert!(restored.contains("replaced-database-1") && restored.contains("sound: 4 transfers"), "{restored}");
    assert_eq!(hydra.ok(&["ledger", "verify"]), before);
    assert_eq!(hydra.up_json(&["--rounds", "1"])["rounds"], 3);
    fs::write(copy, "not a database").unwrap();
    hydra.fails(&["ledger", "restore", copy], 1);
    assert!(hydra.ok(&["ledger", "verify"]).starts_with("sound: 6 transfers"));
}

#[test]
fn a_wallet_under_a_passphrase_signs_with_it_only() {
    let hydra = Hydra::new();
    hydra.up_json(&["--rounds", "1"]);
    let words = hydra.folder().join("words");
    fs::write(&words, "correct horse\n").unwrap();
    let words = words.to_str().unwrap();
    let key = hydra.ok(&["wallet", "new", "--protect", "--passphrase-file", words]).trim().to_owned();
    assert_eq!(hydra.ok(&["wallet", "show"]).trim(), key);
    #[cfg(unix)]
    {
        let file = fs::metadata(hydra.state().join("keys/wallet.key")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o777, 0o600);
    }
    let to = hydra.ok(&["wallet", "show", "--wallet", "worker-1"]).trim().to_owned();
    let error = hydra.fails(&["wallet", "send", &to, "1"], 1);
    assert!(error.contains("--passphrase-file"), "{error}");
    let error = hydra.fails(&["wallet", "send", &to, "1", "--passphrase-file", words], 1);
    assert!(error.contains("can spend 0.00 HYD"), "{error}");
    fs::write(words, "correct house\n").unwrap();
    let error = hydra.fails(&["wallet", "send", &to, "1", "--passphrase-file", words], 1);
    assert!(error.contains("does not fit"), "{error}");
    assert!(hydra.fails(&["wallet", "show", "--wallet", "../verifier"], 1).contains("no name for a key"));
}
