//! Work that is computed again: by whom, how often, and what comes of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::slots::Stage;
use super::state::State;
use crate::protocol::{
    Auditors, Commitment, Digest, Keypair, Outcome, PublicKey, Reason, Round, RunSpec, Signed, Task, TaskId, Time,
    Trail, Verdict, is_drawn, limits,
};

/// Whose work a case is about: a task, and the payload that was handed in for it.
pub type CaseId = (TaskId, Digest);

/// Accepted work that is to be computed again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Case {
    pub task: Task,
    /// The round that the result counted in: the task's own, or a later one.
    pub round: Round,
    pub worker: PublicKey,
    pub payload: Digest,
    /// How it came about, as the worker says.
    pub trail: Trail,
    pub opened: Time,
    /// Whether it is a test of the verifiers: a payload of another task, which is false for certain.
    pub planted: bool,
    pub opinions: Vec<Opinion>,
    /// When it was found false, and by how many opinions.
    pub convicted: Option<(Time, usize)>,
    pub appealed: bool,
    /// Opinions against the worker that it takes to convict it.
    pub takes: usize,
    /// Workers who were lent the task again, where those are whom the run asks.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// A worker that does a task again and does not know it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Peer {
    /// When it was lent the task.
    pub since: Time,
    pub deadline: Time,
    pub commitment: Option<Commitment>,
    pub handed_in: bool,
}

/// What one verifier, or one peer's copy, says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Opinion {
    pub verifier: PublicKey,
    /// How many there were before it when it was asked for.
    pub turn: u32,
    pub clean: bool,
    /// The peer before it that got the same, where that is not what was handed in.
    pub with: Option<PublicKey>,
    pub verdict: Signed,
}

/// How an audit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The work is what the task gives.
    Clean,
    /// It is not: whoever did it loses stake and unvested pay, and gets no more work.
    False,
    /// Nobody could tell in time, which is not the worker's fault.
    Unfinished,
    /// A verifier found out a planted cheat.
    TestPassed,
    /// A verifier let a planted cheat pass, and is not believed any more.
    TestFailed,
}

/// What an audit needs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// The opinion of a verifier who is none of these.
    Ask { not: Vec<PublicKey> },
    /// Time for an appeal.
    Convict,
    /// It is over.
    End(Ending),
    /// Nothing now.
    Wait,
}

impl Case {
    /// What comes next, with these `verifiers`: one opinion in the worker's favour is enough, nobody is convicted by
    /// fewer than two (an established worker by fewer than three others), and a verifier is asked twice only where there is no other. Peers that got something else convict
    /// only if these got the same: of results that all differ, as of those of cheats who do not know each other,
    /// nobody can say which is right.
    pub fn next(&self, spec: &RunSpec, verifiers: &BTreeSet<PublicKey>, now: Time) -> Next {
        if self.planted {
            return match self.opinions.first() {
                None => Next::Ask { not: vec![] },
                Some(opinion) if opinion.clean => Next::End(Ending::TestFailed),
                Some(_) => Next::End(Ending::TestPassed),
            };
        }
        let clean = self.opinions.iter().filter(|opinion| opinion.clean).count();
        let against = self.opinions.iter().filter(|opinion| self.counts_against(opinion)).count();
        let by_peers = spec.audits.is_some_and(|audits| audits.by == Auditors::Peers);
        match self.convicted {
            Some((_, opinions)) if self.appealed => {
                let judges = self.opinions.get(opinions..).unwrap_or_default();
                if judges.iter().any(|judge| self.counts_against(judge)) {
                    return Next::End(Ending::False);
                }
                if clean >= against {
                    return Next::End(Ending::Clean);
                }
                // Those who convicted are outvoted by more than one, or nobody can tell.
                if judges.iter().any(|judge| judge.clean) && (self.others(verifiers).is_none() || now >= self.due(spec))
                {
                    return Next::End(Ending::Unfinished);
                }
            }
            Some(_) => return if now >= self.due(spec) { Next::End(Ending::False) } else { Next::Wait },
            None => {
                if clean > against {
                    return Next::End(Ending::Clean);
                }
                if against >= self.takes && against > clean {
                    return Next::Convict;
                }
            }
        }
        if now >= self.due(spec) {
            // What two have found stands where nobody takes up the appeal.
            return Next::End(if self.convicted.is_some() { Ending::False } else { Ending::Unfinished });
        }
        if by_peers {
            // Whoever comes next may have it; see `takes`.
            return Next::Ask { not: vec![] };
        }
        self.others(verifiers).map_or(Next::Wait, |not| Next::Ask { not })
    }

