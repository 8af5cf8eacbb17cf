//! The book is true: its links lead somewhere, what it names is there, the commands that it prints exist with their
//! flags, and those in blocks marked `sh,run` are run, page by page, in a folder of their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(unix)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A page takes seconds; one that hangs is stopped after these tenths of a second.
const PATIENCE: u32 = 900;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A page, taken apart.
struct Page {
    /// From the repository's root.
    path: PathBuf,
    /// Lines outside of fences, with their numbers.
    prose: Vec<(usize, String)>,
    blocks: Vec<Block>,
}

/// What stands between fences.
struct Block {
    line: usize,
    info: String,
    code: String,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        let (mut prose, mut blocks, mut open) = (Vec::new(), Vec::new(), None::<Block>);
        for (number, line) in text.lines().enumerate() {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (None, Some(info)) => {
                    open = Some(Block { line: number + 1, info: info.to_owned(), code: String::new() });
                }
                (Some(block), None) => block.code.extend([line, "\n"]),
                (None, None) => prose.push((number + 1, line.to_owned())),
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", path.display());
        Self { path, prose, blocks }
    }

    fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    /// What stands between backticks, outside of fences. A span may go on in the next line.
    fn code_spans(&self) -> Vec<(usize, String)> {
        let (mut spans, mut text, mut starts) = (Vec::new(), String::new(), Vec::new());
        for (number, line) in &self.prose {
            starts.push((text.len(), *number));
            text.extend([line, "\n"]);
        }
        let mut at = 0;
        for (index, piece) in text.split('`').enumerate() {
            if index % 2 == 1 {
                let line = starts.iter().rev().find(|(start, _)| *start <= at).unwrap().1;
                spans.push((line, piece.split_whitespace().collect::<Vec<_>>().join(" ")));
            }
            at += piece.len() + 1;
        }
        spans
    }

    /// The anchors that mdBook gives to its headings.
    fn anchors(&self) -> BTreeSet<String> {
        let mut used = BTreeMap::<String, usize>::new();
        let mut anchors = BTreeSet::new();
        for (_, line) in self.prose.iter().filter(|(_, line)| line.starts_with('#')) {
            let text = line.trim_start_matches('#').trim();
            let slug: String = text
                .chars()
                .filter_map(|c| match c {
                    c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c.to_ascii_lowercase()),
                    c if c.is_whitespace() => Some('-'),
                    _ => None,
                })
                .collect();
            let times = used.entry(slug.clone()).or_default();
            anchors.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
            *times += 1;
        }
        anchors
    }

    /// Where its links lead.
    fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line) in &self.prose {
            let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("·");
            for rest in outside.split("](").skip(1) {
                links.push((*number, rest.split(')').next().unwrap().to_owned()));
            }
        }
        links
    }

    /// Command lines that it prints, continued lines joined.
    fn commands(&self) -> Vec<(usize, String)> {
        let mut commands = Vec::new();
        for block in &self.blocks {
            let language = block.info.split([',', ' ']).next().unwrap();
            if !["sh", "console"].contains(&language) {
                continue;
            }
            let mut line = block.line;
            let mut whole = String::new();
            for text in block.code.lines() {
                line += 1;
                let typed = if language == "sh" || !whole.is_empty() { Some(text) } else { after_prompt(text) };
                let Some(typed) = typed else { continue };
                whole += typed;
                if whole.ends_with('\\') {
                    whole.pop();
                } else {
                    commands.push((line, std::mem::take(&mut whole)));
                }
            }
        }
        commands
    }
}

/// What stands after a prompt such as `$ ` or `organiser$  `.
fn after_prompt(line: &str) -> Option<&str> {
    let (prompt, typed) = line.split_once("$ ")?;
    prompt.chars().all(|c| c.is_ascii_alphanumeric() || c == '-').then_some(typed.trim_start())
}

fn pages() -> Vec<Page> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).into();
    for entry in walkdir::WalkDir::new(root().join("docs/src")).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.path().extension().is_some_and(|extension| extension == "md") {
            paths.push(entry.path().strip_prefix(root()).unwrap().to_owned());
        }
    }
    assert!(paths.len() > 10, "the book was not found");
    paths.into_iter().map(Page::read).collect()
}

