use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler, Message, Recipient, SpawnHandle};

use super::RecordStore;
use super::core::{Effect, Event, Rounds};
use super::state::{Record, State};
use crate::compute::{AggregateJob, Aggregated, Compute, ComputeError};
use crate::protocol::{Digest, RunSpec, WorkerReply, limits};
use crate::runtime::{self, Clock, Delivery, Executor, Note, Watch, Work, WorkKind};
use crate::{ledger, verifier};

/// Takes a reply back to the worker that asked.
pub type ReplyTo = Box<dyn FnOnce(WorkerReply) + Send>;

impl Message for Event<ReplyTo> {
    type Result = ();
}

/// Hands out tasks and closes rounds: the actor around [`Rounds`].
pub struct Coordinator {
    core: Rounds<ReplyTo>,
    ports: CoordinatorPorts,
    /// Not on disk yet.
    records: Vec<Record>,
    /// What waits for them to be.
    held: Vec<Effect<ReplyTo>>,
    /// The one wake that is planned: an earlier plan is given up, or their number would only ever grow.
    alarm: Option<SpawnHandle>,
}

/// Writes what the events so far have brought, and does what they want done.
struct Flush;

impl Message for Flush {
    type Result = ();
}

/// Everything a coordinator reaches beyond itself.
pub struct CoordinatorPorts {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where records are kept.
    pub store: Box<dyn RecordStore>,
    /// Aggregation and measurement.
    pub compute: Arc<Compute>,
    /// Threads to do them on.
    pub executor: Rc<dyn Executor>,
    /// Judges submissions.
    pub verifier: Recipient<verifier::Event>,
    /// Pays for rounds.
    pub ledger: Recipient<ledger::Ask>,
    /// Hears what happens.
    pub watch: Watch,
}

impl Coordinator {
    /// A coordinator that begins, or goes on, when it is started.
    #[must_use]
    pub fn new(core: Rounds<ReplyTo>, ports: CoordinatorPorts) -> Self {
        Self { core, ports, records: Vec::new(), held: Vec::new(), alarm: None }
    }

    /// Takes an event. Its effects wait until the records of all events that are in the mailbox by now are on disk:
    /// one write for all of them, since a write takes as long as thousands of events.
    fn take(&mut self, event: Event<ReplyTo>, ctx: &mut Context<Self>) {
        if self.held.is_empty() && self.records.is_empty() {
            ctx.notify(Flush);
        }
        for effect in self.core.step(self.ports.clock.now(), event) {
            match effect {
                Effect::Persist(records) => self.records.extend(records),
                effect => self.held.push(effect),
            }
        }
    }

    fn flush(&mut self, ctx: &mut Context<Self>) {
        let records = std::mem::take(&mut self.records);
        if !records.is_empty()
            && let Err(error) = self.ports.store.append(&records)
        {
            // Nobody may hear of what is not on disk; what is on disk is enough to go on from.
            self.ports.watch.fatal(&error);
            return actix::ActorContext::stop(ctx);
        }
        for effect in std::mem::take(&mut self.held) {
            self.carry_out(effect, ctx);
        }
    }

    fn carry_out(&mut self, effect: Effect<ReplyTo>, ctx: &mut Context<Self>) {
        match effect {
            // Written already, before anything else.
            Effect::Persist(_) => {}
            Effect::Reply { reply, body } => reply(body),
            Effect::Judge(job) => runtime::send(ctx, &self.ports.verifier, verifier::Event::Judge(job)),
            Effect::Pay { round, verdicts } => {
                let run = self.core.state().spec().id();
                self.ask_ledger(ledger::Request::PayRound { run, round, verdicts }, ctx);
            }
            Effect::Forfeit { verdict } => self.ask_ledger(ledger::Request::Forfeit { verdict }, ctx),
            Effect::Aggregate { round, base, momentum, updates } => {
                let job = AggregateJob { base, momentum, updates };
                self.compute(ctx, move |compute, spec| {
                    let Aggregated { model, momentum, left_out } = compute.aggregate(spec, &job)?;
                    Ok(Event::Aggregated { round, model, momentum, left_out })
                });
            }
            Effect::Evaluate { round, model } => self.compute(ctx, move |compute, spec| {
                Ok(Event::Evaluated { round, loss: compute.evaluate(spec, &model)? })
            }),
            Effect::Forget(blobs) => self.forget(&blobs),
            Effect::WakeAt(at) => {
                let alarm = ctx.notify_later(Event::Wake, at.since(self.ports.clock.now()));
                if let Some(earlier) = self.alarm.replace(alarm) {
                    ctx.cancel_future(earlier);
                }
            }
            Effect::Report(report) => self.ports.watch.note(Note::Coordinator(report)),
        }
    }

