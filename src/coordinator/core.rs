use std::collections::BTreeSet;
use std::time::Duration;

use super::state::{Record, Slot, Stage, State};
use crate::protocol::{
    Amount, Commitment, Digest, EnvelopeError, Layer, Lease, Outcome, PublicKey, Reason, RefusalReason, Round, Signed,
    Submission, TaskId, Time, Verdict, WorkerReply, WorkerRequest, limits,
};
use crate::verifier::{AdmissionJob, Candidate, Job, StatisticsJob};

/// How long a request for work is held open before the worker is told to ask again.
const LONG_POLL: Duration = Duration::from_secs(20);

/// How long the verifier and the ledger may take to answer before they are asked again.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// What happens to a coordinator. `R` is whatever takes a reply back to whoever asked.
#[derive(Debug)]
pub enum Event<R> {
    /// It has started, with a state that may come from before a crash.
    Started,
    /// A worker asks for something.
    Request {
        /// The signed [`WorkerRequest`].
        request: Signed,
        /// Where the answer goes.
        reply: R,
    },
    /// A verifier has judged.
    Verdicts(Vec<Signed>),
    /// The next base model is in the blob store.
    Aggregated {
        /// The round that it was made of.
        round: Round,
        /// The model.
        model: Digest,
        /// The outer momentum, where there is one.
        momentum: Option<Digest>,
    },
    /// A base model was measured.
    Evaluated {
        /// The round that starts from it.
        round: Round,
        /// Validation loss, nats a token.
        loss: f64,
    },
    /// The ledger has paid for a round.
    RoundPaid {
        /// The round.
        round: Round,
        /// What each worker got.
        pays: Vec<(PublicKey, Amount)>,
    },
    /// No round after the open one.
    FinishRound,
    /// A time that was asked for has come.
    Wake,
}

/// What a coordinator wants done, in order.
#[derive(Debug, PartialEq)]
pub enum Effect<R> {
    /// Keep these records before anything that follows.
    Persist(Vec<Record>),
    /// Answer a worker.
    Reply {
        /// Who asked.
        reply: R,
        /// The answer.
        body: WorkerReply,
    },
    /// Have this judged.
    Judge(Job),
    /// Have the ledger pay for a round, by these verdicts.
    Pay {
        /// The round.
        round: Round,
        /// Accepting verdicts in task order.
        verdicts: Vec<Signed>,
    },
    /// Make the next base model.
    Aggregate {
        /// The round.
        round: Round,
        /// Its base model.
        base: Digest,
        /// The outer momentum so far.
        momentum: Option<Digest>,
        /// Accepted payloads and their tokens, in task order.
        updates: Vec<(Digest, u64)>,
    },
    /// Measure a base model on the validation split.
    Evaluate {
        /// The round that starts from it.
        round: Round,
        /// The model.
        model: Digest,
    },
    /// These blobs are not needed any more.
    Forget(Vec<Digest>),
    /// Send [`Event::Wake`] at this time.
    WakeAt(Time),
    /// Tell whoever watches.
    Report(Report),
}

/// What people may want to know while a run goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// A submission was rejected.
    Rejected {
        /// The round.
        round: Round,
        /// Whose.
        worker: PublicKey,
        /// Why.
        reason: Reason,
    },
    /// A round's work is done.
    RoundClosed {
        /// The round.
        round: Round,
        /// Accepted tasks.
        accepted: u32,
        /// Tokens of them.
        tokens: u64,
    },
    /// A base model was measured.
    Evaluated {
        /// The round that starts from it.
        round: Round,
        /// Validation loss, nats a token.
        loss: f64,
        /// Tokens it was trained on.
        tokens: u64,
    },
    /// Every round asked for is closed, paid and measured.
    Finished,
}

/// The coordinator's core.
#[derive(Debug)]
pub struct Rounds<R> {
    state: State,
    verifiers: BTreeSet<PublicKey>,
    /// The round that is not to be opened for work any more.
    end: Option<Round>,
    /// Requests for work that wait for some, oldest first.
    parked: Vec<(PublicKey, R, Time)>,
    judging: bool,
    /// When verifier and ledger were last asked for something.
    asked: Time,
    finished: bool,
    wake_at: Option<Time>,
    records: Vec<Record>,
    effects: Vec<Effect<R>>,
}