/// The simulator, which is built beside the hydra command.
fn simulator() -> PathBuf {
    let simulator = Path::new(env!("CARGO_BIN_EXE_hydra")).with_file_name("hydra-sim");
    assert!(simulator.exists(), "{} is not built: `cargo build --workspace` builds it", simulator.display());
    simulator
}

fn fail_with(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn links_and_anchors_lead_somewhere() {
    let pages = pages();
    let mut wrong = Vec::new();
    for page in &pages {
        for (line, link) in page.links() {
            if ["http://", "https://"].iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = page.path.parent().unwrap();
            let target = if file.is_empty() { page.path.clone() } else { normal(&folder.join(file)) };
            if !root().join(&target).exists() {
                wrong.push(format!("{}: there is no {link}", page.at(line)));
            } else if !anchor.is_empty() {
                let there = pages.iter().find(|other| other.path == target);
                if !there.is_some_and(|there| there.anchors().contains(anchor)) {
                    wrong.push(format!("{}: there is no heading for {link}", page.at(line)));
                }
            }
        }
    }
    fail_with(&wrong);
}

/// Without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

#[test]
fn files_that_are_named_are_there() {
    let mut wrong = Vec::new();
    for page in pages() {
        for (line, span) in page.code_spans() {
            let in_repository = ["src/", "sim/", "tests/", "benches/", "scenarios/", "docs/", ".ci/"];
            let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c));
            if !plain || !in_repository.iter().any(|folder| span.starts_with(folder)) {
                continue;
            }
            let found = match span.split_once('*') {
                None => root().join(&span).exists(),
                Some((before, after)) => {
                    let (folder, name) = before.rsplit_once('/').unwrap();
                    fs::read_dir(root().join(folder)).is_ok_and(|entries| {
                        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
                        names.into_iter().any(|file| file.starts_with(name) && file.ends_with(after))
                    })
                }
            };
            if !found {
                wrong.push(format!("{}: there is no {span}", page.at(line)));
            }
        }
    }
    fail_with(&wrong);
}

/// A line as a shell takes it apart: its simple commands, each as words. Enough for what the book prints.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words) = (vec![], vec![]);
    let (mut word, mut quote, mut inside) = (String::new(), None, false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '"' | '\'') => (quote, inside) = (Some(c), true),
            (None, '#') if word.is_empty() && !inside => break,
            (None, c) if c.is_whitespace() || "|&;()".contains(c) => {
                if inside || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                    inside = false;
                }
                // `2>&1` is no end of a command.
                let redirected = words.last().is_some_and(|last: &String| last.ends_with('>'));
                if !c.is_whitespace() && !redirected {
                    commands.push(std::mem::take(&mut words));
                }
            }
            (None, '$') if characters.peek() == Some(&'(') => {}
            (_, c) => word.push(c),
        }
    }
    if inside || !word.is_empty() {
        words.push(word);
    }
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

/// Whether the program takes these words. With `--help` at the end it reads what stands before, and does nothing.
fn takes(program: &Path, words: &[String]) -> Result<(), String> {
    let key = hydra::protocol::Keypair::from_secret(&[7; 32]).public().to_string();
    let mut arguments = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.strip_prefix('$').unwrap_or(word);
        let stands_for_something = word != name || name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        match name {
            "…" => {}
            ">" | ">>" | "2>" | "<" => drop(words.next()),
            word if word.starts_with(['>', '<']) || word.starts_with("2>") => {}
            "OFFER" => arguments.push("0".repeat(32)),
            "ROUND" | "TRANSFER" | "SIZE" => arguments.push("1".to_owned()),
            _ if stands_for_something => arguments.push(key.clone()),
            word => arguments.push(word.to_owned()),
        }
    }
    let ran = Command::new(program).args(&arguments).arg("--help").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    // A help that is asked for goes to standard output. What comes without it is a command that needs more words.
    let known = ran.status.success() && !ran.stdout.is_empty();
    if known { Ok(()) } else { Err(said.lines().next().unwrap_or("it fails").to_owned()) }
}

