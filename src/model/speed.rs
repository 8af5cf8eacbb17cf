//! What a device achieves: the time of a training step, and how near that is to the device's matrix products.

use std::time::Duration;

use burn::tensor::{Tensor, TensorData};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::device::DeviceChoice;
use super::engine::BurnEngine;
use super::matmul::{Matrix, MatrixMut, matmul};
use super::memory::{Need, peak_resident, reset_peak};
use super::presets::Recipe;
use super::weights::download;
use crate::protocol::{InnerOptimizer, ModelSpec, Seed, VOCABULARY};
use crate::runtime::Stopwatch;
use crate::training::{Batch, Engine, EngineError, Params};

/// How long steps are measured, at least, and how many there are, at least.
const MEASURED: (Duration, usize) = (Duration::from_secs(2), 5);

/// Steps before those that are measured: buffers are made, and libraries choose their kernels.
const WARM_UP: usize = 2;

/// Rows and columns of the products that the peak is measured with: large enough for full speed, and their three
/// matrices stay in a processor's caches.
const PEAK_SIZE: usize = 768;

/// The same on a GPU.
const PEAK_SIZE_GPU: usize = 4096;

/// What a device achieved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// The median time of a training step.
    pub step: Duration,
    /// Predicted tokens a second.
    pub tokens_per_second: f64,
    /// Floating point operations a second: those of forward and backward pass, whatever else was done.
    pub flops: f64,
    /// The same of large matrix products, on as many threads.
    pub gemm_flops: f64,
    /// What training added to this process's memory at most, bytes; where the system tells it and the device computes
    /// in it.
    pub peak_bytes: Option<u64>,
}

/// Floating point operations of a forward and backward pass over sequences of `model.context`, for each token: 6 for
/// each weight of a matrix (the embedding counts as the head), and those of causal attention, of which half is masked.
#[must_use]
pub fn flops_per_token(model: &ModelSpec) -> u64 {
    let [layers, width, hidden, context] = [model.layers, model.width, model.hidden, model.context].map(u64::from);
    let matrices = layers * (4 * width * width + 3 * width * hidden) + u64::from(VOCABULARY) * width;
    6 * (matrices + layers * context * width)
}

/// Trains some steps on made-up text and says how fast that was.
///
/// # Errors
/// When the device fails, or has no room.
pub fn measure(choice: DeviceChoice, recipe: &Recipe, optimizer: &InnerOptimizer) -> Result<Speed, EngineError> {
    let model = recipe.model;
    model.validate().map_err(|error| EngineError::Mismatch(error.to_string()))?;
    Need::of(&model, optimizer, choice)
        .check(recipe.batch.into(), model.context.into(), 1, choice, None)
        .map_err(|error| EngineError::Memory(error.to_string()))?;
    let context = model.context as usize;
    let tokens = (0..recipe.batch as usize * (context + 1)).map(|at| (at * at % 251) as u16).collect();
    let batch = Batch { context, tokens };

    reset_peak();
    let before = peak_resident();
    let base = Params::initial(&model, &Seed::from_number(1));
    let mut session = BurnEngine::new(choice).train(&model, &base, optimizer)?;
    for _ in 0..WARM_UP {
        session.step(&batch, 1e-3)?;
    }
    let (begun, mut steps) = (Stopwatch::start(), Vec::new());
    while steps.len() < MEASURED.1 || begun.elapsed() < MEASURED.0 {
        let start = Stopwatch::start();
        session.step(&batch, 1e-3)?;
        steps.push(start.elapsed());
    }
    let after = peak_resident();
    drop(session);
    steps.sort_unstable();
    let step = steps[steps.len() / 2];
    let rate = |amount: u64| amount as f64 / step.as_secs_f64();
    Ok(Speed {
        step,
        tokens_per_second: rate(batch.predicted() as u64),
        flops: rate(flops_per_token(&model) * batch.predicted() as u64),
        gemm_flops: gemm_flops(choice)?,
        peak_bytes: before.zip(after).filter(|_| choice.is_processor()).map(|(before, after)| after - before),
    })
}

/// Floating point operations a second of large matrix products in f32: the best of several tries, because nothing
/// else is as fast as the device than what was disturbed least.
///
/// # Errors
/// When the device fails.
pub fn gemm_flops(choice: DeviceChoice) -> Result<f64, EngineError> {
    let best = |flops: usize, mut run: Box<dyn FnMut() -> Result<(), EngineError>>| {
        let mut least = Duration::MAX;
        for _ in 0..12 {
            let start = Stopwatch::start();
            run()?;
            least = least.min(start.elapsed());
        }
        Ok(flops as f64 / least.as_secs_f64())
    };
    let values = |size: usize| (0..size * size).map(|at| (at % 17) as f32 - 8.0).collect::<Vec<_>>();
    if choice.is_ours() {
        let (size, threads) = (PEAK_SIZE, rayon::current_num_threads());
        let inputs = values(size);
        let mut outputs = vec![vec![0.0; size * size]; threads];
        return best(
            2 * size.pow(3) * threads,
            Box::new(move || {
                let input = Matrix::new(&inputs, size, size);
                (&mut outputs).into_par_iter().for_each(|output| {
                    matmul(MatrixMut::new(output, size, size), 0.0, 1.0, input, input);
                });
                Ok(())
            }),
        );
    }
    choice.share_threads();
    let size = if choice.is_processor() { PEAK_SIZE } else { PEAK_SIZE_GPU };
    let matrix = Tensor::<2>::from_data(TensorData::new(values(size), [size, size]), &choice.open());
    best(
        2 * size.pow(3),
        // Reading one number waits for the product.
        Box::new(move || download(matrix.clone().matmul(matrix.clone()).narrow(0, 0, 1)).map(drop)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Preset;

    #[test]
    fn a_token_costs_six_operations_for_each_parameter_and_some_for_attention() {
        let model = Preset::Mini.recipe().model;
        let per_parameter = flops_per_token(&model) as f64 / model.parameters() as f64;
        assert!((6.0..6.5).contains(&per_parameter), "{per_parameter}");
    }

    #[test]
    fn a_device_is_measured_in_seconds_and_stays_below_its_peak() {
        let model = ModelSpec { layers: 1, width: 32, heads: 2, hidden: 48, context: 16 };
        let recipe = Recipe { model, batch: 4 };
        let speed = measure(DeviceChoice::NdArray, &recipe, &InnerOptimizer::adamw()).unwrap();
        assert!(speed.step > Duration::ZERO && speed.tokens_per_second > 0.0);
        assert!(speed.flops > 0.0 && speed.flops < speed.gemm_flops, "{speed:?}");
    }
}
