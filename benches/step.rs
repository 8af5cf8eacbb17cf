//! Claim: an inner step on the processor is at least 1.4 times as fast as JAX's at `nano` and `mini`, and 1.2 times the
//! best of PyTorch and JAX at `small`; two threads, or two workers, do at least 1.8 times the work of one; Muon adds at
//! most 40 % at `nano`. What was measured is in `docs/src/performance.md`.
//!
//! `[PEERS="$(benches/peers/setup)"] cargo bench --profile dev --bench step [-- preset [parts of names]]`
//!
//! With `PEERS`, PyTorch and JAX train the same recipe. All take turns, a few steps each, so that a machine that slows
//! down slows all of them; medians are shown, and the best of all for machines that do other things besides. With
//! features `tch` and `flex` their devices take part; `plain` ones only when their names are asked for.

#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hydra::model::speed::{flops_per_token, gemm_flops};
use hydra::model::{BurnEngine, DeviceChoice, Preset, Recipe};
use hydra::protocol::{InnerOptimizer, Seed};
use hydra::training::{Batch, Engine, EngineError, Params};
use rayon::{ThreadPool, ThreadPoolBuilder};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Turns of each.
const TURNS: usize = 5;

/// How long a turn takes, about.
const TURN: Duration = Duration::from_millis(400);

/// Somebody who trains.
struct Contestant {
    name: String,
    /// Steps that are done side by side.
    workers: usize,
    trainer: Trainer,
    /// Of each step, milliseconds.
    times: Vec<f64>,
}

enum Trainer {
    Ours(BurnEngine, Vec<ThreadPool>, InnerOptimizer),
    Peer(Peer),
}

/// A Python process that trains when asked.
struct Peer {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, kind: &str, recipe: &Recipe, optimizer: &str, threads: usize) -> Result<Self> {
        let model = recipe.model;
        let sizes = [model.layers, model.width, model.heads, model.hidden, model.context, recipe.batch];
        let mut process = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/step.py"))
            .arg(kind)
            .args(sizes.map(|size| size.to_string()))
            .args([optimizer, &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (asks, answers) = process.stdin.take().zip(process.stdout.take()).ok_or("the peer has no pipes")?;
        let mut peer = Self { process, asks, answers: BufReader::new(answers) };
        let ready = peer.answer()?;
        if ready.starts_with("ready") { Ok(peer) } else { Err(format!("{kind} does not start: {ready}").into()) }
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line)
    }

