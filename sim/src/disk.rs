//! What survives a crash: the coordinator's records, the ledger's journal, a worker's unacknowledged result. All of it in
//! memory, and able to fail as disks do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hydra::coordinator::{Record, RecordStore, RecordStoreError};
use hydra::ledger::{
    Batch, Entry, JournalSource, JournalStore, Kept, Kind, Ledger, LedgerConfig, MemoryJournal, Purpose, StoreError,
};
use hydra::protocol::wire::{self, WireError};
use hydra::protocol::{PublicKey, Signed, TaskId, limits};
use hydra::worker::{Finished, ResultStore};

/// A disk's troubles, as seen by whoever writes to it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Reasons for which nothing can be written now.
    pub full: Cell<u32>,
    /// What the next write does instead of succeeding.
    pub torn: Cell<Option<Torn>>,
    /// A write was refused since the process began: it may die of that.
    pub refused: Cell<bool>,
}

/// A process that dies while it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Torn {
    /// Before the write was durable.
    Before,
    /// After it, and before anybody heard of it.
    After,
}

/// The records of a run, encoded as they are in a database. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    kept: Rc<RefCell<Vec<Vec<u8>>>>,
    pub health: Rc<Health>,
}

impl Records {
    pub fn write(&self, records: &[Record]) {
        self.kept.borrow_mut().extend(records.iter().map(wire::encode));
    }

    pub fn read(&self) -> Result<Vec<Record>, WireError> {
        self.kept.borrow().iter().map(|record| wire::decode(record, limits::RECORD_BYTES_MAX)).collect()
    }
}

/// The same, as one process has them open.
pub(crate) struct OpenRecords {
    pub records: Records,
    pub alive: Arc<AtomicBool>,
}

impl RecordStore for OpenRecords {
    fn append(&mut self, records: &[Record]) -> Result<(), RecordStoreError> {
        let health = &self.records.health;
        let refuse = |why: &str| {
            health.refused.set(true);
            Err(RecordStoreError(why.to_owned()))
        };
        if !self.alive.load(Ordering::Relaxed) {
            return Err(RecordStoreError("written by a process that is dead".to_owned()));
        }
        if health.full.get() > 0 {
            return refuse("disk full");
        }
        let torn = health.torn.take();
        if torn != Some(Torn::Before) {
            self.records.write(records);
        }
        if torn.is_some() { refuse("killed while writing") } else { Ok(()) }
    }
}

/// The ledger's journal, which checks what must always hold.
#[derive(Clone)]
pub(crate) struct Journal {
    pub kept: MemoryJournal,
    pub health: Rc<Health>,
    laws: Rc<RefCell<Laws>>,
}

struct Laws {
    config: LedgerConfig,
    /// Work that was paid.
    paid: BTreeSet<(PublicKey, TaskId)>,
    entries: u64,
    /// From how many entries on the whole journal is checked again.
    check_at: u64,
    broken: Vec<String>,
}

impl Journal {
    pub fn new(config: LedgerConfig) -> Self {
        let laws = Laws { config, paid: BTreeSet::new(), entries: 0, check_at: 1, broken: Vec::new() };
        Self { kept: MemoryJournal::default(), health: Rc::default(), laws: Rc::new(RefCell::new(laws)) }
    }

    /// The ledger that it is the journal of.
    pub fn config(&self) -> LedgerConfig {
        self.laws.borrow().config.clone()
    }

    /// Laws that were broken so far.
    pub fn broken(&self) -> Vec<String> {
        self.laws.borrow().broken.clone()
    }

    /// Opens the whole journal anew, as after a crash: every entry replayed, the accounts compared, the book's laws held.
    fn check(&self) -> Result<(), String> {
        let config = self.config();
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let ledger = Ledger::open(config, &mut self.kept.clone());
            ledger.map(|ledger| ledger.book().assert_invariants())
        }));
        match opened {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the ledger does not open again: {error}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Err(format!("a law of the ledger is broken: {}", text.unwrap_or_default()))
            }
        }
    }

    fn hold_laws(&self, entries: &[Entry]) {
        let mut laws = self.laws.borrow_mut();
        for entry in entries {
            let transfer = &entry.transfer;
            if let (Kind::Pending { .. } | Kind::Single, Purpose::Pay { task, .. }) = (transfer.kind, transfer.purpose)
                && let hydra::ledger::Account::Wallet(worker) = transfer.credit
                && !laws.paid.insert((worker, task))
            {
                laws.broken.push(format!("worker {} was paid twice for task {task}", worker.short()));
            }
        }
        laws.entries += entries.len() as u64;
        if laws.entries < laws.check_at {
            return;
        }
        // Each time a quarter more entries than before, so that all checks together cost a few readings of the whole.
        laws.check_at = laws.entries + laws.entries / 4 + 1;
        drop(laws);
        if let Err(broken) = self.check() {
            self.laws.borrow_mut().broken.push(broken);
        }
    }
}

impl JournalSource for Journal {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.kept.entries(visit)
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.kept.kept()
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.kept.heads(visit)
    }
}

impl JournalStore for Journal {
    fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.probe()?;
        self.kept.append(batch)?;
        self.hold_laws(&batch.entries);
        Ok(())
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        if self.health.full.get() > 0 {
            self.health.refused.set(true);
            return Err(StoreError::Failed("disk full".to_owned()));
        }
        Ok(())
    }
}

/// A worker's result, until it is acknowledged. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptResult(pub Rc<RefCell<Option<Finished>>>);

impl ResultStore for KeptResult {
    fn keep(&mut self, finished: &Finished) -> Result<(), String> {
        self.0.replace(Some(finished.clone()));
        Ok(())
    }

    fn let_go(&mut self) -> Result<(), String> {
        self.0.replace(None);
        Ok(())
    }
}
