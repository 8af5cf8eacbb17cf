//! The tasks of the open round, with what has to be found quickly kept beside them: a coordinator is asked thousands of
//! times a second which task is free and who holds what, and a round may have thousands of tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::protocol::{Commitment, Digest, Lateness, PublicKey, Signed, Submission, Task, TaskId, Time, Trail, limits};

/// A task of the open round, or one of an earlier round that somebody may still bring a result for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    /// What records name it by: the round's own tasks come first, in their order.
    pub place: u32,
    /// How many rounds ago it was to be done.
    pub lateness: Lateness,
    pub task: Task,
    pub id: TaskId,
    pub leases: BTreeMap<PublicKey, Time>,
    /// Since when each has had it, from the first time that it was lent it; forgotten where a lease is over when the round is
    /// extended.
    pub since: BTreeMap<PublicKey, Time>,
    /// With the order in which they came, over all tasks of the round.
    pub commitments: BTreeMap<PublicKey, (u32, Commitment)>,
    /// Who is not to be lent this task again: rejected, or handed it back.
    pub shut_out: BTreeSet<PublicKey>,
    /// How the result that was handed in last came about, as its worker says.
    pub trail: Option<Trail>,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stage {
    /// Nobody has handed in a result.
    Open,
    /// A result waits for admission.
    Submitted { worker: PublicKey, submission: Submission },
    /// A result waits to be compared with the others.
    Admitted { worker: PublicKey, payload: Digest, norm: f32 },
    /// Done.
    Accepted { worker: PublicKey, payload: Digest, norm: f32, verdict: Signed },
}

impl Stage {
    pub fn worker(&self) -> Option<PublicKey> {
        match self {
            Self::Open => None,
            Self::Submitted { worker, .. } | Self::Admitted { worker, .. } | Self::Accepted { worker, .. } => {
                Some(*worker)
            }
        }
    }

    pub fn payload(&self) -> Option<Digest> {
        match self {
            Self::Open => None,
            Self::Submitted { submission, .. } => Some(submission.commitment.payload),
            Self::Admitted { payload, .. } | Self::Accepted { payload, .. } => Some(*payload),
        }
    }
}

impl Slot {
    fn new(place: u32, task: Task) -> Self {
        Self {
            place,
            lateness: Lateness::NONE,
            id: task.id(),
            task,
            leases: BTreeMap::new(),
            since: BTreeMap::new(),
            commitments: BTreeMap::new(),
            shut_out: BTreeSet::new(),
            trail: None,
            stage: Stage::Open,
        }
    }

    /// From when on it may be lent to somebody else; never, once there is a result, and never after its own round: what
    /// begins now is better begun from the present model.
    fn free_from(&self) -> Option<Time> {
        let last = || self.leases.values().max().copied().unwrap_or(Time(0));
        (self.stage == Stage::Open && !self.is_late()).then(last)
    }

    /// Until when `worker` may have it at most, where a lease is so long and it was lent it before.
    pub fn held_until(&self, worker: &PublicKey, lease: Duration) -> Option<Time> {
        self.since.get(worker).map(|since| *since + lease * limits::LEASES_HELD_MAX)
    }

    pub fn is_late(&self) -> bool {
        self.lateness != Lateness::NONE
    }

    /// What its result counts for, in pay and in the average.
    pub fn tokens(&self) -> u64 {
        self.lateness.counted(self.task.tokens())
    }

    /// Whether somebody may bring a result in the next round, if nobody does in this.
    pub fn stays(&self) -> bool {
        self.stage == Stage::Open && !self.leases.is_empty() && self.lateness.later().is_some()
    }
}

/// How many tasks are in which stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub open: usize,
    pub submitted: usize,
    pub admitted: usize,
    pub accepted: usize,
}

impl Counts {
    fn of(&mut self, stage: &Stage) -> &mut usize {
        match stage {
            Stage::Open => &mut self.open,
            Stage::Submitted { .. } => &mut self.submitted,
            Stage::Admitted { .. } => &mut self.admitted,
            Stage::Accepted { .. } => &mut self.accepted,
        }
    }
}

/// All tasks of a round.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Slots {
    all: Vec<Slot>,
    places: BTreeMap<TaskId, u32>,
    /// Those without a result, by when they may be lent to somebody else.
    free: BTreeSet<(Time, u32)>,
    /// Who was lent what.
    held: BTreeSet<(PublicKey, u32)>,
    /// The same of those without a result: a few of all that a fast worker was lent in a round.
    under_way: BTreeSet<(PublicKey, u32)>,
    /// Of the round's own tasks.
    counts: Counts,
    /// Of those of earlier rounds.
    late: Counts,
}

impl Slots {
    /// The tasks of a new round, and behind them those that are left of the rounds before.
    pub fn new(tasks: impl Iterator<Item = Task>, left: impl Iterator<Item = Slot>) -> Self {
        let mut slots =
            Self { all: (0..).zip(tasks).map(|(place, task)| Slot::new(place, task)).collect(), ..Self::default() };
        slots.all.extend(left);
        for (place, slot) in (0..).zip(&mut slots.all) {
            slot.place = place;
        }
        slots.places = (0..).zip(&slots.all).map(|(index, slot)| (slot.id, index)).collect();
        for index in 0..slots.len() {
            slots.enter(index);
        }
        slots
    }

