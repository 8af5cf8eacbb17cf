//! What became of each round, as the records of a run tell it: for whoever looks on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::{Record, State};
use crate::protocol::{
    Amount, Digest, Layer, Outcome, PublicKey, Round, RunSpec, Submission, Task, TaskId, Time, Verdict,
};

/// What became of a round, in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundSummary {
    /// Which.
    pub round: Round,
    /// The base model that it started from.
    pub base: Digest,
    /// When it opened.
    pub opened: Time,
    /// When its work was done; nothing, while it is not.
    pub closed: Option<Time>,
    /// Results accepted.
    pub accepted: u32,
    /// Those of them that were for tasks of earlier rounds.
    #[serde(default)]
    pub late: u32,
    /// Submissions rejected.
    pub rejected: u32,
    /// Tokens that the accepted results count for.
    pub tokens: u64,
    /// Mean training loss over the steps of the accepted tasks, nats a token.
    pub train_loss: Option<f64>,
    /// Validation loss of the base model that it started from, nats a token, once measured.
    pub loss: Option<f64>,
    /// What the ledger has paid for it.
    pub paid: Amount,
}

/// What became of each task of a round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundStory {
    /// In the order of their indices.
    pub tasks: Vec<TaskStory>,
    /// Results for tasks of earlier rounds that were accepted in this one, in their order.
    #[serde(default)]
    pub late_results: Vec<LateResult>,
    /// Submissions that were rejected, in their order.
    pub rejections: Vec<Rejection>,
    /// How often the round went on past its deadline.
    pub extended: u32,
}

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskStory {
    /// Its place in the round.
    pub index: u32,
    /// Its name.
    pub task: TaskId,
    /// How far it came.
    pub stage: TaskStage,
    /// Who did it, or had it last.
    pub worker: Option<PublicKey>,
    /// What was handed in.
    pub payload: Option<Digest>,
    /// Loss of the first step, nats a token.
    pub loss_first: Option<f32>,
    /// Loss of the last step, nats a token.
    pub loss_last: Option<f32>,
    /// The L2 norm of the update.
    pub norm: Option<f32>,
    /// The deepest layer of verification that looked at it before the round closed.
    pub layer: Option<Layer>,
    /// Who signed the verdict that accepted it.
    pub verifier: Option<PublicKey>,
}

/// A result that came after its round, and was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateResult {
    /// The task.
    pub task: TaskId,
    /// Who did it.
    pub worker: PublicKey,
    /// What was handed in.
    pub payload: Digest,
    /// Tokens that it counts for: half as many with each round that it came late.
    pub tokens: u64,
}

/// How far a task came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStage {
    /// Nobody has it.
    Open,
    /// Somebody was lent it.
    Leased,
    /// Somebody is bound to a result.
    Committed,
    /// A result was handed in.
    Submitted,
    /// The result has the right form.
    Admitted,
    /// The result is good.
    Accepted,
}

/// A submission that was rejected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// For which of the round's tasks; behind them come those of earlier rounds.
    pub index: u32,
    /// Whose.
    pub worker: PublicKey,
    /// Which layer of verification found it.
    pub layer: Layer,
    /// Why, for people.
    pub reason: String,
}

/// The rounds of a run in short, made of its records one after the other.
#[derive(Debug)]
pub struct Chronicle {
    tasks_per_round: u32,
    rounds: Vec<RoundSummary>,
    /// Sums and counts of the losses handed in for tasks of the open round.
    traces: BTreeMap<u32, (f64, usize)>,
    /// What was accepted for its tasks.
    accepted: BTreeMap<u32, AcceptedResult>,
    /// The sum and the count of their losses.
    losses: (f64, usize),
}

/// A result that counts in the open round.
#[derive(Debug, Clone, Copy)]
struct AcceptedResult {
    worker: Option<PublicKey>,
    tokens: u64,
    /// The sum and the count of its losses.
    losses: (f64, usize),
}

impl Chronicle {
    /// The chronicle of a run of which nothing is known yet.
    #[must_use]
    pub fn new(spec: &RunSpec) -> Self {
        let tasks_per_round = spec.tasks_per_round;
        let (traces, accepted) = (BTreeMap::new(), BTreeMap::new());
        Self { tasks_per_round, rounds: Vec::new(), traces, accepted, losses: (0.0, 0) }
    }

