//! The shape of the code, held by a test: what may know about what, and what nobody may do.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::{Path, PathBuf};

struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    /// Without comments and without the tests at its end.
    code: String,
    whole: String,
}

impl Source {
    /// The lines of code that mention `needle` as a whole path segment or word.
    fn mentions(&self, needle: &str) -> bool {
        self.code.match_indices(needle).any(|(start, _)| {
            let before = self.code[..start].chars().next_back();
            let after = self.code[start + needle.len()..].chars().next();
            let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !word(before) && (needle.ends_with(':') || !word(after))
        })
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["src", "sim", "tests", "benches"] {
        for entry in walkdir::WalkDir::new(root().join(folder)).sort_by_file_name() {
            let entry = entry.unwrap();
            if entry.path().extension().is_some_and(|extension| extension == "rs") {
                found.push(source(entry.path()));
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

fn source(path: &Path) -> Source {
    let whole = fs::read_to_string(path).unwrap();
    let path = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
    // Modules that are all tests: the layers hold for what is shipped.
    let only_tests = path.ends_with("/tests.rs")
        || path.contains("/core/tests/")
        || path.ends_with("/testing.rs")
        || path.contains("/laws/")
        || path.ends_with("/conformance.rs");
    let before_tests = if only_tests { "" } else { whole.split("#[cfg(test)]\nmod tests").next().unwrap_or_default() };
    let code =
        before_tests.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    Source { path, code, whole }
}

/// Fails with every source of the library that mentions one of `needles` outside `homes`.
fn only_in(homes: &[&str], needles: &[&str]) {
    let strays: Vec<String> = sources()
        .iter()
        .filter(|source| source.path.starts_with("src/") && !source.is_in(homes))
        .flat_map(|source| {
            let mentioned = needles.iter().filter(|needle| source.mentions(needle));
            mentioned.map(|needle| format!("{} mentions {needle}", source.path)).collect::<Vec<_>>()
        })
        .collect();
    assert!(strays.is_empty(), "only {homes:?} may:\n{}", strays.join("\n"));
}

#[test]
fn only_the_model_knows_burn() {
    only_in(&["src/model/"], &["burn::", "burn_ndarray::", "burn_tch::", "tch::", "gemm::"]);
}

#[test]
fn only_the_store_knows_sql() {
    only_in(&["src/store/"], &["rusqlite", "rusqlite_migration"]);
}

#[test]
fn only_actors_their_wiring_and_the_command_line_know_actix_and_tokio() {
    let homes = [
        "src/coordinator/actor.rs",
        "src/worker/actor.rs",
        "src/verifier/actor.rs",
        "src/ledger/actor.rs",
        "src/runtime/",
        "src/swarm.rs",
        "src/http/",
        "src/cli/",
    ];
    only_in(&homes, &["actix", "tokio"]);
}

#[test]
fn only_one_place_knows_http() {
    let libraries =
        ["warp", "hyper", "hyper_util", "hyper_rustls", "http_body_util", "rustls", "tokio_rustls", "object_store"];
    only_in(&["src/http/"], &libraries);
}

#[test]
fn only_one_file_reads_the_clock_and_one_the_machines_randomness() {
    only_in(&["src/runtime/clock.rs"], &["SystemTime", "Instant"]);
    only_in(&["src/runtime/entropy.rs"], &["SysRng", "OsRng", "getrandom"]);
}

#[test]
fn only_the_command_line_talks_to_people() {
    only_in(
        &["src/cli/", "src/main.rs"],
        &["println", "print", "eprintln", "eprint", "anyhow", "indicatif", "ratatui"],
    );
}

#[test]
fn imports_point_down() {
    // Each may use what stands before it, and nothing after.
    let layers: [&[&str]; 6] = [
        &["protocol"],
        &["training"],
        &["coordinator", "worker", "verifier", "ledger", "inference", "model", "store", "runtime", "data", "compute"],
        &["swarm"],
        &["http"],
        &["cli"],
    ];
    let mut strays = Vec::new();
    for (height, layer) in layers.iter().enumerate() {
        let above: Vec<&str> = layers[height + 1..].iter().flat_map(|layer| layer.iter().copied()).collect();
        for source in sources() {
            let home = source.path.strip_prefix("src/").and_then(|path| path.split(['/', '.']).next());
            if !home.is_some_and(|home| layer.contains(&home)) {
                continue;
            }
            for module in &above {
                if source.mentions(&format!("crate::{module}")) {
                    strays.push(format!("{} imports crate::{module}", source.path));
                }
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

#[test]
fn cores_do_nothing_but_compute() {
    let cores: Vec<Source> = sources()
        .into_iter()
        .filter(|source| {
            let role = ["coordinator", "worker", "verifier", "ledger"]
                .iter()
                .any(|role| source.path.starts_with(&format!("src/{role}/")));
            // The engine is a thread around the scheduler, as an actor is a mailbox around its core.
            let pure = source.is_in(&["src/protocol/", "src/training/", "src/inference/"])
                && source.path != "src/inference/engine.rs";
            pure || (role && !source.path.ends_with("/actor.rs"))
        })
        .collect();
    assert!(cores.len() > 20);
    let impure = ["std::fs", "std::net", "std::thread", "std::process", "std::env", "crate::store", "crate::runtime"];
    for core in cores {
        for what in impure {
            assert!(!core.mentions(what), "{} uses {what}", core.path);
        }
    }
}

#[test]
fn every_select_is_biased() {
    for source in sources().iter().filter(|source| source.is_in(&["src/", "sim/"])) {
        for (start, _) in source.code.match_indices("select!") {
            let body = source.code[start..].split_once('{').map_or("", |(_, body)| body.trim_start());
            assert!(
                body.starts_with("biased;"),
                "{}: a select without `biased;` draws its order of polling",
                source.path
            );
        }
    }
}

#[test]
fn nothing_is_left_to_do_later() {
    // Put together here, so that this file does not find itself.
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("TO", "DO"), concat!("FIX", "ME")];
    for source in sources() {
        for mark in marks {
            assert!(!source.whole.contains(mark), "{} holds {mark}", source.path);
        }
    }
}

#[test]
fn nothing_in_the_library_depends_on_the_simulator() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("hydra-sim"));
    for source in sources().iter().filter(|source| source.path.starts_with("src/")) {
        assert!(!source.mentions("hydra_sim"), "{}", source.path);
    }
}

#[test]
fn every_chapter_of_the_book_is_listed_and_every_listed_chapter_is_there() {
    let docs = root().join("docs/src");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut chapters: Vec<String> =
        summary.split("](").skip(1).filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect();
    chapters.push("SUMMARY.md".to_owned());
    chapters.sort();
    let mut files: Vec<String> = walkdir::WalkDir::new(&docs)
        .into_iter()
        .map(|entry| entry.unwrap().path().strip_prefix(&docs).unwrap().to_string_lossy().replace('\\', "/"))
        .filter(|file| Path::new(file).extension().is_some_and(|extension| extension == "md"))
        .collect();
    files.sort();
    assert_eq!(chapters, files);
}
