//! The folder of a Hugging Face `LlamaForCausalLM`: written for `transformers` 4 and 5, and read back where it holds
//! nothing that this transformer has not.

use serde_json::{Map, Value, json};

use super::super::checkpoint;
use super::super::transformer::ROTARY_BASE;
use super::{File, ImportError};
use crate::protocol::{ModelSpec, VOCABULARY, VOCABULARY_BYTES, VOCABULARY_END};
use crate::training::Params;

/// The weights.
pub const WEIGHTS: &str = "model.safetensors";
/// The architecture.
pub const CONFIG: &str = "config.json";
/// What text is as tokens.
pub const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// The names of tensors in a file of weights take less than this.
pub const WEIGHTS_HEADER_BYTES_MAX: u64 = 1 << 20;

/// What norms add to the mean square, in as many digits as anybody writes (the f32 next to it is what is computed with).
const EPSILON: f64 = 1e-5;

/// What a token is written as: a byte as the character that GPT-2's tokenizer has for it, so that none is a blank or a
/// control character.
pub(super) fn token_text(token: u32) -> String {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match token {
        VOCABULARY_END => "<|endoftext|>".to_owned(),
        reserved if reserved > VOCABULARY_END => format!("<|reserved_{}|>", reserved - VOCABULARY_END - 1),
        byte if printable(byte) => char::from_u32(byte).map(String::from).unwrap_or_default(),
        // The others are the characters from 256 on, in order.
        byte => char::from_u32(256 + (0..byte).filter(|&byte| !printable(byte)).count() as u32)
            .map(String::from)
            .unwrap_or_default(),
    }
}

/// What fills short texts up to the longest beside them: a reserved token. With the one that texts begin with, transformers
/// would not look at it.
const PAD: u32 = VOCABULARY_END + 1;

