//! `cargo sim`: plays scenarios of a swarm and says whether what they promise holds.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use hydra::protocol::Digest;
use hydra::runtime::Stopwatch;
use hydra_sim::folder::{self, Played, RunFolder};
use hydra_sim::shrink::shrink;
use hydra_sim::{Outcome, Scenario, Simulation};

const EXAMPLES: &str = "\
Examples:
  Play a story about a swarm:
    cargo sim scenarios/baseline.toml
  Play it with other luck, and print every event:
    cargo sim scenarios/cheat-scale.toml --seed 7 --trace
  Leave a folder with a report:
    cargo sim scenarios/split-network.toml --out runs/split
  Change it, and play it with a hundred seeds, two at a time:
    cargo sim scenarios/baseline.toml --seeds 1..100 --jobs 2 \\
      --set workers.0.count=3
  Begin with one of your own:
    cargo sim new mine.toml";

/// As in `hydra`: examples before options.
const HELP_TEMPLATE: &str = "\
{before-help}{about-with-newline}
{usage-heading} {usage}{after-help}

{all-args}

Exit codes: 0 all expectations hold, 1 one does not, 2 the scenario cannot be played.";

/// Plays a scenario of a swarm in virtual time, deterministically
#[derive(Debug, Parser)]
#[command(
    name = "hydra-sim",
    version,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES,
    help_template = HELP_TEMPLATE
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    play: Play,
}

#[derive(Debug, Args)]
struct Play {
    /// The scenario file
    scenario: Option<PathBuf>,
    /// Play with this seed instead of the scenario's
    #[arg(long)]
    seed: Option<u64>,
    /// Play with each of these seeds, the last not included
    #[arg(long, value_name = "A..B", value_parser = parse_seeds, conflicts_with_all = ["seed", "trace", "out"])]
    seeds: Option<(u64, u64)>,
    /// How many seeds to play at a time
    #[arg(long, requires = "seeds")]
    jobs: Option<usize>,
    /// Change the scenario: a dotted key and a TOML value (again for more)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// End after so many virtual seconds, and demand only what must always hold
    #[arg(long, value_name = "SECONDS")]
    until: Option<u64>,
    /// Print every event
    #[arg(long)]
    trace: bool,
    /// Write events.jsonl, metrics.csv and report.html into this folder, and what it takes to play it again
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Play twice, and fail unless both come out the same
    #[arg(long)]
    check_determinism: bool,
    /// Print one JSON object a run instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios of a folder and what they are about
    #[command(after_help = "Examples:\n  Those that come with Hydra:\n    cargo sim list\n  Your own:\n    cargo sim list mine/", help_template = HELP_TEMPLATE)]
    List {
        /// The folder
        #[arg(default_value = "scenarios")]
        folder: PathBuf,
    },
    /// Write a scenario to begin with
    #[command(after_help = "Examples:\n  A file with every part explained:\n    cargo sim new mine.toml\n  Play it:\n    cargo sim mine.toml", help_template = HELP_TEMPLATE)]
    New {
        /// The file, which must not be there yet
        path: PathBuf,
    },
    /// Play a run of --out again, and fail unless it comes out the same
    #[command(after_help = "Examples:\n  Keep a run:\n    cargo sim scenarios/baseline.toml --out runs/base\n  Is it the same today?:\n    cargo sim replay runs/base", help_template = HELP_TEMPLATE)]
    Replay {
        /// Its folder
        folder: PathBuf,
    },
    /// Make the scenario of a failed run of --out smaller for as long as it fails in the same way
    #[command(after_help = "Examples:\n  Find the least that fails:\n    cargo sim shrink runs/failed\n  In a few minutes:\n    cargo sim shrink runs/failed --plays 20", help_template = HELP_TEMPLATE)]
    Shrink {
        /// Its folder
        folder: PathBuf,
        /// How many scenarios to play at most
        #[arg(long, default_value_t = 100)]
        plays: usize,
    },
    /// Say where two runs of --out part
    #[command(after_help = "Examples:\n  Two seeds of a story:\n    cargo sim diff runs/seed-1 runs/seed-2", help_template = HELP_TEMPLATE)]
    Diff {
        /// The folder of one
        one: PathBuf,
        /// The folder of the other
        other: PathBuf,
    },
    /// Print the JSON Schema of scenario files
    #[command(after_help = "Examples:\n  For an editor that knows schemas:\n    cargo sim schema > scenario.schema.json", help_template = HELP_TEMPLATE)]
    Schema,
}

