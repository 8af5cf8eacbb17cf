use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::ledger::{Batch, Entry, Job, JournalSource, JournalStore, JournalWriter, Kept, StoreError, Written};
use crate::protocol::{Keypair, Signed, limits};

/// A thread of its own that makes batches durable, as many in one transaction as have come while it wrote the last one
/// (group commit): the more is asked for, the less each costs.
pub struct GroupCommit {
    reader: Box<dyn JournalSource>,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Listener(Box<dyn Fn(Written) + Send>),
    Job(Box<Job>),
}

impl GroupCommit {
    /// Writes to `store` and signs heads with `key`. `reader` reads the same ledger while the thread writes.
    pub fn start(
        store: impl JournalStore + Send + 'static,
        reader: impl JournalSource + 'static,
        key: Keypair,
    ) -> std::io::Result<Self> {
        let (orders, taken) = channel();
        let thread = std::thread::Builder::new().name("ledger-writer".to_owned()).spawn(move || {
            Writer { store, key, orders: taken, listener: Box::new(|_| ()), failed: None }.run();
        })?;
        Ok(Self { reader: Box::new(reader), orders: Some(orders), thread: Some(thread) })
    }

    fn order(&self, order: Order) {
        // The thread ends only with this, or by a panic, which the panic hook has told of.
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl JournalSource for GroupCommit {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.reader.entries(visit)
    }
    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.reader.kept()
    }
    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.reader.heads(visit)
    }
}

impl JournalWriter for GroupCommit {
    fn listen(&mut self, listener: Box<dyn Fn(Written) + Send>) {
        self.order(Order::Listener(listener));
    }

    fn submit(&mut self, job: Job) {
        self.order(Order::Job(Box::new(job)));
    }
}

impl Drop for GroupCommit {
    /// Writes what was submitted, and waits for it.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by the panic hook; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

struct Writer<S> {
    store: S,
    key: Keypair,
    orders: Receiver<Order>,
    listener: Box<dyn Fn(Written) + Send>,
    /// The epoch that something failed in.
    failed: Option<u64>,
}

impl<S: JournalStore> Writer<S> {
    fn run(mut self) {
        while let Ok(order) = self.orders.recv() {
            let mut group = Group::default();
            let mut next = Some(order);
            while let Some(order) = next {
                match order {
                    Order::Listener(listener) => self.listener = listener,
                    Order::Job(job) if Some(job.epoch) == self.failed => {}
                    Order::Job(job) => group.add(*job),
                }
                next = if group.jobs < limits::GROUP_COMMIT_MAX { self.orders.try_recv().ok() } else { None };
            }
            if let Some((epoch, ticket)) = group.last {
                let result = self.write(group);
                if result.is_err() {
                    self.failed = Some(epoch);
                }
                (self.listener)(Written { epoch, ticket, result });
            }
        }
    }

    fn write(&mut self, group: Group) -> Result<(), StoreError> {
        match group.batch {
            Some(mut batch) => {
                batch.seal(&self.key);
                self.store.append(&batch)
            }
            None => self.store.probe(),
        }
    }
}

/// Jobs that are done together.
#[derive(Default)]
struct Group {
    batch: Option<Batch>,
    jobs: usize,
    /// Epoch and ticket of the last one.
    last: Option<(u64, u64)>,
}

impl Group {
    fn add(&mut self, job: Job) {
        self.jobs += 1;
        self.last = Some((job.epoch, job.ticket));
        match (&mut self.batch, job.batch) {
            (Some(batch), Some(next)) => batch.extend(next),
            (batch @ None, next) => *batch = next,
            (Some(_), None) => {}
        }
    }
}
