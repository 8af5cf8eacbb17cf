use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use burn::tensor::{Device, Gradients, Tensor};

use super::device::{DeviceChoice, Operations};
use super::memory::Need;
use super::network::Network;
use super::optimizer::Optimizer;
use super::weights::{Weights, download, upload};
use crate::protocol::{DeviceKind, InnerOptimizer, ModelSpec, VOCABULARY};
use crate::training::{Batch, Engine, EngineError, Layout, Params, Session};

/// Trains and measures the network of [`ModelSpec`] on a device of burn.
#[derive(Debug, Clone)]
pub struct BurnEngine {
    choice: DeviceChoice,
    device: Device,
    operations: Operations,
    /// Bytes that training may use at most.
    memory: Option<u64>,
}

impl BurnEngine {
    /// An engine on the device that `choice` stands for.
    #[must_use]
    pub fn new(choice: DeviceChoice) -> Self {
        Self { choice, device: choice.open(), operations: choice.operations(), memory: None }
    }

    /// The same in plain burn operations: several times slower on the processor, and an independent computation of the
    /// same thing to compare with.
    #[must_use]
    pub fn plain(choice: DeviceChoice) -> Self {
        Self { operations: Operations::Plain, ..Self::new(choice) }
    }

    /// The same, refusing whatever needs more bytes to train on.
    #[must_use]
    pub fn within(self, memory: Option<u64>) -> Self {
        Self { memory, ..self }
    }
}

/// `params` on `device`, if they are of `model` and finite.
pub(super) fn load(model: &ModelSpec, params: &Params, device: &Device) -> Result<Weights, EngineError> {
    check_params(model, params)?;
    Ok(upload(params, device))
}

/// Refuses parameters that are not of `model`, or not finite.
pub(super) fn check_params(model: &ModelSpec, params: &Params) -> Result<(), EngineError> {
    model.validate().map_err(|error| EngineError::Mismatch(error.to_string()))?;
    let layout = Layout::of(model);
    if params.layout() != &layout {
        let (theirs, ours) = (params.layout().len(), layout.len());
        return Err(EngineError::Mismatch(format!("{theirs} parameters of another layout than the model's {ours}")));
    }
    if !params.is_finite() {
        return Err(EngineError::NotFinite("a weight of the base model"));
    }
    Ok(())
}

/// The inputs and the targets of a batch, each `sequences × context` tokens.
fn split(batch: &Batch, model: &ModelSpec) -> Result<(Vec<u16>, Vec<u16>), EngineError> {
    let context = batch.context;
    if context == 0 || context > model.context as usize {
        return Err(EngineError::Batch(format!("sequences of {context} tokens, the context is {}", model.context)));
    }
    if batch.tokens.is_empty() || !batch.tokens.len().is_multiple_of(context + 1) {
        return Err(EngineError::Batch(format!("{} tokens are no sequences of {context} + 1", batch.tokens.len())));
    }
    check_tokens(&batch.tokens)?;
    let sequences = || batch.tokens.chunks_exact(context + 1);
    let inputs = sequences().flat_map(|sequence| &sequence[..context]).copied().collect();
    let targets = sequences().flat_map(|sequence| &sequence[1..]).copied().collect();
    Ok((inputs, targets))
}

/// Refuses tokens that are not in the vocabulary.
pub(super) fn check_tokens(tokens: &[u16]) -> Result<(), EngineError> {
    match tokens.iter().find(|&&token| u32::from(token) >= VOCABULARY) {
        Some(token) => Err(EngineError::Batch(format!("token {token} is not below {VOCABULARY}"))),
        None => Ok(()),
    }
}

/// The number in a tensor of one.
fn scalar(tensor: Tensor<1>) -> Result<f32, EngineError> {
    download(tensor)?.first().copied().ok_or_else(|| EngineError::Device("it gave no loss".to_owned()))
}

/// The gradient of each of `weights`.
fn gradients_of(weights: &[Tensor<1>], gradients: &mut Gradients) -> Result<Weights, EngineError> {
    let missing = || EngineError::Device("it gave no gradient".to_owned());
    weights.iter().map(|weight| weight.grad_remove(gradients).ok_or_else(missing)).collect()
}

fn fits(
    need: &Need,
    sequences: u64,
    context: u64,
    device: DeviceChoice,
    memory: Option<u64>,
) -> Result<(), EngineError> {
    let checked = need.check(sequences, context, 1, device, memory);
    checked.map_err(|error| EngineError::Memory(error.to_string()))
}

fn finite(loss: f32) -> Result<f32, EngineError> {
    if loss.is_finite() { Ok(loss) } else { Err(EngineError::NotFinite("the loss")) }
}

