//! Blocks of numbers that share a scale: a bf16, then codes packed into bytes.

use rand::Rng;

use super::super::kernels::{SIGN_BYTES, Signs, read_signs, signs};
use super::CodecError;
use crate::protocol::limits;

pub(super) fn encode_block(block: &[f32], levels: i32, per_byte: usize, rng: &mut impl Rng, out: &mut Vec<u8>) {
    let (bits, full) = if levels == 1 { clipped(block) } else { unclipped(block) };
    out.extend(bits.to_le_bytes());
    // A range so small that dividing by it overflows is as good as zero; its codes are drawn all the same, so that
    // the stream of draws does not depend on the values.
    let quanta_per_unit = if full > f32::MIN_POSITIVE { levels as f32 / full } else { 0.0 };
    let radix = 2 * levels + 1;
    for codes in block.chunks(per_byte) {
        let mut byte = 0i32;
        for &value in codes.iter().rev() {
            let code = (value * quanta_per_unit + unit(rng)).floor().clamp(-levels as f32, levels as f32);
            #[expect(clippy::cast_possible_truncation, reason = "a whole number within the levels")]
            {
                byte = byte * pack_radix(radix) + code as i32 + levels;
            }
        }
        out.push(u8::try_from(byte).unwrap_or(u8::MAX));
    }
}

/// The scale to write, and the magnitude that gets the highest code: the largest of the block, so nothing is clipped.
fn unclipped(block: &[f32]) -> (u16, f32) {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let bits = bf16_not_below(largest);
    (bits, from_bf16(bits))
}

/// The same for a single level: magnitudes from [`TERNARY_CLIP`](limits::TERNARY_CLIP) root mean squares on always get the code, and the
/// scale is made larger for it, so that the block keeps its length along itself (`E[⟨x, q(x)⟩] = ⟨x, x⟩`).
fn clipped(block: &[f32]) -> (u16, f32) {
    let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let squares: f64 = block.iter().map(|&value| f64::from(value).powi(2)).sum();
    let full = (limits::TERNARY_CLIP * (squares / block.len() as f64).sqrt()).min(f64::from(largest));
    let kept: f64 = block.iter().map(|&value| f64::from(value.abs()) * f64::from(value.abs()).min(full)).sum();
    if kept > 0.0 { (nearest_bf16((full * squares / kept) as f32), full as f32) } else { (0, 0.0) }
}

pub(super) fn decode_block(block: &[u8], levels: i32, per_byte: usize, out: &mut [f32]) -> Result<(), CodecError> {
    let Some((bits, codes)) = block.split_first_chunk::<2>() else { return Err(CodecError::Code) };
    if levels == 1 {
        read_signs(&[ternary_block(block, out.len())?], out);
        return Ok(());
    }
    let quantum = scale(*bits)? / levels as f32;
    let radix = 2 * levels + 1;
    for (out, &byte) in out.chunks_mut(per_byte).zip(codes) {
        let mut rest = i32::from(byte);
        for out in out {
            let code = rest % pack_radix(radix);
            rest /= pack_radix(radix);
            if code >= radix {
                return Err(CodecError::Code);
            }
            *out = quantum * (code - levels) as f32;
        }
        if rest != 0 {
            return Err(CodecError::Code);
        }
    }
    Ok(())
}

/// A ternary block of so many numbers, not more than [`CODEC_BLOCK`](limits::CODEC_BLOCK).
#[inline]
pub(super) fn ternary_block(block: &[u8], numbers: usize) -> Result<Signs, CodecError> {
    let Some((bits, codes)) = block.split_first_chunk::<2>() else { return Err(CodecError::Code) };
    let quantum = scale(*bits)?;
    // What is left of the last byte must be nothing, so that the block has one encoding.
    let in_last = (numbers + 4) % 5 + 1;
    if codes.len() != numbers.div_ceil(5) || codes.last().is_none_or(|last| u32::from(*last) >= THREES[in_last]) {
        return Err(CodecError::Code);
    }
    let (plus, minus) = match codes.first_chunk::<SIGN_BYTES>() {
        Some(codes) => signs(codes).ok_or(CodecError::Code)?,
        None => {
            let mut padded = [0; SIGN_BYTES];
            padded.iter_mut().zip(codes).for_each(|(padded, code)| *padded = *code);
            signs(&padded).ok_or(CodecError::Code)?
        }
    };
    let within = u64::MAX >> (64 - numbers);
    Ok(Signs { quantum, plus: plus & within, minus: minus & within })
}

