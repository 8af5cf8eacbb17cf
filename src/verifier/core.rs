use std::collections::BTreeSet;

use super::checks::Job;
use crate::protocol::{Digest, Keypair, Signed, Verdict};

/// What happens to a verifier.
#[derive(Debug)]
pub enum Event {
    /// A coordinator wants this checked. It may ask again for what is under way.
    Judge(Job),
    /// A check is done.
    Checked {
        /// Which job it was for.
        job: Digest,
        /// What was found.
        verdicts: Vec<Verdict>,
    },
    /// A check could not be done, for no fault of whoever submitted.
    CheckFailed {
        /// Which job it was for.
        job: Digest,
        /// Why.
        error: String,
    },
}

/// What a verifier wants done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Run the checks of this job, off the actor's thread.
    Check {
        /// The digest that it is known by.
        id: Digest,
        /// The job.
        job: Job,
    },
    /// Send these signed verdicts to the coordinator.
    Deliver(Vec<Signed>),
    /// Tell whoever watches that a check could not be done. The coordinator will ask for it again.
    Report(String),
}

/// The verifier's core: every job is checked, once at a time, and every finding signed.
#[derive(Debug)]
pub struct Audit {
    key: Keypair,
    under_way: BTreeSet<Digest>,
}

impl Audit {
    /// A verifier that signs with `key`.
    #[must_use]
    pub fn new(key: Keypair) -> Self {
        Self { key, under_way: BTreeSet::new() }
    }

    /// Takes an event; gives what is to be done about it, in order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Judge(job) => {
                let id = job.id();
                if self.under_way.insert(id) { vec![Effect::Check { id, job }] } else { vec![] }
            }
            Event::CheckFailed { job, error } => {
                self.under_way.remove(&job);
                vec![Effect::Report(error)]
            }
            Event::Checked { job, verdicts } => {
                self.under_way.remove(&job);
                vec![Effect::Deliver(verdicts.iter().map(|verdict| Signed::seal(&self.key, verdict)).collect())]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Round, Task};
    use crate::testing::{self, key};
    use crate::verifier::ReplayJob;

    #[test]
    fn a_job_that_is_asked_for_again_is_not_done_twice_at_a_time() {
        let task = Task::of_round(&testing::spec(1), Round(0), 0, Digest::of(b"base"));
        let (worker, payload, trail) = (key(1).public(), Digest::of(b"payload"), testing::trail(4));
        let job = ReplayJob { task, worker, payload, trail, not: vec![], turn: 0 };
        let job = Job::Replay(Box::new(job));
        let mut audit = Audit::new(key(2));
        let check = [Effect::Check { id: job.id(), job: job.clone() }];
        assert_eq!(audit.step(Event::Judge(job.clone())), check);
        assert_eq!(audit.step(Event::Judge(job.clone())), []);
        audit.step(Event::CheckFailed { job: job.id(), error: "no memory".to_owned() });
        assert_eq!(audit.step(Event::Judge(job)), check);
    }
}
