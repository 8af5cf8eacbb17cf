//! Products of a few rows with weights that stay the same: what decoding does all the time. The weights are laid out once
//! in the order in which they are read, so that one row runs as fast as memory gives them, and many rows as fast as the
//! processor multiplies.
//!
//! Each number of a product is a sum over the inner dimension from the first to the last, every step a fused
//! multiply-add. So its bits are the same with any number of rows next to it, any number of threads, and any width of
//! vectors.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "lines in registers are nothing by themselves")]

use super::pool::{Scratch, give, take};
use super::threads::for_each;

/// Numbers that are read together: a cache line.
pub(super) const LINE: usize = 16;

/// Lines next to each other in a panel.
pub(super) const PANEL_LINES: usize = 4;

/// Columns of a panel.
pub(super) const PANEL: usize = LINE * PANEL_LINES;

/// Multiplications from which on it pays to have several threads at one product: waking them takes some microseconds.
const WORTH_THREADS: usize = 1 << 19;

/// Numbers that begin at the beginning of a cache line.
#[derive(Debug)]
pub(super) struct Aligned {
    buffer: Vec<f32>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// Room for `length` numbers, with anything in it.
    pub fn new(length: usize) -> Self {
        let buffer = take(length + LINE);
        // Where that cannot be told, nothing is lost but speed.
        let start = Some(buffer.as_ptr().align_offset(LINE * size_of::<f32>())).filter(|&start| start < LINE);
        Self { buffer, start: start.unwrap_or(0), length }
    }

    pub fn numbers(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.length]
    }

    pub fn numbers_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.length]
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.buffer));
    }
}

/// A matrix of weights, `out × in`, ready for products: panels of [`PANEL`] rows, in each the first numbers of all its
/// rows, then the second ones, and so on.
#[derive(Debug)]
pub(super) struct Packed {
    panels: Aligned,
    outs: usize,
    inner: usize,
}

impl Packed {
    /// Lays `weights` out, rows of `inner` numbers.
    pub fn new(weights: &[f32], inner: usize) -> Self {
        let outs = weights.len() / inner;
        let mut panels = Aligned::new(outs.next_multiple_of(PANEL) * inner);
        panels.numbers_mut().fill(0.0);
        for (panel, rows) in panels.numbers_mut().chunks_exact_mut(PANEL * inner).zip(weights.chunks(PANEL * inner)) {
            for (column, row) in rows.chunks_exact(inner).enumerate() {
                for (line, &value) in panel.chunks_exact_mut(PANEL).zip(row) {
                    line[column] = value;
                }
            }
        }
        Self { panels, outs, inner }
    }

    /// `out ← x × weightsᵀ` for rows of `inner` numbers, or `out ← out + x × weightsᵀ`; on several threads where these
    /// may be had and it pays.
    pub fn product(&self, x: &[f32], out: &mut [f32], keep: bool, threads: bool) {
        let rows = x.len() / self.inner;
        let x = Interleaved::new(x, self.inner);
        let panels = self.panels.numbers().chunks_exact(PANEL * self.inner);
        let mut parts = Scratch::new(panels.len() * rows * PANEL);
        let mut tasks: Vec<_> = panels.zip(parts.chunks_exact_mut(rows * PANEL)).collect();
        let threads =
            if threads && rows * self.inner * self.outs >= WORTH_THREADS { rayon::current_num_threads() } else { 1 };
        let each = tasks.len().div_ceil(threads);
        for_each(tasks.chunks_mut(each).collect(), |tasks: &mut [(&[f32], &mut [f32])]| {
            for (panel, part) in tasks {
                x.times(panel, PANEL_LINES, part);
            }
        });
        for (panel, part) in parts.chunks_exact(rows * PANEL).enumerate() {
            for (out, part) in out.chunks_exact_mut(self.outs).zip(part.chunks_exact(PANEL)) {
                let columns = panel * PANEL..self.outs.min((panel + 1) * PANEL);
                for (out, &part) in out[columns].iter_mut().zip(part) {
                    *out = if keep { *out + part } else { part };
                }
            }
        }
    }
}

/// Rows that are multiplied with the same panels: some rows at a time, the first numbers of these next to each other, then
/// the second ones.
pub(super) struct Interleaved {
    blocks: Scratch,
    inner: usize,
    rows: usize,
}

impl Interleaved {
    /// Takes adjacent rows of `inner` numbers.
    pub fn new(x: &[f32], inner: usize) -> Self {
        Self::strided(x, inner, inner)
    }

