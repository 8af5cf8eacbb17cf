use burn::tensor::{Tensor, TensorData};

use super::weights::{Group, Part, Weights};
use crate::protocol::{AdamW, InnerOptimizer, Muon};
use crate::training::{EngineError, Role};

/// Gradients are scaled down to this global L2 norm.
pub(super) const CLIP_NORM: f32 = 1.0;
/// Added to norms that are divided by.
pub(super) const CLIP_EPSILON: f32 = 1e-6;
/// Added to a matrix's norm before it is divided by.
pub(super) const ORTHOGONAL_EPSILON: f32 = 1e-7;
/// Newton–Schulz iterations.
pub(super) const ORTHOGONAL_STEPS: usize = 5;
/// Coefficients of the Newton–Schulz iteration: they take singular values in (0, 1] close to 1 quickly, not exactly.
pub(super) const ORTHOGONAL: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// Changes weights by their gradients.
pub(super) trait Optimizer {
    /// One step at learning rate `rate`: clips `gradients` to global norm 1, then gives the changed weights.
    fn step(&mut self, weights: Weights, gradients: Weights, rate: f32) -> Result<Weights, EngineError>;
}

/// What happens to one tensor in one step, numbers only.
#[derive(Debug, Clone, Copy)]
pub(super) enum Update {
    /// `AdamW`.
    AdamW {
        /// Learning rate, over the first moment's bias correction.
        rate: f32,
        /// Divides the second moment: its bias correction.
        second_correction: f32,
        /// Weights are multiplied by this first.
        keep: f32,
        /// Decay rates and epsilon.
        settings: AdamW,
    },
    /// Muon.
    Muon {
        /// Learning rate, shape factor included.
        rate: f32,
        /// Weights are multiplied by this first.
        keep: f32,
        /// Momentum.
        momentum: f32,
    },
}

impl Update {
    /// The update of `part` in step `step`, counted from 1, at scheduled rate `rate`.
    pub fn of(part: &Part, optimizer: &InnerOptimizer, step: u32, rate: f32) -> Self {
        let settings = match (optimizer, part.role) {
            (InnerOptimizer::Muon(muon, _), Role::Hidden) => return Self::muon(part, muon, rate),
            (InnerOptimizer::Muon(_, settings) | InnerOptimizer::AdamW(settings), _) => *settings,
        };
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(i32::try_from(step).unwrap_or(i32::MAX));
        let decay = if part.role == Role::Gain { 0.0 } else { settings.weight_decay };
        #[expect(clippy::cast_possible_truncation, reason = "the arithmetic of a step is f32")]
        Self::AdamW {
            rate: (f64::from(rate) / correction(settings.beta1)) as f32,
            second_correction: correction(settings.beta2) as f32,
            keep: 1.0 - rate * decay,
            settings,
        }
    }

    fn muon(part: &Part, muon: &Muon, rate: f32) -> Self {
        let rate = rate * muon.rate_factor;
        let shape = (part.rows as f32 / part.columns as f32).max(1.0).sqrt();
        Self::Muon { rate: rate * shape, keep: 1.0 - rate * muon.weight_decay, momentum: muon.momentum }
    }
}

/// Both optimisers in plain burn operations, for any device.
pub(super) struct Plain {
    groups: Vec<Group>,
    optimizer: InnerOptimizer,
    /// Steps done.
    steps: u32,
    /// What is kept between steps, of each group.
    states: Vec<GroupState>,
}

/// What is kept of a group between steps.
#[derive(Default)]
struct GroupState {
    /// The moments so far (Muon: the first only) of the group as a whole or of each of its parts.
    moments: Vec<[Option<Tensor<1>>; 2]>,
    /// 1 where weights may decay, 0 elsewhere.
    decays: Option<Tensor<1>>,
}

impl Plain {
    /// A fresh optimiser.
    pub fn new(groups: Vec<Group>, optimizer: InnerOptimizer) -> Self {
        let state = |group: &Group| GroupState { moments: vec![[None, None]; group.parts.len()], decays: None };
        Self { states: groups.iter().map(state).collect(), groups, optimizer, steps: 0 }
    }
}

