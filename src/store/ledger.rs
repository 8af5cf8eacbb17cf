use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{ErrorCode, Row, Transaction, params};

use super::{Database, DatabaseError};
use crate::ledger::{
    Account, Batch, Content, Entry, JournalSource, JournalStore, Kept, Posts, Refusal, StoreError, Transfer, TransferId,
};
use crate::protocol::{Digest, PublicKey, Signed, Time, limits, wire};

/// The journal's first table. Nothing writes to it any more: see [`SCHEMA_2`].
pub(super) const SCHEMA_1: &str = "
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

/// The ledger's tables. `body` is the transfer; `id`, `kind`, `debit`, `credit`, `amount` (µHYD) and `purpose` repeat
/// what it says, for people with an SQL prompt, and are compared with it whenever the journal is read; `at` is in
/// milliseconds since 1970. `accounts` follows from the journal, and is compared with it too; its numbers are decimal
/// texts, since sums may be larger than SQLite's integers.
///
/// No released Hydra has written to the table before this one, so a journal in it cannot be read by anything: whoever has
/// one is told, and keeps it.
pub(super) const SCHEMA_2: &str = "
    CREATE TABLE development (transfers INTEGER NOT NULL, CONSTRAINT
        \"its ledger was written by a version before the first release; begin anew with --fresh, which keeps it aside\"
        CHECK (transfers = 0)) STRICT;
    INSERT INTO development SELECT count(*) FROM transfers;
    DROP TABLE development;
    DROP TABLE transfers;
    CREATE TABLE journal (
        sequence INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        at INTEGER NOT NULL,
        kind TEXT NOT NULL,
        debit TEXT NOT NULL,
        credit TEXT NOT NULL,
        amount INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        body BLOB NOT NULL,
        chain BLOB NOT NULL
    ) STRICT;
    CREATE TABLE accounts (
        account TEXT PRIMARY KEY,
        debits TEXT NOT NULL,
        credits TEXT NOT NULL,
        debits_pending TEXT NOT NULL,
        credits_pending TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE heads (
        size INTEGER PRIMARY KEY,
        body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE refusals (
        wallet TEXT NOT NULL,
        id BLOB NOT NULL,
        until INTEGER NOT NULL,
        content INTEGER NOT NULL,
        error BLOB NOT NULL,
        PRIMARY KEY (wallet, id)
    ) STRICT, WITHOUT ROWID;
";

/// The ledger in the database.
#[derive(Debug)]
pub struct LedgerStore {
    database: Database,
}

impl LedgerStore {
    /// The ledger in `database`, which is there for it alone: its write-ahead log is checkpointed when it is long, and
    /// not every few pages as SQLite does by itself, which takes most of the time of a busy writer.
    pub fn new(database: Database) -> Result<Self, DatabaseError> {
        let pragma = database.connection().pragma_update(None, "wal_autocheckpoint", 0);
        pragma.map_err(|error| DatabaseError::Unusable { path: database.path().into(), error })?;
        Ok(Self { database })
    }

    /// The ledger in the database at `path`, for reading while others may write.
    pub fn read_only(path: &Path) -> Result<Self, DatabaseError> {
        Ok(Self { database: Database::open_read_only(path)? })
    }

    /// The ledger in the database at `path` as it is at this moment, whatever others write meanwhile.
    pub fn snapshot(path: &Path) -> Result<Self, DatabaseError> {
        let store = Self::read_only(path)?;
        // Held until the connection is closed.
        let begun = store.database.connection().execute_batch("BEGIN");
        begun.map_err(|error| DatabaseError::Unusable { path: path.into(), error })?;
        Ok(store)
    }

    /// Reads several things of the ledger as it is at one moment, whatever others write meanwhile. Not for a
    /// [`snapshot`](Self::snapshot), which is that already.
    pub fn at_once<T>(&self, read: impl FnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.database.connection().execute_batch("BEGIN")?;
        let result = read(self);
        // It has changed nothing, so this only lets the moment go.
        self.database.connection().execute_batch("ROLLBACK")?;
        result
    }

    /// The `most` entries after entry number `after`, oldest first.
    pub fn entries_after(&self, after: u64, most: usize) -> Result<Vec<Entry>, StoreError> {
        let select = format!("{SELECT} WHERE sequence > ?1 ORDER BY sequence LIMIT ?2");
        let mut statement = self.database.connection().prepare_cached(&select)?;
        let mut rows = statement.query([number(after)?, limit(most)])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            let entry = read(row)?;
            let expected = after + 1 + entries.len() as u64;
            if entry.sequence != expected {
                return Err(StoreError::damaged(expected, format!("number {} stands in its place", entry.sequence)));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The accounts whose names come after that of `after` in the alphabet, in that order, and no more than `most`.
    pub fn accounts_after(&self, after: Option<Account>, most: usize) -> Result<Vec<(Account, Posts)>, StoreError> {
        let select = format!("{SELECT_ACCOUNTS} WHERE account > ?1 ORDER BY account LIMIT ?2");
        let mut statement = self.database.connection().prepare_cached(&select)?;
        let after = after.map_or_else(String::new, |account| account.to_string());
        let mut rows = statement.query(params![after, limit(most)])?;
        let mut accounts = Vec::new();
        while let Some(row) = rows.next()? {
            accounts.push(read_account(row)?);
        }
        Ok(accounts)
    }

    /// The signed heads of sizes after `after`, smallest first, and no more than `most`.
    pub fn heads_after(&self, after: u64, most: usize) -> Result<Vec<(u64, Signed)>, StoreError> {
        self.some_heads("WHERE size > ?1 ORDER BY size LIMIT ?2", after, most)
    }

    /// The last signed head that is no longer than `size`.
    pub fn head_until(&self, size: u64) -> Result<Option<(u64, Signed)>, StoreError> {
        Ok(self.some_heads("WHERE size <= ?1 ORDER BY size DESC LIMIT ?2", size, 1)?.pop())
    }

    fn some_heads(&self, which: &str, size: u64, most: usize) -> Result<Vec<(u64, Signed)>, StoreError> {
        let mut statement =
            self.database.connection().prepare_cached(&format!("SELECT size, body FROM heads {which}"))?;
        let mut rows = statement.query([i64::try_from(size).unwrap_or(i64::MAX), limit(most)])?;
        let mut heads = Vec::new();
        while let Some(row) = rows.next()? {
            heads.push((row.get::<_, i64>("size")?.cast_unsigned(), read_head(row)?));
        }
        Ok(heads)
    }

    /// The last `most` entries that concern one of `accounts`, oldest first.
    pub fn history(&self, accounts: &[Account], most: usize) -> Result<Vec<Entry>, StoreError> {
        let select = format!("{SELECT} WHERE debit IN (?1, ?2) OR credit IN (?1, ?2) ORDER BY sequence DESC LIMIT ?3");
        let name = |at: usize| accounts.get(at).or(accounts.first()).map(ToString::to_string);
        let mut statement = self.database.connection().prepare(&select)?;
        let mut rows = statement.query(params![name(0), name(1), limit(most)])?;
        let mut entries = Vec::new();
        while let Some(row) = rows.next()? {
            entries.push(read(row)?);
        }
        entries.reverse();
        Ok(entries)
    }

    /// The sides of one account, as they are kept.
    pub fn posts(&self, account: Account) -> Result<Posts, StoreError> {
        let select = format!("{SELECT_ACCOUNTS} WHERE account = ?1");
        let mut statement = self.database.connection().prepare_cached(&select)?;
        let mut rows = statement.query([account.to_string()])?;
        rows.next()?.map_or(Ok(Posts::default()), |row| Ok(read_account(row)?.1))
    }

    /// The place of the transfer `id` in the journal, if it is there.
    pub fn find(&self, id: TransferId) -> Result<Option<u64>, StoreError> {
        let select = "SELECT sequence FROM journal WHERE id = ?1";
        let mut statement = self.database.connection().prepare_cached(select)?;
        let mut rows = statement.query([id.to_bytes()])?;
        let sequence = rows.next()?.map(|row| row.get::<_, i64>(0)).transpose()?;
        Ok(sequence.and_then(|sequence| u64::try_from(sequence).ok()))
    }

    fn checkpoint_when_long(&self) -> Result<(), StoreError> {
        let mut log = self.database.path().as_os_str().to_owned();
        log.push("-wal");
        if std::fs::metadata(log).is_ok_and(|log| log.len() >= limits::WRITE_AHEAD_LOG_BYTES) {
            // A reader in the way is no error: the next transaction tries again.
            self.database.connection().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}

const SELECT: &str = "SELECT sequence, id, at, kind, debit, credit, amount, purpose, body, chain FROM journal";
const SELECT_ACCOUNTS: &str = "SELECT account, debits, credits, debits_pending, credits_pending FROM accounts";

impl JournalSource for LedgerStore {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut statement = self.database.connection().prepare(&format!("{SELECT} ORDER BY sequence"))?;
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
            let number: i64 = row.get("sequence").map_err(|error| StoreError::damaged(next, error.to_string()))?;
            if u64::try_from(number) != Ok(next) {
                return Err(StoreError::damaged(next, format!("number {number} stands in its place")));
            }
            visit(read(row)?)?;
            next += 1;
        }
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        let connection = self.database.connection();
        let mut kept = Kept::default();
        let mut statement = connection.prepare(SELECT_ACCOUNTS)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (account, posts) = read_account(row)?;
            kept.accounts.insert(account, posts);
        }
        let mut statement = connection.prepare("SELECT wallet, id, until, content, error FROM refusals")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            kept.refusals.push(read_refusal(row)?);
        }
        let mut statement = connection.prepare("SELECT size, body FROM heads ORDER BY size DESC LIMIT 1")?;
        let mut rows = statement.query([])?;
        kept.head = rows.next()?.map(read_head).transpose()?;
        Ok(kept)
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut statement = self.database.connection().prepare("SELECT size, body FROM heads ORDER BY size")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            visit(row.get::<_, i64>("size")?.cast_unsigned(), read_head(row)?)?;
        }
        Ok(())
    }
}

impl JournalStore for LedgerStore {
    fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.database.write(|transaction| {
            insert_entries(transaction, &batch.entries)?;
            upsert_accounts(transaction, &batch.accounts)?;
            if let (Some(head), Some(last)) = (&batch.head, batch.entries.last()) {
                let mut statement = transaction.prepare_cached("INSERT INTO heads (size, body) VALUES (?1, ?2)")?;
                statement.execute(params![number(last.sequence)?, wire::encode(head)])?;
            }
            for (wallet, id) in &batch.forgotten {
                let mut statement = transaction.prepare_cached("DELETE FROM refusals WHERE wallet = ?1 AND id = ?2")?;
                statement.execute(params![wallet.to_string(), id.to_bytes()])?;
            }
            let gone = |refusal: &Refusal| batch.forgotten.contains(&(refusal.wallet, refusal.id));
            for refusal in batch.refusals.iter().filter(|refusal| !gone(refusal)) {
                let Refusal { wallet, id, content, until, error } = refusal;
                let insert = "INSERT OR REPLACE INTO refusals (wallet, id, until, content, error)
                              VALUES (?1, ?2, ?3, ?4, ?5)";
                transaction.prepare_cached(insert)?.execute(params![
                    wallet.to_string(),
                    id.to_bytes(),
                    number(until.0)?,
                    content.bits().cast_signed(),
                    wire::encode(error),
                ])?;
            }
            Ok::<_, StoreError>(())
        })?;
        // What was written is on the disk, whatever becomes of the checkpoint.
        let _ = self.checkpoint_when_long();
        Ok(())
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        self.database.write(|transaction| {
            // Some pages' worth: a disk that has room for them has room for a batch.
            transaction.execute("INSERT INTO heads (size, body) VALUES (-1, zeroblob(65536))", [])?;
            transaction.execute("DELETE FROM heads WHERE size = -1", [])?;
            Ok(())
        })
    }
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

fn number(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Failed(format!("{number} does not fit the database")))
}

