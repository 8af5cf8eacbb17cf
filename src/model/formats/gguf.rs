//! [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), version 3: metadata, then tensors, each at a
//! multiple of 32 bytes. Written here because `llama.cpp`'s own converter knows no tokenizer that is all bytes.

use super::super::transformer::{NORM_EPSILON, ROTARY_BASE};
use super::huggingface::token_text;
use crate::protocol::{ModelSpec, VOCABULARY, VOCABULARY_BYTES, VOCABULARY_END};
use crate::training::{Params, TensorSpec};

/// The file's name.
pub(super) const FILE: &str = "model.gguf";

/// Where tensors may begin.
const ALIGNMENT: usize = 32;

/// Types of metadata.
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Types of tokens: text, and what is never text.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// What the file begins with, so far.
#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    entries: u64,
}

impl Head {
    fn string(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn entry(&mut self, key: &str, kind: u32) {
        self.entries += 1;
        self.string(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn number(&mut self, key: &str, value: u32) {
        self.entry(key, UINT32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn real(&mut self, key: &str, value: f32) {
        self.entry(key, FLOAT32);
        self.bytes.extend(value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.entry(key, STRING);
        self.string(value);
    }

    fn yes(&mut self, key: &str) {
        self.entry(key, BOOL);
        self.bytes.push(1);
    }

    fn array(&mut self, key: &str, kind: u32, length: u64) {
        self.entry(key, ARRAY);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
    }
}

/// A model as one file.
pub(super) fn encode(model: &ModelSpec, params: &Params) -> Vec<u8> {
    let mut head = metadata(model);
    let tensors = params.layout().tensors();
    let (entries, mut offset) = (head.entries, 0usize);
    for tensor in tensors {
        head.string(&name(&tensor.name));
        head.bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        // The fastest dimension first.
        for &size in tensor.shape.iter().rev() {
            head.bytes.extend((size as u64).to_le_bytes());
        }
        // F32 is type 0.
        head.bytes.extend(0u32.to_le_bytes());
        head.bytes.extend((offset as u64).to_le_bytes());
        offset = (offset + tensor.len() * size_of::<f32>()).next_multiple_of(ALIGNMENT);
    }
    let mut file = Vec::with_capacity(head.bytes.len() + offset + 2 * ALIGNMENT);
    file.extend(b"GGUF");
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(entries.to_le_bytes());
    file.extend(head.bytes);
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        let values = interleaved(tensor, params.tensor(tensor), model.heads as usize);
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file
}

fn metadata(model: &ModelSpec) -> Head {
    let mut head = Head::default();
    head.text("general.architecture", "llama");
    head.text("general.name", "hydra");
    head.number("general.alignment", ALIGNMENT as u32);
    // All in F32.
    head.number("general.file_type", 0);
    head.number("llama.vocab_size", VOCABULARY);
    head.number("llama.context_length", model.context);
    head.number("llama.embedding_length", model.width);
    head.number("llama.block_count", model.layers);
    head.number("llama.feed_forward_length", model.hidden);
    head.number("llama.attention.head_count", model.heads);
    head.number("llama.attention.head_count_kv", model.heads);
    head.number("llama.rope.dimension_count", model.width / model.heads);
    #[expect(clippy::cast_possible_truncation, reason = "the format has f32 here")]
    head.real("llama.rope.freq_base", ROTARY_BASE as f32);
    head.real("llama.attention.layer_norm_rms_epsilon", NORM_EPSILON);
    head.text("tokenizer.ggml.model", "gpt2");
    head.text("tokenizer.ggml.pre", "default");
    head.array("tokenizer.ggml.tokens", STRING, VOCABULARY.into());
    for token in 0..VOCABULARY {
        head.string(&token_text(token));
    }
    head.array("tokenizer.ggml.token_type", INT32, VOCABULARY.into());
    for token in 0..VOCABULARY {
        let kind = if token < VOCABULARY_BYTES { NORMAL } else { CONTROL };
        head.bytes.extend(kind.to_le_bytes());
    }
    // Empty, and there: without it the file is refused.
    head.array("tokenizer.ggml.merges", STRING, 0);
    head.number("tokenizer.ggml.bos_token_id", VOCABULARY_END);
    head.number("tokenizer.ggml.eos_token_id", VOCABULARY_END);
    head.yes("tokenizer.ggml.add_bos_token");
    head
}

/// What `llama.cpp` calls a tensor.
fn name(ours: &str) -> String {
    const PARTS: [(&str, &str); 11] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let mut name = ours.replace("model.layers.", "blk.");
    for (ours, theirs) in PARTS {
        name = name.replace(ours, theirs);
    }
    name
}

/// A tensor's numbers. Rotary positions turn the two halves of a head here, and pairs of neighbours there: rows of queries
/// and keys change places so that the same numbers meet.
fn interleaved(tensor: &TensorSpec, values: &[f32], heads: usize) -> Vec<f32> {
    if !tensor.name.ends_with("q_proj.weight") && !tensor.name.ends_with("k_proj.weight") {
        return values.to_vec();
    }
    let width = values.len().isqrt();
    let head = width / heads;
    let half = head / 2;
    let row = |at: usize| {
        let (first, within) = (at / head * head, at % head);
        let from = first + within / 2 + within % 2 * half;
        &values[from * width..(from + 1) * width]
    };
    (0..width).flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Seed;

    #[test]
    fn rows_of_queries_and_keys_are_interleaved_head_by_head() {
        let model = ModelSpec { layers: 1, width: 8, heads: 2, hidden: 3, context: 4 };
        let mut params = Params::initial(&model, &Seed::from_number(1));
        let tensors = params.layout().tensors().to_vec();
        let query = tensors.iter().find(|tensor| tensor.name.ends_with("q_proj.weight")).unwrap();
        for (at, value) in params.values_mut()[query.range()].iter_mut().enumerate() {
            *value = (at / 8) as f32;
        }
        let rows: Vec<f32> = interleaved(query, params.tensor(query), 2).chunks(8).map(|row| row[0]).collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let value = tensors.iter().find(|tensor| tensor.name.ends_with("v_proj.weight")).unwrap();
        assert_eq!(interleaved(value, params.tensor(value), 2), params.tensor(value));
    }

    #[test]
    fn tensors_have_their_names_and_begin_at_multiples_of_the_alignment() {
        let model = ModelSpec { layers: 2, width: 4, heads: 2, hidden: 3, context: 4 };
        let params = Params::initial(&model, &Seed::from_number(1));
        let names: Vec<String> = params.layout().tensors().iter().map(|tensor| name(&tensor.name)).collect();
        assert_eq!(names[..3], ["token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight"]);
        assert_eq!(names[names.len() - 2..], ["blk.1.ffn_down.weight", "output_norm.weight"]);
        let file = encode(&model, &params);
        assert!(file.starts_with(b"GGUF\x03\0\0\0") && file.len().is_multiple_of(ALIGNMENT));
        // The last tensor is the final norm's gain: ones, and what fills up to the alignment.
        let end: Vec<f32> =
            file[file.len() - 32..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(end, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