    /// Takes the next record in.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::RoundOpened { round, base, at, .. } => {
                self.traces.clear();
                self.accepted.clear();
                self.losses = (0.0, 0);
                self.rounds.push(RoundSummary {
                    round: *round,
                    base: *base,
                    opened: *at,
                    closed: None,
                    accepted: 0,
                    late: 0,
                    rejected: 0,
                    tokens: 0,
                    train_loss: None,
                    loss: None,
                    paid: Amount::ZERO,
                });
            }
            Record::Submitted { index, submission, .. } => {
                let losses = &submission.losses;
                self.traces.insert(*index, (losses.iter().copied().map(f64::from).sum(), losses.len()));
            }
            Record::Accepted { index, verdict } => {
                let losses = self.traces.remove(index).unwrap_or_default();
                let (worker, tokens) = match verdict.claimed_message() {
                    Ok(Verdict { worker, outcome: Outcome::Accepted { tokens, .. }, .. }) => (Some(worker), tokens),
                    _ => (None, 0),
                };
                self.accept(*index, AcceptedResult { worker, tokens, losses });
            }
            Record::Convicted { worker, .. } => self.reopen(*worker),
            Record::Rejected { .. } => {
                if let Some(open) = self.rounds.last_mut() {
                    open.rejected += 1;
                }
            }
            Record::RoundClosed { at, .. } => {
                if let Some(open) = self.rounds.last_mut() {
                    open.closed = Some(*at);
                }
            }
            Record::RoundPaid { round, pays } => {
                if let Some(paid) = self.rounds.get_mut(round.0 as usize) {
                    let add = |sum: Amount, (_, amount): &(PublicKey, Amount)| sum.checked_add(*amount).unwrap_or(sum);
                    paid.paid = pays.iter().fold(paid.paid, add);
                }
            }
            Record::Evaluated { round, loss } => {
                if let Some(measured) = self.rounds.get_mut(round.0 as usize) {
                    measured.loss = Some(*loss).filter(|loss| loss.is_finite());
                }
            }
            _ => {}
        }
    }

    fn accept(&mut self, index: u32, result: AcceptedResult) {
        self.accepted.insert(index, result);
        self.losses = (self.losses.0 + result.losses.0, self.losses.1 + result.losses.1);
        let (sum, count) = self.losses;
        let late = u32::from(index >= self.tasks_per_round);
        if let Some(open) = self.rounds.last_mut() {
            open.accepted += 1;
            open.late += late;
            open.tokens += result.tokens;
            open.train_loss = Some(sum / count as f64).filter(|loss| loss.is_finite());
        }
    }

    /// Whoever is convicted loses its part in the open round, whose sums are made again of what is left.
    fn reopen(&mut self, convicted: PublicKey) {
        let Some(open) = self.rounds.last_mut().filter(|open| open.closed.is_none()) else { return };
        (open.accepted, open.late, open.tokens, open.train_loss) = (0, 0, 0, None);
        self.losses = (0.0, 0);
        for (index, result) in std::mem::take(&mut self.accepted) {
            if result.worker != Some(convicted) {
                self.accept(index, result);
            }
        }
    }

    /// The rounds so far, the open one last.
    #[must_use]
    pub fn rounds(&self) -> &[RoundSummary] {
        &self.rounds
    }
}

impl TaskStory {
    fn open(index: u32, task: TaskId) -> Self {
        Self {
            index,
            task,
            stage: TaskStage::Open,
            worker: None,
            payload: None,
            loss_first: None,
            loss_last: None,
            norm: None,
            layer: None,
            verifier: None,
        }
    }
}

