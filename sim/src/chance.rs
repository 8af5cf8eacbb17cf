//! Draws that scenarios make. Each node and each fault has a stream of its own, so that what one draws does not change
//! another's luck.

use hydra::protocol::below;
use rand::Rng;

/// From 0 to below 1.
pub(crate) fn unit(rng: &mut impl Rng) -> f64 {
    below(rng, 1 << 53) as f64 / (1u64 << 53) as f64
}

/// Exponentially distributed, with this mean.
pub(crate) fn exponential(rng: &mut impl Rng, mean: f64) -> f64 {
    -mean * (1.0 - unit(rng)).ln()
}

/// Between the two, every doubling equally likely.
pub(crate) fn log_uniform(rng: &mut impl Rng, [least, most]: [u64; 2]) -> u64 {
    let (low, high) = ((least as f64).ln(), (most as f64).ln());
    ((low + (high - low) * unit(rng)).exp().round() as u64).clamp(least, most)
}
