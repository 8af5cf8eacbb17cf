//! Models that leave and come back: what other programs compute with an exported model is what Hydra computes, and what
//! is imported is as good as what was trained here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Hydra;
use hydra::model::{Decoder, Turn, formats};
use hydra::protocol::VOCABULARY_END;
use serde_json::Value;

/// Text and code, and bytes that are no character by themselves.
const PROMPTS: [&str; 5] =
    ["line 7: to be or", "fn main() {\n    let x = ", "", "def f(a):\n\treturn a  # ä → é\r\n", "the question"];

/// Tokens that are added to each.
const TOKENS: usize = 20;

/// How far logarithms of probabilities may be from those of other programs, which sum in another order.
const DIFFERENCE_MAX: f32 = 1e-4;

/// A model that has learned a little, in each format: its folder, and the state directory that it is from.
fn exported() -> (Hydra, PathBuf) {
    let hydra = Hydra::new();
    hydra.up_json(&["--rounds", "4", "--workers", "1", "--inner-steps", "20", "--batch", "4", "--context", "64"]);
    let folder = hydra.folder().join("exported");
    for format in ["hf", "gguf", "safetensors"] {
        hydra.ok(&["model", "export", "--format", format, folder.join(format).to_str().unwrap()]);
    }
    (hydra, folder)
}

fn digest(hydra: &Hydra, model: Option<&str>) -> String {
    let shown = hydra.ok(&[&["model", "show", "--json"][..], &model.into_iter().collect::<Vec<_>>()].concat());
    serde_json::from_str::<Value>(&shown).unwrap()["digest"].as_str().unwrap().to_owned()
}

fn decoder(folder: &Path) -> Decoder {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (model, params) =
        formats::import(&read(formats::CONFIG), &read(formats::TOKENIZER), &read(formats::WEIGHTS)).unwrap();
    Decoder::new(&model, params).unwrap()
}

/// Logarithms of the probabilities that logits stand for.
fn logs(logits: &[f32]) -> Vec<f32> {
    let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
    logits.iter().map(|&logit| (f64::from(logit) - total) as f32).collect()
}

/// What follows a prompt: the likeliest tokens, and all probabilities at each.
fn greedy(decoder: &Decoder, prompt: &str) -> (Vec<u16>, Vec<Vec<f32>>) {
    let mut next: Vec<u16> = std::iter::once(VOCABULARY_END as u16).chain(prompt.bytes().map(u16::from)).collect();
    let mut cache = decoder.cache(next.len() + TOKENS);
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    for _ in 0..TOKENS {
        let logits = decoder.step(&mut [Turn { tokens: &next, cache: &mut cache }]).unwrap().remove(0);
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u16;
        all.push(logs(&logits));
        tokens.push(best);
        next = vec![best];
    }
    (tokens, all)
}

