//! Updates of which each number is −1, 0 or 1 quantum: read five to a byte, added, and multiplied by counting bits.

#[cfg(target_arch = "x86_64")]
use super::Width;
use super::{LANES, ROWS, halve, place, squares};

/// A block of at most 64 numbers that are −1, 0 or 1 quantum each: a bit for each that is 1, and one for each that is −1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::training) struct Signs {
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
pub(in crate::training) const SIGN_BYTES: usize = 13;

/// Where the codes in these bytes are 1, and where they are −1; nothing where a byte is none of five codes. What follows the
/// sixty-fourth is left out.
#[inline(always)]
pub(in crate::training) fn signs(bytes: &[u8; SIGN_BYTES]) -> Option<(u64, u64)> {
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
pub(in crate::training) struct SignRows {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    }
}
