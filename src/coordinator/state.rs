use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::audits::{Case, CaseId, Ending, Peer, RoundDraw, VerifierRecord};
use super::slots::{Slot, Slots, Stage};
use crate::protocol::{
    Amount, Auditors, Commitment, Digest, Outcome, PublicKey, Round, RunSpec, Signed, Submission, Task, TaskId, Time,
    limits,
};
use crate::verifier::checks::{relative_norm, voices};

/// One change of a coordinator's state. A run is the sequence of its records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A round opened on a base model.
    RoundOpened {
        /// The round.
        round: Round,
        /// Its base model.
        base: Digest,
        /// The outer optimiser's momentum, where it has one.
        momentum: Option<Digest>,
        /// When.
        at: Time,
    },
    /// A task was lent.
    Leased {
        /// Which: the round's own tasks come first, in their order, and behind them those of earlier rounds that somebody
        /// may still bring a result for.
        index: u32,
        /// To whom.
        worker: PublicKey,
        /// Until when.
        deadline: Time,
    },
    /// A worker handed a task back undone.
    GivenBack {
        /// Which.
        index: u32,
        /// Who.
        worker: PublicKey,
    },
    /// A worker bound itself to a result.
    Committed {
        /// Of which task.
        index: u32,
        /// Who.
        worker: PublicKey,
        /// To what.
        commitment: Commitment,
    },
    /// A worker handed in a result.
    Submitted {
        /// Of which task.
        index: u32,
        /// Who.
        worker: PublicKey,
        /// The result.
        submission: Submission,
    },
    /// A submission passed admission.
    Admitted {
        /// Of which task.
        index: u32,
        /// The update's norm.
        norm: f32,
    },
    /// A submission passed all layers.
    Accepted {
        /// Of which task.
        index: u32,
        /// The signed verdict.
        verdict: Signed,
    },
    /// A submission was rejected; its task is open again, to others.
    Rejected {
        /// Of which task.
        index: u32,
        /// The signed verdict.
        verdict: Signed,
    },
    /// A round could not close at its deadline: it goes on until another, and whoever was shut out of a task may try
    /// again.
    Extended {
        /// When.
        at: Time,
    },
    /// The round's work is done: what was accepted is to be paid and aggregated, and in part computed again.
    RoundClosed {
        /// When.
        at: Time,
        /// What decides by whom; nothing in a run without audits.
        secret: Option<Digest>,
        /// Whether to test the verifiers too.
        test: bool,
    },
    /// A verifier has computed a result again.
    Opinion {
        /// The signed verdict.
        verdict: Signed,
    },
    /// A task was lent to another worker, who does not know that it was done before.
    PeerLeased {
        /// The result that the copy is to be compared with.
        case: CaseId,
        /// To whom.
        worker: PublicKey,
        /// Until when.
        deadline: Time,
    },
    /// That worker bound itself to a result.
    PeerCommitted {
        /// The result that the copy is to be compared with.
        case: CaseId,
        /// Who.
        worker: PublicKey,
        /// To what.
        commitment: Commitment,
    },
    /// That worker handed its result in.
    PeerSubmitted {
        /// The result that the copy is to be compared with.
        case: CaseId,
        /// Who.
        worker: PublicKey,
    },
    /// That worker gave the task back, or what it handed in was of no use.
    PeerGone {
        /// The result that the copy is to be compared with.
        case: CaseId,
        /// Who.
        worker: PublicKey,
    },
    /// Enough verifiers found a result false: its worker gets no work any more, and may appeal. What it has of the open
    /// round is open to others.
    Convicted {
        /// The result.
        case: CaseId,
        /// Whose it is.
        worker: PublicKey,
        /// When.
        at: Time,
    },
    /// The worker wants another opinion.
    Appealed {
        /// On which result.
        case: CaseId,
        /// When.
        at: Time,
    },
    /// An audit is over.
    AuditEnded {
        /// Of which result.
        case: CaseId,
        /// How.
        ending: Ending,
    },
    /// The ledger has taken what false work costs.
    Forfeited {
        /// The name of what was found.
        finding: Digest,
    },
    /// The ledger has paid for a round.
    RoundPaid {
        /// The round.
        round: Round,
        /// What each worker got.
        pays: Vec<(PublicKey, Amount)>,
    },
    /// A base model was measured.
    Evaluated {
        /// The round that starts from it.
        round: Round,
        /// Validation loss, nats a token.
        loss: f64,
    },
}

