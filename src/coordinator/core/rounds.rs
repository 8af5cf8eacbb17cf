//! How a round closes and the next one opens.

use super::{Effect, Report, Rounds, STUCK_AFTER};
use crate::coordinator::slots::{Counts, Slot, Stage};
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
        // Nobody waits for what is late; what is there by now counts.
        let late = self.state.slots.late();
        if self.state.closed || self.judging || submitted + late.submitted > 0 {
            return;
        }
        let due = now >= self.deadline();
        let enough = accepted + admitted >= self.state.spec.quorum();
        let ready = open == 0 || (due && enough);
        if ready && admitted + late.admitted > 0 {
            self.judge_statistics();
        } else if ready {
            self.close(now);
        } else if due {
            self.record(Record::Extended { at: now });
        }
    }

    /// Does not wait for what nobody will do: where those who ask for work were all shut out of every task that is left, the
    /// round closes with a quorum, and without one its owner is told, once until something changes. At the deadline all may
    /// try again.
    pub(super) fn despair(&mut self, now: Time) {
        if self.judging {
            return;
        }
        if !self.is_stuck(now) {
            self.stuck = None;
            return;
        }
        let (since, told) = *self.stuck.get_or_insert((now, false));
        if told || now < since + STUCK_AFTER {
            return;
        }
        let Counts { open, admitted, accepted, .. } = self.state.slots.counts();
        if accepted + admitted < self.state.spec.quorum() {
            self.stuck = Some((since, true));
            let (round, tasks) = (self.state.round, open as u32);
            self.effects.push(Effect::Report(Report::Stuck { round, tasks, reason: self.last_rejection.clone() }));
        } else if admitted + self.state.slots.late().admitted > 0 {
            self.judge_statistics();
        } else {
            self.close(now);
        }
    }

    /// Whether everything that is left was rejected or given back before, nobody is at it, and nobody who asks for work may
    /// have it.
    fn is_stuck(&self, now: Time) -> bool {
        let Counts { open, submitted, .. } = self.state.slots.counts();
        // Whoever has brought a late result was told that it is there.
        let submitted = submitted + self.state.slots.late().submitted;
        if self.state.closed || open == 0 || submitted > 0 || self.finished_rounds() {
            return false;
        }
        let shut = |slot: &Slot| {
            !slot.shut_out.is_empty() && self.parked.iter().all(|parked| slot.shut_out.contains(&parked.worker))
        };
        // The first is nearly always open to somebody.
        self.state.slots.free(now).all(shut) && self.state.slots.free(now).count() == open
    }

    fn close(&mut self, now: Time) {
        let round = self.state.round;
        let secret = self.secrets.as_ref().and_then(|secrets| secrets.secret(round));
        // One verifier can only be that of the coordinator itself, or is all there is.
        let test = self.believed().len() > 1 && !self.state.asks_peers();
        self.record(Record::RoundClosed { at: now, secret, test });
        let new = self.state.cases.iter().filter(|(_, case)| case.round == round).map(|(id, _)| *id);
        self.stirred.extend(new);
        let verdicts = self.state.unpaid.get(&round).cloned().unwrap_or_default();
        // Not the verdicts: replays are paid with the round, but are none of its work.
        let late = self.state.slots.late().accepted as u32;
        let accepted = self.state.slots.counts().accepted as u32 + late;
        let tokens = self.state.accepted_tokens();
        self.effects.push(Effect::Report(Report::RoundClosed { round, accepted, late, tokens }));
        self.effects.push(Effect::Pay { round, verdicts });
        self.aggregate();
    }

    pub(super) fn aggregate(&mut self) {
        let Some(base) = self.state.lineage.last() else { return };
        let updates = self.state.slots.iter().filter_map(|slot| match &slot.stage {
            Stage::Accepted { payload, .. } => Some((*payload, slot.tokens())),
            _ => None,
        });
        self.effects.push(Effect::Aggregate {
            round: self.state.round,
            base: base.digest,
            momentum: self.state.momentum,
            updates: updates.collect(),
        });
    }

    pub(super) fn aggregated(
        &mut self,
        now: Time,
        round: Round,
        model: Digest,
        momentum: Option<Digest>,
        left_out: Vec<Digest>,
    ) {
        if round != self.state.round || !self.state.closed {
            return;
        }
        let left_out = left_out.into_iter().map(|payload| Effect::Report(Report::LeftOut { round, payload }));
        self.effects.extend(left_out);
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
