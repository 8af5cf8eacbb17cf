use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, AsyncContext, Context, Handler, Message, Recipient};

use super::Job;
use super::core::{Audit, Effect, Event};
use crate::compute::Compute;
use crate::coordinator::{self, ReplyTo};
use crate::protocol::limits;
use crate::runtime::{self, Delivery, Executor, Note, Watch, Work, WorkKind};

impl Message for Event {
    type Result = ();
}

/// Judges submissions: the actor around [`Audit`].
pub struct Verifier {
    core: Audit,
    ports: VerifierPorts,
}

/// Everything a verifier reaches beyond itself.
pub struct VerifierPorts {
    /// The checks.
    pub compute: Arc<Compute>,
    /// Threads to do them on.
    pub executor: Rc<dyn Executor>,
    /// Hears what happens.
    pub watch: Watch,
    /// Wants the verdicts.
    pub coordinator: Recipient<coordinator::Event<ReplyTo>>,
}

impl Verifier {
    /// A verifier.
    #[must_use]
    pub fn new(core: Audit, ports: VerifierPorts) -> Self {
        Self { core, ports }
    }
}

impl Actor for Verifier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl Handler<Event> for Verifier {
    type Result = ();

    fn handle(&mut self, event: Event, ctx: &mut Self::Context) {
        for effect in self.core.step(event) {
            match effect {
                Effect::Check { id, job } => {
                    let (compute, to) = (Arc::clone(&self.ports.compute), ctx.address());
                    let kind = match &job {
                        Job::Replay(job) => WorkKind::Train { tokens: job.task.tokens() },
                        Job::Admission(_) | Job::Statistics(_) | Job::Copies(_) => WorkKind::Service,
                    };
                    let job = Box::new(move || {
                        let event = match compute.check(&job) {
                            Ok(verdicts) => Event::Checked { job: id, verdicts },
                            Err(error) => Event::CheckFailed { job: id, error: error.to_string() },
                        };
                        Box::new(move || to.do_send(event)) as Delivery
                    });
                    self.ports.executor.run(Work { kind, job });
                }
                Effect::Report(error) => self.ports.watch.note(Note::CheckFailed { error }),
                Effect::Deliver(verdicts) => {
                    runtime::send(ctx, &self.ports.coordinator, coordinator::Event::Verdicts(verdicts));
                }
            }
        }
    }
}
