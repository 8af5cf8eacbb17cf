//! The tasks of the open round, with what has to be found quickly kept beside them: a coordinator is asked thousands of
//! times a second which task is free and who holds what, and a round may have thousands of tasks.

use std::collections::{BTreeMap, BTreeSet};

use crate::protocol::{Commitment, Digest, PublicKey, Signed, Submission, Task, TaskId, Time, Trail};

/// A task of the open round.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub task: Task,
    pub id: TaskId,
    pub leases: BTreeMap<PublicKey, Time>,
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
    fn new(task: Task) -> Self {
        Self {
            id: task.id(),
            task,
            leases: BTreeMap::new(),
            commitments: BTreeMap::new(),
            shut_out: BTreeSet::new(),
            trail: None,
            stage: Stage::Open,
        }
    }

    /// From when on it may be lent to somebody else; never, once there is a result.
    fn free_from(&self) -> Option<Time> {
        let last = || self.leases.values().max().copied().unwrap_or(Time(0));
        (self.stage == Stage::Open).then(last)
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
    counts: Counts,
}

impl Slots {
    pub fn new(tasks: impl Iterator<Item = Task>) -> Self {
        let mut slots = Self { all: tasks.map(Slot::new).collect(), ..Self::default() };
        slots.places = (0..).zip(&slots.all).map(|(index, slot)| (slot.id, index)).collect();
        for index in 0..slots.len() {
            slots.enter(index);
        }
        slots
    }

    pub fn len(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
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

    pub fn counts(&self) -> Counts {
        self.counts
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
        *self.counts.of(&slot.stage) += 1;
    }

    fn leave(&mut self, index: u32) {
        let slot = &self.all[index as usize];
        if let Some(from) = slot.free_from() {
            self.free.remove(&(from, index));
        }
        for worker in slot.leases.keys() {
            self.held.remove(&(*worker, index));
        }
        *self.counts.of(&slot.stage) -= 1;
    }

    /// Those that `worker` was ever lent and that were not taken back.
    pub fn held_by(&self, worker: &PublicKey) -> impl Iterator<Item = &Slot> {
        let all = (*worker, 0)..=(*worker, u32::MAX);
        self.held.range(all).filter_map(|(_, index)| self.get(*index))
    }

    /// Those that nobody has a result for and nobody holds at `now`: the ones that nobody ever held first.
    pub fn free(&self, now: Time) -> impl Iterator<Item = &Slot> {
        self.free.range(..=(now, u32::MAX)).filter_map(|(_, index)| self.get(*index))
    }

    /// When the next lease of a task without a result runs out.
    pub fn next_expiry(&self, now: Time) -> Option<Time> {
        self.free.range((now + std::time::Duration::from_millis(1), 0)..).next().map(|(from, _)| *from)
    }

    /// Whether anybody was lent anything.
    pub fn is_anything_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Checks that what is kept beside the tasks follows from them.
    pub fn assert_invariants(&self) {
        // Not the tasks themselves: a result may hold losses that are no numbers, which equal nothing.
        let indexed = || (0u32..).zip(&self.all);
        let free = indexed().filter_map(|(index, slot)| Some((slot.free_from()?, index)));
        let held = indexed().flat_map(|(index, slot)| slot.leases.keys().map(move |worker| (*worker, index)));
        let mut counts = Counts::default();
        self.all.iter().for_each(|slot| *counts.of(&slot.stage) += 1);
        let sound = self.free.iter().copied().eq(free.collect::<BTreeSet<_>>())
            && self.held.iter().copied().eq(held.collect::<BTreeSet<_>>())
            && self.counts == counts;
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
