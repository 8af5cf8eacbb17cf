//! How pseudo-gradients travel.
//!
//! A payload is one byte that names the codec, then every tensor in layout order. Gains are f32 little-endian.
//! Matrices are f32, bf16, or blocks of [`CODEC_BLOCK`](limits::CODEC_BLOCK) numbers: a bf16 scale and a whole number of
//! quanta of `scale / levels` for each number. Rounding is stochastic (as in [QSGD](https://arxiv.org/abs/1610.02132)),
//! seeded by the task: a payload is a pure function of its task. It is unbiased, number by number, where the scale is
//! the block's largest magnitude; ternary blocks are clipped first (see `clipped`), which costs that and brings less
//! than half the noise. The length of a payload follows from the layout and the codec, and every value has one encoding,
//! so nothing can hide in it.

mod blocks;

use std::sync::Arc;

use blocks::{compare_blocks, decode_block, encode_block, from_bf16, round_to_bf16, ternary_block};

use super::kernels::{self, Signs};
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

/// Part of an encoded tensor.
enum Part<'a> {
    Full(&'a [[u8; 4]]),
    Half(&'a [[u8; 2]]),
    /// Blocks of `whole` bytes, the last of which may be shorter.
    Blocks {
        bytes: &'a [u8],
        whole: usize,
        levels: i32,
        per_byte: usize,
    },
}

/// Room for what is decoded on the way to something else.
#[derive(Default)]
pub(super) struct Room {
    pub numbers: Vec<f32>,
    pub signs: Vec<Signs>,
}

fn finite(all: bool) -> Result<(), CodecError> {
    if all { Ok(()) } else { Err(CodecError::NotFinite) }
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

    /// The codes on each side of zero; nothing where numbers do not travel as codes.
    #[must_use]
    pub fn levels(self) -> Option<u32> {
        match self.kind() {
            Kind::Quantised { levels, .. } => u32::try_from(levels).ok(),
            Kind::Full | Kind::Half => None,
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

    /// Where part of a tensor lies: `length` numbers from the `first` on, a multiple of
    /// [`CODEC_BLOCK`](limits::CODEC_BLOCK). `bytes` is the payload from the tensor's beginning on. The part ends with a
    /// block or with the tensor.
    fn part(self, role: Role, bytes: &[u8], first: usize, length: usize) -> Result<Part<'_>, CodecError> {
        let short = CodecError::Length { expected: first + length, actual: bytes.len() };
        Ok(match (role, self.kind()) {
            (Role::Gain, _) | (_, Kind::Full) => {
                Part::Full(bytes.get(4 * first..4 * (first + length)).ok_or(short)?.as_chunks().0)
            }
            (_, Kind::Half) => Part::Half(bytes.get(2 * first..2 * (first + length)).ok_or(short)?.as_chunks().0),
            (_, Kind::Quantised { levels, per_byte }) => {
                let whole = 2 + limits::CODEC_BLOCK.div_ceil(per_byte);
                let (before, last) = (first / limits::CODEC_BLOCK * whole, length % limits::CODEC_BLOCK);
                let last = if last == 0 { 0 } else { 2 + last.div_ceil(per_byte) };
                let end = before + length / limits::CODEC_BLOCK * whole + last;
                Part::Blocks { bytes: bytes.get(before..end).ok_or(short)?, whole, levels, per_byte }
            }
        })
    }

    /// Decodes part of a tensor: see `part`.
    pub(super) fn decode_part(self, role: Role, bytes: &[u8], first: usize, out: &mut [f32]) -> Result<(), CodecError> {
        match self.part(role, bytes, first, out.len())? {
            Part::Full(numbers) => finite(kernels::read(numbers, out)),
            Part::Half(numbers) => {
                out.iter_mut().zip(numbers).for_each(|(out, two)| *out = from_bf16(u16::from_le_bytes(*two)));
                finite(out.iter().all(|value| value.is_finite()))
            }
            Part::Blocks { bytes, whole, levels, per_byte } => {
                let mut blocks = bytes.chunks(whole).zip(out.chunks_mut(limits::CODEC_BLOCK));
                blocks.try_for_each(|(block, out)| decode_block(block, levels, per_byte, out))
            }
        }
    }

    /// Decodes part of a tensor into blocks of signs, where it travels as these: whether it does.
    pub(super) fn decode_signs(
        self,
        role: Role,
        bytes: &[u8],
        first: usize,
        length: usize,
        out: &mut Vec<Signs>,
    ) -> Result<bool, CodecError> {
        let Part::Blocks { bytes, whole, levels: 1, .. } = self.part(role, bytes, first, length)? else {
            return Ok(false);
        };
        out.clear();
        out.reserve(length.div_ceil(limits::CODEC_BLOCK));
        for (block, start) in bytes.chunks(whole).zip((0..length).step_by(limits::CODEC_BLOCK)) {
            out.push(ternary_block(block, limits::CODEC_BLOCK.min(length - start))?);
        }
        Ok(true)
    }

    /// Adds `weight` times part of a tensor to `out`, with room for what is decoded on the way.
    pub(super) fn add_part(
        self,
        role: Role,
        bytes: &[u8],
        first: usize,
        weight: f32,
        out: &mut [f32],
        room: &mut Room,
    ) -> Result<(), CodecError> {
        if let Part::Full(numbers) = self.part(role, bytes, first, out.len())? {
            return finite(kernels::add(numbers, weight, out));
        }
        if self.decode_signs(role, bytes, first, out.len(), &mut room.signs)? {
            kernels::add_signs(&room.signs, weight, out);
        } else {
            room.numbers.resize(out.len(), 0.0);
            self.decode_part(role, bytes, first, &mut room.numbers)?;
            kernels::add_numbers(&room.numbers, weight, out);
        }
        Ok(())
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

/// How far an update is from another of the same task.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Difference {
    /// What codes differ by on average, in levels, of the numbers that travel as codes; 0 where none do. Honest results round
    /// to neighbouring levels where they differ at all, so of these it is the share of codes that do.
    pub codes: f64,
    /// The relative L2 distance of the blocks' scales.
    pub scales: f64,
    /// The relative L2 distance of the numbers that travel as such: all of them in fp32 and bf16, else the gains.
    pub exact: f64,
}

/// A relative L2 distance in the making.
#[derive(Default)]
struct Distance {
    between: f64,
    of: f64,
}

impl Distance {
    fn add(&mut self, this: f32, other: f32) {
        self.between += (f64::from(this) - f64::from(other)).powi(2);
        self.of += f64::from(other).powi(2);
    }

    fn relative(&self) -> f64 {
        if self.between == 0.0 { 0.0 } else { (self.between / self.of.max(f64::MIN_POSITIVE)).sqrt() }
    }
}

impl Codec {
    /// How far `this` payload is from the `other`, of which distances are a share.
    pub fn difference(self, layout: &Layout, this: &[u8], other: &[u8]) -> Result<Difference, CodecError> {
        self.check(layout, this)?;
        self.check(layout, other)?;
        let (mut exact, mut scales) = (Distance::default(), Distance::default());
        let (mut apart, mut codes) = (0.0, 0);
        for (tensor, offset) in layout.tensors().iter().zip(self.tensor_offsets(layout)) {
            let range = offset..offset + self.tensor_bytes(tensor.role, tensor.len());
            let (this, other) = (&this[range.clone()], &other[range]);
            match (tensor.role, self.kind()) {
                (Role::Embedding | Role::Hidden, Kind::Quantised { levels, per_byte }) => {
                    let whole = 2 + limits::CODEC_BLOCK.div_ceil(per_byte);
                    let starts = (0..tensor.len()).step_by(limits::CODEC_BLOCK);
                    for ((this, other), start) in this.chunks(whole).zip(other.chunks(whole)).zip(starts) {
                        let numbers = limits::CODEC_BLOCK.min(tensor.len() - start);
                        let (between, [this, other]) = compare_blocks((this, other), levels, per_byte, numbers)?;
                        apart += between;
                        codes += numbers;
                        scales.add(this, other);
                    }
                }
                _ => {
                    let (mut these, mut others) = (vec![0.0; tensor.len()], vec![0.0; tensor.len()]);
                    self.decode_part(tensor.role, this, 0, &mut these)?;
                    self.decode_part(tensor.role, other, 0, &mut others)?;
                    these.iter().zip(&others).for_each(|(this, other)| exact.add(*this, *other));
                }
            }
        }
        let codes = apart / (codes as f64).max(1.0);
        Ok(Difference { codes, scales: scales.relative(), exact: exact.relative() })
    }
}

/// Every codec, for tests and help texts.
pub const CODECS: [Codec; 5] = [Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Int4, Codec::Ternary];

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
    fn the_difference_of_payloads_counts_codes_and_measures_the_rest() {
        let (layout, seed) = (layout(), Seed::from_number(1));
        for codec in CODECS {
            let original = update(1, 0.1);
            let payload = codec.encode(&original, &seed).unwrap();
            assert_eq!(codec.difference(&layout, &payload, &payload), Ok(Difference::default()), "{codec:?}");
            let mut other = original.clone();
            other.values_mut().iter_mut().for_each(|value| *value *= 1.1);
            let scaled = codec.difference(&layout, &codec.encode(&other, &seed).unwrap(), &payload).unwrap();
            assert!((scaled.exact - 0.1).abs() < 0.01, "{codec:?}: {scaled:?}");
            let quantised = !matches!(codec, Codec::Fp32 | Codec::Bf16);
            assert!(!quantised || ((scaled.scales - 0.1).abs() < 0.01 && scaled.codes < 0.1), "{codec:?}: {scaled:?}");
            let another = codec.encode(&update(2, 0.1), &seed).unwrap();
            let far = codec.difference(&layout, &another, &payload).unwrap();
            assert!(if quantised { far.codes > 0.3 } else { far.exact > 0.2 }, "{codec:?}: {far:?}");
            assert!(codec.difference(&layout, &payload[1..], &payload).is_err());
        }
    }

    #[test]
    fn ternary_takes_less_than_two_bits_a_parameter() {
        let layout = Layout::of(&ModelSpec { layers: 4, width: 128, heads: 4, hidden: 352, context: 64 });
        let bits = 8.0 * Codec::Ternary.payload_bytes(&layout) as f64 / layout.len() as f64;
        assert!(bits < 1.95, "{bits} bits");
    }
}