impl Optimizer for Plain {
    fn step(&mut self, weights: Weights, gradients: Weights, rate: f32) -> Result<Weights, EngineError> {
        self.steps = self.steps.saturating_add(1);
        let squares = gradients.iter().map(|gradient| (gradient.clone() * gradient.clone()).sum());
        let norm = squares.reduce(|sum, square| sum + square).map(Tensor::sqrt);
        let scale = norm.map(|norm| norm.add_scalar(CLIP_EPSILON).recip().mul_scalar(CLIP_NORM).clamp_max(1.0));
        let mut next = Vec::with_capacity(weights.len());
        for (((group, state), weight), gradient) in self.groups.iter().zip(&mut self.states).zip(weights).zip(gradients)
        {
            let gradient = match &scale {
                Some(scale) => gradient * scale.clone(),
                None => gradient,
            };
            let updates: Vec<Update> =
                group.parts.iter().map(|part| Update::of(part, &self.optimizer, self.steps, rate)).collect();
            next.push(if let Some(update) = whole(&updates) {
                // Few operations on much at a time: what starting one costs is most of a small model's step.
                let keep = state.keep(group, &updates, &weight);
                update.adamw(weight * keep, gradient, &mut state.moments[0])
            } else {
                let parts = group.parts.iter().zip(updates).zip(&mut state.moments);
                let parts = parts.map(|((part, update), moments)| {
                    let [weight, gradient] =
                        [&weight, &gradient].map(|tensor| tensor.clone().slice([part.range.clone()]));
                    update.part(part, weight, gradient, moments)
                });
                Tensor::cat(parts.collect(), 0)
            });
        }
        Ok(next)
    }
}

/// The update of a whole group, when only the decay differs between its parts.
fn whole(updates: &[Update]) -> Option<Update> {
    let is_adamw = |update: &Update| matches!(update, Update::AdamW { .. });
    updates.first().copied().filter(|_| updates.iter().all(is_adamw))
}

impl GroupState {
    /// By what each weight of a group is multiplied first.
    fn keep(&mut self, group: &Group, updates: &[Update], weight: &Tensor<1>) -> Tensor<1> {
        let decayed = updates.iter().map(Update::keep).fold(1.0, f32::min);
        let decays = self.decays.get_or_insert_with(|| {
            let of_part = |part: &Part| {
                let decays = if part.role == Role::Gain { 0.0f32 } else { 1.0 };
                std::iter::repeat_n(decays, part.range.len())
            };
            let decays: Vec<f32> = group.parts.iter().flat_map(of_part).collect();
            let length = decays.len();
            Tensor::from_data(TensorData::new(decays, [length]), &weight.device())
        });
        decays.clone().mul_scalar(decayed - 1.0).add_scalar(1.0)
    }
}

impl Update {
    /// What weights are multiplied by first.
    fn keep(&self) -> f32 {
        let (Self::AdamW { keep, .. } | Self::Muon { keep, .. }) = self;
        *keep
    }

    /// New weights from those that decayed already; as they are with Muon, which is no such update.
    fn adamw(self, weight: Tensor<1>, gradient: Tensor<1>, moments: &mut [Option<Tensor<1>>; 2]) -> Tensor<1> {
        let Self::AdamW { rate, second_correction, settings, .. } = self else { return weight };
        let first = decayed(moments[0].take(), gradient.clone(), settings.beta1);
        let second = decayed(moments[1].take(), gradient.clone() * gradient, settings.beta2);
        *moments = [Some(first.clone()), Some(second.clone())];
        let deviation = second.div_scalar(second_correction).sqrt().add_scalar(settings.epsilon);
        weight - first.mul_scalar(rate) / deviation
    }

