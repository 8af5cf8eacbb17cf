use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use tokio::sync::oneshot;

use super::api::LentJob;
use crate::protocol::{Digest, PublicKey, Time, limits};
use crate::runtime::Clock;
use crate::verifier::{self, Job};

/// Stands for the verifiers in a coordinator's process: keeps what is to be verified until one of them has done it.
///
/// A job is lent for a while; who does not answer in time is not waited for. It forgets everything in a crash: the
/// coordinator asks again for what it has no verdict on.
pub struct Desk {
    clock: Arc<dyn Clock>,
    jobs: VecDeque<(LentJob, Time)>,
    waiting: VecDeque<TakeJob>,
}

/// A verifier asks for something to do. The answer is dropped when there is nothing for long.
pub struct TakeJob {
    /// Who.
    pub verifier: PublicKey,
    /// What kind.
    pub lane: Lane,
    /// Where the job goes.
    pub reply: oneshot::Sender<LentJob>,
}

impl Message for TakeJob {
    type Result = ();
}

/// A job is done.
pub struct JobDone(pub Digest);

impl Message for JobDone {
    type Result = ();
}

/// Kinds of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Submissions to be looked at and compared: milliseconds.
    Check,
    /// Tasks to be computed again.
    Replay,
}

impl Lane {
    fn of(job: &Job) -> Self {
        match job {
            Job::Replay(_) => Self::Replay,
            Job::Admission(_) | Job::Statistics(_) | Job::Copies(_) => Self::Check,
        }
    }

    fn lent_for(self) -> Duration {
        match self {
            Self::Check => limits::JOB_LENT,
            Self::Replay => limits::REPLAY_LENT,
        }
    }
}

impl TakeJob {
    fn suits(&self, job: &Job) -> bool {
        Lane::of(job) == self.lane && !matches!(job, Job::Replay(job) if job.not.contains(&self.verifier))
    }
}

impl Desk {
    /// An empty desk.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, jobs: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Gives those who wait the oldest jobs that suit them.
    fn lend(&mut self) {
        let now = self.clock.now();
        for take in std::mem::take(&mut self.waiting) {
            if take.reply.is_closed() {
                continue;
            }
            let free = self.jobs.iter_mut().find(|(lent, free_from)| *free_from <= now && take.suits(&lent.job));
            let Some((lent, free_from)) = free else {
                self.waiting.push_back(take);
                continue;
            };
            let until = now + take.lane.lent_for();
            if take.reply.send(lent.clone()).is_ok() {
                *free_from = until;
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
        let id = job.id();
        if !self.jobs.iter().any(|(known, _)| known.id == id) {
            // What is oldest is most likely over; and if it is not, it will be asked for again.
            if self.jobs.len() >= limits::JOBS_MAX {
                self.jobs.pop_front();
            }
            self.jobs.push_back((LentJob { id, job }, Time(0)));
        }
        self.lend();
    }
}

impl Handler<TakeJob> for Desk {
    type Result = ();

    fn handle(&mut self, take: TakeJob, _: &mut Self::Context) {
        self.waiting.push_back(take);
        self.lend();
    }
}

impl Handler<JobDone> for Desk {
    type Result = ();

    fn handle(&mut self, JobDone(id): JobDone, _: &mut Self::Context) {
        self.jobs.retain(|(job, _)| job.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Round, Task};
    use crate::runtime::SystemClock;
    use crate::testing::{self, key};
    use crate::verifier::ReplayJob;

    #[test]
    fn a_replay_goes_to_a_verifier_that_has_not_judged_it_and_asked_for_replays() {
        let mut desk = Desk::new(Arc::new(SystemClock));
        let task = Task::of_round(&testing::spec(1), Round(0), 0, Digest::of(b"base"));
        let not = vec![key(1).public()];
        let (worker, payload, trail) = (key(9).public(), Digest::of(b"payload"), crate::testing::trail(4));
        let job = ReplayJob { task, worker, payload, trail, not, turn: 1 };
        let id = Job::Replay(Box::new(job.clone())).id();
        desk.jobs.push_back((LentJob { id, job: Job::Replay(Box::new(job)) }, Time(0)));
        let mut ask = |n: u8, lane: Lane| {
            let (reply, answer) = oneshot::channel();
            desk.waiting.push_back(TakeJob { verifier: key(n).public(), lane, reply });
            desk.lend();
            answer
        };
        assert!(ask(1, Lane::Replay).try_recv().is_err(), "it has judged it");
        assert!(ask(2, Lane::Check).try_recv().is_err(), "it asked for something else");
        assert_eq!(ask(2, Lane::Replay).try_recv().unwrap().id, id);
        assert!(ask(3, Lane::Replay).try_recv().is_err(), "it is lent");
    }
}
