use burn::tensor::{Tensor, TensorData};
use proptest::prelude::*;

use super::super::device::{DeviceChoice, Operations};
use super::super::engine::BurnEngine;
use super::super::engine::tests::{gradients, lively, random_batch};
use super::super::network::Network;
use super::super::optimizer;
use super::super::weights::{download, groups, upload};
use super::*;
use crate::model::Preset;
use crate::protocol::{InnerOptimizer, ModelSpec, Seed};
use crate::training::{Engine, Layout, Params};

fn with_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// How far `a` is from `b`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

/// The same, relative to `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    difference(a, b) / norm(b.iter().copied()).max(1e-30)
}

fn spec() -> impl Strategy<Value = ModelSpec> {
    let sizes = (1u32..3, 1u32..4, 1u32..9, 1u32..60, 2u32..80);
    sizes.prop_map(|(layers, heads, pairs, hidden, context)| ModelSpec {
        layers,
        width: heads * pairs * 2,
        heads,
        hidden,
        context,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn losses_and_gradients_are_those_of_plain_operations_with_any_number_of_threads(
        model in spec(),
        sequences in 1usize..9,
        shorter in 0u32..3,
        seed in any::<u64>(),
    ) {
        let context = (model.context - shorter.min(model.context - 1)) as usize;
        let (params, batch) = (lively(&model, seed), random_batch(sequences, context, seed));
        let plain = gradients(&Network::new(&model, Operations::Plain), &params, &batch);
        let mut nudge = params.clone();
        for (at, value) in nudge.values_mut().iter_mut().enumerate() {
            *value *= if at % 2 == 0 { 1.0 + f32::EPSILON } else { 1.0 - f32::EPSILON };
        }
        let nudged = gradients(&Network::new(&model, Operations::Plain), &nudge, &batch);
        let network = Network::new(&model, Operations::Ours);
        let one = with_threads(1, || gradients(&network, &params, &batch));
        let three = with_threads(3, || gradients(&network, &params, &batch));
        prop_assert!(one == three, "the number of threads changes bits");
        prop_assert!((one.0 - plain.0).abs() < 1e-5 * plain.0, "loss {} {}", one.0, plain.0);
        for tensor in params.layout().tensors() {
            let (ours, theirs) = (&one.1[tensor.range()], &plain.1[tensor.range()]);
            // Narrow models are badly conditioned (a norm of two small numbers), and a tensor's whole gradient may be
            // what is left when larger terms cancel: so more is allowed where plain operations on weights that differ
            // by one rounding differ more. One such nudge is a small sample of what rounding can do, hence the factor.
            let rounding = difference(&nudged.1[tensor.range()], theirs);
            let bound = 2e-5 * norm(theirs.iter().copied()) + 5e-6 * norm(plain.1.iter().copied()) + 16.0 * rounding;
            let difference = difference(ours, theirs);
            prop_assert!(difference < bound, "{}: {difference} over {bound}", tensor.name);
        }
    }

    #[test]
    fn optimizers_are_those_of_plain_operations_with_any_number_of_threads(
        model in spec(),
        seed in any::<u64>(),
        muon in any::<bool>(),
    ) {
        let settings = if muon { InnerOptimizer::muon() } else { InnerOptimizer::adamw() };
        let (base, gradient) = (lively(&model, seed), lively(&model, seed ^ 1));
        let steps = |optimizer: &mut dyn optimizer::Optimizer| {
            let device = DeviceChoice::NdArray.open();
            let mut weights = upload(&base, &device);
            for _ in 0..3 {
                weights = optimizer.step(weights, upload(&gradient, &device), 1e-2).unwrap();
            }
            let values = weights.into_iter().flat_map(|weight| download(weight).unwrap()).collect();
            Params::new(Layout::of(&model), values).unwrap()
        };
        let groups = groups(&Layout::of(&model));
        let plain = steps(&mut optimizer::Plain::new(groups.clone(), settings));
        let fused = || steps(&mut Optimizer::new(groups.clone(), settings));
        let one = with_threads(1, fused);
        prop_assert!(one == with_threads(3, fused), "the number of threads changes bits");
        for tensor in base.layout().tensors() {
            let change = |params: &Params| -> Vec<f32> {
                params.tensor(tensor).iter().zip(base.tensor(tensor)).map(|(after, before)| after - before).collect()
            };
            let distance = distance(&change(&one), &change(&plain));
            prop_assert!(distance < 1e-3, "{}: {distance}", tensor.name);
        }
    }
}

#[test]
fn at_the_size_of_a_preset_gradients_are_those_of_plain_operations_to_1e_5() {
    let model = Preset::Nano.recipe().model;
    let params = Params::initial(&model, &Seed::from_number(1));
    let batch = random_batch(5, 64, 1);
    let [fused, plain] = [Operations::Ours, Operations::Plain]
        .map(|operations| gradients(&Network::new(&model, operations), &params, &batch));
    for tensor in params.layout().tensors() {
        let distance = distance(&fused.1[tensor.range()], &plain.1[tensor.range()]);
        assert!(distance < 1e-5, "{}: {distance}", tensor.name);
    }
}

#[test]
fn a_gradient_that_does_not_lie_row_by_row_is_understood() {
    let model = ModelSpec { layers: 1, width: 4, heads: 1, hidden: 3, context: 4 };
    let device = DeviceChoice::NdArray.open();
    let weights: Vec<_> =
        upload(&lively(&model, 1), &device).into_iter().map(|weight| weight.autodiff().require_grad()).collect();
    let factors = |turned: bool| {
        let factors: Vec<f32> = (0..16).map(|at| if turned { at % 4 * 4 + at / 4 } else { at } as f32).collect();
        let factors = Tensor::<2>::from_data(TensorData::new(factors, [4, 4]), &device);
        if turned { factors.transpose() } else { factors }
    };
    let [straight, turned] = [false, true].map(|turned| {
        let states = Fused::new(&model).states(&weights, &[1, 2, 3, 4], 4);
        let states = if turned { states.transpose() * factors(turned).transpose() } else { states * factors(turned) };
        let mut gradients = states.sum().backward();
        download(weights[1].grad_remove(&mut gradients).unwrap()).unwrap()
    });
    assert!(distance(&straight, &turned) < 1e-6);
}

#[test]
fn memory_comes_back_through_tensors() {
    let buffer = pool::take(7_654_321);
    let address = buffer.as_ptr();
    let device = DeviceChoice::NdArray.open();
    let tensor = Tensor::<1>::from_data(TensorData::new(buffer, [7_654_321]), &device);
    pool::give(download(tensor.autodiff().inner()).unwrap());
    let again = pool::take(7_654_321);
    assert_eq!(again.as_ptr(), address, "no copy was made on the way");
}

/// While a step waits for its parts, its thread may begin another session's step.
#[test]
fn sessions_that_share_threads_do_not_disturb_each_other() {
    use rayon::iter::{IntoParallelIterator, ParallelIterator};
    let model = ModelSpec { layers: 2, width: 16, heads: 2, hidden: 24, context: 64 };
    let train = |seed: u64| {
        let engine = BurnEngine::new(DeviceChoice::NdArray);
        let mut session = engine.train(&model, &lively(&model, seed), &InnerOptimizer::muon()).unwrap();
        for step in 0..4 {
            session.step(&random_batch(8, 64, seed + step), 1e-2).unwrap();
        }
        session.finish().unwrap()
    };
    let alone: Vec<Params> = (0..12).map(train).collect();
    let together: Vec<Params> = with_threads(3, || (0..12u64).into_par_iter().map(train).collect());
    assert!(alone == together);
}
