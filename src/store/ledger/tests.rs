use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

use super::super::DatabaseError;
use super::*;
use crate::ledger::testing::{
    TestRound, accepted, ask, config, emitting, expected_balances, ledger_key, pay_round, request_for, rounds, wallet,
};
use crate::ledger::{Answer, Ledger, LedgerError, MemoryJournal, Request, audit};

fn open(path: &Path) -> (Ledger, LedgerStore) {
    let mut store = LedgerStore::new(Database::open(path).unwrap()).unwrap();
    (Ledger::open(config(), &mut store).unwrap(), store)
}

/// A folder with the database of a ledger that has paid three rounds with six pays.
fn paid() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hydra.db");
    let (mut ledger, mut store) = open(&path);
    for round in 0..3 {
        let verdicts = vec![accepted(round * 10, 0, 100), accepted(round * 10 + 1, 1, 50)];
        ask(&mut ledger, &mut store, &pay_round(round, verdicts)).unwrap();
    }
    (folder, path)
}

/// Opens the ledger at `path`; the outer error is the file's, the inner one the journal's.
fn try_open(path: &Path) -> Result<Result<Ledger, StoreError>, DatabaseError> {
    let mut store = LedgerStore::new(Database::open(path)?)?;
    let opened = Ledger::open(config(), &mut store);
    let audited = audit(config(), Some(ledger_key().public()), &mut store);
    assert!(opened.is_err() || audited.is_ok(), "{audited:?}");
    Ok(opened)
}

#[track_caller]
fn assert_names(path: &Path, number: u64, what: &str) {
    let before = fs::read(path).unwrap();
    match try_open(path) {
        Ok(Err(error @ StoreError::Damaged { sequence, .. })) => {
            assert_eq!(sequence, number, "{what}: {error}");
            assert!(error.to_string().contains(&format!("entry {number} ")), "{error}");
        }
        other => panic!("{what}: {other:?}"),
    }
    assert!(fs::read(path).unwrap() == before, "{what}: a refused database was touched");
}

fn balances(ledger: &Ledger) -> ([i64; 4], i64) {
    let of = |n| {
        let posts = ledger.book().posts(wallet(n));
        i64::try_from(posts.credits + posts.credits_pending).unwrap()
    };
    ([of(0), of(1), of(2), of(3)], i64::try_from(ledger.book().emitted().0).unwrap())
}

#[test]
fn people_can_read_the_journal_in_sql() {
    let (_folder, path) = paid();
    let connection = Connection::open(&path).unwrap();
    let sql = "SELECT sum(amount) FROM journal WHERE debit = 'emission' AND credit = ?1";
    let sum = |n: u8| connection.query_row(sql, [wallet(n).to_string()], |row| row.get::<_, i64>(0)).unwrap();
    // 2 500 in all, in three rounds of 1 000, 1 000 and 500, two parts to one, the larger remainder rounded up.
    assert_eq!([sum(0), sum(1)], [667 + 667 + 333, 333 + 333 + 167]);
}

#[test]
fn a_flipped_bit_in_any_byte_of_a_transfers_row_is_noticed_and_the_number_named() {
    let (folder, path) = paid();
    let (id, chain) = {
        let mut journal = Vec::new();
        let (_, mut store) = open(&path);
        store
            .entries(&mut |entry| {
                journal.push(entry);
                Ok(())
            })
            .unwrap();
        (journal[2].transfer.id.to_bytes(), *journal[2].chain.as_bytes())
    };
    let sound = fs::read(&path).unwrap();
    // The values of a row lie side by side in the file, from its id to its digest in the chain.
    let find = |bytes: &[u8]| {
        let places = sound.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes);
        places.map(|(place, _)| place).collect::<Vec<_>>()
    };
    let &[end] = find(&chain).as_slice() else { panic!("the digest is there once") };
    let near = |start: &&usize| end > **start && end - **start < 1_000;
    let start = *find(&id).iter().find(near).expect("the id is in the row, and in the index");
    let copy = folder.path().join("copy.db");
    for place in start..end + chain.len() {
        let mut bytes = sound.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&copy, bytes).unwrap();
        assert_names(&copy, 3, &format!("byte {} of the row", place - start));
    }
    assert!(end + chain.len() - start > 300, "the row was tried whole");
    // Before the values (16 bytes): the row's size, its number, and the types. SQLite itself may find these first.
    for place in start - 16..start {
        for bit in 0..8 {
            let mut bytes = sound.clone();
            bytes[place] ^= 1 << bit;
            fs::write(&copy, bytes).unwrap();
            match try_open(&copy) {
                Err(DatabaseError::Damaged { .. }) | Ok(Err(StoreError::Damaged { .. })) => {}
                // The type of the sequence number, NULL, becomes the constant 0. SQLite reads neither: the number
                // is the row's key. It is the one bit without a meaning.
                Ok(Ok(_)) if place == start - 12 && bit == 3 => {}
                other => panic!("bit {bit} of byte {} before the values: {other:?}", start - place),
            }
        }
    }
}