    /// Takes the first `inner` numbers of rows that begin `stride` numbers apart.
    pub fn strided(x: &[f32], inner: usize, stride: usize) -> Self {
        let rows = x.len().div_ceil(stride);
        let mut blocks = Scratch::new(rows * inner);
        let most = rows_max();
        let mut rest = &mut blocks[..];
        for block in x.chunks(most * stride) {
            let mut rows = block.chunks(stride);
            for_blocks(rows.len(), most, |count| {
                let (here, after) = std::mem::take(&mut rest).split_at_mut(count * inner);
                rest = after;
                for (at, row) in rows.by_ref().take(count).enumerate() {
                    for (line, &value) in here.chunks_exact_mut(count).zip(&row[..inner]) {
                        line[at] = value;
                    }
                }
            });
        }
        Self { blocks, inner, rows }
    }

    /// `out ← rows × panel`, where a panel has `inner` rows of so many lines, and `out` as many lines a row.
    pub fn times(&self, panel: &[f32], lines: usize, out: &mut [f32]) {
        let (panel, _) = panel.as_chunks::<LINE>();
        let (mut blocks, mut out) = (&self.blocks[..], out);
        for_blocks(self.rows, rows_max(), |count| {
            let (block, after) = blocks.split_at(count * self.inner);
            let (here, out_after) = std::mem::take(&mut out).split_at_mut(count * lines * LINE);
            (blocks, out) = (after, out_after);
            match count {
                1 => multiply::<1>(block, panel, lines, here),
                2 => multiply::<2>(block, panel, lines, here),
                3 => multiply::<3>(block, panel, lines, here),
                _ => multiply::<ROWS_WIDE>(block, panel, lines, here),
            }
        });
    }
}

/// One row times a panel.
pub(super) fn row_times(x: &[f32], panel: &[f32], lines: usize, out: &mut [f32]) {
    multiply::<1>(x, panel.as_chunks::<LINE>().0, lines, out);
}

/// Rows at a time where there are 32 registers of a line each.
const ROWS_WIDE: usize = 6;

/// Cuts so many rows into blocks: of `most`, then of three, two or one.
fn for_blocks(rows: usize, most: usize, mut see: impl FnMut(usize)) {
    let mut left = rows;
    while left > 0 {
        let count = if left >= most { most } else { left.min(3) };
        see(count);
        left -= count;
    }
}

/// A line in registers.
trait Line: Copy {
    /// Whether a line is one register, and there are 32 of them.
    const WIDE: bool;
    fn splat(value: f32) -> Self;
    fn load(numbers: &[f32; LINE]) -> Self;
    fn store(self, numbers: &mut [f32; LINE]);
    /// `self + a · b`, rounded once.
    fn plus_product(self, a: Self, b: Self) -> Self;
}

#[derive(Clone, Copy)]
struct Plain([f32; LINE]);

impl Line for Plain {
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LINE])
    }

    #[inline(always)]
    fn load(numbers: &[f32; LINE]) -> Self {
        Self(*numbers)
    }

    #[inline(always)]
    fn store(self, numbers: &mut [f32; LINE]) {
        *numbers = self.0;
    }

    #[inline(always)]
    fn plus_product(mut self, a: Self, b: Self) -> Self {
        for (sum, (a, b)) in self.0.iter_mut().zip(a.0.into_iter().zip(b.0)) {
            *sum = a.mul_add(b, *sum);
        }
        self
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::{LINE, Line};

    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    // SAFETY, of all methods of both: only `multiply` names these types, in functions that it calls after it has seen that
    // the processor has the instructions. Reads and writes are of arrays of sixteen numbers, which need no alignment.
    impl Line for Avx512 {
        const WIDE: bool = true;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(numbers: &[f32; LINE]) -> Self {
            unsafe { Self(_mm512_loadu_ps(numbers.as_ptr())) }
        }

        #[inline(always)]
        fn store(self, numbers: &mut [f32; LINE]) {
            unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
    }

    impl Line for Avx2 {
        const WIDE: bool = false;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(numbers: &[f32; LINE]) -> Self {
            unsafe { Self(_mm256_loadu_ps(numbers.as_ptr()), _mm256_loadu_ps(numbers[LINE / 2..].as_ptr())) }
        }

        #[inline(always)]
        fn store(self, numbers: &mut [f32; LINE]) {
            unsafe {
                _mm256_storeu_ps(numbers.as_mut_ptr(), self.0);
                _mm256_storeu_ps(numbers[LINE / 2..].as_mut_ptr(), self.1);
            }
        }

        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
    }
}

/// Rows that are multiplied at a time.
fn rows_max() -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return ROWS_WIDE;
    }
    3
}

