//! Playing scenarios that are there.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use hydra::protocol::Digest;
use hydra::runtime::Stopwatch;
use hydra_sim::folder::{self, Played};
use hydra_sim::{Outcome, Scenario, Simulation};

use super::{commit, cores, short};
use crate::Play;

pub(crate) fn play(args: &Play) -> anyhow::Result<bool> {
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
    // As a shell reads it.
    let quoted = |change: &String| format!(" --set '{}'", change.replace('\'', "'\\''"));
    let changes: String = args.changes.iter().map(quoted).collect();
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
    let simulation = || Simulation::new(scenario).until(args.until.map(Duration::from_secs));
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
            again: again(args, path, seed),
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
    if let Some(queries) = &outcome.queries {
        println!(
            "queries  {} asked, {} answered for {}, {} refused for want of tokens, {} given back",
            queries.asked, queries.answered, queries.paid, queries.refused, queries.given_back
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
