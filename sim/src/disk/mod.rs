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
    /// Reasons for which each write takes so many milliseconds.
    slow: RefCell<Vec<u64>>,
    /// What the next write does instead of succeeding.
    pub torn: Cell<Option<Torn>>,
    /// The next write has come, and was that.
    pub tore: Cell<bool>,
    /// The last write was refused: whoever wanted it may die of that.
    refused: Cell<bool>,
    /// When one succeeded after that: what was said of the one before is on its way until then.
    again: Cell<Option<Time>>,
}

impl Health {
    /// How long each write takes.
    pub fn slow(&self) -> Duration {
        Duration::from_millis(self.slow.borrow().iter().copied().max().unwrap_or(0))
    }

    /// One more reason for that.
    pub fn slow_down(&self, milliseconds: u64) {
        self.slow.borrow_mut().push(milliseconds);
    }

    /// One reason less.
    pub fn speed_up(&self, milliseconds: u64) {
        let mut slow = self.slow.borrow_mut();
        if let Some(place) = slow.iter().position(|reason| *reason == milliseconds) {
            slow.swap_remove(place);
        }
    }

    pub fn refuse(&self) {
        self.refused.set(true);
    }

    pub fn succeed(&self) {
        if self.refused.take() {
            self.again.set(Some(virtual_now()));
        }
    }

    /// Whether a process may have died of it.
    pub fn is_excuse(&self) -> bool {
        self.refused.get() || self.again.get() == Some(virtual_now())
    }

    /// A new process begins, which was refused nothing.
    pub fn forget(&self) {
        self.refused.set(false);
        self.again.set(None);
        self.tore.set(false);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::in_virtual_time;
    use hydra::protocol::{DeviceKind, Digest, TaskId, Trail};

    fn finished(name: &[u8]) -> Finished {
        let digest = Digest::of(name);
        let trail = Trail { device: DeviceKind::Other, states: vec![digest] };
        let submission = Submission::new(TaskId(digest), digest, vec![1.0], trail, 8);
        Finished { submission, payload: name.to_vec() }
    }

    #[test]
    fn what_was_let_go_covers_what_was_said_at_that_moment_and_nothing_later() {
        in_virtual_time(async {
            let (mut kept, one, other) = (KeptResult::default(), finished(b"one"), finished(b"other"));
            let commits = |finished: &Finished| WorkerRequest::Commit(finished.submission.commitment);
            assert!(kept.covers(&WorkerRequest::Lease { tokens_per_second: 1 }), "that binds nobody to anything");
            assert!(!kept.covers(&commits(&one)));
            kept.keep(&one).unwrap();
            assert!(kept.covers(&commits(&one)) && kept.covers(&WorkerRequest::Submit(one.submission.clone())));
            assert!(!kept.covers(&commits(&other)));
            kept.let_go().unwrap();
            assert!(kept.found().is_none() && kept.covers(&commits(&one)), "it was on its way");
            kept.let_go().unwrap();
            assert!(kept.covers(&commits(&one)), "nothing was there to let go");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!kept.covers(&commits(&one)));
            kept.keep(&other).unwrap();
            assert!(kept.covers(&commits(&other)) && !kept.covers(&commits(&one)));
        });
    }

    #[test]
    fn a_disk_is_as_slow_as_its_worst_trouble_until_that_is_mended() {
        let health = Health::default();
        for (milliseconds, slow) in [(300, 300), (900, 900), (500, 900)] {
            health.slow_down(milliseconds);
            assert_eq!(health.slow(), Duration::from_millis(slow));
        }
        for (milliseconds, slow) in [(900, 500), (300, 500), (500, 0)] {
            health.speed_up(milliseconds);
            assert_eq!(health.slow(), Duration::from_millis(slow));
        }
    }

    #[test]
    fn what_was_refused_excuses_nobody_once_a_write_has_succeeded() {
        in_virtual_time(async {
            let health = Health::default();
            health.succeed();
            assert!(!health.is_excuse());
            health.refuse();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(health.is_excuse());
            health.succeed();
            assert!(health.is_excuse(), "the refusal is on its way");
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!health.is_excuse());
            health.refuse();
            health.forget();
            assert!(!health.is_excuse(), "a new process was refused nothing");
        });
    }
}
