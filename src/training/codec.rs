//! How pseudo-gradients travel.
//!
//! A payload is one byte that names the codec, then every tensor in layout order. Gains are f32 little-endian.
//! Matrices are f32, bf16, or blocks of [`CODEC_BLOCK`](limits::CODEC_BLOCK) numbers: a bf16 scale and a whole number of
//! quanta of `scale / levels` for each number. Rounding is stochastic (as in [QSGD](https://arxiv.org/abs/1610.02132)),
//! seeded by the task: a payload is a pure function of its task. It is unbiased, number by number, where the scale is
//! the block's largest magnitude; ternary blocks are clipped first (see `clipped`), which costs that and brings less
//! than half the noise. The length of a payload follows from the layout and the codec, and every value has one encoding,
//! so nothing can hide in it.

use std::sync::Arc;

use rand::Rng;

use super::{Layout, Params, Role, TensorSpec};
use crate::protocol::{Codec, Seed, limits};

/// Why a payload was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Longer or shorter than this codec makes this model.
    #[error("the payload has {actual} bytes, this model and codec make {expected}")]
    Length {
        /// What it must have.
        expected: usize,
        /// What it has.
        actual: usize,
    },
    /// Encoded with another codec.
    #[error("the payload is of codec {0}, not the task's")]
    Codec(u8),
    /// A byte that the codec never writes.
    #[error("the payload holds a code that this codec never writes")]
    Code,
    /// NaN or an infinity.
    #[error("the payload holds a number that is not finite")]
    NotFinite,
}

/// What a codec does to a matrix.
#[derive(Clone, Copy)]
enum Kind {
    Full,
    Half,
    /// Quanta on each side of zero, and how many codes share a byte.
    Quantised {
        levels: i32,
        per_byte: usize,
    },
}

impl Codec {
    fn tag(self) -> u8 {
        match self {
            Self::Fp32 => 0,
            Self::Bf16 => 1,
            Self::Int8 => 2,
            Self::Int4 => 3,
            Self::Ternary => 4,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Full,
            Self::Bf16 => Kind::Half,
            Self::Int8 => Kind::Quantised { levels: 127, per_byte: 1 },
            Self::Int4 => Kind::Quantised { levels: 7, per_byte: 2 },
            Self::Ternary => Kind::Quantised { levels: 1, per_byte: 5 },
        }
    }

    fn tensor_bytes(self, role: Role, len: usize) -> usize {
        match (role, self.kind()) {
            (Role::Gain, _) | (_, Kind::Full) => 4 * len,
            (_, Kind::Half) => 2 * len,
            (_, Kind::Quantised { per_byte, .. }) => {
                let last = len % limits::CODEC_BLOCK;
                let block = |numbers: usize| if numbers == 0 { 0 } else { 2 + numbers.div_ceil(per_byte) };
                len / limits::CODEC_BLOCK * block(limits::CODEC_BLOCK) + block(last)
            }
        }
    }

    /// Bytes of every payload of a model with this layout.
    #[must_use]
    pub fn payload_bytes(self, layout: &Layout) -> usize {
        1 + layout.tensors().iter().map(|tensor| self.tensor_bytes(tensor.role, tensor.len())).sum::<usize>()
    }