    /// New weights of one part.
    fn part(
        self,
        part: &Part,
        weight: Tensor<1>,
        gradient: Tensor<1>,
        moments: &mut [Option<Tensor<1>>; 2],
    ) -> Tensor<1> {
        let Self::Muon { rate, keep, momentum } = self else {
            let keep = self.keep();
            return self.adamw(weight.mul_scalar(keep), gradient, moments);
        };
        let velocity = match moments[0].take() {
            Some(velocity) => velocity.mul_scalar(momentum) + gradient.clone(),
            None => gradient.clone(),
        };
        moments[0] = Some(velocity.clone());
        let ahead = gradient + velocity.mul_scalar(momentum);
        let update = orthogonal(ahead.reshape([part.rows, part.columns]));
        weight.mul_scalar(keep) - update.reshape([part.range.len()]).mul_scalar(rate)
    }
}

/// `beta · moment + (1 − beta) · value`, from zero.
fn decayed(moment: Option<Tensor<1>>, value: Tensor<1>, beta: f32) -> Tensor<1> {
    let value = value.mul_scalar(1.0 - beta);
    match moment {
        Some(moment) => moment.mul_scalar(beta) + value,
        None => value,
    }
}

/// A matrix with the singular vectors of `gradient` and singular values near 1, by the Newton–Schulz iteration of
/// [Muon](https://kellerjordan.github.io/posts/muon/).
pub(super) fn orthogonal(gradient: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = gradient.dims();
    let [a, b, c] = ORTHOGONAL;
    let norm = (gradient.clone() * gradient.clone()).sum().sqrt().add_scalar(ORTHOGONAL_EPSILON);
    let x = gradient / norm.reshape([1, 1]);
    let mut x = if rows > columns { x.transpose() } else { x };
    for _ in 0..ORTHOGONAL_STEPS {
        let square = x.clone().matmul(x.clone().transpose());
        let polynomial = square.clone().mul_scalar(b) + square.clone().matmul(square).mul_scalar(c);
        x = x.clone().mul_scalar(a) + polynomial.matmul(x);
    }
    if rows > columns { x.transpose() } else { x }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};

    use super::*;
    use crate::model::device::DeviceChoice;
    use crate::model::weights::download;
    use crate::protocol::{ModelSpec, Seed};
    use crate::training::{Layout, Params};

    const TINY: ModelSpec = ModelSpec { layers: 1, width: 8, heads: 1, hidden: 12, context: 4 };

    fn random(seed: u64) -> Params {
        let mut params = Params::initial(&TINY, &Seed::from_number(seed));
        for value in params.values_mut() {
            *value += 0.01 * (*value * 1e5).sin();
        }
        params
    }

    /// Two steps with the same gradient.
    fn two_steps(optimizer: InnerOptimizer, params: &Params, gradient: &Params, rate: f32) -> Vec<f32> {
        let device = DeviceChoice::Auto.open();
        let upload = |params| crate::model::weights::upload(params, &device);
        let mut plain = Plain::new(crate::model::weights::groups(&Layout::of(&TINY)), optimizer);
        let once = plain.step(upload(params), upload(gradient), rate).unwrap();
        let twice = plain.step(once, upload(gradient), rate).unwrap();
        twice.into_iter().flat_map(|tensor| download(tensor).unwrap()).collect()
    }

    #[test]
    fn adamw_is_what_its_paper_says() {
        let (params, gradient) = (random(1), random(2));
        let norm = gradient.norm();
        assert!(norm > 1.0, "the gradient is clipped");
        let settings = AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        let result = two_steps(InnerOptimizer::AdamW(settings), &params, &gradient, 1e-2);
        for tensor in params.layout().tensors() {
            let decay = if tensor.shape.len() > 1 { 0.1 } else { 0.0 };
            for at in tensor.range() {
                let g = f64::from(gradient.values()[at]) / (norm + 1e-6);
                let (mut p, mut m, mut v) = (f64::from(params.values()[at]), 0.0, 0.0);
                for step in 1..=2 {
                    m = 0.9 * m + 0.1 * g;
                    v = 0.99 * v + 0.01 * g * g;
                    let (m, v) = (m / (1.0 - 0.9f64.powi(step)), v / (1.0 - 0.99f64.powi(step)));
                    p -= 1e-2 * (m / (v.sqrt() + 1e-8) + decay * p);
                }
                assert!((f64::from(result[at]) - p).abs() < 3e-6, "{} {at}: {} {p}", tensor.name, result[at]);
            }
        }
    }

    #[test]
    fn muon_moves_matrices_by_orthogonal_steps_and_the_rest_by_adamw() {
        let (params, gradient) = (random(1), random(2));
        let InnerOptimizer::Muon(muon, adamw) = InnerOptimizer::muon() else { unreachable!() };
        let result = two_steps(InnerOptimizer::muon(), &params, &gradient, 1e-3);
        let rest = two_steps(InnerOptimizer::AdamW(adamw), &params, &gradient, 1e-3);
        for tensor in params.layout().tensors() {
            let range = tensor.range();
            if tensor.role != Role::Hidden {
                assert_eq!(result[range.clone()], rest[range]);
                continue;
            }
            // The direction does not depend on the gradient's scale, nor on how much momentum there is of it.
            let device = DeviceChoice::Auto.open();
            let matrix =
                Tensor::<1>::from_data(TensorData::new(params_of(&gradient, range.clone()), [range.len()]), &device);
            let matrix = orthogonal(matrix.reshape([tensor.shape[0], tensor.shape[1]]));
            let direction = download(matrix).unwrap();
            let shape = (tensor.shape[0] as f32 / tensor.shape[1] as f32).max(1.0).sqrt();
            for (at, d) in range.zip(direction) {
                let mut p = params.values()[at];
                for _ in 0..2 {
                    p = p * (1.0 - 1e-2 * muon.weight_decay) - 1e-2 * shape * d;
                }
                assert!((result[at] - p).abs() < 1e-5, "{} {at}: {} {p}", tensor.name, result[at]);
            }
        }
    }

    fn params_of(params: &Params, range: std::ops::Range<usize>) -> Vec<f32> {
        params.values()[range].to_vec()
    }

    #[test]
    fn small_gradients_are_not_clipped() {
        let params = random(1);
        let mut small = random(2);
        let factor = (0.5 / small.norm()) as f32;
        small.values_mut().iter_mut().for_each(|g| *g *= factor);
        // With an epsilon of 1 the step is proportional to the gradient, nearly.
        let settings = AdamW { beta1: 0.0, beta2: 0.0, epsilon: 1.0, weight_decay: 0.0 };
        let result = two_steps(InnerOptimizer::AdamW(settings), &params, &small, 0.1);
        for ((after, before), g) in result.iter().zip(params.values()).zip(small.values()) {
            assert!((before - after - 0.2 * g / (g.abs() + 1.0)).abs() < 1e-6);
        }
    }

    #[test]
    fn orthogonalised_matrices_have_singular_values_near_one() {
        let device = DeviceChoice::Auto.open();
        for (rows, columns) in [(16, 16), (24, 10), (10, 24)] {
            let values: Vec<f32> = (0..rows * columns).map(|at| ((at * at) as f32 * 0.37).sin()).collect();
            let matrix = Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device);
            let x = orthogonal(matrix);
            let short = if rows > columns { x.clone().transpose().matmul(x) } else { x.clone().matmul(x.transpose()) };
            let size = rows.min(columns);
            let square = download(short).unwrap();
            // The eigenvalues of X·Xᵀ are the squares of the singular values.
            // Power iteration finds the largest of S and of (shift − S).
            let largest = |shift: f32, sign: f32| {
                let mut v = vec![1.0f32; size];
                v.iter_mut().enumerate().for_each(|(at, v)| *v += (at as f32).sin());
                let mut norm = 0.0;
                for _ in 0..500 {
                    let w: Vec<f32> = (0..size)
                        .map(|row| {
                            shift * v[row] + sign * (0..size).map(|c| square[row * size + c] * v[c]).sum::<f32>()
                        })
                        .collect();
                    norm = w.iter().map(|w| w * w).sum::<f32>().sqrt();
                    v = w.into_iter().map(|w| w / norm).collect();
                }
                norm
            };
            let greatest = largest(0.0, 1.0);
            let least = 2.0 - largest(2.0, -1.0);
            assert!(least.sqrt() > 0.65 && greatest.sqrt() < 1.25, "{least} {greatest}");
        }
    }
}
