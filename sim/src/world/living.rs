//! Who lives in a world, and how they come and go.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use hydra::coordinator::{Coordinator, CoordinatorPorts, Rounds, State};
use hydra::ledger::{Desk, LedgerActor};
use hydra::protocol::{Round, Time};
use hydra::runtime::{Clock, Threads, Watch};
use hydra::verifier::{Audit, Verifier, VerifierPorts};
use hydra::worker::{Labour, Worker, WorkerPorts};

use super::{World, key, sleep_until, verifier_key};
use crate::Behaviour;
use crate::disk::SlowWriter;
use crate::faults::{Faults, Victim};
use crate::network::Standing;
use crate::process::{Machine, Process};
use crate::simulation::virtual_now;

/// How long checks, aggregation and the like take, virtual.
const SERVICE_TIME: Duration = Duration::from_millis(50);

/// How long a coordinator that died of its disk stays away: what service managers wait.
pub(super) const RESTART: Duration = Duration::from_secs(10);

/// How often it is looked whether everybody lives who should.
const ROLL_CALL: Duration = Duration::from_mins(1);

/// Tokio's clock, which stands still while anybody has something to do and jumps when nobody has; ahead by so many
/// milliseconds, or behind.
struct VirtualClock(Arc<AtomicI64>);

impl Clock for VirtualClock {
    fn now(&self) -> Time {
        Time(virtual_now().0.saturating_add_signed(self.0.load(Ordering::Relaxed)))
    }
}

impl World {
    /// Starts everybody who is there at the beginning, and everything that happens later.
    pub fn begin(self: &Rc<Self>, faults: Vec<Faults>) {
        self.start_ledger();
        (0..self.verifiers.len()).for_each(|index| self.start_verifier(index));
        self.start_coordinator();
        for index in 0..self.workers.len() {
            let rng = self.spec.seed.derive("presence", index as u64).rng();
            let group = self.workers[index].group;
            let first = self.workers.partition_point(|node| node.group < group);
            let mut changes = self.scenario.workers[group].availability.of(index - first).changes(rng).peekable();
            if changes.next_if(|(at, there)| *at <= 0.0 && *there).is_some() {
                self.start_worker(index);
            } else {
                self.workers[index].process.down.set(1);
            }
            if changes.peek().is_some() {
                actix::spawn(Rc::clone(self).attend(index, changes));
            }
        }
        let rare = self.scenario.faults.iter().filter(|fault| fault.each_round_within_seconds.is_none());
        let sources = rare.map(crate::Fault::source).chain(faults);
        for (index, source) in sources.enumerate() {
            let rng = self.spec.seed.derive("fault", index as u64).rng();
            actix::spawn(Rc::clone(self).suffer(source, rng));
        }
        self.begin_round();
        self.begin_queries();
        actix::spawn(Rc::clone(self).call_roll());
    }

    pub fn say(&self, what: &str) {
        self.log.borrow_mut().write(what);
    }

    pub(super) fn broken(&self, why: impl ToString) {
        // Nobody hears it when the world has ended.
        let _ = self.news.send(super::News::Broken(why.to_string()));
    }

    fn clock(skew: &Arc<AtomicI64>) -> Arc<dyn Clock> {
        Arc::new(VirtualClock(Arc::clone(skew)))
    }

    /// The real threads, and what is under way on them.
    fn real(&self) -> (Rc<Threads>, Arc<crate::process::UnderWay>) {
        (Rc::clone(&self.threads), Arc::clone(&self.blobs.work))
    }

    fn service(&self, standing: &Arc<Standing>, tokens_per_second: u64) -> Machine {
        Machine::new(self.real(), Arc::clone(standing), tokens_per_second, SERVICE_TIME, Duration::ZERO)
    }

    fn start_ledger(&self) {
        let desk = self.journal.open().and_then(|journal| {
            let writer = SlowWriter::new(journal, key(&self.spec.seed, "ledger key", 0));
            Desk::open(self.journal.config(), Box::new(writer))
        });
        match desk {
            Ok(desk) => {
                let address = self.ledger.start(|_, _| LedgerActor::new(desk, Self::clock(&Arc::default())));
                self.payer.set(Some(address.recipient()));
            }
            Err(error) => self.broken(error),
        }
    }

    fn start_verifier(&self, index: usize) {
        let (speed, place) = &self.judges[index];
        let address = self.verifiers[index].start(|_, alive| {
            let ports = VerifierPorts {
                compute: Arc::clone(&self.central),
                executor: Rc::new(self.service(&self.desks[index], *speed).of(alive)),
                watch: self.watch.clone(),
                coordinator: self.doors.coordinator.clone(),
            };
            Verifier::new(Audit::new(verifier_key(&self.spec.seed, index)), ports)
        });
        place.set(Some(address.recipient()));
    }