/// Powers of three.
const THREES: [u32; 6] = [1, 3, 9, 27, 81, 243];

/// What a packed code is multiplied by: 3 for ternary (five to a byte), 16 and 256 for the others.
fn pack_radix(radix: i32) -> i32 {
    match radix {
        3 => 3,
        15 => 16,
        _ => 256,
    }
}

/// Uniform in [0, 1), 24 bits.
fn unit(rng: &mut impl Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

#[inline]
pub(super) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The smallest bf16 that is not below a finite `value` ≥ 0 (the largest finite one where there is none).
fn bf16_not_below(value: f32) -> u16 {
    let bits = value.to_bits();
    let up = (bits >> 16) + u32::from(bits & 0xffff != 0);
    u16::try_from(up.min(0x7f7f)).unwrap_or(0x7f7f)
}

/// The bf16 nearest to a finite `value` ≥ 0.
fn nearest_bf16(value: f32) -> u16 {
    u16::try_from(((value.to_bits() + 0x8000) >> 16).min(0x7f7f)).unwrap_or(0x7f7f)
}

/// One of the two neighbouring bf16, the nearer one more often; never an infinity.
pub(super) fn round_to_bf16(value: f32, rng: &mut impl Rng) -> u16 {
    let bits = value.to_bits();
    let magnitude = ((bits & 0x7fff_ffff) + (rng.next_u32() >> 16)) >> 16;
    let sign = (bits >> 31) << 15;
    u16::try_from(sign | magnitude.min(0x7f7f)).unwrap_or(0)
}

/// A block's scale. A negative one would be a second way to write the block.
#[inline]
fn scale(bytes: [u8; 2]) -> Result<f32, CodecError> {
    match u16::from_le_bytes(bytes) {
        bits if !from_bf16(bits).is_finite() => Err(CodecError::NotFinite),
        bits if bits >> 15 == 1 => Err(CodecError::Code),
        bits => Ok(from_bf16(bits)),
    }
}

/// How far two blocks of as many `numbers` are apart: the sum of what their codes differ by, in levels, and the two scales.
pub(super) fn compare_blocks(
    (a, b): (&[u8], &[u8]),
    levels: i32,
    per_byte: usize,
    numbers: usize,
) -> Result<(f64, [f32; 2]), CodecError> {
    let (mut a_values, mut b_values) = ([0.0; limits::CODEC_BLOCK], [0.0; limits::CODEC_BLOCK]);
    let (a_values, b_values) = (&mut a_values[..numbers], &mut b_values[..numbers]);
    let mut scales = [0.0; 2];
    for ((bytes, values), scale) in [(a, &mut *a_values), (b, &mut *b_values)].into_iter().zip(&mut scales) {
        decode_block(bytes, levels, per_byte, values)?;
        let bits = bytes.first_chunk::<2>().ok_or(CodecError::Code)?;
        *scale = from_bf16(u16::from_le_bytes(*bits));
        // Back to codes, which are whole numbers of quanta.
        let codes_per_unit = if *scale > 0.0 { levels as f32 / *scale } else { 0.0 };
        values.iter_mut().for_each(|value| *value = (*value * codes_per_unit).round());
    }
    let apart = a_values.iter().zip(&*b_values).map(|(a, b)| f64::from((a - b).abs())).sum();
    Ok((apart, scales))
}
