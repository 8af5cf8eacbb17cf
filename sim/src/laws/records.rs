use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hydra::compute::{AggregateJob, Compute};
use hydra::coordinator::{CaseId, Record};
use hydra::protocol::{
    Commitment, Digest, PublicKey, RefusalReason, Round, RunSpec, Signed, Task, TaskId, Time, Verdict, WorkerReply,
    WorkerRequest, limits, wire,
};
use hydra::store::Blobs;

use crate::Surrogate;

/// Models of so many updates are made again; of more it would take longer than the rest of the simulation.
const MADE_AGAIN: usize = 256;

/// One task of the open round, or of an earlier one that somebody may still bring a result for, as the records have it.
#[derive(Default)]
struct Slot {
    /// How many rounds ago it was to be done.
    late: u32,
    /// What it would count for in its own round.
    tokens: u64,
    /// Whether somebody was refused it, or gave it back, since the round began or went on.
    turned_away: bool,
    leases: BTreeMap<PublicKey, Time>,
    commitments: BTreeMap<PublicKey, Commitment>,
    handed_in: Option<(PublicKey, Digest)>,
    accepted: bool,
}

/// What a coordinator's records must say.
pub(super) struct RecordLaws {
    spec: RunSpec,
    verifiers: BTreeSet<PublicKey>,
    compute: Compute,
    /// Round, base model and momentum; nothing before the first.
    open: Option<(Round, Digest, Option<Digest>)>,
    opened: Time,
    closed: bool,
    tasks: Vec<TaskId>,
    places: BTreeMap<TaskId, usize>,
    slots: Vec<Slot>,
    /// Accepted results of rounds that are closed.
    results: BTreeMap<CaseId, PublicKey>,
    lent: BTreeSet<(PublicKey, TaskId)>,
    /// What the last write lent, and when that was: a request that was answered before may be answered after it, at the
    /// same moment.
    just_lent: (Time, BTreeSet<(PublicKey, TaskId)>),
    committed: BTreeSet<(PublicKey, TaskId)>,
    handed_in: BTreeSet<(PublicKey, TaskId)>,
    verdicts: BTreeSet<Digest>,
}

type Held = Result<(), String>;

fn demand(holds: bool, broken: impl FnOnce() -> String) -> Held {
    if holds { Ok(()) } else { Err(broken()) }
}

impl RecordLaws {
    pub fn new(spec: RunSpec, verifiers: BTreeSet<PublicKey>, blobs: Arc<dyn Blobs>) -> Self {
        Self {
            spec,
            verifiers,
            // Nothing is trained with it.
            compute: Compute::new(Arc::new(Surrogate), blobs),
            open: None,
            opened: Time(0),
            closed: true,
            tasks: Vec::new(),
            places: BTreeMap::new(),
            slots: Vec::new(),
            results: BTreeMap::new(),
            lent: BTreeSet::new(),
            just_lent: (Time(0), BTreeSet::new()),
            committed: BTreeSet::new(),
            handed_in: BTreeSet::new(),
            verdicts: BTreeSet::new(),
        }
    }

    /// The verdicts that are on record.
    pub fn verdicts(&self) -> &BTreeSet<Digest> {
        &self.verdicts
    }

    /// The records that follow were written together.
    pub fn begin_write(&mut self, now: Time) {
        self.just_lent = (now, BTreeSet::new());
    }

