//! How much memory training needs, and how much there is, so that what cannot fit is refused before it is begun.

use super::device::DeviceChoice;
use super::fused;
use crate::protocol::{InnerOptimizer, ModelSpec, VOCABULARY};

/// Bytes of a number.
const NUMBER: u64 = 4;

/// What training needs, at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Whatever the batch: the base model, the weights in training, their gradients, the optimiser's state.
    pub state: u64,
    /// For each sequence of a batch: activations and their gradients.
    pub sequence: u64,
}

/// A batch for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("training on {sequences} sequences of {context} tokens needs about {} and {} may be used; {}",
    Size(*.needed), Size(*.free), remedy(*.fitting))]
pub struct TooLarge {
    /// Sequences in the batch.
    pub sequences: u64,
    /// Tokens in a sequence.
    pub context: u64,
    /// Bytes that it needs, all workers of this process together.
    pub needed: u64,
    /// Bytes that are free, or that it may use.
    pub free: u64,
    /// The largest batch that fits; 0 when none does.
    pub fitting: u64,
}

fn remedy(fitting: u64) -> String {
    match fitting {
        0 => "a smaller model, a shorter context or fewer workers would fit".to_owned(),
        fitting => format!("a batch of {fitting} would fit"),
    }
}

/// Bytes for people.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 < 1 << 30 {
            write!(f, "{} MiB", self.0.div_ceil(1 << 20))
        } else {
            write!(f, "{:.1} GiB", self.0 as f64 / f64::from(1 << 30))
        }
    }
}

impl Need {
    /// What one worker needs to train `model` on `device` with sequences of `model.context` tokens.
    ///
    /// Counted from the operations, rounded up: `tests/memory.rs` holds it to what is really allocated.
    #[must_use]
    pub fn of(model: &ModelSpec, optimizer: &InnerOptimizer, device: DeviceChoice) -> Self {
        let [width, hidden, heads, context, layers] =
            [model.width, model.hidden, model.heads, model.context, model.layers].map(u64::from);
        let parameters = model.parameters();
        let widest = width * hidden.max(width);
        // A matrix in Muon's iteration, its square, and a polynomial of that.
        let orthogonal = match optimizer {
            InnerOptimizer::Muon(..) => 3 * widest,
            InnerOptimizer::AdamW(_) => 0,
        };
        let vocabulary = u64::from(VOCABULARY);
        if device.is_ours() {
            // Base, weights, gradients, two moments; some of the gradients are there twice for a moment.
            let state = 5 * parameters + 2 * vocabulary * width + orthogonal * rayon::current_num_threads() as u64;
            // Kept by each block: its input, q, k, v, what attention gave, the middle, gate and up, some statistics.
            let kept = layers * (6 * width + 2 * hidden + 2 * heads + 2);
            // Once: the slopes of a block, gradients that come and go, logits.
            let once = 12 * width + 3 * hidden + vocabulary;
            // Buffers are up to an eighth larger than what is in them.
            return Self { state: state * NUMBER * 9 / 8, sequence: context * (kept + once) * NUMBER * 9 / 8 };
        }
        // Operation by operation everything is kept, and the optimiser's intermediates are as large as its largest
        // group of weights, a block or the embedding.
        let group = (parameters / layers).max(vocabulary * width);
        let kept = layers * (18 * width + 5 * hidden + 5 * heads * context);
        let once = 8 * width + 5 * vocabulary;
        Self { state: (6 * parameters + 8 * group + orthogonal) * NUMBER, sequence: context * (kept + once) * NUMBER }
    }

    /// Refuses a batch of `sequences` that `workers` of this process cannot train on at the same time, in what is free
    /// and in `allowed` bytes. Where the system does not say how much memory is free, that counts as enough, as the
    /// memory of a GPU does.
    pub fn check(
        &self,
        sequences: u64,
        context: u64,
        workers: u64,
        device: DeviceChoice,
        allowed: Option<u64>,
    ) -> Result<(), TooLarge> {
        let free = if device.is_processor() { [available(), allowed].into_iter().flatten().min() } else { None };
        let Some(free) = free else { return Ok(()) };
        let needed = self.bytes(sequences).saturating_mul(workers);
        if needed <= free {
            return Ok(());
        }
        let each = free / workers.max(1);
        let fitting = each.saturating_sub(self.state) / self.sequence.max(1);
        Err(TooLarge { sequences, context, needed, free, fitting })
    }

    /// Bytes at the peak of a step on `sequences`.
    #[must_use]
    pub fn bytes(&self, sequences: u64) -> u64 {
        self.state.saturating_add(self.sequence.saturating_mul(sequences))
    }
}

/// Bytes that this process may still use, what it keeps for itself included. Known on Linux.
#[must_use]
pub fn available() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemAvailable:")? * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let used = field("/sys/fs/cgroup/memory.stat", "anon");
    let group = limit.zip(used).map_or(u64::MAX, |(limit, used): (u64, u64)| limit.saturating_sub(used));
    Some(machine.min(group) + fused::kept_bytes())
}

/// Starts to measure anew what [`peak_resident`] tells. Does nothing where the system cannot.
pub fn reset_peak() {
    // 5 sets the peak to what is resident now; see proc_pid_clear_refs(5).
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most bytes that were resident since [`reset_peak`], or ever. Known on Linux.
#[must_use]
pub fn peak_resident() -> Option<u64> {
    Some(field("/proc/self/status", "VmHWM:")? * 1024)
}

/// The number after `name` in a file of lines.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut fields = text.lines().map(str::split_whitespace);
    let mut line = fields.find_map(|mut line| (line.next() == Some(name)).then_some(line))?;
    line.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Preset;

    #[test]
    fn what_cannot_fit_is_refused_with_the_batch_that_would() {
        let need = Need { state: 1 << 20, sequence: 1 << 20 };
        assert_eq!(need.check(1, 8, 1, DeviceChoice::NdArray, None), Ok(()));
        let error = need.check(9, 8, 1, DeviceChoice::NdArray, Some(4 << 20)).unwrap_err();
        assert_eq!((error.free, error.fitting), (4 << 20, 3), "an owner may allow less than is free");
        let Some(free) = available() else { return };
        let error = need.check(1 << 40, 8, 2, DeviceChoice::NdArray, None).unwrap_err();
        // Others use memory too while this runs.
        let expected = ((free / 2) >> 20) - 1;
        assert!(error.fitting.abs_diff(expected) < expected / 4 + 2, "{error:?}, {expected} expected");
        assert!(error.to_string().contains("would fit"), "{error}");
        let error = Need { state: 1 << 60, sequence: 1 }.check(1, 8, 1, DeviceChoice::NdArray, None).unwrap_err();
        assert!(error.fitting == 0 && error.to_string().contains("a smaller model"), "{error}");
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let model =
            crate::protocol::ModelSpec { layers: 256, width: 1 << 14, heads: 1, hidden: 1 << 16, context: 1 << 14 };
        let need = Need::of(&model, &InnerOptimizer::muon(), DeviceChoice::NdArray);
        assert_eq!(need.bytes(u64::MAX), u64::MAX);
        assert!(need.check(u64::MAX, 1, u64::MAX, DeviceChoice::NdArray, None).is_err() || available().is_none());
    }

    #[test]
    fn every_preset_fits_into_two_gigabytes() {
        for preset in Preset::ALL {
            let recipe = preset.recipe();
            let need = Need::of(&recipe.model, &InnerOptimizer::muon(), DeviceChoice::NdArray);
            assert!(need.bytes(recipe.batch.into()) < 2 << 30, "{preset}: {}", need.bytes(recipe.batch.into()));
        }
    }
}