/// All that a coordinator knows of a run. It changes only by [`State::apply`].
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    pub(super) spec: RunSpec,
    pub(super) round: Round,
    pub(super) momentum: Option<Digest>,
    /// When the round opened or was last extended.
    pub(super) opened: Time,
    pub(super) closed: bool,
    pub(super) slots: Slots,
    pub(super) commitments: u32,
    /// Tasks of earlier rounds that were done in time, with the round in which they were accepted; as far back as results
    /// may come late.
    pub(super) done: BTreeMap<TaskId, Round>,
    pub(super) unpaid: BTreeMap<Round, Vec<Signed>>,
    pub(super) lineage: Vec<BaseModel>,
    pub(super) workers: BTreeMap<PublicKey, WorkerRecord>,
    pub(super) recent_norms: VecDeque<f32>,
    pub(super) cases: BTreeMap<CaseId, Case>,
    /// Replays that are to be paid with the next rounds, oldest first.
    pub(super) replays: Vec<Signed>,
    /// False work that the ledger has not heard of yet, by the name of the finding.
    pub(super) forfeits: BTreeMap<Digest, Signed>,
    pub(super) verifiers: BTreeMap<PublicKey, VerifierRecord>,
    pub(super) draws: BTreeMap<Round, RoundDraw>,
}

/// A base model in the lineage of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BaseModel {
    /// Its blob.
    pub digest: Digest,
    /// Accepted tokens that it was trained on, from the first round on.
    pub tokens: u64,
    /// Validation loss in nats a token, once measured.
    pub loss: Option<f64>,
}

/// What a worker has done in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Tasks accepted.
    pub accepted: u64,
    /// Submissions rejected.
    pub rejected: u64,
    /// Tokens of the accepted tasks.
    pub tokens: u64,
    /// What the ledger paid for them, whether it has vested or not.
    pub pay: Amount,
    /// Tasks accepted since the last that was rejected: what the audit rate goes by.
    pub clean: u32,
    /// Tasks that were computed again, and were right.
    pub audited: u64,
    /// Tasks that were computed again, and were false.
    pub found_false: u64,
    /// Audits that are owed: nobody is told.
    #[serde(skip)]
    pub owed: u32,
    /// Whether it gets no more work: some of its own was found false, or is about to be.
    pub banned: bool,
}

/// When a lease began that was not renewed.
fn lent_at(deadline: Time, spec: &RunSpec) -> Time {
    let lease = u64::try_from(spec.timing.lease.as_millis()).unwrap_or(u64::MAX);
    Time(deadline.0.saturating_sub(lease))
}

impl State {
    /// The state of a run in which nothing has happened yet. The first record must open round 0.
    #[must_use]
    pub fn new(spec: RunSpec) -> Self {
        Self {
            spec,
            round: Round(0),
            momentum: None,
            opened: Time(0),
            closed: true,
            slots: Slots::default(),
            commitments: 0,
            done: BTreeMap::new(),
            unpaid: BTreeMap::new(),
            lineage: Vec::new(),
            workers: BTreeMap::new(),
            recent_norms: VecDeque::new(),
            cases: BTreeMap::new(),
            replays: Vec::new(),
            forfeits: BTreeMap::new(),
            verifiers: BTreeMap::new(),
            draws: BTreeMap::new(),
        }
    }

    /// The state after these records: how a coordinator comes back after a crash.
    #[must_use]
    pub fn replay(spec: RunSpec, records: impl IntoIterator<Item = Record>) -> Self {
        let mut state = Self::new(spec);
        for record in records {
            state.apply(&record);
        }
        state
    }