impl<R> Rounds<R> {
    /// A coordinator in `state` that believes verdicts of `verifiers` and opens no round from `end` on.
    #[must_use]
    pub fn new(state: State, verifiers: BTreeSet<PublicKey>, end: Option<Round>) -> Self {
        Self {
            state,
            verifiers,
            end,
            parked: Vec::new(),
            judging: false,
            asked: Time(0),
            finished: false,
            wake_at: None,
            records: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// What it knows.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes an event; gives what is to be done about it, in order. Records come first: nobody hears of a change that
    /// is not on disk.
    pub fn step(&mut self, now: Time, event: Event<R>) -> Vec<Effect<R>> {
        match event {
            Event::Started => self.start(),
            Event::Request { request, reply } => self.request(now, &request, reply),
            Event::Verdicts(verdicts) => verdicts.iter().for_each(|verdict| self.verdict(verdict)),
            Event::Aggregated { round, model, momentum } => self.aggregated(now, round, model, momentum),
            Event::Evaluated { round, loss } => self.evaluated(round, loss),
            Event::RoundPaid { round, pays } => {
                if self.state.unpaid.contains_key(&round) {
                    self.record(Record::RoundPaid { round, pays });
                }
            }
            Event::FinishRound => {
                let idle = !self.state.closed && self.state.slots.iter().all(|slot| slot.leases.is_empty());
                let end = if idle { self.state.round } else { self.state.round.next() };
                self.end = Some(self.end.map_or(end, |planned| planned.min(end)));
            }
            Event::Wake => {
                self.wake_at = None;
                if now >= self.asked + ASK_AGAIN {
                    self.ask_again();
                }
            }
        }
        self.advance(now);
        self.serve_parked(now);
        self.plan_wake(now);
        self.report_finish();
        if cfg!(debug_assertions) {
            self.state.assert_invariants();
        }
        let mut effects = std::mem::take(&mut self.effects);
        if effects.iter().any(|effect| matches!(effect, Effect::Judge(_) | Effect::Pay { .. })) {
            self.asked = now;
        }
        if !self.records.is_empty() {
            effects.insert(0, Effect::Persist(std::mem::take(&mut self.records)));
        }
        effects
    }

    fn record(&mut self, record: Record) {
        self.state.apply(&record);
        self.records.push(record);
    }

    fn reply(&mut self, reply: R, body: WorkerReply) {
        self.effects.push(Effect::Reply { reply, body });
    }

    /// Takes up again what was under way when the state was written: whoever was asked then may have died too. All of
    /// it may be asked twice.
    fn start(&mut self) {
        self.ask_again();
        let newest = self.state.lineage.len().saturating_sub(limits::MODELS_KEPT as usize);
        for (round, model) in (0..).map(Round).zip(&self.state.lineage).skip(newest) {
            if model.loss.is_none() {
                self.effects.push(Effect::Evaluate { round, model: model.digest });
            }
        }
        if self.state.closed {
            self.aggregate();
        }
    }

    /// Asks verifier and ledger for everything that they owe an answer for.
    fn ask_again(&mut self) {
        for (round, verdicts) in &self.state.unpaid {
            self.effects.push(Effect::Pay { round: *round, verdicts: verdicts.clone() });
        }
        self.judging = false; // asked for again by `advance`
        for index in 0..self.state.slots.len() {
            self.judge_admission(index);
        }
    }

    fn finished_rounds(&self) -> bool {
        self.end.is_some_and(|end| self.state.round >= end)
    }

    fn report_finish(&mut self) {
        let measured = self.state.lineage.last().is_some_and(|model| model.loss.is_some());
        if !self.finished && self.finished_rounds() && !self.state.closed && self.state.unpaid.is_empty() && measured {
            self.finished = true;
            self.effects.push(Effect::Report(Report::Finished));
        }
    }

    // --- requests -------------------------------------------------------------------------------------------------

    fn request(&mut self, now: Time, request: &Signed, reply: R) {
        let (worker, request) = match request.open::<WorkerRequest>() {
            Ok(opened) => opened,
            Err(error) => {
                let reason = match error {
                    EnvelopeError::Signature => RefusalReason::Signature,
                    EnvelopeError::Wire(_) => RefusalReason::Malformed,
                };
                return self.reply(reply, WorkerReply::Refused { task: None, reason });
            }
        };
        let (task, answer) = match request {
            WorkerRequest::Lease { .. } => return self.ask_for_work(now, worker, reply),
            WorkerRequest::Commit(commitment) => (commitment.task, self.commit(worker, commitment)),
            WorkerRequest::Submit(submission) => (submission.commitment.task, self.submit(worker, submission)),
            WorkerRequest::GiveBack(task) => (task, self.give_back(worker, task)),
        };
        let body = answer.unwrap_or_else(|reason| WorkerReply::Refused { task: Some(task), reason });
        self.reply(reply, body);
    }

    fn ask_for_work(&mut self, now: Time, worker: PublicKey, reply: R) {
        if self.state.workers.len() >= limits::WORKERS_MAX && !self.state.workers.contains_key(&worker) {
            let reason = RefusalReason::TooManyWorkers;
            return self.reply(reply, WorkerReply::Refused { task: None, reason });
        }
        // One request a worker is held: a newer one replaces it, whoever asked first has gone away.
        if let Some(place) = self.parked.iter().position(|(parked, ..)| *parked == worker) {
            let (_, older, _) = self.parked.remove(place);
            self.reply(older, WorkerReply::Wait { until: now });
        }
        self.parked.push((worker, reply, now + LONG_POLL));
    }

    fn serve_parked(&mut self, now: Time) {
        // With thousands of workers waiting, nearly every event finds nothing for any of them. The newest may have asked
        // again for what it holds already.
        let over = self.finished_rounds() && !self.state.closed;
        let due = self.parked.first().is_some_and(|(.., until)| *until <= now);
        let asked_again = self.parked.last().is_some_and(|(worker, ..)| self.holds(now, worker));
        if !over && !due && !asked_again && !self.is_anything_free(now) {
            return;
        }
        for (worker, reply, until) in std::mem::take(&mut self.parked) {
            if self.finished_rounds() && !self.state.closed {
                self.reply(reply, WorkerReply::Finished);
            } else if let Some(lease) = self.lease(now, worker) {
                self.reply(reply, WorkerReply::Leased(Box::new(lease)));
            } else if until <= now {
                self.reply(reply, WorkerReply::Wait { until: now });
            } else {
                self.parked.push((worker, reply, until));
            }
        }
    }

    fn is_anything_free(&self, now: Time) -> bool {
        let free = |slot: &Slot| slot.stage == Stage::Open && slot.leases.values().all(|deadline| *deadline <= now);
        !self.state.closed && self.state.slots.iter().any(free)
    }

    fn holds(&self, now: Time, worker: &PublicKey) -> bool {
        let held = |slot: &Slot| slot.leases.get(worker).is_some_and(|deadline| *deadline > now);
        !self.state.closed && self.state.slots.iter().any(held)
    }

    /// The task that `worker` holds, or else the first that nobody does.
    fn lease(&mut self, now: Time, worker: PublicKey) -> Option<Lease> {
        if self.state.closed {
            return None;
        }
        let mut free = None;
        for slot in &self.state.slots {
            if slot.stage != Stage::Open || slot.shut_out.contains(&worker) {
                continue;
            }
            if let Some(deadline) = slot.leases.get(&worker).filter(|deadline| **deadline > now) {
                return Some(Lease { task: slot.task.clone(), deadline: *deadline });
            }
            if free.is_none() && slot.leases.values().all(|deadline| *deadline <= now) {
                free = Some(slot);
            }
        }
        let free = free?;
        let lease = Lease { task: free.task.clone(), deadline: now + self.state.spec.timing.lease };
        self.record(Record::Leased { index: lease.task.index, worker, deadline: lease.deadline });
        Some(lease)
    }

    /// The open round's task with this id, if `worker` was ever lent it and may still hand in a result.
    fn slot_of(&self, worker: PublicKey, task: TaskId) -> Result<&Slot, RefusalReason> {
        if self.state.closed {
            return Err(RefusalReason::TaskNotOpen);
        }
        let slot = self.state.slot(&task).ok_or(RefusalReason::TaskNotOpen)?;
        if slot.shut_out.contains(&worker) {
            Err(RefusalReason::RejectedBefore)
        } else if slot.leases.contains_key(&worker) {
            Ok(slot)
        } else {
            Err(RefusalReason::NotYourTask)
        }
    }

    fn commit(&mut self, worker: PublicKey, commitment: Commitment) -> Result<WorkerReply, RefusalReason> {
        let slot = self.slot_of(worker, commitment.task)?;
        match slot.commitments.get(&worker) {
            Some((_, earlier)) if *earlier == commitment => {}
            Some(_) => return Err(RefusalReason::CommitmentDiffers),
            None if slot.stage != Stage::Open => return Err(RefusalReason::AlreadySubmitted),
            None => {
                let index = slot.task.index;
                self.record(Record::Committed { index, worker, commitment });
            }
        }
        Ok(WorkerReply::Committed(commitment.task))
    }

    fn submit(&mut self, worker: PublicKey, submission: Submission) -> Result<WorkerReply, RefusalReason> {
        let task = submission.commitment.task;
        let slot = self.slot_of(worker, task)?;
        match slot.commitments.get(&worker) {
            None => return Err(RefusalReason::CommitmentMissing),
            Some((_, committed)) if *committed != submission.commitment => {
                return Err(RefusalReason::CommitmentDiffers);
            }
            Some(_) => {}
        }
        match slot.stage.worker() {
            Some(first) if first != worker => return Err(RefusalReason::AlreadySubmitted),
            Some(_) => {}
            None => {
                let index = slot.task.index;
                self.record(Record::Submitted { index, worker, submission });
                self.judge_admission(index as usize);
            }
        }
        Ok(WorkerReply::Received(task))
    }

    fn give_back(&mut self, worker: PublicKey, task: TaskId) -> Result<WorkerReply, RefusalReason> {
        let slot = self.slot_of(worker, task)?;
        if slot.stage.worker() != Some(worker) {
            let index = slot.task.index;
            self.record(Record::GivenBack { index, worker });
        }
        Ok(WorkerReply::Received(task))
    }

    // --- verdicts -------------------------------------------------------------------------------------------------

    fn judge_admission(&mut self, index: usize) {
        let Some(slot) = self.state.slots.get(index) else { return };
        if let Stage::Submitted { worker, submission } = &slot.stage {
            let job = AdmissionJob { task: slot.task.clone(), worker: *worker, submission: submission.clone() };
            self.effects.push(Effect::Judge(Job::Admission(Box::new(job))));
        }
    }

    fn judge_statistics(&mut self) {
        let candidate = |slot: &Slot, worker: &PublicKey, payload: &Digest, norm: &f32| {
            let order = slot.commitments.get(worker).map_or(u32::MAX, |(order, _)| *order);
            (order, Candidate { task: slot.task.clone(), worker: *worker, payload: *payload, norm: *norm })
        };
        let (mut candidates, mut accepted) = (Vec::new(), Vec::new());
        for slot in &self.state.slots {
            match &slot.stage {
                Stage::Admitted { worker, payload, norm } => candidates.push(candidate(slot, worker, payload, norm)),
                Stage::Accepted { worker, payload, norm, .. } => accepted.push(candidate(slot, worker, payload, norm)),
                Stage::Open | Stage::Submitted { .. } => {}
            }
        }
        candidates.sort_by_key(|(order, _)| *order);
        let strip = |ordered: Vec<(u32, Candidate)>| ordered.into_iter().map(|(_, candidate)| candidate).collect();
        self.judging = true;
        self.effects.push(Effect::Judge(Job::Statistics(Box::new(StatisticsJob {
            candidates: strip(candidates),
            accepted: strip(accepted),
            recent_norms: self.state.recent_norms.iter().copied().collect(),
        }))));
    }

    /// Verdicts of strangers, on other work than is in the slot, or of a layer that it has passed, change nothing.
    fn verdict(&mut self, signed: &Signed) {
        let Ok((verifier, verdict)) = signed.open::<Verdict>() else { return };
        if !self.verifiers.contains(&verifier) || self.state.closed {
            return;
        }
        let Some(slot) = self.state.slot(&verdict.task) else { return };
        if slot.stage.worker() != Some(verdict.worker) || slot.stage.payload() != Some(verdict.payload) {
            return;
        }
        let index = slot.task.index;
        match (&slot.stage, verdict.outcome) {
            (Stage::Submitted { .. }, Outcome::Accepted { layer: Layer::Admission, norm, .. }) => {
                self.record(Record::Admitted { index, norm });
            }
            (Stage::Admitted { .. }, Outcome::Accepted { layer, tokens, .. })
                if layer > Layer::Admission && tokens == slot.task.tokens() =>
            {
                self.judging = false;
                self.record(Record::Accepted { index, verdict: signed.clone() });
            }
            (Stage::Submitted { .. } | Stage::Admitted { .. }, Outcome::Rejected { reason, .. }) => {
                self.judging = false;
                let report = Report::Rejected { round: self.state.round, worker: verdict.worker, reason };
                self.effects.push(Effect::Report(report));
                self.record(Record::Rejected { index, verdict: signed.clone() });
            }
            _ => {}
        }
    }

    // --- rounds ---------------------------------------------------------------------------------------------------

    fn deadline(&self) -> Time {
        self.state.opened + self.state.spec.timing.round
    }

    /// Moves the open round on as far as it goes: compare what is admitted, close, or wait on.
    fn advance(&mut self, now: Time) {
        // The cheapest first: this runs for every event, and nearly always something is still being judged.
        let submitted = |slot: &Slot| matches!(slot.stage, Stage::Submitted { .. });
        if self.state.closed || self.judging || self.state.slots.iter().any(submitted) {
            return;
        }
        let count = |wanted: fn(&Stage) -> bool| self.state.slots.iter().filter(|slot| wanted(&slot.stage)).count();
        let open = count(|stage| *stage == Stage::Open);
        let admitted = count(|stage| matches!(stage, Stage::Admitted { .. }));
        let accepted = count(|stage| matches!(stage, Stage::Accepted { .. }));
        let due = now >= self.deadline();
        let enough = accepted + admitted >= self.state.spec.quorum();
        if admitted > 0 && (open == 0 || (due && enough)) {
            self.judge_statistics();
        } else if admitted == 0 && (open == 0 || (due && enough)) {
            self.close();
        } else if due {
            self.record(Record::Extended { at: now });
        }
    }

    fn close(&mut self) {
        self.record(Record::RoundClosed);
        let round = self.state.round;
        let verdicts = self.state.unpaid.get(&round).cloned().unwrap_or_default();
        let accepted = u32::try_from(verdicts.len()).unwrap_or(u32::MAX);
        let tokens = u64::from(accepted) * self.state.spec.tokens_per_task();
        self.effects.push(Effect::Report(Report::RoundClosed { round, accepted, tokens }));
        self.effects.push(Effect::Pay { round, verdicts });
        self.aggregate();
    }

    fn aggregate(&mut self) {
        let Some(base) = self.state.lineage.last() else { return };
        let updates = self.state.slots.iter().filter_map(|slot| match &slot.stage {
            Stage::Accepted { payload, .. } => Some((*payload, slot.task.tokens())),
            _ => None,
        });
        self.effects.push(Effect::Aggregate {
            round: self.state.round,
            base: base.digest,
            momentum: self.state.momentum,
            updates: updates.collect(),
        });
    }

    fn aggregated(&mut self, now: Time, round: Round, model: Digest, momentum: Option<Digest>) {
        if round != self.state.round || !self.state.closed {
            return;
        }
        let mut forget: Vec<Digest> = self.state.slots.iter().filter_map(|slot| slot.stage.payload()).collect();
        forget.extend(self.state.momentum.filter(|old| Some(*old) != momentum));
        self.judging = false;
        self.record(Record::RoundOpened { round: round.next(), base: model, momentum, at: now });
        let kept = limits::MODELS_KEPT as usize;
        if let Some(old) = self.state.lineage.len().checked_sub(kept + 1).and_then(|old| self.state.lineage.get(old)) {
            let newer = &self.state.lineage[self.state.lineage.len() - kept..];
            if newer.iter().all(|model| model.digest != old.digest) {
                forget.push(old.digest);
            }
        }
        self.effects.push(Effect::Evaluate { round: round.next(), model });
        self.effects.push(Effect::Forget(forget));
    }

    fn evaluated(&mut self, round: Round, loss: f64) {
        let Some(model) = self.state.lineage.get(round.0 as usize) else { return };
        if model.loss.is_none() {
            let report = Report::Evaluated { round, loss, tokens: model.tokens };
            self.record(Record::Evaluated { round, loss });
            self.effects.push(Effect::Report(report));
        }
    }

    /// Asks to be woken when the next deadline passes: of a lease that somebody else may take over, of the round, of
    /// a request that is held open, of an answer that is owed.
    fn plan_wake(&mut self, now: Time) {
        // Whatever has come up since the last plan is due later than this, but for the round's end.
        let soonest = now + LONG_POLL.min(ASK_AGAIN).min(self.state.spec.timing.lease);
        if self.wake_at.is_some_and(|at| at > now && at <= soonest && at <= self.deadline()) {
            return;
        }
        let leases = self
            .state
            .slots
            .iter()
            .filter(|slot| slot.stage == Stage::Open)
            .flat_map(|slot| slot.leases.values().copied())
            .filter(|deadline| *deadline > now);
        // Once it is past, a verdict is waited for, or the next deadline.
        let round = (!self.state.closed && !self.finished_rounds()).then(|| self.deadline());
        let round = round.filter(|deadline| *deadline > now);
        let parked = self.parked.iter().map(|(.., until)| *until);
        let submitted = |slot: &Slot| matches!(slot.stage, Stage::Submitted { .. });
        let owed = self.judging || !self.state.unpaid.is_empty() || self.state.slots.iter().any(submitted);
        let again = owed.then(|| self.asked.max(now) + ASK_AGAIN);
        let next = leases.chain(round).chain(parked).chain(again).min();
        // Never far ahead, so that there is a plan that most events need not look beyond.
        let next = next.map(|next| next.min(now + LONG_POLL));
        if let Some(next) = next
            && self.wake_at.is_none_or(|planned| next < planned)
        {
            self.wake_at = Some(next);
            self.effects.push(Effect::WakeAt(next));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{RunSpec, Task};
    use crate::testing::{self, key};

    const VERIFIER: u8 = 100;

    /// A coordinator, and what it has asked for so far. Replies are tagged with the number of the request.
    struct Bench {
        rounds: Rounds<u32>,
        now: Time,
        records: Vec<Record>,
        effects: Vec<Effect<u32>>,
        requests: u32,
    }

    impl Bench {
        fn new(tasks: u32, end: Option<u32>) -> Self {
            let base = Digest::of(b"model 0");
            let records = vec![Record::RoundOpened { round: Round(0), base, momentum: None, at: Time(0) }];
            let mut bench = Self::restored(testing::spec(tasks), records, end, Time(0));
            bench.step(Event::Started);
            bench.effects.clear();
            bench
        }

        fn restored(spec: RunSpec, records: Vec<Record>, end: Option<u32>, now: Time) -> Self {
            let state = State::replay(spec, records.clone());
            let verifiers = BTreeSet::from([key(VERIFIER).public()]);
            let rounds = Rounds::new(state, verifiers, end.map(Round));
            Self { rounds, now, records, effects: Vec::new(), requests: 0 }
        }

        /// The same coordinator after a crash: only its records are left.
        fn crash(self) -> Self {
            let end = self.rounds.end.map(|end| end.0);
            let live = self.rounds.state().clone();
            let mut again = Self::restored(live.spec().clone(), self.records, end, self.now);
            assert_eq!(*again.rounds.state(), live, "what is on disk is not what was in memory");
            again.step(Event::Started);
            again
        }

        fn step(&mut self, event: Event<u32>) {
            for effect in self.rounds.step(self.now, event) {
                match effect {
                    Effect::Persist(records) => self.records.extend(records),
                    other => self.effects.push(other),
                }
            }
        }

        fn ask(&mut self, worker: u8, request: &WorkerRequest) -> Option<WorkerReply> {
            self.requests += 1;
            let reply = self.requests;
            self.step(Event::Request { request: Signed::seal(&key(worker), request), reply });
            self.answer_to(reply)
        }

        fn answer_to(&self, request: u32) -> Option<WorkerReply> {
            self.effects.iter().find_map(|effect| match effect {
                Effect::Reply { reply, body } if *reply == request => Some(body.clone()),
                _ => None,
            })
        }

        fn lease(&mut self, worker: u8) -> Task {
            match self.ask(worker, &WorkerRequest::Lease { tokens_per_second: 0 }) {
                Some(WorkerReply::Leased(lease)) => lease.task,
                other => panic!("worker {worker} was to get a lease, not {other:?}"),
            }
        }

        fn hand_in(&mut self, worker: u8, task: &Task) -> Option<WorkerReply> {
            let submission = submission(task, worker);
            match self.ask(worker, &WorkerRequest::Commit(submission.commitment)) {
                Some(WorkerReply::Committed(_)) => self.ask(worker, &WorkerRequest::Submit(submission)),
                refused => refused,
            }
        }

        fn jobs(&mut self) -> Vec<Job> {
            let effects = std::mem::take(&mut self.effects);
            let (jobs, rest) = effects.into_iter().partition(|effect| matches!(effect, Effect::Judge(_)));
            self.effects = rest;
            jobs.into_iter().filter_map(|job| if let Effect::Judge(job) = job { Some(job) } else { None }).collect()
        }

        /// Judges everything that waits for it; `accept` says whose work passes.
        fn judge(&mut self, accept: impl Fn(PublicKey) -> bool) {
            loop {
                let jobs = self.jobs();
                if jobs.is_empty() {
                    return;
                }
                for job in jobs {
                    let verdicts = verdicts(&job, &accept);
                    self.step(Event::Verdicts(verdicts));
                }
            }
        }

        fn count(&self, wanted: fn(&Effect<u32>) -> bool) -> usize {
            self.effects.iter().filter(|effect| wanted(effect)).count()
        }

        fn finish_aggregation(&mut self) {
            let round = self.rounds.state().round();
            let model = Digest::of(format!("model {}", round.0 + 1).as_bytes());
            self.step(Event::Aggregated { round, model, momentum: None });
        }
    }

    fn submission(task: &Task, worker: u8) -> Submission {
        let payload = Digest::of(&[&[worker], task.id().0.as_bytes().as_slice()].concat());
        Submission::new(task.id(), payload, vec![1.0; 4], task.tokens())
    }

    fn verdicts(job: &Job, accept: &impl Fn(PublicKey) -> bool) -> Vec<Signed> {
        let (layer, judged): (_, Vec<(TaskId, PublicKey, Digest, u64)>) = match job {
            Job::Admission(job) => {
                let payload = job.submission.commitment.payload;
                (Layer::Admission, vec![(job.task.id(), job.worker, payload, job.task.tokens())])
            }
            Job::Statistics(job) => {
                let candidate = |c: &Candidate| (c.task.id(), c.worker, c.payload, c.task.tokens());
                (Layer::Statistics, job.candidates.iter().map(candidate).collect())
            }
        };
        judged
            .into_iter()
            .map(|(task, worker, payload, tokens)| {
                let outcome = if accept(worker) {
                    Outcome::Accepted { layer, tokens, norm: 1.0 }
                } else {
                    Outcome::Rejected { layer, reason: Reason::NotFinite }
                };
                Signed::seal(&key(VERIFIER), &Verdict { task, worker, payload, outcome })
            })
            .collect()
    }

    #[test]
    fn a_round_goes_from_leases_to_the_next_base_model() {
        let mut bench = Bench::new(2, None);
        let (first, second) = (bench.lease(1), bench.lease(2));
        assert_eq!((first.index, second.index), (0, 1));
        assert_eq!(bench.hand_in(1, &first), Some(WorkerReply::Received(first.id())));
        assert_eq!(bench.hand_in(2, &second), Some(WorkerReply::Received(second.id())));
        bench.judge(|_| true);
        let paid = bench.effects.iter().find_map(|effect| match effect {
            Effect::Pay { round, verdicts } => Some((*round, verdicts.len())),
            _ => None,
        });
        assert_eq!(paid, Some((Round(0), 2)));
        let updates = bench.effects.iter().find_map(|effect| match effect {
            Effect::Aggregate { updates, .. } => Some(updates.clone()),
            _ => None,
        });
        let payload = |task, worker| (submission(task, worker).commitment.payload, 64);
        assert_eq!(updates, Some(vec![payload(&first, 1), payload(&second, 2)]));
        bench.finish_aggregation();
        let state = bench.rounds.state();
        assert_eq!((state.round(), state.tokens(), state.lineage().len()), (Round(1), 128, 2));
        assert_eq!(bench.lease(1).round, Round(1));
    }

    #[test]
    fn the_tasks_of_a_round_do_not_depend_on_who_asks_or_when() {
        let tasks = |order: [u8; 2]| {
            let mut bench = Bench::new(2, None);
            order.map(|worker| bench.lease(worker)).map(|task| task.id())
        };
        assert_eq!(tasks([1, 2]), tasks([7, 3]));
    }

    #[test]
    fn a_worker_that_asks_again_gets_the_task_it_holds() {
        let mut bench = Bench::new(2, None);
        let task = bench.lease(1);
        assert_eq!(bench.lease(1), task);
        assert_eq!(bench.lease(2).index, 1);
    }

    #[test]
    fn a_request_for_work_waits_until_there_is_some_or_its_time_is_up() {
        let mut bench = Bench::new(1, None);
        let task = bench.lease(1);
        assert_eq!(bench.ask(2, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
        let waiting = bench.requests;
        bench.hand_in(1, &task);
        bench.judge(|_| true);
        bench.finish_aggregation();
        assert!(matches!(bench.answer_to(waiting), Some(WorkerReply::Leased(lease)) if lease.task.round == Round(1)));

        assert_eq!(bench.ask(3, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
        let waiting = bench.requests;
        bench.now = bench.now + LONG_POLL;
        bench.step(Event::Wake);
        assert_eq!(bench.answer_to(waiting), Some(WorkerReply::Wait { until: bench.now }));
    }

    #[test]
    fn an_expired_lease_goes_to_another_and_the_first_to_hand_in_counts() {
        let mut bench = Bench::new(1, None);
        let task = bench.lease(1);
        assert_eq!(bench.ask(2, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
        bench.now = bench.now + bench.rounds.state().spec().timing.lease;
        bench.step(Event::Wake);
        let lent = |effect: &Effect<u32>| matches!(effect, Effect::Reply { body: WorkerReply::Leased(lease), .. } if lease.task.index == 0);
        assert_eq!(bench.count(lent), 2);
        assert_eq!(bench.hand_in(1, &task), Some(WorkerReply::Received(task.id())), "late, but first");
        let refused = WorkerReply::Refused { task: Some(task.id()), reason: RefusalReason::AlreadySubmitted };
        assert_eq!(bench.hand_in(2, &task), Some(refused));
    }

    #[test]
    fn nobody_can_hand_in_what_is_not_theirs_or_was_not_committed() {
        let mut bench = Bench::new(2, None);
        let task = bench.lease(1);
        let refusal = |reply: Option<WorkerReply>| match reply {
            Some(WorkerReply::Refused { reason, .. }) => Some(reason),
            _ => None,
        };
        let mine = submission(&task, 1);
        let reply = bench.ask(1, &WorkerRequest::Submit(mine.clone()));
        assert_eq!(refusal(reply), Some(RefusalReason::CommitmentMissing));
        let reply = bench.ask(2, &WorkerRequest::Commit(mine.commitment));
        assert_eq!(refusal(reply), Some(RefusalReason::NotYourTask));
        bench.ask(1, &WorkerRequest::Commit(mine.commitment));
        let other = submission(&task, 9);
        let reply = bench.ask(1, &WorkerRequest::Commit(other.commitment));
        assert_eq!(refusal(reply), Some(RefusalReason::CommitmentDiffers));
        let reply = bench.ask(1, &WorkerRequest::Submit(other));
        assert_eq!(refusal(reply), Some(RefusalReason::CommitmentDiffers));
        let stale = Submission::new(TaskId(Digest::of(b"stale")), Digest::of(b"x"), vec![], 0);
        let reply = bench.ask(1, &WorkerRequest::Submit(stale));
        assert_eq!(refusal(reply), Some(RefusalReason::TaskNotOpen));
        let verdict = Signed::seal(
            &key(1),
            &Verdict {
                task: task.id(),
                worker: key(1).public(),
                payload: mine.commitment.payload,
                outcome: Outcome::Accepted { layer: Layer::Replay, tokens: 64, norm: 1.0 },
            },
        );
        bench.requests += 1;
        let reply = bench.requests;
        bench.step(Event::Request { request: verdict, reply });
        assert_eq!(refusal(bench.answer_to(reply)), Some(RefusalReason::Signature), "another kind of message");
    }

    #[test]
    fn every_request_can_be_repeated_without_a_second_effect() {
        let mut bench = Bench::new(2, None);
        let task = bench.lease(1);
        bench.hand_in(1, &task);
        let before = bench.records.len();
        assert_eq!(bench.hand_in(1, &task), Some(WorkerReply::Received(task.id())));
        assert_eq!(bench.records.len(), before);
        assert_eq!(bench.jobs().len(), 1);
    }

    #[test]
    fn rejected_work_opens_its_task_to_others_and_is_not_paid() {
        let mut bench = Bench::new(2, None);
        let (first, second) = (bench.lease(1), bench.lease(2));
        bench.hand_in(1, &first);
        bench.hand_in(2, &second);
        bench.judge(|worker| worker != key(1).public());
        assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 0);
        assert_eq!(bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 }), None, "not lent to the same worker");
        assert_eq!(bench.lease(3).index, 0);
        bench.hand_in(3, &first);
        bench.judge(|_| true);
        assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 1);
        let workers = bench.rounds.state().workers();
        assert_eq!([1, 2, 3].map(|n| workers[&key(n).public()].accepted), [0, 1, 1]);
        assert_eq!(workers[&key(1).public()].rejected, 1);
    }

    #[test]
    fn verdicts_of_strangers_or_on_other_work_change_nothing() {
        let mut bench = Bench::new(1, None);
        let task = bench.lease(1);
        bench.hand_in(1, &task);
        let payload = submission(&task, 1).commitment.payload;
        let outcome = Outcome::Accepted { layer: Layer::Admission, tokens: 64, norm: 1.0 };
        let sound = Verdict { task: task.id(), worker: key(1).public(), payload, outcome };
        let before = bench.records.len();
        let of = |signer: u8, verdict: Verdict| Signed::seal(&key(signer), &verdict);
        let (mut worker, mut work) = (sound.clone(), sound.clone());
        worker.worker = key(2).public();
        work.payload = Digest::of(b"other");
        bench.step(Event::Verdicts(vec![of(1, sound.clone()), of(VERIFIER, worker), of(VERIFIER, work)]));
        assert_eq!(bench.records.len(), before);
        bench.step(Event::Verdicts(vec![of(VERIFIER, sound)]));
        assert_eq!(bench.records.len(), before + 1);
    }

    #[test]
    fn at_its_deadline_a_round_closes_with_a_quorum_or_goes_on_without() {
        let mut bench = Bench::new(3, None);
        let first = bench.lease(1);
        bench.hand_in(1, &first);
        bench.judge(|_| true);
        bench.now = bench.now + bench.rounds.state().spec().timing.round;
        bench.step(Event::Wake);
        bench.judge(|_| true);
        assert!(!bench.rounds.state().closed, "one of three is no quorum");
        let second = bench.lease(2);
        bench.hand_in(2, &second);
        bench.now = bench.now + bench.rounds.state().spec().timing.round;
        bench.step(Event::Wake);
        bench.judge(|_| true);
        assert!(bench.rounds.state().closed);
        bench.finish_aggregation();
        assert_eq!(bench.rounds.state().tokens(), 128);
    }

    #[test]
    fn a_run_is_finished_when_its_last_round_is_paid_and_measured() {
        let mut bench = Bench::new(1, Some(1));
        let task = bench.lease(1);
        bench.hand_in(1, &task);
        bench.judge(|_| true);
        bench.finish_aggregation();
        let finished = |effect: &Effect<u32>| *effect == Effect::Report(Report::Finished);
        assert_eq!(bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 }), Some(WorkerReply::Finished));
        bench.step(Event::Evaluated { round: Round(1), loss: 2.0 });
        assert_eq!(bench.count(finished), 0);
        bench.step(Event::RoundPaid { round: Round(0), pays: vec![(key(1).public(), Amount::from_hyd(5))] });
        bench.step(Event::RoundPaid { round: Round(0), pays: vec![(key(1).public(), Amount::from_hyd(5))] });
        assert_eq!(bench.count(finished), 1);
        assert_eq!(bench.rounds.state().workers()[&key(1).public()].pay, Amount::from_hyd(5));
    }

    #[test]
    fn blobs_are_forgotten_only_when_nothing_needs_them() {
        let mut bench = Bench::new(1, None);
        let mut payloads = BTreeMap::new();
        for round in 0..5 {
            let task = bench.lease(1);
            payloads.insert(round, submission(&task, 1).commitment.payload);
            bench.hand_in(1, &task);
            bench.judge(|_| true);
            bench.finish_aggregation();
            bench.step(Event::Evaluated { round: Round(round + 1), loss: 1.0 });
        }
        let forgotten: Vec<Digest> = bench
            .effects
            .iter()
            .filter_map(|effect| if let Effect::Forget(blobs) = effect { Some(blobs.clone()) } else { None })
            .flatten()
            .collect();
        let model = |n: u32| Digest::of(format!("model {n}").as_bytes());
        assert!(payloads.values().all(|payload| forgotten.contains(payload)));
        for kept in 0..limits::MODELS_KEPT {
            assert!(!forgotten.contains(&model(5 - kept)));
        }
        assert!((0..=5 - limits::MODELS_KEPT).all(|old| forgotten.contains(&model(old))));
    }

    #[test]
    fn a_verifier_or_ledger_that_does_not_answer_is_asked_again() {
        let mut bench = Bench::new(1, None);
        let task = bench.lease(1);
        bench.hand_in(1, &task);
        assert_eq!(bench.jobs().len(), 1);
        bench.now = bench.now + ASK_AGAIN;
        bench.step(Event::Wake);
        bench.judge(|_| true);
        assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 1);
        bench.now = bench.now + ASK_AGAIN;
        bench.step(Event::Wake);
        assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 2);
        bench.step(Event::RoundPaid { round: Round(0), pays: vec![] });
        bench.now = bench.now + ASK_AGAIN;
        bench.step(Event::Wake);
        assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Random workers, good and bad, losing replies, repeating themselves, and a coordinator that is killed at
        /// random: the run goes on from its records, and nothing is paid twice.
        #[test]
        fn a_run_survives_any_history_of_crashes_and_pays_each_task_once(
            moves in prop::collection::vec((0u8..8, 0u8..4), 1..120),
        ) {
            let mut bench = Bench::new(3, None);
            let mut pays: BTreeMap<Round, Vec<Signed>> = BTreeMap::new();
            for (action, worker) in moves {
                match action {
                    0 | 1 => { bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 1 }); }
                    2 | 3 => {
                        let held = bench.rounds.state().slots.iter().find(|slot| {
                            slot.stage == Stage::Open && slot.leases.contains_key(&key(worker).public())
                        });
                        if let Some(task) = held.map(|slot| slot.task.clone()) {
                            bench.hand_in(worker, &task);
                        }
                    }
                    4 => bench.judge(|judged| judged != key(0).public()),
                    5 => {
                        if bench.rounds.state().closed {
                            bench.finish_aggregation();
                        }
                    }
                    6 => {
                        bench.now = bench.now + Duration::from_secs(90);
                        bench.step(Event::Wake);
                    }
                    _ => bench = bench.crash(),
                }
                let asked: Vec<_> = bench.effects.iter().filter_map(|effect| match effect {
                    Effect::Pay { round, verdicts } => Some((*round, verdicts.clone())),
                    _ => None,
                }).collect();
                for (round, verdicts) in asked {
                    let first = pays.entry(round).or_insert_with(|| verdicts.clone());
                    prop_assert_eq!(&*first, &verdicts, "a round was paid in two ways");
                    let workers = [0].map(|bad| key(bad).public());
                    for verdict in &verdicts {
                        let (_, verdict) = verdict.open::<Verdict>().unwrap();
                        prop_assert!(!workers.contains(&verdict.worker), "rejected work was paid");
                    }
                    bench.step(Event::RoundPaid { round, pays: vec![] });
                }
            }
            // Whatever happened, honest workers who stay bring the round to its end.
            bench = bench.crash();
            let round = bench.rounds.state().round();
            for patience in 0..20u64 {
                bench.now = bench.now + Duration::from_secs(100 * (patience + 1));
                bench.step(Event::Wake);
                for worker in 1..4 {
                    if let Some(WorkerReply::Leased(lease)) =
                        bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 1 })
                    {
                        bench.hand_in(worker, &lease.task);
                    }
                }
                bench.judge(|judged| judged != key(0).public());
                if bench.rounds.state().closed {
                    bench.finish_aggregation();
                }
            }
            prop_assert!(bench.rounds.state().round() > round, "the run is stuck in round {}", round.0);
        }
    }
}
