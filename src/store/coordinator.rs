use rusqlite::{OptionalExtension, params};

use super::{Database, DatabaseError};
use crate::coordinator::{Record, RecordStore, RecordStoreError};
use crate::protocol::wire::{self, WireError};
use crate::protocol::{Round, RunSpec, limits};

/// The tables of a coordinator's run. `kind` repeats what `body` says, for people with an SQL prompt.
pub(super) const SCHEMA: &str = "
    CREATE TABLE run (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        spec BLOB NOT NULL,
        goal_from INTEGER,
        goal_rounds INTEGER
    ) STRICT;
    CREATE TABLE records (
        sequence INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
";

/// A coordinator's run in the database.
#[derive(Debug)]
pub struct RunStore {
    database: Database,
}

/// Rounds that somebody asked for: `rounds` more after the first `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// Rounds that were done when they were asked for.
    pub from: Round,
    /// How many more.
    pub rounds: u32,
}

impl Goal {
    /// The first round that was not asked for.
    #[must_use]
    pub fn end(&self) -> Round {
        Round(self.from.0.saturating_add(self.rounds))
    }
}

/// A run that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RunStoreError {
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// SQLite failed.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row does not decode.
    #[error(
        "record {sequence} of the run is damaged: {problem}. Restore the database from a copy, or begin anew with --fresh (which keeps the old one aside)"
    )]
    Damaged {
        /// Its sequence number; 0 for the specification.
        sequence: i64,
        /// What is wrong with it.
        problem: WireError,
    },
    /// A sequence number is missing.
    #[error(
        "record {0} of the run is missing. Restore the database from a copy, or begin anew with --fresh (which keeps the old one aside)"
    )]
    Gap(i64),
}

impl RunStore {
    /// The run in `database`.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Writes a new run: its specification and first records, all or nothing.
    pub fn create(&mut self, spec: &RunSpec, records: &[Record]) -> Result<(), RunStoreError> {
        self.database.write(|transaction| {
            transaction.execute("INSERT INTO run (id, spec) VALUES (1, ?1)", [wire::encode(spec)])?;
            insert(transaction, records)
        })
    }

    /// The run's specification and all its records, or `None` where there is no run yet.
    pub fn load(&self) -> Result<Option<(RunSpec, Vec<Record>)>, RunStoreError> {
        let connection = self.database.connection();
        let blob = connection.query_row("SELECT spec FROM run", [], |row| row.get::<_, Vec<u8>>(0)).optional()?;
        let Some(blob) = blob else { return Ok(None) };
        let damaged = |sequence| move |problem| RunStoreError::Damaged { sequence, problem };
        let spec = wire::decode(&blob, limits::MESSAGE_BYTES_MAX).map_err(damaged(0))?;
        let mut statement = connection.prepare("SELECT sequence, body FROM records ORDER BY sequence")?;
        let mut rows = statement.query([])?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            let (sequence, body): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let expected = i64::try_from(records.len()).unwrap_or(i64::MAX) + 1;
            if sequence != expected {
                return Err(RunStoreError::Gap(expected));
            }
            // A record holds at most one signed message and some numbers.
            records.push(wire::decode(&body, limits::RECORD_BYTES_MAX).map_err(damaged(sequence))?);
        }
        Ok(Some((spec, records)))
    }

    /// The rounds last asked for.
    pub fn goal(&self) -> Result<Option<Goal>, RunStoreError> {
        let goal = self.database.connection().query_row("SELECT goal_from, goal_rounds FROM run", [], |row| {
            let (from, rounds): (Option<u32>, Option<u32>) = (row.get(0)?, row.get(1)?);
            Ok(from.zip(rounds).map(|(from, rounds)| Goal { from: Round(from), rounds }))
        });
        Ok(goal.optional()?.flatten())
    }

    /// Remembers the rounds asked for, or that what was asked for is done.
    pub fn set_goal(&mut self, goal: Option<Goal>) -> Result<(), RunStoreError> {
        self.database.write(|transaction| {
            let (from, rounds) = (goal.map(|goal| goal.from.0), goal.map(|goal| goal.rounds));
            transaction.execute("UPDATE run SET goal_from = ?1, goal_rounds = ?2", params![from, rounds])?;
            Ok(())
        })
    }
}

