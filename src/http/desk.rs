use std::collections::VecDeque;
use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};
use tokio::sync::oneshot;

use super::api::LentJob;
use crate::protocol::{Digest, Time, limits, wire};
use crate::runtime::Clock;
use crate::verifier;

/// Stands for the verifiers in a coordinator's process: keeps what is to be verified until one of them has done it.
///
/// A job is lent for a while; who does not answer in time is not waited for. It forgets everything in a crash: the
/// coordinator asks again for what it has no verdict on.
pub struct Desk {
    clock: Arc<dyn Clock>,
    jobs: Vec<(LentJob, Time)>,
    waiting: VecDeque<oneshot::Sender<LentJob>>,
}

/// A verifier asks for something to do. The answer is dropped when there is nothing for long.
pub struct TakeJob(pub oneshot::Sender<LentJob>);

impl Message for TakeJob {
    type Result = ();
}

/// A job is done.
pub struct JobDone(pub Digest);

impl Message for JobDone {
    type Result = ();
}

impl Desk {
    /// An empty desk.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, jobs: Vec::new(), waiting: VecDeque::new() }
    }

    fn lend(&mut self) {
        let now = self.clock.now();
        self.waiting.retain(|verifier| !verifier.is_closed());
        for (job, free_from) in &mut self.jobs {
            while *free_from <= now
                && let Some(verifier) = self.waiting.pop_front()
            {
                if verifier.send(job.clone()).is_ok() {
                    *free_from = now + limits::JOB_LENT;
                }
            }
        }
    }
}

impl Actor for Desk {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl Handler<verifier::Event> for Desk {
    type Result = ();

    fn handle(&mut self, event: verifier::Event, _: &mut Self::Context) {
        let verifier::Event::Judge(job) = event else { return };
        let id = Digest::of(&wire::encode(&job));
        if !self.jobs.iter().any(|(known, _)| known.id == id) {
            // What is oldest is most likely over; and if it is not, it will be asked for again.
            if self.jobs.len() >= limits::JOBS_MAX {
                self.jobs.remove(0);
            }
            self.jobs.push((LentJob { id, job }, Time(0)));
        }
        self.lend();
    }
}

impl Handler<TakeJob> for Desk {
    type Result = ();

    fn handle(&mut self, TakeJob(verifier): TakeJob, _: &mut Self::Context) {
        self.waiting.push_back(verifier);
        self.lend();
    }
}

impl Handler<JobDone> for Desk {
    type Result = ();

    fn handle(&mut self, JobDone(id): JobDone, _: &mut Self::Context) {
        self.jobs.retain(|(job, _)| job.id != id);
    }
}