impl RoundStory {
    /// The story of a round that these `records` tell: all from its opening to the next one's. Nothing, where the first
    /// does not open a round.
    #[must_use]
    pub fn of(spec: &RunSpec, records: &[Record]) -> Option<Self> {
        let Some(Record::RoundOpened { round, base, .. }) = records.first() else { return None };
        let task = |index| TaskStory::open(index, Task::of_round(spec, *round, index, *base).id());
        let mut story = Self { tasks: (0..spec.tasks_per_round).map(task).collect(), ..Self::default() };
        let mut closed = false;
        for record in records {
            closed |= matches!(record, Record::RoundClosed { .. });
            match record {
                // What is closed stays as it is.
                Record::Convicted { worker, .. } if !closed => story.reopen(*worker),
                record => story.apply(record),
            }
        }
        Some(story)
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Extended { .. } => self.extended += 1,
            Record::Leased { index, worker, .. } => self.reach(*index, TaskStage::Leased, *worker),
            Record::Committed { index, worker, .. } => self.reach(*index, TaskStage::Committed, *worker),
            Record::GivenBack { index, worker } => {
                if let Some(task) = self.tasks.get_mut(*index as usize)
                    && task.stage < TaskStage::Submitted
                    && task.worker == Some(*worker)
                {
                    (task.stage, task.worker) = (TaskStage::Open, None);
                }
            }
            Record::Submitted { index, worker, submission } => {
                if let Some(task) = self.tasks.get_mut(*index as usize) {
                    let Submission { commitment, losses, .. } = submission;
                    (task.stage, task.worker) = (TaskStage::Submitted, Some(*worker));
                    task.payload = Some(commitment.payload);
                    let finite = |loss: Option<&f32>| loss.copied().filter(|loss| loss.is_finite());
                    (task.loss_first, task.loss_last) = (finite(losses.first()), finite(losses.last()));
                }
            }
            Record::Admitted { index, norm } => {
                if let Some(task) = self.tasks.get_mut(*index as usize) {
                    (task.stage, task.norm) = (TaskStage::Admitted, Some(*norm).filter(|norm| norm.is_finite()));
                }
            }
            Record::Accepted { index, verdict } => {
                if *index as usize >= self.tasks.len()
                    && let Ok(Verdict { task, worker, payload, outcome: Outcome::Accepted { tokens, .. }, .. }) =
                        verdict.claimed_message()
                {
                    self.late_results.push(LateResult { task, worker, payload, tokens });
                }
                if let Some(task) = self.tasks.get_mut(*index as usize) {
                    task.stage = TaskStage::Accepted;
                    // Its signature was checked before the record was made.
                    task.verifier = Some(verdict.claimed_signer());
                    if let Ok(Verdict { outcome: Outcome::Accepted { layer, .. }, .. }) = verdict.claimed_message() {
                        task.layer = Some(layer);
                    }
                }
            }
            Record::Rejected { index, verdict } => {
                if let Some(task) = self.tasks.get_mut(*index as usize) {
                    *task = TaskStory::open(*index, task.task);
                }
                if let Ok(Verdict { worker, outcome: Outcome::Rejected { layer, reason }, .. }) =
                    verdict.claimed_message()
                {
                    self.rejections.push(Rejection { index: *index, worker, layer, reason: reason.to_string() });
                }
            }
            _ => {}
        }
    }

    /// What a worker has of the open round is open to others once it is convicted.
    fn reopen(&mut self, convicted: PublicKey) {
        for task in self.tasks.iter_mut().filter(|task| task.worker == Some(convicted)) {
            *task = TaskStory::open(task.index, task.task);
        }
        self.late_results.retain(|late| late.worker != convicted);
    }

    /// A worker that has a task may be one of several; what was handed in already counts more.
    fn reach(&mut self, index: u32, stage: TaskStage, worker: PublicKey) {
        if let Some(task) = self.tasks.get_mut(index as usize)
            && task.stage < TaskStage::Submitted
        {
            (task.stage, task.worker) = (stage, Some(worker));
        }
    }
}

impl State {
    /// When the round opened or was last extended.
    #[must_use]
    pub fn opened(&self) -> Time {
        self.opened
    }

    /// Who holds tasks of the open round whose leases have not run out at `now` and that nobody has handed in, and how
    /// many.
    #[must_use]
    pub fn holders(&self, now: Time) -> BTreeMap<PublicKey, u32> {
        let mut holders = BTreeMap::new();
        for slot in self.slots.iter().filter(|slot| !self.closed && slot.stage.worker().is_none()) {
            for (worker, _) in slot.leases.iter().filter(|(_, deadline)| **deadline > now) {
                *holders.entry(*worker).or_default() += 1;
            }
        }
        holders
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Keypair, Reason, Signed};
    use crate::testing::{self, key};

