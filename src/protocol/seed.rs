use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::Digest;

/// Where pseudo-random numbers come from: 32 bytes that branch into independent named streams.
///
/// Every draw that two machines must agree on (initial weights, batches, stochastic rounding, simulated faults)
/// comes from a seed through [`Seed::rng`], which is `ChaCha8`: its output is fixed by its specification, so it is
/// the same on every platform and in every version of Hydra.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(Digest);

impl Seed {
    /// The root seed that a number on the command line stands for.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(Digest::in_domain("hydra seed number v1", &number.to_le_bytes()))
    }

    /// The seed that a digest stands for.
    #[must_use]
    pub fn from_digest(digest: Digest) -> Self {
        Self(digest)
    }

    /// The `index`-th seed of the stream `label` under this one.
    #[must_use]
    pub fn derive(&self, label: &str, index: u64) -> Self {
        let mut bytes = self.0.as_bytes().to_vec();
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(label.as_bytes());
        Self(Digest::in_domain("hydra seed derive v1", &bytes))
    }

    /// The seed of a run that begins with a given model instead of one that is drawn from this seed: another for each
    /// model, so that no two such runs have one id.
    #[must_use]
    pub fn beginning_with(&self, model: &Digest) -> Self {
        let bytes = [*self.0.as_bytes(), *model.as_bytes()].concat();
        Self(Digest::in_domain("hydra seed first model v1", &bytes))
    }

    /// A generator that starts here.
    #[must_use]
    pub fn rng(&self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(*self.0.as_bytes())
    }

    /// The 32 bytes, for a key that must follow from the seed (simulated workers only).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// A number below `bound`, every one equally likely (Lemire's method). Written out here because tasks must draw the
/// same numbers in every version of Hydra, and libraries keep that freedom for themselves. Zero for a `bound` of 0.
#[must_use]
pub fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    let mut product = u128::from(rng.next_u64()) * u128::from(bound);
    let reject_below = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
    while (product as u64) < reject_below {
        product = u128::from(rng.next_u64()) * u128::from(bound);
    }
    (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_forever() {
        let seed = Seed::from_number(7).derive("task", 3);
        let mut rng = seed.rng();
        let drawn: Vec<u64> = (0..4).map(|_| below(&mut rng, 1000)).collect();
        assert_eq!(drawn, [535, 214, 378, 441], "changing this changes every run that was ever started");
    }

    #[test]
    fn labels_and_indices_give_different_streams() {
        let seed = Seed::from_number(7);
        let (one, other) = (Digest::of(b"a"), Digest::of(b"b"));
        let all = [
            seed,
            seed.derive("a", 0),
            seed.derive("a", 1),
            seed.derive("b", 0),
            seed.beginning_with(&one),
            seed.beginning_with(&other),
            Seed::from_number(8).beginning_with(&one),
        ];
        assert!(all.iter().enumerate().all(|(i, one)| all[..i].iter().all(|other| other != one)));
    }
}
