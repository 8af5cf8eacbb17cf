//! How far apart two honest results may be, for each pair of device kinds.
//!
//! `benches/replay.rs` measures it, beside the smallest cheat: one step of 30 left out.

use crate::protocol::DeviceKind::{Ndarray, NdarrayPlain};
use crate::protocol::{Codec, DeviceKind, Parting, Reason, limits};
use crate::training::Difference;

/// How far an honest update may be from its replay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// What codes may differ by on average, in levels.
    pub codes: f64,
    /// The relative L2 distance of scales, and of numbers that travel as such.
    pub distance: f64,
}

/// What is measured of a pair of device kinds: by how much ternary codes of honest results may differ on average, and how far
/// apart their numbers may be.
#[derive(Debug, Clone, Copy)]
struct Pair {
    kinds: [DeviceKind; 2],
    codes: f64,
    distance: f64,
}

/// The pairs that were measured, with Muon and with `AdamW`. `cargo bench --profile dev --bench replay -- TEXT` prints
/// what they are derived from.
const PAIRS: [Pair; 2] = [
    Pair { kinds: [Ndarray, Ndarray], codes: limits::REPLAY_CODES_MAX, distance: limits::REPLAY_DISTANCE_MAX },
    Pair { kinds: [Ndarray, NdarrayPlain], codes: limits::REPLAY_CODES_MAX, distance: limits::REPLAY_DISTANCE_MAX },
];

/// What codes may differ by at most on average, in levels, however many of these a codec has.
const CODES_MAX: f64 = 0.5;

impl Tolerance {
    /// For results of these two kinds of devices that travel with `codec`. Pairs that nobody has measured may differ by
    /// more, but less than the smallest cheat does.
    ///
    /// The finer the codes, the more of them differ by the same rounding: as many times more as there are levels.
    #[must_use]
    pub fn between(one: DeviceKind, other: DeviceKind, codec: Codec) -> Self {
        let pair = PAIRS.iter().find(|pair| pair.kinds == [one, other] || pair.kinds == [other, one]);
        let (codes, distance) = pair
            .map_or((limits::REPLAY_CODES_UNMEASURED, limits::REPLAY_DISTANCE_UNMEASURED), |pair| {
                (pair.codes, pair.distance)
            });
        let levels = f64::from(codec.levels().unwrap_or(1));
        Self { codes: (codes * levels).min(CODES_MAX), distance }
    }

    /// What most numbers of a payload with `codec` are held to.
    #[must_use]
    pub fn of(&self, codec: Codec) -> f64 {
        if codec.levels().is_some() { self.codes } else { self.distance }
    }

    /// Whether `difference` is that of two honest computations; otherwise why not. `parting` says where they part.
    pub fn check(&self, difference: &Difference, parting: impl FnOnce() -> Parting) -> Result<(), Reason> {
        let measured =
            [(difference.codes, self.codes), (difference.scales, self.distance), (difference.exact, self.distance)];
        // A distance that is no number is no proof of honesty.
        let beyond = measured.into_iter().find(|(distance, most)| distance.is_nan() || distance > most);
        beyond.map_or(Ok(()), |(distance, tolerance)| {
            let (distance, tolerance) = (distance as f32, tolerance as f32);
            Err(Reason::ReplayMismatch { distance, tolerance, parting: parting() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::CODECS;

    #[test]
    fn the_order_of_two_devices_changes_nothing_and_what_nobody_has_measured_is_held_to_less() {
        use DeviceKind::{Cuda, Flex, Mps, Other, TchCpu};
        let kinds = [Ndarray, NdarrayPlain, Flex, TchCpu, Cuda, Mps, Other];
        for (one, other) in kinds.iter().flat_map(|one| kinds.map(|other| (*one, other))) {
            for codec in CODECS {
                let tolerance = Tolerance::between(one, other, codec);
                assert_eq!(tolerance, Tolerance::between(other, one, codec));
                let widest = Tolerance::between(Cuda, Mps, codec);
                assert!(tolerance.codes <= widest.codes && tolerance.distance <= widest.distance);
                assert!(tolerance.codes <= CODES_MAX);
            }
        }
    }
}
