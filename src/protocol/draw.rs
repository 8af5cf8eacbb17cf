//! Whose work is computed again: drawn by a secret that was fixed before there was anything to draw.
//!
//! The secrets of a run are a [hash chain](https://doi.org/10.1145/358790.358797) (Lamport 1981), used from its far end.
//! Its end, the anchor, is in the run's specification; the secret of a round hashes to the one before. So nobody can know
//! a round's secret before it is revealed, whoever has the anchor can check every one that was, and whoever made the
//! chain cannot choose one any more once workers have come.

use serde::{Deserialize, Serialize};

use super::{Digest, PublicKey, Round, Seed, TaskId, limits, wire};

/// The whole of [`Ppm`].
const MILLION: u32 = 1_000_000;

/// Parts in a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ppm(pub u32);

impl Ppm {
    /// All of it.
    pub const ONE: Self = Self(MILLION);

    /// As a fraction, for estimates.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(MILLION)
    }
}

/// How often the work of a worker with `n` clean results since its last failure is computed again: always, for the first
/// `probation` results, then with probability max(`floor`, `decay` / n).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditPolicy {
    /// Results of a new key that are all audited.
    pub probation: u32,
    /// Numerator of the falling rate.
    pub decay: u32,
    /// The rate never falls below this.
    pub floor: Ppm,
}

impl Default for AuditPolicy {
    fn default() -> Self {
        Self { probation: 10, decay: 2, floor: Ppm(50_000) }
    }
}

impl AuditPolicy {
    /// How often the work of a worker with so many `clean` results is audited.
    #[must_use]
    pub fn rate(&self, clean: u32) -> Ppm {
        if clean < self.probation {
            return Ppm::ONE;
        }
        let falling = (u64::from(self.decay) * u64::from(MILLION)).checked_div(clean.into());
        let falling = falling.map_or(MILLION, |rate| rate.min(MILLION.into()) as u32);
        Ppm(falling.max(self.floor.0))
    }
}

/// Who computes drawn work again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auditors {
    /// Verifiers, whose word counts.
    #[default]
    Verifiers,
    /// Other workers, who are lent the task as any other and do not know that it is a copy: a quorum, for runs in which
    /// nobody is trusted to compute.
    Peers,
}

/// What a run says about audits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audits {
    /// How often.
    pub policy: AuditPolicy,
    /// By whom.
    pub by: Auditors,
    /// What the secret of the first round hashes to.
    pub anchor: Digest,
}

/// What a secret hashes to: the secret of the round before, or the anchor.
#[must_use]
pub fn secret_before(secret: &Digest) -> Digest {
    Digest::in_domain("hydra audit secret v1", secret.as_bytes())
}

/// Whether `worker`'s result for `task` is audited, in a round with this `secret`. Whoever does not know the secret
/// cannot tell, whatever the worker's key.
#[must_use]
pub fn is_drawn(secret: &Digest, task: &TaskId, worker: &PublicKey, rate: Ppm) -> bool {
    let bytes = Digest::in_domain("hydra audit draw v1", &wire::encode(&(secret, task, worker)));
    let [a, b, c, d, ..] = *bytes.as_bytes();
    let drawn = u64::from(u32::from_le_bytes([a, b, c, d]));
    // A rate of one draws everything: the largest number is still below 2^32.
    drawn * u64::from(MILLION) < u64::from(rate.0) << 32
}

/// The secrets of all rounds that a run can have.
#[derive(Clone)]
pub struct SecretChain {
    /// Every [`STRIDE`]-th link, from the anchor on.
    marks: Vec<Digest>,
}

/// Links from one mark to the next: what finding a secret costs at most, in hashes.
const STRIDE: usize = 1024;

impl SecretChain {
    /// The chain that ends in `seed`, for so many `rounds`. Takes a microsecond for each of them.
    #[must_use]
    pub fn new(seed: &Seed, rounds: u32) -> Self {
        let strides = (rounds as usize).div_ceil(STRIDE).max(1);
        let mut link = Digest::in_domain("hydra audit secret v1", seed.as_bytes());
        let mut marks = vec![link];
        for _ in 0..strides {
            link = (0..STRIDE).fold(link, |link, _| secret_before(&link));
            marks.push(link);
        }
        marks.reverse();
        Self { marks }
    }

    /// The chain of a run that may go on for [`limits::ROUNDS_MAX`] rounds.
    #[must_use]
    pub fn whole(seed: &Seed) -> Self {
        Self::new(seed, limits::ROUNDS_MAX)
    }

    /// What the secret of the first round hashes to.
    #[must_use]
    pub fn anchor(&self) -> Digest {
        self.marks.first().copied().unwrap_or_else(|| Digest::of(&[]))
    }

    /// The secret of a round; nothing beyond the last round that the chain is for.
    #[must_use]
    pub fn secret(&self, round: Round) -> Option<Digest> {
        let place = round.0 as usize + 1;
        let mark = place.div_ceil(STRIDE);
        let link = *self.marks.get(mark)?;
        Some((place..mark * STRIDE).fold(link, |link, _| secret_before(&link)))
    }
}

impl std::fmt::Debug for SecretChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretChain({})", self.anchor().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Keypair;

    #[test]
    fn every_secret_hashes_to_the_one_before_and_the_first_to_the_anchor() {
        let chain = SecretChain::new(&Seed::from_number(3), 2500);
        let mut known = chain.anchor();
        for round in 0..2500 {
            let secret = chain.secret(Round(round)).unwrap();
            assert_eq!(secret_before(&secret), known, "round {round}");
            known = secret;
        }
        assert_eq!(chain.secret(Round(4000)), None);
    }

    #[test]
    fn draws_come_as_often_as_the_rate_says() {
        let (secret, key) = (Digest::of(b"secret"), Keypair::from_secret(&[1; 32]).public());
        let drawn = |rate| {
            let tasks = (0u32..20_000).map(|task| TaskId(Digest::of(&task.to_le_bytes())));
            tasks.filter(|task| is_drawn(&secret, task, &key, Ppm(rate))).count()
        };
        assert_eq!((drawn(0), drawn(MILLION)), (0, 20_000));
        // Five standard deviations either way.
        assert!((846..=1154).contains(&drawn(50_000)), "{}", drawn(50_000));
    }

    #[test]
    fn the_rate_is_one_at_first_then_falls_to_the_floor() {
        let rates = [0, 9, 10, 20, 40, 1000].map(|clean| AuditPolicy::default().rate(clean).0);
        assert_eq!(rates, [MILLION, MILLION, 200_000, 100_000, 50_000, 50_000]);
    }
}