    fn start_coordinator(self: &Rc<Self>) {
        let records = match self.records.read() {
            Ok(records) => records,
            Err(error) => return self.broken(error),
        };
        let state = State::replay(self.spec.clone(), records);
        let trusted = self.cast.verifiers.iter().map(|(key, _)| *key).collect();
        let secrets = self.scenario.audits.is_some().then(|| self.scenario.secrets(self.number));
        self.records.health.refused.set(false);
        self.journal.health.refused.set(false);
        let alive = Arc::new(AtomicBool::new(true));
        let store = match self.records.open(&alive, &self.front.standing) {
            Ok(store) => Box::new(store),
            Err(error) => return self.broken(error),
        };
        let address = self.coordinator.start_with(alive, |_, alive| {
            let (watch, living) = (self.watch.clone(), Arc::clone(alive));
            let ports = CoordinatorPorts {
                clock: Self::clock(&Arc::default()),
                store,
                compute: Arc::clone(&self.central),
                executor: Rc::new(self.service(&self.front.standing, u64::MAX).of(alive)),
                verifier: self.doors.panel.clone(),
                ledger: self.doors.ledger.clone(),
                // The dead say nothing.
                watch: Watch::new(move |note| {
                    if living.load(Ordering::Relaxed) {
                        watch.note(note);
                    }
                }),
            };
            let end = Some(Round(self.scenario.job.rounds));
            Coordinator::new(Rounds::new(state, trusted, secrets, end), ports)
        });
        self.front.place.set(Some(address.recipient()));
        self.recover_queries();
    }

    fn start_worker(&self, index: usize) {
        let node = &self.workers[index];
        let (jitter, starts) = (self.spec.seed.derive("worker", index as u64), node.process.starts());
        let jitter = if starts == 0 { jitter } else { jitter.derive("start", starts) };
        let copies = self.scenario.workers[node.group].behaviour == Behaviour::Copy;
        node.process.start(|_, alive| {
            let machine = Machine::new(
                self.real(),
                Arc::clone(&node.standing),
                node.tokens_per_second,
                SERVICE_TIME + node.upload,
                node.download,
            );
            let ports = WorkerPorts {
                clock: Self::clock(&node.skew),
                compute: Arc::clone(&node.compute),
                executor: Rc::new(machine.in_turn(copies).of(alive)),
                coordinator: node.link.clone(),
                results: Box::new(node.kept.clone()),
                watch: self.watch.clone(),
            };
            let left = node.kept.found();
            Worker::new(Labour::new(&jitter), node.key.clone(), ports).with_left(left)
        });
    }

    /// Kills it, if it lives.
    pub(super) fn fall(&self, who: Victim, index: usize) {
        match who {
            Victim::Coordinator => {
                self.coordinator.fall();
                self.front.place.set(None);
                self.fall(Victim::Ledger, 0);
            }
            Victim::Ledger => {
                self.ledger.fall();
                self.payer.set(None);
            }
            Victim::Verifiers => {
                self.verifiers[index].fall();
                self.judges[index].1.set(None);
            }
            Victim::Workers => self.workers[index].process.fall(),
        }
    }

    /// Starts it again, if nothing else keeps it down.
    pub(super) fn rise(self: &Rc<Self>, who: Victim, index: usize) {
        match who {
            Victim::Coordinator => {
                self.rise(Victim::Ledger, 0);
                if self.coordinator.rise() {
                    self.say("the coordinator starts again");
                    self.start_coordinator();
                }
            }
            Victim::Ledger => {
                if self.ledger.rise() {
                    self.start_ledger();
                }
            }
            Victim::Verifiers => {
                if self.verifiers[index].rise() {
                    self.start_verifier(index);
                }
            }
            Victim::Workers => {
                if self.workers[index].process.rise() {
                    self.start_worker(index);
                }
            }
        }
    }

    pub(super) fn workers_up(&self) -> usize {
        self.workers.iter().filter(|node| node.process.lives()).count()
    }

    /// A worker comes and goes.
    async fn attend(self: Rc<Self>, index: usize, changes: impl Iterator<Item = (f64, bool)>) {
        for (at, there) in changes {
            sleep_until(at).await;
            self.say(&format!("worker {index} {}", if there { "comes" } else { "leaves" }));
            if there { self.rise(Victim::Workers, index) } else { self.fall(Victim::Workers, index) }
        }
    }

    /// An actor that panics is gone without a word; nobody may be.
    async fn call_roll(self: Rc<Self>) {
        loop {
            tokio::time::sleep(ROLL_CALL).await;
            let dead = (!self.coordinator.is_well()).then_some("the coordinator");
            let dead = dead.or_else(|| (!self.ledger.is_well()).then_some("the ledger"));
            let dead = dead.or_else(|| (!self.verifiers.iter().all(Process::is_well)).then_some("a verifier"));
            let dead = dead.or_else(|| (!self.workers.iter().all(|node| node.process.is_well())).then_some("a worker"));
            if let Some(dead) = dead {
                return self.broken(format!("{dead} is dead, and nothing has killed it"));
            }
        }
    }

    /// The coordinator says that it cannot go on. Of a disk that failed it may die: it is started again.
    pub(super) fn dies(self: &Rc<Self>, why: String) -> Result<(), String> {
        if !self.records.health.refused.get() && !self.journal.health.refused.get() {
            return Err(why);
        }
        self.say(&format!("the coordinator dies: {why}"));
        self.fall(Victim::Coordinator, 0);
        let (world, pause) = (Rc::clone(self), self.restart.replace(RESTART));
        actix::spawn(async move {
            tokio::time::sleep(pause).await;
            world.rise(Victim::Coordinator, 0);
        });
        Ok(())
    }
}