    fn ask_ledger(&self, request: ledger::Request, ctx: &mut Context<Self>) {
        let reply = ctx.address().recipient();
        runtime::send(ctx, &self.ports.ledger, ledger::Ask { request, reply });
    }

    /// Runs `job` on another thread and takes the event that it gives. A failure here cannot be worked around.
    fn compute(
        &self,
        ctx: &Context<Self>,
        job: impl FnOnce(&Compute, &RunSpec) -> Result<Event<ReplyTo>, ComputeError> + Send + 'static,
    ) {
        let (compute, spec) = (Arc::clone(&self.ports.compute), self.core.state().spec().clone());
        let (to, watch) = (ctx.address(), self.ports.watch.clone());
        let job = Box::new(move || match job(&compute, &spec) {
            // One result for each job, and few jobs at a time: they need no bound.
            Ok(event) => Box::new(move || to.do_send(event)) as Delivery,
            Err(error) => Box::new(move || watch.fatal(&error)) as Delivery,
        });
        self.ports.executor.run(Work { kind: WorkKind::Service, job });
    }

    fn forget(&self, blobs: &[Digest]) {
        for digest in blobs {
            if let Err(error) = self.ports.compute.blobs().remove(digest) {
                self.ports.watch.fatal(&error);
            }
        }
    }
}

impl Actor for Coordinator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
        self.take(Event::Started, ctx);
    }
}

impl Handler<Event<ReplyTo>> for Coordinator {
    type Result = ();

    fn handle(&mut self, event: Event<ReplyTo>, ctx: &mut Self::Context) {
        self.take(event, ctx);
    }
}

impl Handler<Flush> for Coordinator {
    type Result = ();

    fn handle(&mut self, _: Flush, ctx: &mut Self::Context) {
        self.flush(ctx);
    }
}

impl Handler<ledger::Answer> for Coordinator {
    type Result = ();

    fn handle(&mut self, answer: ledger::Answer, ctx: &mut Self::Context) {
        match answer {
            ledger::Answer::RoundPaid { round, pays, .. } => {
                let pays = pays.into_iter().map(|(worker, _, amount)| (worker, amount)).collect();
                self.take(Event::RoundPaid { round, pays }, ctx);
            }
            ledger::Answer::Forfeited(ledger::Forfeited { finding, worker, unvested, stake, .. }) => {
                // Together less than there is, which is an amount.
                let lost = unvested.checked_add(stake).unwrap_or(unvested);
                self.take(Event::Forfeited { finding, worker, lost }, ctx);
            }
            ledger::Answer::Refused { error, .. } => self.ports.watch.fatal(&error),
            // Answers to what it never asks.
            _ => {}
        }
    }
}

/// Reads something of what the coordinator knows.
pub struct Look<T>(Box<dyn FnOnce(&State) -> T + Send>);

impl<T> Look<T> {
    /// Answers what `read` gives.
    pub fn new(read: impl FnOnce(&State) -> T + Send + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl<T: 'static> Message for Look<T> {
    type Result = T;
}

impl<T: 'static> Handler<Look<T>> for Coordinator {
    type Result = actix::MessageResult<Look<T>>;

    fn handle(&mut self, Look(read): Look<T>, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(read(self.core.state()))
    }
}

/// Asks for a copy of what the coordinator knows, for reports.
pub struct Inspect;

impl Message for Inspect {
    type Result = Box<State>;
}

impl Handler<Inspect> for Coordinator {
    type Result = actix::MessageResult<Inspect>;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        actix::MessageResult(Box::new(self.core.state().clone()))
    }
}
