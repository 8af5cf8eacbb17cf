//! What every device must do, run on each that is present in this build: `cargo test --lib conformance`, with
//! `--features tch` and `flex` for theirs. The reference is the network in plain operations on burn's ndarray backend.

use super::device::{DeviceChoice, Operations};
use super::engine::tests::{TINY, check_gradients, gradients_on, lively, random_batch};
use super::network::Network;
use super::{BurnEngine, Predictor, checkpoint};
use crate::inference::{Sampler, Sampling, generate};
use crate::protocol::{InnerOptimizer, ModelSpec, Seed};
use crate::training::{Batch, Engine, EngineError, Params};

/// Large enough that a wrong order of heads or rows shows.
const SMALL: ModelSpec = ModelSpec { layers: 2, width: 48, heads: 3, hidden: 80, context: 40 };

/// The devices, with what they are best at and with plain operations.
fn devices() -> impl Iterator<Item = (DeviceChoice, Operations)> {
    DeviceChoice::present().into_iter().flat_map(|device| {
        let best = Some(device.operations()).filter(|&best| best != Operations::Plain);
        [Operations::Plain].into_iter().chain(best).map(move |operations| (device, operations))
    })
}

fn engine((device, operations): (DeviceChoice, Operations)) -> BurnEngine {
    if operations == Operations::Plain { BurnEngine::plain(device) } else { BurnEngine::new(device) }
}

fn reference() -> BurnEngine {
    BurnEngine::plain(DeviceChoice::NdArray)
}

fn batches() -> Vec<Batch> {
    (0..20).map(|step| random_batch(5, 40 - step % 3, step as u64)).collect()
}

/// How far `a` is from `b`, relative to `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-30)
}

/// What `steps` of training change.
fn change(engine: &BurnEngine, optimizer: &InnerOptimizer, steps: usize) -> (Vec<f32>, Vec<f32>) {
    let base = lively(&SMALL, 1);
    let mut session = engine.train(&SMALL, &base, optimizer).unwrap();
    let losses = batches()[..steps].iter().map(|batch| session.step(batch, 1e-3).unwrap()).collect();
    let after = session.finish().unwrap();
    (losses, after.values().iter().zip(base.values()).map(|(after, before)| after - before).collect())
}

