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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::Receiver;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::ledger::testing::{
        NOW, Unreliable, accepted, emitting, key, ledger_key, micro, order, pay_round, vests_soon, wallet,
    };
    use crate::ledger::{Action, Answer, Desk, EconomyConfig, Ledger, LedgerConfig, LedgerError, Request, audit};
    use crate::protocol::{Digest, Emission};
    use crate::store::{Database, LedgerStore};

    fn config() -> LedgerConfig {
        let emission = Emission { initial: micro(100_000), halving_rounds: 1_000, cap: micro(10_000_000) };
        emitting(EconomyConfig { emission, ..vests_soon() })
    }

    struct Bench {
        desk: Desk<usize>,
        written: Receiver<Written>,
        broken: Arc<AtomicU32>,
    }

    impl Bench {
        /// A ledger in which the first two keys have something to spend.
        fn open(path: &Path) -> Self {
            let broken = Arc::new(AtomicU32::new(0));
            let store = LedgerStore::new(Database::open(path).unwrap()).unwrap();
            let store = Unreliable(store, Arc::clone(&broken));
            let writer = GroupCommit::start(store, LedgerStore::read_only(path).unwrap(), ledger_key()).unwrap();
            let mut desk = Desk::open(config(), Box::new(writer)).unwrap();
            let (told, written) = channel();
            desk.listen(Box::new(move |what| told.send(what).unwrap()));
            let mut bench = Self { desk, written, broken };
            for round in 0..2 {
                let pay = pay_round(round, vec![accepted(round * 10, 0, 1), accepted(round * 10 + 1, 1, 1)]);
                bench.desk.ask(NOW, &pay, 0);
                bench.answers(1);
            }
            bench
        }

        /// Waits for so many answers.
        fn answers(&mut self, many: usize) -> Vec<(usize, Answer)> {
            let mut answers = Vec::new();
            while answers.len() < many {
                let written = self.written.recv_timeout(Duration::from_secs(30)).expect("the writer lives");
                answers.extend(self.desk.written(written));
            }
            answers
        }
    }

    fn send(n: usize) -> Request {
        order((n % 2) as u8, n as u64, Action::Send { to: key(2).public(), amount: micro(1 + n as i64) })
    }

    #[test]
    fn what_comes_while_the_disk_is_busy_is_one_transaction_with_one_head_and_all_accounts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let mut bench = Bench::open(&path);
        for n in 0..300 {
            assert!(bench.desk.ask(NOW, &send(n), n).is_none(), "nobody hears of what is not durable");
        }
        assert!(bench.desk.ask(NOW, &Request::Totals, 300).is_none(), "not even as the answer to a question");
        let answers = bench.answers(301);
        assert!(answers.iter().map(|(n, _)| *n).eq(0..=300), "in order");
        assert!(!answers.iter().any(|(_, answer)| matches!(answer, Answer::Refused { .. })));
        let audited = audit(config(), None, &mut LedgerStore::snapshot(&path).unwrap()).unwrap();
        assert_eq!(audited.transfers, 306);
        assert!(audited.heads < 150, "{} transactions for 300 transfers", audited.heads);
    }

    #[test]
    fn a_full_disk_refuses_all_that_is_under_way_stays_readable_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let mut bench = Bench::open(&path);
        bench.desk.ask(NOW, &send(0), 0);
        bench.answers(1);
        let before = bench.desk.core().book().balance(wallet(2));
        bench.broken.store(u32::MAX, Ordering::SeqCst);
        for n in 1..50 {
            bench.desk.ask(NOW, &send(n), n);
        }
        let answers = bench.answers(49);
        let failed = |answer: &Answer| matches!(answer, Answer::Refused { error: LedgerError::Store(_), .. });
        assert!(answers.iter().all(|(_, answer)| failed(answer)));
        assert!(!bench.desk.is_ready());
        assert_eq!(bench.desk.core().book().balance(wallet(2)), before, "nothing of it was done");
        assert!(matches!(bench.desk.ask(NOW, &Request::Totals, 0), Some((0, Answer::Totals { transfers: 7, .. }))));
        // Each refused request asks the disk once more, and changes nothing while that is full.
        let not_ready = bench.desk.ask(NOW, &send(1), 1).unwrap().1;
        let Answer::Refused { error, .. } = not_ready else { panic!() };
        assert!(matches!(error, LedgerError::Store(StoreError::NotReady(_))));
        let told = bench.written.recv().unwrap();
        bench.desk.written(told);
        assert!(!bench.desk.is_ready());
        bench.broken.store(0, Ordering::SeqCst);
        bench.desk.ask(NOW, &send(1), 1);
        let told = bench.written.recv().unwrap();
        bench.desk.written(told);
        assert!(bench.desk.is_ready());
        for n in 0..50 {
            bench.desk.ask(NOW, &send(n), n);
        }
        assert!(
            !bench.answers(49).iter().any(|(_, answer)| matches!(answer, Answer::Refused { .. })),
            "asked again, done once"
        );
        let total: i128 = (1..=50).sum();
        assert_eq!(bench.desk.core().book().balance(wallet(2)).0, total);
        drop(bench);
        assert_eq!(audit(config(), None, &mut LedgerStore::snapshot(&path).unwrap()).unwrap().transfers, 56);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn acknowledged_is_recovered_and_recovered_is_a_prefix_of_what_was_sent(
            looks in prop::collection::vec((1..60usize, any::<prop::sample::Index>()), 1..4),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("hydra.db");
            let mut bench = Bench::open(&path);
            let (mut sent, mut acknowledged, mut heads) = (0, 0, vec![bench.desk.core().journal().head()]);
            for (more, cut) in looks {
                for _ in 0..more {
                    bench.desk.ask(NOW, &send(sent), sent);
                    heads.push(bench.desk.core().journal().head());
                    sent += 1;
                }
                while let Ok(written) = bench.written.try_recv() {
                    acknowledged += bench.desk.written(written).len();
                }
                // The machine dies here: the file, and the log as far as it is written; then with some of the log's end
                // lost that was never acknowledged.
                let (file, log) = (fs::read(&path).unwrap(), fs::read(folder.path().join("hydra.db-wal")).unwrap());
                for (kept, least) in [(log.len(), acknowledged), (cut.index(log.len()), 0)] {
                    let copies = tempfile::tempdir().unwrap();
                    let copy = copies.path().join("hydra.db");
                    fs::write(&copy, &file).unwrap();
                    fs::write(copies.path().join("hydra.db-wal"), &log[..kept]).unwrap();
                    let mut store = LedgerStore::new(Database::open(&copy).unwrap()).unwrap();
                    let ledger = Ledger::open(config(), &mut store).unwrap();
                    let length = usize::try_from(ledger.journal().length()).unwrap();
                    let head: Digest = ledger.journal().head();
                    if length >= 6 {
                        prop_assert_eq!(head, heads[length - 6], "what is there is what was sent, in order");
                    }
                    prop_assert!(length >= 6 + least || (least == 0 && length < 6 + sent + 1), "{} of {}", length, least);
                }
            }
        }
    }
}