    /// All of them, those of earlier rounds too.
    pub fn len(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    /// The round's own.
    pub fn own(&self) -> u32 {
        let Counts { open, submitted, admitted, accepted } = self.counts;
        u32::try_from(open + submitted + admitted + accepted).unwrap_or(u32::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Slot> {
        self.all.iter()
    }

    pub fn get(&self, index: u32) -> Option<&Slot> {
        self.all.get(index as usize)
    }

    pub fn of_task(&self, task: &TaskId) -> Option<&Slot> {
        self.get(*self.places.get(task)?)
    }

    /// Of the round's own tasks.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Of those of earlier rounds.
    pub fn late(&self) -> Counts {
        self.late
    }

    /// Those that somebody may bring a result for in the next round, which comes a round later then; with how many
    /// commitments there are among them. Who committed first keeps their place before whoever commits from now on.
    pub fn left(self) -> (Vec<Slot>, u32) {
        let mut left: Vec<Slot> = self.all.into_iter().filter(Slot::stays).collect();
        let mut orders: Vec<&mut u32> = Vec::new();
        for slot in &mut left {
            slot.lateness = slot.lateness.later().unwrap_or(slot.lateness);
            orders.extend(slot.commitments.values_mut().map(|(order, _)| order));
        }
        orders.sort();
        let count = u32::try_from(orders.len()).unwrap_or(u32::MAX);
        (0..).zip(orders).for_each(|(new, order)| *order = new);
        (left, count)
    }

    /// Changes one task.
    pub fn change(&mut self, index: u32, change: impl FnOnce(&mut Slot)) {
        if (index as usize) < self.all.len() {
            self.leave(index);
            change(&mut self.all[index as usize]);
            self.enter(index);
        }
    }

    fn enter(&mut self, index: u32) {
        let slot = &self.all[index as usize];
        self.free.extend(slot.free_from().map(|from| (from, index)));
        self.held.extend(slot.leases.keys().map(|worker| (*worker, index)));
        if slot.stage == Stage::Open {
            self.under_way.extend(slot.leases.keys().map(|worker| (*worker, index)));
        }
        let counts = if slot.is_late() { &mut self.late } else { &mut self.counts };
        *counts.of(&slot.stage) += 1;
    }

    fn leave(&mut self, index: u32) {
        let slot = &self.all[index as usize];
        if let Some(from) = slot.free_from() {
            self.free.remove(&(from, index));
        }
        for worker in slot.leases.keys() {
            self.held.remove(&(*worker, index));
            self.under_way.remove(&(*worker, index));
        }
        let counts = if slot.is_late() { &mut self.late } else { &mut self.counts };
        *counts.of(&slot.stage) -= 1;
    }

    /// Those that `worker` was ever lent and that were not taken back.
    pub fn held_by(&self, worker: &PublicKey) -> impl Iterator<Item = &Slot> {
        let all = (*worker, 0)..=(*worker, u32::MAX);
        self.held.range(all).filter_map(|(_, index)| self.get(*index))
    }

    /// Those of them that nobody has a result for.
    pub fn under_way(&self, worker: &PublicKey) -> impl Iterator<Item = &Slot> {
        let all = (*worker, 0)..=(*worker, u32::MAX);
        self.under_way.range(all).filter_map(|(_, index)| self.get(*index))
    }

    /// Those that nobody has a result for and nobody holds at `now`: the ones that nobody ever held first.
    pub fn free(&self, now: Time) -> impl Iterator<Item = &Slot> {
        self.free.range(..=(now, u32::MAX)).filter_map(|(_, index)| self.get(*index))
    }

    /// When the next lease of a task without a result runs out.
    pub fn next_expiry(&self, now: Time) -> Option<Time> {
        self.free.range((now + std::time::Duration::from_millis(1), 0)..).next().map(|(from, _)| *from)
    }

    /// Whether anybody was lent any of the round's own tasks.
    pub fn is_anything_held(&self) -> bool {
        self.held.iter().any(|(_, index)| self.get(*index).is_some_and(|slot| !slot.is_late()))
    }

    /// Checks that what is kept beside the tasks follows from them.
    pub fn assert_invariants<'a>(&'a self) {
        // Not the tasks themselves: a result may hold losses that are no numbers, which equal nothing.
        let indexed = || (0u32..).zip(&self.all);
        let free = indexed().filter_map(|(index, slot)| Some((slot.free_from()?, index)));
        let leases = |(index, slot): (u32, &'a Slot)| slot.leases.keys().map(move |worker| (*worker, index));
        let held = indexed().flat_map(leases);
        let under_way = indexed().filter(|(_, slot)| slot.stage == Stage::Open).flat_map(leases);
        let (mut counts, mut late) = (Counts::default(), Counts::default());
        self.all.iter().for_each(|slot| *if slot.is_late() { &mut late } else { &mut counts }.of(&slot.stage) += 1);
        let sound = self.free.iter().copied().eq(free.collect::<BTreeSet<_>>())
            && self.held.iter().copied().eq(held.collect::<BTreeSet<_>>())
            && self.under_way.iter().copied().eq(under_way.collect::<BTreeSet<_>>())
            && (self.counts, self.late) == (counts, late)
            && indexed().all(|(index, slot)| slot.place == index);
        assert!(sound, "what is kept beside the tasks does not follow from them");
    }
}

impl<'a> IntoIterator for &'a Slots {
    type Item = &'a Slot;
    type IntoIter = std::slice::Iter<'a, Slot>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
