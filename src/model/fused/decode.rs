//! Decoding on plain slices: the network of `transformer` for tokens that come one after the other, in many texts at a
//! time. Keys and values of earlier tokens are kept, so that a token costs one row of each product.

use std::fmt;

use super::super::engine::{check_params, check_tokens};
use super::super::weights::groups;
use super::attention::{QUERY_ROWS, Rotary};
use super::block::BlockShape;
use super::head::embed_into;
use super::kernels::{exp_row, gated, norm};
use super::packed::{Aligned, Interleaved, LINE, PANEL, PANEL_LINES, Packed, row_times};
use super::pool::Scratch;
use super::threads::for_each;
use crate::protocol::{ModelSpec, VOCABULARY};
use crate::training::{EngineError, Params};

/// Multiplications in a step from which on it pays to wake another thread (tens of microseconds).
const WORTH_A_THREAD: usize = 1 << 22;

/// Numbers of a model that is read from memory at each step, because no cache of the processor holds it (16 MB). Threads
/// then share each product, so that each number is read once; with smaller models they share the texts.
const LARGE: usize = 1 << 22;

/// A model loaded to continue many texts, on the processor: its weights laid out for that.
///
/// What a text's logits are does not depend on which others are decoded at the same time, on the number of threads, or on
/// how many of its tokens are taken in at a time: the bits are the same.
pub struct Decoder {
    embedding: Vec<f32>,
    blocks: Vec<Block>,
    gain: Vec<f32>,
    head: Packed,
    shape: BlockShape,
    parameters: usize,
}

/// The weights of a block.
struct Block {
    attention_gain: Vec<f32>,
    qkv: Packed,
    o: Packed,
    hidden_gain: Vec<f32>,
    gate_up: Packed,
    down: Packed,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// Keys and values of a text's tokens so far.
#[derive(Debug)]
pub struct Cache {
    /// In each layer and of each head the keys, in panels of positions; then of each head the values, a row a position.
    numbers: Aligned,
    tokens: usize,
    /// Tokens that it may come to have, and the positions that there are for them.
    room: usize,
    positions: usize,
}

impl Cache {
    /// Tokens that are in it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.numbers.numbers())
    }
}