    /// Encodes `update`, rounding with draws from `seed`. Refuses numbers that are not finite.
    pub fn encode(self, update: &Params, seed: &Seed) -> Result<Vec<u8>, CodecError> {
        if !update.is_finite() {
            return Err(CodecError::NotFinite);
        }
        let mut out = Vec::with_capacity(self.payload_bytes(update.layout()));
        out.push(self.tag());
        for (index, tensor) in update.layout().tensors().iter().enumerate() {
            let values = update.tensor(tensor);
            let mut rng = seed.derive("codec", index as u64).rng();
            match (tensor.role, self.kind()) {
                (Role::Gain, _) | (_, Kind::Full) => {
                    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                }
                (_, Kind::Half) => {
                    out.extend(values.iter().flat_map(|&value| round_to_bf16(value, &mut rng).to_le_bytes()));
                }
                (_, Kind::Quantised { levels, per_byte }) => {
                    for block in values.chunks(limits::CODEC_BLOCK) {
                        encode_block(block, levels, per_byte, &mut rng, &mut out);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Refuses a payload that cannot be of this codec and layout by its length and its first byte.
    pub fn check(self, layout: &Layout, payload: &[u8]) -> Result<(), CodecError> {
        let (expected, actual) = (self.payload_bytes(layout), payload.len());
        match payload.first() {
            _ if actual != expected => Err(CodecError::Length { expected, actual }),
            Some(&tag) if tag == self.tag() => Ok(()),
            other => Err(CodecError::Codec(other.copied().unwrap_or_default())),
        }
    }

    /// Where each tensor begins in a payload.
    pub(super) fn tensor_offsets(self, layout: &Layout) -> Vec<usize> {
        let mut offset = 1;
        let begin = |tensor: &TensorSpec| {
            let here = offset;
            offset += self.tensor_bytes(tensor.role, tensor.len());
            here
        };
        layout.tensors().iter().map(begin).collect()
    }

    /// Decodes part of a tensor: `out.len()` numbers from the `first` on, a multiple of
    /// [`CODEC_BLOCK`](limits::CODEC_BLOCK). `bytes` is the payload from the tensor's beginning on. The part ends with a
    /// block or with the tensor.
    pub(super) fn decode_part(self, role: Role, bytes: &[u8], first: usize, out: &mut [f32]) -> Result<(), CodecError> {
        let short = CodecError::Length { expected: first + out.len(), actual: bytes.len() };
        match (role, self.kind()) {
            (Role::Gain, _) | (_, Kind::Full) => {
                let numbers = bytes.get(4 * first..4 * (first + out.len())).ok_or(short)?.as_chunks::<4>().0;
                out.iter_mut().zip(numbers).for_each(|(out, four)| *out = f32::from_le_bytes(*four));
                if out.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(CodecError::NotFinite) }
            }
            (_, Kind::Half) => {
                let numbers = bytes.get(2 * first..2 * (first + out.len())).ok_or(short)?.as_chunks::<2>().0;
                out.iter_mut().zip(numbers).for_each(|(out, two)| *out = from_bf16(u16::from_le_bytes(*two)));
                if out.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(CodecError::NotFinite) }
            }
            (_, Kind::Quantised { levels, per_byte }) => {
                let whole = 2 + limits::CODEC_BLOCK.div_ceil(per_byte);
                let blocks = bytes.get(first / limits::CODEC_BLOCK * whole..).ok_or(short)?.chunks(whole);
                for (block, out) in blocks.zip(out.chunks_mut(limits::CODEC_BLOCK)) {
                    let bytes = block.get(..2 + out.len().div_ceil(per_byte)).ok_or(CodecError::Code)?;
                    decode_block(bytes, levels, per_byte, out)?;
                }
                Ok(())
            }
        }
    }

    /// Decodes a payload that nobody vouches for.
    pub fn decode(self, layout: &Arc<Layout>, payload: &[u8]) -> Result<Params, CodecError> {
        self.check(layout, payload)?;
        let mut update = Params::zeros(Arc::clone(layout));
        for (tensor, offset) in layout.tensors().iter().zip(self.tensor_offsets(layout)) {
            self.decode_part(tensor.role, &payload[offset..], 0, &mut update.values_mut()[tensor.range()])?;
        }
        Ok(update)
    }
}

/// Every codec, for tests and help texts.
pub const CODECS: [Codec; 5] = [Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Int4, Codec::Ternary];

fn encode_block(block: &[f32], levels: i32, per_byte: usize, rng: &mut impl Rng, out: &mut Vec<u8>) {
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

fn decode_block(block: &[u8], levels: i32, per_byte: usize, out: &mut [f32]) -> Result<(), CodecError> {
    let Some((bits, codes)) = block.split_first_chunk::<2>() else { return Err(CodecError::Code) };
    let bits = u16::from_le_bytes(*bits);
    let scale = finite(from_bf16(bits))?;
    if bits >> 15 == 1 {
        return Err(CodecError::Code); // a negative scale would be a second way to write the block
    }
    let quantum = scale / levels as f32;
    let radix = 2 * levels + 1;
    if levels == 1 {
        return decode_ternary(codes, quantum, out);
    }
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

/// The five numbers of every byte below 3⁵, as −1, 0 and 1.
const TERNARY: [[f32; 5]; 243] = {
    let mut table = [[0.0; 5]; 243];
    let mut byte = 0;
    while byte < 243 {
        let (mut rest, mut place) = (byte, 0);
        while place < 5 {
            table[byte][place] = (rest % 3) as f32 - 1.0;
            rest /= 3;
            place += 1;
        }
        byte += 1;
    }
    table
};

fn decode_ternary(codes: &[u8], quantum: f32, out: &mut [f32]) -> Result<(), CodecError> {
    let (fives, last) = out.as_chunks_mut::<5>();
    let (whole, part) = codes.split_at(fives.len().min(codes.len()));
    for (five, &byte) in fives.iter_mut().zip(whole) {
        *five = TERNARY.get(usize::from(byte)).ok_or(CodecError::Code)?.map(|digit| quantum * digit);
    }
    for (out, &byte) in last.chunks_mut(5).zip(part) {
        // What is left of the byte must be nothing, so that the block has one encoding.
        if usize::from(byte) >= 3usize.pow(u32::try_from(out.len()).unwrap_or(u32::MAX)) {
            return Err(CodecError::Code);
        }
        let digits = TERNARY.get(usize::from(byte)).ok_or(CodecError::Code)?;
        out.iter_mut().zip(digits).for_each(|(out, digit)| *out = quantum * digit);
    }
    Ok(())
}

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

fn from_bf16(bits: u16) -> f32 {
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
fn round_to_bf16(value: f32, rng: &mut impl Rng) -> u16 {
    let bits = value.to_bits();
    let magnitude = ((bits & 0x7fff_ffff) + (rng.next_u32() >> 16)) >> 16;
    let sign = (bits >> 31) << 15;
    u16::try_from(sign | magnitude.min(0x7f7f)).unwrap_or(0)
}

fn finite(value: f32) -> Result<f32, CodecError> {
    if value.is_finite() { Ok(value) } else { Err(CodecError::NotFinite) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ModelSpec;

    fn layout() -> Arc<Layout> {
        // 264 × 6 is no multiple of the block: the last block of each matrix is short.
        Layout::of(&ModelSpec { layers: 1, width: 6, heads: 1, hidden: 7, context: 4 })
    }

    fn update(seed: u64, scale: f32) -> Params {
        let mut params = Params::initial(
            &ModelSpec { layers: 1, width: 6, heads: 1, hidden: 7, context: 4 },
            &Seed::from_number(seed),
        );
        params.values_mut().iter_mut().for_each(|value| *value *= scale);
        params
    }

    /// The most by which a codec may miss a number of a block with this largest magnitude.
    fn quantum(codec: Codec, largest: f32) -> f32 {
        match codec {
            Codec::Fp32 => 0.0,
            Codec::Bf16 => largest / 128.0,
            Codec::Int8 => largest * 1.01 / 127.0,
            Codec::Int4 => largest * 1.01 / 7.0,
            Codec::Ternary => largest * 1.01,
        }
    }

    proptest! {
        #[test]
        fn decoding_gives_back_every_number_to_within_one_quantum(seed: u64, exponent in -30i32..30, which in 0usize..5) {
            let codec = CODECS[which];
            let original = update(seed, 2f32.powi(exponent));
            let payload = codec.encode(&original, &Seed::from_number(seed)).unwrap();
            prop_assert_eq!(payload.len(), codec.payload_bytes(original.layout()));
            let decoded = codec.decode(original.layout(), &payload).unwrap();
            for tensor in original.layout().tensors() {
                let (was, is) = (original.tensor(tensor), decoded.tensor(tensor));
                if tensor.role == Role::Gain {
                    prop_assert_eq!(was, is);
                    continue;
                }
                for (was, is) in was.chunks(limits::CODEC_BLOCK).zip(is.chunks(limits::CODEC_BLOCK)) {
                    let largest = was.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                    for (was, is) in was.iter().zip(is) {
                        prop_assert!((was - is).abs() <= quantum(codec, largest), "{codec:?}: {was} became {is}");
                    }
                }
            }
        }

        #[test]
        fn a_damaged_payload_never_panics_and_never_yields_a_number_that_is_not_finite(
            which in 0usize..5, noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let codec = CODECS[which];
            let mut payload = codec.encode(&update(1, 0.1), &Seed::from_number(1)).unwrap();
            for (place, byte) in noise {
                let place = place.index(payload.len());
                payload[place] = byte;
            }
            if let Ok(decoded) = codec.decode(&layout(), &payload) {
                prop_assert!(decoded.is_finite());
            }
        }
    }

    /// What decoding gives on average over many seeds.
    fn mean_of_decoded(codec: Codec, original: &Params) -> Vec<f64> {
        let mut mean = vec![0.0f64; original.values().len()];
        let rounds = 2000;
        for seed in 0..rounds {
            let payload = codec.encode(original, &Seed::from_number(seed)).unwrap();
            let decoded = codec.decode(original.layout(), &payload).unwrap();
            mean.iter_mut().zip(decoded.values()).for_each(|(mean, &is)| *mean += f64::from(is) / rounds as f64);
        }
        mean
    }

    #[test]
    fn rounding_is_unbiased() {
        for codec in [Codec::Bf16, Codec::Int8, Codec::Int4] {
            let original = update(3, 1.0);
            let mean = mean_of_decoded(codec, &original);
            // All numbers together: one that rounding favours shows a thousand times.
            let (sum, bias) = original.values().iter().zip(&mean).fold((0.0, 0.0), |(sum, bias), (&was, is)| {
                (sum + f64::from(was.abs()), bias + (is - f64::from(was)) * f64::from(was.signum()))
            });
            assert!((bias / sum).abs() < 2e-3, "{codec:?} is biased by {}", bias / sum);
        }
    }

    #[test]
    fn ternary_keeps_the_length_of_every_block_along_itself() {
        let original = update(3, 1.0);
        let mean = mean_of_decoded(Codec::Ternary, &original);
        for tensor in original.layout().tensors().iter().filter(|tensor| tensor.role != Role::Gain) {
            let (was, is) = (original.tensor(tensor), &mean[tensor.range()]);
            for (was, is) in was.chunks(limits::CODEC_BLOCK).zip(is.chunks(limits::CODEC_BLOCK)) {
                let along: f64 = was.iter().zip(is).map(|(&was, is)| f64::from(was) * is).sum();
                let squares: f64 = was.iter().map(|&was| f64::from(was).powi(2)).sum();
                assert!((along / squares - 1.0).abs() < 0.05, "{along} of {squares}");
            }
        }
    }

    #[test]
    fn clipping_leaves_less_than_half_the_noise_of_a_scale_that_fits_the_largest_number() {
        let original = update(3, 1.0);
        let payload = Codec::Ternary.encode(&original, &Seed::from_number(1)).unwrap();
        let decoded = Codec::Ternary.decode(original.layout(), &payload).unwrap();
        let (mut noise, mut unclipped_noise) = (0.0, 0.0);
        for tensor in original.layout().tensors().iter().filter(|tensor| tensor.role != Role::Gain) {
            let (was, is) = (original.tensor(tensor), decoded.tensor(tensor));
            for (was, is) in was.chunks(limits::CODEC_BLOCK).zip(is.chunks(limits::CODEC_BLOCK)) {
                let largest = was.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                // Stochastic rounding to ±largest or zero has this variance.
                unclipped_noise += was.iter().map(|was| f64::from(was.abs() * (largest - was.abs()))).sum::<f64>();
                noise += was.iter().zip(is).map(|(was, is)| f64::from(is - was).powi(2)).sum::<f64>();
            }
        }
        assert!(noise < 0.5 * unclipped_noise, "{noise} of {unclipped_noise}");
    }

    #[test]
    fn a_payload_of_the_wrong_length_codec_or_content_is_refused() {
        let original = update(1, 0.1);
        let seed = Seed::from_number(1);
        for codec in CODECS {
            let payload = codec.encode(&original, &seed).unwrap();
            let cut = &payload[..payload.len() - 1];
            assert!(matches!(codec.decode(&layout(), cut), Err(CodecError::Length { .. })));
            let mut other = payload.clone();
            other[0] = 9;
            assert_eq!(codec.decode(&layout(), &other), Err(CodecError::Codec(9)));
            assert!(codec.decode(&layout(), &[]).is_err());
        }
        let mut infinite = Codec::Fp32.encode(&original, &seed).unwrap();
        infinite[1..5].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert_eq!(Codec::Fp32.decode(&layout(), &infinite), Err(CodecError::NotFinite));
        let mut code = Codec::Ternary.encode(&original, &seed).unwrap();
        code[3] = 243;
        assert_eq!(Codec::Ternary.decode(&layout(), &code), Err(CodecError::Code));
        let mut nan = original;
        nan.values_mut()[5] = f32::NAN;
        assert_eq!(Codec::Ternary.encode(&nan, &seed), Err(CodecError::NotFinite));
    }

    #[test]
    fn ternary_takes_less_than_two_bits_a_parameter() {
        let layout = Layout::of(&ModelSpec { layers: 4, width: 128, heads: 4, hidden: 352, context: 64 });
        let bits = 8.0 * Codec::Ternary.payload_bytes(&layout) as f64 / layout.len() as f64;
        assert!(bits < 1.95, "{bits} bits");
    }
}