#[test]
fn a_model_comes_back_from_its_export_with_the_same_digest_and_can_be_used() {
    let (hydra, folder) = exported();
    let trained = digest(&hydra, None);
    let hf = folder.join("hf");
    let hf = hf.to_str().unwrap();
    assert_eq!(digest(&hydra, Some(hf)), trained);
    assert!(hydra.fails(&["model", "export", "--format", "hf", hf], 1).contains("not empty"));
    let weights = std::fs::read(folder.join("safetensors/model.safetensors")).unwrap();
    assert_eq!(hydra::protocol::Digest::of(&weights).to_string(), trained);

    // In another place: imported, used to write, and to begin a run with.
    let other = Hydra::new();
    for _ in 0..2 {
        assert_eq!(other.ok(&["model", "import", hf]).trim(), trained);
    }
    let generate = ["generate", "line 1", "--tokens", "20", "--temperature", "0"];
    let written = hydra.ok(&generate);
    for model in [hf, &trained[..8]] {
        assert_eq!(other.ok(&[&generate[..], &["--model", model]].concat()), written);
    }
    let begun = ["--init", &trained[..8], "--context", "64", "--rounds", "1", "--inner-steps", "2"];
    // Another run than one whose model is drawn, and the same one when it goes on.
    let first = other.up_json(&begun);
    let drawn = Hydra::new().up_json(&["--rounds", "1", "--context", "64", "--inner-steps", "2"]);
    assert_ne!(first["run"], drawn["run"]);
    assert_eq!(first["run"], other.up_json(&[&begun[..], &["--seed", "1"]].concat())["run"]);
    other.up_json(&["--rounds", "1", "--init", hf, "--inner-steps", "2", "--context", "64"]);
    let listed: Vec<Value> =
        other.ok(&["model", "list", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 5, "{listed:?}");
    assert!(listed[..2].iter().all(|model| model["digest"] == trained.as_str()), "{listed:?}");
    let newest = listed[4]["digest"].as_str().unwrap();
    let moved: Value = serde_json::from_str(&other.ok(&["model", "diff", hf, newest, "--json"])).unwrap();
    let all = moved["parts"].as_array().unwrap().last().unwrap()["relative"].as_f64().unwrap();
    assert!(all > 1e-4 && all < 0.5, "{moved}");
    let same: Value = serde_json::from_str(&other.ok(&["model", "diff", hf, &trained, "--json"])).unwrap();
    assert!(same["parts"].as_array().unwrap().iter().all(|part| part["relative"] == 0.0), "{same}");
    assert!(
        other
            .fails(&["up", "--rounds", "1", "--context", "64", "--inner-steps", "2", "--init", newest], 1)
            .contains("another first model")
    );
    assert!(other.fails(&["model", "show", "no-such"], 2).contains("neither a folder"));

    // What is not such a model is refused with what is wrong, before its weights are read.
    let config = std::fs::read_to_string(folder.join("hf/config.json")).unwrap();
    let odd = folder.join("odd");
    std::fs::create_dir(&odd).unwrap();
    std::fs::write(odd.join("config.json"), config.replace("\"num_key_value_heads\": 4", "\"num_key_value_heads\": 2"))
        .unwrap();
    let odd = odd.to_str().unwrap();
    assert!(other.fails(&["model", "import", odd], 1).contains("num_key_value_heads is 2"));
    std::fs::write(folder.join("odd/config.json"), config).unwrap();
    assert!(other.fails(&["model", "import", odd], 1).contains("no model.safetensors"));
    // A file that is far larger than such a model is not read.
    let large = std::fs::File::create(folder.join("odd/model.safetensors")).unwrap();
    large.set_len(1 << 40).unwrap();
    std::fs::copy(folder.join("hf/tokenizer.json"), folder.join("odd/tokenizer.json")).unwrap();
    assert!(other.fails(&["model", "import", odd], 1).contains("is larger than"));
}

#[test]
fn transformers_and_llama_cpp_compute_the_same_with_an_exported_model() {
    let Some(python) = python() else { return };
    let (hydra, folder) = exported();
    let (hf, gguf, saved) = (folder.join("hf"), folder.join("gguf/model.gguf"), folder.join("saved"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/compare.py");
    let mut child = Command::new(python)
        .arg(script)
        .args([hf.as_os_str(), gguf.as_os_str(), TOKENS.to_string().as_ref(), saved.as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&serde_json::to_vec(&PROMPTS).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    let answers: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let ours = decoder(&hf);
    for (program, answers) in answers.as_object().unwrap() {
        let mut largest = 0.0f32;
        for (prompt, answer) in PROMPTS.into_iter().zip(answers.as_array().unwrap()) {
            assert_eq!(answer["read"], prompt.len() + 1, "{program} reads {prompt:?} byte by byte");
            let (tokens, logs) = greedy(&ours, prompt);
            let theirs: Vec<u16> = serde_json::from_value(answer["tokens"].clone()).unwrap();
            // One that ends the document may end the answer.
            assert!(
                !theirs.is_empty() && tokens.starts_with(&theirs),
                "{program}, {prompt:?}: {theirs:?}, not {tokens:?}"
            );
            let all: Vec<Vec<Option<f32>>> = serde_json::from_value(answer["logs"].clone()).unwrap();
            for (theirs, ours) in all.iter().zip(&logs) {
                assert!(theirs.iter().flatten().count() > 200);
                for (theirs, ours) in theirs.iter().zip(ours) {
                    largest = largest.max(theirs.map_or(0.0, |theirs| (theirs - ours).abs()));
                }
            }
        }
        println!("{program}: logarithms of probabilities differ by {largest:e} at most");
        assert!(largest < DIFFERENCE_MAX, "{program} differs by {largest}");
    }
    // What transformers writes is read back.
    if answers.get("transformers").is_some() {
        assert_eq!(digest(&hydra, saved.to_str()), digest(&hydra, None));
    }
}

/// The Python that has transformers and llama.cpp.
fn python() -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats/make");
    let found = Command::new(script).arg("--if-made").output().ok().filter(|found| found.status.success());
    if found.is_none() {
        println!("left out: neither transformers nor llama.cpp; tests/formats/make makes an environment with both");
    }
    Some(String::from_utf8(found?.stdout).unwrap().trim().to_owned())
}