/// `out ← rows × panel` for `R` rows whose numbers lie next to each other, `x` being `inner × R`.
fn multiply<const R: usize>(x: &[f32], panel: &[[f32; LINE]], lines: usize, out: &mut [f32]) {
    let ((x, _), (out, _)) = (x.as_chunks::<R>(), out.as_chunks_mut::<LINE>());
    assert!(out.len() == R * lines && panel.len() >= x.len() * lines, "a panel has a row for each number of the rows");
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            return unsafe { multiply_avx512::<R>(x, panel, lines, out) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the instructions.
            return unsafe { multiply_avx2::<R>(x, panel, lines, out) };
        }
    }
    columns::<Plain, R>(x, panel, lines, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512<const R: usize>(x: &[[f32; R]], panel: &[[f32; LINE]], lines: usize, out: &mut [[f32; LINE]]) {
    columns::<x86::Avx512, R>(x, panel, lines, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2<const R: usize>(x: &[[f32; R]], panel: &[[f32; LINE]], lines: usize, out: &mut [[f32; LINE]]) {
    columns::<x86::Avx2, R>(x, panel, lines, out);
}

/// As many columns at a time as there are registers for.
#[inline(always)]
fn columns<L: Line, const R: usize>(x: &[[f32; R]], panel: &[[f32; LINE]], lines: usize, out: &mut [[f32; LINE]]) {
    let mut from = 0;
    while from < lines {
        let left = lines - from;
        // Six rows of four lines would fit into 32 registers, but the compiler then keeps the sums in memory: half as fast.
        from += if left >= 4 && (R == 1 || L::WIDE && R <= 3) {
            tile::<L, R, 4>(x, panel, lines, from, out)
        } else if left >= 2 {
            tile::<L, R, 2>(x, panel, lines, from, out)
        } else {
            tile::<L, R, 1>(x, panel, lines, from, out)
        };
    }
}

/// `C` lines of columns from line `from` on.
#[inline(always)]
fn tile<L: Line, const R: usize, const C: usize>(
    x: &[[f32; R]],
    panel: &[[f32; LINE]],
    lines: usize,
    from: usize,
    out: &mut [[f32; LINE]],
) -> usize {
    let mut sums = [[L::splat(0.0); C]; R];
    for (x, row) in x.iter().zip(panel.chunks_exact(lines)) {
        let Some(row) = row[from..].first_chunk::<C>() else { break };
        let weights = row.each_ref().map(|line| L::load(line));
        for (sums, &x) in sums.iter_mut().zip(x) {
            let x = L::splat(x);
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = sum.plus_product(x, weight);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(lines)) {
        for (sum, out) in sums.iter().zip(&mut out[from..]) {
            sum.store(out);
        }
    }
    C
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(length: usize, seed: usize) -> Vec<f32> {
        (0..length).map(|at| ((at * 31 + seed * 17) % 23) as f32 * 0.173 - 2.0).collect()
    }

    proptest! {
        #[test]
        fn products_are_sums_of_fused_steps_in_order(
            (rows, inner, outs) in (1usize..15, 1usize..40, 1usize..150),
            keep in any::<bool>(),
            threads in any::<bool>(),
        ) {
            let (x, weights, before) = (values(rows * inner, 1), values(outs * inner, 2), values(rows * outs, 3));
            let mut out = before.clone();
            Packed::new(&weights, inner).product(&x, &mut out, keep, threads);
            for row in 0..rows {
                for column in 0..outs {
                    let pairs = x[row * inner..][..inner].iter().zip(&weights[column * inner..][..inner]);
                    let sum = pairs.fold(0.0f32, |sum, (x, weight)| x.mul_add(*weight, sum));
                    let expected = if keep { before[row * outs + column] + sum } else { sum };
                    prop_assert_eq!(out[row * outs + column].to_bits(), expected.to_bits());
                }
            }
        }

        #[test]
        fn every_width_of_vectors_gives_the_same_bits(
            (inner, lines) in (1usize..30, 1usize..9),
        ) {
            fn with<const R: usize>(inner: usize, lines: usize) -> [Vec<f32>; 2] {
                let (x, panel) = (values(inner * R, 4), values(inner * lines * LINE, 5));
                let (mut plain, mut fast) = (vec![0.0; R * lines * LINE], vec![0.0; R * lines * LINE]);
                multiply::<R>(&x, panel.as_chunks().0, lines, &mut fast);
                columns::<Plain, R>(x.as_chunks().0, panel.as_chunks().0, lines, plain.as_chunks_mut().0);
                [plain, fast]
            }
            for [plain, fast] in [with::<1>(inner, lines), with::<2>(inner, lines), with::<3>(inner, lines), with::<6>(inner, lines)] {
                prop_assert_eq!(plain, fast);
            }
        }
    }
}
