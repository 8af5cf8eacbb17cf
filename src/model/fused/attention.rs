//! Causal attention of one sequence on plain slices, in blocks of query rows, so that the masked half of the scores is
//! never computed and no memory grows with the square of the context
//! ([FlashAttention](https://arxiv.org/abs/2205.14135)).

use super::super::matmul::{Matrix, MatrixMut, matmul};
use super::super::transformer::rotary_tables;
use super::kernels::{dot, exp, exp_row};
use super::pool::Scratch;

/// Query rows that are computed together: large enough for matrix kernels, small enough to waste little on the mask.
pub(super) const QUERY_ROWS: usize = 32;

/// Cosines and sines of rotary positions, `positions × head/2` each.
#[derive(Debug)]
pub struct Rotary {
    cosines: Vec<f32>,
    sines: Vec<f32>,
    /// The same on a device of libtorch.
    #[cfg(feature = "tch")]
    pub(super) torch: super::torch::Tables,
}

impl Rotary {
    /// The tables for heads of `head` dimensions.
    pub fn new(positions: usize, head: usize) -> Self {
        let (cosines, sines) = rotary_tables(positions, head);
        Self {
            cosines,
            sines,
            #[cfg(feature = "tch")]
            torch: super::torch::Tables::default(),
        }
    }

    /// Both tables.
    #[cfg(feature = "tch")]
    pub(super) fn tables(&self) -> [&[f32]; 2] {
        [&self.cosines, &self.sines]
    }

    /// Turns the queries and keys of rows `queries, keys, values` of one sequence, and scales the queries by
    /// 1/√head. With `back`, the transposed map: what turns gradients back.
    pub fn turn(&self, rows: &mut [f32], width: usize, head: usize, back: bool) {
        self.turn_from(0, rows, width, head, back);
    }

    /// The same for rows of which the first is at position `first`.
    pub fn turn_from(&self, first: usize, rows: &mut [f32], width: usize, head: usize, back: bool) {
        let half = head / 2;
        let sign = if back { -1.0 } else { 1.0 };
        let query_scale = (head as f32).sqrt().recip();
        let tables = self.cosines.chunks_exact(half).zip(self.sines.chunks_exact(half)).skip(first);
        for (row, (cosines, sines)) in rows.chunks_exact_mut(3 * width).zip(tables) {
            let (queries, rest) = row.split_at_mut(width);
            for (part, scale) in [(queries, query_scale), (&mut rest[..width], 1.0)] {
                for head in part.chunks_exact_mut(head) {
                    let (a, b) = head.split_at_mut(half);
                    for ((a, b), (&cosine, &sine)) in a.iter_mut().zip(b).zip(cosines.iter().zip(sines)) {
                        let (cosine, sine) = (cosine * scale, sine * scale * sign);
                        (*a, *b) = (*a * cosine - *b * sine, *a * sine + *b * cosine);
                    }
                }
            }
        }
    }
}

/// The part of a row of queries, keys and values that belongs to one head, for rows from `from` to `to`.
fn part(qkv: &[f32], [from, to]: [usize; 2], offset: usize, head: usize, width: usize) -> Matrix<'_> {
    Matrix::strided(&qkv[from * 3 * width + offset..], to - from, head, 3 * width)
}

fn part_mut(qkv: &mut [f32], [from, to]: [usize; 2], offset: usize, head: usize, width: usize) -> MatrixMut<'_> {
    MatrixMut::strided(&mut qkv[from * 3 * width + offset..], to - from, head, 3 * width)
}