    fn steps(&mut self, count: usize) -> Result<Vec<f64>> {
        writeln!(self.asks, "{count}")?;
        let times = self.answer()?.split_whitespace().map(str::parse).collect::<std::result::Result<Vec<f64>, _>>()?;
        if times.len() == count { Ok(times) } else { Err("a peer ended".into()) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Steps of one worker, after one that is not counted.
fn train(
    engine: &BurnEngine,
    recipe: &Recipe,
    optimizer: &InnerOptimizer,
    batch: &Batch,
    steps: usize,
) -> std::result::Result<Vec<f64>, EngineError> {
    let base = Params::initial(&recipe.model, &Seed::from_number(1));
    let mut session = engine.train(&recipe.model, &base, optimizer)?;
    session.step(batch, 1e-3)?;
    let timed = |_| {
        let start = Instant::now();
        session.step(batch, 1e-3).map(|_| start.elapsed().as_secs_f64() * 1e3)
    };
    (0..steps).map(timed).collect()
}

impl Contestant {
    fn turn(&mut self, recipe: &Recipe, batch: &Batch, steps: usize) -> Result<()> {
        let times = match &mut self.trainer {
            Trainer::Peer(peer) => peer.steps(steps)?,
            Trainer::Ours(engine, pools, optimizer) => {
                let run = |pool: &ThreadPool| pool.install(|| train(engine, recipe, optimizer, batch, steps));
                let workers: Vec<_> = std::thread::scope(|scope| {
                    let threads: Vec<_> = pools.iter().map(|pool| scope.spawn(|| run(pool))).collect();
                    threads.into_iter().map(|thread| thread.join().map_err(|_| "a worker panicked")).collect()
                });
                let mut times = Vec::new();
                for worker in workers {
                    times.extend(worker??);
                }
                times
            }
        };
        self.times.extend(times);
        Ok(())
    }

    /// Milliseconds for each step that is done.
    fn median(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN) / self.workers as f64
    }

    fn best(&self) -> f64 {
        self.times.iter().copied().fold(f64::INFINITY, f64::min) / self.workers as f64
    }
}

fn pools(threads: usize, workers: usize) -> Result<Vec<ThreadPool>> {
    Ok((0..workers)
        .map(|_| ThreadPoolBuilder::new().num_threads(threads).build())
        .collect::<std::result::Result<_, _>>()?)
}

fn contestants(recipe: &Recipe, wanted: &[String]) -> Result<Vec<Contestant>> {
    let is_wanted = |name: &str| match wanted {
        [] => !name.starts_with("plain"),
        wanted => wanted.iter().any(|part| name.contains(part)),
    };
    let mut engines = vec![
        ("ours".to_owned(), BurnEngine::new(DeviceChoice::NdArray)),
        ("plain ndarray".to_owned(), BurnEngine::plain(DeviceChoice::NdArray)),
    ];
    let others = DeviceChoice::present().into_iter().filter(|&device| device != DeviceChoice::NdArray);
    engines.extend(others.map(|device| (device.to_string(), BurnEngine::new(device))));
    let optimizers = [("adamw", InnerOptimizer::adamw()), ("muon", InnerOptimizer::muon())];
    let mut all = Vec::new();
    for (optimizer_name, optimizer) in optimizers {
        for (engine_name, engine) in &engines {
            for (threads, workers) in [(2, 1), (1, 1), (1, 2)] {
                let name = format!("{engine_name}, {optimizer_name}, {workers} × {threads} threads");
                if is_wanted(&name) && (workers == 1 || engine_name == "ours") {
                    let trainer = Trainer::Ours(engine.clone(), pools(threads, workers)?, optimizer);
                    all.push(Contestant { name, workers, trainer, times: Vec::new() });
                }
            }
        }
        let Ok(python) = std::env::var("PEERS") else { continue };
        for kind in ["jax", "torch", "torch-compiled"] {
            let name = format!("{kind}, {optimizer_name}, 1 × 2 threads");
            if is_wanted(&name) {
                let trainer = Trainer::Peer(Peer::start(&python, kind, recipe, optimizer_name, 2)?);
                all.push(Contestant { name, workers: 1, trainer, times: Vec::new() });
            }
        }
    }
    Ok(all)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let preset = arguments.next().map_or(Ok(Preset::Nano), |name| name.parse::<Preset>())?;
    let recipe = preset.recipe();
    let context = recipe.model.context as usize;
    let tokens = (0..recipe.batch as usize * (context + 1)).map(|at| (at * at % 251) as u16).collect();
    let batch = Batch { context, tokens };
    let mut all = contestants(&recipe, &arguments.collect::<Vec<_>>())?;

    let two = pools(2, 1)?;
    let mut peaks = Vec::new();
    for _ in 0..TURNS {
        peaks.push(two[0].install(|| gemm_flops(DeviceChoice::NdArray))?);
        for contestant in &mut all {
            let known = contestant.best() * contestant.workers as f64;
            let steps = if known.is_finite() { TURN.as_secs_f64() * 1e3 / known } else { 1.0 };
            contestant.turn(&recipe, &batch, (steps as usize).clamp(1, 12))?;
        }
    }
    peaks.sort_by(f64::total_cmp);
    let peak = peaks[peaks.len() / 2];
    let flops = flops_per_token(&recipe.model) as f64 * batch.predicted() as f64;
    let (parameters, tokens) = (recipe.model.parameters(), batch.predicted());
    println!(
        "{preset}: {parameters} parameters, {tokens} tokens a step; gemm on two threads {:.0} GFLOP/s",
        peak / 1e9
    );
    println!("{:40} {:>10} {:>10} {:>10} {:>8}", "", "median ms", "best ms", "tokens/s", "of gemm");
    for contestant in &all {
        let median = contestant.median();
        println!(
            "{:40} {median:10.1} {:10.1} {:10.0} {:7.0}%",
            contestant.name,
            contestant.best(),
            tokens as f64 / median * 1e3,
            100.0 * flops / median * 1e3 / peak
        );
    }
    ratios(&all);
    Ok(())
}

/// The claims, as far as their contestants took part.
fn ratios(all: &[Contestant]) {
    let median = |name: &str| all.iter().find(|contestant| contestant.name == name).map(Contestant::median);
    let show = |what: &str, slow: Option<f64>, fast: Option<f64>| {
        if let (Some(slow), Some(fast)) = (slow, fast) {
            println!("{what:52} {:.2}", slow / fast);
        }
    };
    for optimizer in ["adamw", "muon"] {
        let [ours, jax, torch, compiled, tch, one, workers] = [
            "ours, {}, 1 × 2 threads",
            "jax, {}, 1 × 2 threads",
            "torch, {}, 1 × 2 threads",
            "torch-compiled, {}, 1 × 2 threads",
            "tch-cpu, {}, 1 × 2 threads",
            "ours, {}, 1 × 1 threads",
            "ours, {}, 2 × 1 threads",
        ]
        .map(|name| median(&name.replace("{}", optimizer)));
        show(&format!("{optimizer}: JAX / ours"), jax, ours);
        show(&format!("{optimizer}: PyTorch eager / ours"), torch, ours);
        show(&format!("{optimizer}: PyTorch compiled / ours"), compiled, ours);
        show(&format!("{optimizer}: PyTorch eager / tch-cpu"), torch, tch);
        show(&format!("{optimizer}: one thread / two threads"), one, ours);
        show(&format!("{optimizer}: one worker / two workers, one thread each"), one, workers);
    }
    let two = |optimizer: &str| median(&format!("ours, {optimizer}, 1 × 2 threads"));
    show("Muon / AdamW", two("muon"), two("adamw"));
}
