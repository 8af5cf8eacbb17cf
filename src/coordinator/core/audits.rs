//! Accepted work that is computed again.

use std::collections::BTreeSet;

use super::{Effect, Report, Rounds};
use crate::coordinator::audits::{Case, CaseId, Ending, Next, Opinion, Peer};
use crate::coordinator::state::Record;
use crate::protocol::{Auditors, Digest, Lease, PublicKey, RefusalReason, Signed, TaskId, Time, Verdict, WorkerReply};
use crate::verifier::{CopiesJob, Job, ReplayJob};

impl<R> Rounds<R> {
    /// The verifiers that were not found to lie.
    pub(super) fn believed(&self) -> BTreeSet<PublicKey> {
        let struck_off =
            |verifier: &&PublicKey| self.state.verifiers.get(verifier).is_some_and(|record| record.struck_off);
        self.verifiers.iter().filter(|verifier| !struck_off(verifier)).copied().collect()
    }

    /// A task to do again, for a worker that has no part in it.
    pub(super) fn lease_copy(&mut self, now: Time, worker: PublicKey) -> Option<Lease> {
        let spec = &self.state.spec;
        spec.audits.filter(|audits| audits.by == Auditors::Peers)?;
        let held = self.state.cases.values().find_map(|case| {
            let peer = case.peers.get(&worker).filter(|peer| peer.deadline > now && !peer.handed_in)?;
            Some(Lease { task: case.task.clone(), deadline: peer.deadline })
        });
        if held.is_some() {
            return held;
        }
        let clean = self.state.workers.get(&worker).map_or(0, |record| record.clean);
        let (id, case) = self.state.cases.iter().find(|(_, case)| case.may_take(spec, &worker, clean, now))?;
        let (case, lease) = (*id, Lease { task: case.task.clone(), deadline: now + spec.timing.lease });
        self.record(Record::PeerLeased { case, worker, deadline: lease.deadline });
        Some(lease)
    }

    /// Whether `worker` may yet be wanted to do a task again.
    pub(super) fn may_be_asked(&self, worker: &PublicKey) -> bool {
        let another =
            |case: &Case| case.worker != *worker && !case.peers.get(worker).is_some_and(|peer| peer.handed_in);
        self.state.asks_peers() && !self.is_banned(worker) && self.state.cases.values().any(another)
    }

    /// The case that `worker` was lent this task for as a copy, if it was.
    pub(super) fn copy_of(&self, worker: PublicKey, task: TaskId) -> Result<Option<(CaseId, Peer)>, RefusalReason> {
        if self.is_banned(&worker) {
            return Err(RefusalReason::Banned);
        }
        let of_task = |id: &CaseId| id.0 == task;
        let mut cases = self.state.cases.iter().filter(|(id, _)| of_task(id));
        Ok(cases.find_map(|(id, case)| Some((*id, *case.peers.get(&worker)?))))
    }

    /// Has everything compared that peers have handed in and nobody has judged.
    pub(super) fn judge_copies(&mut self, id: CaseId) {
        let Some(case) = self.state.cases.get(&id) else { return };
        let got = |opinion: &Opinion| {
            let made = case.peers.get(&opinion.verifier)?.commitment?;
            Some((opinion.verifier, made.payload, made.device))
        };
        let against: Vec<_> = case.opinions.iter().filter(|opinion| !opinion.clean).filter_map(got).collect();
        for (peer, copy) in &case.peers {
            let judged = case.opinions.iter().any(|opinion| opinion.verifier == *peer);
            if let Some(commitment) = copy.commitment.filter(|_| copy.handed_in && !judged) {
                let (task, copy) = (case.task.clone(), (commitment.payload, commitment.device));
                let (worker, payload, device) = (case.worker, case.payload, case.trail.device);
                let job = CopiesJob { task, worker, payload, device, peer: *peer, copy, against: against.clone() };
                self.effects.push(Effect::Judge(Job::Copies(Box::new(job))));
            }
        }
    }

    /// What a verifier says that has computed a task again, if it is its turn.
    pub(super) fn opinion(&mut self, verifier: PublicKey, verdict: &Verdict, signed: &Signed) {
        let id = (verdict.task, verdict.payload);
        let Some(case) = self.state.cases.get(&id) else { return };
        let asked = match verdict.by {
            // One that is sent again because its answer was lost is still one.
            None => {
                let heard = |opinion: &Opinion| (opinion.verifier, opinion.turn) == (verifier, verdict.turn);
                let others = case.others(&self.believed());
                others.is_some_and(|spoken| !spoken.contains(&verifier)) && !case.opinions.iter().any(heard)
            }
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
    pub(super) fn appeal(&mut self, now: Time, worker: PublicKey, task: TaskId) -> Result<WorkerReply, RefusalReason> {
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
    pub(super) fn audit(&mut self, now: Time) {
        while let Some(id) = self.stirred.pop_first() {
            let verifiers = self.believed();
            let Some(case) = self.state.cases.get(&id) else { continue };
            match case.next(&self.state.spec, &verifiers, now) {
                Next::Ask { .. } if self.state.asks_peers() => self.judge_copies(id),
                Next::Ask { not } => {
                    let (task, trail) = (case.task.clone(), case.trail.clone());
                    let turn = u32::try_from(case.opinions.len()).unwrap_or(u32::MAX);
                    let job = ReplayJob { task, worker: case.worker, payload: case.payload, trail, not, turn };
                    self.effects.push(Effect::Judge(Job::Replay(Box::new(job))));
                }
                Next::Convict => {
                    let (round, worker) = (case.round, case.worker);
                    self.effects.push(Effect::Report(Report::Convicted { round, worker, task: id.0 }));
                    self.judging = false;
                    self.record(Record::Convicted { case: id, worker, at: now });
                }
                Next::End(ending) => self.end_audit(id, ending),
                Next::Wait => {}
            }
        }
    }

    fn end_audit(&mut self, id: CaseId, ending: Ending) {
        let Some(case) = self.state.cases.get(&id) else { return };
        let (round, worker, planted) = (case.round, case.worker, case.planted);
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
    pub(super) fn forget(&mut self, mut blobs: Vec<Digest>) {
        let needed = self.state.blobs();
        blobs.retain(|blob| !needed.contains(blob));
        if !blobs.is_empty() {
            self.effects.push(Effect::Forget(blobs));
        }
    }
}