    /// Every blob but the dataset that the run still needs: the newest models, the outer momentum, what was handed in or
    /// committed for the open round, and what audits are about.
    #[must_use]
    pub fn blobs(&self) -> BTreeSet<Digest> {
        let newest = self.lineage.len().saturating_sub(limits::MODELS_KEPT as usize);
        let models = self.lineage.iter().skip(newest).map(|model| model.digest);
        let committed = self.slots.iter().flat_map(|slot| slot.commitments.values().map(|(_, made)| made.payload));
        let handed_in = self.slots.iter().filter_map(|slot| slot.stage.payload());
        let audited = self.cases.values().flat_map(|case| [case.payload, case.task.base]);
        let copies = self.cases.values().flat_map(|case| case.peers.values());
        let copies = copies.filter_map(|peer| peer.commitment.map(|commitment| commitment.payload));
        models.chain(self.momentum).chain(committed).chain(handed_in).chain(audited).chain(copies).collect()
    }

    /// Changes the state. Records were valid when they were made; one that fits nothing changes nothing.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::RoundOpened { round, base, momentum, at } => self.open(*round, *base, *momentum, *at),
            Record::Evaluated { round, loss } => {
                if let Some(model) = self.lineage.get_mut(round.0 as usize) {
                    model.loss = Some(*loss);
                }
            }
            Record::RoundPaid { round, pays } => {
                self.unpaid.remove(round);
                for (worker, amount) in pays {
                    let record = self.workers.entry(*worker).or_default();
                    record.pay = record.pay.checked_add(*amount).unwrap_or(record.pay);
                }
            }
            Record::Extended { at } => {
                self.opened = *at;
                for index in 0..self.slots.len() {
                    self.slots.change(index, |slot| {
                        slot.shut_out.clear();
                        let Slot { since, leases, .. } = slot;
                        since.retain(|worker, _| leases.get(worker).is_some_and(|until| until > at));
                    });
                }
            }
            Record::RoundClosed { at, secret, test } => self.close(*at, *secret, *test),
            Record::Opinion { verdict } => self.hear(verdict),
            Record::PeerLeased { case, worker, deadline } => {
                self.workers.entry(*worker).or_default();
                let lent = lent_at(*deadline, &self.spec);
                if let Some(case) = self.cases.get_mut(case) {
                    let since = case.peers.get(worker).map_or(lent, |peer| peer.since);
                    let peer = Peer { since, deadline: *deadline, commitment: None, handed_in: false };
                    case.peers.insert(*worker, peer);
                }
            }
            Record::PeerCommitted { case, worker, commitment } => {
                if let Some(peer) = self.cases.get_mut(case).and_then(|case| case.peers.get_mut(worker)) {
                    peer.commitment = Some(*commitment);
                }
            }
            Record::PeerSubmitted { case, worker } => {
                if let Some(peer) = self.cases.get_mut(case).and_then(|case| case.peers.get_mut(worker)) {
                    peer.handed_in = true;
                }
            }
            Record::PeerGone { case, worker } => {
                if let Some(peer) = self.cases.get_mut(case).and_then(|case| case.peers.get_mut(worker)) {
                    // Stays on the list, so that it is not lent to the same worker again.
                    *peer = Peer { since: peer.since, deadline: Time(0), commitment: None, handed_in: false };
                }
            }
            Record::Convicted { case, at, .. } => self.convict(case, *at),
            Record::Appealed { case, at } => {
                if let Some(case) = self.cases.get_mut(case) {
                    case.appealed = true;
                    case.convicted = case.convicted.map(|(_, opinions)| (*at, opinions));
                }
            }
            Record::AuditEnded { case, ending } => self.end_audit(case, *ending),
            Record::Forfeited { finding } => {
                self.forfeits.remove(finding);
            }
            Record::Leased { index, .. }
            | Record::GivenBack { index, .. }
            | Record::Committed { index, .. }
            | Record::Submitted { index, .. }
            | Record::Admitted { index, .. }
            | Record::Accepted { index, .. }
            | Record::Rejected { index, .. } => self.apply_to_slot(*index, record),
        }
    }

    fn apply_to_slot(&mut self, index: u32, record: &Record) {
        let (workers, commitments, spec) = (&mut self.workers, &mut self.commitments, &self.spec);
        self.slots.change(index, |slot| match record {
            Record::Leased { worker, deadline, .. } => {
                workers.entry(*worker).or_default();
                slot.leases.insert(*worker, *deadline);
                slot.since.entry(*worker).or_insert(lent_at(*deadline, spec));
            }
            Record::GivenBack { worker, .. } => {
                slot.leases.remove(worker);
                slot.shut_out.insert(*worker);
            }
            Record::Committed { worker, commitment, .. } => {
                slot.commitments.insert(*worker, (*commitments, *commitment));
                *commitments += 1;
            }
            Record::Submitted { worker, submission, .. } => {
                slot.trail = Some(submission.trail());
                slot.stage = Stage::Submitted { worker: *worker, submission: submission.clone() };
            }
            Record::Admitted { norm, .. } => {
                if let (Some(worker), Some(payload)) = (slot.stage.worker(), slot.stage.payload()) {
                    slot.stage = Stage::Admitted { worker, payload, norm: *norm };
                }
            }
            Record::Accepted { verdict, .. } => {
                if let Stage::Admitted { worker, payload, norm } = slot.stage {
                    slot.stage = Stage::Accepted { worker, payload, norm, verdict: verdict.clone() };
                }
            }
            Record::Rejected { .. } => {
                if let Some(worker) = slot.stage.worker() {
                    let record = workers.entry(worker).or_default();
                    record.rejected += 1;
                    record.clean = 0;
                    slot.leases.remove(&worker);
                    slot.shut_out.insert(worker);
                    slot.stage = Stage::Open;
                }
            }
            _ => {}
        });
    }

    fn open(&mut self, round: Round, base: Digest, momentum: Option<Digest>, at: Time) {
        let tokens = self.lineage.last().map_or(0, |model| model.tokens) + self.accepted_tokens();
        self.lineage.push(BaseModel { digest: base, tokens, loss: None });
        self.round = round;
        self.momentum = momentum;
        self.opened = at;
        self.closed = false;
        let accepted = self.slots.iter().filter(|slot| matches!(slot.stage, Stage::Accepted { .. }));
        self.done.extend(accepted.map(|slot| (slot.id, round)));
        self.done.retain(|_, before| before.0 + limits::LATE_ROUNDS_MAX > round.0);
        let (left, commitments) = std::mem::take(&mut self.slots).left();
        self.commitments = commitments;
        let tasks = (0..self.spec.tasks_per_round).map(|index| Task::of_round(&self.spec, round, index, base));
        self.slots = Slots::new(tasks, left.into_iter());
    }

    fn close(&mut self, at: Time, secret: Option<Digest>, test: bool) {
        self.closed = true;
        if let Some(secret) = secret {
            self.draw(at, secret, test);
        }
        let (mut verdicts, mut norms) = (Vec::new(), Vec::new());
        for slot in &self.slots {
            if let Stage::Accepted { worker, norm, verdict, .. } = &slot.stage {
                let record = self.workers.entry(*worker).or_default();
                record.accepted += 1;
                record.clean = record.clean.saturating_add(1);
                record.tokens += slot.tokens();
                norms.push((*worker, relative_norm(&slot.task, *norm).into()));
                verdicts.push(verdict.clone());
            }
        }
        self.recent_norms.extend(voices(norms.into_iter()).into_iter().map(|norm| norm as f32));
        while self.recent_norms.len() > limits::NORM_HISTORY {
            self.recent_norms.pop_front();
        }
        // The ledger pays a round in one chain: what does not fit waits for the next.
        let paid = self.replays.len().min(limits::REPLAYS_PAID_MAX);
        verdicts.extend(self.replays.drain(..paid));
        self.unpaid.insert(self.round, verdicts);
    }

    pub(super) fn accepted_tokens(&self) -> u64 {
        let accepted = self.slots.iter().filter(|slot| matches!(slot.stage, Stage::Accepted { .. }));
        accepted.map(Slot::tokens).sum()
    }

    /// Whether the open round's work is done, and the next base model is being made.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Tasks of the open round: all, accepted, and lent to somebody whose lease has not run out at `now`.
    #[must_use]
    pub fn tasks(&self, now: Time) -> (u32, u32, u32) {
        let counts = self.slots.counts();
        let lent = counts.open - self.slots.free(now).count();
        (self.slots.own(), counts.accepted as u32, lent as u32)
    }

    /// The task that `worker` has committed to this payload for, and whose payload is still wanted.
    #[must_use]
    pub fn committed(&self, worker: &PublicKey, payload: &Digest) -> Option<&Task> {
        let is = |commitment: &Commitment| commitment.payload == *payload;
        let slot =
            self.slots.held_by(worker).find(|slot| slot.commitments.get(worker).is_some_and(|(_, made)| is(made)));
        let copy = self.cases.values().find(|case| {
            case.peers.get(worker).and_then(|peer| peer.commitment).is_some_and(|commitment| is(&commitment))
        });
        let slot = slot.filter(|slot| !self.closed || slot.stays()).map(|slot| &slot.task);
        slot.or_else(|| copy.map(|case| &case.task))
    }

    /// The base models whose weights are kept, oldest first.
    #[must_use]
    pub fn kept_models(&self) -> &[BaseModel] {
        &self.lineage[self.lineage.len().saturating_sub(limits::MODELS_KEPT as usize)..]
    }

    /// Whether somebody may need this model to do a task: one of those that are kept, or the base of work that is being
    /// audited, which may be older.
    #[must_use]
    pub fn is_base(&self, model: &Digest) -> bool {
        let kept = self.kept_models().iter().any(|kept| kept.digest == *model);
        kept || self.cases.values().any(|case| case.task.base == *model)
    }

    /// Who was audited in this round, and what came of it; nothing of rounds that are too old, and of runs without
    /// audits.
    #[must_use]
    pub fn draw_of(&self, round: Round) -> Option<&RoundDraw> {
        self.draws.get(&round)
    }

    /// What each verifier has computed again.
    #[must_use]
    pub fn verifiers(&self) -> &BTreeMap<PublicKey, VerifierRecord> {
        &self.verifiers
    }

    /// Whether drawn work is done again by other workers.
    pub(super) fn asks_peers(&self) -> bool {
        self.spec.audits.is_some_and(|audits| audits.by == Auditors::Peers)
    }

    /// Audits that are not over.
    #[must_use]
    pub fn audits_open(&self) -> usize {
        self.cases.len()
    }

    /// The specification of the run.
    #[must_use]
    pub fn spec(&self) -> &RunSpec {
        &self.spec
    }

    /// The open round, which is also the number of rounds that are done.
    #[must_use]
    pub fn round(&self) -> Round {
        self.round
    }

    /// Every base model so far; model `n` is what round `n` starts from.
    #[must_use]
    pub fn lineage(&self) -> &[BaseModel] {
        &self.lineage
    }

    /// What each worker has done.
    #[must_use]
    pub fn workers(&self) -> &BTreeMap<PublicKey, WorkerRecord> {
        &self.workers
    }

    /// Accepted tokens of all rounds that are done.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.lineage.last().map_or(0, |model| model.tokens)
    }

    /// Checks what must hold after every step.
    ///
    /// # Panics
    /// When it does not: a bug.
    pub fn assert_invariants(&self) {
        assert_eq!(self.lineage.len(), self.round.0 as usize + usize::from(!self.slots.is_empty()), "lineage has gaps");
        assert!(self.unpaid.keys().all(|round| *round <= self.round), "a round is unpaid before it closed");
        assert!(self.recent_norms.len() <= limits::NORM_HISTORY);
        self.slots.assert_invariants();
        for slot in &self.slots {
            if let (Some(worker), Some(payload)) = (slot.stage.worker(), slot.stage.payload()) {
                let committed = slot.commitments.get(&worker).map(|(_, commitment)| commitment.payload);
                assert_eq!(committed, Some(payload), "a submission that was not committed");
            }
            if let Stage::Accepted { worker, payload, verdict, .. } = &slot.stage {
                // Its signature was checked when it came; a thousand of them after every event would take a tenth of a
                // second.
                let said = verdict.claimed_message::<crate::protocol::Verdict>();
                let sound = said.is_ok_and(|verdict| {
                    verdict.task == slot.id
                        && verdict.worker == *worker
                        && verdict.payload == *payload
                        && matches!(verdict.outcome, Outcome::Accepted { tokens, .. } if tokens == slot.tokens())
                });
                assert!(sound, "a task is accepted without a verdict that says so");
            }
        }
    }
}