/// Where attention computes, for one text after the other.
struct AttentionRoom {
    scores: Scratch,
    row: Scratch,
    sums: Scratch,
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
        let rotary = Rotary::new(context, width / heads).into();
        let shape = BlockShape { width, heads, hidden, context, rotary };
        let groups = groups(params.layout());
        let weights = |group: usize| &params.values()[groups[group].range.clone()];
        let block = |group: usize| {
            let all = shape.weights(weights(group));
            Block {
                attention_gain: all.attention_gain.to_vec(),
                qkv: Packed::new(all.qkv, width),
                o: Packed::new(all.o, width),
                hidden_gain: all.hidden_gain.to_vec(),
                gate_up: Packed::new(all.gate_up, width),
                down: Packed::new(all.down, hidden),
            }
        };
        let last = groups.len() - 1;
        Ok(Self {
            embedding: weights(0).to_vec(),
            blocks: (1..last).map(block).collect(),
            gain: weights(last).to_vec(),
            head: Packed::new(weights(0), width),
            parameters: params.values().len(),
            shape,
        })
    }

    /// Tokens that a text may have.
    #[must_use]
    pub fn context(&self) -> usize {
        self.shape.context
    }

    /// An empty cache for a text of up to `tokens` tokens.
    #[must_use]
    pub fn cache(&self, tokens: usize) -> Cache {
        let room = tokens.clamp(1, self.shape.context);
        let positions = room.next_multiple_of(PANEL);
        Cache { numbers: Aligned::new(self.numbers_at(positions)), tokens: 0, room, positions }
    }

    /// A cache for a text of up to `room` tokens that begins as another does: with the first `tokens` that are in
    /// `other`, or as many as there are and fit.
    ///
    /// # Errors
    /// When `other` is of another model.
    pub fn fork(&self, other: &Cache, tokens: usize, room: usize) -> Result<Cache, EngineError> {
        self.check(other)?;
        let mut cache = self.cache(room);
        cache.tokens = tokens.min(other.tokens).min(cache.room);
        let parts = self.parts();
        let mut rest = cache.numbers.numbers_mut();
        let mut other_rest = other.numbers.numbers();
        for _ in 0..self.blocks.len() {
            for (size, step) in parts {
                // Whole panels: what is in them beyond the tokens is nobody's yet.
                let count = size * cache.tokens.next_multiple_of(step).min(other.positions).min(cache.positions);
                for _ in 0..self.shape.heads {
                    let (here, after) = std::mem::take(&mut rest).split_at_mut(size * cache.positions);
                    let (there, other_after) = other_rest.split_at(size * other.positions);
                    (rest, other_rest) = (after, other_after);
                    here[..count].copy_from_slice(&there[..count]);
                }
            }
        }
        Ok(cache)
    }

    fn head_size(&self) -> usize {
        self.shape.width / self.shape.heads
    }

    /// Numbers that a position has in a head's keys and in its values, and how many positions lie together.
    fn parts(&self) -> [(usize, usize); 2] {
        let head = self.head_size();
        [(head, PANEL), (head.next_multiple_of(LINE), 1)]
    }

    fn numbers_at(&self, positions: usize) -> usize {
        let position: usize = self.parts().iter().map(|(size, _)| size).sum();
        self.blocks.len() * self.shape.heads * position * positions
    }

    fn check(&self, cache: &Cache) -> Result<(), EngineError> {
        if cache.numbers.numbers().len() == self.numbers_at(cache.positions) && cache.room <= self.shape.context {
            return Ok(());
        }
        Err(EngineError::Batch("the cache is of another model".to_owned()))
    }

    /// Takes the tokens of each turn in: the logits after the last one of each, of every token of the vocabulary.
    ///
    /// # Errors
    /// When a turn has no tokens, one that is not of the vocabulary, or more than its cache has room for: nothing has
    /// changed then. When the model computes a NaN.
    pub fn step(&self, turns: &mut [Turn<'_>]) -> Result<Vec<Vec<f32>>, EngineError> {
        for turn in &*turns {
            check_tokens(turn.tokens)?;
            let (tokens, room) = (turn.tokens.len(), turn.cache.room - turn.cache.tokens);
            if tokens == 0 || tokens > room {
                return Err(EngineError::Batch(format!("{tokens} tokens where there is room for {room}")));
            }
            self.check(turn.cache)?;
        }
        let mut logits: Vec<Vec<f32>> = turns.iter().map(|_| vec![0.0; VOCABULARY as usize]).collect();
        if self.parameters >= LARGE || turns.len() == 1 {
            self.step_some(turns, &mut logits, true);
        } else {
            let rows: usize = turns.iter().map(|turn| turn.tokens.len()).sum();
            let worth = (rows * self.parameters).div_ceil(WORTH_A_THREAD).clamp(1, rayon::current_num_threads());
            for_each(shared(turns, &mut logits, worth), |(turns, logits)| self.step_some(turns, logits, false));
        }
        let finite = logits.iter().flatten().all(|logit| logit.is_finite());
        if finite { Ok(logits) } else { Err(EngineError::NotFinite("a logit")) }
    }

    /// The same, on threads of its own or only on this one.
    fn step_some(&self, turns: &mut [Turn<'_>], logits: &mut [Vec<f32>], threads: bool) {
        let &BlockShape { width, hidden, .. } = &self.shape;
        let tokens: Vec<u16> = turns.iter().flat_map(|turn| turn.tokens).copied().collect();
        let rows = tokens.len();
        let mut x = Scratch::new(rows * width);
        embed_into(&self.embedding, &tokens, &mut x);
        let mut normed = Scratch::new(rows * width);
        let mut inverses = Scratch::new(rows);
        let mut qkv = Scratch::new(rows * 3 * width);
        let mut o = Scratch::new(rows * width);
        let mut gate_up = Scratch::new(rows * 2 * hidden);
        let mut activations = Scratch::new(rows * hidden);
        let scores: usize =
            turns.iter().map(|turn| turn.tokens.len() * (turn.cache.tokens + turn.tokens.len()) * width).sum();
        let together = if threads && scores >= WORTH_A_THREAD / 8 { 1 } else { turns.len() };
        for (layer, block) in self.blocks.iter().enumerate() {
            norm(&x, &block.attention_gain, &mut normed, &mut inverses);
            block.qkv.product(&normed, &mut qkv, false, threads);
            let (mut qkv_rest, mut o_rest) = (&mut qkv[..], &mut o[..]);
            let mut tasks = Vec::with_capacity(turns.len());
            for turn in &mut *turns {
                let tokens = turn.tokens.len();
                let (qkv, rest) = qkv_rest.split_at_mut(tokens * 3 * width);
                let (o, o_after) = o_rest.split_at_mut(tokens * width);
                (qkv_rest, o_rest) = (rest, o_after);
                tasks.push((qkv, o, &mut *turn.cache));
            }
            for_each(tasks.chunks_mut(together).collect(), |tasks: &mut [(&mut [f32], &mut [f32], &mut Cache)]| {
                let mut room = self.attention_room(tasks.iter().map(|(_, o, cache)| (o.len() / width, cache.tokens)));
                for (qkv, o, cache) in tasks {
                    self.attend(qkv, o, cache, layer, &mut room);
                }
            });
            block.o.product(&o, &mut x, true, threads);
            norm(&x, &block.hidden_gain, &mut normed, &mut inverses);
            block.gate_up.product(&normed, &mut gate_up, false, threads);
            gated(&gate_up, &mut activations, hidden);
            block.down.product(&activations, &mut x, true, threads);
        }
        let (mut last, mut normed) = (Scratch::new(turns.len() * width), Scratch::new(turns.len() * width));
        let mut end = 0;
        for (turn, last) in turns.iter_mut().zip(last.chunks_exact_mut(width)) {
            end += turn.tokens.len();
            last.copy_from_slice(&x[(end - 1) * width..end * width]);
            turn.cache.tokens += turn.tokens.len();
        }
        let mut inverses = Scratch::new(turns.len());
        norm(&last, &self.gain, &mut normed, &mut inverses);
        let mut all = Scratch::new(turns.len() * VOCABULARY as usize);
        self.head.product(&normed, &mut all, false, threads);
        for (logits, row) in logits.iter_mut().zip(all.chunks_exact(VOCABULARY as usize)) {
            logits.copy_from_slice(row);
        }
    }

    /// Room for the attention of any of these texts: so many new tokens of each after so many earlier ones.
    fn attention_room(&self, texts: impl Iterator<Item = (usize, usize)>) -> AttentionRoom {
        let (mut scores, mut row) = (0, 0);
        for (new, before) in texts {
            let seen = (before + new).next_multiple_of(PANEL);
            (scores, row) = (scores.max(QUERY_ROWS.min(new) * seen), row.max(seen));
        }
        let [_, (value, _)] = self.parts();
        AttentionRoom { scores: Scratch::new(scores), row: Scratch::new(row), sums: Scratch::new(value) }
    }

    /// Attention of new rows of queries, keys and values to all that came before and to each other; keeps the keys and
    /// values.
    fn attend(&self, qkv: &mut [f32], out: &mut [f32], cache: &mut Cache, layer: usize, room: &mut AttentionRoom) {
        let &BlockShape { width, heads, ref rotary, .. } = &self.shape;
        let (head, new, before) = (self.head_size(), out.len() / width, cache.tokens);
        rotary.turn_from(before, qkv, width, head, false);
        let positions = cache.positions;
        let [(key, _), (value, _)] = self.parts();
        let size = heads * (key + value) * positions;
        let of_layer = &mut cache.numbers.numbers_mut()[layer * size..(layer + 1) * size];
        let (keys, values) = of_layer.split_at_mut(heads * key * positions);
        let both = keys.chunks_exact_mut(key * positions).zip(values.chunks_exact_mut(value * positions));
        let block = QUERY_ROWS.min(new);
        let AttentionRoom { scores, row, sums } = room;
        for (index, (keys, values)) in both.enumerate() {
            let offset = index * head;
            for (position, qkv) in (before..before + new).zip(qkv.chunks_exact(3 * width)) {
                let panel = keys[position / PANEL * PANEL * key..].chunks_exact_mut(PANEL);
                for (line, &number) in panel.zip(&qkv[width + offset..][..head]) {
                    line[position % PANEL] = number;
                }
                values[position * value..][..head].copy_from_slice(&qkv[2 * width + offset..][..head]);
            }
            for from in (0..new).step_by(block) {
                let rows = block.min(new - from);
                let panels = keys.chunks_exact(PANEL * key).zip(scores.chunks_exact_mut(rows * PANEL));
                let panels = panels.take((before + from + rows).div_ceil(PANEL));
                let queries = &qkv[from * 3 * width + offset..(from + rows) * 3 * width];
                if rows == 1 {
                    panels.for_each(|(panel, scores)| row_times(&queries[..head], panel, PANEL_LINES, scores));
                } else {
                    let queries = Interleaved::strided(queries, head, 3 * width);
                    panels.for_each(|(panel, scores)| queries.times(panel, PANEL_LINES, scores));
                }
                for at in 0..rows {
                    let visible = before + from + at + 1;
                    let row = if rows == 1 {
                        &mut scores[..visible]
                    } else {
                        let parts = scores.chunks_exact(rows * PANEL);
                        for (part, row) in parts.zip(row[..visible].chunks_mut(PANEL)) {
                            row.copy_from_slice(&part[at * PANEL..][..row.len()]);
                        }
                        &mut row[..visible]
                    };
                    let (_, sum) = exp_row(row);
                    row_times(row, values, value / LINE, sums);
                    let inverse = 1.0 / sum;
                    let out = &mut out[(from + at) * width + offset..][..head];
                    for (out, sum) in out.iter_mut().zip(&sums[..]) {
                        *out = sum * inverse;
                    }
                }
            }
        }
    }
}

/// Cuts turns, with room for the logits of each, into so many parts or fewer of about as many tokens: a prompt that is read
/// is as much work as many texts that go on.
fn shared<'a, 'b>(
    mut turns: &'a mut [Turn<'b>],
    mut logits: &'a mut [Vec<f32>],
    parts: usize,
) -> Vec<(&'a mut [Turn<'b>], &'a mut [Vec<f32>])> {
    let mut cut = Vec::with_capacity(parts);
    for left in (1..=parts).rev() {
        let tokens = |turn: &Turn<'_>| turn.tokens.len();
        let share = turns.iter().map(tokens).sum::<usize>().div_ceil(left);
        let (mut count, mut taken) = (0, 0);
        while let Some(next) = turns.get(count).map(tokens)
            && taken + next / 2 < share
        {
            (count, taken) = (count + 1, taken + next);
        }
        if count > 0 {
            let (here, after) = std::mem::take(&mut turns).split_at_mut(count);
            let (logits_here, logits_after) = std::mem::take(&mut logits).split_at_mut(count);
            (turns, logits) = (after, logits_after);
            cut.push((here, logits_here));
        }
    }
    cut
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
    fn threads_share_tokens_and_leave_nobody_out() {
        let decoder = decoder(&SIZES[0]);
        let text = text(30, 1);
        for (lengths, parts, expected) in [
            (vec![1; 6], 2, vec![3, 3]),
            (vec![1, 1, 1, 1, 20, 20], 2, vec![5, 1]),
            (vec![30, 1, 1], 2, vec![1, 2]),
            (vec![30, 30], 3, vec![1, 1]),
            (vec![1], 4, vec![1]),
        ] {
            let mut caches: Vec<Cache> = lengths.iter().map(|_| decoder.cache(40)).collect();
            let turns = lengths.iter().zip(&mut caches);
            let mut turns: Vec<_> = turns.map(|(&length, cache)| Turn { tokens: &text[..length], cache }).collect();
            let mut logits = vec![Vec::new(); turns.len()];
            let cut: Vec<usize> = shared(&mut turns, &mut logits, parts).iter().map(|(turns, _)| turns.len()).collect();
            assert_eq!(cut, expected, "{lengths:?}");
        }
    }

    #[test]
    fn logits_do_not_depend_on_how_many_tokens_are_taken_in_at_a_time() {
        for model in SIZES {
            let decoder = decoder(&model);
            let tokens = text(model.context as usize - 1, 5);
            let expected = alone(&decoder, &tokens, 1);
            for piece in [2, 3, 7, 33, 200] {
                let mut cache = decoder.cache(tokens.len());
                for tokens in tokens.chunks(piece) {
                    let logits = decoder.step(&mut [Turn { tokens, cache: &mut cache }]).unwrap();
                    assert!(logits[0] == expected[cache.tokens() - 1], "pieces of {piece}, up to {}", cache.tokens());
                }
            }
        }
    }

    #[test]
    fn a_text_that_begins_as_another_goes_on_from_there() {
        for model in SIZES {
            let decoder = decoder(&model);
            let tokens = text(40, 6);
            let expected = alone(&decoder, &tokens, 1);
            let mut first = decoder.cache(40);
            decoder.step(&mut [Turn { tokens: &tokens[..30], cache: &mut first }]).unwrap();
            for (shared, room) in [(0, 48), (1, 48), (17, 41), (30, 41), (99, 48)] {
                let mut cache = decoder.fork(&first, shared, room).unwrap();
                assert_eq!(cache.tokens(), shared.min(30));
                let rest = &tokens[cache.tokens()..];
                let logits = decoder.step(&mut [Turn { tokens: rest, cache: &mut cache }]).unwrap();
                assert!(logits[0] == expected[tokens.len() - 1], "{shared} shared");
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
        assert_eq!(decoder.cache(1 << 40).room, 48);
        assert!(decoder.fork(&other, 1, 4).is_err());
    }
}
