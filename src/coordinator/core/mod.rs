mod audits;
mod event;
mod requests;
mod rounds;
mod verdicts;

pub use event::{Effect, Event, Report};

use std::collections::BTreeSet;
use std::time::Duration;

use crate::coordinator::audits::{Case, CaseId};
use crate::coordinator::state::{Record, State};
use crate::protocol::{PublicKey, Reason, Round, SecretChain, Time, WorkerReply, limits};

/// How long a request for work is held open before the worker is told to ask again.
const LONG_POLL: Duration = Duration::from_secs(20);

/// How long the verifier and the ledger may take to answer before they are asked again.
const ASK_AGAIN: Duration = Duration::from_mins(1);

/// How long nobody may be able to do what is left of a round, or be at it, before that is taken for granted: long enough for
/// everybody who is between two tasks to ask for the next.
const STUCK_AFTER: Duration = Duration::from_secs(20);

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
    parked: Vec<Parked<R>>,
    judging: bool,
    /// Since when nobody may do what is left of the round, and whether that was told.
    stuck: Option<(Time, bool)>,
    /// Since when there is work that nobody is at.
    idle: Option<Time>,
    last_rejection: Option<Reason>,
    /// When verifier and ledger were last asked for something.
    asked: Time,
    finished: bool,
    wake_at: Option<Time>,
    records: Vec<Record>,
    effects: Vec<Effect<R>>,
}

/// A request for work that is held open.
#[derive(Debug)]
struct Parked<R> {
    worker: PublicKey,
    /// How fast it says it is; 0 when it does not know yet.
    tokens_per_second: u32,
    reply: R,
    /// When it is told to ask again.
    until: Time,
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
            stuck: None,
            idle: None,
            last_rejection: None,
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
            Event::Checked { worker, request, reply } => self.checked(now, worker, request, reply),
            Event::Verdicts(verdicts) => verdicts.iter().for_each(|verdict| self.verdict(verdict)),
            Event::Forfeited { finding, worker, lost } => {
                if self.state.forfeits.contains_key(&finding) {
                    self.record(Record::Forfeited { finding });
                    self.effects.push(Effect::Report(Report::Forfeited { worker, lost }));
                }
            }
            Event::Aggregated { round, model, momentum, left_out } => {
                self.aggregated(now, round, model, momentum, left_out);
            }
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
        self.despair(now);
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
        let parked = self.parked.iter().map(|parked| parked.until);
        // Past, too, while a comparison is waited for.
        let stuck = self.stuck.filter(|(_, told)| !told).map(|(since, _)| since + STUCK_AFTER);
        let idle = self.idle.filter(|_| !self.parked.is_empty()).map(|since| since + STUCK_AFTER);
        let stuck = stuck.into_iter().chain(idle).filter(|at| *at > now);
        let submitted = self.state.slots.counts().submitted + self.state.slots.late().submitted > 0;
        let audits = !self.state.cases.is_empty() || !self.state.forfeits.is_empty();
        let owed = self.judging || audits || !self.state.unpaid.is_empty() || submitted;
        let again = owed.then(|| self.asked.max(now) + ASK_AGAIN);
        let next = leases.chain(round).chain(parked).chain(again).chain(stuck).min();
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
