use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::OptionalExtension;

use super::{Database, RunStoreError};
use crate::coordinator::{Chronicle, Record, RoundStory, RoundSummary};
use crate::protocol::wire;
use crate::protocol::{Round, RunSpec, limits};

/// Looks up what became of the rounds of a run, also while its coordinator writes on. It sees what is durable and
/// nothing else.
///
/// Rounds in short are in memory, some 150 bytes each; what became of each task is read when somebody asks.
#[derive(Debug)]
pub struct History(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    database: Database,
    spec: RunSpec,
    /// The last record that was read.
    read: i64,
    chronicle: Chronicle,
    /// The record that opened each round.
    openings: Vec<i64>,
}

impl History {
    /// The history of the run in the database at `path`. Nothing, where there is no run yet.
    pub fn open(path: &Path) -> Result<Option<Self>, RunStoreError> {
        let database = Database::open_read_only(path)?;
        let blob = database.connection().query_row("SELECT spec FROM run", [], |row| row.get::<_, Vec<u8>>(0));
        let Some(blob) = blob.optional()? else { return Ok(None) };
        let damaged = |problem| RunStoreError::Damaged { sequence: 0, problem };
        let spec: RunSpec = wire::decode(&blob, limits::MESSAGE_BYTES_MAX).map_err(damaged)?;
        let chronicle = Chronicle::new(&spec);
        Ok(Some(Self(Mutex::new(Inner { database, spec, read: 0, chronicle, openings: Vec::new() }))))
    }

    /// The `most` first rounds after round `after`, or from the first on.
    pub fn rounds(&self, after: Option<Round>, most: usize) -> Result<Vec<RoundSummary>, RunStoreError> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up()?;
        let from = after.map_or(0, |round| round.0 as usize + 1);
        Ok(inner.chronicle.rounds().iter().skip(from).take(most).copied().collect())
    }

    /// A round, and what became of its tasks; nothing, where it has not opened yet.
    pub fn round(&self, round: Round) -> Result<Option<(RoundSummary, RoundStory)>, RunStoreError> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up()?;
        let place = round.0 as usize;
        let known = inner.chronicle.rounds().get(place).copied().zip(inner.openings.get(place).copied());
        let Some((summary, opening)) = known else { return Ok(None) };
        let end = inner.openings.get(place + 1).copied().unwrap_or(inner.read + 1);
        let mut records = Vec::new();
        inner.read_records(opening, end, i64::MAX, |_, record| records.push(record))?;
        Ok(RoundStory::of(&inner.spec, &records).map(|story| (summary, story)))
    }
}

impl Inner {
    fn catch_up(&mut self) -> Result<(), RunStoreError> {
        loop {
            let mut read = Vec::new();
            self.read_records(self.read + 1, i64::MAX, limits::HISTORY_READ, |sequence, record| {
                read.push((sequence, record));
            })?;
            let Some((last, _)) = read.last() else { return Ok(()) };
            self.read = *last;
            for (sequence, record) in read {
                if matches!(record, Record::RoundOpened { .. }) {
                    self.openings.push(sequence);
                }
                self.chronicle.apply(&record);
            }
        }
    }