    pub fn read(&mut self, record: &Record, now: Time) -> Held {
        match record {
            Record::RoundOpened { round, base, momentum, at } => self.opens(*round, *base, *momentum, *at),
            Record::RoundClosed { at, .. } => self.closes(*at),
            Record::Extended { at } => {
                self.opened = *at;
                self.slots.iter_mut().for_each(|slot| slot.turned_away = false);
                Ok(())
            }
            Record::Leased { index, worker, deadline } => self.lends(*index, *worker, *deadline, now),
            Record::GivenBack { index, worker } => {
                let slot = self.slot(*index)?;
                slot.leases.remove(worker);
                slot.turned_away = true;
                Ok(())
            }
            Record::Committed { index, worker, commitment } => {
                self.committed.insert((*worker, commitment.task));
                let slot = self.slot(*index)?;
                demand(slot.leases.contains_key(worker), || {
                    format!("worker {} committed to task {index}, which it was not lent", worker.short())
                })?;
                let earlier = slot.commitments.insert(*worker, *commitment);
                demand(earlier.is_none_or(|earlier| earlier == *commitment), || {
                    format!("worker {} committed to two results of task {index}", worker.short())
                })
            }
            Record::Submitted { index, worker, submission } => {
                self.handed_in.insert((*worker, submission.commitment.task));
                let slot = self.slot(*index)?;
                demand(slot.commitments.get(worker) == Some(&submission.commitment), || {
                    format!("worker {} handed in what it had not committed to for task {index}", worker.short())
                })?;
                let first = slot.handed_in.replace((*worker, submission.commitment.payload));
                demand(first.is_none(), || format!("task {index} was handed in twice"))
            }
            Record::Accepted { index, verdict } => {
                self.judged(*index, verdict)?;
                self.slot(*index)?.accepted = true;
                Ok(())
            }
            Record::Rejected { index, verdict } => {
                let worker = self.judged(*index, verdict)?;
                let slot = self.slot(*index)?;
                slot.leases.remove(&worker);
                slot.handed_in = None;
                slot.turned_away = true;
                Ok(())
            }
            Record::Opinion { verdict } => self.believed(verdict).map(drop),
            Record::PeerLeased { case, worker, .. } => {
                self.lent.insert((*worker, case.0));
                Ok(())
            }
            Record::PeerCommitted { case, worker, .. } => {
                self.committed.insert((*worker, case.0));
                Ok(())
            }
            Record::PeerSubmitted { case, worker } => {
                self.handed_in.insert((*worker, case.0));
                Ok(())
            }
            Record::Convicted { case, .. } => {
                self.convicts(case);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A round starts from what the one before it came to, whatever order its results came in, and closes before the next.
    fn opens(&mut self, round: Round, base: Digest, momentum: Option<Digest>, at: Time) -> Held {
        let mut held = Ok(());
        if let Some((before, old, old_momentum)) = self.open {
            held = demand(self.closed && round == before.next(), || {
                format!("round {} opened after round {}, which was not closed", round.0, before.0)
            });
            // From the last to the first: the order must not matter.
            let accepted = self.slots.iter().rev().filter(|slot| slot.accepted);
            let updates: Vec<_> = accepted
                .filter_map(|slot| slot.handed_in.map(|(_, payload)| (payload, (slot.tokens >> slot.late).max(1))))
                .collect();
            if updates.len() <= MADE_AGAIN {
                let job = AggregateJob { base: old, momentum: old_momentum, updates };
                let again = self.compute.aggregate(&self.spec, &job);
                held = held.and(match again {
                    Ok(made) => demand((made.model, made.momentum) == (base, momentum), || {
                        format!("the model of round {} is not what the results of round {} come to", round.0, before.0)
                    }),
                    Err(error) => Err(format!("the results of round {} cannot be read: {error}", before.0)),
                });
            }
        }
        self.open = Some((round, base, momentum));
        (self.opened, self.closed) = (at, false);
        // What nobody has a result for, and somebody is still at, stays behind the round's own.
        let stays =
            |slot: &Slot| slot.handed_in.is_none() && !slot.leases.is_empty() && slot.late < limits::LATE_ROUNDS_MAX;
        let old = std::mem::take(&mut self.tasks).into_iter().zip(std::mem::take(&mut self.slots));
        let left = old.filter(|(_, slot)| stays(slot)).map(|(task, slot)| (task, Slot { late: slot.late + 1, ..slot }));
        let own = (0..self.spec.tasks_per_round).map(|index| {
            let task = Task::of_round(&self.spec, round, index, base);
            (task.id(), Slot { tokens: task.tokens(), ..Slot::default() })
        });
        (self.tasks, self.slots) = own.chain(left).unzip();
        self.places = self.tasks.iter().copied().zip(0..).collect();
        held
    }

    /// Not before all is done, or its time is over and there are enough.
    fn closes(&mut self, at: Time) -> Held {
        self.closed = true;
        let own = || self.slots.iter().filter(|slot| slot.late == 0);
        let (all, quorum) = (own().count(), own().count() / 2 + 1);
        let accepted = own().filter(|slot| slot.accepted).count();
        // Nobody is at what is left, and somebody was turned away from each of it.
        let stuck = own()
            .filter(|slot| !slot.accepted)
            .all(|slot| slot.turned_away && slot.leases.values().all(|until| *until <= at));
        for (task, slot) in self.tasks.iter().zip(&self.slots) {
            if let Some((worker, payload)) = slot.handed_in.filter(|_| slot.accepted) {
                self.results.insert((*task, payload), worker);
            }
        }
        let due = at >= self.opened + self.spec.timing.round;
        demand(accepted == all || ((due || stuck) && accepted >= quorum), || {
            format!("a round closed with {accepted} of {all} tasks, {quorum} are a quorum, due: {due}")
        })
    }

    /// A task is with one worker at a time.
    fn lends(&mut self, index: u32, worker: PublicKey, deadline: Time, now: Time) -> Held {
        let lent = self.tasks.get(index as usize).map(|task| (worker, *task));
        self.lent.extend(lent);
        self.just_lent.1.extend(lent);
        let slot = self.slot(index)?;
        let others = slot.leases.iter().filter(|(other, _)| **other != worker).any(|(_, until)| *until > now);
        let renewed = slot.leases.insert(worker, deadline).is_some();
        demand(slot.late == 0 || renewed, || format!("task {index} was lent to somebody new after its round"))?;
        demand(!others && slot.handed_in.is_none(), || format!("task {index} was lent to two workers at a time"))
    }

    fn convicts(&mut self, case: &CaseId) {
        let Some(worker) = self.results.get(case).copied().filter(|_| !self.closed) else { return };
        for slot in &mut self.slots {
            slot.leases.remove(&worker);
            if slot.handed_in.is_some_and(|(by, _)| by == worker) {
                (slot.handed_in, slot.accepted) = (None, false);
            }
        }
    }

    fn slot(&mut self, index: u32) -> Result<&mut Slot, String> {
        self.slots.get_mut(index as usize).ok_or_else(|| format!("a record is about task {index}, which there is not"))
    }

    /// Only those judge whom the run trusts.
    fn believed(&mut self, verdict: &Signed) -> Result<Verdict, String> {
        let opened =
            verdict.open::<Verdict>().map_err(|error| format!("a verdict on record cannot be read: {error}"))?;
        let (signer, said) = opened;
        self.verdicts.insert(Digest::of(&wire::encode(verdict)));
        demand(self.verifiers.contains(&signer), || format!("{} judged, whom nobody trusts", signer.short()))?;
        Ok(said)
    }

    fn judged(&mut self, index: u32, verdict: &Signed) -> Result<PublicKey, String> {
        let said = self.believed(verdict)?;
        let task = self.places.get(&said.task).copied();
        let slot = self.slot(index)?;
        demand(task == Some(index as usize) && slot.handed_in == Some((said.worker, said.payload)), || {
            format!("the verdict on task {index} is about something else")
        })?;
        Ok(said.worker)
    }

    /// Nobody is told of what is not on the disk, nor that what is there is not.
    pub fn answer(&self, worker: &PublicKey, asked: Option<&WorkerRequest>, reply: &WorkerReply, now: Time) -> Held {
        let told = |known: &BTreeSet<(PublicKey, TaskId)>, task: &TaskId, what: &str| {
            demand(known.contains(&(*worker, *task)), || {
                format!("worker {} was told of {what} that is not on the coordinator's disk", worker.short())
            })
        };
        match (asked, reply) {
            (_, WorkerReply::Leased(lease)) => told(&self.lent, &lease.task.id(), "a lease"),
            (_, WorkerReply::Committed(task)) => told(&self.committed, task, "a commitment"),
            (Some(WorkerRequest::Submit(_)), WorkerReply::Received(task)) => {
                told(&self.handed_in, task, "a submission")
            }
            (_, WorkerReply::Refused { task: Some(task), reason: RefusalReason::NotYourTask }) => {
                let slot = self.places.get(task).and_then(|index| self.slots.get(*index));
                let lent = slot.is_some_and(|slot| slot.leases.contains_key(worker));
                let (written, just_lent) = &self.just_lent;
                let answered_before = now == *written && just_lent.contains(&(*worker, *task));
                demand(!lent || answered_before || self.closed, || {
                    format!("worker {} was told that a task is not its own, which it was lent", worker.short())
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
