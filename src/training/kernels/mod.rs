//! Loops over many numbers, compiled once for every width of vectors that processors have and chosen when they run.
//!
//! Nothing is fused and every sum has its order, so all widths give the same bits.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "they are to be compiled again inside their callers")]

/// Numbers that are summed side by side.
pub(super) const LANES: usize = 16;

/// Instructions that there may be.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Width {
    Plain,
    Avx2,
    Avx512,
}

#[cfg(target_arch = "x86_64")]
impl Width {
    fn widest() -> Self {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vpopcntdq");
        match (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt"), avx512) {
            (true, true) => Self::Avx512,
            (true, false) => Self::Avx2,
            (false, _) => Self::Plain,
        }
    }

    fn used() -> Self {
        #[cfg(test)]
        return Self::widest().min(tests::BOUND.get());
        #[cfg(not(test))]
        Self::widest()
    }
}

/// Defines a function that runs with the widest vectors there are.
macro_rules! widest {
    ($(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        pub(in crate::training) fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,popcnt")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                match Width::used() {
                    // SAFETY: the processor has the instructions.
                    Width::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: the same.
                    Width::Avx2 => return unsafe { avx2($($argument),*) },
                    Width::Plain => {}
                }
            }
            plain($($argument),*)
        }
    };
}

mod signs;

pub(super) use signs::{SIGN_BYTES, SignRows, Signs, add_signs, multiply_signs, read_signs, signs};

/// The bits of the exponent, all of which are set in infinities and what is no number.
const EXPONENT: u32 = 0x7f80_0000;

/// Calls `put` with each number, little-endian; whether all are finite.
#[inline(always)]
fn each_number(numbers: &[[u8; 4]], out: &mut [f32], put: impl Fn(f32, f32) -> f32) -> bool {
    let mut largest = 0;
    for (out, number) in out.iter_mut().zip(numbers) {
        let bits = u32::from_le_bytes(*number);
        largest = largest.max(bits & !(1 << 31));
        *out = put(*out, f32::from_bits(bits));
    }
    largest < EXPONENT
}

widest! {
    /// `out ← numbers`, little-endian; whether all are finite.
    fn read(numbers: &[[u8; 4]], out: &mut [f32]) -> bool {
        each_number(numbers, out, |_, number| number)
    }
}

widest! {
    /// `out ← out + weight · numbers`, little-endian; whether all numbers are finite.
    fn add(numbers: &[[u8; 4]], weight: f32, out: &mut [f32]) -> bool {
        each_number(numbers, out, |out, number| out + weight * number)
    }
}

widest! {
    /// `out ← out + weight · numbers`.
    fn add_numbers(numbers: &[f32], weight: f32, out: &mut [f32]) {
        for (out, number) in out.iter_mut().zip(numbers) {
            *out += weight * number;
        }
    }
}

/// Rows that are multiplied with as many others before the next ones are looked at, so that both stay in the cache.
const ROWS: usize = 32;

/// Where squares of [`ROWS`] rows begin, of those that hold pairs of a row and one that is not after it.
fn squares(rows: usize) -> Vec<(usize, usize)> {
    let firsts = (0..rows).step_by(ROWS);
    firsts.flat_map(|first| (0..=first).step_by(ROWS).map(move |second| (first, second))).collect()
}

