use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Recipient};
use hydra::coordinator::{self, ReplyTo};
use hydra::protocol::{Keypair, Layer, Outcome, Parting, PublicKey, Reason, Signed, Verdict, limits};
use hydra::verifier::{self, Job, ReplayJob};
use serde::{Deserialize, Serialize};

use crate::network::Place;

/// How long a verifier that does not look takes to answer.
const GLANCE: Duration = Duration::from_millis(20);

/// What a verifier does when it is to compute a task again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VerifierBehaviour {
    /// Computes it again.
    #[default]
    Honest,
    /// Says that all is well, and computes nothing.
    AcceptAll,
    /// Says that all is false, and computes nothing.
    RejectAll,
    /// Never answers.
    Silent,
}

/// One verifier of a panel.
pub(crate) struct Judge {
    pub key: Keypair,
    pub behaviour: VerifierBehaviour,
    /// Whoever does the work, where it is done; nobody, while it is dead.
    pub verifier: Rc<Place<verifier::Event>>,
}

/// All verifiers of a run, which take turns: what is to be compared goes to the first, what is to be computed again to the
/// next that has not judged it.
pub(crate) struct Panel {
    pub judges: Vec<Judge>,
    pub coordinator: Recipient<coordinator::Event<ReplyTo>>,
    pub turn: usize,
}

impl Panel {
    fn next(&mut self, not: &[PublicKey]) -> Option<&Judge> {
        let count = self.judges.len();
        let places = (1..=count).map(|step| (self.turn + step) % count);
        let next = places.into_iter().find(|place| !not.contains(&self.judges[*place].key.public()))?;
        self.turn = next;
        self.judges.get(next)
    }

    fn replay(&mut self, job: Box<ReplayJob>, ctx: &mut Context<Self>) {
        let Some(judge) = self.next(&job.not) else { return };
        let tokens = job.task.tokens();
        let outcome = match judge.behaviour {
            VerifierBehaviour::Honest => {
                return hand(judge, Job::Replay(job));
            }
            VerifierBehaviour::Silent => return,
            VerifierBehaviour::AcceptAll => Outcome::Accepted { layer: Layer::Replay, tokens, norm: 1.0 },
            VerifierBehaviour::RejectAll => {
                let parting = Parting::Unknown;
                let reason = Reason::ReplayMismatch { distance: 1.0, tolerance: 0.001, parting };
                Outcome::Rejected { layer: Layer::Replay, reason }
            }
        };
        let ReplayJob { worker, payload, turn, .. } = *job;
        let verdict = Verdict { task: job.task.id(), worker, payload, work: tokens, by: None, turn, outcome };
        let signed = Signed::seal(&judge.key, &verdict);
        ctx.run_later(GLANCE, move |panel, _| {
            drop(panel.coordinator.try_send(coordinator::Event::Verdicts(vec![signed])));
        });
    }
}

/// A full mailbox, or nobody there, loses the job, and the coordinator asks again.
fn hand(judge: &Judge, job: Job) {
    if let Some(verifier) = judge.verifier.get() {
        drop(verifier.try_send(verifier::Event::Judge(job)));
    }
}

impl Actor for Panel {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl Handler<verifier::Event> for Panel {
    type Result = ();

    fn handle(&mut self, event: verifier::Event, ctx: &mut Self::Context) {
        match event {
            verifier::Event::Judge(Job::Replay(job)) => self.replay(job, ctx),
            verifier::Event::Judge(job) => {
                if let Some(first) = self.judges.first() {
                    hand(first, job);
                }
            }
            _ => {}
        }
    }
}
