use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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
use crate::process::panic_text;
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
            Err(panic) => Err(format!("a law of the ledger is broken: {}", panic_text(&*panic))),
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
            health.refuse();
            return Err(StoreError::Failed("disk full".to_owned()));
        }
        self.store.probe()?;
        health.succeed();
        Ok(())
    }
}

/// Whoever is told of what is written.
type Listener = Box<dyn Fn(Written) + Send>;

/// Writes when a disk that is slow would be done, one batch after the other. What is on its way to the disk when it is
/// dropped is lost.
pub(crate) struct SlowWriter {
    disk: Rc<RefCell<Disk>>,
    listener: Rc<RefCell<Listener>>,
    /// Until when it is busy.
    busy: Time,
}

struct Disk {
    journal: OpenJournal,
    key: Keypair,
    /// On the way, oldest first.
    jobs: VecDeque<Job>,
    /// The epoch that something failed in: what builds on that is dropped.
    failed: Option<u64>,
}

impl SlowWriter {
    pub fn new(journal: OpenJournal, key: Keypair) -> Self {
        let disk = Disk { journal, key, jobs: VecDeque::new(), failed: None };
        let disk = Rc::new(RefCell::new(disk));
        Self { disk, listener: Rc::new(RefCell::new(Box::new(|_| ()))), busy: Time(0) }
    }
}

impl Disk {
    /// Does the next job; what became of it, unless it was dropped.
    fn write(&mut self) -> Option<Written> {
        let Job { epoch, ticket, batch } = self.jobs.pop_front()?;
        if self.failed == Some(epoch) {
            return None;
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
        Some(Written { epoch, ticket, result })
    }
}

impl JournalSource for SlowWriter {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.disk.borrow_mut().journal.entries(visit)
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.disk.borrow_mut().journal.kept()
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.disk.borrow_mut().journal.heads(visit)
    }
}

impl JournalWriter for SlowWriter {
    fn listen(&mut self, listener: Box<dyn Fn(Written) + Send>) {
        *self.listener.borrow_mut() = listener;
    }

    fn submit(&mut self, job: Job) {
        let now = virtual_now();
        let (slow, waits) = {
            let mut disk = self.disk.borrow_mut();
            disk.jobs.push_back(job);
            (disk.journal.journal.health.slow(), disk.jobs.len() > 1)
        };
        self.busy = self.busy.max(now) + slow;
        let wait: Duration = self.busy.since(now);
        let (disk, listener) = (Rc::downgrade(&self.disk), Rc::clone(&self.listener));
        let write = move || {
            let written = disk.upgrade().and_then(|disk| disk.borrow_mut().write());
            written.into_iter().for_each(|written| (listener.borrow())(written));
        };
        if wait.is_zero() && !waits {
            return write();
        }
        actix::spawn(async move {
            tokio::time::sleep(wait).await;
            write();
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::Scenario;
    use crate::simulation::in_virtual_time;
    use hydra::ledger::{Answer, Desk, EconomyConfig, Request};
    use hydra::protocol::{Digest, Round, RunId};
    use hydra::store::MemoryBlobs;

    const SMALL: &str = "about = 'one task'\n\
        job = { rounds = 1, inner_steps = 1, batch = 1, \
        model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 } }\n\
        workers = [{ count = 1, tokens_per_second = 40 }]\n";

    fn journal() -> Journal {
        let economy = EconomyConfig::default().check().unwrap();
        let config = LedgerConfig { economy, verifiers: BTreeSet::new() };
        let spec = Scenario::parse(Path::new("small.toml"), SMALL).unwrap().spec(1, Digest::of(&[]));
        let laws = Laws::new(&spec, BTreeSet::new(), Arc::new(MemoryBlobs::default()), &config);
        Journal::new(config, None, laws)
    }

    type Told = Arc<Mutex<Vec<Written>>>;

    fn desk(journal: &Journal) -> (Desk<u32>, Told) {
        let writer = SlowWriter::new(journal.open().unwrap(), Keypair::from_secret(&[1; 32]));
        let mut desk = Desk::open(journal.config(), Box::new(writer)).unwrap();
        let told = Told::default();
        let hears = Arc::clone(&told);
        desk.listen(Box::new(move |written| hears.lock().unwrap().push(written)));
        (desk, told)
    }

    fn pay(desk: &mut Desk<u32>, round: u32) -> Option<(u32, Answer)> {
        let run = RunId(Digest::of(b"a run"));
        desk.ask(virtual_now(), &Request::PayRound { run, round: Round(round), verdicts: vec![] }, round)
    }

    fn length(journal: &Journal) -> u64 {
        journal.check().unwrap().journal().length()
    }

    #[test]
    fn what_is_on_its_way_to_the_disk_is_lost_with_the_ledger() {
        in_virtual_time(async {
            let journal = journal();
            journal.health.slow_down(1000);
            let (mut lost, _) = desk(&journal);
            assert!(pay(&mut lost, 0).is_none());
            tokio::time::sleep(Duration::from_millis(999)).await;
            drop(lost);
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(length(&journal), 0);
            let (mut kept, _) = desk(&journal);
            assert!(pay(&mut kept, 0).is_none());
            tokio::time::sleep(Duration::from_millis(1001)).await;
            drop(kept);
            assert_eq!(length(&journal), 1);
        });
    }

    #[test]
    fn a_disk_that_is_fast_again_writes_in_the_order_that_was_asked_for() {
        in_virtual_time(async {
            let journal = journal();
            let (mut desk, told) = desk(&journal);
            assert!(pay(&mut desk, 0).is_none() && told.lock().unwrap().len() == 1, "at once");
            journal.health.slow_down(1000);
            assert!(pay(&mut desk, 1).is_none());
            journal.health.speed_up(1000);
            assert!(pay(&mut desk, 2).is_none());
            assert_eq!((length(&journal), told.lock().unwrap().len()), (1, 1));
            tokio::time::sleep(Duration::from_millis(1001)).await;
            let tickets: Vec<u64> = told.lock().unwrap().iter().map(|written| written.ticket).collect();
            assert_eq!((length(&journal), tickets), (3, vec![1, 2, 3]));
            let answers: Vec<u32> = std::mem::take(&mut *told.lock().unwrap())
                .into_iter()
                .flat_map(|written| desk.written(written))
                .map(|(reply, _)| reply)
                .collect();
            assert_eq!(answers, [0, 1, 2]);
        });
    }
}
