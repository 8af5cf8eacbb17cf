use std::collections::BTreeSet;
use std::time::Duration;

use crate::coordinator::state::{Record, Slot, Stage, State};
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
mod tests;