fn main() -> ExitCode {
    match dispatch(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<bool> {
    match &cli.command {
        None => play(&cli.play),
        Some(Command::List { folder }) => list(folder),
        Some(Command::New { path }) => new(path),
        Some(Command::Replay { folder }) => replay(folder),
        Some(Command::Shrink { folder, plays }) => shrink_run(folder, *plays),
        Some(Command::Diff { one, other }) => diff(one, other),
        Some(Command::Schema) => {
            println!("{}", serde_json::to_string_pretty(&Scenario::schema())?);
            Ok(true)
        }
    }
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let ends = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    ends.filter(|(from, to)| from < to).ok_or_else(|| "write A..B, with A below B: 1..100".to_owned())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The code that this command was built of, where it still is.
fn commit() -> String {
    let git = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"];
    let said = Process::new("git").args(git).output().ok().filter(|output| output.status.success());
    said.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

// --- playing ------------------------------------------------------------------------------------------------------

fn play(args: &Play) -> anyhow::Result<bool> {
    let Some(path) = &args.scenario else {
        bail!("name a scenario file; `cargo sim list` says which there are, `cargo sim --help` what else can be done")
    };
    let scenario = Scenario::read_with(path, &args.changes)?;
    match args.seeds {
        Some((from, to)) => play_seeds(args, path, &scenario, from, to),
        None => play_one(args, path, &scenario),
    }
}

fn again(args: &Play, path: &Path, seed: u64) -> String {
    let changes: String = args.changes.iter().map(|change| format!(" --set '{change}'")).collect();
    let until = args.until.map(|until| format!(" --until {until}")).unwrap_or_default();
    format!("cargo sim {} --seed {seed}{changes}{until}", path.display())
}

/// Plays once, or twice where both must come out the same. How long the first took on real clocks comes with it.
fn play_seed(
    args: &Play,
    scenario: &Scenario,
    seed: u64,
    threads: usize,
    show: bool,
) -> anyhow::Result<(Outcome, Duration)> {
    let simulation = || {
        let simulation = Simulation::new(scenario);
        args.until.map_or(Simulation::new(scenario), |until| simulation.until(Duration::from_secs(until)))
    };
    let watch = Stopwatch::start();
    let rounds = scenario.job.rounds;
    let mut outcome = simulation()
        .on_progress(move |at| {
            if show {
                eprint!("\r{} of {rounds} rounds, {:.0} virtual seconds ", at.rounds, at.virtual_seconds);
            }
        })
        .run(seed, threads)?;
    let took = watch.elapsed();
    if show {
        eprint!("\r{:60}\r", "");
    }
    if args.check_determinism {
        let other = simulation().run(seed, 1)?;
        if other.state_hash != outcome.state_hash {
            outcome.passed = false;
            outcome.failures.push(format!("a second run came out differently: {}", other.state_hash));
        }
    }
    Ok((outcome, took))
}

fn json(outcome: &Outcome, took: Duration) -> anyhow::Result<String> {
    let mut object = serde_json::to_value(outcome)?;
    object["wall_seconds"] = took.as_secs_f64().into();
    Ok(object.to_string())
}

/// The text of the scenario, as it is after changes.
fn text_of(args: &Play, path: &Path) -> anyhow::Result<String> {
    Ok(Scenario::text_with(path, &args.changes)?)
}

fn play_one(args: &Play, path: &Path, scenario: &Scenario) -> anyhow::Result<bool> {
    let (seed, text) = (args.seed.unwrap_or(scenario.seed), text_of(args, path)?);
    let commit = commit();
    if !args.json {
        println!("seed {seed}, commit {commit}, scenario {}", short(&Digest::of(text.as_bytes())));
        println!("{}: {}", path.display(), scenario.about);
    }
    let show = !args.json && std::io::stderr().is_terminal();
    let (outcome, took) = play_seed(args, scenario, seed, cores(), show)?;
    if let Some(out) = &args.out {
        let (name, folder) = place(path)?;
        let played = Played {
            name,
            folder,
            seed,
            until: args.until,
            commit,
            scenario: Digest::of(&[]),
            events: Digest::of(&[]),
            state_hash: outcome.state_hash,
            failures: Vec::new(),
        };
        folder::write(out, played, (scenario, &text), &outcome)?;
    }
    if args.json {
        println!("{}", json(&outcome, took)?);
        return Ok(outcome.passed);
    }
    if args.trace {
        outcome.log.iter().for_each(|line| println!("{line}"));
    }
    print(scenario, &outcome, took);
    if let Some(out) = &args.out {
        println!("report {}", out.join("report.html").display());
    }
    println!("state {}", outcome.state_hash);
    println!("again: {}", again(args, path, seed));
    Ok(outcome.passed)
}

/// A scenario's name, and the folder that it is in.
fn place(path: &Path) -> anyhow::Result<(String, PathBuf)> {
    let whole = fs::canonicalize(path)?;
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((name, whole.parent().map(Path::to_owned).unwrap_or_default()))
}

fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(8).collect()
}

fn print(scenario: &Scenario, outcome: &Outcome, took: Duration) {
    let (first, last) = (outcome.losses.first(), outcome.losses.last());
    if let (Some(first), Some(last)) = (first, last) {
        println!("loss     {first:.4} to {last:.4} after {} rounds", outcome.losses.len() - 1);
    }
    let faster = outcome.virtual_seconds / took.as_secs_f64().max(1e-9);
    println!(
        "time     {:.1} virtual s, {} events, {} faults; {:.1} s of real time ({faster:.0} times as fast)",
        outcome.virtual_seconds,
        outcome.events,
        outcome.strikes.len(),
        took.as_secs_f64(),
    );
    println!(
        "{:<24} {:>7} {:>9} {:>9} {:>11} {:>9} {:>9} {:>8}",
        "group", "workers", "accepted", "rejected", "found false", "paid", "kept", "shut out"
    );
    for group in outcome.groups(scenario) {
        println!(
            "{:<24} {:>7} {:>9} {:>9} {:>11} {:>9.2} {:>9.2} {:>8}",
            group.name,
            group.workers,
            group.accepted,
            group.rejected,
            group.found_false,
            group.pay,
            group.kept,
            group.banned,
        );
    }
    for failure in &outcome.failures {
        println!("FAILED: {failure}");
    }
    if outcome.passed {
        println!("passed");
    }
}

fn play_seeds(args: &Play, path: &Path, scenario: &Scenario, from: u64, to: u64) -> anyhow::Result<bool> {
    let jobs = args.jobs.unwrap_or_else(cores).max(1);
    let threads = (cores() / jobs).max(1);
    if !args.json {
        let text = text_of(args, path)?;
        println!("seeds {from}..{to}, commit {}, scenario {}", commit(), short(&Digest::of(text.as_bytes())));
        println!("{}: {}", path.display(), scenario.about);
    }
    let next = AtomicU64::new(from);
    let (send, receive) = mpsc::channel();
    let watch = Stopwatch::start();
    let (mut failed, mut worst) = (Vec::new(), f64::NEG_INFINITY);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody listens any more once a seed could not be played.
                    if seed >= to || send.send((seed, play_seed(args, scenario, seed, threads, false))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let show = !args.json && std::io::stderr().is_terminal();
        for (done, (seed, played)) in receive.iter().enumerate() {
            let (outcome, took) = played.with_context(|| again(args, path, seed))?;
            if args.json {
                println!("{}", json(&outcome, took)?);
            } else if !outcome.passed {
                println!("seed {seed} FAILED: {}\n  again: {}", outcome.failures.join("; "), again(args, path, seed));
            }
            if show {
                eprint!("\r{} of {} seeds, {} failed ", done + 1, to - from, failed.len());
                std::io::stderr().flush()?;
            }
            worst = worst.max(outcome.losses.last().copied().unwrap_or(f64::NEG_INFINITY));
            if !outcome.passed {
                failed.push(seed);
            }
        }
        anyhow::Ok(())
    })?;
    if !args.json {
        let took = watch.elapsed().as_secs_f64();
        println!("{} seeds in {took:.1} s, {} failed; the highest last loss {worst:.4}", to - from, failed.len());
    }
    Ok(failed.is_empty())
}

// --- files --------------------------------------------------------------------------------------------------------

fn list(folder: &Path) -> anyhow::Result<bool> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut whole = true;
    for path in paths {
        match Scenario::read(&path) {
            Ok(scenario) => println!("{:<36} {}", path.display(), scenario.about),
            Err(error) => {
                whole = false;
                println!("{:<36} cannot be played: {error}", path.display());
            }
        }
    }
    Ok(whole)
}

const TEMPLATE: &str = include_str!("template.toml");

fn new(path: &Path) -> anyhow::Result<bool> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(TEMPLATE.as_bytes())?;
    println!("{}: change it, then `cargo sim {}`", path.display(), path.display());
    Ok(true)
}