/// Whether cargo finds what it is asked for.
fn cargo_finds(words: &[String]) -> Result<(), String> {
    let mut words = words.iter();
    let kind = words.next().map_or("", String::as_str);
    let there = |folder: &str, name: &str| {
        ["", "sim/"].iter().any(|package| root().join(format!("{package}{folder}/{name}.rs")).exists())
    };
    while let Some(word) = words.next() {
        let missing = match word.as_str() {
            "--" => break,
            "--test" => words.next().filter(|name| !there("tests", name)),
            "--bench" => words.next().filter(|name| !there("benches", name)),
            "--example" => words.next().filter(|name| !there("examples", name)),
            "--profile" | "--config" | "--features" | "-p" | "--package" => {
                words.next();
                None
            }
            filter if kind == "test" && !filter.starts_with('-') => (!some_test_is_called(filter)).then_some(word),
            _ => None,
        };
        if let Some(missing) = missing {
            return Err(format!("cargo {kind} would not find {missing}"));
        }
    }
    Ok(())
}

/// Whether the filter picks a module or a function.
fn some_test_is_called(filter: &str) -> bool {
    let last = filter.trim_end_matches(':').rsplit("::").next().unwrap();
    ["src", "sim", "tests"].iter().any(|folder| {
        walkdir::WalkDir::new(root().join(folder)).into_iter().any(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let rust = entry.path().extension().is_some_and(|extension| extension == "rs");
            (rust
                && fs::read_to_string(entry.path()).unwrap().lines().any(|line| {
                    let function = line.trim_start().strip_prefix("fn ");
                    function.is_some_and(|function| function.split('(').next().unwrap().contains(last))
                }))
                || name == last
        })
    })
}

#[test]
fn printed_commands_exist_with_their_flags() {
    let hydra = PathBuf::from(env!("CARGO_BIN_EXE_hydra"));
    let (mut wrong, mut seen, mut checked) = (Vec::new(), BTreeMap::new(), 0);
    for page in pages() {
        for (number, line) in page.commands() {
            for mut words in simple_commands(&line) {
                while words.first().is_some_and(|word| word.split_once('=').is_some_and(|(name, _)| is_variable(name)))
                {
                    words.remove(0);
                }
                let start: Vec<&str> = words.iter().take(2).map(String::as_str).collect();
                let of_run = words.iter().position(|word| word == "--").map_or(words.len(), |at| at + 1);
                let result = match start[..] {
                    ["hydra", ..] => seen.entry(words.clone()).or_insert_with(|| takes(&hydra, &words[1..])).clone(),
                    ["cargo", "run"] => takes(&hydra, &words[of_run..]),
                    ["cargo", "sim"] => takes(&simulator(), &words[2..]),
                    ["cargo", "test" | "bench"] => cargo_finds(&words[1..]),
                    _ => continue,
                };
                checked += 1;
                if let Err(why) = result {
                    wrong.push(format!("{}: {}\n    {why}", page.at(number), words.join(" ")));
                }
            }
        }
    }
    assert!(checked > 30, "only {checked} commands were found");
    fail_with(&wrong);
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

/// Flags that are other programs'.
const FOREIGN: [&str; 2] = ["--features", "--memory"];

#[test]
fn flags_and_subcommands_in_sentences_exist() {
    // What the snapshots of the help name, and the simulator's own.
    let mut help = String::new();
    for entry in fs::read_dir(root().join("tests/help")).unwrap() {
        help += &fs::read_to_string(entry.unwrap().path()).unwrap();
    }
    for arguments in
        [&["--help"][..], &["replay", "--help"], &["shrink", "--help"], &["list", "--help"], &["sweep", "--help"]]
    {
        let output = Command::new(simulator()).args(arguments).output().unwrap();
        help += &String::from_utf8(output.stdout).unwrap();
    }
    let flags: BTreeSet<&str> = help.split(|c: char| !(c.is_alphanumeric() || c == '-')).collect();
    let subcommands: BTreeSet<&str> =
        help.lines().filter_map(|line| line.strip_prefix("$ hydra ")?.split(' ').next()).collect();
    let mut wrong = Vec::new();
    for page in pages() {
        for (line, span) in page.code_spans() {
            let words: Vec<&str> = span.split([' ', '[', ']', '|', '=']).collect();
            if let ["hydra", name, ..] = words[..]
                && name.chars().all(|c| c.is_ascii_lowercase())
                && !subcommands.contains(name)
            {
                wrong.push(format!("{}: there is no `{span}`", page.at(line)));
            }
            let ours = matches!(words[..], ["hydra", ..] | ["cargo", "sim" | "run", ..]);
            if !ours && !words[0].starts_with("--") {
                continue;
            }
            for word in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                if !flags.contains(word) && !FOREIGN.contains(word) {
                    wrong.push(format!("{}: no command has the {word} of `{span}`", page.at(line)));
                }
            }
        }
    }
    fail_with(&wrong);
}

