use std::collections::BTreeSet;
use std::time::Duration;

use crate::coordinator::audits::{Case, CaseId, Ending, Next, Opinion, Peer};
use crate::coordinator::slots::{Counts, Slot, Stage};
use crate::coordinator::state::{Record, State};
use crate::protocol::{
    Amount, Auditors, Commitment, Digest, EnvelopeError, Layer, Lease, Outcome, PublicKey, Reason, RefusalReason,
    Round, SecretChain, Seed, Signed, Submission, TaskId, Time, Verdict, WorkerReply, WorkerRequest, limits,
};
use crate::verifier::{AdmissionJob, Candidate, CopiesJob, Job, ReplayJob, StatisticsJob};

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
    /// The ledger has taken what false work costs.
    Forfeited {
        /// The name of what was found.
        finding: Digest,
        /// Who had done it.
        worker: PublicKey,
        /// Pay and stake that are gone.
        lost: Amount,
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
    /// Have the ledger take what false work costs.
    Forfeit {
        /// The verdict that found it.
        verdict: Signed,
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
        /// Which layer of verification found it.
        layer: Layer,
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
    /// An audit is over.
    Audited {
        /// The round that the work was for.
        round: Round,
        /// Who had done it.
        worker: PublicKey,
        /// How it ended.
        ending: Ending,
    },
    /// Verifiers found work to be false; its worker may appeal.
    Convicted {
        /// The round that the work was for.
        round: Round,
        /// Who had done it.
        worker: PublicKey,
        /// The task.
        task: TaskId,
    },
    /// The ledger has taken what false work costs.
    Forfeited {
        /// Who had done it.
        worker: PublicKey,
        /// Pay and stake that are gone.
        lost: Amount,
    },
    /// A verifier is not believed any more.
    StruckOff {
        /// Which.
        verifier: PublicKey,
    },
    /// Every round asked for is closed, paid and measured, and every audit is over.
    Finished,
}

/// The coordinator's core.
#[derive(Debug)]
pub struct Rounds<R> {
    state: State,
    verifiers: BTreeSet<PublicKey>,
    /// What decides who is audited.
    secrets: Option<SecretChain>,
    /// Audits of which something is new.
    stirred: BTreeSet<CaseId>,
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
    /// A coordinator in `state` that believes verdicts of `verifiers` and opens no round from `end` on. Without the
    /// `secrets` of a run that has audits, nobody is audited.
    #[must_use]
    pub fn new(state: State, verifiers: BTreeSet<PublicKey>, secrets: Option<SecretChain>, end: Option<Round>) -> Self {
        Self {
            state,
            verifiers,
            secrets,
            stirred: BTreeSet::new(),
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
            Event::Forfeited { finding, worker, lost } => {
                if self.state.forfeits.contains_key(&finding) {
                    self.record(Record::Forfeited { finding });
                    self.effects.push(Effect::Report(Report::Forfeited { worker, lost }));
                }
            }
            Event::Aggregated { round, model, momentum } => self.aggregated(now, round, model, momentum),
            Event::Evaluated { round, loss } => self.evaluated(round, loss),
            Event::RoundPaid { round, pays } => {
                if self.state.unpaid.contains_key(&round) {
                    self.record(Record::RoundPaid { round, pays });
                }
            }
            Event::FinishRound => {
                let idle = !self.state.closed && !self.state.slots.is_anything_held();
                let end = if idle { self.state.round } else { self.state.round.next() };
                self.end = Some(self.end.map_or(end, |planned| planned.min(end)));
            }
            Event::Wake => {
                self.wake_at = None;
                let due = |case: &Case| case.due(&self.state.spec) <= now;
                let due = self.state.cases.iter().filter(|(_, case)| due(case)).map(|(id, _)| *id);
                self.stirred.extend(due);
                if now >= self.asked + ASK_AGAIN {
                    self.ask_again();
                }
            }
        }
        self.audit(now);
        self.advance(now);
        self.serve_parked(now);
        self.plan_wake(now);
        self.report_finish();
        if cfg!(debug_assertions) {
            self.state.assert_invariants();
        }
        let mut effects = std::mem::take(&mut self.effects);
        if effects.iter().any(|effect| matches!(effect, Effect::Judge(_) | Effect::Pay { .. } | Effect::Forfeit { .. }))
        {
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
        for verdict in self.state.forfeits.values() {
            self.effects.push(Effect::Forfeit { verdict: verdict.clone() });
        }
        self.stirred = self.state.cases.keys().copied().collect();
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
        let settled = self.state.unpaid.is_empty() && self.state.cases.is_empty() && self.state.forfeits.is_empty();
        if !self.finished && self.finished_rounds() && !self.state.closed && settled && measured {
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
            WorkerRequest::Lease { .. } if self.is_banned(&worker) => {
                let open = |case: &&Case| case.worker == worker && case.convicted.is_some() && !case.appealed;
                let task = self.state.cases.values().find(open).map(|case| case.task.id());
                return self.reply(reply, WorkerReply::Refused { task, reason: RefusalReason::Banned });
            }
            WorkerRequest::Lease { .. } => return self.ask_for_work(now, worker, reply),
            WorkerRequest::Commit(commitment) => (commitment.task, self.commit(worker, commitment)),
            WorkerRequest::Submit(submission) => (submission.commitment.task, self.submit(worker, submission)),
            WorkerRequest::GiveBack(task) => (task, self.give_back(worker, task)),
            WorkerRequest::Heartbeat(task) => (task, self.heartbeat(now, worker, task)),
            WorkerRequest::Appeal(task) => (task, self.appeal(now, worker, task)),
        };
        let body = answer.unwrap_or_else(|reason| WorkerReply::Refused { task: Some(task), reason });
        self.reply(reply, body);
    }

    fn is_banned(&self, worker: &PublicKey) -> bool {
        self.state.workers.get(worker).is_some_and(|record| record.banned)
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
        if !over && !asked_again && !self.is_anything_free(now) {
            // They wait equally long, so whoever waits longest is first.
            while due && self.parked.first().is_some_and(|(.., until)| *until <= now) {
                let (_, reply, _) = self.parked.remove(0);
                self.reply(reply, WorkerReply::Wait { until: now });
            }
            return;
        }
        for (worker, reply, until) in std::mem::take(&mut self.parked) {
            if over && !self.may_be_asked(&worker) {
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
        let copies = self.state.asks_peers() && !self.state.cases.is_empty();
        copies || (!self.state.closed && self.state.slots.free(now).next().is_some())
    }

    fn holds(&self, now: Time, worker: &PublicKey) -> bool {
        let held = |slot: &Slot| slot.leases.get(worker).is_some_and(|deadline| *deadline > now);
        !self.state.closed && self.state.slots.held_by(worker).any(held)
    }

    /// The task that `worker` holds, or else the first that nobody does.
    fn lease(&mut self, now: Time, worker: PublicKey) -> Option<Lease> {
        let owed = self.state.workers.get(&worker).map_or(0, |record| record.owed);
        if owed >= limits::AUDITS_OWED_MAX || self.is_banned(&worker) {
            return None;
        }
        if let Some(lease) = self.lease_copy(now, worker) {
            return Some(lease);
        }
        if self.state.closed || self.finished_rounds() {
            return None;
        }
        let held = self.state.slots.held_by(&worker).find_map(|slot| {
            let deadline = slot.leases.get(&worker).filter(|deadline| slot.stage == Stage::Open && **deadline > now)?;
            Some(Lease { task: slot.task.clone(), deadline: *deadline })
        });
        if held.is_some() {
            return held;
        }
        let free = self.state.slots.free(now).find(|slot| !slot.shut_out.contains(&worker))?;
        let lease = Lease { task: free.task.clone(), deadline: now + self.state.spec.timing.lease };
        self.record(Record::Leased { index: lease.task.index, worker, deadline: lease.deadline });
        Some(lease)
    }

    /// The open round's task with this id, if `worker` was ever lent it and may still hand in a result.
    fn slot_of(&self, worker: PublicKey, task: TaskId) -> Result<&Slot, RefusalReason> {
        if self.is_banned(&worker) {
            return Err(RefusalReason::Banned);
        }
        if self.state.closed {
            return Err(RefusalReason::TaskNotOpen);
        }
        let slot = self.state.slots.of_task(&task).ok_or(RefusalReason::TaskNotOpen)?;
        if slot.shut_out.contains(&worker) {
            Err(RefusalReason::RejectedBefore)
        } else if slot.leases.contains_key(&worker) {
            Ok(slot)
        } else {
            Err(RefusalReason::NotYourTask)
        }
    }

    fn commit(&mut self, worker: PublicKey, commitment: Commitment) -> Result<WorkerReply, RefusalReason> {
        if let Some((case, peer)) = self.copy_of(worker, commitment.task)? {
            match peer.commitment {
                Some(earlier) if earlier != commitment => return Err(RefusalReason::CommitmentDiffers),
                Some(_) => {}
                None => self.record(Record::PeerCommitted { case, worker, commitment }),
            }
            return Ok(WorkerReply::Committed(commitment.task));
        }
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
        if let Some((case, peer)) = self.copy_of(worker, task)? {
            match peer.commitment {
                None => return Err(RefusalReason::CommitmentMissing),
                Some(earlier) if earlier != submission.commitment => return Err(RefusalReason::CommitmentDiffers),
                Some(_) => {}
            }
            if !peer.handed_in {
                self.record(Record::PeerSubmitted { case, worker });
                self.judge_copies(case);
            }
            return Ok(WorkerReply::Received(task));
        }
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
                self.judge_admission(index);
            }
        }
        Ok(WorkerReply::Received(task))
    }

    /// Renews a lease that nobody else has taken over. Whoever is at something that is over hears it.
    fn heartbeat(&mut self, now: Time, worker: PublicKey, task: TaskId) -> Result<WorkerReply, RefusalReason> {
        let deadline = now + self.state.spec.timing.lease;
        if let Some((case, peer)) = self.copy_of(worker, task)? {
            if peer.commitment.is_none() {
                self.record(Record::PeerLeased { case, worker, deadline });
            }
            return Ok(WorkerReply::Received(task));
        }
        let slot = self.slot_of(worker, task)?;
        if slot.stage != Stage::Open {
            return Err(RefusalReason::AlreadySubmitted);
        }
        let others = slot.leases.iter().any(|(other, deadline)| *other != worker && *deadline > now);
        if !others {
            let index = slot.task.index;
            self.record(Record::Leased { index, worker, deadline });
        }
        Ok(WorkerReply::Received(task))
    }

    fn give_back(&mut self, worker: PublicKey, task: TaskId) -> Result<WorkerReply, RefusalReason> {
        if let Some((case, peer)) = self.copy_of(worker, task)? {
            if !peer.handed_in {
                self.record(Record::PeerGone { case, worker });
            }
            return Ok(WorkerReply::Received(task));
        }
        let slot = self.slot_of(worker, task)?;
        if slot.stage.worker() != Some(worker) {
            let index = slot.task.index;
            self.record(Record::GivenBack { index, worker });
        }
        Ok(WorkerReply::Received(task))
    }

    // --- verdicts -------------------------------------------------------------------------------------------------

    fn judge_admission(&mut self, index: u32) {
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
            places: self.places(),
        }))));
    }

    /// Where updates of the open round are compared: nobody who does not know the round's secret can tell.
    fn places(&self) -> Seed {
        let round = self.state.round;
        let secret = self.secrets.as_ref().and_then(|secrets| secrets.secret(round));
        secret.map_or(Seed::from_number(u64::from(round.0)), Seed::from_digest).derive("sketch", 0)
    }

    /// Verdicts of strangers, on other work than is in the slot, or of a layer that it has passed, change nothing.
    fn verdict(&mut self, signed: &Signed) {
        let Ok((verifier, verdict)) = signed.open::<Verdict>() else { return };
        if !self.believed().contains(&verifier) {
            return;
        }
        if let Outcome::Accepted { layer: Layer::Replay, .. } | Outcome::Rejected { layer: Layer::Replay, .. } =
            verdict.outcome
        {
            return self.opinion(verifier, &verdict, signed);
        }
        if let Ok(Some((case, peer))) = self.copy_of(verdict.worker, verdict.task)
            && peer.handed_in
            && peer.commitment.is_some_and(|commitment| commitment.payload == verdict.payload)
        {
            self.stirred.insert(case);
            return self.record(Record::PeerGone { case, worker: verdict.worker });
        }
        if self.state.closed {
            return;
        }
        let Some(slot) = self.state.slots.of_task(&verdict.task) else { return };
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
            (Stage::Submitted { .. } | Stage::Admitted { .. }, Outcome::Rejected { layer, reason }) => {
                self.judging = false;
                let report = Report::Rejected { round: self.state.round, worker: verdict.worker, layer, reason };
                self.effects.push(Effect::Report(report));
                self.record(Record::Rejected { index, verdict: signed.clone() });
            }
            _ => {}
        }
    }

    // --- audits ---------------------------------------------------------------------------------------------------

    /// The verifiers that were not found to lie.
    fn believed(&self) -> BTreeSet<PublicKey> {
        let struck_off =
            |verifier: &&PublicKey| self.state.verifiers.get(verifier).is_some_and(|record| record.struck_off);
        self.verifiers.iter().filter(|verifier| !struck_off(verifier)).copied().collect()
    }

    /// A task to do again, for a worker that has no part in it.
    fn lease_copy(&mut self, now: Time, worker: PublicKey) -> Option<Lease> {
        let spec = &self.state.spec;
        spec.audits.filter(|audits| audits.by == Auditors::Peers)?;
        let held = self.state.cases.values().find_map(|case| {
            let peer = case.peers.get(&worker).filter(|peer| peer.deadline > now && !peer.handed_in)?;
            Some(Lease { task: case.task.clone(), deadline: peer.deadline })
        });
        if held.is_some() {
            return held;
        }
        let (id, case) = self.state.cases.iter().find(|(_, case)| case.takes(spec, &worker, now))?;
        let (case, lease) = (*id, Lease { task: case.task.clone(), deadline: now + spec.timing.lease });
        self.record(Record::PeerLeased { case, worker, deadline: lease.deadline });
        Some(lease)
    }

    /// Whether `worker` may yet be wanted to do a task again.
    fn may_be_asked(&self, worker: &PublicKey) -> bool {
        let another =
            |case: &Case| case.worker != *worker && !case.peers.get(worker).is_some_and(|peer| peer.handed_in);
        self.state.asks_peers() && !self.is_banned(worker) && self.state.cases.values().any(another)
    }

    /// The case that `worker` was lent this task for as a copy, if it was.
    fn copy_of(&self, worker: PublicKey, task: TaskId) -> Result<Option<(CaseId, Peer)>, RefusalReason> {
        if self.is_banned(&worker) {
            return Err(RefusalReason::Banned);
        }
        let of_task = |id: &CaseId| id.0 == task;
        let mut cases = self.state.cases.iter().filter(|(id, _)| of_task(id));
        Ok(cases.find_map(|(id, case)| Some((*id, *case.peers.get(&worker)?))))
    }

    /// Has everything compared that peers have handed in and nobody has judged.
    fn judge_copies(&mut self, id: CaseId) {
        let Some(case) = self.state.cases.get(&id) else { return };
        let got = |opinion: &Opinion| Some((opinion.verifier, case.peers.get(&opinion.verifier)?.commitment?.payload));
        let against: Vec<_> = case.opinions.iter().filter(|opinion| !opinion.clean).filter_map(got).collect();
        for (peer, copy) in &case.peers {
            let judged = case.opinions.iter().any(|opinion| opinion.verifier == *peer);
            if let Some(commitment) = copy.commitment.filter(|_| copy.handed_in && !judged) {
                let (task, copy) = (case.task.clone(), commitment.payload);
                let (worker, payload, against) = (case.worker, case.payload, against.clone());
                let job = CopiesJob { task, worker, payload, peer: *peer, copy, against };
                self.effects.push(Effect::Judge(Job::Copies(Box::new(job))));
            }
        }
    }

    /// What a verifier says that has computed a task again, if it is its turn.
    fn opinion(&mut self, verifier: PublicKey, verdict: &Verdict, signed: &Signed) {
        let id = (verdict.task, verdict.payload);
        let Some(case) = self.state.cases.get(&id) else { return };
        let asked = match verdict.by {
            None => case.others(&self.believed()).is_some_and(|spoken| !spoken.contains(&verifier)),
            Some(peer) => {
                let judged = case.opinions.iter().any(|opinion| opinion.verifier == peer);
                case.peers.get(&peer).is_some_and(|peer| peer.handed_in) && !judged
            }
        };
        if asked && case.worker == verdict.worker && case.task.tokens() == verdict.work {
            self.record(Record::Opinion { verdict: signed.clone() });
            self.stirred.insert(id);
        }
    }

    /// Whoever was found to have handed in false work has one appeal, to a verifier that has not judged it.
    fn appeal(&mut self, now: Time, worker: PublicKey, task: TaskId) -> Result<WorkerReply, RefusalReason> {
        let convicted = self
            .state
            .cases
            .iter()
            .find(|((id, _), case)| *id == task && case.worker == worker && case.convicted.is_some());
        let (id, case) = convicted.ok_or(RefusalReason::NothingToAppeal)?;
        let id = *id;
        if !case.appealed {
            let spoken = |verifier: &PublicKey| case.opinions.iter().any(|opinion| opinion.verifier == *verifier);
            if !self.state.asks_peers() && self.believed().iter().all(spoken) {
                return Err(RefusalReason::NobodyToAppealTo);
            }
            self.record(Record::Appealed { case: id, at: now });
            self.stirred.insert(id);
        }
        Ok(WorkerReply::Received(task))
    }

    /// Moves audits on as far as they go.
    fn audit(&mut self, now: Time) {
        while let Some(id) = self.stirred.pop_first() {
            let verifiers = self.believed();
            let Some(case) = self.state.cases.get(&id) else { continue };
            match case.next(&self.state.spec, &verifiers, now) {
                Next::Ask { .. } if self.state.asks_peers() => self.judge_copies(id),
                Next::Ask { not } => {
                    let job = ReplayJob { task: case.task.clone(), worker: case.worker, payload: case.payload, not };
                    self.effects.push(Effect::Judge(Job::Replay(Box::new(job))));
                }
                Next::Convict => {
                    let (round, worker) = (case.task.round, case.worker);
                    self.effects.push(Effect::Report(Report::Convicted { round, worker, task: id.0 }));
                    self.judging = false;
                    self.record(Record::Convicted { case: id, at: now });
                }
                Next::End(ending) => self.end_audit(id, ending),
                Next::Wait => {}
            }
        }
    }

    fn end_audit(&mut self, id: CaseId, ending: Ending) {
        let Some(case) = self.state.cases.get(&id) else { return };
        let (round, worker, planted) = (case.task.round, case.worker, case.planted);
        let copies = case.peers.values().filter_map(|peer| peer.commitment.map(|commitment| commitment.payload));
        let blobs: Vec<Digest> = copies.chain([case.payload, case.task.base]).collect();
        let believed = self.believed();
        self.record(Record::AuditEnded { case: id, ending });
        if !planted {
            self.effects.push(Effect::Report(Report::Audited { round, worker, ending }));
        }
        let still = self.believed();
        for verifier in believed.into_iter().filter(|verifier| !still.contains(verifier)) {
            self.effects.push(Effect::Report(Report::StruckOff { verifier }));
            // Others have to judge what it has judged.
            self.stirred = self.state.cases.keys().copied().collect();
        }
        if ending == Ending::False
            && let Some(verdict) = self.state.forfeits.values().last()
        {
            self.effects.push(Effect::Forfeit { verdict: verdict.clone() });
        }
        self.forget(blobs);
    }

    /// Gives up those of these blobs that nothing needs any more.
    fn forget(&mut self, mut blobs: Vec<Digest>) {
        let needed = self.state.blobs();
        blobs.retain(|blob| !needed.contains(blob));
        if !blobs.is_empty() {
            self.effects.push(Effect::Forget(blobs));
        }
    }

    // --- rounds ---------------------------------------------------------------------------------------------------

    fn deadline(&self) -> Time {
        self.state.opened + self.state.spec.timing.round
    }

    /// Moves the open round on as far as it goes: compare what is admitted, close, or wait on.
    fn advance(&mut self, now: Time) {
        // The cheapest first: this runs for every event, and nearly always something is still being judged.
        let Counts { open, submitted, admitted, accepted } = self.state.slots.counts();
        if self.state.closed || self.judging || submitted > 0 {
            return;
        }
        let due = now >= self.deadline();
        let enough = accepted + admitted >= self.state.spec.quorum();
        if admitted > 0 && (open == 0 || (due && enough)) {
            self.judge_statistics();
        } else if admitted == 0 && (open == 0 || (due && enough)) {
            self.close(now);
        } else if due {
            self.record(Record::Extended { at: now });
        }
    }

    fn close(&mut self, now: Time) {
        let round = self.state.round;
        let secret = self.secrets.as_ref().and_then(|secrets| secrets.secret(round));
        // One verifier can only be that of the coordinator itself, or is all there is.
        let test = self.believed().len() > 1 && !self.state.asks_peers();
        self.record(Record::RoundClosed { at: now, secret, test });
        let new = self.state.cases.iter().filter(|(_, case)| case.task.round == round).map(|(id, _)| *id);
        self.stirred.extend(new);
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
        forget.extend(self.state.momentum);
        self.judging = false;
        self.record(Record::RoundOpened { round: round.next(), base: model, momentum, at: now });
        let kept = limits::MODELS_KEPT as usize;
        let old = self.state.lineage.len().checked_sub(kept + 1).and_then(|old| self.state.lineage.get(old));
        forget.extend(old.map(|old| old.digest));
        self.effects.push(Effect::Evaluate { round: round.next(), model });
        self.forget(forget);
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
        let leases = self.state.slots.next_expiry(now).into_iter();
        // Once it is past, a verdict is waited for, or the next deadline.
        let round = (!self.state.closed && !self.finished_rounds()).then(|| self.deadline());
        let round = round.filter(|deadline| *deadline > now);
        let parked = self.parked.iter().map(|(.., until)| *until);
        let submitted = self.state.slots.counts().submitted > 0;
        let audits = !self.state.cases.is_empty() || !self.state.forfeits.is_empty();
        let owed = self.judging || audits || !self.state.unpaid.is_empty() || submitted;
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
