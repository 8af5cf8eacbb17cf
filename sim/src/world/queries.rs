//! Customers ask, and pay as they would at `hydra coordinator --serve`: the query is noted on the disk, its highest price
//! held in the ledger, its true price noted, then settled until that is done; what a crash leaves is settled after it.

use std::rc::Rc;
use std::time::Duration;

use hydra::coordinator::Look;
use hydra::ledger::{Answer, LedgerError, OrderError, Question, Request, TransferId};
use hydra::protocol::{Amount, PublicKey, limits};
use hydra::store::OpenQuery;
use rand::Rng;
use rand::rngs::ChaCha8Rng;
use tokio::sync::oneshot;

use super::{World, seconds, sleep_until};
use crate::chance::exponential;
use crate::queries::{Query, Till};
use crate::simulation::{virtual_now, virtual_seconds};

/// How long to wait before a settlement is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long an answer of the ledger is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

impl World {
    pub(super) fn begin_queries(self: &Rc<Self>) {
        for (place, queries) in self.scenario.queries.iter().enumerate() {
            for index in self.scenario.of_group(&queries.group) {
                let rng = self.spec.seed.derive("queries", place as u64).derive("customer", index as u64).rng();
                actix::spawn(Rc::clone(self).customer(place, index, rng));
            }
        }
    }

    async fn customer(self: Rc<Self>, place: usize, index: usize, mut rng: ChaCha8Rng) {
        let (Some(till), queries) = (&self.till, &self.scenario.queries[place]) else { return };
        sleep_until(queries.from_seconds).await;
        loop {
            tokio::time::sleep(seconds(exponential(&mut rng, queries.every_seconds))).await;
            if till.closed.get() || queries.until_seconds.is_some_and(|until| virtual_seconds() >= until) {
                return;
            }
            let (query, random) = (queries.draw(&mut rng), rng.next_u64());
            actix::spawn(Rc::clone(&self).ask(index, query, random));
        }
    }

    /// Whether the process that started as the `life`th still lives.
    fn lives(&self, life: u64) -> bool {
        self.coordinator.lives() && self.coordinator.starts() == life
    }

    async fn ask(self: Rc<Self>, index: usize, query: Query, random: u64) {
        let Some(till) = self.till.as_ref().filter(|till| !till.closed.get() && self.coordinator.lives()) else {
            return;
        };
        let (life, wallet, now) = (self.coordinator.starts(), self.workers[index].key.public(), virtual_now());
        till.count(|counts| counts.asked += 1);
        let id = TransferId::request(now, random);
        let expires = now + limits::QUERY_HOLD;
        let open = OpenQuery { id, key: Till::key(&wallet), wallet, most: query.most, cost: None, expires };
        if let Err(error) = till.store.borrow_mut().open(&open) {
            return self.broken(error);
        }
        let held = self.ask_ledger(Request::Hold { id, wallet, amount: query.most, expires }).await;
        if !self.lives(life) {
            return till.count(|counts| counts.given_back += 1);
        }
        let may_cost = query.most;
        match held {
            Some(Answer::Done { .. }) if query.gone => till.count(|counts| counts.given_back += 1),
            Some(Answer::Done { .. }) => {
                tokio::time::sleep(seconds(query.seconds)).await;
                if !self.lives(life) {
                    return till.count(|counts| counts.given_back += 1);
                }
                if let Err(error) = till.store.borrow_mut().price(id, query.cost) {
                    return self.broken(error);
                }
                till.count(|counts| counts.answered += 1);
                self.say(&format!("worker {index} pays {} for an answer", query.cost));
                return self.settle_until_done(OpenQuery { cost: Some(query.cost), ..open }, life).await;
            }
            Some(Answer::Refused { error: LedgerError::Order(OrderError::Book(error)), .. }) => {
                self.say(&format!("worker {index} cannot pay {may_cost}: {error}"));
                till.count(|counts| counts.refused += 1);
            }
            _ => till.count(|counts| counts.given_back += 1),
        }
        // Whatever has become of the hold, it is given back.
        self.settle_until_done(OpenQuery { cost: Some(Amount::ZERO), ..open }, life).await;
    }

    async fn ask_ledger(&self, request: Request) -> Option<Answer> {
        let (send, receive) = oneshot::channel();
        // Whoever asked may be gone.
        let reply = Box::new(move |answer| drop(send.send(answer)));
        self.ledger.address()?.try_send(Question { request, reply }).ok()?;
        tokio::time::timeout(ANSWER_WITHIN, receive).await.ok()?.ok()
    }

    /// Settles what was under way when the process before this one ended.
    pub(super) fn recover_queries(self: &Rc<Self>) {
        let Some(till) = &self.till else { return };
        let open = till.reopen().and_then(|()| till.store.borrow().open_queries());
        let (open, life) = match open {
            Ok(open) => (open, self.coordinator.starts()),
            Err(error) => return self.broken(error),
        };
        for open in open {
            let (world, cost) = (Rc::clone(self), open.cost.unwrap_or(Amount::ZERO));
            actix::spawn(async move { world.settle_until_done(OpenQuery { cost: Some(cost), ..open }, life).await });
        }
    }

    async fn settle_until_done(&self, open: OpenQuery, life: u64) {
        while self.lives(life) {
            if let Some(paid) = self.settle(open).await {
                let Some(till) = self.till.as_ref().filter(|_| self.lives(life)) else { return };
                let closed = till.store.borrow_mut().close(open.id, paid);
                if let Err(error) = closed {
                    return self.broken(error);
                }
                return till.count(|counts| counts.paid = counts.paid.checked_add(paid).unwrap_or(counts.paid));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// What was paid, or nothing where the ledger cannot say.
    async fn settle(&self, open: OpenQuery) -> Option<Amount> {
        let OpenQuery { id, wallet, cost, .. } = open;
        let cost = cost.unwrap_or(Amount::ZERO);
        let work = Look::new(|state| {
            let work = state.workers().iter().map(|(key, worker)| (*key, worker.tokens));
            let mut work: Vec<(PublicKey, u64)> = work.filter(|(_, tokens)| *tokens > 0).collect();
            work.sort_by_key(|(key, tokens)| (std::cmp::Reverse(*tokens), *key));
            work.truncate(limits::CONTRIBUTORS_MAX);
            work
        });
        let contributors = self.coordinator.address()?.send(work).await.ok()?;
        match self.ask_ledger(Request::Settle { query: id, wallet, cost, contributors }).await? {
            // Settled before, when others had contributed.
            Answer::Done { .. } | Answer::Refused { error: LedgerError::Order(OrderError::IdReused { .. }), .. } => {
                Some(cost)
            }
            Answer::Refused { error: LedgerError::Store(_), .. } => None,
            // There is no hold, or none any more.
            _ => Some(Amount::ZERO),
        }
    }

    /// Nobody asks any more; what is under way is settled.
    pub async fn close_till(&self) {
        let Some(till) = &self.till else { return };
        till.closed.set(true);
        let patience = tokio::time::timeout(2 * limits::QUERY_HOLD, async {
            while till.store.borrow().open_queries().is_ok_and(|open| !open.is_empty()) {
                tokio::time::sleep(AGAIN).await;
            }
        });
        if patience.await.is_err() {
            self.laws.tell("queries are not settled half an hour after the last".to_owned());
        }
    }
}