/// All files but the weights.
pub(super) fn words(model: &ModelSpec) -> Vec<File> {
    let end = token_text(VOCABULARY_END);
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "head_dim": model.width / model.heads,
        "hidden_act": "silu",
        "max_position_embeddings": model.context,
        "rms_norm_eps": EPSILON,
        "rope_theta": ROTARY_BASE,
        "rope_parameters": { "rope_type": "default", "rope_theta": ROTARY_BASE },
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "tie_word_embeddings": true,
        "bos_token_id": VOCABULARY_END,
        "eos_token_id": VOCABULARY_END,
        "pad_token_id": PAD,
        "use_cache": true,
        "torch_dtype": "float32",
        "dtype": "float32",
    });
    let vocabulary: Map<String, Value> = (0..VOCABULARY_BYTES).map(|token| (token_text(token), json!(token))).collect();
    let special = |token: u32| {
        json!({
            "id": token, "content": token_text(token), "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": (VOCABULARY_END..VOCABULARY).map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        // A text begins with the token that ends the document before it.
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": end, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [
                { "SpecialToken": { "id": end, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                { "SpecialToken": { "id": end, "type_id": 1 } }, { "Sequence": { "id": "B", "type_id": 1 } },
            ],
            "special_tokens": { (end.clone()): { "id": end, "ids": [VOCABULARY_END], "tokens": [end] } },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "bos_token": end,
        "eos_token": end,
        "pad_token": token_text(PAD),
        "clean_up_tokenization_spaces": false,
        "add_bos_token": true,
        "model_input_names": ["input_ids", "attention_mask"],
    });
    let generation = json!({ "bos_token_id": VOCABULARY_END, "eos_token_id": VOCABULARY_END, "pad_token_id": PAD });
    let files = [
        (CONFIG, config),
        (TOKENIZER, tokenizer),
        (TOKENIZER_CONFIG, tokenizer_config),
        (GENERATION_CONFIG, generation),
    ];
    files.map(|(name, value)| File { name, bytes: format!("{value:#}\n").into_bytes() }).into()
}

/// The architecture that a `config.json` describes.
///
/// # Errors
/// Where it is one that this transformer cannot be, with what is different.
pub fn spec(config: &[u8]) -> Result<ModelSpec, ImportError> {
    let config = object(CONFIG, config)?;
    let other =
        |key, value: &Value, ours: &str| ImportError::Other { key, value: value.to_string(), ours: ours.to_owned() };
    let said = |key: &str| config.get(key).filter(|value| !value.is_null());
    // What is not said is what transformers takes it to be.
    let must = |key: &'static str, default: Value, ours: Value| {
        let is = said(key).unwrap_or(&default);
        let same = match (is.as_f64(), ours.as_f64()) {
            (Some(is), Some(ours)) => is == ours,
            _ => *is == ours,
        };
        if same { Ok(()) } else { Err(other(key, is, &ours.to_string())) }
    };
    let number = |key: &'static str| {
        let value = said(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
        value.ok_or_else(|| malformed(CONFIG, format!("{key} is no number, or too large a one")))
    };
    must("model_type", Value::Null, json!("llama"))?;
    if let Some(quantized) = said("quantization_config") {
        return Err(other("quantization_config", quantized, "numbers that are not quantised"));
    }
    let model = ModelSpec {
        layers: number("num_hidden_layers")?,
        width: number("hidden_size")?,
        heads: number("num_attention_heads")?,
        hidden: number("intermediate_size")?,
        context: number("max_position_embeddings")?,
    };
    model.validate()?;
    must("vocab_size", json!(32_000), json!(VOCABULARY))?;
    if let Some(heads) = said("num_key_value_heads").filter(|heads| heads.as_u64() != Some(model.heads.into())) {
        return Err(other("num_key_value_heads", heads, "keys and values for every head (num_attention_heads)"));
    }
    let head = model.width / model.heads;
    must("head_dim", json!(head), json!(head))?;
    must("hidden_act", json!("silu"), json!("silu"))?;
    must("attention_bias", json!(false), json!(false))?;
    must("mlp_bias", json!(false), json!(false))?;
    must("rms_norm_eps", json!(1e-6), json!(EPSILON))?;
    must("tie_word_embeddings", json!(false), json!(true))?;
    let rotary = said("rope_parameters").or_else(|| said("rope_scaling"));
    if let Some(rotary) = rotary {
        let kind = rotary.get("rope_type").or_else(|| rotary.get("type"));
        if kind.is_some_and(|kind| kind != "default") {
            return Err(other("rope scaling", rotary, "none"));
        }
    }
    let base = rotary.and_then(|rotary| rotary.get("rope_theta")).or_else(|| said("rope_theta"));
    if let Some(base) = base.filter(|base| base.as_f64() != Some(ROTARY_BASE)) {
        return Err(other("rope_theta", base, &ROTARY_BASE.to_string()));
    }
    for key in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = said(key).filter(|id| !is_end(id)) {
            return Err(ImportError::Vocabulary(format!("{key} is {id}")));
        }
    }
    Ok(model)
}

/// Whether these are the end of a document: the number, or a list of it.
fn is_end(id: &Value) -> bool {
    let is = |id: &Value| id.as_u64() == Some(VOCABULARY_END.into());
    is(id) || id.as_array().is_some_and(|ids| ids.iter().all(is))
}

/// The model in a folder: what is in its [`CONFIG`], [`TOKENIZER`] and [`WEIGHTS`].
///
/// Never panics, whatever the bytes, and takes no more memory than the model and what was handed in need.
pub fn import(config: &[u8], tokenizer: &[u8], weights: &[u8]) -> Result<(ModelSpec, Params), ImportError> {
    let model = spec(config)?;
    check_tokenizer(tokenizer)?;
    Ok((model, checkpoint::decode_any(weights, &model)?))
}