    /// Whether an opinion says that the work is false: a verifier's by itself, a peer's only with another that got the same.
    fn counts_against(&self, opinion: &Opinion) -> bool {
        let seconded = opinion.with.is_some() || self.opinions.iter().any(|other| other.with == Some(opinion.verifier));
        !opinion.clean && (seconded || !self.peers.contains_key(&opinion.verifier))
    }

    /// Whether `worker` may be lent the task as a copy: nobody does it at present, and nobody twice. Where two others are
    /// not enough to convict its worker, whoever comes after them must be as well established: two newcomers are soon
    /// made.
    pub fn may_take(&self, spec: &RunSpec, worker: &PublicKey, clean: u32, now: Time) -> bool {
        let probation = spec.audits.map_or(0, |audits| audits.policy.probation);
        let spoken = self.opinions.iter().filter(|opinion| !opinion.clean).count();
        if self.takes > 2 && spoken >= 2 && clean < probation {
            return false;
        }
        let busy = |peer: &Peer| !peer.handed_in && peer.deadline > now;
        let judged = |peer: &PublicKey| self.opinions.iter().any(|opinion| opinion.verifier == *peer);
        let waits = self.peers.iter().any(|(key, peer)| busy(peer) || (peer.handed_in && !judged(key)));
        let asks = matches!(self.next(spec, &BTreeSet::new(), now), Next::Ask { .. });
        asks && !waits && self.worker != *worker && !self.peers.contains_key(worker)
    }

    /// When it ends or goes on without anybody's doing.
    pub fn due(&self, spec: &RunSpec) -> Time {
        match self.convicted {
            Some((at, _)) if !self.appealed => at + spec.timing.appeal,
            Some((at, _)) => at + limits::AUDIT_WITHIN,
            None => self.opened + limits::AUDIT_WITHIN,
        }
    }

    /// Who must not be asked, if anybody is left to ask.
    pub fn others(&self, verifiers: &BTreeSet<PublicKey>) -> Option<Vec<PublicKey>> {
        if verifiers.len() == 1 {
            // Better asked twice than believed at once: a machine may fail.
            return Some(vec![]);
        }
        let spoken: Vec<PublicKey> = self.opinions.iter().map(|opinion| opinion.verifier).collect();
        verifiers.iter().any(|verifier| !spoken.contains(verifier)).then_some(spoken)
    }

    /// Those whose opinion was not what came out in the end.
    pub fn mistaken(&self, ending: Ending) -> impl Iterator<Item = PublicKey> + '_ {
        let wrong = move |opinion: &&Opinion| match ending {
            Ending::Clean => !opinion.clean,
            Ending::False => !self.counts_against(opinion),
            Ending::TestFailed => opinion.clean,
            Ending::Unfinished | Ending::TestPassed => false,
        };
        self.opinions.iter().filter(wrong).map(|opinion| opinion.verifier)
    }
}

/// What anybody needs to check afterwards who was audited in a round and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundDraw {
    /// The secret that was drawn by; hashed once for each round up to this one and once more, it gives the run's anchor.
    pub secret: Digest,
    /// The accepted results, in task order.
    pub results: Vec<DrawnResult>,
}

/// A result of a round, and its audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawnResult {
    /// The task.
    pub task: TaskId,
    /// Who did it.
    pub worker: PublicKey,
    /// What they handed in.
    pub payload: Digest,
    /// Results of the same worker since the last that was rejected: what says how probable an audit was.
    pub clean: u32,
    /// What verifiers found by computing it again.
    pub verdicts: Vec<Signed>,
    /// How the audit ended, if there was one and it has.
    pub ending: Option<Ending>,
}

/// What a verifier has done in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifierRecord {
    /// Tasks computed again.
    pub replays: u64,
    /// Planted cheats found out.
    pub tests: u64,
    /// Times that others found otherwise.
    pub faults: u32,
    /// Whether it is not believed any more.
    pub struck_off: bool,
}

