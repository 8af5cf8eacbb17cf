//! A transformer block on plain slices, forward and backward: norm, attention, norm, feed-forward.
//!
//! Sequences are cut into fixed chunks that go through the whole block on one thread; weight gradients are products over
//! all tokens, cut into fixed bands of rows.

use std::sync::Arc;

use super::super::matmul::{Matrix, MatrixMut, matmul, transpose};
use super::attention::{self, Rotary};
use super::kernels::{NormBackward, add, gated, gated_backward, norm};
use super::pool::{Scratch, take};
use super::threads::for_each;

/// Rows (tokens) that go through a block together, at least: enough for matrix kernels to run at full speed, few
/// enough to keep many threads busy.
const CHUNK_ROWS: usize = 128;

/// Rows of a weight gradient that are one task.
const BAND_ROWS: usize = 96;

/// The same for weights of more columns than [`WIDE`]: every band reads the tokens anew, and from then on no cache holds
/// them.
const BAND_ROWS_WIDE: usize = 384;
const WIDE: usize = 256;

/// Columns of a weight that are turned into rows as one task.
const TURNED_ROWS: usize = 64;

/// The sizes of a block.
#[derive(Debug, Clone)]
pub struct BlockShape {
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward network.
    pub hidden: usize,
    /// Tokens in a sequence.
    pub context: usize,
    /// Turns queries and keys.
    pub rotary: Arc<Rotary>,
}

/// The weights of a block in the order of the layout, or their gradients. Queries, keys and values are one matrix, and
/// so are gate and up.
pub(super) struct Split<T> {
    pub attention_gain: T,
    pub qkv: T,
    pub o: T,
    pub hidden_gain: T,
    pub gate_up: T,
    pub down: T,
}

impl BlockShape {
    /// How many numbers each part of [`Split`] has.
    fn sizes(&self) -> [usize; 6] {
        let (width, hidden) = (self.width, self.hidden);
        [width, 3 * width * width, width * width, width, 2 * hidden * width, width * hidden]
    }

    pub(super) fn weights<'a>(&self, mut all: &'a [f32]) -> Split<&'a [f32]> {
        assert_eq!(all.len(), self.sizes().iter().sum::<usize>(), "weights are those of the block");
        let [attention_gain, qkv, o, hidden_gain, gate_up, down] = self.sizes().map(|size| front(&mut all, size));
        Split { attention_gain, qkv, o, hidden_gain, gate_up, down }
    }

    fn gradients<'a>(&self, mut all: &'a mut [f32]) -> Split<&'a mut [f32]> {
        let [attention_gain, qkv, o, hidden_gain, gate_up, down] = self.sizes().map(|size| front_mut(&mut all, size));
        Split { attention_gain, qkv, o, hidden_gain, gate_up, down }
    }

    /// The weights with every matrix turned, inner × outer, as [`linear`] takes them.
    fn turned<'a>(&self, weights: &Split<&'a [f32]>, room: &'a mut [f32]) -> Split<&'a [f32]> {
        let mut turned = self.gradients(room);
        let matrices = [
            (weights.qkv, self.width, &mut turned.qkv),
            (weights.o, self.width, &mut turned.o),
            (weights.gate_up, self.width, &mut turned.gate_up),
            (weights.down, self.hidden, &mut turned.down),
        ];
        let mut tasks = Vec::new();
        for (weights, inner, out) in matrices {
            let outer = weights.len() / inner;
            let bands = out.chunks_mut(TURNED_ROWS * outer).enumerate();
            tasks.extend(bands.map(|(band, out)| (weights, inner, band * TURNED_ROWS, out)));
        }
        for_each(tasks, |(weights, inner, first, out)| transpose(weights, inner, first, out));
        let Split { qkv, o, gate_up, down, .. } = turned;
        Split { attention_gain: weights.attention_gain, qkv, o, hidden_gain: weights.hidden_gain, gate_up, down }
    }

    /// How many numbers a token has in each part of [`Saved`].
    fn saved_sizes(&self) -> [usize; 7] {
        let width = self.width;
        [3 * width, width, width, 2 * self.hidden, 2 * self.heads, 1, 1]
    }

    /// How many numbers the forward pass saves for the backward pass.
    pub fn saved_len(&self, rows: usize) -> usize {
        rows * self.saved_sizes().iter().sum::<usize>()
    }

    /// The rows of each chunk: whole sequences.
    fn chunks(&self, rows: usize) -> impl Iterator<Item = usize> + use<> {
        let chunk = (CHUNK_ROWS / self.context).max(1) * self.context;
        (0..rows).step_by(chunk).map(move |from| chunk.min(rows - from))
    }
}

