use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler, Message, Recipient, SpawnHandle};

use super::{Answer, Desk, Request, Written};
use crate::protocol::{Time, limits};
use crate::runtime::Clock;

/// Takes an answer to whoever asked; nobody hears it where nobody did.
pub type AnswerTo = Option<Box<dyn FnOnce(Answer) + Send>>;

/// The ledger with a mailbox. It decides requests one at a time, so no balance is ever spent twice.
pub struct LedgerActor {
    core: Desk<AnswerTo>,
    clock: Arc<dyn Clock>,
    /// When the clock is asked next, and what is to be given up should that be earlier.
    alarm: Option<(Time, SpawnHandle)>,
}

/// A request, and who is to be told the answer.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: Recipient<Answer>,
}

/// The same from whoever has no mailbox.
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// Takes the answer, on the ledger's thread.
    pub reply: Box<dyn FnOnce(Answer) + Send>,
}

/// Something is due.
struct Alarm;

/// Asks whether the ledger can write.
#[derive(Debug)]
pub struct IsReady;

impl Message for Ask {
    type Result = ();
}
impl Message for Question {
    type Result = ();
}
impl Message for Answer {
    type Result = ();
}
impl Message for Written {
    type Result = ();
}
impl Message for Alarm {
    type Result = ();
}
impl Message for IsReady {
    type Result = bool;
}

impl LedgerActor {
    /// The actor of an open ledger.
    #[must_use]
    pub fn new(core: Desk<AnswerTo>, clock: Arc<dyn Clock>) -> Self {
        Self { core, clock, alarm: None }
    }

    fn ask(&mut self, request: &Request, reply: AnswerTo, ctx: &mut Context<Self>) {
        let answer = self.core.ask(self.clock.now(), request, reply);
        self.tell(answer, ctx);
    }

    /// Hands out answers.
    fn tell(&mut self, answers: impl IntoIterator<Item = (AnswerTo, Answer)>, ctx: &mut Context<Self>) {
        for (reply, answer) in answers {
            if let Some(reply) = reply {
                reply(answer);
            }
        }
        self.set_alarm(ctx);
    }

    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        let Some(due) = self.core.core().next_due() else { return };
        if self.alarm.is_some_and(|(alarm, _)| alarm <= due) {
            return;
        }
        let wait = due.since(self.clock.now());
        let alarm = ctx.notify_later(Alarm, if self.core.is_ready() { wait } else { wait.max(limits::LEDGER_RETRY) });
        if let Some((_, later)) = self.alarm.replace((due, alarm)) {
            ctx.cancel_future(later);
        }
    }
}

impl Actor for LedgerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
        let me = ctx.address();
        // One message for each transaction: they need no bound.
        self.core.listen(Box::new(move |written| me.do_send(written)));
        self.set_alarm(ctx);
    }
}

impl Handler<Ask> for LedgerActor {
    type Result = ();

    fn handle(&mut self, Ask { request, reply }: Ask, ctx: &mut Context<Self>) {
        // A full or closed mailbox loses an answer, as a network may: whoever still wants it asks again.
        let reply = Box::new(move |answer| drop(reply.try_send(answer)));
        self.ask(&request, Some(reply), ctx);
    }
}

impl Handler<Question> for LedgerActor {
    type Result = ();

    fn handle(&mut self, Question { request, reply }: Question, ctx: &mut Context<Self>) {
        self.ask(&request, Some(reply), ctx);
    }
}

impl Handler<Written> for LedgerActor {
    type Result = ();

    fn handle(&mut self, written: Written, ctx: &mut Context<Self>) {
        let answers = self.core.written(written);
        self.tell(answers, ctx);
    }
}

impl Handler<Alarm> for LedgerActor {
    type Result = ();

    fn handle(&mut self, _: Alarm, ctx: &mut Context<Self>) {
        self.alarm = None;
        self.ask(&Request::Tick, None, ctx);
    }
}

impl Handler<IsReady> for LedgerActor {
    type Result = bool;

    fn handle(&mut self, _: IsReady, _: &mut Context<Self>) -> bool {
        self.core.is_ready()
    }
}

#[cfg(test)]
mod tests {
    use actix::System;

    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use super::super::testing::{NOW, Unreliable, accepted, config, ledger_key, pay_round, pays};
    use super::super::{Direct, LedgerError, MemoryJournal, StoreError};
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

    /// A clock that is set by hand.
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Time {
            Time(self.0.load(Ordering::Relaxed))
        }
    }

    fn answers(store: MemoryJournal, failures: u32, requests: Vec<Request>) -> Vec<Answer> {
        System::new().block_on(async {
            let store = Unreliable(store, Arc::new(AtomicU32::new(failures)));
            let desk = Desk::open(config(), Box::new(Direct::new(store, ledger_key()))).unwrap();
            let ledger = LedgerActor::new(desk, Arc::new(Hand(AtomicU64::new(NOW.0)))).start();
            let inbox = Inbox::default().start();
            for request in requests {
                ledger.send(Ask { request, reply: inbox.clone().recipient() }).await.unwrap();
                // Whatever the writer told the actor is taken before this is.
                ledger.send(IsReady).await.unwrap();
            }
            inbox.send(Take).await.unwrap()
        })
    }

    #[test]
    fn requests_are_answered_in_order_and_what_is_answered_is_stored() {
        let store = MemoryJournal::default();
        let pay = pay_round(0, vec![accepted(1, 1, 100)]);
        let answers = answers(store.clone(), 0, vec![pay.clone(), Request::Accounts, pay]);
        assert_eq!(pays(&answers[0]).len(), 1);
        assert!(matches!(&answers[1], Answer::Accounts(accounts) if accounts.len() == 2));
        assert_eq!((&answers[2], answers.len()), (&answers[0], 3));
        assert_eq!(store.copy().len(), 1);
    }

    #[test]
    fn what_cannot_be_stored_is_not_done_and_can_be_asked_for_again_when_the_medium_is_well() {
        let store = MemoryJournal::default();
        let pay = pay_round(3, vec![accepted(1, 1, 100)]);
        let requests = vec![pay.clone(), Request::Totals, pay.clone(), pay.clone(), pay.clone()];
        let answers = answers(store.clone(), 2, requests);
        let failed = StoreError::Failed("disk full".into());
        let refused = |error| Answer::Refused { round: pay.round(), error: LedgerError::Store(error) };
        assert_eq!(answers[0], refused(failed.clone()));
        assert!(
            matches!(&answers[1], Answer::Totals { transfers: 0, totals, .. } if totals.emitted.0 == 0),
            "readable"
        );
        let not_ready = refused(StoreError::NotReady(failed.to_string()));
        assert_eq!((&answers[2], &answers[3]), (&not_ready, &not_ready), "asked twice, and the medium is well again");
        assert_eq!(pays(&answers[4]).len(), 1);
        assert_eq!(store.copy().len(), 1);
    }
}
