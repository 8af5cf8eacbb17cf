//! One update of many: averaging that a minority cannot steer.
//!
//! Payloads are decoded piece by piece, the same piece of each, so nothing but the encoded payloads and one buffer of the
//! model's size is held. Pieces are independent and are worked on in parallel; sums run over updates and over pieces in
//! a fixed order, so the result is the same for any number of threads. Updates are put into an order of their own first,
//! so it is the same for any order of arrival too.
//!
//! All rules but the trimmed mean weigh whole updates. Their weights follow from the products of the updates with each
//! other (the Gram matrix), which takes one pass however often a rule iterates; a second pass makes the weighted mean.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::codec::Room;
use super::gram::Gram;
use super::kernels::{LANES, sort_columns};
use super::{CodecError, Layout, Params, Role};
use crate::protocol::{Aggregation, Codec, Rule, limits};

/// Numbers of a tensor that are decoded at a time: they stay in the cache, and are a whole number of blocks.
const PIECE: usize = 128 * limits::CODEC_BLOCK;

/// An accepted update.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Its payload.
    pub payload: &'a [u8],
    /// The tokens that it was trained on: its weight.
    pub tokens: u64,
}

/// Part of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub role: Role,
    /// Where the tensor begins in a payload.
    offset: usize,
    /// Which of its numbers.
    pub first: usize,
    /// Where they are among all parameters.
    pub range: Range<usize>,
}

fn pieces(codec: Codec, layout: &Layout) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (tensor, offset) in layout.tensors().iter().zip(codec.tensor_offsets(layout)) {
        for first in (0..tensor.len()).step_by(PIECE) {
            let range = tensor.offset + first..tensor.offset + tensor.len().min(first + PIECE);
            pieces.push(Piece { role: tensor.role, offset, first, range });
        }
    }
    pieces
}

impl Piece {
    /// A payload from the tensor's beginning on.
    pub fn bytes<'a>(&self, payload: &'a [u8]) -> &'a [u8] {
        payload.get(self.offset..).unwrap_or_default()
    }

    fn decode(&self, codec: Codec, payload: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
        codec.decode_part(self.role, self.bytes(payload), self.first, out)
    }
}

impl Codec {
    /// The L2 norm of an encoded update, without holding it decoded.
    pub fn norm(self, layout: &Layout, payload: &[u8]) -> Result<f64, CodecError> {
        self.check(layout, payload)?;
        let gram = Gram::of(self, &pieces(self, layout), &[Update { payload, tokens: 1 }])?;
        Ok(gram.at(0, 0).sqrt())
    }
}