#[test]
fn rows_changed_removed_added_or_swapped_in_sql_are_noticed_and_the_number_named() {
    let swapped = "UPDATE journal SET sequence = 20 WHERE sequence = 2;
        UPDATE journal SET sequence = 2 WHERE sequence = 3;
        UPDATE journal SET sequence = 3 WHERE sequence = 20";
    let forged = "INSERT INTO journal SELECT 7, x'00000000000000000000000000000001', at, kind, debit, credit, amount,
        purpose, body, chain FROM journal WHERE sequence = 6";
    for (number, sql) in [
        (2, "UPDATE journal SET amount = amount + 1 WHERE sequence = 2"),
        (3, "UPDATE journal SET debit = 'treasury' WHERE sequence = 3"),
        (1, "UPDATE journal SET credit = upper(credit) WHERE sequence = 1"),
        (6, "UPDATE journal SET id = x'00' WHERE sequence = 6"),
        (4, "UPDATE journal SET body = (SELECT body FROM journal WHERE sequence = 5) WHERE sequence = 4"),
        (5, "UPDATE journal SET chain = x'' WHERE sequence = 5"),
        (1, "DELETE FROM journal WHERE sequence = 1"),
        (4, "DELETE FROM journal WHERE sequence = 4"),
        (
            7,
            "INSERT INTO journal SELECT 8, x'01', at, kind, debit, credit, amount, purpose, body, chain FROM journal LIMIT 1",
        ),
        (1, "UPDATE journal SET sequence = sequence - 1"),
        (2, swapped),
        (7, forged),
    ] {
        let (_folder, path) = paid();
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        assert_names(&path, number, sql);
    }
}

#[test]
fn a_second_ledger_on_the_same_file_cannot_write_what_the_first_does_not_know() {
    let (_folder, path) = paid();
    let ((mut one, mut store_one), (mut two, mut store_two)) = (open(&path), open(&path));
    let pay = |round| pay_round(round, vec![accepted(round * 10, 2, 1)]);
    // The cap of the tests' configuration is used up: give the next round something to pay.
    let mut more = *config().economy.config();
    more.emission.cap = crate::protocol::Amount::from_hyd(1);
    let more = emitting(more);
    for (ledger, store) in [(&mut one, &mut store_one), (&mut two, &mut store_two)] {
        *ledger = Ledger::open(more.clone(), store).unwrap();
    }
    ask(&mut one, &mut store_one, &pay(3)).unwrap();
    let before = format!("{two:?}");
    let refused = ask(&mut two, &mut store_two, &pay(5));
    assert_eq!(refused, Err(LedgerError::Store(StoreError::Conflict { sequence: 7 })));
    assert_ne!(format!("{two:?}"), before, "whoever is refused is ahead of the truth and opens again");
    assert_eq!(format!("{:?}", Ledger::open(more, &mut store_two).unwrap()), format!("{one:?}"));
}

#[test]
fn a_full_disk_refuses_the_pay_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ledger, mut store) = open(&folder.path().join("hydra.db"));
    let pages = |store: &LedgerStore, most: u32| {
        let connection = store.database.connection();
        connection.pragma_update(None, "max_page_count", most).unwrap();
    };
    let present = store.database.connection().query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    pages(&store, present);
    let request = pay_round(0, (0..100).map(|n| accepted(n, 1, 1)).collect());
    let before = format!("{ledger:?}");
    let refused = ask(&mut ledger, &mut store, &request);
    assert!(
        matches!(&refused, Err(LedgerError::Store(StoreError::Failed(why))) if why.contains("full")),
        "{refused:?}"
    );
    let mut ledger = Ledger::open(config(), &mut store).unwrap();
    assert_eq!(format!("{ledger:?}"), before);
    let Ok(Answer::Totals { transfers: 0, .. }) = ask(&mut ledger, &mut store, &Request::Totals) else { panic!() };
    pages(&store, 1_000_000);
    ask(&mut ledger, &mut store, &request).unwrap();
    assert_eq!(balances(&ledger).0[1], 1_000);
    assert_eq!(format!("{:?}", Ledger::open(config(), &mut store).unwrap()), format!("{ledger:?}"));
}

