use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Recipient};
use hydra::coordinator::{Event, ReplyTo};
use hydra::protocol::{Seed, WorkerRequest, below};
use rand::rngs::ChaCha8Rng;

use crate::behaviour::Tamper;
use crate::scenario::Network;
use crate::world::Log;

/// The line between one worker and the coordinator: stands in for the coordinator towards the worker, delays what
/// goes through and loses some of it. Its draws are its own, so that one worker's traffic does not change another's
/// luck.
pub(crate) struct Link {
    worker: usize,
    network: Network,
    rng: ChaCha8Rng,
    coordinator: Recipient<Event<ReplyTo>>,
    tamper: Tamper,
    log: Rc<RefCell<Log>>,
}

impl Link {
    pub fn new(
        worker: usize,
        network: Network,
        seed: &Seed,
        coordinator: Recipient<Event<ReplyTo>>,
        tamper: Tamper,
        log: Rc<RefCell<Log>>,
    ) -> Self {
        Self { worker, network, rng: seed.derive("link", worker as u64).rng(), coordinator, tamper, log }
    }

    /// How long the next message takes, or `None` when it is lost. Always two draws, so that losing one message does
    /// not shift the luck of the rest.
    fn passage(&mut self) -> Option<Duration> {
        let [shortest, longest] = self.network.latency_ms;
        let delay = shortest + below(&mut self.rng, longest - shortest + 1);
        let lost = (below(&mut self.rng, 1_000_000) as f64) < self.network.loss * 1e6;
        (!lost).then(|| Duration::from_millis(delay))
    }
}

impl Actor for Link {
    type Context = Context<Self>;
}

impl Handler<Event<ReplyTo>> for Link {
    type Result = ();

    fn handle(&mut self, event: Event<ReplyTo>, _: &mut Self::Context) {
        let Event::Request { request, reply } = event else { return };
        let Some(request) = self.tamper.request(request) else { return };
        let (there, back) = (self.passage(), self.passage());
        let (worker, log) = (self.worker, Rc::clone(&self.log));
        let asked = request.open::<WorkerRequest>().map(|(_, request)| request);
        log.borrow_mut().write(&format!("worker {worker} sends {asked:?}{}", lost(there)));
        let Some(there) = there else { return };
        let reply: ReplyTo = Box::new(move |body| {
            // Called on the coordinator's thread, which is the only one.
            actix::spawn(async move {
                if let Some(back) = back {
                    tokio::time::sleep(back).await;
                    reply(body);
                }
            });
        });
        let coordinator = self.coordinator.clone();
        actix::spawn(async move {
            tokio::time::sleep(there).await;
            log.borrow_mut().write(&format!("coordinator hears worker {worker}{}", lost(back)));
            // A full mailbox loses the message, as it would in production.
            drop(coordinator.try_send(Event::Request { request, reply }));
        });
    }
}

fn lost(passage: Option<Duration>) -> &'static str {
    if passage.is_none() { " (lost)" } else { "" }
}
