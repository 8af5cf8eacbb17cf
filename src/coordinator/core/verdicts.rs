//! What verifiers are asked, and what they say.

use super::{Effect, Report, Rounds};
use crate::coordinator::slots::{Slot, Stage};
use crate::coordinator::state::Record;
use crate::protocol::{Digest, Layer, Outcome, PublicKey, Seed, Signed, Verdict};
use crate::verifier::{AdmissionJob, Candidate, Job, StatisticsJob};

impl<R> Rounds<R> {
    pub(super) fn judge_admission(&mut self, index: u32) {
        let Some(slot) = self.state.slots.get(index) else { return };
        if let Stage::Submitted { worker, submission } = &slot.stage {
            let (task, worker, submission) = (slot.task.clone(), *worker, submission.clone());
            let base_loss = self.state.lineage.get(task.round.0 as usize).and_then(|base| base.loss);
            let job = AdmissionJob { task, worker, submission, base_loss };
            self.effects.push(Effect::Judge(Job::Admission(Box::new(job))));
        }
    }

    pub(super) fn judge_statistics(&mut self) {
        let candidate = |slot: &Slot, worker: &PublicKey, payload: &Digest, norm: &f32| {
            let order = slot.commitments.get(worker).map_or(u32::MAX, |(order, _)| *order);
            let (task, lateness, established) = (slot.task.clone(), slot.lateness, self.is_established(worker));
            (order, Candidate { task, lateness, worker: *worker, payload: *payload, norm: *norm, established })
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

    /// Whether as many results of `worker` as are always audited have passed, and none was rejected since. What waits for its
    /// audit does not count, or a new key would have a name before anybody has looked at its work.
    pub(super) fn is_established(&self, worker: &PublicKey) -> bool {
        let record = self.state.workers.get(worker);
        let passed = record.map_or(0, |record| record.clean.saturating_sub(record.owed));
        self.state.spec.audits.is_some_and(|audits| passed >= audits.policy.probation)
    }

    /// Where updates of the open round are compared: nobody who does not know the round's secret can tell.
    fn places(&self) -> Seed {
        let round = self.state.round;
        let secret = self.secrets.as_ref().and_then(|secrets| secrets.secret(round));
        secret.map_or(Seed::from_number(u64::from(round.0)), Seed::from_digest).derive("sketch", 0)
    }

    /// Verdicts of strangers, on other work than is in the slot, or of a layer that it has passed, change nothing.
    pub(super) fn verdict(&mut self, signed: &Signed) {
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
        let index = slot.place;
        match (&slot.stage, verdict.outcome) {
            (Stage::Submitted { .. }, Outcome::Accepted { layer: Layer::Admission, norm, .. }) => {
                self.record(Record::Admitted { index, norm });
            }
            (Stage::Admitted { .. }, Outcome::Accepted { layer, tokens, .. })
                if layer > Layer::Admission && tokens == slot.tokens() =>
            {
                self.judging = false;
                self.record(Record::Accepted { index, verdict: signed.clone() });
            }
            (Stage::Submitted { .. } | Stage::Admitted { .. }, Outcome::Rejected { layer, reason }) => {
                self.judging = false;
                self.last_rejection = Some(reason.clone());
                let report = Report::Rejected { round: self.state.round, worker: verdict.worker, layer, reason };
                self.effects.push(Effect::Report(report));
                self.record(Record::Rejected { index, verdict: signed.clone() });
            }
            _ => {}
        }
    }
}
