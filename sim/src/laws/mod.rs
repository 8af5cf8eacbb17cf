//! What must always hold, whatever the scenario: a second reading of all that is written and said, which shares no code
//! with those who wrote and said it. Two things are production's own here too: which tasks a round has, and the
//! aggregation that makes a model again, with its results in another order.

mod journal;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hydra::coordinator::Record;
use hydra::ledger::{Entry, LedgerConfig};
use hydra::protocol::{PublicKey, RunSpec, Time, WorkerReply, WorkerRequest};
use hydra::store::Blobs;

use journal::JournalLaws;
use records::RecordLaws;

use crate::simulation::virtual_now;

/// Whoever breaks one law breaks many: the first few say what happened.
const TOLD: usize = 8;

/// Everything that is watched of one world. Clones share it; replies take it to wherever they are called.
#[derive(Clone)]
pub(crate) struct Laws(Arc<Mutex<Watched>>);

struct Watched {
    records: RecordLaws,
    journal: JournalLaws,
    broken: Vec<String>,
}

impl Laws {
    pub fn new(spec: &RunSpec, verifiers: BTreeSet<PublicKey>, blobs: Arc<dyn Blobs>, ledger: &LedgerConfig) -> Self {
        let records = RecordLaws::new(spec.clone(), verifiers, blobs);
        Self(Arc::new(Mutex::new(Watched { records, journal: JournalLaws::new(ledger.economy), broken: Vec::new() })))
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are on the coordinator's disk.
    pub fn recorded(&self, records: &[Record], now: Time) {
        let watched = &mut *self.watched();
        watched.records.begin_write(now);
        for record in records {
            let held = watched.records.read(record, now).and_then(|()| watched.journal.confirm(record));
            if let Err(broken) = held {
                watched.tell(broken);
            }
        }
    }

    /// The coordinator answers.
    pub fn answered(&self, worker: &PublicKey, asked: Option<&WorkerRequest>, reply: &WorkerReply) {
        let watched = &mut *self.watched();
        if let Err(broken) = watched.records.answer(worker, asked, reply, virtual_now()) {
            watched.tell(broken);
        }
    }

    /// These are on the ledger's disk, all at once.
    pub fn booked(&self, entries: &[Entry]) {
        let watched = &mut *self.watched();
        let Watched { records, journal, .. } = watched;
        for broken in journal.read(entries, records.verdicts()) {
            watched.tell(broken);
        }
    }

    /// What queries hold, how many of them, and what was paid for them, µHYD.
    pub fn queries(&self) -> (usize, i128) {
        let journal = &self.watched().journal;
        (journal.held(), journal.settled())
    }

    /// What each has spent on queries, less what others' queries have brought, µHYD.
    pub fn spent(&self) -> BTreeMap<PublicKey, i128> {
        self.watched().journal.spent().clone()
    }

    /// Something else does not hold.
    pub fn tell(&self, broken: String) {
        self.watched().tell(broken);
    }

    pub fn are_broken(&self) -> bool {
        !self.watched().broken.is_empty()
    }

    pub fn broken(&self) -> Vec<String> {
        self.watched().broken.clone()
    }
}

impl Watched {
    fn tell(&mut self, broken: String) {
        if self.broken.len() < TOLD && !self.broken.contains(&broken) {
            self.broken.push(broken);
        }
    }
}