/// Cuts the first `length` numbers off.
pub(super) fn front<'a>(rest: &mut &'a [f32], length: usize) -> &'a [f32] {
    let (front, back) = rest.split_at(length);
    *rest = back;
    front
}

/// Cuts the first `length` numbers off.
#[expect(clippy::mut_mut, reason = "it shortens the caller's view")]
pub(super) fn front_mut<'a>(rest: &mut &'a mut [f32], length: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(length);
    *rest = back;
    front
}

/// What the forward pass keeps of some tokens, row after row in each part.
struct Saved<T> {
    /// Turned queries (scaled) and keys, values.
    qkv: T,
    /// What attention gave.
    o: T,
    /// The residual stream after attention.
    middle: T,
    gate_up: T,
    /// See [`attention::forward`].
    stats: T,
    attention_inverse: T,
    hidden_inverse: T,
}

impl<T> Saved<T> {
    fn from_parts([qkv, o, middle, gate_up, stats, attention_inverse, hidden_inverse]: [T; 7]) -> Self {
        Self { qkv, o, middle, gate_up, stats, attention_inverse, hidden_inverse }
    }
}

/// The residual stream after the block, from that before it (`rows × width`); and what the backward pass needs.
pub(super) fn forward(x: &[f32], weights: &[f32], shape: &BlockShape) -> (Vec<f32>, Vec<f32>) {
    let rows = x.len() / shape.width;
    let weights = shape.weights(weights);
    let (mut y, mut saved) = (take(x.len()), take(shape.saved_len(rows)));
    let (mut x, mut y_rest, mut saved_rest) = (x, &mut y[..], &mut saved[..]);
    let mut parts = shape.saved_sizes().map(|size| front_mut(&mut saved_rest, rows * size));
    let mut tasks = Vec::new();
    for rows in shape.chunks(rows) {
        let mut sizes = shape.saved_sizes().into_iter();
        let saved = Saved::from_parts(parts.each_mut().map(|part| front_mut(part, rows * sizes.next().unwrap_or(0))));
        tasks.push((front(&mut x, rows * shape.width), front_mut(&mut y_rest, rows * shape.width), saved));
    }
    let mut turned = Scratch::new(shape.sizes().iter().sum());
    let weights = shape.turned(&weights, &mut turned);
    for_each(tasks, |(x, y, saved)| forward_chunk(x, y, saved, &weights, shape));
    (y, saved)
}

fn forward_chunk(x: &[f32], y: &mut [f32], saved: Saved<&mut [f32]>, weights: &Split<&[f32]>, shape: &BlockShape) {
    let &BlockShape { width, heads, hidden, context, .. } = shape;
    let rows = x.len() / width;
    let mut normed = Scratch::new(rows * width);
    norm(x, weights.attention_gain, &mut normed, saved.attention_inverse);
    linear(&normed, weights.qkv, saved.qkv, 0.0, [rows, width, 3 * width]);
    let sequences = saved.qkv.chunks_exact_mut(context * 3 * width).zip(saved.o.chunks_exact_mut(context * width));
    for ((qkv, o), stats) in sequences.zip(saved.stats.chunks_exact_mut(context * 2 * heads)) {
        shape.rotary.turn(qkv, width, width / heads, false);
        attention::forward(qkv, o, stats, width, heads);
    }
    saved.middle.copy_from_slice(x);
    linear(saved.o, weights.o, saved.middle, 1.0, [rows, width, width]);

    norm(saved.middle, weights.hidden_gain, &mut normed, saved.hidden_inverse);
    linear(&normed, weights.gate_up, saved.gate_up, 0.0, [rows, width, 2 * hidden]);
    let mut activations = Scratch::new(rows * hidden);
    gated(saved.gate_up, &mut activations, hidden);
    y.copy_from_slice(saved.middle);
    linear(&activations, weights.down, y, 1.0, [rows, hidden, width]);
}

