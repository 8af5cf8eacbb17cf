use actix::{Actor, Context, Handler, Message, Recipient};

use super::{Answer, JournalStore, Ledger, LedgerError, Request};
use crate::protocol::limits;

/// The ledger with its store and a mailbox. It answers requests one at a time, so no balance is ever spent twice.
pub struct LedgerActor {
    core: Ledger,
    store: Box<dyn JournalStore>,
}

/// A request, and who is to be told the answer.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: Recipient<Answer>,
}

impl Message for Ask {
    type Result = ();
}

impl Message for Answer {
    type Result = ();
}

impl LedgerActor {
    /// The actor of a ledger that was opened from `store`.
    #[must_use]
    pub fn new(core: Ledger, store: Box<dyn JournalStore>) -> Self {
        Self { core, store }
    }

    fn answer(&mut self, request: &Request) -> Result<Answer, LedgerError> {
        let decided = self.core.decide(request)?;
        self.store.append(decided.entries())?;
        Ok(self.core.apply(decided))
    }
}

impl Actor for LedgerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl Handler<Ask> for LedgerActor {
    type Result = ();

    fn handle(&mut self, Ask { request, reply }: Ask, _: &mut Context<Self>) {
        let round = request.round();
        let answer = self.answer(&request).unwrap_or_else(|error| Answer::Refused { round, error });
        // A full or closed mailbox loses the answer, as a network may: whoever still wants it asks again.
        let _ = reply.try_send(answer);
    }
}

#[cfg(test)]
mod tests {
    use actix::System;

    use super::super::testing::{accepted, config, pay_round, pays};
    use super::super::{Entry, MemoryJournal, StoreError};
    use super::*;

    /// Keeps what it is answered.
    #[derive(Default)]
    struct Inbox(Vec<Answer>);
    /// Hands over what came so far.
    struct Take;

    impl Actor for Inbox {
        type Context = Context<Self>;
    }
    impl Handler<Answer> for Inbox {
        type Result = ();
        fn handle(&mut self, answer: Answer, _: &mut Context<Self>) {
            self.0.push(answer);
        }
    }
    impl Message for Take {
        type Result = Vec<Answer>;
    }
    impl Handler<Take> for Inbox {
        type Result = actix::MessageResult<Take>;
        fn handle(&mut self, _: Take, _: &mut Context<Self>) -> Self::Result {
            actix::MessageResult(std::mem::take(&mut self.0))
        }
    }

    /// A store whose medium fails a number of times.
    struct Failing(MemoryJournal, u32);

    impl JournalStore for Failing {
        fn load(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
            self.0.load(visit)
        }
        fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
            if self.1 > 0 {
                self.1 -= 1;
                return Err(StoreError::Failed("disk full".into()));
            }
            self.0.append(entries)
        }
    }

    fn answers(store: Failing, requests: Vec<Request>) -> Vec<Answer> {
        System::new().block_on(async {
            let mut store = store;
            let ledger = Ledger::open(config(), &mut store).unwrap();
            let ledger = LedgerActor::new(ledger, Box::new(store)).start();
            let inbox = Inbox::default().start();
            for request in requests {
                ledger.send(Ask { request, reply: inbox.clone().recipient() }).await.unwrap();
            }
            inbox.send(Take).await.unwrap()
        })
    }

    #[test]
    fn requests_are_answered_in_order_and_what_is_answered_is_stored() {
        let store = MemoryJournal::default();
        let pay = pay_round(0, vec![accepted(1, 1, 100)]);
        let answers = answers(Failing(store.clone(), 0), vec![pay.clone(), Request::Balances, pay]);
        assert_eq!(pays(&answers[0]).len(), 1);
        assert!(matches!(&answers[1], Answer::Balances(balances) if balances.len() == 2));
        assert_eq!((&answers[2], answers.len()), (&answers[0], 3));
        assert_eq!(store.entries().len(), 1);
    }

    #[test]
    fn what_cannot_be_stored_is_not_done_and_can_be_asked_for_again() {
        let store = MemoryJournal::default();
        let pay = pay_round(3, vec![accepted(1, 1, 100)]);
        let answers = answers(Failing(store.clone(), 1), vec![pay.clone(), Request::Totals, pay.clone()]);
        let error = LedgerError::Store(StoreError::Failed("disk full".into()));
        assert_eq!(answers[0], Answer::Refused { round: pay.round(), error });
        assert!(matches!(&answers[1], Answer::Totals { transfers: 0, totals, .. } if totals.debits.0 == 0));
        assert_eq!(pays(&answers[2]).len(), 1);
        assert_eq!(store.entries().len(), 1);
    }
}
