use super::checks::Job;
use crate::protocol::{Keypair, Signed, Verdict};

/// What happens to a verifier.
#[derive(Debug)]
pub enum Event {
    /// A coordinator wants this checked.
    Judge(Job),
    /// A check is done.
    Checked(Vec<Verdict>),
    /// A check could not be done, for no fault of whoever submitted.
    CheckFailed(String),
}

/// What a verifier wants done.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Run the checks of this job, off the actor's thread.
    Check(Job),
    /// Send these signed verdicts to the coordinator.
    Deliver(Vec<Signed>),
    /// Tell whoever watches that a check could not be done. The coordinator will ask for it again.
    Report(String),
}

/// The verifier's core: every job is checked, every finding signed.
#[derive(Debug)]
pub struct Audit {
    key: Keypair,
}

impl Audit {
    /// A verifier that signs with `key`.
    #[must_use]
    pub fn new(key: Keypair) -> Self {
        Self { key }
    }

    /// Takes an event; gives what is to be done about it, in order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Judge(job) => vec![Effect::Check(job)],
            Event::CheckFailed(error) => vec![Effect::Report(error)],
            Event::Checked(verdicts) => {
                vec![Effect::Deliver(verdicts.iter().map(|verdict| Signed::seal(&self.key, verdict)).collect())]
            }
        }
    }
}