/// `out ← keep · out + x × turned`, for `x` of rows × inner and a weight that is turned: inner × outer.
fn linear(x: &[f32], turned: &[f32], out: &mut [f32], keep: f32, [rows, inner, outer]: [usize; 3]) {
    let (x, turned) = (Matrix::new(x, rows, inner), Matrix::new(turned, inner, outer));
    matmul(MatrixMut::new(out, rows, outer), keep, 1.0, x, turned);
}

/// `out ← gradient × weight`: the backward pass of [`linear`] to its input.
fn linear_backward(gradient: &[f32], weight: &[f32], out: &mut [f32], [rows, inner, outer]: [usize; 3]) {
    let (gradient, weight) = (Matrix::new(gradient, rows, outer), Matrix::new(weight, outer, inner));
    matmul(MatrixMut::new(out, rows, inner), 0.0, 1.0, gradient, weight);
}

/// A band of rows of a weight gradient: `out ← gradientᵀ × x` over all tokens.
pub(super) struct Band<'a> {
    out: &'a mut [f32],
    gradient: &'a [f32],
    x: &'a [f32],
    first: usize,
    outer: usize,
    inner: usize,
    scale: f32,
}

impl<'a> Band<'a> {
    /// Cuts the gradient of a weight of outer × inner, with `scale`, into bands.
    pub fn cut(
        out: &'a mut [f32],
        gradient: &'a [f32],
        x: &'a [f32],
        [outer, inner]: [usize; 2],
        scale: f32,
    ) -> impl Iterator<Item = Self> {
        let rows = if inner > WIDE { BAND_ROWS_WIDE } else { BAND_ROWS };
        let bands = out.chunks_mut(rows * inner).enumerate();
        bands.map(move |(band, out)| Band { out, gradient, x, first: band * rows, outer, inner, scale })
    }

    pub fn run(self) {
        let (rows, tokens) = (self.out.len() / self.inner, self.x.len() / self.inner);
        let gradient = Matrix::strided(&self.gradient[self.first..], tokens, rows, self.outer);
        let x = Matrix::new(self.x, tokens, self.inner);
        matmul(MatrixMut::new(self.out, rows, self.inner), 0.0, self.scale, gradient.t(), x);
    }
}

/// What the backward pass makes of some tokens besides the gradient of x: all that weight gradients are products of.
struct Slopes<T> {
    normed: T,
    qkv: T,
    middle: T,
    hidden_normed: T,
    gate_up: T,
    activations: T,
    x: T,
}