impl Engine for BurnEngine {
    fn kind(&self) -> DeviceKind {
        self.choice.kind(self.operations)
    }

    fn train(
        &self,
        model: &ModelSpec,
        base: &Params,
        optimizer: &InnerOptimizer,
    ) -> Result<Box<dyn Session>, EngineError> {
        self.choice.share_threads();
        let need = Need::of(model, optimizer, self.choice);
        // No batch is smaller; the first one is checked when it is known.
        fits(&need, 1, model.context.into(), self.choice, self.memory)?;
        let weights = guarded(self.choice, || load(model, base, &self.device))?;
        let layout = Arc::clone(base.layout());
        let network = Network::new(model, self.operations);
        Ok(Box::new(BurnSession {
            choice: self.choice,
            model: *model,
            need: Some(need),
            memory: self.memory,
            optimizer: network.optimizer(model, optimizer),
            network,
            weights,
            layout,
        }))
    }

    fn loss(
        &self,
        model: &ModelSpec,
        params: &Params,
        batches: &mut dyn Iterator<Item = Batch>,
    ) -> Result<f64, EngineError> {
        self.choice.share_threads();
        let weights = guarded(self.choice, || load(model, params, &self.device))?;
        let network = Network::new(model, self.operations);
        let (mut sum, mut tokens) = (0.0, 0.0);
        for batch in batches {
            let (inputs, targets) = split(&batch, model)?;
            let loss =
                guarded(self.choice, || finite(scalar(network.loss(&weights, &inputs, &targets, batch.context))?))?;
            sum += f64::from(loss) * batch.predicted() as f64;
            tokens += batch.predicted() as f64;
        }
        if tokens == 0.0 {
            Err(EngineError::Batch("there is nothing to measure on".to_owned()))
        } else {
            Ok(sum / tokens)
        }
    }
}

/// Runs what may end in a library's panic, as libtorch's errors do (out of memory, most of all), and makes an error of
/// it: a worker gives its task back, and lives on. Panics of our own operations are mistakes of ours, and stay panics.
fn guarded<T>(choice: DeviceChoice, run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    if choice.is_ours() {
        return run();
    }
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(EngineError::Device(said(&*panic))))
}

/// The first line of what a panic said, and what helps.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let line = text.and_then(|text| text.lines().next()).unwrap_or("it does not say why");
    if line.contains("out of memory") || line.contains("not enough memory") {
        format!("{line}; a smaller batch, a shorter context or a smaller model needs less memory")
    } else {
        line.to_owned()
    }
}

/// Training under way: weights and optimiser live on the device.
struct BurnSession {
    choice: DeviceChoice,
    model: ModelSpec,
    /// Checked before the first step.
    need: Option<Need>,
    memory: Option<u64>,
    layout: Arc<Layout>,
    network: Network,
    weights: Weights,
    optimizer: Box<dyn Optimizer>,
}

impl Session for BurnSession {
    fn step(&mut self, batch: &Batch, rate: f32) -> Result<f32, EngineError> {
        let (inputs, targets) = split(batch, &self.model)?;
        if let Some(need) = self.need.take() {
            let (sequences, context) = (batch.sequences() as u64, batch.context as u64);
            fits(&need, sequences, context, self.choice, self.memory)?;
        }
        // A failed step leaves no weights: whoever goes on after an error gets another.
        let weights = std::mem::take(&mut self.weights);
        if weights.is_empty() {
            return Err(EngineError::Device("training ended with an earlier error".to_owned()));
        }
        guarded(self.choice, || {
            let weights: Weights = weights.into_iter().map(|weight| weight.autodiff().require_grad()).collect();
            let loss = self.network.loss(&weights, &inputs, &targets, batch.context);
            let mut gradients = loss.backward();
            let loss = finite(scalar(loss.inner())?)?;
            let gradients = gradients_of(&weights, &mut gradients)?;
            let weights = weights.into_iter().map(Tensor::inner).collect();
            self.weights = self.optimizer.step(weights, gradients, rate)?;
            Ok(loss)
        })
    }