fn play_folder(folder: &RunFolder) -> anyhow::Result<Outcome> {
    let scenario = folder.scenario()?;
    let simulation = Simulation::new(&scenario);
    let simulation = match folder.until() {
        Some(until) => simulation.until(until),
        None => simulation,
    };
    Ok(simulation.run(folder.played.seed, cores())?)
}

fn replay(path: &Path) -> anyhow::Result<bool> {
    let folder = RunFolder::read(path)?;
    let (played, now) = (&folder.played, commit());
    println!("seed {}, commit {now}, scenario {}", played.seed, short(&played.scenario));
    let outcome = play_folder(&folder)?;
    let same = outcome.state_hash == played.state_hash;
    if same {
        println!("the same again");
    } else {
        println!("FAILED: it comes out differently; it was played at commit {}", played.commit);
        if let Some((line, was, is)) = folder::first_difference(&folder.events, &folder::events(&outcome)) {
            println!("from event {line} on:\n  was {was}\n  is  {is}");
        }
    }
    println!("state {}", outcome.state_hash);
    Ok(same)
}

fn shrink_run(path: &Path, plays: usize) -> anyhow::Result<bool> {
    let folder = RunFolder::read(path)?;
    let played = &folder.played;
    if played.failures.is_empty() {
        bail!("the run in {} did not fail: there is nothing to keep while it shrinks", path.display());
    }
    let shrunk = shrink(&played.folder.join(&played.name), &folder.text, &played.failures, plays, |scenario| {
        // Smaller, it should not take longer; nothing is gained by waiting for what never ends.
        let simulation = Simulation::new(scenario).patience((folder.took() * 3).max(Duration::from_mins(1)));
        let simulation = match folder.until() {
            Some(until) => simulation.until(until),
            None => simulation,
        };
        simulation.run(played.seed, cores()).ok()
    })?;
    let to = path.join("shrunk.toml");
    fs::write(&to, &shrunk.text)?;
    println!(
        "{} of {} lines left after {} plays",
        shrunk.text.lines().count(),
        folder.text.lines().count(),
        shrunk.plays
    );
    shrunk.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    println!("again: cargo sim {} --seed {}", to.display(), played.seed);
    Ok(true)
}

fn diff(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let (a, b) = (RunFolder::read(one)?, RunFolder::read(other)?);
    let row = |what: &str, one: &str, other: &str| {
        if one == other {
            println!("{what:<9} {one}");
        } else {
            println!("{what:<9} {one}  |  {other}");
        }
    };
    row("scenario", &short(&a.played.scenario), &short(&b.played.scenario));
    row("seed", &a.played.seed.to_string(), &b.played.seed.to_string());
    row("commit", &a.played.commit, &b.played.commit);
    row("state", &short(&a.played.state_hash), &short(&b.played.state_hash));
    row("failures", &a.played.failures.join("; "), &b.played.failures.join("; "));
    let last = |path: &Path| -> anyhow::Result<String> {
        Ok(fs::read_to_string(path.join("metrics.csv"))?.lines().last().unwrap_or_default().to_owned())
    };
    row("last row", &last(one)?, &last(other)?);
    match folder::first_difference(&a.events, &b.events) {
        None => println!("the same {} events", a.events.lines().count()),
        Some((line, one, other)) => println!("they part at event {line}:\n  {one}\n  {other}"),
    }
    Ok(a.played.state_hash == b.played.state_hash)
}