/// The gradients of x and of the weights, from that of y.
pub(super) fn backward(
    x: &[f32],
    weights: &[f32],
    saved: &[f32],
    y_gradient: &[f32],
    shape: &BlockShape,
) -> (Vec<f32>, Vec<f32>) {
    let &BlockShape { width, hidden, .. } = shape;
    let rows = x.len() / width;
    assert_eq!([y_gradient.len(), saved.len()], [x.len(), shape.saved_len(rows)], "saved by the same block's forward");
    let mut gradients = take(weights.len());
    let weights = shape.weights(weights);
    let mut x_gradient = take(x.len());
    let sizes = [width, 3 * width, width, width, 2 * hidden, hidden];
    let mut slopes = Scratch::new(rows * sizes.iter().sum::<usize>());
    let chunks = shape.chunks(rows).count();
    let mut gains = Scratch::new(chunks * 2 * width);
    {
        let (mut saved_rest, mut slopes_rest) = (saved, &mut slopes[..]);
        let mut saved_parts = shape.saved_sizes().map(|size| front(&mut saved_rest, rows * size));
        let mut slopes_parts = sizes.map(|size| front_mut(&mut slopes_rest, rows * size));
        let (mut x, mut y_gradient, mut x_gradient) = (x, y_gradient, &mut x_gradient[..]);
        let mut tasks = Vec::with_capacity(chunks);
        for (rows, gains) in shape.chunks(rows).zip(gains.chunks_exact_mut(2 * width)) {
            let mut saved_sizes = shape.saved_sizes().into_iter();
            let saved = Saved::from_parts(
                saved_parts.each_mut().map(|part| front(part, rows * saved_sizes.next().unwrap_or(0))),
            );
            let mut sizes = sizes.into_iter();
            let [normed, qkv, middle, hidden_normed, gate_up, activations] =
                slopes_parts.each_mut().map(|part| front_mut(part, rows * sizes.next().unwrap_or(0)));
            let x_gradient = front_mut(&mut x_gradient, rows * width);
            let slopes = Slopes { normed, qkv, middle, hidden_normed, gate_up, activations, x: x_gradient };
            tasks.push((front(&mut x, rows * width), front(&mut y_gradient, rows * width), saved, slopes, gains));
        }
        for_each(tasks, |(x, y_gradient, saved, slopes, gains)| {
            backward_chunk(x, y_gradient, &saved, slopes, gains, &weights, shape);
        });
    }

    let out = shape.gradients(&mut gradients);
    out.attention_gain.fill(0.0);
    out.hidden_gain.fill(0.0);
    for gains in gains.chunks_exact(2 * width) {
        add(out.attention_gain, &gains[..width]);
        add(out.hidden_gain, &gains[width..]);
    }
    let mut slopes_rest = &slopes[..];
    let [normed, qkv, middle, hidden_normed, gate_up, activations] =
        sizes.map(|size| front(&mut slopes_rest, rows * size));
    let o = &saved[rows * 3 * width..rows * 4 * width];
    let bands = Band::cut(out.down, y_gradient, activations, [width, hidden], 1.0)
        .chain(Band::cut(out.gate_up, gate_up, hidden_normed, [2 * hidden, width], 1.0))
        .chain(Band::cut(out.qkv, qkv, normed, [3 * width, width], 1.0))
        .chain(Band::cut(out.o, middle, o, [width, width], 1.0));
    for_each(bands.collect(), Band::run);
    (x_gradient, gradients)
}

fn backward_chunk(
    x: &[f32],
    y_gradient: &[f32],
    saved: &Saved<&[f32]>,
    slopes: Slopes<&mut [f32]>,
    gains: &mut [f32],
    weights: &Split<&[f32]>,
    shape: &BlockShape,
) {
    let &BlockShape { width, heads, hidden, context, .. } = shape;
    let rows = x.len() / width;
    let (attention_gains, hidden_gains) = gains.split_at_mut(width);
    let mut gradient = Scratch::new(rows * width);

    linear_backward(y_gradient, weights.down, slopes.activations, [rows, hidden, width]);
    gated_backward(saved.gate_up, slopes.activations, slopes.gate_up, hidden);
    linear_backward(slopes.gate_up, weights.gate_up, &mut gradient, [rows, width, 2 * hidden]);
    let back = NormBackward {
        x: saved.middle,
        gain: weights.hidden_gain,
        inverses: saved.hidden_inverse,
        gradient: &gradient,
        residual: y_gradient,
        x_gradient: slopes.middle,
        output: slopes.hidden_normed,
        gain_gradient: hidden_gains,
    };
    back.run();

    linear_backward(slopes.middle, weights.o, &mut gradient, [rows, width, width]);
    let sequences = saved.qkv.chunks_exact(context * 3 * width).zip(saved.o.chunks_exact(context * width));
    let sequences = sequences.zip(saved.stats.chunks_exact(context * 2 * heads));
    let gradients = gradient.chunks_exact(context * width).zip(slopes.qkv.chunks_exact_mut(context * 3 * width));
    for (((qkv, o), stats), (gradient, qkv_gradient)) in sequences.zip(gradients) {
        attention::backward(qkv, o, stats, gradient, qkv_gradient, width, heads);
        shape.rotary.turn(qkv_gradient, width, width / heads, true);
    }
    linear_backward(slopes.qkv, weights.qkv, &mut gradient, [rows, width, 3 * width]);
    let back = NormBackward {
        x,
        gain: weights.attention_gain,
        inverses: saved.attention_inverse,
        gradient: &gradient,
        residual: slopes.middle,
        x_gradient: slopes.x,
        output: slopes.normed,
        gain_gradient: attention_gains,
    };
    back.run();
}
