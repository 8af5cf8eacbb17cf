use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
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

    /// The `index`-th seed of the stream `label` under this one.
    #[must_use]
    pub fn derive(&self, label: &str, index: u64) -> Self {
        let mut bytes = self.0.as_bytes().to_vec();
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(label.as_bytes());
        Self(Digest::in_domain("hydra seed derive v1", &bytes))
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
