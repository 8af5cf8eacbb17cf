use rusqlite::{ErrorCode, Row, params};

use super::Database;
use crate::ledger::{Entry, JournalStore, StoreError, Transfer};
use crate::protocol::{Digest, limits, wire};

/// The journal's table. `body` is the transfer; `id`, `debit`, `credit` and `amount` (µHYD) repeat what it says, for
/// people with an SQL prompt, and are compared with it whenever the journal is loaded.
pub(super) const SCHEMA: &str = "
    CREATE TABLE transfers (
        sequence INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        debit TEXT NOT NULL,
        credit TEXT NOT NULL,
        amount INTEGER NOT NULL,
        body BLOB NOT NULL,
        chain BLOB NOT NULL
    ) STRICT;
";

/// The ledger's journal in the database.
#[derive(Debug)]
pub struct LedgerStore {
    database: Database,
}

impl LedgerStore {
    /// The journal in `database`.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }
}

impl JournalStore for LedgerStore {
    fn load(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let select = "SELECT sequence, id, debit, credit, amount, body, chain FROM transfers ORDER BY sequence";
        let mut statement = self.database.connection().prepare(select)?;
        let mut rows = statement.query([])?;
        let mut next = 1;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(()),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                    return Err(StoreError::damaged(next, error.to_string()));
                }
                Err(error) => return Err(error.into()),
            };
            visit(read(row, next)?)?;
            next += 1;
        }
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.database.write(|transaction| {
            let insert = "INSERT INTO transfers (sequence, id, debit, credit, amount, body, chain)
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let mut statement = transaction.prepare_cached(insert)?;
            for Entry { sequence, transfer, chain } in entries {
                let written = statement.execute(params![
                    i64::try_from(*sequence).map_err(|_| StoreError::Failed("it is full".into()))?,
                    transfer.id.to_bytes(),
                    transfer.debit.to_string(),
                    transfer.credit.to_string(),
                    transfer.amount.micro(),
                    transfer.encode(),
                    chain.as_bytes(),
                ]);
                written.map_err(|error| match error.sqlite_error_code() {
                    Some(ErrorCode::ConstraintViolation) => StoreError::Conflict { sequence: *sequence },
                    _ => error.into(),
                })?;
            }
            Ok(())
        })
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The entry in `row`, if it is number `next` and its columns agree with each other.
fn read(row: &Row, next: u64) -> Result<Entry, StoreError> {
    let sequence: i64 = row.get("sequence").map_err(|error| StoreError::damaged(next, error.to_string()))?;
    if u64::try_from(sequence) != Ok(next) {
        return Err(StoreError::damaged(next, format!("number {sequence} stands in its place")));
    }
    let damaged = |problem: String| StoreError::damaged(next, problem);
    let bytes = |column: &str| {
        // As bytes, because a damaged text need not be one any more.
        let value = row.get_ref(column).map_err(|error| error.to_string());
        let bytes = value.and_then(|value| value.as_bytes().map_err(|error| error.to_string()));
        bytes.map_err(|problem| damaged(format!("{column}: {problem}")))
    };
    let transfer: Transfer =
        wire::decode(bytes("body")?, limits::TRANSFER_BYTES_MAX).map_err(|error| damaged(format!("body: {error}")))?;
    let amount: i64 = row.get("amount").map_err(|error| damaged(format!("amount: {error}")))?;
    let agree = [
        ("id", bytes("id")? == transfer.id.to_bytes()),
        ("debit", bytes("debit")? == transfer.debit.to_string().as_bytes()),
        ("credit", bytes("credit")? == transfer.credit.to_string().as_bytes()),
        ("amount", amount == transfer.amount.micro()),
    ];
    if let Some((column, _)) = agree.iter().find(|(_, agrees)| !agrees) {
        return Err(damaged(format!("its column {column} is not what its body says")));
    }
    let chain = bytes("chain")?.try_into().map_err(|_| damaged("chain: not 32 bytes".into()))?;
    Ok(Entry { sequence: next, transfer, chain: Digest::from_bytes(chain) })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::super::DatabaseError;
    use super::*;
    use crate::ledger::testing::{
        TestRound, accepted, ask, config, expected_balances, pay_round, request_for, rounds, wallet,
    };
    use crate::ledger::{Answer, Ledger, LedgerError, MemoryJournal, Request};
    use crate::protocol::Balance;

    fn open(path: &Path) -> (Ledger, LedgerStore) {
        let mut store = LedgerStore::new(Database::open(path).unwrap());
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
        let mut store = LedgerStore::new(Database::open(path)?);
        Ok(Ledger::open(config(), &mut store))
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
        let of = |n| i64::try_from(ledger.book().balance(wallet(n)).0).unwrap();
        ([of(0), of(1), of(2), of(3)], i64::try_from(ledger.book().emitted().0).unwrap())
    }

    #[test]
    fn people_can_read_the_journal_in_sql() {
        let (_folder, path) = paid();
        let connection = Connection::open(&path).unwrap();
        let sql = "SELECT sum(amount) FROM transfers WHERE debit = 'emission' AND credit = ?1";
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
                .load(&mut |entry| {
                    journal.push(entry);
                    Ok(())
                })
                .unwrap();
            (journal[3].transfer.id.to_bytes(), *journal[3].chain.as_bytes())
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
            assert_names(&copy, 4, &format!("byte {} of the row", place - start));
        }
        assert!(end + chain.len() - start > 300, "the row was tried whole");
        // Before the values (13 bytes): the row's size, its number, and the types. SQLite itself may find these first.
        for place in start - 13..start {
            for bit in 0..8 {
                let mut bytes = sound.clone();
                bytes[place] ^= 1 << bit;
                fs::write(&copy, bytes).unwrap();
                match try_open(&copy) {
                    Err(DatabaseError::Damaged { .. }) | Ok(Err(StoreError::Damaged { .. })) => {}
                    // The type of the sequence number, NULL, becomes the constant 0. SQLite reads neither: the number
                    // is the row's key. It is the one bit without a meaning.
                    Ok(Ok(_)) if place == start - 9 && bit == 3 => {}
                    other => panic!("bit {bit} of byte {} before the values: {other:?}", start - place),
                }
            }
        }
    }

    #[test]
    fn rows_changed_removed_added_or_swapped_in_sql_are_noticed_and_the_number_named() {
        let swapped = "UPDATE transfers SET sequence = 20 WHERE sequence = 2;
            UPDATE transfers SET sequence = 2 WHERE sequence = 3;
            UPDATE transfers SET sequence = 3 WHERE sequence = 20";
        let forged = "INSERT INTO transfers SELECT 7, x'00000000000000000000000000000001', debit, credit, amount, body,
            chain FROM transfers WHERE sequence = 6";
        for (number, sql) in [
            (2, "UPDATE transfers SET amount = amount + 1 WHERE sequence = 2"),
            (3, "UPDATE transfers SET debit = 'treasury' WHERE sequence = 3"),
            (1, "UPDATE transfers SET credit = upper(credit) WHERE sequence = 1"),
            (6, "UPDATE transfers SET id = x'00' WHERE sequence = 6"),
            (4, "UPDATE transfers SET body = (SELECT body FROM transfers WHERE sequence = 5) WHERE sequence = 4"),
            (5, "UPDATE transfers SET chain = x'' WHERE sequence = 5"),
            (1, "DELETE FROM transfers WHERE sequence = 1"),
            (4, "DELETE FROM transfers WHERE sequence = 4"),
            (7, "INSERT INTO transfers SELECT 8, x'01', debit, credit, amount, body, chain FROM transfers LIMIT 1"),
            (1, "UPDATE transfers SET sequence = sequence - 1"),
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
        let mut more = config();
        more.emission.cap = crate::protocol::Amount::from_hyd(1);
        for (ledger, store) in [(&mut one, &mut store_one), (&mut two, &mut store_two)] {
            *ledger = Ledger::open(more.clone(), store).unwrap();
        }
        ask(&mut one, &mut store_one, &pay(3)).unwrap();
        let before = format!("{two:?}");
        let refused = ask(&mut two, &mut store_two, &pay(5));
        assert_eq!(refused, Err(LedgerError::Store(StoreError::Conflict { sequence: 7 })));
        assert_eq!(format!("{two:?}"), before);
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
        assert_eq!(format!("{ledger:?}"), before);
        let Ok(Answer::Totals { transfers: 0, .. }) = ask(&mut ledger, &mut store, &Request::Totals) else { panic!() };
        pages(&store, 1_000_000);
        ask(&mut ledger, &mut store, &request).unwrap();
        assert_eq!(ledger.book().balance(wallet(1)), Balance(1_000));
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
            store.load(&mut |entry| { entries.push(entry); Ok(()) }).unwrap();
            prop_assert_eq!(entries, memory.entries());
            prop_assert_eq!(balances(&ledger), expected_balances(&rounds));
        }
    }
}
