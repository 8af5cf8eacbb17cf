//! Decoding on plain slices: the network of `transformer` for tokens that come one after the other, in many texts at a
//! time. Keys and values of earlier tokens are kept, so that a token costs one row of each product.

use std::fmt;
use std::sync::Arc;

use super::super::engine::{check_params, check_tokens};
use super::super::matmul::{Matrix, MatrixMut, matmul};
use super::super::weights::{Group, groups};
use super::attention::{QUERY_ROWS, Rotary};
use super::block::{BlockShape, linear};
use super::head::embed_into;
use super::kernels::{exp_row, gated, norm};
use super::pool::{Scratch, give, take};
use super::threads::for_each;
use crate::protocol::{ModelSpec, VOCABULARY};
use crate::training::{EngineError, Params};

/// Products of up to so many numbers take another way through the kernels, as do those of one row, and have other bits. A
/// row's bits do not depend on how many others there are in larger ones.
const SMALL_PRODUCT: usize = 256;

/// Multiplications in a step from which on it pays to wake another thread (tens of microseconds).
const WORTH_A_THREAD: usize = 1 << 22;

/// A model loaded to continue many texts, on the processor, with the kernels that training uses.
///
/// What a text's logits are does not depend on which others are decoded at the same time, nor on the number of threads:
/// the bits are the same.
pub struct Decoder {
    params: Params,
    groups: Vec<Group>,
    shape: BlockShape,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Keys and values of a text's tokens so far.
#[derive(Debug)]
pub struct Cache {
    /// In each layer the keys, then the values, each `capacity × width`.
    numbers: Vec<f32>,
    tokens: usize,
    capacity: usize,
}

impl Cache {
    /// Tokens that are in it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.numbers));
    }
}

/// What a text goes on with in a step.
#[derive(Debug)]
pub struct Turn<'a> {
    /// One token or more.
    pub tokens: &'a [u16],
    /// What came before; the tokens are added to it.
    pub cache: &'a mut Cache,
}

impl Decoder {
    /// Takes `params`.
    ///
    /// # Errors
    /// When they are not of `model`, or not finite.
    pub fn new(model: &ModelSpec, params: Params) -> Result<Self, EngineError> {
        check_params(model, &params)?;
        let [width, heads, hidden, context] =
            [model.width, model.heads, model.hidden, model.context].map(|size| size as usize);
        let rotary = Arc::new(Rotary::new(context, width / heads));
        let shape = BlockShape { width, heads, hidden, context, rotary };
        Ok(Self { groups: groups(params.layout()), params, shape })
    }