/// Those payloads that come twice. Tasks differ, so one result at least is false, and nobody but who computes them again can
/// say which: whoever wants to harm another hands in its work before it does.
pub(super) fn repeated(payloads: impl Iterator<Item = Digest>) -> BTreeSet<Digest> {
    let mut seen = BTreeSet::new();
    payloads.filter(|payload| !seen.insert(*payload)).collect()
}

impl State {
    /// Draws which of the accepted results are computed again, and all whose payload comes twice; where verifiers are to be tested, some with the payload of
    /// the task after them.
    pub(super) fn draw(&mut self, at: Time, secret: Digest, test: bool) {
        let Some(audits) = self.spec.audits else { return };
        let accepted: Vec<(Task, TaskId, PublicKey, Digest, Trail)> = self
            .slots
            .iter()
            .filter_map(|slot| match &slot.stage {
                Stage::Accepted { worker, payload, .. } => {
                    Some((slot.task.clone(), slot.id, *worker, *payload, slot.trail.clone()?))
                }
                _ => None,
            })
            .collect();
        let tests = Digest::in_domain("hydra audit test v1", secret.as_bytes());
        let by_peers = self.asks_peers();
        let repeated = repeated(accepted.iter().map(|(.., payload, _)| *payload));
        let mut results = Vec::new();
        for (place, (task, id, worker, payload, trail)) in accepted.iter().enumerate() {
            let record = self.workers.entry(*worker).or_default();
            let clean = record.clean;
            let result =
                DrawnResult { task: *id, worker: *worker, payload: *payload, clean, verdicts: vec![], ending: None };
            results.push(result);
            if !repeated.contains(payload) && !is_drawn(&secret, id, worker, audits.policy.rate(clean)) {
                continue;
            }
            record.owed += 1;
            let case = Case {
                task: task.clone(),
                round: self.round,
                worker: *worker,
                payload: *payload,
                trail: trail.clone(),
                opened: at,
                planted: false,
                opinions: vec![],
                convicted: None,
                appealed: false,
                takes: if by_peers && clean >= audits.policy.probation { limits::PEERS_AGAINST } else { 2 },
                peers: BTreeMap::new(),
            };
            let (.., other, _) = &accepted[(place + 1) % accepted.len()];
            if test && other != payload && is_drawn(&tests, id, worker, limits::PLANTED) {
                let nobody = Digest::in_domain(
                    "hydra audit test worker v1",
                    &[secret.as_bytes(), id.0.as_bytes().as_slice()].concat(),
                );
                let worker = Keypair::from_secret(nobody.as_bytes()).public();
                // The way is that of the work in its place: another task's shows in its first digest that it is another's.
                let case = Case { worker, payload: *other, planted: true, ..case.clone() };
                self.cases.insert((*id, *other), case);
            }
            self.cases.insert((*id, *payload), case);
        }
        self.draws.insert(self.round, RoundDraw { secret, results });
        while self.draws.len() > limits::DRAWS_KEPT {
            self.draws.pop_first();
        }
    }

    pub(super) fn hear(&mut self, signed: &Signed) {
        let Ok((verifier, verdict)) = signed.open::<Verdict>() else { return };
        let Some(case) = self.cases.get_mut(&(verdict.task, verdict.payload)) else { return };
        let clean = matches!(verdict.outcome, Outcome::Accepted { .. });
        let with = match verdict.outcome {
            Outcome::Rejected { reason: Reason::Outvoted { with }, .. } => Some(with),
            _ => None,
        };
        let verifier = verdict.by.unwrap_or(verifier);
        if !case.planted {
            // Who had to be asked twice is paid once.
            let new = case.opinions.iter().all(|opinion| opinion.verifier != verifier);
            // A copy is only known to be good when the audit is over.
            if new && verdict.by.is_none() {
                self.replays.push(signed.clone());
            }
            let result = self.draws.get_mut(&case.round).and_then(|draw| {
                draw.results.iter_mut().find(|result| (result.task, result.payload) == (verdict.task, verdict.payload))
            });
            if let Some(result) = result {
                result.verdicts.push(signed.clone());
            }
        }
        if verdict.by.is_none() {
            self.verifiers.entry(verifier).or_default().replays += 1;
        }
        case.opinions.push(Opinion { verifier, turn: verdict.turn, clean, with, verdict: signed.clone() });
    }

