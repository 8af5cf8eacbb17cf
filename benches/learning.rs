//! Claim: a swarm that trains in rounds of 30 steps and exchanges two bits a parameter learns as well as one machine.
//!
//! Trains the nanoGPT CPU recipe (4 layers, width 128, context 64, batch 12, 1.54 million tokens) on one text in
//! several ways at equal tokens, and prints validation loss and wall time side by side.
//!
//! ```text
//! cargo bench --profile dev --bench learning -- path/to/tinyshakespeare.txt [row …]
//! ```

#![allow(clippy::disallowed_methods, clippy::expect_used, reason = "a bench keeps time, and stops where it fails")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use hydra::data;
use hydra::model::{BurnEngine, DeviceChoice, Preset};
use hydra::protocol::{
    Aggregation, Codec, Digest, Emission, InnerOptimizer, OuterOptimizer, Round, RunSpec, Schedule, Seed, Task, Timing,
};
use hydra::training::{Corpus, Engine, Layout, Params, Trained, Update, do_task, training_batch, validation_batches};

/// Tokens of every row: 2000 steps of 12 × 64.
const STEPS: u32 = 2000;

struct Row {
    name: &'static str,
    workers: u32,
    /// Inner steps of a round; `None` is one machine without rounds, its optimiser never restarted.
    inner_steps: Option<u32>,
    optimizer: fn() -> InnerOptimizer,
    rate: f32,
    codec: Codec,
    /// What a probe in another framework reached.
    goal: f64,
}

const ROWS: &[Row] = &[
    Row {
        name: "1-adamw",
        workers: 1,
        inner_steps: None,
        optimizer: InnerOptimizer::adamw,
        rate: 1e-3,
        codec: Codec::Fp32,
        goal: 1.70,
    },
    Row {
        name: "1-muon-rounds",
        workers: 1,
        inner_steps: Some(30),
        optimizer: InnerOptimizer::muon,
        rate: 3e-3,
        codec: Codec::Ternary,
        goal: 1.63,
    },
    Row {
        name: "2-muon-rounds",
        workers: 2,
        inner_steps: Some(30),
        optimizer: InnerOptimizer::muon,
        rate: 3e-3,
        codec: Codec::Ternary,
        goal: 1.66,
    },
    Row {
        name: "4-muon-rounds",
        workers: 4,
        inner_steps: Some(30),
        optimizer: InnerOptimizer::muon,
        rate: 3e-3,
        codec: Codec::Ternary,
        goal: 1.73,
    },
    Row {
        name: "4-muon-rounds-fp32",
        workers: 4,
        inner_steps: Some(30),
        optimizer: InnerOptimizer::muon,
        rate: 3e-3,
        codec: Codec::Fp32,
        goal: 1.73,
    },
];

fn main() -> ExitCode {
    // cargo passes `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let path = arguments.next().map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data/tinyshakespeare.txt"),
        PathBuf::from,
    );
    let wanted: Vec<String> = arguments.collect();
    if !path.exists() {
        println!("skipped: {} is not there; name a text file to train on", path.display());
        return ExitCode::SUCCESS;
    }
    let data = data::read(&[path]).expect("the text can be read");
    println!("{} bytes; {STEPS} steps of 12 × 64 tokens in every row; 2560 validation windows", data.bytes);
    println!("{:<20} {:>10} {:>8} {:>10} {:>6}", "row", "val loss", "goal", "seconds", "steps");
    for row in ROWS.iter().filter(|row| wanted.is_empty() || wanted.iter().any(|name| name == row.name)) {
        let began = Instant::now();
        let loss = train(row, &data.corpus);
        let seconds = began.elapsed().as_secs_f64();
        let steps = STEPS / row.workers;
        println!("{:<20} {loss:>10.4} {:>8.2} {seconds:>10.1} {steps:>6}", row.name, row.goal);
    }
    ExitCode::SUCCESS
}

fn train(row: &Row, corpus: &Corpus) -> f64 {
    let steps = STEPS / row.workers;
    let recipe = Preset::Nano.recipe();
    let spec = RunSpec {
        seed: Seed::from_number(1),
        model: recipe.model,
        dataset: Digest::of(b"bench"),
        tasks_per_round: row.workers,
        inner_steps: row.inner_steps.unwrap_or(steps),
        batch: recipe.batch,
        optimizer: (row.optimizer)(),
        schedule: Schedule::new(row.rate, Some(steps.into())),
        codec: row.codec,
        aggregation: Aggregation::default(),
        outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
        validation_windows: 2560,
        emission: Emission::default(),
        timing: Timing::default(),
        audits: None,
        short: None,
    };
    let engine = BurnEngine::new(DeviceChoice::Auto);
    let mut model = Params::initial(&spec.model, &spec.seed);
    if row.inner_steps.is_none() {
        let task = Task::of_round(&spec, Round(0), 0, spec.dataset);
        let mut session = engine.train(&spec.model, &model, &spec.optimizer).expect("a session starts");
        for step in 0..steps {
            session.step(&training_batch(corpus, &task, step), spec.schedule.rate(step.into())).expect("a step");
        }
        model = session.finish().expect("weights");
    } else {
        for round in 0..steps.div_ceil(spec.inner_steps) {
            let tasks: Vec<Task> = (0..row.workers)
                .map(|index| {
                    let mut task = Task::of_round(&spec, Round(round), index, spec.dataset);
                    task.inner_steps = spec.inner_steps.min(steps - round * spec.inner_steps);
                    task
                })
                .collect();
            model = one_round(&spec, &engine, corpus, &model, &tasks);
        }
    }
    engine.loss(&spec.model, &model, &mut validation_batches(corpus, &spec)).expect("a loss")
}

/// All tasks of a round, two at a time on one thread each (a lone task gets both threads), then the outer step.
fn one_round(spec: &RunSpec, engine: &BurnEngine, corpus: &Corpus, base: &Params, tasks: &[Task]) -> Params {
    let work = |task: &Task| do_task(engine, task, base, corpus, |_| true).expect("a task");
    let mut results: Vec<Trained> = Vec::new();
    for pair in tasks.chunks(2) {
        let threads = 2 / pair.len();
        std::thread::scope(|scope| {
            let running: Vec<_> = pair
                .iter()
                .map(|task| {
                    scope.spawn(move || {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                        pool.install(|| work(task))
                    })
                })
                .collect();
            results.extend(running.into_iter().map(|thread| thread.join().expect("no panic")));
        });
    }
    let updates = tasks.iter().zip(&results);
    let updates: Vec<Update<'_>> =
        updates.map(|(task, result)| Update { payload: &result.payload, tokens: task.tokens() }).collect();
    let update = spec.aggregation.apply(spec.codec, &Layout::of(&spec.model), &updates).expect("sound payloads");
    let mut next = base.clone();
    spec.outer.step(&mut next, None, &update);
    next
}
