use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Digest;

/// A training run: the digest of its [`RunSpec`](super::RunSpec).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Digest);

/// A task: the digest of its canonical encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Digest);

/// A round, counted from 0. The model that round `n` starts from is "base model `n`"; round 0 starts from the
/// initial weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round(pub u32);

impl Round {
    /// The one after this. Rounds are bounded by [`limits::ROUNDS_MAX`](super::limits::ROUNDS_MAX), so it cannot
    /// overflow.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How many rounds after its own a task's result comes. In its own round it counts in full; later, for as long as
/// [`limits::LATE_ROUNDS_MAX`](super::limits::LATE_ROUNDS_MAX) allows, half as much with each round: it was made from a
/// base model that has moved on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lateness(u32);

impl Lateness {
    /// Of a result that comes in its own round.
    pub const NONE: Self = Self(0);

    /// A round later, if results may come that late.
    #[must_use]
    pub fn later(self) -> Option<Self> {
        (self.0 < super::limits::LATE_ROUNDS_MAX).then_some(Self(self.0 + 1))
    }

    /// In rounds.
    #[must_use]
    pub fn rounds(self) -> u32 {
        self.0
    }

    /// What so many tokens count for, in pay and in the average: rounded down, and at least one, so that nothing that is
    /// accepted counts for nothing.
    #[must_use]
    pub fn counted(self, tokens: u64) -> u64 {
        tokens.checked_shr(self.0).unwrap_or(0).max(tokens.min(1))
    }
}

/// Milliseconds since the Unix epoch, as the world's clock tells them: real in a deployment, virtual in a
/// simulation. Cores are handed it and never ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
