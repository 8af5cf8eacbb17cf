//! How a round closes and the next one opens.

use super::{Effect, Report, Rounds};
use crate::coordinator::slots::{Counts, Stage};
use crate::coordinator::state::Record;
use crate::protocol::{Digest, Round, Time, limits};

impl<R> Rounds<R> {
    pub(super) fn deadline(&self) -> Time {
        self.state.opened + self.state.spec.timing.round
    }

    /// Moves the open round on as far as it goes: compare what is admitted, close, or wait on.
    pub(super) fn advance(&mut self, now: Time) {
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

    pub(super) fn aggregate(&mut self) {
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

    pub(super) fn aggregated(&mut self, now: Time, round: Round, model: Digest, momentum: Option<Digest>) {
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

    pub(super) fn evaluated(&mut self, round: Round, loss: f64) {
        let Some(model) = self.state.lineage.get(round.0 as usize) else { return };
        if model.loss.is_none() {
            let report = Report::Evaluated { round, loss, tokens: model.tokens };
            self.record(Record::Evaluated { round, loss });
            self.effects.push(Effect::Report(report));
        }
    }
}