/// Pays `rounds` on a new database, and gives what was on the disk then, with the connection still open: the file,
/// its write-ahead log, and the state of the ledger after each round.
fn killed_after(rounds: &[TestRound]) -> (Vec<u8>, Vec<u8>, Vec<(u64, Digest)>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hydra.db");
    let (mut ledger, mut store) = open(&path);
    let mut states = vec![(0, ledger.journal().head())];
    for round in rounds {
        ask(&mut ledger, &mut store, &request_for(round)).unwrap();
        states.push((ledger.journal().length(), ledger.journal().head()));
    }
    let log = fs::read(folder.path().join("hydra.db-wal")).unwrap();
    (fs::read(&path).unwrap(), log, states)
}

/// Opens a copy of a database with the first `kept` bytes of its write-ahead log, and checks that it holds the
/// first so many of `rounds`, whole. How many.
fn recovered(file: &[u8], log: &[u8], rounds: &[TestRound], states: &[(u64, Digest)]) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hydra.db");
    fs::write(&path, file).unwrap();
    fs::write(folder.path().join("hydra.db-wal"), log).unwrap();
    let (mut ledger, mut store) = open(&path);
    let state = (ledger.journal().length(), ledger.journal().head());
    let whole = states.iter().rposition(|known| *known == state).expect("no round is there in part");
    ledger.book().assert_invariants();
    assert_eq!(balances(&ledger), expected_balances(&rounds[..whole]));
    // Whoever was not told that a round is paid asks again, and all ends as if nothing had happened.
    for round in rounds {
        ask(&mut ledger, &mut store, &request_for(round)).unwrap();
    }
    assert_eq!(Some(&(ledger.journal().length(), ledger.journal().head())), states.last());
    whole
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_database_cut_anywhere_in_its_write_ahead_log_recovers_a_gap_free_balanced_prefix(
        rounds in rounds(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 8), torn in any::<u8>(),
    ) {
        let (file, log, states) = killed_after(&rounds);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len())).collect();
        // The ends, the header, and both sides of a frame's edge (24 bytes of header, 4 096 of page).
        let frames = (log.len() - 32) / 4_120;
        let edge = 32 + usize::from(torn) % frames * 4_120;
        cuts.extend([0, 31, 32, edge, edge + 1, edge + 24, edge + 4_119, log.len() - 1, log.len()]);
        cuts.sort_unstable();
        let recovered: Vec<usize> =
            cuts.iter().map(|cut| recovered(&file, &log[..*cut], &rounds, &states)).collect();
        prop_assert!(recovered.is_sorted());
        prop_assert_eq!(states[*recovered.last().unwrap()], *states.last().unwrap(), "acknowledged and lost");

        // A page that was being written when the power went.
        let mut half = log.clone();
        half[edge + 24..edge + 2_000].fill(torn);
        self::recovered(&file, &half, &rounds, &states);
    }

    #[test]
    fn rounds_asked_for_twice_and_across_reopenings_are_paid_once_and_like_in_memory(
        rounds in rounds(), reopen in prop::collection::vec(any::<bool>(), 12),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let (mut ledger, mut store) = open(&path);
        let mut memory = MemoryJournal::default();
        let mut twin = Ledger::open(config(), &mut memory).unwrap();
        for (round, reopen) in rounds.iter().zip(reopen) {
            let first = ask(&mut ledger, &mut store, &request_for(round));
            prop_assert_eq!(&first, &ask(&mut twin, &mut memory, &request_for(round)));
            if reopen {
                drop(store);
                (ledger, store) = open(&path);
            }
            prop_assert_eq!(&ask(&mut ledger, &mut store, &request_for(round)), &first);
            prop_assert_eq!(format!("{ledger:?}"), format!("{twin:?}"));
        }
        let mut entries = Vec::new();
        store.entries(&mut |entry| { entries.push(entry); Ok(()) }).unwrap();
        prop_assert_eq!(entries, memory.copy());
        prop_assert_eq!(balances(&ledger), expected_balances(&rounds));
    }
}