    /// Tokens that a text may have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.shape.context
    }

    /// An empty cache for a text of up to `tokens` tokens.
    #[must_use]
    pub fn cache(&self, tokens: usize) -> Cache {
        let capacity = tokens.clamp(1, self.shape.context);
        Cache { numbers: take(self.layers() * 2 * capacity * self.shape.width), tokens: 0, capacity }
    }

    /// Rows that products have at least, so that none is small: the narrowest has the model's width.
    fn rows_min(&self) -> usize {
        (SMALL_PRODUCT / self.shape.width + 1).max(2)
    }

    fn layers(&self) -> usize {
        self.groups.len() - 2
    }

    fn weights(&self, group: usize) -> &[f32] {
        &self.params.values()[self.groups[group].range.clone()]
    }

    /// Takes the tokens of each turn in: the logits after the last one of each, of every token of the vocabulary.
    ///
    /// # Errors
    /// When a turn has no tokens, one that is not of the vocabulary, or more than its cache has room for: nothing has
    /// changed then. When the model computes a NaN.
    pub fn step(&self, turns: &mut [Turn<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        for turn in &*turns {
            check_tokens(turn.tokens)?;
            let (tokens, room) = (turn.tokens.len(), turn.cache.capacity - turn.cache.tokens);
            if tokens == 0 || tokens > room {
                return Err(EngineError::Batch(format!("{tokens} tokens where there is room for {room}")));
            }
            if turn.cache.numbers.len() != self.layers() * 2 * turn.cache.capacity * self.shape.width {
                return Err(EngineError::Batch("the cache is of another model".to_owned()));
            }
        }
        let mut logits: Vec<Vec<f32>> = turns.iter().map(|_| vec![0.0; VOCABULARY as usize]).collect();
        let rows: usize = turns.iter().map(|turn| turn.tokens.len()).sum();
        let worth = (rows * self.params.values().len()).div_ceil(WORTH_A_THREAD);
        let each = turns.len().div_ceil(worth.clamp(1, rayon::current_num_threads())).max(1);
        for_each(turns.chunks_mut(each).zip(logits.chunks_mut(each)).collect(), |(turns, logits)| {
            self.step_some(turns, logits);
        });
        let finite = logits.iter().flatten().all(|logit| logit.is_finite());
        if finite { Ok(logits) } else { Err(EngineError::NotFinite("a logit")) }
    }

    fn step_some(&self, turns: &mut [Turn<'_>], logits: &mut [Vec<f32>]) {
        let &BlockShape { width, hidden, .. } = &self.shape;
        let taken: usize = turns.iter().map(|turn| turn.tokens.len()).sum();
        let rows = taken.max(self.rows_min());
        let mut x = Scratch::new(rows * width);
        let mut tokens: Vec<u16> = turns.iter().flat_map(|turn| turn.tokens).copied().collect();
        tokens.resize(rows, 0);
        embed_into(self.weights(0), &tokens, &mut x);
        let mut normed = Scratch::new(rows * width);
        let mut inverses = Scratch::new(rows);
        let mut qkv = Scratch::new(rows * 3 * width);
        let mut o = Scratch::new(rows * width);
        let mut gate_up = Scratch::new(rows * 2 * hidden);
        let mut activations = Scratch::new(rows * hidden);
        for layer in 0..self.layers() {
            let weights = self.shape.weights(self.weights(layer + 1));
            norm(&x, weights.attention_gain, &mut normed, &mut inverses);
            linear(&normed, weights.qkv, &mut qkv, 0.0, [rows, width, 3 * width]);
            let (mut qkv_rest, mut o_rest) = (&mut qkv[..], &mut o[..]);
            for turn in &mut *turns {
                let tokens = turn.tokens.len();
                let (qkv, rest) = qkv_rest.split_at_mut(tokens * 3 * width);
                let (o, o_after) = o_rest.split_at_mut(tokens * width);
                (qkv_rest, o_rest) = (rest, o_after);
                self.attend(qkv, o, turn.cache, layer);
            }
            // Rows that are nobody's are computed with, and nobody reads what comes of it.
            o_rest.fill(0.0);
            linear(&o, weights.o, &mut x, 1.0, [rows, width, width]);
            norm(&x, weights.hidden_gain, &mut normed, &mut inverses);
            linear(&normed, weights.gate_up, &mut gate_up, 0.0, [rows, width, 2 * hidden]);
            gated(&gate_up, &mut activations, hidden);
            linear(&activations, weights.down, &mut x, 1.0, [rows, hidden, width]);
        }
        let last_rows = turns.len().max(self.rows_min());
        let (mut last, mut normed) = (Scratch::new(last_rows * width), Scratch::new(last_rows * width));
        last.fill(0.0);
        let mut end = 0;
        for (turn, last) in turns.iter_mut().zip(last.chunks_exact_mut(width)) {
            end += turn.tokens.len();
            last.copy_from_slice(&x[(end - 1) * width..end * width]);
            turn.cache.tokens += turn.tokens.len();
        }
        let mut inverses = Scratch::new(last_rows);
        norm(&last, self.weights(self.groups.len() - 1), &mut normed, &mut inverses);
        let mut all = Scratch::new(last_rows * VOCABULARY as usize);
        linear(&normed, self.weights(0), &mut all, 0.0, [last_rows, width, VOCABULARY as usize]);
        for (logits, row) in logits.iter_mut().zip(all.chunks_exact(VOCABULARY as usize)) {
            logits.copy_from_slice(row);
        }
    }

    /// Attention of new rows of queries, keys and values to all that came before and to each other; keeps the keys and
    /// values.
    fn attend(&self, qkv: &mut [f32], out: &mut [f32], cache: &mut Cache, layer: usize) {
        let &BlockShape { width, heads, ref rotary, .. } = &self.shape;
        let (head, new, before) = (width / heads, out.len() / width, cache.tokens);
        rotary.turn_from(before, qkv, width, head, false);
        let half = cache.capacity * width;
        let (keys, values) = cache.numbers[layer * 2 * half..(layer + 1) * 2 * half].split_at_mut(half);
        let at = before * width..(before + new) * width;
        let kept = keys[at.clone()].chunks_exact_mut(width).zip(values[at].chunks_exact_mut(width));
        for ((key, value), row) in kept.zip(qkv.chunks_exact(3 * width)) {
            key.copy_from_slice(&row[width..2 * width]);
            value.copy_from_slice(&row[2 * width..]);
        }
        let mut scores = Scratch::new(QUERY_ROWS.min(new) * (before + new));
        let mut inverses = [0.0f32; QUERY_ROWS];
        for offset in (0..heads).map(|index| index * head) {
            for from in (0..new).step_by(QUERY_ROWS) {
                let to = (from + QUERY_ROWS).min(new);
                let (rows, seen) = (to - from, before + to);
                let scores = &mut scores[..rows * seen];
                let queries = Matrix::strided(&qkv[from * 3 * width + offset..], rows, head, 3 * width);
                let keys = Matrix::strided(&keys[offset..], seen, head, width);
                matmul(MatrixMut::new(scores, rows, seen), 0.0, 1.0, queries, keys.t());
                let positions = (before + from..before + to).zip(&mut inverses);
                for ((position, inverse), row) in positions.zip(scores.chunks_exact_mut(seen)) {
                    let (visible, masked) = row.split_at_mut(position + 1);
                    let (_, sum) = exp_row(visible);
                    masked.fill(0.0);
                    *inverse = 1.0 / sum;
                }
                let values = Matrix::strided(&values[offset..], seen, head, width);
                let block = MatrixMut::strided(&mut out[from * width + offset..], rows, head, width);
                matmul(block, 0.0, 1.0, Matrix::new(scores, rows, seen), values);
                for (inverse, row) in inverses.iter().zip(out[from * width..to * width].chunks_exact_mut(width)) {
                    row[offset..offset + head].iter_mut().for_each(|value| *value *= inverse);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::engine::tests::{TINY, lively, random_batch};
    use crate::model::{DeviceChoice, Predictor};

    /// Two sizes: one whose products are smaller than a kernel's blocks, and one with several blocks of each kind.
    const SIZES: [ModelSpec; 2] =
        [ModelSpec { context: 48, ..TINY }, ModelSpec { layers: 2, width: 128, heads: 4, hidden: 352, context: 160 }];

    fn decoder(model: &ModelSpec) -> Decoder {
        Decoder::new(model, lively(model, 1)).unwrap()
    }

    fn text(length: usize, seed: u64) -> Vec<u16> {
        random_batch(1, length, seed).tokens
    }

    /// The logits after each token from `prompt` on, one token a step.
    fn alone(decoder: &Decoder, tokens: &[u16], prompt: usize) -> Vec<Vec<f32>> {
        let mut cache = decoder.cache(tokens.len());
        let mut all = decoder.step(&mut [Turn { tokens: &tokens[..prompt], cache: &mut cache }]).unwrap();
        for token in &tokens[prompt..] {
            all.extend(decoder.step(&mut [Turn { tokens: &[*token], cache: &mut cache }]).unwrap());
        }
        all
    }

    #[test]
    fn cached_logits_are_those_of_the_whole_text() {
        for model in SIZES {
            let tokens = text(model.context as usize - 1, 3);
            let predictor = Predictor::new(DeviceChoice::Auto, &model, &lively(&model, 1)).unwrap();
            let mut largest = 0.0f32;
            for (length, logits) in (5..).zip(alone(&decoder(&model), &tokens, 5)) {
                let whole = predictor.logits(&tokens[..length]).unwrap();
                for (cached, whole) in logits.iter().zip(&whole) {
                    largest = largest.max((cached - whole).abs());
                }
                let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                assert_eq!(best(&logits), best(&whole), "after {length} tokens");
            }
            println!("width {}: logits differ by {largest:e}", model.width);
            assert!(largest < 2e-5, "logits differ by {largest}");
        }
    }

    #[test]
    fn logits_do_not_depend_on_who_else_is_decoded_or_on_threads() {
        for model in SIZES {
            let decoder = decoder(&model);
            let texts: Vec<Vec<u16>> = (0..7).map(|seed| text(12 + seed as usize * 5, seed)).collect();
            let expected: Vec<_> = texts.iter().map(|tokens| alone(&decoder, tokens, 6)).collect();
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut caches: Vec<Cache> = texts.iter().map(|text| decoder.cache(text.len())).collect();
                let longest = texts.iter().map(Vec::len).max().unwrap();
                // The texts begin one step after another, so that prompts and single tokens share steps.
                for step in 0..longest + texts.len() {
                    let mut who = Vec::new();
                    let mut turns = Vec::new();
                    for (index, (tokens, cache)) in texts.iter().zip(&mut caches).enumerate() {
                        let Some(at) = step.checked_sub(index) else { continue };
                        let range = if at == 0 { 0..6 } else { at + 5..at + 6 };
                        let Some(tokens) = tokens.get(range) else { continue };
                        who.push((index, at));
                        turns.push(Turn { tokens, cache });
                    }
                    let logits = pool.install(|| decoder.step(&mut turns)).unwrap();
                    for ((index, at), logits) in who.into_iter().zip(logits) {
                        assert!(logits == expected[index][at], "text {index}, step {at}, {threads} threads");
                    }
                }
            }
        }
    }

    #[test]
    fn turns_that_do_not_fit_are_refused_and_change_nothing() {
        let decoder = decoder(&SIZES[0]);
        let mut cache = decoder.cache(4);
        let mut refused = |tokens: &[u16]| {
            let error = decoder.step(&mut [Turn { tokens, cache: &mut cache }]).unwrap_err();
            assert!(matches!(error, EngineError::Batch(_)));
            assert_eq!(cache.tokens(), 0);
        };
        refused(&[]);
        refused(&[300]);
        refused(&[1; 5]);
        let mut other = self::decoder(&SIZES[1]).cache(4);
        assert!(decoder.step(&mut [Turn { tokens: &[1], cache: &mut other }]).is_err());
        assert_eq!(decoder.cache(1 << 40).capacity, 48);
    }
}