    const TASKS: u32 = 2;

    /// Worker `worker` hands in a result for the `index`-th task, with this loss, and it is accepted.
    fn does(index: u32, worker: u8, loss: f32) -> [Record; 3] {
        let payload = Digest::of(&[worker]);
        let (task, worker) = (TaskId(Digest::of(&index.to_le_bytes())), key(worker).public());
        let submission = Submission::new(task, payload, vec![loss], testing::trail(1), 64);
        let outcome = Outcome::Accepted { layer: Layer::Statistics, tokens: 64, norm: 1.0 };
        let leased = Record::Leased { index, worker, deadline: Time(9) };
        let verdict = signed(task, worker, payload, outcome);
        [leased, Record::Submitted { index, worker, submission }, Record::Accepted { index, verdict }]
    }

    fn signed(task: TaskId, worker: PublicKey, payload: Digest, outcome: Outcome) -> Signed {
        let verdict = Verdict { task, worker, payload, work: 0, by: None, turn: 0, outcome };
        Signed::seal(&Keypair::from_secret(&[9; 32]), &verdict)
    }

    fn convicted(worker: u8) -> Record {
        let case = (TaskId(Digest::of(b"earlier")), Digest::of(b"payload"));
        Record::Convicted { case, worker: key(worker).public(), at: Time(8) }
    }

    fn told(records: &[Record]) -> (RoundSummary, RoundStory) {
        let spec = testing::spec(TASKS);
        let opened = Record::RoundOpened { round: Round(0), base: Digest::of(b"base"), momentum: None, at: Time(1) };
        let records = [&[opened], records].concat();
        let mut chronicle = Chronicle::new(&spec);
        records.iter().for_each(|record| chronicle.apply(record));
        (chronicle.rounds()[0], RoundStory::of(&spec, &records).unwrap())
    }

    #[test]
    fn what_a_convicted_worker_had_of_the_open_round_is_open_again_and_counts_once() {
        let before = [does(0, 1, 9.0), does(TASKS, 1, 9.0), does(1, 2, 3.0)].concat();
        let after = does(0, 3, 1.0);
        let (summary, story) = told(&[&before[..], &[convicted(1)], &after].concat());
        assert_eq!((summary.accepted, summary.late, summary.tokens, summary.train_loss), (2, 0, 128, Some(2.0)));
        assert_eq!(story.tasks[0].worker, Some(key(3).public()));
        assert!(story.late_results.is_empty());

        let (summary, story) = told(&[&before[..], &[convicted(1)]].concat());
        assert_eq!((summary.accepted, summary.tokens, summary.train_loss), (1, 64, Some(3.0)));
        assert_eq!((story.tasks[0].stage, story.tasks[0].worker), (TaskStage::Open, None));

        let closed = Record::RoundClosed { at: Time(7), secret: None, test: false };
        let (summary, story) = told(&[&before[..], &[closed, convicted(1)]].concat());
        assert_eq!((summary.accepted, summary.late, summary.tokens), (3, 1, 192), "what is closed stays as it is");
        assert_eq!((story.tasks[0].stage, story.late_results.len()), (TaskStage::Accepted, 1));
    }

    #[test]
    fn late_results_that_are_rejected_are_told_of() {
        let (task, worker) = (TaskId(Digest::of(b"earlier")), key(1).public());
        let outcome = Outcome::Rejected { layer: Layer::HeldOut, reason: Reason::NoProgress };
        let verdict = signed(task, worker, Digest::of(b"payload"), outcome);
        let (summary, story) = told(&[Record::Rejected { index: TASKS, verdict }]);
        assert_eq!(summary.rejected, 1);
        let [Rejection { index: TASKS, worker: whose, layer: Layer::HeldOut, .. }] = story.rejections[..] else {
            panic!("{story:?}")
        };
        assert_eq!(whose, worker);
    }
}