    /// Takes the worker's part in the open round back too.
    pub(super) fn convict(&mut self, case: &CaseId, at: Time) {
        let Some(case) = self.cases.get_mut(case) else { return };
        case.convicted = Some((at, case.opinions.len()));
        let worker = case.worker;
        self.workers.entry(worker).or_default().banned = true;
        if self.closed {
            return;
        }
        let held: Vec<u32> = self.slots.held_by(&worker).map(|slot| slot.place).collect();
        for index in held {
            self.slots.change(index, |slot| {
                slot.leases.remove(&worker);
                if slot.stage.worker() == Some(worker) {
                    slot.stage = Stage::Open;
                }
            });
        }
    }

    pub(super) fn end_audit(&mut self, id: &CaseId, ending: Ending) {
        let Some(case) = self.cases.remove(id) else { return };
        if !case.peers.is_empty() {
            self.settle_with_peers(&case, ending);
        }
        for verifier in case.mistaken(ending).filter(|verifier| !case.peers.contains_key(verifier)) {
            let record = self.verifiers.entry(verifier).or_default();
            record.faults += 1;
            record.struck_off |= ending == Ending::TestFailed || record.faults >= limits::VERIFIER_FAULTS_MAX;
            if record.struck_off {
                self.disbelieve(verifier);
            }
        }
        if case.planted {
            if let Some(first) = case.opinions.first().filter(|_| ending == Ending::TestPassed) {
                self.verifiers.entry(first.verifier).or_default().tests += 1;
            }
            return;
        }
        let record = self.workers.entry(case.worker).or_default();
        record.owed = record.owed.saturating_sub(1);
        match ending {
            Ending::Clean => record.audited += 1,
            Ending::False => {
                record.clean = 0;
                record.found_false += 1;
                let against = case.opinions.iter().rev().find(|opinion| !opinion.clean);
                if let Some((opinion, Ok((_, verdict)))) =
                    against.map(|opinion| (opinion, opinion.verdict.open::<Verdict>()))
                {
                    self.forfeits.insert(verdict.finding(), opinion.verdict.clone());
                }
            }
            Ending::Unfinished | Ending::TestPassed | Ending::TestFailed => {}
        }
        if ending != Ending::False && case.convicted.is_some() {
            self.acquit(case.worker);
        }
        if let Some(draw) = self.draws.get_mut(&case.round)
            && let Some(result) = draw.results.iter_mut().find(|result| (result.task, result.payload) == *id)
        {
            result.ending = Some(ending);
        }
    }

    /// Copies that came out right are paid as the task was; the others count against whoever made them.
    fn settle_with_peers(&mut self, case: &Case, ending: Ending) {
        let mistaken: BTreeSet<PublicKey> = case.mistaken(ending).collect();
        for opinion in &case.opinions {
            let record = self.workers.entry(opinion.verifier).or_default();
            if mistaken.contains(&opinion.verifier) {
                record.rejected += 1;
                record.clean = 0;
            } else {
                record.tokens += case.task.tokens();
                self.replays.push(opinion.verdict.clone());
            }
        }
    }

    /// Forgets what a verifier has said about open cases.
    fn disbelieve(&mut self, verifier: PublicKey) {
        let mut acquitted = Vec::new();
        for case in self.cases.values_mut() {
            case.opinions.retain(|opinion| opinion.verifier != verifier);
            if case.convicted.is_some_and(|(_, opinions)| case.opinions.len() < opinions) {
                case.convicted = None;
                case.appealed = false;
                acquitted.push(case.worker);
            }
        }
        acquitted.into_iter().for_each(|worker| self.acquit(worker));
    }

    /// Lets a worker work again, unless something else is held against it.
    fn acquit(&mut self, worker: PublicKey) {
        let convicted = |case: &Case| case.worker == worker && case.convicted.is_some();
        let convicted = self.cases.values().any(convicted);
        let record = self.workers.entry(worker).or_default();
        record.banned = convicted || record.found_false > 0;
    }
}