fn check_tokenizer(bytes: &[u8]) -> Result<(), ImportError> {
    let tokenizer = object(TOKENIZER, bytes)?;
    let refuse = |why: String| Err(ImportError::Vocabulary(why));
    let part = |name: &str| tokenizer.get(name).filter(|part| !part.is_null());
    if part("normalizer").is_some() {
        return refuse("it changes text before it is cut".to_owned());
    }
    let Some(model) = part("model") else { return refuse("it has no model".to_owned()) };
    if model.get("merges").and_then(Value::as_array).is_some_and(|merges| !merges.is_empty()) {
        return refuse("it merges bytes to longer tokens".to_owned());
    }
    let Some(vocabulary) = model.get("vocab").and_then(Value::as_object) else {
        return refuse("it has no list of tokens".to_owned());
    };
    for byte in 0..VOCABULARY_BYTES {
        let text = token_text(byte);
        match vocabulary.get(&text).and_then(Value::as_u64) {
            Some(token) if token == u64::from(byte) => {}
            Some(token) => return refuse(format!("byte {byte} ({text}) is token {token}")),
            None => return refuse(format!("byte {byte} ({text}) is no token")),
        }
    }
    match vocabulary.iter().find(|(_, token)| token.as_u64().is_none_or(|token| token >= VOCABULARY.into())) {
        Some((text, token)) => refuse(format!("{text:?} is token {token}")),
        None => Ok(()),
    }
}