impl Aggregation {
    /// The aggregate of `updates`, which must not be empty, by this rule. The order of `updates` does not matter.
    pub fn apply(self, codec: Codec, layout: &Arc<Layout>, updates: &[Update<'_>]) -> Result<Params, CodecError> {
        let mut updates = updates.to_vec();
        updates.sort_by_key(|update| (update.payload, update.tokens));
        for update in &updates {
            codec.check(layout, update.payload)?;
        }
        let total: u64 = updates.iter().map(|update| update.tokens).sum();
        let shares: Vec<f64> = updates.iter().map(|update| update.tokens as f64 / total.max(1) as f64).collect();
        let pieces = pieces(codec, layout);
        let mut out = Params::zeros(Arc::clone(layout));
        if self == Self::MEAN {
            weighted(codec, &pieces, &updates, &shares, &mut out)?;
            return Ok(out);
        }
        let gram = Gram::of(codec, &pieces, &updates)?;
        let scales = self.scales(&gram);
        let weights = match self.rule {
            Rule::TrimmedMean { trim } => {
                trimmed(codec, &pieces, &updates, &shares, &scales, trim, &mut out)?;
                return Ok(out);
            }
            Rule::Mean => shares,
            Rule::CentredClip => centred_clip(&gram.scaled(&scales), &shares),
            Rule::GeometricMedian => geometric_median(&gram.scaled(&scales), &shares),
            Rule::Krum { byzantine } => krum(&gram.scaled(&scales), byzantine as usize),
        };
        let weights: Vec<f64> = weights.iter().zip(&scales).map(|(weight, scale)| weight * scale).collect();
        weighted(codec, &pieces, &updates, &weights, &mut out)?;
        Ok(out)
    }

    /// What each update is multiplied by so that none is longer than `norm_limit` times the median.
    fn scales(self, gram: &Gram) -> Vec<f64> {
        let norms: Vec<f64> = (0..gram.len()).map(|i| gram.at(i, i).sqrt()).collect();
        let limit = self.norm_limit.map_or(f64::INFINITY, |limit| f64::from(limit) * median(&norms));
        norms.iter().map(|norm| if *norm > limit { limit / norm } else { 1.0 }).collect()
    }
}

/// Times a rule that iterates does so. Both converge by a factor a step; more changes the sixth digit.
const ITERATIONS: usize = 30;

/// [Centred clipping](https://arxiv.org/abs/2012.10333): from a centre `v`, moves by the mean of `x − v`, each clipped to
/// a radius. It begins at the update that is nearest to the others, and the radius is [`limits::CLIP_RADIUS`] times the
/// median distance from the centre. Where nobody is clipped, as among honest updates, it is the mean.
fn centred_clip(gram: &Gram, shares: &[f64]) -> Vec<f64> {
    let mut weights = medoid(gram, shares);
    for _ in 0..ITERATIONS {
        let distances = gram.distances(&weights);
        let radius = limits::CLIP_RADIUS * median(&distances);
        if distances.iter().all(|distance| *distance <= radius) {
            return shares.to_vec();
        }
        let pulls: Vec<f64> = distances
            .iter()
            .zip(shares)
            .map(|(distance, share)| share * if *distance > radius { radius / distance } else { 1.0 })
            .collect();
        let rest = 1.0 - pulls.iter().sum::<f64>();
        weights.iter_mut().zip(&pulls).for_each(|(weight, pull)| *weight = rest * *weight + pull);
    }
    weights
}

/// The point with the least sum of distances, by Weiszfeld's iteration as in [RFA](https://arxiv.org/abs/1912.13445).
fn geometric_median(gram: &Gram, shares: &[f64]) -> Vec<f64> {
    let mut weights = shares.to_vec();
    for _ in 0..ITERATIONS {
        let distances = gram.distances(&weights);
        let farthest = distances.iter().copied().fold(0.0, f64::max);
        if farthest == 0.0 {
            return weights;
        }
        // An update at the centre itself would pull without bound.
        let floor = 1e-6 * farthest;
        let pulls: Vec<f64> = distances.iter().zip(shares).map(|(d, share)| share / d.max(floor)).collect();
        let total: f64 = pulls.iter().sum();
        weights = pulls.iter().map(|pull| pull / total).collect();
    }
    weights
}

/// [Krum](https://arxiv.org/abs/1703.02757): the update whose `n − f − 2` nearest others are nearest, alone.
fn krum(gram: &Gram, byzantine: usize) -> Vec<f64> {
    let n = gram.len();
    let neighbours = n.saturating_sub(byzantine + 2).max(1);
    let score = |i: usize| {
        let mut squares: Vec<f64> = (0..n).filter(|j| *j != i).map(|j| gram.square_between(i, j)).collect();
        squares.sort_by(f64::total_cmp);
        squares.iter().take(neighbours).sum::<f64>()
    };
    let best = (0..n).min_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or_default();
    (0..n).map(|i| f64::from(u8::from(i == best))).collect()
}

/// All weight on the update with the least distances to the others.
fn medoid(gram: &Gram, shares: &[f64]) -> Vec<f64> {
    let score = |i: usize| -> f64 {
        shares.iter().enumerate().map(|(j, share)| share * gram.square_between(i, j).max(0.0).sqrt()).sum()
    };
    let best = (0..gram.len()).min_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or_default();
    (0..gram.len()).map(|i| f64::from(u8::from(i == best))).collect()
}

/// The same piece of every update, one after the other.
pub(super) fn decode_all(codec: Codec, piece: &Piece, updates: &[Update<'_>]) -> Result<Vec<f32>, CodecError> {
    let len = piece.range.len();
    let mut rows = vec![0.0; len * updates.len()];
    for (update, row) in updates.iter().zip(rows.chunks_mut(len)) {
        piece.decode(codec, update.payload, row)?;
    }
    Ok(rows)
}

/// Runs `fill` on every piece of `out` in parallel.
fn fill(
    pieces: &[Piece],
    out: &mut Params,
    fill: impl Fn(&Piece, &mut [f32]) -> Result<(), CodecError> + Sync,
) -> Result<(), CodecError> {
    let mut rest = out.values_mut();
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (part, after) = rest.split_at_mut(piece.range.len());
        parts.push((piece, part));
        rest = after;
    }
    parts.into_par_iter().try_for_each(|(piece, part)| fill(piece, part))
}

fn weighted(
    codec: Codec,
    pieces: &[Piece],
    updates: &[Update<'_>],
    weights: &[f64],
    out: &mut Params,
) -> Result<(), CodecError> {
    fill(pieces, out, |piece, out| {
        let mut room = Room::default();
        updates.iter().zip(weights).try_for_each(|(update, &weight)| {
            codec.add_part(piece.role, piece.bytes(update.payload), piece.first, weight as f32, out, &mut room)
        })
    })
}

/// The [coordinate-wise trimmed mean](https://arxiv.org/abs/1803.01498): of each number, the share `trim` of the updates
/// with the largest values and as many with the smallest are left out.
fn trimmed(
    codec: Codec,
    pieces: &[Piece],
    updates: &[Update<'_>],
    shares: &[f64],
    scales: &[f64],
    trim: f32,
    out: &mut Params,
) -> Result<(), CodecError> {
    let cut = ((f64::from(trim) * updates.len() as f64) as usize).min(updates.len().saturating_sub(1) / 2);
    let alike = shares.windows(2).all(|pair| pair[0] == pair[1]);
    fill(pieces, out, |piece, out| {
        let rows = decode_all(codec, piece, updates)?;
        if alike {
            trimmed_alike(&rows, scales, cut, out);
        } else {
            trimmed_by_shares(&rows, shares, scales, cut, out);
        }
        Ok(())
    })
}

/// Where all updates have the same weight: many numbers at a time.
fn trimmed_alike(rows: &[f32], scales: &[f64], cut: usize, out: &mut [f32]) {
    let (length, count) = (out.len(), scales.len());
    let mut columns = vec![[0.0; LANES]; count];
    for (place, out) in out.chunks_mut(LANES).enumerate() {
        for ((column, row), scale) in columns.iter_mut().zip(rows.chunks(length)).zip(scales) {
            for (value, number) in column.iter_mut().zip(&row[place * LANES..]) {
                *value = number * *scale as f32;
            }
        }
        sort_columns(&mut columns);
        let kept = &columns[cut..count - cut];
        let mut sums = [0.0f64; LANES];
        for row in kept {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / kept.len() as f64) as f32);
    }
}

fn trimmed_by_shares(rows: &[f32], shares: &[f64], scales: &[f64], cut: usize, out: &mut [f32]) {
    let length = out.len();
    let mut column: Vec<(f32, f64)> = Vec::with_capacity(shares.len());
    for (place, out) in out.iter_mut().enumerate() {
        let values = rows.iter().skip(place).step_by(length);
        column.clear();
        column.extend(values.zip(scales).zip(shares).map(|((value, scale), share)| (value * *scale as f32, *share)));
        column.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let kept = &column[cut..column.len() - cut];
        let total: f64 = kept.iter().map(|(_, share)| share).sum();
        *out = (kept.iter().map(|(value, share)| f64::from(*value) * share).sum::<f64>() / total) as f32;
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match (values.get(values.len() / 2), values.get(values.len().wrapping_sub(1) / 2)) {
        (Some(upper), Some(lower)) => f64::midpoint(*lower, *upper),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{ModelSpec, Seed};

    const MODEL: ModelSpec = ModelSpec { layers: 1, width: 16, heads: 2, hidden: 20, context: 4 };
    const RULES: [Rule; 5] = [
        Rule::Mean,
        Rule::CentredClip,
        Rule::GeometricMedian,
        Rule::TrimmedMean { trim: 0.3 },
        Rule::Krum { byzantine: 3 },
    ];

    /// What workers that mean well send: one direction that they share, as much again of their own, times `scale`.
    fn update(worker: u64, scale: f32) -> Params {
        let random = |seed| {
            let mut params = Params::zeros(Layout::of(&MODEL));
            let mut rng = Seed::from_number(seed).rng();
            let mut unit = || crate::protocol::below(&mut rng, 2001) as f32 / 1000.0 - 1.0;
            params.values_mut().iter_mut().for_each(|value| *value = unit());
            params
        };
        let (mut shared, own) = (random(1_000_000), random(worker));
        shared.values_mut().iter_mut().zip(own.values()).for_each(|(a, b)| *a = scale * (*a + b));
        shared
    }

    fn encode(codec: Codec, updates: &[Params]) -> Vec<Vec<u8>> {
        let seed = |i: usize| Seed::from_number(i as u64);
        updates.iter().enumerate().map(|(i, update)| codec.encode(update, &seed(i)).unwrap()).collect()
    }

    fn aggregate(aggregation: Aggregation, codec: Codec, payloads: &[Vec<u8>]) -> Params {
        let updates: Vec<Update<'_>> = payloads.iter().map(|payload| Update { payload, tokens: 100 }).collect();
        aggregation.apply(codec, &Layout::of(&MODEL), &updates).unwrap()
    }

    fn distance(a: &Params, b: &Params) -> f64 {
        a.values().iter().zip(b.values()).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    }

    fn length(a: &Params) -> f64 {
        distance(a, &Params::zeros(Layout::of(&MODEL)))
    }

    #[test]
    fn the_mean_weighs_by_tokens() {
        let (a, b) = (update(1, 1.0), update(2, 1.0));
        let payloads = encode(Codec::Fp32, &[a.clone(), b.clone()]);
        let updates = [Update { payload: &payloads[0], tokens: 3 }, Update { payload: &payloads[1], tokens: 1 }];
        let mean = Aggregation::MEAN.apply(Codec::Fp32, &Layout::of(&MODEL), &updates).unwrap();
        for ((a, b), mean) in a.values().iter().zip(b.values()).zip(mean.values()) {
            assert!((0.75 * a + 0.25 * b - mean).abs() < 1e-6);
        }
    }

    #[test]
    fn the_trimmed_mean_is_the_same_whether_weights_are_equal_or_hardly_differ() {
        let updates: Vec<Params> = (0..9).map(|i| update(i, 1.0)).collect();
        let payloads = encode(Codec::Fp32, &updates);
        let trimmed = Aggregation { norm_limit: None, rule: Rule::TrimmedMean { trim: 0.25 } };
        let with = |extra: u64| {
            let tokens = |place: usize| 1_000_000_000 + extra * place as u64;
            let updates = payloads.iter().enumerate();
            let updates: Vec<_> = updates.map(|(place, payload)| Update { payload, tokens: tokens(place) }).collect();
            trimmed.apply(Codec::Fp32, &Layout::of(&MODEL), &updates).unwrap()
        };
        assert!(distance(&with(0), &with(1)) < 1e-5 * length(&with(0)));
    }

    #[test]
    fn norms_match_the_decoded_update() {
        for codec in crate::training::CODECS {
            let payload = &encode(codec, &[update(1, 1.0)])[0];
            let layout = Layout::of(&MODEL);
            let decoded = codec.decode(&layout, payload).unwrap();
            let norm = codec.norm(&layout, payload).unwrap();
            assert!((norm / length(&decoded) - 1.0).abs() < 1e-6, "{codec:?}");
        }
    }

    #[test]
    fn centred_clipping_of_updates_that_agree_is_their_mean_to_the_bit() {
        let payloads = encode(Codec::Ternary, &(0..8).map(|i| update(i, 1.0)).collect::<Vec<_>>());
        let clip = Aggregation { norm_limit: None, rule: Rule::CentredClip };
        assert_eq!(aggregate(clip, Codec::Ternary, &payloads), aggregate(Aggregation::MEAN, Codec::Ternary, &payloads));
    }

    #[test]
    fn three_of_ten_that_flip_and_multiply_turn_no_robust_rule_around() {
        let honest: Vec<Params> = (0..7).map(|i| update(i, 1.0)).collect();
        let clean = aggregate(Aggregation::MEAN, Codec::Fp32, &encode(Codec::Fp32, &honest));
        let mut all = honest;
        all.extend((7..10).map(|i| update(i, -10.0)));
        let payloads = encode(Codec::Fp32, &all);
        let along = |a: &Params| {
            let product: f64 = a.values().iter().zip(clean.values()).map(|(a, b)| f64::from(a * b)).sum();
            product / length(&clean).powi(2)
        };
        assert!(along(&aggregate(Aggregation::MEAN, Codec::Fp32, &payloads)) < -1.0, "the mean is turned around");
        for rule in RULES {
            let robust = Aggregation { norm_limit: Some(1.0), rule };
            let kept = along(&aggregate(robust, Codec::Fp32, &payloads));
            let least = if rule == Rule::Mean { 0.3 } else { 0.5 };
            assert!(kept > least, "{rule:?} keeps {kept}");
        }
    }

    #[test]
    fn one_update_is_its_own_aggregate_and_so_are_many_equal_ones() {
        for (rule, count) in RULES.into_iter().flat_map(|rule| [(rule, 1), (rule, 5)]) {
            let payload = encode(Codec::Fp32, &[update(1, 1.0)]).remove(0);
            let result = aggregate(Aggregation { norm_limit: Some(1.0), rule }, Codec::Fp32, &vec![payload; count]);
            assert!(distance(&result, &update(1, 1.0)) < 1e-5, "{rule:?} of {count}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_order_of_updates_and_the_number_of_threads_change_no_bit(
            which in 0usize..5, seeds in prop::collection::vec(0u64..50, 1..9), shuffle: u64,
        ) {
            let aggregation = Aggregation { norm_limit: Some(1.0), rule: RULES[which] };
            let mut payloads = encode(Codec::Ternary, &seeds.iter().map(|seed| update(*seed, 1.0)).collect::<Vec<_>>());
            let expected = aggregate(aggregation, Codec::Ternary, &payloads);
            let mut rng = Seed::from_number(shuffle).rng();
            for i in (1..payloads.len()).rev() {
                payloads.swap(i, crate::protocol::below(&mut rng, i as u64 + 1) as usize);
            }
            prop_assert!(expected.is_finite());
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            prop_assert_eq!(pool.install(|| aggregate(aggregation, Codec::Ternary, &payloads)), expected);
        }

        #[test]
        fn no_aggregate_is_longer_than_the_norm_limit_allows(
            which in 0usize..5, scales in prop::collection::vec(-100f32..100.0, 2..9), limit in 0.5f32..2.0,
        ) {
            let aggregation = Aggregation { norm_limit: Some(limit), rule: RULES[which] };
            let updates: Vec<Params> = scales.iter().zip(0..).map(|(scale, i)| update(i, *scale)).collect();
            let norms: Vec<f64> = updates.iter().map(length).collect();
            let result = aggregate(aggregation, Codec::Fp32, &encode(Codec::Fp32, &updates));
            prop_assert!(length(&result) <= f64::from(limit) * median(&norms) * 1.001);
        }
    }

    #[test]
    fn a_payload_that_does_not_decode_is_an_error() {
        let mut payloads = encode(Codec::Ternary, &[update(1, 1.0), update(2, 1.0)]);
        payloads[1][3] = 255;
        let updates: Vec<Update<'_>> = payloads.iter().map(|payload| Update { payload, tokens: 1 }).collect();
        for rule in RULES {
            let aggregation = Aggregation { norm_limit: Some(1.0), rule };
            assert_eq!(aggregation.apply(Codec::Ternary, &Layout::of(&MODEL), &updates), Err(CodecError::Code));
        }
        let short = [Update { payload: &payloads[0][..9], tokens: 1 }];
        assert!(Aggregation::MEAN.apply(Codec::Ternary, &Layout::of(&MODEL), &short).is_err());
    }
}