/// `out` (positions × width) of turned `qkv` (positions × 3·width), and for each position and head the largest score
/// and the inverse of the softmax's denominator.
pub(super) fn forward(qkv: &[f32], out: &mut [f32], stats: &mut [f32], width: usize, heads: usize) {
    let (positions, head) = (out.len() / width, width / heads);
    let mut scores = Scratch::new(QUERY_ROWS * positions);
    for index in 0..heads {
        let offset = index * head;
        for from in (0..positions).step_by(QUERY_ROWS) {
            let to = (from + QUERY_ROWS).min(positions);
            let (rows, scores) = ([from, to], &mut scores[..(to - from) * to]);
            let queries = part(qkv, rows, offset, head, width);
            let keys = part(qkv, [0, to], width + offset, head, width);
            matmul(MatrixMut::new(scores, to - from, to), 0.0, 1.0, queries, keys.t());
            for (position, row) in (from..to).zip(scores.chunks_exact_mut(to)) {
                let (seen, masked) = row.split_at_mut(position + 1);
                let (most, sum) = exp_row(seen);
                masked.fill(0.0);
                let stats = &mut stats[(position * heads + index) * 2..][..2];
                stats.copy_from_slice(&[most, 1.0 / sum]);
            }
            let values = part(qkv, [0, to], 2 * width + offset, head, width);
            let block = MatrixMut::strided(&mut out[from * width + offset..], to - from, head, width);
            matmul(block, 0.0, 1.0, Matrix::new(scores, to - from, to), values);
            for (position, row) in (from..to).zip(out[from * width..].chunks_exact_mut(width)) {
                let inverse = stats[(position * heads + index) * 2 + 1];
                row[offset..offset + head].iter_mut().for_each(|value| *value *= inverse);
            }
        }
    }
}

/// The gradient of turned `qkv`, from that of [`forward`]'s `out`.
pub(super) fn backward(
    qkv: &[f32],
    out: &[f32],
    stats: &[f32],
    gradient: &[f32],
    qkv_gradient: &mut [f32],
    width: usize,
    heads: usize,
) {
    let (positions, head) = (out.len() / width, width / heads);
    let (mut scores, mut slopes) = (Scratch::new(QUERY_ROWS * positions), Scratch::new(QUERY_ROWS * positions));
    for index in 0..heads {
        let offset = index * head;
        // From the last rows to the first: the first product into the gradients of keys and values then covers all
        // positions, and needs no zeros before it.
        let starts = (0..positions).step_by(QUERY_ROWS).rev();
        for from in starts {
            let to = (from + QUERY_ROWS).min(positions);
            let (rows, seen) = ([from, to], [0, to]);
            let keep = if to == positions { 0.0 } else { 1.0 };
            let (scores, slopes) = (&mut scores[..(to - from) * to], &mut slopes[..(to - from) * to]);
            let queries = part(qkv, rows, offset, head, width);
            let keys = part(qkv, seen, width + offset, head, width);
            let values = part(qkv, seen, 2 * width + offset, head, width);
            let block = Matrix::strided(&gradient[from * width + offset..], to - from, head, width);
            matmul(MatrixMut::new(scores, to - from, to), 0.0, 1.0, queries, keys.t());
            matmul(MatrixMut::new(slopes, to - from, to), 0.0, 1.0, block, values.t());
            let both = scores.chunks_exact_mut(to).zip(slopes.chunks_exact_mut(to));
            for (position, (scores, slopes)) in (from..to).zip(both) {
                let at = position * width + offset..position * width + offset + head;
                let mean = dot(&gradient[at.clone()], &out[at]);
                let [most, inverse] = [0, 1].map(|which| stats[(position * heads + index) * 2 + which]);
                for (score, slope) in scores.iter_mut().zip(slopes.iter_mut()).take(position + 1) {
                    *score = exp(*score - most) * inverse;
                    *slope = *score * (*slope - mean);
                }
                scores[position + 1..].fill(0.0);
                slopes[position + 1..].fill(0.0);
            }
            let (scores, slopes) = (Matrix::new(scores, to - from, to), Matrix::new(slopes, to - from, to));
            matmul(part_mut(qkv_gradient, rows, offset, head, width), 0.0, 1.0, slopes, keys);
            matmul(part_mut(qkv_gradient, seen, width + offset, head, width), keep, 1.0, slopes.t(), queries);
            matmul(part_mut(qkv_gradient, seen, 2 * width + offset, head, width), keep, 1.0, scores.t(), block);
        }
    }
}