    /// Hands over the records from number `from` to before `end`, and no more than `most`.
    fn read_records(
        &self,
        from: i64,
        end: i64,
        most: i64,
        mut take: impl FnMut(i64, Record),
    ) -> Result<(), RunStoreError> {
        let text =
            "SELECT sequence, body FROM records WHERE sequence >= ?1 AND sequence < ?2 ORDER BY sequence LIMIT ?3";
        let mut statement = self.database.connection().prepare_cached(text)?;
        let mut rows = statement.query([from, end, most])?;
        while let Some(row) = rows.next()? {
            let (sequence, body): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let damaged = |problem| RunStoreError::Damaged { sequence, problem };
            take(sequence, wire::decode(&body, limits::RECORD_BYTES_MAX).map_err(damaged)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{RecordStore, TaskStage};
    use crate::protocol::{
        Digest, Keypair, Layer, Outcome, PublicKey, Reason, Signed, Submission, Task, TaskId, Time, Verdict,
    };
    use crate::store::RunStore;
    use crate::testing;

    fn verdict(task: TaskId, worker: PublicKey, outcome: Outcome) -> Signed {
        let verdict = Verdict { task, worker, payload: Digest::of(b"payload"), work: 0, by: None, turn: 0, outcome };
        Signed::seal(&Keypair::from_secret(&[9; 32]), &verdict)
    }

    #[test]
    fn a_history_follows_the_run_and_tells_what_became_of_each_task() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let mut store = RunStore::new(Database::open(&path).unwrap());
        assert!(History::open(&path).unwrap().is_none(), "there is no run yet");
        let (spec, base) = (testing::spec(2), Digest::of(b"base"));
        let opened = |round| Record::RoundOpened { round: Round(round), base, momentum: None, at: Time(5) };
        store.create(&spec, &[opened(0)]).unwrap();
        let history = History::open(&path).unwrap().unwrap();
        assert_eq!(history.rounds(None, 10).unwrap().len(), 1);

        let worker = Keypair::from_secret(&[1; 32]).public();
        let other = Keypair::from_secret(&[2; 32]).public();
        let task = |index| Task::of_round(&spec, Round(0), index, base).id();
        let submitted = |index, worker, losses| {
            let submission =
                Submission::new(task(index), Digest::of(b"payload"), losses, testing::trail(4), spec.tokens_per_task());
            Record::Submitted { index, worker, submission }
        };
        let accepted = Outcome::Accepted { layer: Layer::Statistics, tokens: spec.tokens_per_task(), norm: 2.0 };
        let rejected = Outcome::Rejected { layer: Layer::Admission, reason: Reason::NotFinite };
        let lease = |index, worker| Record::Leased { index, worker, deadline: Time(9) };
        let pay = crate::protocol::Amount::from_micro(7).unwrap();
        store
            .append(&[
                lease(0, worker),
                submitted(0, worker, vec![3.0, 1.0]),
                Record::Admitted { index: 0, norm: 2.0 },
                Record::Accepted { index: 0, verdict: verdict(task(0), worker, accepted) },
                lease(1, other),
                submitted(1, other, vec![9.0, 9.0]),
                Record::Rejected { index: 1, verdict: verdict(task(1), other, rejected) },
                lease(1, worker),
                Record::RoundClosed { at: Time(8), secret: None, test: false },
                opened(1),
                Record::RoundPaid { round: Round(0), pays: vec![(worker, pay)] },
                Record::Evaluated { round: Round(1), loss: 0.5 },
            ])
            .unwrap();
        let rounds = history.rounds(None, 10).unwrap();
        assert_eq!((rounds[0].accepted, rounds[0].rejected, rounds[0].tokens), (1, 1, spec.tokens_per_task()));
        assert_eq!((rounds[0].train_loss, rounds[0].closed, rounds[0].paid), (Some(2.0), Some(Time(8)), pay));
        assert_eq!((rounds[1].loss, rounds[1].closed), (Some(0.5), None));
        assert_eq!(history.rounds(Some(Round(0)), 10).unwrap(), rounds[1..]);

        let (summary, story) = history.round(Round(0)).unwrap().unwrap();
        assert_eq!(summary, rounds[0]);
        let first = story.tasks[0];
        assert_eq!((first.stage, first.worker, first.task), (TaskStage::Accepted, Some(worker), task(0)));
        assert_eq!((first.loss_first, first.loss_last, first.norm), (Some(3.0), Some(1.0), Some(2.0)));
        assert_eq!(first.layer, Some(Layer::Statistics));
        assert_eq!((story.tasks[1].stage, story.tasks[1].worker), (TaskStage::Leased, Some(worker)));
        assert_eq!((story.rejections.len(), story.rejections[0].worker), (1, other));
        assert_eq!(history.round(Round(1)).unwrap().unwrap().1.tasks[0].stage, TaskStage::Open);
        assert_eq!(history.round(Round(2)).unwrap(), None);
        let reopened = History::open(&path).unwrap().unwrap();
        assert_eq!(reopened.rounds(None, 10).unwrap(), rounds);
    }
}
