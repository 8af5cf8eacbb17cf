//! Claim: a thousand workers are simulated at least twenty times as fast as they would work, ten thousand within 2 GiB; with
//! a real model the simulation costs less than a tenth of the training in it; a thousand seeds of a small swarm take a
//! minute or two. What was measured is in `docs/src/simulation.md`.
//!
//! `cargo bench --workspace --profile dev --bench speed [-- parts of names]`
//!
//! `FLOWER="$(benches/peers/flower-setup)"` has Flower's simulation engine do the small job too.

#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use hydra::compute::Compute;
use hydra::model::{BurnEngine, DeviceChoice};
use hydra::protocol::{Codec, Digest, InnerOptimizer, ModelSpec, Round, Schedule, Seed, Task};
use hydra::runtime::{Delivery, Executor, Threads, Work, WorkKind};
use hydra::store::{Blobs, MemoryBlobs};
use hydra::training::{Corpus, Params};
use hydra_sim::{Outcome, Scenario, run};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BOWL: &str = "objective = 'surrogate'\nlearning_rate = 0.02\n\
    model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 }\n";

/// The `nano` preset.
const NANO: ModelSpec = ModelSpec { layers: 4, width: 128, heads: 4, hidden: 352, context: 64 };
const NANO_STEPS: u32 = 30;
const NANO_BATCH: u32 = 12;
const NANO_ROUNDS: u32 = 2;
const NANO_WORKERS: u32 = 4;

fn scenario(text: &str) -> Result<Scenario> {
    Ok(Scenario::parse(Path::new("speed.toml"), text)?)
}

fn play(scenario: &Scenario, seed: u64, threads: usize) -> Result<(Outcome, f64)> {
    let begun = Instant::now();
    let outcome = run(scenario, seed, threads)?;
    let took = begun.elapsed().as_secs_f64();
    if outcome.passed { Ok((outcome, took)) } else { Err(outcome.failures.join("; ").into()) }
}

/// The most memory that this process has had, MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

/// So many workers, and a hundred tasks in each of three rounds.
fn workers(count: u32) -> Result<()> {
    let text = format!(
        "about = 'many'\n[job]\nrounds = 3\ntasks_per_round = {}\ninner_steps = 10\nbatch = 20\n{BOWL}\
         [[workers]]\ncount = {count}\ntokens_per_second = [10, 40]\n",
        100
    );
    let (outcome, took) = play(&scenario(&text)?, 1, 2)?;
    let done: u64 = outcome.workers.iter().map(|worker| worker.accepted).sum();
    println!(
        "{count:>6} workers: {:>6.0} virtual s in {took:>6.2} s, {:>5.0} times as fast; {:>8.0} events/s; {:>6.0} tasks/s; {:>5.0} MiB",
        outcome.virtual_seconds,
        outcome.virtual_seconds / took,
        outcome.events as f64 / took,
        done as f64 / took,
        peak()
    );
    Ok(())
}

fn seeds() -> Result<()> {
    let text = format!(
        "about = 'short'\n[job]\nrounds = 3\ninner_steps = 4\nbatch = 4\n{BOWL}\
         [[workers]]\ncount = 6\ntokens_per_second = [20, 60]\n[network]\nloss = 0.02\n\
         [[faults]]\nwhat = 'crash'\nwho = 'coordinator'\neach_round_within_seconds = 8\nfor_seconds = 3\n"
    );
    let scenario = scenario(&text)?;
    let begun = Instant::now();
    let next = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let seed @ ..=1000 = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                    if let Err(error) = play(&scenario, seed, 1) {
                        println!("seed {seed}: {error}");
                    }
                }
            });
        }
    });
    println!("  1000 seeds of six workers and three crashes: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The tasks of a run one after the other, or two at a time: nothing but the training.
fn raw(threads: usize) -> Result<f64> {
    let blobs = Arc::new(MemoryBlobs::default());
    let mut corpus = Corpus::default();
    corpus
        .push(&b"To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. ".repeat(600))?;
    let manifest = corpus.store(|shard| blobs.put(shard).map(drop))?;
    let dataset: Digest = blobs.put(&manifest.encode())?;
    let compute = Arc::new(Compute::new(Arc::new(BurnEngine::new(DeviceChoice::NdArray)), blobs));
    let base = compute.save(&Params::initial(&NANO, &Seed::from_number(1)))?;
    let pool = Threads::new(threads, threads)?;
    let (send, receive) = mpsc::channel();
    let tasks = NANO_ROUNDS * NANO_WORKERS;
    let begun = Instant::now();
    for index in 0..tasks {
        let task = Task {
            run: hydra::protocol::RunId(dataset),
            round: Round(0),
            index,
            base,
            model: NANO,
            dataset,
            seed: Seed::from_number(index.into()),
            inner_steps: NANO_STEPS,
            batch: NANO_BATCH,
            optimizer: InnerOptimizer::muon(),
            schedule: Schedule::new(1e-3, Some(120)),
            first_step: 0,
            codec: Codec::Ternary,
        };
        let (compute, send) = (Arc::clone(&compute), send.clone());
        let job = Box::new(move || {
            let done = compute.train(&task, |_| true).is_ok();
            Box::new(move || {
                // Whoever asked has given up.
                let _ = send.send(done);
            }) as Delivery
        });
        pool.run(Work { kind: WorkKind::Train { tokens: 1 }, job });
    }
    if receive.iter().take(tasks as usize).all(|done| done) {
        Ok(f64::from(tasks) / begun.elapsed().as_secs_f64())
    } else {
        Err("a task failed".into())
    }
}

fn nano() -> Result<()> {
    let ModelSpec { layers, width, heads, hidden, context } = NANO;
    let text = format!(
        "about = 'real'\n[job]\nrounds = {NANO_ROUNDS}\ninner_steps = {NANO_STEPS}\nbatch = {NANO_BATCH}\nlearning_rate = 0.001\n\
         model = {{ layers = {layers}, width = {width}, heads = {heads}, hidden = {hidden}, context = {context} }}\n\
         [[workers]]\ncount = {NANO_WORKERS}\ntokens_per_second = 2000\n"
    );
    let scenario = scenario(&text)?;
    for threads in [1, 2] {
        // In turns: a machine that slows down slows both.
        let (mut alone, mut simulated) = (Vec::new(), Vec::new());
        for seed in 1..=3 {
            alone.push(raw(threads)?);
            let (_, took) = play(&scenario, seed, threads)?;
            simulated.push(f64::from(NANO_ROUNDS * NANO_WORKERS) / took);
        }
        let (alone, simulated) = (median(alone), median(simulated));
        println!(
            "  nano, {threads} cores: {simulated:.3} worker-rounds/s simulated, {alone:.3} trained alone; {:+.1} %",
            100.0 * (alone / simulated - 1.0)
        );
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Flower's clients do what the bowl's workers do: ten steps on as many numbers, and hand in the difference.
fn flower() -> Result<()> {
    let Ok(python) = std::env::var("FLOWER") else { return Ok(()) };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/peers/flower.py");
    let output = Command::new(python).arg(script).args(["100", "3"]).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

fn main() -> Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()));
    for count in [100, 1000, 10_000] {
        if wanted("workers") {
            workers(count)?;
        }
    }
    if wanted("seeds") {
        seeds()?;
    }
    if wanted("nano") {
        nano()?;
    }
    if wanted("flower") {
        flower()?;
    }
    Ok(())
}
