use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Carries a result back to the actor that wanted it.
pub type Delivery = Box<dyn FnOnce() + Send>;

/// Computation off the actors' threads.
pub struct Work {
    /// What it is, for those who must plan for it or simulate how long it takes.
    pub kind: WorkKind,
    /// Computes, and gives what delivers the result.
    pub job: Box<dyn FnOnce() -> Delivery + Send>,
}

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkKind {
    /// Training on so many tokens.
    Train {
        /// Tokens.
        tokens: u64,
    },
    /// Everything else: checks, aggregation, measurements, writing blobs. Short, and somebody waits for it.
    Service,
}

/// Runs work somewhere.
pub trait Executor {
    /// Takes work on; returns at once.
    fn run(&self, work: Work);
}

/// Real threads. Each does one piece of work at a time with its own share of the cores, service before training, so
/// that no more threads compute than there are cores.
#[derive(Debug)]
pub struct Threads {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    service: VecDeque<Work>,
    training: VecDeque<Work>,
    closed: bool,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Waiting({} service, {} training)", self.service.len(), self.training.len())
    }
}

impl Threads {
    /// As many pieces of work at a time as there are workers, or cores if those are fewer; the cores are shared out
    /// evenly among them.
    pub fn new(cores: usize, workers: usize) -> std::io::Result<Self> {
        Self::start(cores, workers, 0)
    }

    /// The same, and a thread that trains nothing: for those whom others wait for while they train.
    pub fn with_service(cores: usize, workers: usize) -> std::io::Result<Self> {
        Self::start(cores, workers, 1)
    }

    fn start(cores: usize, workers: usize, service: usize) -> std::io::Result<Self> {
        let at_a_time = workers.clamp(1, cores.max(1));
        let cores_each = cores.max(1) / at_a_time;
        let queue = Arc::new(Queue::default());
        let threads = (0..at_a_time + service)
            .map(|index| {
                let trains = index < at_a_time;
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(cores_each)
                    .thread_name(move |inner| format!("compute-{index}-{inner}"))
                    .build()
                    .map_err(std::io::Error::other)?;
                let queue = Arc::clone(&queue);
                std::thread::Builder::new().name(format!("compute-{index}")).spawn(move || {
                    while let Some(work) = queue.next(trains) {
                        pool.install(work.job)();
                    }
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self { queue, threads })
    }
}

impl Executor for Threads {
    fn run(&self, work: Work) {
        let mut waiting = self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match work.kind {
            WorkKind::Train { .. } => waiting.training.push_back(work),
            WorkKind::Service => waiting.service.push_back(work),
        }
        drop(waiting);
        // Whoever is woken may not be one who trains.
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn next(&self, trains: bool) -> Option<Work> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if waiting.closed {
                return None;
            }
            let next = waiting.service.pop_front();
            if let Some(work) = next.or_else(|| waiting.training.pop_front_if(|_| trains)) {
                return Some(work);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Threads {
    /// Drops what has not begun, and waits for what has.
    fn drop(&mut self) {
        self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A job that panicked has been reported by the panic hook; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn service_goes_before_training_that_has_not_begun() {
        let threads = Threads::new(1, 4).unwrap();
        let (begun, wait_begun) = mpsc::channel();
        let (go, wait_go) = mpsc::channel::<()>();
        let (done, results) = mpsc::channel();
        let job = |name: &'static str, before: Box<dyn FnOnce() + Send>| {
            let done = done.clone();
            Box::new(move || {
                before();
                Box::new(move || done.send(name).unwrap()) as Delivery
            })
        };
        let train = WorkKind::Train { tokens: 1 };
        let block = Box::new(move || {
            begun.send(()).unwrap();
            wait_go.recv().unwrap();
        });
        threads.run(Work { kind: train, job: job("first", block) });
        wait_begun.recv().unwrap();
        threads.run(Work { kind: train, job: job("training", Box::new(|| ())) });
        threads.run(Work { kind: WorkKind::Service, job: job("service", Box::new(|| ())) });
        go.send(()).unwrap();
        assert_eq!(results.iter().take(3).collect::<Vec<_>>(), ["first", "service", "training"]);
    }
}
