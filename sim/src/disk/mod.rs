//! What survives a crash: the coordinator's records, the ledger's journal, a worker's unacknowledged result. In memory or
//! in SQLite, and able to fail as disks do.

mod journal;
mod records;

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hydra::protocol::WorkerRequest;
use hydra::worker::{Finished, ResultStore};

pub(crate) use journal::{Journal, SlowWriter};
pub(crate) use records::Records;

/// A disk's troubles, as seen by whoever writes to it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Reasons for which nothing can be written now.
    pub full: Cell<u32>,
    /// How long each write takes.
    pub slow: Cell<Duration>,
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

/// A folder of a world's own, in memory where the system has that: removed with the world.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new() -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("hydra-sim-{}-{number}", std::process::id()));
        // What a process of the same number left behind when it was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The system clears it away when it starts again.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A worker's result, until it is acknowledged. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptResult(pub Rc<RefCell<Option<Finished>>>);

impl KeptResult {
    /// Whether what it says now is on its disk: nobody binds itself to what a crash may take away.
    pub fn covers(&self, request: &WorkerRequest) -> bool {
        let kept = self.0.borrow();
        let kept = kept.as_ref().map(|finished| &finished.submission);
        match request {
            WorkerRequest::Commit(commitment) => kept.is_some_and(|kept| kept.commitment == *commitment),
            // Losses may be no numbers, which equal nothing.
            WorkerRequest::Submit(submission) => kept.is_some_and(|kept| kept.commitment == submission.commitment),
            _ => true,
        }
    }
}

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