    fn weights(&self, see: &mut dyn FnMut(&[f32])) -> Result<(), EngineError> {
        guarded(self.choice, || {
            for weight in &self.weights {
                see(&download(weight.clone())?);
            }
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> Result<Params, EngineError> {
        let Self { choice, layout, weights, optimizer, .. } = *self;
        // Its moments are twice the weights, which are now there twice for a moment.
        drop(optimizer);
        let values = guarded(choice, || {
            let mut values = Vec::with_capacity(layout.len());
            for weight in weights {
                values.extend(download(weight)?);
            }
            Ok(values)
        })?;
        let params = Params::new(layout, values).map_err(|error| EngineError::Device(error.to_string()))?;
        if params.is_finite() { Ok(params) } else { Err(EngineError::NotFinite("a weight")) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::protocol::Seed;
    use rand::RngExt;

    pub const TINY: ModelSpec = ModelSpec { layers: 2, width: 16, heads: 2, hidden: 24, context: 8 };

    /// Weights far from zero, so that every part of the network matters.
    pub fn lively(model: &ModelSpec, seed: u64) -> Params {
        let mut params = Params::initial(model, &Seed::from_number(seed));
        let mut rng = Seed::from_number(seed).derive("lively", 0).rng();
        let tensors = params.layout().tensors().to_vec();
        for tensor in tensors {
            let scale = (tensor.shape[tensor.shape.len() - 1] as f32).sqrt().recip();
            for value in &mut params.values_mut()[tensor.range()] {
                *value = if tensor.shape.len() > 1 {
                    rng.random_range(-2.0 * scale..2.0 * scale)
                } else {
                    rng.random_range(0.5..1.5)
                };
            }
        }
        params
    }

    /// Random sequences of `context + 1` tokens.
    pub fn random_batch(sequences: usize, context: usize, seed: u64) -> Batch {
        let mut rng = Seed::from_number(seed).derive("tokens", 0).rng();
        let range = 0..u16::try_from(VOCABULARY).unwrap();
        Batch { context, tokens: (0..sequences * (context + 1)).map(|_| rng.random_range(range.clone())).collect() }
    }

    fn engine() -> BurnEngine {
        BurnEngine::new(DeviceChoice::Auto)
    }

    /// The loss of a batch and its gradient, on the processor.
    pub fn gradients(network: &Network, params: &Params, batch: &Batch) -> (f32, Vec<f32>) {
        gradients_on(DeviceChoice::NdArray, network, params, batch)
    }

    /// The loss of a batch and its gradient.
    pub fn gradients_on(device: DeviceChoice, network: &Network, params: &Params, batch: &Batch) -> (f32, Vec<f32>) {
        let (inputs, targets) = split(batch, &ModelSpec { context: u32::MAX, ..TINY }).unwrap();
        let weights: Weights =
            upload(params, &device.open()).into_iter().map(|weight| weight.autodiff().require_grad()).collect();
        let loss = network.loss(&weights, &inputs, &targets, batch.context);
        let gradients = gradients_of(&weights, &mut loss.backward()).unwrap();
        (scalar(loss.inner()).unwrap(), gradients.into_iter().flat_map(|g| download(g).unwrap()).collect())
    }

    /// Compares gradients with what finite differences say.
    pub fn check_gradients(device: DeviceChoice, network: &Network, params: &Params, batch: &Batch) {
        let (_, gradient) = gradients_on(device, network, params, batch);
        let loss = |params: &Params| f64::from(gradients_on(device, network, params, batch).0);
        let mut rng = Seed::from_number(3).rng();
        for tensor in params.layout().tensors() {
            let slope = &gradient[tensor.range()];
            let norm = slope.iter().map(|g| g * g).sum::<f32>().sqrt();
            // Half along the gradient, half anywhere, so that errors in other directions show as well.
            let direction: Vec<f32> = slope
                .iter()
                .map(|g| g / norm + rng.random_range(-1.0..1.0f32) / (tensor.len() as f32).sqrt())
                .collect();
            let step = 0.02 / norm.max(0.5);
            let moved = |step: f32| {
                let mut params = params.clone();
                for (value, d) in params.values_mut()[tensor.range()].iter_mut().zip(&direction) {
                    *value += step * d;
                }
                loss(&params)
            };
            let measured = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            let computed: f64 = slope.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
            let error = (measured - computed).abs() / f64::from(norm);
            assert!(error < 5e-3, "{device}, {}: {measured} measured, {computed} computed, norm {norm}", tensor.name);
        }
    }

    #[test]
    fn an_untrained_model_expects_every_token_alike() {
        let params = Params::initial(&TINY, &Seed::from_number(1));
        let loss = engine().loss(&TINY, &params, &mut [random_batch(4, 8, 1)].into_iter()).unwrap();
        assert!((loss - f64::from(VOCABULARY).ln()).abs() < 0.05, "{loss}");
    }

    #[test]
    fn the_loss_of_batches_is_the_mean_over_their_tokens() {
        let params = lively(&TINY, 1);
        let loss = |batches: Vec<Batch>| engine().loss(&TINY, &params, &mut batches.into_iter()).unwrap();
        let (a, b) = (random_batch(3, 8, 1), random_batch(1, 4, 2));
        let together = loss(vec![a.clone(), b.clone()]);
        assert!((together - (loss(vec![a]) * 24.0 + loss(vec![b]) * 4.0) / 28.0).abs() < 1e-6);
    }

    /// The alphabet, over and over.
    fn pattern() -> Batch {
        Batch { context: 8, tokens: (0..9 * 8u16).map(|at| u16::from(b'a') + (at % 9 + at / 9) % 5).collect() }
    }

    fn train(optimizer: &InnerOptimizer, rate: f32) -> (Vec<f32>, Params) {
        let base = Params::initial(&TINY, &Seed::from_number(4));
        let mut session = engine().train(&TINY, &base, optimizer).unwrap();
        let losses = (0..30).map(|_| session.step(&pattern(), rate).unwrap()).collect();
        (losses, session.finish().unwrap())
    }

    #[test]
    fn the_weights_on_the_way_are_those_in_the_end() {
        let base = Params::initial(&TINY, &Seed::from_number(4));
        let mut session = engine().train(&TINY, &base, &InnerOptimizer::muon()).unwrap();
        let seen = |session: &dyn Session| {
            let mut seen = Vec::new();
            session.weights(&mut |numbers| seen.extend_from_slice(numbers)).unwrap();
            seen
        };
        assert_eq!(seen(&*session), base.values());
        session.step(&pattern(), 0.01).unwrap();
        let before = seen(&*session);
        session.step(&pattern(), 0.01).unwrap();
        let after = seen(&*session);
        assert_ne!(before, after);
        assert_eq!(session.finish().unwrap().values(), after);
    }

    #[test]
    fn thirty_steps_learn_a_repeating_pattern() {
        for optimizer in [InnerOptimizer::muon(), InnerOptimizer::adamw()] {
            let (losses, _) = train(&optimizer, 1e-2);
            assert!(losses[29] < losses[0] / 2.0, "{optimizer:?}: {losses:?}");
        }
    }

    #[test]
    fn a_session_reports_the_loss_before_its_step() {
        let base = lively(&TINY, 1);
        let before = engine().loss(&TINY, &base, &mut [pattern()].into_iter()).unwrap();
        let step = engine().train(&TINY, &base, &InnerOptimizer::muon()).unwrap().step(&pattern(), 1e-3).unwrap();
        assert!((before - f64::from(step)).abs() < 1e-6);
    }

    #[test]
    fn weights_that_are_not_finite_are_refused_before_and_after() {
        let mut base = lively(&TINY, 1);
        let mut session = engine().train(&TINY, &base, &InnerOptimizer::adamw()).unwrap();
        session.step(&pattern(), f32::INFINITY).unwrap();
        assert!(matches!(session.step(&pattern(), 1e-3), Err(EngineError::NotFinite(_))));
        assert!(session.step(&pattern(), 1e-3).is_err());
        assert!(session.finish().is_err());
        let mut session = engine().train(&TINY, &base, &InnerOptimizer::adamw()).unwrap();
        session.step(&pattern(), f32::INFINITY).unwrap();
        assert!(matches!(session.finish(), Err(EngineError::NotFinite(_))));
        base.values_mut()[7] = f32::NAN;
        assert!(matches!(engine().train(&TINY, &base, &InnerOptimizer::adamw()), Err(EngineError::NotFinite(_))));
    }

    #[test]
    fn batches_that_do_not_fit_are_refused() {
        let base = lively(&TINY, 1);
        let mut session = engine().train(&TINY, &base, &InnerOptimizer::adamw()).unwrap();
        let bad = [
            Batch { context: 0, tokens: vec![1] },
            Batch { context: 9, tokens: vec![1; 10] },
            Batch { context: 8, tokens: vec![] },
            Batch { context: 8, tokens: vec![1; 10] },
            Batch { context: 8, tokens: vec![264; 9] },
        ];
        for batch in bad {
            assert!(matches!(session.step(&batch, 1e-3), Err(EngineError::Batch(_))), "{batch:?}");
        }
        session.step(&pattern(), 1e-3).unwrap();
        let other = lively(&ModelSpec { hidden: 26, ..TINY }, 1);
        assert!(matches!(engine().train(&TINY, &other, &InnerOptimizer::adamw()), Err(EngineError::Mismatch(_))));
        assert!(matches!(engine().loss(&TINY, &base, &mut std::iter::empty()), Err(EngineError::Batch(_))));
    }
}