/// What is run in place of cargo, which would build.
const CARGO: &str = r#"#!/bin/sh
case "$1" in
sim) shift; exec hydra-sim "$@" ;;
run) while [ "$1" != -- ]; do shift; done; shift; exec hydra "$@" ;;
*) echo "cargo $1 is not for here" >&2; exit 1 ;;
esac
"#;

/// Runs what a page marks for it, as one script. Tasks are small, so that it takes seconds; ports are free ones.
fn run(page: &Page) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hydra"), bin.join("hydra")).unwrap();
    std::os::unix::fs::symlink(simulator(), bin.join("hydra-sim")).unwrap();
    fs::write(bin.join("cargo"), CARGO).unwrap();
    fs::set_permissions(bin.join("cargo"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let here = folder.path().join("here");
    fs::create_dir(&here).unwrap();
    for linked in ["scenarios", "docs"] {
        std::os::unix::fs::symlink(root().join(linked), here.join(linked)).unwrap();
    }
    let text = folder.path().join("text.txt");
    fs::write(&text, common::text()).unwrap();

    let mut script = String::from("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n");
    for block in page.blocks.iter().filter(|block| is_run(block)) {
        writeln!(script, "echo '--- {}' >&2\n{}", page.at(block.line), block.code).unwrap();
    }
    for port in ["7700", "7710"] {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        script = script.replace(port, &free.to_string());
    }
    let log = folder.path().join("log");
    let output = fs::File::create(&log).unwrap();
    let mut bash = Command::new("bash");
    bash.args(["-c", &script]).current_dir(&here).stdin(Stdio::null());
    bash.stdout(output.try_clone().unwrap()).stderr(output);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    bash.env("PATH", path).env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path().join("data"));
    for (name, value) in [("INNER_STEPS", "2"), ("BATCH", "2"), ("CONTEXT", "16"), ("DATA", text.to_str().unwrap())] {
        bash.env(format!("HYDRA_{name}"), value);
    }
    let mut child = bash.spawn().unwrap();
    let mut waited = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        waited += 1;
        if waited > PATIENCE {
            // Its children end by its trap.
            Command::new("kill").arg(child.id().to_string()).status().unwrap();
            child.wait().unwrap();
            return Err(format!("{} hangs:\n{}", page.path.display(), last_lines(&log)));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(());
    }
    Err(format!("{} fails:\n{}", page.path.display(), last_lines(&log)))
}

fn last_lines(log: &Path) -> String {
    let log = String::from_utf8_lossy(&fs::read(log).unwrap()).into_owned();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

fn is_run(block: &Block) -> bool {
    block.info.split([',', ' ']).any(|mark| mark == "run")
}

#[test]
fn what_is_marked_runs() {
    let pages: Vec<Page> = pages().into_iter().filter(|page| page.blocks.iter().any(is_run)).collect();
    assert!(!pages.is_empty(), "no page has anything to run");
    // Three at a time: much of a page's time is waiting.
    let next = AtomicUsize::new(0);
    let some = || {
        let take = || pages.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(take).filter_map(|page| run(page).err()).collect::<Vec<_>>()
    };
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(some));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    fail_with(&wrong);
}
