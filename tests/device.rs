//! `hydra device` as a person meets it.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::process::Command;

/// Runs `hydra device` with `arguments`: its exit code, standard output and standard error.
fn device(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hydra")).arg("device").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_list_shows_what_is_there_and_what_was_left_out() {
    let (code, text, _) = device(&["list"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("ndarray"), "{text}");
    let (_, json, _) = device(&["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(listed["devices"][0]["device"], "ndarray");
    for left_out in listed["left_out"].as_array().unwrap() {
        let (name, feature) = (left_out["device"].as_str().unwrap(), left_out["feature"].as_str().unwrap());
        let (code, _, error) = device(&["bench", "--device", name]);
        assert_eq!(code, Some(2));
        assert!(error.contains(&format!("--features {feature}")) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn a_bench_is_one_object_of_numbers_that_fit_each_other() {
    let size = ["--layers", "1", "--width", "64", "--batch", "2", "--context", "32"];
    let (code, json, error) =
        device(&[&["bench", "--device", "ndarray", "--optimizer", "adamw", "--json"][..], &size].concat());
    assert_eq!(code, Some(0), "{error}");
    let measured: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(measured["device"], "ndarray");
    let number = |name: &str| measured[name].as_f64().unwrap();
    let tokens = number("tokens_per_second") * number("ms_per_step") / 1e3;
    assert!((tokens - 64.0).abs() < 1.0, "{json}");
    assert!(number("gemm_peak_share") > 0.0 && number("gemm_peak_share") < 1.0, "{json}");
    assert_eq!(measured["peak_bytes"].is_u64(), cfg!(target_os = "linux"), "{json}");
}

#[test]
#[cfg(target_os = "linux")]
fn what_no_memory_holds_is_refused_before_it_begins() {
    let huge = ["--layers", "64", "--width", "1024", "--batch", "4096", "--context", "256"];
    let (code, _, error) = device(&[&["bench", "--device", "ndarray"][..], &huge].concat());
    assert_eq!(code, Some(2));
    assert!(error.contains("would fit") && error.lines().count() == 1, "{error}");
}

#[test]
fn sizes_and_names_that_cannot_be_are_refused() {
    for wrong in
        [&["--device", "abacus"][..], &["--layers", "1", "--width", "63"], &["--batch", "0"], &["--layers", "2"]]
    {
        let (code, _, error) = device(&[&["bench"], wrong].concat());
        assert_eq!(code, Some(2), "{wrong:?}: {error}");
        assert!(error.starts_with("error: "), "{error}");
    }
}