fn object(file: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, ImportError> {
    serde_json::from_slice(bytes).map_err(|error| malformed(file, error.to_string()))
}

fn malformed(file: &'static str, problem: String) -> ImportError {
    ImportError::Malformed { file, problem }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Format, export};
    use super::*;
    use crate::protocol::{Digest, Seed};

    const TINY: ModelSpec = ModelSpec { layers: 2, width: 8, heads: 2, hidden: 6, context: 16 };

    /// What a folder holds: configuration, tokenizer, weights.
    fn folder() -> [Vec<u8>; 3] {
        let params = Params::initial(&TINY, &Seed::from_number(1));
        let files = export(Format::Hf, &TINY, &params).unwrap();
        [CONFIG, TOKENIZER, WEIGHTS].map(|name| files.iter().find(|file| file.name == name).unwrap().bytes.clone())
    }

    fn changed(file: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut value: Value = serde_json::from_slice(file).unwrap();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn an_exported_model_comes_back_with_the_same_digest() {
        let [config, tokenizer, weights] = folder();
        let (model, params) = import(&config, &tokenizer, &weights).unwrap();
        assert_eq!(model, TINY);
        assert_eq!(Digest::of(&checkpoint::encode(&params).unwrap()), Digest::of(&weights));
    }

    #[test]
    fn the_norms_epsilon_is_the_one_that_is_computed_with() {
        assert_eq!(EPSILON as f32, super::super::super::transformer::NORM_EPSILON);
    }

    #[test]
    fn bytes_are_the_characters_of_gpt_2() {
        let text = |byte: u8| token_text(byte.into());
        assert_eq!(
            [text(b'a'), text(b' '), text(b'\n'), text(0), text(173), text(255)],
            ["a", "Ġ", "Ċ", "Ā", "Ń", "ÿ"]
        );
        let all: std::collections::BTreeSet<String> = (0..VOCABULARY).map(token_text).collect();
        assert_eq!(all.len(), VOCABULARY as usize);
    }

    #[test]
    fn what_this_transformer_has_not_is_refused_by_name() {
        let [config, ..] = folder();
        for (key, value, said) in [
            ("model_type", json!("mistral"), "model_type is \"mistral\""),
            ("vocab_size", json!(32_000), "vocab_size is 32000"),
            ("num_key_value_heads", json!(1), "for every head"),
            ("head_dim", json!(64), "head_dim is 64"),
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("attention_bias", json!(true), "attention_bias is true"),
            ("mlp_bias", json!(true), "mlp_bias"),
            ("rms_norm_eps", json!(1e-6), "rms_norm_eps"),
            ("tie_word_embeddings", json!(false), "tie_word_embeddings"),
            ("rope_parameters", json!({ "rope_type": "llama3", "factor": 8.0 }), "rope scaling"),
            ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 500_000.0 }), "rope_theta is 500000.0"),
            ("eos_token_id", json!(2), "eos_token_id is 2"),
            ("quantization_config", json!({ "bits": 4 }), "quantization_config"),
            ("num_attention_heads", json!(3), "the number of heads is 3"),
            ("num_hidden_layers", json!(u32::MAX), "the number of layers"),
            ("hidden_size", json!(-1), "hidden_size is no number"),
            ("max_position_embeddings", json!(1 << 20), "the context is 1048576"),
        ] {
            let error = spec(&changed(&config, |config| config[key] = value)).unwrap_err().to_string();
            assert!(error.contains(said), "{key}: {error}");
        }
        // As the version before wrote it, and as some write the end.
        let older = changed(&config, |config| {
            config.as_object_mut().unwrap().remove("rope_parameters");
            config["rope_scaling"] = Value::Null;
            config["eos_token_id"] = json!([VOCABULARY_END]);
        });
        assert_eq!(spec(&older).unwrap(), TINY);
    }

    #[test]
    fn other_vocabularies_are_refused_with_what_is_different() {
        let [_, tokenizer, _] = folder();
        check_tokenizer(&tokenizer).unwrap();
        let refused = |change: fn(&mut Value)| check_tokenizer(&changed(&tokenizer, change)).unwrap_err().to_string();
        assert!(refused(|t| t["model"]["merges"] = json!(["a b"])).contains("merges bytes"));
        assert!(refused(|t| t["model"]["vocab"]["a"] = json!(7)).contains("byte 97 (a) is token 7"));
        assert!(refused(|t| t["model"]["vocab"]["abc"] = json!(300)).contains("\"abc\" is token 300"));
        assert!(refused(|t| t["normalizer"] = json!({ "type": "NFC" })).contains("changes text"));
        assert!(refused(|t| t["model"] = json!({ "type": "Unigram", "vocab": [] })).contains("no list of tokens"));
    }

    #[test]
    fn half_as_many_bits_are_read_exactly_and_a_head_of_its_own_is_refused() {
        let [config, tokenizer, weights] = folder();
        let (_, params) = import(&config, &tokenizer, &weights).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        // Numbers that BF16 has are the upper half of those of f32.
        let halved: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .iter()
            .map(|(name, view)| {
                let bytes = view.data().chunks(4).flat_map(|number| [number[2], number[3]]).collect();
                (name.to_owned(), view.shape().to_vec(), bytes)
            })
            .collect();
        let file = |head: Option<u8>| {
            let mut views: Vec<_> = halved
                .iter()
                .map(|(name, shape, bytes)| {
                    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
                    (name.clone(), view.unwrap())
                })
                .collect();
            let mut own = halved.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap().clone();
            if let Some(change) = head {
                own.2[0] ^= change;
                let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, own.1.clone(), &own.2);
                views.push(("lm_head.weight".to_owned(), view.unwrap()));
            }
            safetensors::serialize(views, None).unwrap()
        };
        let (_, read) = import(&config, &tokenizer, &file(None)).unwrap();
        for (&read, &whole) in read.values().iter().zip(params.values()) {
            assert_eq!(read.to_bits(), whole.to_bits() & 0xffff_0000);
        }
        assert_eq!(import(&config, &tokenizer, &file(Some(0))).unwrap().1, read, "tied, and said twice");
        let error = import(&config, &tokenizer, &file(Some(1))).unwrap_err().to_string();
        assert!(error.contains("lm_head.weight"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let [config, tokenizer, weights] = folder();
            let _ = import(&bytes, &tokenizer, &weights);
            let _ = import(&config, &bytes, &weights);
            let _ = import(&config, &tokenizer, &bytes);
        }

        #[test]
        fn no_changed_bytes_make_it_panic(
            which in 0usize..3,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut files = folder();
            for (at, byte) in changes {
                let end = files[which].len().min(4096);
                files[which][at.index(end)] = byte;
            }
            let _ = import(&files[0], &files[1], &files[2]);
        }

        #[test]
        fn no_value_in_the_configuration_makes_it_panic(
            key in any::<prop::sample::Index>(),
            value in prop::sample::select(vec![
                Value::Null, json!(true), json!(-1), json!(0), json!(u64::MAX), json!(1e300), json!("x"), json!([[]]), json!({}),
            ]),
        ) {
            let [config, ..] = folder();
            let config = changed(&config, |config| {
                let config = config.as_object_mut().unwrap();
                let keys: Vec<String> = config.keys().cloned().collect();
                config.insert(keys[key.index(keys.len())].clone(), value);
            });
            if let Ok(model) = spec(&config) {
                prop_assert!(model.validate().is_ok());
            }
        }
    }
}
