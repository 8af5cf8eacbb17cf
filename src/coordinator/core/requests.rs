//! What workers ask for.

use super::{LONG_POLL, Parked, Rounds, STUCK_AFTER};
use crate::coordinator::audits::Case;
use crate::coordinator::slots::{Slot, Stage};
use crate::coordinator::state::{Record, WorkerRecord};
use crate::protocol::{
    Commitment, EnvelopeError, Lease, PublicKey, RefusalReason, Signed, Submission, TaskId, Time, WorkerReply,
    WorkerRequest, limits,
};

impl<R> Rounds<R> {
    pub(super) fn request(&mut self, now: Time, request: &Signed, reply: R) {
        let reason = match request.open::<WorkerRequest>() {
            Ok((worker, request)) => return self.checked(now, worker, request, reply),
            Err(EnvelopeError::Signature) => RefusalReason::Signature,
            Err(EnvelopeError::Wire(_)) => RefusalReason::Malformed,
        };
        self.reply(reply, WorkerReply::Refused { task: None, reason });
    }

    pub(super) fn checked(&mut self, now: Time, worker: PublicKey, request: WorkerRequest, reply: R) {
        if let Some(task) = request.task()
            && self.waits_for_next_round(&worker, &task)
        {
            return self.reply(reply, WorkerReply::Wait);
        }
        let (task, answer) = match request {
            WorkerRequest::Lease { .. } if self.is_banned(&worker) => {
                let open = |case: &&Case| case.worker == worker && case.convicted.is_some() && !case.appealed;
                let task = self.state.cases.values().find(open).map(|case| case.task.id());
                return self.reply(reply, WorkerReply::Refused { task, reason: RefusalReason::Banned });
            }
            WorkerRequest::Lease { tokens_per_second } => {
                let until = now + LONG_POLL;
                return self.ask_for_work(Parked { worker, tokens_per_second, reply, until });
            }
            WorkerRequest::Commit(commitment) => (commitment.task, self.commit(worker, commitment)),
            WorkerRequest::Submit(submission) => (submission.commitment.task, self.submit(worker, submission)),
            WorkerRequest::GiveBack(task) => (task, self.give_back(worker, task)),
            WorkerRequest::Heartbeat(task) => (task, self.heartbeat(now, worker, task)),
            WorkerRequest::Appeal(task) => (task, self.appeal(now, worker, task)),
        };
        let body = answer.unwrap_or_else(|reason| WorkerReply::Refused { task: Some(task), reason });
        self.reply(reply, body);
    }

    pub(super) fn is_banned(&self, worker: &PublicKey) -> bool {
        self.state.workers.get(worker).is_some_and(|record| record.banned)
    }

    fn ask_for_work(&mut self, asked: Parked<R>) {
        if self.state.workers.len() >= limits::WORKERS_MAX && !self.state.workers.contains_key(&asked.worker) {
            let reason = RefusalReason::TooManyWorkers;
            return self.reply(asked.reply, WorkerReply::Refused { task: None, reason });
        }
        // One request a worker is held: a newer one replaces it, whoever asked first has gone away.
        if let Some(place) = self.parked.iter().position(|parked| parked.worker == asked.worker) {
            let older = self.parked.remove(place);
            self.reply(older.reply, WorkerReply::Wait);
        }
        self.parked.push(asked);
    }

    pub(super) fn serve_parked(&mut self, now: Time) {
        let slots = &self.state.slots;
        let idle = !self.state.closed && slots.counts().open > 0 && slots.next_expiry(now).is_none();
        self.idle = idle.then(|| self.idle.unwrap_or(now));
        // With thousands of workers waiting, nearly every event finds nothing for any of them. The newest may have asked
        // again for what it holds already.
        let over = self.finished_rounds() && !self.state.closed;
        let is_due = |parked: &Parked<R>| parked.until <= now;
        let asked_again = self.parked.last().is_some_and(|parked| self.holds(now, &parked.worker));
        if !over && !asked_again && !self.is_anything_free(now) {
            // They wait equally long, so whoever waits longest is first.
            let over = self.parked.iter().take_while(|parked| is_due(parked)).count();
            let replies: Vec<R> = self.parked.drain(..over).map(|parked| parked.reply).collect();
            replies.into_iter().for_each(|reply| self.reply(reply, WorkerReply::Wait));
            return;
        }
        for parked in std::mem::take(&mut self.parked) {
            if over && !self.may_be_asked(&parked.worker) {
                self.reply(parked.reply, WorkerReply::Finished);
            } else if let Some(lease) = self.lease(now, parked.worker, parked.tokens_per_second) {
                self.reply(parked.reply, WorkerReply::Leased(Box::new(lease)));
            } else if is_due(&parked) {
                self.reply(parked.reply, WorkerReply::Wait);
            } else {
                self.parked.push(parked);
            }
        }
    }

    fn is_anything_free(&self, now: Time) -> bool {
        let copies = self.state.asks_peers() && !self.state.cases.is_empty();
        copies || (!self.state.closed && self.state.slots.free(now).next().is_some())
    }

    pub(super) fn holds(&self, now: Time, worker: &PublicKey) -> bool {
        let held = |slot: &Slot| slot.leases.get(worker).is_some_and(|deadline| *deadline > now);
        !self.state.closed && self.state.slots.under_way(worker).any(held)
    }

