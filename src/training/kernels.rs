//! Loops over many numbers, compiled once for every width of vectors that processors have and chosen when they run.
//!
//! Nothing is fused and every sum has its order, so all widths give the same bits.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "they are to be compiled again inside their callers")]

/// Numbers that are summed side by side.
pub(super) const LANES: usize = 16;

/// Defines a function that runs with the widest vectors there are.
macro_rules! widest {
    ($(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        pub(super) fn $name($($argument: $type),*) $(-> $result)? {
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
                if has_avx512() {
                    // SAFETY: the processor has the instructions.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
                    // SAFETY: the processor has the instructions.
                    return unsafe { avx2($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    };
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vpopcntdq")
        && is_x86_feature_detected!("popcnt")
}

/// The bits of the exponent, all of which are set in infinities and what is no number.
const EXPONENT: u32 = 0x7f80_0000;

widest! {
    /// `out ← numbers`, little-endian; whether all are finite.
    fn read(numbers: &[[u8; 4]], out: &mut [f32]) -> bool {
        let mut largest = 0;
        for (out, number) in out.iter_mut().zip(numbers) {
            let bits = u32::from_le_bytes(*number);
            largest = largest.max(bits & !(1 << 31));
            *out = f32::from_bits(bits);
        }
        largest < EXPONENT
    }
}

widest! {
    /// `out ← out + weight · numbers`, little-endian; whether all numbers are finite.
    fn add(numbers: &[[u8; 4]], weight: f32, out: &mut [f32]) -> bool {
        let mut largest = 0;
        for (out, number) in out.iter_mut().zip(numbers) {
            let bits = u32::from_le_bytes(*number);
            largest = largest.max(bits & !(1 << 31));
            *out += weight * f32::from_bits(bits);
        }
        largest < EXPONENT
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

/// A block of at most 64 numbers that are −1, 0 or 1 quantum each: a bit for each that is 1, and one for each that is −1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Signs {
    pub quantum: f32,
    pub plus: u64,
    pub minus: u64,
}

/// Five codes to a byte: where they are 1 in the low half, where −1 in the high half. What is no byte of five codes has
/// both, which no code has.
const TRITS: [u64; 256] = {
    let mut table = [0x1f_0000_001f; 256];
    let mut byte = 0;
    while byte < 243 {
        let (mut rest, mut place) = (byte, 0);
        table[byte] = 0;
        while place < 5 {
            match rest % 3 {
                0 => table[byte] |= 1 << (32 + place),
                2 => table[byte] |= 1 << place,
                _ => {}
            }
            rest /= 3;
            place += 1;
        }
        byte += 1;
    }
    table
};

/// Bytes of 64 codes.
pub(super) const SIGN_BYTES: usize = 13;

/// Where the codes in these bytes are 1, and where they are −1; nothing where a byte is none of five codes. What follows the
/// sixty-fourth is left out.
#[inline(always)]
pub(super) fn signs(bytes: &[u8; SIGN_BYTES]) -> Option<(u64, u64)> {
    let trits = |byte: usize| TRITS[usize::from(bytes[byte])];
    let six = |first: usize| (0..6).fold(0, |all, byte| all | trits(first + byte) << (5 * byte));
    let (low, middle, high) = (six(0), six(6), trits(12));
    let low_half = |both: u64| both & 0xffff_ffff;
    let plus = low_half(low) | low_half(middle) << 30 | low_half(high) << 60;
    let minus = low >> 32 | (middle >> 32) << 30 | (high >> 32) << 60;
    (plus & minus == 0).then_some((plus, minus))
}

/// Numbers that a word has bits for.
const WORD: usize = 32;

/// Calls `put` with each of 32 numbers of `size`, 0 or −`size`, by the bits of two words.
#[inline(always)]
fn each_of_word(plus: u32, minus: u32, size: f32, out: &mut [f32; WORD], put: impl Fn(f32, f32) -> f32) {
    let mut values = [0.0; WORD];
    for (lane, value) in values.iter_mut().enumerate() {
        let above = if plus & (1 << lane) == 0 { 0.0 } else { size };
        let below = if minus & (1 << lane) == 0 { 0.0 } else { size };
        *value = above - below;
    }
    for lane in 0..WORD {
        out[lane] = put(out[lane], values[lane]);
    }
}

#[inline(always)]
fn each(signs: &Signs, size: f32, out: &mut [f32], put: impl Fn(f32, f32) -> f32) {
    let words = [0, WORD].map(|shift| [signs.plus, signs.minus].map(|signs| (signs >> shift) as u32));
    let (whole, rest) = out.as_chunks_mut::<WORD>();
    let mut words = words.into_iter();
    for (out, [plus, minus]) in whole.iter_mut().zip(&mut words) {
        each_of_word(plus, minus, size, out, &put);
    }
    if let Some([plus, minus]) = words.next() {
        let mut room = [0.0; WORD];
        room[..rest.len()].copy_from_slice(rest);
        each_of_word(plus, minus, size, &mut room, put);
        rest.copy_from_slice(&room[..rest.len()]);
    }
}

widest! {
    /// `out ← blocks`, 64 numbers each but for the last, which may be shorter.
    fn read_signs(blocks: &[Signs], out: &mut [f32]) {
        for (signs, out) in blocks.iter().zip(out.chunks_mut(64)) {
            each(signs, signs.quantum, out, |_, value| value);
        }
    }
}

widest! {
    /// `out ← out + weight · blocks`, 64 numbers each but for the last, which may be shorter.
    fn add_signs(blocks: &[Signs], weight: f32, out: &mut [f32]) {
        for (signs, out) in blocks.iter().zip(out.chunks_mut(64)) {
            each(signs, weight * signs.quantum, out, |out, value| out + value);
        }
    }
}

/// Blocks of [`Signs`], ready to be multiplied: where they are not 0, where they are 1, and their quanta.
#[derive(Debug, Clone, Default)]
pub(super) struct SignRows {
    nonzero: Vec<u64>,
    plus: Vec<u64>,
    quanta: Vec<f32>,
}

impl SignRows {
    /// Adds blocks, which must be as many for every row.
    pub fn extend(&mut self, blocks: &[Signs]) {
        self.nonzero.extend(blocks.iter().map(|signs| signs.plus | signs.minus));
        self.plus.extend(blocks.iter().map(|signs| signs.plus));
        self.quanta.extend(blocks.iter().map(|signs| signs.quantum));
    }

    #[inline(always)]
    fn row(&self, row: usize, blocks: usize) -> SignRow<'_> {
        let range = row * blocks..(row + 1) * blocks;
        SignRow { nonzero: &self.nonzero[range.clone()], plus: &self.plus[range.clone()], quanta: &self.quanta[range] }
    }
}

/// One of [`SignRows`].
#[derive(Clone, Copy)]
struct SignRow<'a> {
    nonzero: &'a [u64],
    plus: &'a [u64],
    quanta: &'a [f32],
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

widest! {
    /// Adds to `out` the products of `count` rows with each other (see [`place`]). The product of two blocks is a whole number
    /// of products of quanta, so only the sum over blocks is rounded.
    fn multiply_signs(rows: &SignRows, count: usize, out: &mut [f64]) {
        let blocks = rows.nonzero.len() / count;
        for (first, second) in squares(count) {
            for i in first..count.min(first + ROWS) {
                for j in second..(second + ROWS).min(i + 1) {
                    out[place(i, j)] += product_of_signs(rows.row(i, blocks), rows.row(j, blocks));
                }
            }
        }
    }
}

/// Blocks that are multiplied before their products are added up.
const BLOCKS: usize = 128;

#[inline(always)]
fn product_of_signs(a: SignRow<'_>, b: SignRow<'_>) -> f64 {
    let mut sum = 0.0;
    let rows = [a, b].map(|row| {
        let quanta = row.quanta.chunks(BLOCKS);
        row.nonzero.chunks(BLOCKS).zip(row.plus.chunks(BLOCKS)).zip(quanta)
    });
    let [a, b] = rows;
    for (((a, a_plus), a_quanta), ((b, b_plus), b_quanta)) in a.zip(b) {
        let mut products = [0.0f32; BLOCKS];
        let pairs = a.iter().zip(b).zip(a_plus.iter().zip(b_plus)).zip(a_quanta.iter().zip(b_quanta));
        for (product, (((a, b), (a_plus, b_plus)), (a_quantum, b_quantum))) in products.iter_mut().zip(pairs) {
            let both = a & b;
            let opposite = both & (a_plus ^ b_plus);
            let whole = (both.count_ones() as i32).wrapping_sub((opposite.count_ones() as i32).wrapping_mul(2));
            *product = a_quantum * b_quantum * whole as f32;
        }
        let mut lanes = [0.0f32; LANES];
        for products in products.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                lanes[lane] += products[lane];
            }
        }
        sum += halve(lanes.map(f64::from));
    }
    sum
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
    use proptest::prelude::*;

    use super::*;

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
        fn codes_are_read_five_to_a_byte(codes in prop::collection::vec(0u8..3, 65)) {
            let byte = |five: &[u8]| five.iter().rev().fold(0, |byte, code| 3 * byte + code);
            let bytes: Vec<u8> = codes.chunks(5).map(byte).collect();
            let (plus, minus) = signs(bytes.as_array().unwrap()).unwrap();
            for (place, code) in codes.iter().take(64).enumerate() {
                prop_assert_eq!((plus >> place & 1, minus >> place & 1), (u64::from(*code == 2), u64::from(*code == 0)));
            }
        }

        #[test]
        fn a_byte_that_is_no_five_codes_is_found_wherever_it_is(place in 0usize..13, byte in 243u8.., other in 0u8..81) {
            let mut bytes = [other; SIGN_BYTES];
            bytes[place] = byte;
            prop_assert_eq!(signs(&bytes), None);
        }

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
