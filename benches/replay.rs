//! Claim: an honest update and the smallest cheat lie far apart when a task is done again.
//!
//! Trains the nano preset on one text with each inner optimiser. At three stages of the run it does one task again: by
//! the plain engine, which sums in another order (as another device would), and dishonestly. It prints how far each is
//! from the honest update, as encoded by the task's codec.
//!
//! ```text
//! cargo bench --profile dev --bench replay -- path/to/text
//! ```

#![allow(clippy::expect_used, reason = "a bench stops where it fails")]

use std::path::PathBuf;
use std::sync::Arc;

use hydra::data;
use hydra::model::{BurnEngine, DeviceChoice, Preset};
use hydra::protocol::{
    Aggregation, Codec, Digest, Emission, InnerOptimizer, OuterOptimizer, Round, RunSpec, Schedule, Seed, Task, Timing,
};
use hydra::training::{Corpus, Engine, Layout, Params, Update, do_task, training_batch};

/// Rounds after which the task is done again.
const STAGES: [u32; 3] = [0, 4, 12];
const STEPS: u32 = 30;

fn main() {
    // cargo passes `--bench`.
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).map(PathBuf::from);
    let corpus = data::read(path.as_slice()).expect("the text can be read").corpus;
    println!(
        "{:<8} {:<8} {:>5}  {:<18} {:>10} {:>10} {:>10}",
        "inner", "codec", "round", "done again", "codes", "scales", "exact"
    );
    for (name, optimizer, rate) in [("muon", InnerOptimizer::muon(), 3e-3), ("adamw", InnerOptimizer::adamw(), 1e-3)] {
        measure(name, optimizer, rate, &corpus);
    }
}

fn measure(name: &str, optimizer: InnerOptimizer, rate: f32, corpus: &Corpus) {
    let recipe = Preset::Nano.recipe();
    let spec = RunSpec {
        seed: Seed::from_number(1),
        model: recipe.model,
        dataset: Digest::of(b"bench"),
        tasks_per_round: 1,
        inner_steps: STEPS,
        batch: recipe.batch,
        optimizer,
        schedule: Schedule::new(rate, Some(600)),
        codec: Codec::Ternary,
        aggregation: Aggregation::default(),
        outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
        validation_windows: 64,
        emission: Emission::default(),
        timing: Timing::default(),
        audits: None,
    };
    let (fused, plain) = (BurnEngine::new(DeviceChoice::NdArray), BurnEngine::plain(DeviceChoice::NdArray));
    let layout = Layout::of(&spec.model);
    let mut base = Params::initial(&spec.model, &spec.seed);
    for round in 0..=STAGES[2] {
        let task = Task::of_round(&spec, Round(round), 0, spec.dataset);
        let honest = update(&fused, &task, &base, corpus, |_| true);
        if STAGES.contains(&round) {
            let other = Task::of_round(&spec, Round(round), 1, spec.dataset);
            let again = [
                ("another engine", update(&plain, &task, &base, corpus, |_| true)),
                ("without last step", update(&fused, &task, &base, corpus, |step| step != STEPS - 1)),
                ("without a step", update(&fused, &task, &base, corpus, |step| step != STEPS / 2)),
                ("on other data", update(&fused, &other, &base, corpus, |_| true)),
            ];
            for codec in [Codec::Ternary, Codec::Int4, Codec::Fp32] {
                let encode = |update: &Params| codec.encode(update, &task.seed).expect("finite");
                let first = encode(&honest);
                for (what, again) in &again {
                    let d = codec.difference(&layout, &first, &encode(again)).expect("sound payloads");
                    println!(
                        "{name:<8} {:<8} {round:>5}  {what:<18} {:>10.1e} {:>10.1e} {:>10.1e}",
                        format!("{codec:?}").to_lowercase(),
                        d.codes,
                        d.scales,
                        d.exact
                    );
                }
            }
        }
        let payload = do_task(&fused, &task, &base, corpus, |_| true).expect("a task").payload;
        let updates = [Update { payload: &payload, tokens: task.tokens() }];
        let mean = spec.aggregation.apply(spec.codec, &layout, &updates).expect("a sound payload");
        spec.outer.step(&mut base, None, &mean);
    }
}

/// The pseudo-gradient of a task, of which only the steps that `keep` wants are done.
fn update(engine: &BurnEngine, task: &Task, base: &Params, corpus: &Corpus, keep: impl Fn(u32) -> bool) -> Params {
    let mut session = engine.train(&task.model, base, &task.optimizer).expect("a session");
    for step in (0..task.inner_steps).filter(|step| keep(*step)) {
        let rate = task.schedule.rate(task.first_step + u64::from(step));
        session.step(&training_batch(corpus, task, step), rate).expect("a step");
    }
    let mut update = session.finish().expect("weights");
    update.values_mut().iter_mut().zip(base.values()).for_each(|(local, base)| *local = base - *local);
    Params::new(Arc::clone(base.layout()), update.values().to_vec()).expect("the same layout")
}
