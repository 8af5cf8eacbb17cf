use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::weights::{Group, groups};
use crate::protocol::{ModelSpec, VOCABULARY};
use crate::training::Layout;

/// Added to the mean square in a norm, as in Llama.
pub(super) const NORM_EPSILON: f32 = 1e-5;

/// The base of the rotary positions' wavelengths.
pub(super) const ROTARY_BASE: f64 = 10_000.0;

/// Cosines and sines of rotary positions, `positions × head/2` each
/// ([RoFormer](https://arxiv.org/abs/2104.09864), rotating halves as Hugging Face does).
pub(super) fn rotary_tables(positions: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
    let half = head / 2;
    let angles = (0..positions * half).map(|index| {
        let (position, pair) = ((index / half) as f64, (index % half) as f64);
        position * ROTARY_BASE.powf(-2.0 * pair / head as f64)
    });
    #[expect(clippy::cast_possible_truncation, reason = "tables are f32")]
    angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip()
}

/// A Llama-style decoder in plain burn operations: pre-norm blocks of causal attention and `SwiGLU`, tied embeddings.
/// It runs, and differentiates, on every device of burn.
#[derive(Debug, Clone)]
pub(super) struct Plain {
    width: usize,
    heads: usize,
    block: Group,
}

impl Plain {
    /// The network of `model`.
    pub fn new(model: &ModelSpec) -> Self {
        let groups = groups(&Layout::of(model));
        Self { width: model.width as usize, heads: model.heads as usize, block: groups[1].clone() }
    }

    /// The residual stream after the last block, `tokens × width`, of sequences of `context`.
    pub fn states(&self, weights: &[Tensor<1>], tokens: &[u16], context: usize) -> Tensor<2> {
        let device = weights[0].device();
        let indices = integers(tokens, &device);
        let embedding = weights[0].clone().reshape([VOCABULARY as usize, self.width]);
        let mut x = embedding.select(0, indices).reshape([tokens.len() / context, context, self.width]);
        let tables = Tables::new(context, self.width / self.heads, &device);
        for block in &weights[1..weights.len() - 1] {
            x = self.block(x, block, &tables);
        }
        x.reshape([tokens.len(), self.width])
    }

    /// The mean cross-entropy of `targets` after `tokens`, nats a token.
    pub fn loss(&self, weights: &[Tensor<1>], tokens: &[u16], targets: &[u16], context: usize) -> Tensor<1> {
        let logits = self.head(self.states(weights, tokens, context), weights);
        let targets = integers(targets, &logits.device()).reshape([tokens.len(), 1]);
        log_softmax(logits, 1).gather(1, targets).mean().neg()
    }

    /// The logits after one token, given its row of [`Plain::states`].
    pub fn logits(&self, state: Tensor<2>, weights: &[Tensor<1>]) -> Tensor<1> {
        self.head(state, weights).reshape([VOCABULARY as usize])
    }

    fn head(&self, states: Tensor<2>, weights: &[Tensor<1>]) -> Tensor<2> {
        let embedding = weights[0].clone().reshape([VOCABULARY as usize, self.width]);
        let states = norm(states.unsqueeze::<3>(), weights[weights.len() - 1].clone()).squeeze_dim::<2>(0);
        states.matmul(embedding.transpose())
    }

    /// One block over `sequences × context × width`.
    fn block(&self, x: Tensor<3>, weights: &Tensor<1>, tables: &Tables) -> Tensor<3> {
        let [sequences, context, width] = x.dims();
        let head = width / self.heads;
        let gain = |part: usize| weights.clone().slice([self.block.parts[part].range.clone()]);
        let matrix = |part: usize| {
            let part = &self.block.parts[part];
            let matrix = weights.clone().slice([part.range.clone()]).reshape([part.rows, part.columns]);
            matrix.transpose().unsqueeze::<3>()
        };
        let split = |x: Tensor<3>| x.reshape([sequences, context, self.heads, head]).swap_dims(1, 2);

        let a = norm(x.clone(), gain(0));
        let q = rotate(split(a.clone().matmul(matrix(1))), tables);
        let k = rotate(split(a.clone().matmul(matrix(2))), tables);
        let v = split(a.matmul(matrix(3)));
        let scores = q.matmul(k.transpose()).div_scalar((head as f32).sqrt()) + tables.mask.clone();
        let o = softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([sequences, context, width]);
        let x = x + o.matmul(matrix(4));

        let a = norm(x.clone(), gain(5));
        let hidden = silu(a.clone().matmul(matrix(6))) * a.matmul(matrix(7));
        x + hidden.matmul(matrix(8))
    }
}

/// Root-mean-square norm over the last dimension ([RMSNorm](https://arxiv.org/abs/1910.07467)).
fn norm(x: Tensor<3>, gain: Tensor<1>) -> Tensor<3> {
    let inverse = (x.clone() * x.clone()).mean_dim(2).add_scalar(NORM_EPSILON).sqrt().recip();
    x * inverse * gain.unsqueeze()
}

/// What is the same in every block.
struct Tables {
    cosines: Tensor<4>,
    sines: Tensor<4>,
    /// Zero where a position may look, a large negative number where it may not.
    mask: Tensor<4>,
}

impl Tables {
    fn new(context: usize, head: usize, device: &Device) -> Self {
        let table = |values: Vec<f32>| {
            let columns = values.len() / context;
            Tensor::<2>::from_data(TensorData::new(values, [context, columns]), device).unsqueeze()
        };
        let (cosines, sines) = rotary_tables(context, head);
        let mask = (0..context * context).map(|at| if at % context > at / context { -1e9 } else { 0.0 });
        Self { cosines: table(cosines), sines: table(sines), mask: table(mask.collect()) }
    }
}

/// Turns each half-pair of `sequences × heads × positions × head` by its position's angle.
fn rotate(x: Tensor<4>, tables: &Tables) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let first = a.clone() * tables.cosines.clone() - b.clone() * tables.sines.clone();
    Tensor::cat(vec![first, a * tables.sines.clone() + b * tables.cosines.clone()], 3)
}

fn integers(tokens: &[u16], device: &Device) -> Tensor<1, Int> {
    let tokens: Vec<i32> = tokens.iter().map(|&token| i32::from(token)).collect();
    let length = tokens.len();
    Tensor::from_data(TensorData::new(tokens, [length]), device)
}