    /// The task that `worker` holds, or else the first of a size that suits it that nobody does, or else the first of
    /// another.
    pub(super) fn lease(&mut self, now: Time, worker: PublicKey, tokens_per_second: u32) -> Option<Lease> {
        let record = self.state.workers.get(&worker).copied().unwrap_or_default();
        if record.owed >= limits::AUDITS_OWED_MAX || record.banned {
            return None;
        }
        if let Some(lease) = self.lease_copy(now, worker) {
            return Some(lease);
        }
        if self.state.closed || self.finished_rounds() {
            return None;
        }
        let held = self.state.slots.under_way(&worker).find_map(|slot| {
            let deadline = slot.leases.get(&worker).filter(|deadline| **deadline > now)?;
            Some(Lease { task: slot.task.clone(), deadline: *deadline })
        });
        if held.is_some() {
            return held;
        }
        let waited = self.idle.is_some_and(|since| now >= since + STUCK_AFTER);
        if self.has_enough(&worker, &record) && !waited {
            return None;
        }
        let spec = &self.state.spec;
        let short = spec.is_for_short_tasks(tokens_per_second);
        let suits = |slot: &&Slot| (slot.task.inner_steps < spec.inner_steps) == short;
        let may = |slot: &&Slot| {
            let until = slot.held_until(&worker, spec.timing.lease);
            !slot.shut_out.contains(&worker) && until.is_none_or(|until| now + spec.timing.lease <= until)
        };
        let free = || self.state.slots.free(now).filter(may);
        let fitting = if spec.short.is_some() { free().find(suits) } else { None };
        let free = fitting.or_else(|| free().next())?;
        let lease = Lease { task: free.task.clone(), deadline: now + self.state.spec.timing.lease };
        let index = free.place;
        self.record(Record::Leased { index, worker, deadline: lease.deadline });
        Some(lease)
    }

    /// Whether `worker`, whose every result is audited, was lent so much in the open round that it would be owed as many
    /// audits as it may be: its results are drawn only when the round closes, and until then it could hand in a whole round
    /// of false ones. Where it does not come to that because nobody else is at the rest either, it may have more.
    fn has_enough(&self, worker: &PublicKey, record: &WorkerRecord) -> bool {
        let probation = self.state.spec.audits.map_or(0, |audits| audits.policy.probation);
        let counts = |slot: &&Slot| slot.stage.worker().is_none_or(|by| by == *worker);
        let lent = || self.state.slots.held_by(worker).filter(counts).count();
        record.clean < probation && record.owed as usize + lent() >= limits::AUDITS_OWED_MAX as usize
    }

    /// Whether a round has just closed and what `worker` wants to say is about a task of it, or of an earlier one, that its
    /// result may still come for: it can, as soon as the next round is open.
    fn waits_for_next_round(&self, worker: &PublicKey, task: &TaskId) -> bool {
        let held = |slot: &Slot| slot.stays() && slot.leases.contains_key(worker);
        let last = self.end.is_some_and(|end| self.state.round.next() >= end);
        self.state.closed && !last && self.state.slots.of_task(task).is_some_and(held)
    }

    /// The task with this id of the open round, or of an earlier one whose results still count, if `worker` was ever lent it and may still hand in a result.
    fn slot_of(&self, worker: PublicKey, task: TaskId) -> Result<&Slot, RefusalReason> {
        if self.is_banned(&worker) {
            return Err(RefusalReason::Banned);
        }
        let over =
            if self.state.done.contains_key(&task) { RefusalReason::TaskDone } else { RefusalReason::TaskNotOpen };
        if self.state.closed {
            return Err(over);
        }
        let slot = self.state.slots.of_task(&task).ok_or(over)?;
        if slot.is_late() && self.finished_rounds() {
            // There is no round that it could count in.
            return Err(over);
        }
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
                let index = slot.place;
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
                let index = slot.place;
                self.record(Record::Submitted { index, worker, submission });
                self.judge_admission(index);
            }
        }
        Ok(WorkerReply::Received(task))
    }

    /// Renews a lease that nobody else has taken over, but not for ever, and not while the worker has another task: what is
    /// never handed in must come to others. Whoever is at something that is over hears it.
    fn heartbeat(&mut self, now: Time, worker: PublicKey, task: TaskId) -> Result<WorkerReply, RefusalReason> {
        let lease = self.state.spec.timing.lease;
        if let Some((case, peer)) = self.copy_of(worker, task)? {
            let deadline = (now + lease).min(peer.since + lease * limits::LEASES_HELD_MAX);
            if peer.commitment.is_none() && deadline > now.max(peer.deadline) {
                self.record(Record::PeerLeased { case, worker, deadline });
            }
            return Ok(WorkerReply::Received(task));
        }
        let slot = self.slot_of(worker, task)?;
        if slot.stage != Stage::Open {
            return Err(RefusalReason::AlreadySubmitted);
        }
        let others = slot.leases.iter().any(|(other, deadline)| *other != worker && *deadline > now);
        let holds = |slot: &Slot| slot.leases.get(&worker).copied().filter(|deadline| *deadline > now);
        let elsewhere =
            self.state.slots.under_way(&worker).any(|other| other.place != slot.place && holds(other).is_some());
        let deadline = (now + lease).min(slot.held_until(&worker, lease).unwrap_or(now + lease));
        if !others && !elsewhere && deadline > holds(slot).unwrap_or(now) {
            let index = slot.place;
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
            let index = slot.place;
            self.record(Record::GivenBack { index, worker });
        }
        Ok(WorkerReply::Received(task))
    }
}