fn insert_entries(transaction: &Transaction, entries: &[Entry]) -> Result<(), StoreError> {
    let insert = "INSERT INTO journal (sequence, id, at, kind, debit, credit, amount, purpose, body, chain)
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let mut statement = transaction.prepare_cached(insert)?;
    for Entry { sequence, at, transfer, chain } in entries {
        let written = statement.execute(params![
            number(*sequence)?,
            transfer.id.to_bytes(),
            number(at.0)?,
            transfer.kind.name(),
            transfer.debit.to_string(),
            transfer.credit.to_string(),
            transfer.amount.micro(),
            transfer.purpose.name(),
            transfer.encode(),
            chain.as_bytes(),
        ]);
        written.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation) => StoreError::Conflict { sequence: *sequence },
            _ => error.into(),
        })?;
    }
    Ok(())
}

fn upsert_accounts(transaction: &Transaction, accounts: &BTreeMap<Account, Posts>) -> Result<(), StoreError> {
    let upsert = "INSERT INTO accounts (account, debits, credits, debits_pending, credits_pending)
                  VALUES (?1, ?2, ?3, ?4, ?5)
                  ON CONFLICT DO UPDATE SET debits = ?2, credits = ?3, debits_pending = ?4, credits_pending = ?5";
    let mut statement = transaction.prepare_cached(upsert)?;
    for (account, posts) in accounts {
        let Posts { debits, credits, debits_pending, credits_pending } = posts;
        let [debits, credits, debits_pending, credits_pending] =
            [debits, credits, debits_pending, credits_pending].map(ToString::to_string);
        statement.execute(params![account.to_string(), debits, credits, debits_pending, credits_pending])?;
    }
    Ok(())
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The entry in `row`, if its columns agree with each other.
fn read(row: &Row) -> Result<Entry, StoreError> {
    let sequence = row.get::<_, i64>("sequence")?.cast_unsigned();
    let damaged = |problem: String| StoreError::damaged(sequence, problem);
    let bytes = |column: &str| {
        // As bytes, because a damaged text need not be one any more.
        let value = row.get_ref(column).map_err(|error| error.to_string());
        let bytes = value.and_then(|value| value.as_bytes().map_err(|error| error.to_string()));
        bytes.map_err(|problem| damaged(format!("{column}: {problem}")))
    };
    let integer = |column: &str| row.get::<_, i64>(column).map_err(|error| damaged(format!("{column}: {error}")));
    let transfer: Transfer =
        wire::decode(bytes("body")?, limits::TRANSFER_BYTES_MAX).map_err(|error| damaged(format!("body: {error}")))?;
    let agree = [
        ("id", bytes("id")? == transfer.id.to_bytes()),
        ("kind", bytes("kind")? == transfer.kind.name().as_bytes()),
        ("debit", bytes("debit")? == transfer.debit.to_string().as_bytes()),
        ("credit", bytes("credit")? == transfer.credit.to_string().as_bytes()),
        ("amount", integer("amount")? == transfer.amount.micro()),
        ("purpose", bytes("purpose")? == transfer.purpose.name().as_bytes()),
    ];
    if let Some((column, _)) = agree.iter().find(|(_, agrees)| !agrees) {
        return Err(damaged(format!("its column {column} is not what its body says")));
    }
    let at = u64::try_from(integer("at")?).map_err(|_| damaged("at: below zero".into()))?;
    let chain = bytes("chain")?.try_into().map_err(|_| damaged("chain: not 32 bytes".into()))?;
    Ok(Entry { sequence, at: Time(at), transfer, chain: Digest::from_bytes(chain) })
}

fn read_account(row: &Row) -> Result<(Account, Posts), StoreError> {
    let unsound = |problem: String| StoreError::Unsound(format!("a row of accounts: {problem}"));
    let text = |column: &str| row.get::<_, String>(column).map_err(|error| unsound(error.to_string()));
    let account = text("account")?.parse::<Account>().map_err(|error| unsound(error.to_string()))?;
    let side = |column: &str| text(column)?.parse::<i128>().map_err(|error| unsound(error.to_string()));
    let posts = Posts {
        debits: side("debits")?,
        credits: side("credits")?,
        debits_pending: side("debits_pending")?,
        credits_pending: side("credits_pending")?,
    };
    Ok((account, posts))
}

fn read_head(row: &Row) -> Result<Signed, StoreError> {
    let size: i64 = row.get("size")?;
    let damaged = |problem: String| StoreError::damaged(size.cast_unsigned(), format!("its signed head: {problem}"));
    let body: Vec<u8> = row.get("body").map_err(|error| damaged(error.to_string()))?;
    wire::decode(&body, limits::TRANSFER_BYTES_MAX).map_err(|error| damaged(error.to_string()))
}

fn read_refusal(row: &Row) -> Result<Refusal, StoreError> {
    let unsound = |problem: &dyn std::fmt::Display| StoreError::Unsound(format!("a row of refusals: {problem}"));
    let wallet: String = row.get("wallet").map_err(|error| unsound(&error))?;
    let id: [u8; 16] = row.get("id").map_err(|error| unsound(&error))?;
    let error: Vec<u8> = row.get("error").map_err(|error| unsound(&error))?;
    Ok(Refusal {
        wallet: wallet.parse::<PublicKey>().map_err(|error| unsound(&error))?,
        id: TransferId::from(id),
        content: Content::from(row.get::<_, i64>("content").map_err(|error| unsound(&error))?.cast_unsigned()),
        until: Time(row.get::<_, i64>("until").map_err(|error| unsound(&error))?.cast_unsigned()),
        error: wire::decode(&error, limits::TRANSFER_BYTES_MAX).map_err(|error| unsound(&error))?,
    })
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
        TestRound, accepted, ask, config, emitting, expected_balances, ledger_key, pay_round, request_for, rounds,
        wallet,
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
        let forged =
            "INSERT INTO journal SELECT 7, x'00000000000000000000000000000001', at, kind, debit, credit, amount,
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
}
