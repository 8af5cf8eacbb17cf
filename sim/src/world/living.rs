//! Who lives in a world, and how they come and go.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use hydra::coordinator::{Coordinator, CoordinatorPorts, Rounds, State};
use hydra::ledger::{Desk, LedgerActor};
use hydra::protocol::{Round, Time};
use hydra::runtime::{Clock, Watch};
use hydra::verifier::{Audit, Verifier, VerifierPorts};
use hydra::worker::{Labour, Worker, WorkerPorts};

use super::{World, key, sleep_until, verifier_key};
use crate::Behaviour;
use crate::disk::SlowWriter;
use crate::faults::{Faults, Victim};
use crate::network::Standing;
use crate::process::{Machine, Process, Real};
use crate::simulation::{Bounds, virtual_now, virtual_seconds};

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
    pub fn begin(self: &Rc<Self>, faults: Vec<Faults>, bounds: Option<Bounds>) {
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
            let suffering = actix::spawn(Rc::clone(self).suffer(source, rng));
            let world = Rc::clone(self);
            actix::spawn(async move {
                if suffering.await.is_err_and(|error| error.is_panic()) {
                    world.broken("a source of faults panicked");
                }
            });
        }
        self.begin_round();
        self.begin_queries();
        actix::spawn(Rc::clone(self).call_roll(bounds));
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

    fn real(&self) -> Real {
        let news = self.news.clone();
        let panicked = move |why: &str| {
            // Nobody hears it when the world has ended.
            let _ = news.send(super::News::Broken(format!("a computation panicked: {why}")));
        };
        Real { threads: Rc::clone(&self.threads), work: Arc::clone(&self.blobs.work), panicked: Rc::new(panicked) }
    }

    fn service(&self, standing: &Arc<Standing>, tokens_per_second: u64) -> Machine {
        Machine::new(self.real(), Arc::clone(standing), tokens_per_second, SERVICE_TIME, Duration::ZERO)
    }

    fn start_ledger(&self) {
        self.journal.health.forget();
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
        self.records.health.forget();
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
    async fn call_roll(self: Rc<Self>, bounds: Option<Bounds>) {
        loop {
            tokio::time::sleep(ROLL_CALL).await;
            if let Some(dead) = self.dead() {
                return self.broken(dead);
            }
            let Some(Bounds { round_seconds, events }) = bounds else { continue };
            let (since, rounds) = (self.round_since.get(), u64::from(self.scenario.job.rounds));
            if self.rounds_begun.get() <= rounds && virtual_seconds() - since > round_seconds {
                return self.broken(format!("no round has closed for {round_seconds} s"));
            }
            if self.log.borrow().lines.len() > events {
                return self.broken(format!("there are more than {events} events"));
            }
        }
    }

    /// Who has died of itself.
    pub(super) fn dead(&self) -> Option<String> {
        // Of a disk that failed a coordinator may die, and is started again in a moment.
        let coordinator = self.coordinator.is_well() || self.records.health.is_excuse();
        let dead = (!coordinator).then_some("the coordinator");
        let dead = dead.or_else(|| (!self.ledger.is_well()).then_some("the ledger"));
        let dead = dead.or_else(|| (!self.verifiers.iter().all(Process::is_well)).then_some("a verifier"));
        let dead = dead.or_else(|| (!self.workers.iter().all(|node| node.process.is_well())).then_some("a worker"));
        dead.map(|dead| format!("{dead} is dead, and nothing has killed it"))
    }

    /// The coordinator says that it cannot go on. Of a disk that failed it may die: it is started again.
    pub(super) fn dies(self: &Rc<Self>, why: String) -> Result<(), String> {
        if !self.records.health.is_excuse() && !self.journal.health.is_excuse() {
            return Err(why);
        }
        self.say(&format!("the coordinator dies: {why}"));
        self.fall(Victim::Coordinator, 0);
        let torn = self.records.health.tore.take();
        let pause = if torn { self.restart.get() } else { RESTART };
        if torn {
            let mut struck = self.struck.borrow_mut();
            for place in self.tears.take() {
                struck[place].until_seconds = virtual_seconds() + pause.as_secs_f64();
            }
        }
        let world = Rc::clone(self);
        actix::spawn(async move {
            tokio::time::sleep(pause).await;
            world.rise(Victim::Coordinator, 0);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use hydra::coordinator::Look;
    use tokio::sync::mpsc;

    use super::*;
    use crate::Scenario;
    use crate::simulation::in_virtual_time;

    const SMALL: &str = "about = 'a small swarm'\n\
        job = { rounds = 4, inner_steps = 4, batch = 4, objective = 'surrogate', \
        model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 } }\n\
        workers = [{ count = 2, tokens_per_second = 40 }]\n";

    #[test]
    fn an_actor_that_panics_is_missed_at_the_end_however_soon_that_is() {
        let scenario = Scenario::parse(Path::new("small.toml"), SMALL).unwrap();
        in_virtual_time(async {
            let (news, _heard) = mpsc::unbounded_channel();
            let world = Rc::new(World::new(&scenario, &BTreeMap::new(), 1, 1, news).unwrap());
            world.begin(vec![], None);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(world.dead(), None);
            let coordinator = world.coordinator.address().unwrap();
            assert!(coordinator.send(Look::new(|_| -> () { panic!("as a bug does") })).await.is_err());
            let (state, ledger) = (world.state().await.unwrap(), world.journal.check().unwrap());
            world.hold_last_laws(&state, &ledger, false);
            assert_eq!(world.laws.broken(), ["the coordinator is dead, and nothing has killed it"]);
        });
    }

    #[test]
    fn a_coordinator_whose_disk_refused_a_write_may_be_dead_at_the_end() {
        let text = format!(
            "{SMALL}faults = [{{ what = 'disk-full', who = 'coordinator', at_seconds = [0], for_seconds = 99 }}]"
        );
        let scenario = Scenario::parse(Path::new("small.toml"), &text).unwrap();
        let outcome = crate::Simulation::new(&scenario).until(Duration::from_mins(1)).run(1, 1).unwrap();
        assert_eq!(outcome.failures, Vec::<String>::new());
    }
}
