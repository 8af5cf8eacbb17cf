//! Loops over rows of adjacent numbers, written so that the compiler vectorises them: no libm inside, sums in a fixed
//! number of lanes. They give the same bits with any width of vectors, because nothing here is fused or reordered.

use crate::model::transformer::NORM_EPSILON;

/// Independent partial sums in a reduction: enough to hide the latency of additions.
const LANES: usize = 16;

/// eˣ to 1e-7 relative, for x of at most 88; 0 below −87 (Cephes' polynomial). NaN stays NaN.
#[inline]
pub(super) fn exp(x: f32) -> f32 {
    const LEAST: f32 = -87.0;
    const MOST: f32 = 88.0;
    // Adding this rounds to an integer, which then is in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > MOST { MOST } else { x };
    let clamped = if x < LEAST { LEAST } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let value = p * power;
    if x < LEAST { 0.0 } else { value }
}

/// Sums `f` over the elements of equally long rows, in [`LANES`] partial sums.
#[inline]
fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(a, b);
    }
    fold(lanes, |a, b| a + b)
}

/// Combines lanes pairwise.
#[inline]
fn fold(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = f(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The scalar product of two rows.
#[inline]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum2(a, b, |a, b| a * b)
}

/// The sum of squares in f64, for norms over many numbers.
pub(in crate::model) fn sum_of_squares(row: &[f32]) -> f64 {
    row.chunks(4096).map(|part| f64::from(dot(part, part))).sum()
}

/// The largest of a row; NaN where there is one first in its lane.
#[inline]
fn largest(row: &[f32]) -> f32 {
    let more = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = more(lanes[lane], chunk[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = more(*lane, value);
    }
    fold(lanes, more)
}

/// Replaces a row by e^(value − largest); gives the largest and the sum.
#[inline]
pub(super) fn exp_row(row: &mut [f32]) -> (f32, f32) {
    let most = largest(row);
    for value in row.iter_mut() {
        *value = exp(*value - most);
    }
    let sum = sum2(row, row, |a, _| a);
    (most, sum)
}

/// [RMSNorm](https://arxiv.org/abs/1910.07467) of rows: `out = x · inverse · gain`, and each row's `inverse` root mean
/// square.
pub(super) fn norm(x: &[f32], gain: &[f32], out: &mut [f32], inverses: &mut [f32]) {
    let width = gain.len();
    for ((x, out), inverse) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(inverses) {
        *inverse = 1.0 / (dot(x, x) / width as f32 + NORM_EPSILON).sqrt();
        for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain) {
            *out = x * *inverse * gain;
        }
    }
}

/// What the backward pass of [`norm`] needs and makes, rows of `gain.len()`.
pub(super) struct NormBackward<'a> {
    pub x: &'a [f32],
    pub gain: &'a [f32],
    pub inverses: &'a [f32],
    /// The gradient of the norm's output.
    pub gradient: &'a [f32],
    /// Added to the gradient of x: what comes along the residual stream. Empty for none.
    pub residual: &'a [f32],
    /// Receives the gradient of x.
    pub x_gradient: &'a mut [f32],
    /// Receives the norm's output again.
    pub output: &'a mut [f32],
    /// Receives the sum over these rows of the gradient of the gain.
    pub gain_gradient: &'a mut [f32],
}

impl NormBackward<'_> {
    pub fn run(self) {
        let width = self.gain.len();
        self.gain_gradient.fill(0.0);
        let rows = self.x.chunks_exact(width).zip(self.inverses).zip(self.gradient.chunks_exact(width)).enumerate();
        for (row, ((x, &inverse), gradient)) in rows {
            let range = row * width..(row + 1) * width;
            let (x_gradient, output) = (&mut self.x_gradient[range.clone()], &mut self.output[range.clone()]);
            for i in 0..width {
                // Lengths are those of `gain` throughout; the compiler sees it from the slices below.
                let (x, gradient, gain) = (x[i], gradient[i], self.gain[i]);
                let normed = x * inverse;
                output[i] = normed * gain;
                self.gain_gradient[i] += gradient * normed;
                x_gradient[i] = gradient * gain;
            }
            let along = dot(x_gradient, x) * inverse * inverse * inverse / width as f32;
            if self.residual.is_empty() {
                for (out, &x) in x_gradient.iter_mut().zip(x) {
                    *out = *out * inverse - x * along;
                }
            } else {
                let residual = &self.residual[range];
                for ((out, &x), &residual) in x_gradient.iter_mut().zip(x).zip(residual) {
                    *out = residual + (*out * inverse - x * along);
                }
            }
        }
    }
}

/// [SwiGLU](https://arxiv.org/abs/2002.05202) of rows of gate and up next to each other: `out = silu(gate) · up`.
pub(super) fn gated(gate_up: &[f32], out: &mut [f32], hidden: usize) {
    for (gate_up, out) in gate_up.chunks_exact(2 * hidden).zip(out.chunks_exact_mut(hidden)) {
        let (gate, up) = gate_up.split_at(hidden);
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// The backward pass of [`gated`]: `gradient` is that of its output and is replaced by the output itself.
pub(super) fn gated_backward(gate_up: &[f32], gradient: &mut [f32], gate_up_gradient: &mut [f32], hidden: usize) {
    let rows = gate_up.chunks_exact(2 * hidden).zip(gradient.chunks_exact_mut(hidden));
    for ((gate_up, gradient), out) in rows.zip(gate_up_gradient.chunks_exact_mut(2 * hidden)) {
        let (gates, ups) = gate_up.split_at(hidden);
        let (gate_out, up_out) = out.split_at_mut(hidden);
        let inputs = gates.iter().zip(ups);
        for (((&gate, &up), gradient), (gate_out, up_out)) in
            inputs.zip(gradient.iter_mut()).zip(gate_out.iter_mut().zip(up_out.iter_mut()))
        {
            let sigmoid = 1.0 / (1.0 + exp(-gate));
            let silu = gate * sigmoid;
            *gate_out = *gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid));
            *up_out = *gradient * silu;
            *gradient = silu * up;
        }
    }
}

/// Adds `values` to `sums`.
pub(super) fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_1e_7() {
        for at in -8_800_000..8_799_000i32 {
            let x = at as f32 * 1e-5;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            let bound = if x < -87.0 { exact * 1.01 } else { exact * 1.5e-7 };
            assert!((ours - exact).abs() <= bound, "e^{x} is {exact}, not {ours}");
        }
    }

    #[test]
    fn exp_of_what_is_out_of_range_is_zero_large_or_nan() {
        assert_eq!([exp(f32::NEG_INFINITY), exp(-1e9)], [0.0, 0.0]);
        assert!(exp(f32::INFINITY) > 1e38 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_length() {
        for length in 1..70 {
            let row: Vec<f32> = (0..length).map(|at| ((at * 7) % 11) as f32).collect();
            assert_eq!(dot(&row, &row), row.iter().map(|a| a * a).sum::<f32>());
            assert_eq!(largest(&row), row.iter().copied().fold(0.0, f32::max));
            let (most, sum) = exp_row(&mut row.clone());
            let exact: f32 = row.iter().map(|a| (a - most).exp()).sum();
            assert!((sum - exact).abs() < 1e-5 * exact);
        }
    }
}
