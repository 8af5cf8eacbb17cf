//! The in-process world: all four actors in one actix system, wired to each other directly.
//!
//! `hydra up`, the tests and the simulator all run this; they differ in the clock, the executor and the stores that
//! they hand it, and in what stands between a worker and the coordinator.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, AsyncContext, Recipient};

use crate::compute::Compute;
use crate::coordinator::{self, Coordinator, CoordinatorPorts, RecordStore, ReplyTo, Rounds, State};
use crate::ledger::{Ask, Desk, Economy, JournalWriter, LedgerActor, LedgerConfig, StoreError};
use crate::protocol::{Keypair, PublicKey, Round, SecretChain, Seed};
use crate::runtime::{Clock, Executor, Watch};
use crate::verifier::{self, Audit, Verifier, VerifierPorts};
use crate::worker::{KeepNothing, Labour, Worker, WorkerPorts};

/// What an in-process world is made of.
pub struct Swarm {
    /// The run as it stands.
    pub state: State,
    /// The first round that is not to be trained, if any.
    pub end: Option<Round>,
    /// What decides who is audited, in a run that has audits.
    pub secrets: Option<SecretChain>,
    /// The verifier's key.
    pub verifier: Keypair,
    /// Who else's verdicts count.
    pub others: BTreeSet<PublicKey>,
    /// Who is handed submissions to judge, instead of one verifier in this process.
    pub judge: Option<Judge>,
    /// Where the coordinator's records go.
    pub records: Box<dyn RecordStore>,
    /// What rounds pay, and all else about tokens.
    pub economy: Economy,
    /// Where the ledger is.
    pub ledger: LedgerPlace,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Engine and blobs of coordinator and verifier.
    pub compute: Arc<Compute>,
    /// Threads of coordinator and verifier.
    pub executor: Rc<dyn Executor>,
    /// Hears what happens.
    pub watch: Watch,
}

/// Makes whoever is handed submissions to judge, of where the verdicts go.
pub type Judge = Box<dyn FnOnce(Recipient<coordinator::Event<ReplyTo>>) -> Recipient<verifier::Event>>;

/// Where the ledger of a world is.
pub enum LedgerPlace {
    /// In this process, kept here.
    Here(Box<dyn JournalWriter>),
    /// Elsewhere: who takes requests there and brings the answers.
    Elsewhere(Recipient<Ask>),
}

/// One worker of an in-process world.
pub struct Member {
    /// Who it is.
    pub key: Keypair,
    /// Its engine and blobs.
    pub compute: Arc<Compute>,
    /// Its threads.
    pub executor: Rc<dyn Executor>,
}

/// An in-process world at work.
pub struct Running {
    /// The coordinator.
    pub coordinator: Addr<Coordinator>,
    /// The ledger, if it is in this process.
    pub ledger: Option<Addr<LedgerActor>>,
    /// The workers, in the order given.
    pub workers: Vec<Addr<Worker>>,
}

impl Swarm {
    /// Starts everything. `connect` gives what a worker (by its place in `members`) takes for the coordinator: the
    /// coordinator itself, or something that stands for a network.
    ///
    /// Must be called inside a running actix system.
    pub fn start(
        self,
        members: Vec<Member>,
        connect: impl Fn(usize, Recipient<coordinator::Event<ReplyTo>>) -> Recipient<coordinator::Event<ReplyTo>>,
    ) -> Result<Running, StoreError> {
        let mut trusted = self.others;
        trusted.insert(self.verifier.public());
        let seed = self.state.spec().seed;
        let (clock, watch) = (Arc::clone(&self.clock), self.watch.clone());
        let (ledger, payer) = match self.ledger {
            LedgerPlace::Here(journal) => {
                let config = LedgerConfig { economy: self.economy, verifiers: trusted.clone() };
                let ledger = LedgerActor::new(Desk::open(config, journal)?, Arc::clone(&clock)).start();
                (Some(ledger.clone()), ledger.recipient())
            }
            LedgerPlace::Elsewhere(payer) => (None, payer),
        };
        let coordinator = Coordinator::create(|ctx| {
            let verifier = match self.judge {
                Some(judge) => judge(ctx.address().recipient()),
                None => {
                    let ports = VerifierPorts {
                        compute: Arc::clone(&self.compute),
                        executor: Rc::clone(&self.executor),
                        watch: self.watch.clone(),
                        coordinator: ctx.address().recipient(),
                    };
                    Verifier::new(Audit::new(self.verifier), ports).start().recipient()
                }
            };
            let ports = CoordinatorPorts {
                clock: self.clock,
                store: self.records,
                compute: self.compute,
                executor: self.executor,
                verifier,
                ledger: payer,
                watch: self.watch,
            };
            Coordinator::new(Rounds::new(self.state, trusted, self.secrets, self.end), ports)
        });
        let start = |(index, member): (usize, Member)| {
            let jitter: Seed = seed.derive("worker", index as u64);
            let ports = WorkerPorts {
                clock: Arc::clone(&clock),
                compute: member.compute,
                executor: member.executor,
                coordinator: connect(index, coordinator.clone().recipient()),
                results: Box::new(KeepNothing),
                watch: watch.clone(),
            };
            Worker::new(Labour::new(&jitter), member.key, ports).start()
        };
        let workers = members.into_iter().enumerate().map(start).collect();
        Ok(Running { coordinator, ledger, workers })
    }
}
