use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use hydra::ledger::{
    Batch, Entry, Job, JournalSource, JournalStore, JournalWriter, Kept, Ledger, LedgerConfig, MemoryJournal,
    StoreError, Written,
};
use hydra::protocol::{Keypair, Signed, Time};
use hydra::store::{Database, LedgerStore};

use super::{Folder, Health};
use crate::laws::Laws;
use crate::simulation::virtual_now;

/// The ledger's journal, which checks what must always hold. Clones share it.
#[derive(Clone)]
pub(crate) struct Journal {
    kept: Place,
    pub health: Rc<Health>,
    config: Rc<LedgerConfig>,
    laws: Laws,
    growth: Rc<Growth>,
}

/// Where it is.
#[derive(Clone)]
enum Place {
    Memory(MemoryJournal),
    Sqlite(Rc<Folder>),
}

/// How many entries there are, and from how many on the whole journal is checked again.
#[derive(Default)]
struct Growth {
    entries: Cell<u64>,
    check_at: Cell<u64>,
}

/// The same, as one process has it open.
pub(crate) struct OpenJournal {
    journal: Journal,
    store: Box<dyn JournalStore>,
}

impl Journal {
    pub fn new(config: LedgerConfig, folder: Option<&Rc<Folder>>, laws: Laws) -> Self {
        let kept =
            folder.map_or_else(|| Place::Memory(MemoryJournal::default()), |folder| Place::Sqlite(Rc::clone(folder)));
        Self { kept, health: Rc::default(), config: Rc::new(config), laws, growth: Rc::default() }
    }

    /// The ledger that it is the journal of.
    pub fn config(&self) -> LedgerConfig {
        (*self.config).clone()
    }

    pub fn open(&self) -> Result<OpenJournal, StoreError> {
        let store: Box<dyn JournalStore> = match &self.kept {
            Place::Memory(journal) => Box::new(journal.clone()),
            Place::Sqlite(folder) => {
                let failed = |error: hydra::store::DatabaseError| StoreError::Failed(error.to_string());
                let database = Database::open(folder.file("ledger.db")).map_err(failed)?;
                Box::new(LedgerStore::new(database).map_err(failed)?)
            }
        };
        Ok(OpenJournal { journal: self.clone(), store })
    }

    /// Opens the whole journal anew, as after a crash: every entry replayed, the accounts compared, the book's laws held.
    pub fn check(&self) -> Result<Ledger, String> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let ledger = Ledger::open(self.config(), &mut self.open()?)?;
            ledger.book().assert_invariants();
            Ok::<_, StoreError>(ledger)
        }));
        match opened {
            Ok(Ok(ledger)) => Ok(ledger),
            Ok(Err(error)) => Err(format!("the ledger does not open again: {error}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Err(format!("a law of the ledger is broken: {}", text.unwrap_or_default()))
            }
        }
    }

    fn hold_laws(&self, entries: &[Entry]) {
        self.laws.booked(entries);
        let Growth { entries: count, check_at } = &*self.growth;
        count.set(count.get() + entries.len() as u64);
        if count.get() < check_at.get().max(1) {
            return;
        }
        // Each time a quarter more entries than before, so that all checks together cost a few readings of the whole.
        check_at.set(count.get() + count.get() / 4 + 1);
        if let Err(broken) = self.check() {
            self.laws.tell(broken);
        }
    }
}

impl JournalSource for OpenJournal {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.store.entries(visit)
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.store.kept()
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.store.heads(visit)
    }
}

impl JournalStore for OpenJournal {
    fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.probe()?;
        self.store.append(batch)?;
        self.journal.hold_laws(&batch.entries);
        Ok(())
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        let health = &self.journal.health;
        if health.full.get() > 0 {
            health.refused.set(true);
            return Err(StoreError::Failed("disk full".to_owned()));
        }
        self.store.probe()
    }
}

/// Whoever is told of what is written.
type Listener = Box<dyn Fn(Written) + Send>;

/// Writes at once, and says so when a disk that is slow would be done.
pub(crate) struct SlowWriter {
    journal: OpenJournal,
    key: Keypair,
    listener: Rc<RefCell<Listener>>,
    /// Until when it is busy.
    busy: Time,
    /// The epoch that something failed in: what builds on that is dropped.
    failed: Option<u64>,
}

impl SlowWriter {
    pub fn new(journal: OpenJournal, key: Keypair) -> Self {
        Self { journal, key, listener: Rc::new(RefCell::new(Box::new(|_| ()))), busy: Time(0), failed: None }
    }
}

impl JournalSource for SlowWriter {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.journal.entries(visit)
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.journal.kept()
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.journal.heads(visit)
    }
}

impl JournalWriter for SlowWriter {
    fn listen(&mut self, listener: Box<dyn Fn(Written) + Send>) {
        *self.listener.borrow_mut() = listener;
    }

    fn submit(&mut self, Job { epoch, ticket, batch }: Job) {
        if self.failed == Some(epoch) {
            return;
        }
        let result = match batch {
            Some(mut batch) => {
                batch.seal(&self.key);
                self.journal.append(&batch)
            }
            None => self.journal.probe(),
        };
        if result.is_err() {
            self.failed = Some(epoch);
        }
        let (written, now) = (Written { epoch, ticket, result }, virtual_now());
        self.busy = self.busy.max(now) + self.journal.journal.health.slow.get();
        let wait: Duration = self.busy.since(now);
        if wait.is_zero() {
            return (self.listener.borrow())(written);
        }
        let listener = Rc::clone(&self.listener);
        actix::spawn(async move {
            tokio::time::sleep(wait).await;
            (listener.borrow())(written);
        });
    }
}