#[test]
fn losses_are_the_reference() {
    let params = lively(&SMALL, 1);
    let expected = reference().loss(&SMALL, &params, &mut batches().into_iter()).unwrap();
    for device in devices() {
        let loss = engine(device).loss(&SMALL, &params, &mut batches().into_iter()).unwrap();
        assert!((loss - expected).abs() < 1e-5 * expected, "{device:?}: {loss} {expected}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences_and_the_reference() {
    let (params, batch) = (lively(&SMALL, 1), random_batch(3, 40, 2));
    let expected = gradients_on(DeviceChoice::NdArray, &Network::new(&SMALL, Operations::Plain), &params, &batch);
    for (device, operations) in devices() {
        check_gradients(device, &Network::new(&TINY, operations), &lively(&TINY, 1), &random_batch(3, 8, 2));
        let (_, gradients) = gradients_on(device, &Network::new(&SMALL, operations), &params, &batch);
        for tensor in params.layout().tensors() {
            let distance = distance(&gradients[tensor.range()], &expected.1[tensor.range()]);
            assert!(distance < 1e-4, "{device}, {}: {distance}", tensor.name);
        }
    }
}

#[test]
fn one_step_of_each_optimizer_is_the_reference() {
    for optimizer in [InnerOptimizer::adamw(), InnerOptimizer::muon()] {
        let (_, expected) = change(&reference(), &optimizer, 1);
        for device in devices() {
            let (_, change) = change(&engine(device), &optimizer, 1);
            let distance = distance(&change, &expected);
            assert!(distance < 2e-3, "{device:?}, {optimizer:?}: {distance}");
        }
    }
}

/// Twenty steps stay together: by how much bounds what an audit on another kind of device must allow.
#[test]
fn twenty_steps_stay_near_the_reference() {
    for optimizer in [InnerOptimizer::adamw(), InnerOptimizer::muon()] {
        let (expected_losses, expected) = change(&reference(), &optimizer, 20);
        for device in devices() {
            let (losses, change) = change(&engine(device), &optimizer, 20);
            let distance = distance(&change, &expected);
            assert!(distance < 1e-3, "{device:?}, {optimizer:?}: {distance}");
            for (loss, expected) in losses.iter().zip(&expected_losses) {
                assert!((loss - expected).abs() < 1e-4 * expected, "{device:?}, {optimizer:?}: {loss} {expected}");
            }
        }
    }
}

#[test]
fn the_same_training_gives_the_same_bits() {
    for optimizer in [InnerOptimizer::adamw(), InnerOptimizer::muon()] {
        for device in devices() {
            let [first, second] = [(); 2].map(|()| change(&engine(device), &optimizer, 5));
            assert!(first == second, "{device:?}, {optimizer:?}");
        }
    }
}

#[test]
fn weights_survive_the_device_and_a_checkpoint_bit_for_bit() {
    for device in devices() {
        let base = lively(&SMALL, 1);
        let back = engine(device).train(&SMALL, &base, &InnerOptimizer::muon()).unwrap().finish().unwrap();
        assert!(back == base, "{device:?}");
        let mut session = engine(device).train(&SMALL, &base, &InnerOptimizer::muon()).unwrap();
        session.step(&random_batch(2, 40, 1), 1e-3).unwrap();
        let trained = session.finish().unwrap();
        let decoded = checkpoint::decode(&checkpoint::encode(&trained).unwrap(), &SMALL).unwrap();
        assert!(decoded == trained, "{device:?}");
    }
}

#[test]
fn generated_text_is_the_reference() {
    // Trained a little, so that the likeliest token is clearly so.
    let text: Vec<u16> = (0..41 * 8).map(|at| u16::from(b"the cat sat on a mat. "[at % 22])).collect();
    let batch = Batch { context: 40, tokens: text };
    let base = Params::initial(&SMALL, &Seed::from_number(1));
    let mut session = reference().train(&SMALL, &base, &InnerOptimizer::muon()).unwrap();
    for _ in 0..15 {
        session.step(&batch, 3e-3).unwrap();
    }
    let params = session.finish().unwrap();
    let write = |device| {
        let predictor = Predictor::new(device, &SMALL, &params).unwrap();
        let mut text = Vec::new();
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut sampler = Sampler::new(greedy, &Seed::from_number(1), &[]).unwrap();
        generate(&predictor, b"the cat", 60, &mut sampler, |byte| {
            text.push(byte);
            Ok(())
        })
        .unwrap();
        (String::from_utf8_lossy(&text).into_owned(), predictor.logits(&[116, 104, 101]).unwrap())
    };
    let (expected, expected_logits) = write(DeviceChoice::NdArray);
    for device in DeviceChoice::present() {
        let (text, logits) = write(device);
        assert_eq!(text, expected, "{device}");
        let distance = distance(&logits, &expected_logits);
        assert!(distance < 1e-4, "{device}: {distance}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_and_does_not_end_the_process() {
    for device in devices() {
        let base = lively(&SMALL, 1);
        let mut session = engine(device).train(&SMALL, &base, &InnerOptimizer::adamw()).unwrap();
        let huge = random_batch(1, 41, 1);
        assert!(matches!(session.step(&huge, 1e-3), Err(EngineError::Batch(_))), "{device:?}");
        session.step(&random_batch(1, 40, 1), f32::INFINITY).unwrap();
        assert!(matches!(session.step(&random_batch(1, 40, 1), 1e-3), Err(EngineError::NotFinite(_))), "{device:?}");
        assert!(session.step(&random_batch(1, 40, 1), 1e-3).is_err(), "{device:?}");
    }
}
