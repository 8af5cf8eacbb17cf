use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior};
use rusqlite_migration::{M, Migrations};

use super::{coordinator, ledger, queries};
use crate::protocol::limits;

/// The schema, one step a version. Steps are only ever added at the end: files that were written with the earlier ones
/// are out there.
const STEPS: &[M<'static>] =
    &[M::up(ledger::SCHEMA_1), M::up(coordinator::SCHEMA), M::up(ledger::SCHEMA_2), M::up(queries::SCHEMA)];

/// "HYDR" in the file's header: which program the file belongs to.
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"HYDR");

/// One connection to the database file.
///
/// What is committed is on the disk: `journal_mode=WAL`, `synchronous=FULL`.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

/// Why a database file cannot be used. Whatever the reason, the file is left as it was.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// No such folder, no permission, locked, disk full.
    #[error("cannot use the database {}: {error}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What `SQLite` says.
        error: rusqlite::Error,
    },
    /// Some other kind of file.
    #[error("{} is not a database. Choose another path, or move that file away to start anew", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// A database, but not one of ours.
    #[error("{} is the database of another program. Choose another path", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// A database of ours from the future.
    #[error(
        "the database {} was written by a newer Hydra (its schema is version {version}, this build knows up to \
         {known}). Update Hydra, or use the database that belongs to this version",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its schema.
        version: i64,
        /// The newest version that this build knows.
        known: usize,
    },
    /// A database of ours from the past, where nothing may be written to it.
    #[error(
        "the database {} was written by an older Hydra (its schema is version {version}, this build reads {needed}). Open \
         it once with `hydra up`, which brings it up to date",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// The version of its schema.
        version: i64,
        /// What this build reads.
        needed: usize,
    },
    /// A database of ours whose pages do not fit together.
    #[error(
        "the database {} is damaged: {problem}. Restore it from a copy made before the damage, and keep this one for \
         inspection (`PRAGMA integrity_check` says more)",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What `SQLite` says.
        problem: String,
    },
    /// A setting that durability rests on was not accepted.
    #[error("the database {} does not take {pragma} = {wanted}, it stays at {found}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        pragma: &'static str,
        /// What it must be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
    /// The tables could not be brought up to date.
    #[error("cannot bring the tables of the database {} up to date: {error}", path.display())]
    Migration {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: rusqlite_migration::Error,
    },
}

impl Database {
    /// Opens the database at `path`, or makes a new one. The folder must exist.
    ///
    /// An existing file is checked before anything is written to it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DatabaseError> {
        let path = path.as_ref();
        let unusable = |error| DatabaseError::from_sqlite(path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(unusable)?;
        // Until the file is known to be sound, not even closing it may write to it.
        let checkpoint_on_close = |connection: &Connection, on: bool| {
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !on)
        };
        checkpoint_on_close(&connection, false).map_err(unusable)?;
        connection.busy_timeout(limits::DATABASE_WAIT).map_err(unusable)?;
        connection.set_transaction_behavior(TransactionBehavior::Immediate);

        let new = refuse_foreign(&connection, path)?;
        refuse_damaged(&connection, path)?;

