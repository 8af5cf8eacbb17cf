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

use hydra::protocol::{Commitment, Submission, Time, WorkerRequest};
use hydra::worker::{Finished, ResultStore};

use crate::simulation::virtual_now;

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
pub(crate) struct KeptResult(Rc<RefCell<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    result: Option<Finished>,
    /// What was let go last, and when: what was said just before is on its way until then.
    let_go: Option<(Time, Commitment)>,
}

impl KeptResult {
    /// What a process that starts finds.
    pub fn found(&self) -> Option<Finished> {
        self.0.borrow().result.clone()
    }

    /// Whether what it says now is on its disk: nobody binds itself to what a crash may take away.
    pub fn covers(&self, request: &WorkerRequest) -> bool {
        let (WorkerRequest::Commit(said) | WorkerRequest::Submit(Submission { commitment: said, .. })) = request else {
            return true;
        };
        let kept = self.0.borrow();
        let is_kept = kept.result.as_ref().is_some_and(|finished| finished.submission.commitment == *said);
        is_kept || kept.let_go == Some((virtual_now(), *said))
    }
}

impl ResultStore for KeptResult {
    fn keep(&mut self, finished: &Finished) -> Result<(), String> {
        self.0.borrow_mut().result = Some(finished.clone());
        Ok(())
    }

    fn let_go(&mut self) -> Result<(), String> {
        let kept = &mut *self.0.borrow_mut();
        if let Some(finished) = kept.result.take() {
            kept.let_go = Some((virtual_now(), finished.submission.commitment));
        }
        Ok(())
    }
}