impl RecordStore for RunStore {
    fn append(&mut self, records: &[Record]) -> Result<(), RecordStoreError> {
        self.database.write(|transaction| insert(transaction, records)).map_err(|error: RunStoreError| {
            RecordStoreError(format!(
                "cannot write to the database {}: {error}. Nothing acknowledged is lost: make room or mend the disk, \
                 then run the same command again",
                self.database.path().display()
            ))
        })
    }
}

fn insert(transaction: &rusqlite::Transaction, records: &[Record]) -> Result<(), RunStoreError> {
    let mut statement = transaction.prepare_cached("INSERT INTO records (kind, body) VALUES (?1, ?2)")?;
    for record in records {
        statement.execute(params![kind(record), wire::encode(record)])?;
    }
    Ok(())
}

fn kind(record: &Record) -> &'static str {
    match record {
        Record::RoundOpened { .. } => "round opened",
        Record::Leased { .. } => "leased",
        Record::GivenBack { .. } => "given back",
        Record::Committed { .. } => "committed",
        Record::Submitted { .. } => "submitted",
        Record::Admitted { .. } => "admitted",
        Record::Accepted { .. } => "accepted",
        Record::Rejected { .. } => "rejected",
        Record::Extended { .. } => "extended",
        Record::RoundClosed { .. } => "round closed",
        Record::Opinion { .. } => "opinion",
        Record::PeerLeased { .. } => "peer leased",
        Record::PeerCommitted { .. } => "peer committed",
        Record::PeerSubmitted { .. } => "peer submitted",
        Record::PeerGone { .. } => "peer gone",
        Record::Convicted { .. } => "convicted",
        Record::Appealed { .. } => "appealed",
        Record::AuditEnded { .. } => "audit ended",
        Record::Forfeited { .. } => "forfeited",
        Record::RoundPaid { .. } => "round paid",
        Record::Evaluated { .. } => "evaluated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Digest, Time};
    use crate::testing;

    fn opened(round: u32) -> Record {
        Record::RoundOpened { round: Round(round), base: Digest::of(b"base"), momentum: None, at: Time(5) }
    }

    fn closed() -> Record {
        Record::RoundClosed { at: Time(6), secret: None, test: false }
    }

    #[test]
    fn a_run_is_read_back_as_it_was_written_also_after_closing_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let spec = testing::spec(3);
        let goal = Some(Goal { from: Round(2), rounds: 5 });
        {
            let mut store = RunStore::new(Database::open(&path).unwrap());
            assert_eq!(store.load().unwrap(), None);
            store.create(&spec, &[opened(0)]).unwrap();
            store.append(&[closed(), opened(1)]).unwrap();
            store.set_goal(goal).unwrap();
            assert!(store.create(&spec, &[]).is_err(), "one run a database");
        }
        let store = RunStore::new(Database::open(&path).unwrap());
        let records = vec![opened(0), closed(), opened(1)];
        assert_eq!(store.load().unwrap(), Some((spec, records)));
        assert_eq!(store.goal().unwrap(), goal);
    }

    #[test]
    fn a_damaged_or_missing_record_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let mut store = RunStore::new(Database::open(&path).unwrap());
        store.create(&testing::spec(3), &[opened(0), opened(1), opened(2)]).unwrap();
        let change = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute(sql, []).unwrap();
        change("UPDATE records SET body = x'0163' WHERE sequence = 2");
        assert!(matches!(store.load(), Err(RunStoreError::Damaged { sequence: 2, .. })));
        change("DELETE FROM records WHERE sequence = 2");
        assert!(matches!(store.load(), Err(RunStoreError::Gap(2))));
    }
}
