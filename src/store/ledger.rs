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
mod tests;
