use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, Context, Handler, Message, Recipient};
use hydra::coordinator::{Event, ReplyTo};
use hydra::protocol::{PublicKey, Seed, Signed, Time, WorkerRequest, below, limits};
use hydra::runtime;
use rand::rngs::ChaCha8Rng;

use crate::behaviour::{Forgeries, Tamper};
use crate::disk::KeptResult;
use crate::laws::Laws;
use crate::scenario::Network;
use crate::simulation::{Log, virtual_now};

/// How it stands with a machine. Replies carry it to wherever they are called, so it can cross threads.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Reasons for which nothing reaches it.
    pub deaf: AtomicU32,
    /// Reasons for which nothing that it says arrives.
    pub mute: AtomicU32,
    /// Reasons for which what it fetches arrives damaged.
    pub damaged: AtomicU32,
    /// It stands still until then, virtual milliseconds.
    paused_until: AtomicU64,
}

impl Standing {
    pub fn pause(&self, until: Time) {
        self.paused_until.fetch_max(until.0, Ordering::Relaxed);
    }

    /// Waits while the machine stands still.
    pub async fn awake(&self) {
        loop {
            let pause = Time(self.paused_until.load(Ordering::Relaxed)).since(virtual_now());
            if pause.is_zero() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn hears(&self) -> bool {
        self.deaf.load(Ordering::Relaxed) == 0
    }

    fn speaks(&self) -> bool {
        self.mute.load(Ordering::Relaxed) == 0
    }
}

/// Where something is that may die and come back: nobody, while it is dead.
pub(crate) struct Place<M: Message<Result: Send> + Send>(RefCell<Option<Recipient<M>>>);

impl<M: Message<Result = ()> + Send> Default for Place<M> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<M: Message<Result = ()> + Send> Place<M> {
    pub fn set(&self, recipient: Option<Recipient<M>>) {
        self.0.replace(recipient);
    }

    pub fn get(&self) -> Option<Recipient<M>> {
        self.0.borrow().clone()
    }
}

/// The address of a place. What comes while nobody is there is lost.
pub(crate) struct Door<M: Message<Result = ()> + Send>(pub Rc<Place<M>>);

impl<M: Message<Result = ()> + Send + Unpin + 'static> Actor for Door<M> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl<M: Message<Result = ()> + Send + Unpin + 'static> Handler<M> for Door<M> {
    type Result = ();

    fn handle(&mut self, message: M, ctx: &mut Self::Context) {
        if let Some(recipient) = self.0.get() {
            runtime::send(ctx, &recipient, message);
        }
    }
}

/// The coordinator, as seen from the network.
#[derive(Default)]
pub(crate) struct Front {
    pub place: Rc<Place<Event<ReplyTo>>>,
    pub standing: Arc<Standing>,
}

/// One end of a line: a worker, as it is seen from there.
pub(crate) struct Line {
    pub worker: usize,
    pub key: PublicKey,
    pub network: Network,
    pub standing: Arc<Standing>,
    pub kept: KeptResult,
}

/// The line between one worker and the coordinator: stands in for the coordinator towards the worker, delays what
/// goes through, loses some of it and brings some of it twice. Its draws are its own, so that one worker's traffic does
/// not change another's luck.
pub(crate) struct Link {
    line: Line,
    rng: ChaCha8Rng,
    front: Rc<Front>,
    tamper: Tamper,
    log: Rc<RefCell<Log>>,
    laws: Laws,
}

impl Link {
    pub fn new(line: Line, seed: &Seed, front: Rc<Front>, tamper: Tamper, log: Rc<RefCell<Log>>, laws: Laws) -> Self {
        let rng = seed.derive("link", line.worker as u64).rng();
        Self { line, rng, front, tamper, log, laws }
    }

    fn happens(&mut self, share: f64) -> bool {
        (below(&mut self.rng, 1_000_000) as f64) < share * 1e6
    }

    /// How long the next message takes, or `None` when it is lost. Always two draws, so that losing one message does
    /// not shift the luck of the rest.
    fn passage(&mut self) -> Option<Duration> {
        let [shortest, longest] = self.line.network.latency_ms;
        let delay = shortest + below(&mut self.rng, longest - shortest + 1);
        let lost = self.happens(self.line.network.loss);
        (!lost).then(|| Duration::from_millis(delay))
    }

    fn send(&mut self, request: Signed, reply: ReplyTo) {
        let (there, back) = (self.passage(), self.passage());
        let (worker, log) = (self.line.worker, Rc::clone(&self.log));
        let asked = request.claimed_message::<WorkerRequest>();
        log.borrow_mut().write(&format!("worker {worker} sends {asked:?}{}", lost(there)));
        let Some(there) = there else { return };
        let (front, worker_standing) = (Rc::clone(&self.front), Arc::clone(&self.line.standing));
        let (from, to) = (Arc::clone(&self.front.standing), Arc::clone(&self.line.standing));
        let (key, laws) = (self.line.key, self.laws.clone());
        let reply: ReplyTo = Box::new(move |body| {
            // Said is said, whether it arrives or not.
            laws.answered(&key, asked.as_ref().ok(), &body);
            // Called on the coordinator's thread, which is the only one.
            actix::spawn(async move {
                let Some(back) = back else { return };
                from.awake().await;
                if from.speaks() && to.hears() {
                    tokio::time::sleep(back).await;
                }
                if from.speaks() && to.hears() {
                    to.awake().await;
                    reply(body);
                }
            });
        });
        actix::spawn(async move {
            let passes = || worker_standing.speaks() && front.standing.hears();
            worker_standing.awake().await;
            if passes() {
                tokio::time::sleep(there).await;
            }
            if !passes() {
                return log.borrow_mut().write(&format!("nothing passes between worker {worker} and the coordinator"));
            }
            front.standing.awake().await;
            let Some(coordinator) = front.place.get() else {
                return log.borrow_mut().write(&format!("worker {worker} finds no coordinator"));
            };
            log.borrow_mut().write(&format!("coordinator hears worker {worker}{}", lost(back)));
            // A full mailbox loses the message, as it would in production.
            drop(coordinator.try_send(Event::Request { request, reply }));
        });
    }

    /// Sends what it has made up, and hears no answers to that.
    fn forge(&mut self, asked: &WorkerRequest) {
        let Forgeries { requests, verdicts } = self.tamper.forge(asked);
        for request in requests {
            self.send(request, Box::new(drop));
        }
        if let (false, Some(coordinator)) = (verdicts.is_empty(), self.front.place.get()) {
            drop(coordinator.try_send(Event::Verdicts(verdicts)));
        }
    }
}

impl Actor for Link {
    type Context = Context<Self>;
}

impl Handler<Event<ReplyTo>> for Link {
    type Result = ();

    fn handle(&mut self, event: Event<ReplyTo>, _: &mut Self::Context) {
        let Event::Request { request, reply } = event else { return };
        if let Ok(asked) = request.claimed_message::<WorkerRequest>() {
            if !self.line.kept.covers(&asked) {
                let worker = self.line.worker;
                self.laws.tell(format!("worker {worker} binds itself to what is not on its disk: {asked:?}"));
            }
            self.forge(&asked);
        }
        let Some(request) = self.tamper.request(request) else { return };
        let reply = self.tamper.hear(reply);
        // Without duplicates there is nothing to draw for.
        if self.line.network.duplicates > 0.0 && self.happens(self.line.network.duplicates) {
            // Whichever answer comes first is the answer.
            let waiting = Arc::new(Mutex::new(Some(reply)));
            for request in [request.clone(), request] {
                let waiting = Arc::clone(&waiting);
                self.send(
                    request,
                    Box::new(move |body| {
                        if let Some(reply) = waiting.lock().unwrap_or_else(PoisonError::into_inner).take() {
                            reply(body);
                        }
                    }),
                );
            }
        } else {
            self.send(request, reply);
        }
    }
}

fn lost(passage: Option<Duration>) -> &'static str {
    if passage.is_none() { " (lost)" } else { "" }
}