/// Where the product of row `i` with row `j`, which is not after it, is among all.
#[inline(always)]
pub(super) fn place(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// The sum of all lanes, pair by pair.
#[inline(always)]
fn halve(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

widest! {
    /// Sorts columns next to each other, each by itself, by [Batcher's network](https://doi.org/10.1145/1468075.1468121): which
    /// rows are compared does not depend on what is in them.
    fn sort_columns(rows: &mut [[f32; LANES]]) {
        let count = rows.len();
        let mut merged = 1usize;
        while merged < count {
            let block = merged.ilog2() + 1;
            let mut apart = merged;
            while apart > 0 {
                for first in (apart % merged..count.saturating_sub(apart)).step_by(2 * apart) {
                    for low in first..(first + apart).min(count - apart) {
                        if low >> block == (low + apart) >> block {
                            let (above, below) = rows.split_at_mut(low + apart);
                            in_order(&mut above[low], &mut below[0]);
                        }
                    }
                }
                apart /= 2;
            }
            merged *= 2;
        }
    }
}

/// Puts the lesser of each two numbers into `a`.
#[inline(always)]
fn in_order(a: &mut [f32; LANES], b: &mut [f32; LANES]) {
    for lane in 0..LANES {
        let (one, other) = (a[lane], b[lane]);
        a[lane] = if other < one { other } else { one };
        b[lane] = if other < one { one } else { other };
    }
}

/// Numbers of a row that are multiplied before the lanes' sums are added up.
const RUN: usize = 2048;

/// Adds to `out` the products of `count` rows of numbers with each other (see [`place`]): in f32 within a lane of
/// few numbers, in f64 across them.
pub(super) fn multiply(rows: &[f32], count: usize, out: &mut [f64]) {
    let length = rows.len() / count;
    for from in (0..length).step_by(RUN) {
        let range = from..length.min(from + RUN);
        multiply_run(rows, length, range.start, range.end, out);
    }
}

widest! {
    /// Adds the products of the numbers `from..to` of rows of `length`, of two rows with two others at a time.
    fn multiply_run(rows: &[f32], length: usize, from: usize, to: usize, out: &mut [f64]) {
        let count = rows.len() / length;
        for (first, second) in squares(count) {
            for i in (first..count.min(first + ROWS)).step_by(2) {
                for j in (second..(second + ROWS).min(i + 1)).step_by(2) {
                    // Beyond the last, the last again, and what it gives is dropped.
                    let a = [run_of(rows, length, i, from, to), run_of(rows, length, count.min(i + 2) - 1, from, to)];
                    let b = [run_of(rows, length, j, from, to), run_of(rows, length, count.min(j + 2) - 1, from, to)];
                    let products = products(a, b);
                    out[place(i, j)] += products[0][0];
                    if i + 1 < count {
                        out[place(i + 1, j)] += products[1][0];
                        out[place(i + 1, j + 1)] += products[1][1];
                    }
                    if j < i {
                        out[place(i, j + 1)] += products[0][1];
                    }
                }
            }
        }
    }
}

/// The numbers `from..to` of a row.
#[inline(always)]
fn run_of(rows: &[f32], length: usize, row: usize, from: usize, to: usize) -> &[f32] {
    &rows[row * length + from..row * length + to]
}

/// Lanes of a product: several vectors, so that one addition need not wait for the other.
const WIDE: usize = 2 * LANES;

/// The products of two rows with two others.
#[inline(always)]
fn products(a: [&[f32]; 2], b: [&[f32]; 2]) -> [[f64; 2]; 2] {
    let [a0, a1] = a.map(|row| row.as_chunks::<WIDE>().0);
    let [b0, b1] = b.map(|row| row.as_chunks::<WIDE>().0);
    let ([mut s00, mut s01], [mut s10, mut s11]) = ([[0.0f32; WIDE]; 2], [[0.0f32; WIDE]; 2]);
    for ((a0, a1), (b0, b1)) in a0.iter().zip(a1).zip(b0.iter().zip(b1)) {
        for lane in 0..WIDE {
            s00[lane] += a0[lane] * b0[lane];
            s01[lane] += a0[lane] * b1[lane];
            s10[lane] += a1[lane] * b0[lane];
            s11[lane] += a1[lane] * b1[lane];
        }
    }
    [
        [fold(s00) + rest(a[0], b[0]), fold(s01) + rest(a[0], b[1])],
        [fold(s10) + rest(a[1], b[0]), fold(s11) + rest(a[1], b[1])],
    ]
}

/// The product of what is left of two rows behind all whole lanes.
#[inline(always)]
fn rest(a: &[f32], b: &[f32]) -> f64 {
    let mut sum = 0.0;
    for (a, b) in a.as_chunks::<WIDE>().1.iter().zip(b.as_chunks::<WIDE>().1) {
        sum += f64::from(*a) * f64::from(*b);
    }
    sum
}

#[inline(always)]
fn fold(lanes: [f32; WIDE]) -> f64 {
    let mut halves = [0.0f64; LANES];
    for lane in 0..LANES {
        halves[lane] = f64::from(lanes[lane]) + f64::from(lanes[lane + LANES]);
    }
    halve(halves)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    #[cfg(target_arch = "x86_64")]
    thread_local! {
        /// The widest that this thread uses.
        pub(super) static BOUND: Cell<Width> = const { Cell::new(Width::Avx512) };
    }

    fn numbers(seed: u64, count: usize) -> Vec<f32> {
        let mut rng = crate::protocol::Seed::from_number(seed).rng();
        (0..count).map(|_| crate::protocol::below(&mut rng, 2001) as f32 / 1000.0 - 1.0).collect()
    }

    fn blocks(seed: u64, count: usize) -> Vec<Signs> {
        use rand::Rng;
        let mut rng = crate::protocol::Seed::from_number(seed).rng();
        let block = |_| {
            let (plus, minus) = (rng.next_u64(), rng.next_u64());
            Signs { quantum: (rng.next_u32() % 64) as f32 / 16.0, plus: plus & !minus, minus: minus & !plus }
        };
        (0..count).map(block).collect()
    }

    fn values(blocks: &[Signs], count: usize) -> Vec<f32> {
        let at = |place: usize| {
            let Signs { quantum, plus, minus } = blocks[place / 64];
            quantum * ((plus >> (place % 64) & 1) as f32 - (minus >> (place % 64) & 1) as f32)
        };
        (0..count).map(at).collect()
    }

    proptest! {
        #[test]
        fn what_is_added_is_what_would_be_read(seed: u64, count in 1usize..300, weight in -2f32..2.0) {
            let (blocks, before) = (blocks(seed, count.div_ceil(64)), numbers(seed, count));
            let decoded = values(&blocks, count);
            let mut read_back = vec![f32::NAN; count];
            read_signs(&blocks, &mut read_back);
            prop_assert_eq!(&read_back, &decoded);
            let expected: Vec<f32> = before.iter().zip(&decoded).map(|(out, value)| out + weight * value).collect();
            let (mut signs_added, mut numbers_added, mut bytes_added) = (before.clone(), before.clone(), before);
            add_signs(&blocks, weight, &mut signs_added);
            add_numbers(&decoded, weight, &mut numbers_added);
            let bytes: Vec<[u8; 4]> = decoded.iter().map(|value| value.to_le_bytes()).collect();
            prop_assert!(add(&bytes, weight, &mut bytes_added));
            prop_assert_eq!(&signs_added, &expected);
            prop_assert_eq!(&numbers_added, &expected);
            prop_assert_eq!(&bytes_added, &expected);
        }

        #[test]
        fn products_are_sums_of_products(seed: u64, count in 1usize..40, per_row in 1usize..20) {
            let rows: Vec<Vec<Signs>> = (0..count).map(|row| blocks(seed ^ row as u64, per_row)).collect();
            let mut sign_rows = SignRows::default();
            rows.iter().for_each(|row| sign_rows.extend(row));
            let decoded: Vec<Vec<f32>> = rows.iter().map(|row| values(row, 64 * per_row)).collect();
            let [mut of_signs, mut of_numbers] = [(); 2].map(|()| vec![0.0; count * (count + 1) / 2]);
            multiply_signs(&sign_rows, count, &mut of_signs);
            multiply(&decoded.concat(), count, &mut of_numbers);
            for (i, j) in (0..count).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let exact: f64 = decoded[i].iter().zip(&decoded[j]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let bound = 1e-4 * (1.0 + decoded[i].iter().map(|a| f64::from(a * a)).sum::<f64>());
                prop_assert!((of_signs[place(i, j)] - exact).abs() < bound);
                prop_assert!((of_numbers[place(i, j)] - exact).abs() < bound);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    proptest! {
        #[test]
        fn vectors_of_any_width_give_the_same_bits(seed: u64, count in 1usize..40, weight in -2f32..2.0) {
            let (blocks, before) = (blocks(seed, 3 * count), numbers(seed, 3 * 64 * count));
            let bytes: Vec<[u8; 4]> = numbers(seed ^ 1, before.len()).iter().map(|value| value.to_le_bytes()).collect();
            let mut rows = SignRows::default();
            rows.extend(&blocks);
            let all = || {
                let (mut numbers, mut products) = (before.clone(), vec![0.0; count * (count + 1)]);
                add_signs(&blocks, weight, &mut numbers);
                add(&bytes, weight, &mut numbers);
                add_numbers(&before, weight, &mut numbers);
                let (of_signs, of_numbers) = products.split_at_mut(count * (count + 1) / 2);
                multiply_signs(&rows, count, of_signs);
                multiply(&numbers, count, of_numbers);
                let mut columns = numbers.as_chunks::<LANES>().0.to_vec();
                sort_columns(&mut columns);
                let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
                let products: Vec<u64> = products.iter().map(|product| product.to_bits()).collect();
                (bits(&numbers), products, bits(columns.as_flattened()))
            };
            let widest = all();
            for width in [Width::Plain, Width::Avx2] {
                BOUND.set(width);
                let narrower = all();
                BOUND.set(Width::Avx512);
                prop_assert!(narrower == widest, "{:?}", width);
            }
        }
    }

    proptest! {
        #[test]
        fn columns_are_sorted_each_by_itself(seed: u64, count in 0usize..70) {
            let mut rows = numbers(seed, LANES * count).as_chunks::<LANES>().0.to_vec();
            let column = |rows: &[[f32; LANES]], lane: usize| rows.iter().map(|row| row[lane]).collect::<Vec<_>>();
            let mut expected: Vec<Vec<f32>> = (0..LANES).map(|lane| column(&rows, lane)).collect();
            expected.iter_mut().for_each(|column| column.sort_by(f32::total_cmp));
            sort_columns(&mut rows);
            for (lane, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&column(&rows, lane), expected);
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_found() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            let mut bytes = [1.0f32; 70].map(f32::to_le_bytes);
            bytes[69] = odd.to_le_bytes();
            assert!(!read(&bytes, &mut [0.0; 70]) && !add(&bytes, 1.0, &mut [0.0; 70]));
            bytes[69] = f32::MIN_POSITIVE.to_le_bytes();
            assert!(read(&bytes, &mut [0.0; 70]) && add(&bytes, 1.0, &mut [0.0; 70]));
        }
    }
}