        set(&connection, path, "journal_mode", "WAL", "wal")?;
        set(&connection, path, "synchronous", "FULL", "2")?;
        set(&connection, path, "foreign_keys", "ON", "1")?;
        if new {
            // Before the tables: a file with tables and without the mark would be another program's.
            connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(unusable)?;
        }
        Migrations::from_slice(STEPS).to_latest(&mut connection).map_err(|error| match error {
            rusqlite_migration::Error::RusqliteError { err, .. } => unusable(err),
            error => DatabaseError::Migration { path: path.into(), error },
        })?;
        checkpoint_on_close(&connection, true).map_err(unusable)?;
        Ok(Self { connection, path: path.into() })
    }

    /// Opens the database at `path` for reading. Others may write to it meanwhile.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, DatabaseError> {
        let path = path.as_ref();
        let unusable = |error| DatabaseError::from_sqlite(path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(unusable)?;
        connection.busy_timeout(limits::DATABASE_WAIT).map_err(unusable)?;
        if refuse_foreign(&connection, path)? {
            return Err(DatabaseError::NotOurs { path: path.into() });
        }
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unusable)?;
        if usize::try_from(version) != Ok(STEPS.len()) {
            return Err(DatabaseError::Older { path: path.into(), version, needed: STEPS.len() });
        }
        Ok(Self { connection, path: path.into() })
    }

    /// Copies the database, as it is at this moment, to a new file: one, without a log beside it. Others may write to it
    /// meanwhile.
    pub fn copy_to(&self, to: &Path) -> Result<(), DatabaseError> {
        let unusable = |error| DatabaseError::from_sqlite(to, error);
        let mut copy = Connection::open(to).map_err(unusable)?;
        let backup = rusqlite::backup::Backup::new(&self.connection, &mut copy).map_err(unusable)?;
        // All pages in one step: it is one snapshot, however busy the writer is.
        backup.step(-1).map_err(unusable)?;
        drop(backup);
        copy.pragma_update(None, "journal_mode", "DELETE").map_err(unusable)?;
        copy.close().map_err(|(_, error)| unusable(error))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For reading.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Runs `write` in a transaction of its own (`BEGIN IMMEDIATE`: waiting for another writer works only at the
    /// start). When this returns, what was written is on the disk; after an error nothing of it is there.
    pub(super) fn write<T, E: From<rusqlite::Error>>(
        &mut self,
        write: impl FnOnce(&Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = write(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }
}

impl DatabaseError {
    fn from_sqlite(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.into();
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotADatabase { path },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, problem: error.to_string() },
            _ => Self::Unusable { path, error },
        }
    }
}

/// Refuses a file of another program or of a newer Hydra. Whether the file is new.
fn refuse_foreign(connection: &Connection, path: &Path) -> Result<bool, DatabaseError> {
    let number = |sql: &str| {
        let value = connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        value.map_err(|error| DatabaseError::from_sqlite(path, error))
    };
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let new = application == 0 && version == 0 && tables == 0;
    if !new && application != i64::from(APPLICATION_ID) {
        return Err(DatabaseError::NotOurs { path: path.into() });
    }
    if usize::try_from(version).map_or(true, |version| version > STEPS.len()) {
        return Err(DatabaseError::Newer { path: path.into(), version, known: STEPS.len() });
    }
    Ok(new)
}

/// Refuses a file whose pages do not fit together.
fn refuse_damaged(connection: &Connection, path: &Path) -> Result<(), DatabaseError> {
    let mut problems = Vec::new();
    connection
        .pragma_query(None, "quick_check", |row| {
            problems.push(row.get::<_, String>(0)?);
            Ok(())
        })
        .map_err(|error| DatabaseError::from_sqlite(path, error))?;
    if problems == ["ok"] {
        return Ok(());
    }
    // A damaged page causes many complaints; the first few say where it is.
    problems.truncate(3);
    Err(DatabaseError::Damaged { path: path.into(), problem: problems.join("; ") })
}

/// Sets a pragma and reads it back.
fn set(
    connection: &Connection,
    path: &Path,
    pragma: &'static str,
    value: &str,
    wanted: &'static str,
) -> Result<(), DatabaseError> {
    let read = |row: &Row| row.get::<_, Value>(0);
    let found = connection.pragma_update(None, pragma, value).and_then(|()| {
        match connection.pragma_query_value(None, pragma, read)? {
            Value::Text(text) => Ok(text),
            Value::Integer(number) => Ok(number.to_string()),
            other => Ok(format!("{other:?}")),
        }
    });
    match found {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) => Err(DatabaseError::Setting { path: path.into(), pragma, wanted, found }),
        Err(error) => Err(DatabaseError::from_sqlite(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn pragma(database: &Database, name: &str) -> Value {
        database.connection.pragma_query_value(None, name, |row| row.get(0)).unwrap()
    }

    /// A folder with a database that `change` was made to, all of it in the one file.
    fn changed(change: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        drop(Database::open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch(change).unwrap();
        (folder, path)
    }

    /// Why the database at `path` is refused, having checked that the refusal left the file and its write-ahead log
    /// as they were.
    fn refusal(path: &Path) -> DatabaseError {
        let both = || (fs::read(path).unwrap(), fs::read(path.with_extension("db-wal")).unwrap_or_default());
        let before = both();
        let error = Database::open(path).unwrap_err();
        assert!(both() == before, "a refused database was touched: {error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        error
    }

    #[test]
    fn a_new_database_is_durable_marked_and_up_to_date_and_opens_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        for _ in 0..2 {
            let database = Database::open(&path).unwrap();
            assert_eq!(pragma(&database, "journal_mode"), Value::Text("wal".into()));
            assert_eq!(pragma(&database, "synchronous"), Value::Integer(2));
            assert_eq!(pragma(&database, "foreign_keys"), Value::Integer(1));
            assert_eq!(pragma(&database, "application_id"), Value::Integer(0x4859_4452));
            assert_eq!(pragma(&database, "user_version"), Value::Integer(i64::try_from(STEPS.len()).unwrap()));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a database that was closed is one file");
    }

    #[test]
    fn the_steps_of_the_schema_are_valid() {
        Migrations::from_slice(STEPS).validate().unwrap();
    }

    #[test]
    fn opening_again_writes_nothing() {
        let (_folder, path) = changed("");
        let before = fs::read(&path).unwrap();
        drop(Database::open(&path).unwrap());
        assert!(fs::read(&path).unwrap() == before);
    }

    #[test]
    fn a_database_from_a_newer_version_is_refused_and_unharmed() {
        let newer = i64::try_from(STEPS.len()).unwrap() + 1;
        let (_folder, path) = changed(&format!("CREATE TABLE novelty (x); PRAGMA user_version = {newer}"));
        let error = refusal(&path);
        let DatabaseError::Newer { version, known, .. } = &error else { panic!("{error}") };
        assert_eq!((*version, *known), (newer, STEPS.len()));
        assert!(error.to_string().contains("written by a newer Hydra"), "{error}");
        let tables = "SELECT count(*) FROM sqlite_schema WHERE name IN ('novelty', 'journal')";
        let connection = Connection::open(&path).unwrap();
        assert_eq!(connection.query_row(tables, [], |row| row.get::<_, i64>(0)), Ok(2));
    }

    #[test]
    fn a_newer_database_that_was_killed_keeps_its_write_ahead_log() {
        let (folder, path) = changed("");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA user_version = 99").unwrap();
        let copies = tempfile::tempdir().unwrap();
        for file in ["hydra.db", "hydra.db-wal"] {
            fs::copy(folder.path().join(file), copies.path().join(file)).unwrap();
        }
        let copy = copies.path().join("hydra.db");
        assert!(!fs::read(copies.path().join("hydra.db-wal")).unwrap().is_empty());
        assert!(matches!(refusal(&copy), DatabaseError::Newer { version: 99, .. }));
    }

    #[test]
    fn other_files_are_refused_and_unharmed() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("notes.txt");
        fs::write(&text, "Dear diary, ".repeat(1_000)).unwrap();
        assert!(matches!(refusal(&text), DatabaseError::NotADatabase { .. }));

        let other = folder.path().join("other.db");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE bookmarks (url)").unwrap();
        assert!(matches!(refusal(&other), DatabaseError::NotOurs { .. }));

        assert!(matches!(Database::open(folder.path()), Err(DatabaseError::Unusable { .. })));
        let nowhere = folder.path().join("no/such/folder/hydra.db");
        assert!(matches!(Database::open(&nowhere), Err(DatabaseError::Unusable { .. })));
    }

    #[test]
    fn a_database_whose_pages_are_damaged_is_refused_and_unharmed() {
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
            INSERT INTO journal SELECT i, randomblob(16), 1, 'k', 'a', 'b', 1, 'p', zeroblob(100), zeroblob(32) FROM n";
        let (_folder, path) = changed(rows);
        let sound = fs::read(&path).unwrap();
        for page in 1..sound.len() / 4096 {
            let mut bytes = sound.clone();
            bytes[page * 4096..page * 4096 + 64].fill(0x5a);
            fs::write(&path, bytes).unwrap();
            let error = refusal(&path);
            assert!(matches!(error, DatabaseError::Damaged { .. }), "page {page}: {error}");
        }
        fs::write(&path, &sound[..sound.len() - 4096]).unwrap();
        assert!(matches!(refusal(&path), DatabaseError::Damaged { .. }));
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut database = Database::open(folder.path().join("hydra.db")).unwrap();
        let insert = "INSERT INTO journal VALUES (1, x'01', 1, 'k', 'a', 'b', 1, 'p', x'', x'')";
        let result = database.write(|transaction| {
            transaction.execute(insert, [])?;
            transaction.execute(insert, [])
        });
        assert!(result.is_err());
        let count = database.connection().query_row("SELECT count(*) FROM journal", [], |row| row.get::<_, i64>(0));
        assert_eq!(count, Ok(0));
    }
}
