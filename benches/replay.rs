//! Claim: an honest update and the smallest cheat lie far apart when a task is done again, and committing to the states on
//! the way costs next to nothing.
//!
//! Trains the nano preset on one text with each inner optimiser. At three stages of the run it does one task again: on
//! every kind of device that this build has, and dishonestly. It prints how far each is from the honest update, as encoded
//! by each codec, then for each pair of device kinds the most that honest results differ by, beside the tolerance and the
//! smallest cheat.
//!
//! ```text
//! cargo bench --profile dev --bench replay -- path/to/text
//! ```

#![allow(clippy::expect_used, reason = "a bench stops where it fails")]
#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use hydra::data;
use hydra::model::{BurnEngine, DeviceChoice, Preset};
use hydra::protocol::{
    Aggregation, Codec, DeviceKind, Digest, Digester, Emission, InnerOptimizer, OuterOptimizer, Round, RunSpec,
    Schedule, Seed, Task, Timing,
};
use hydra::training::{CODECS, Corpus, Difference, Engine, Layout, Params, Update, do_task, training_batch};
use hydra::verifier::Tolerance;

/// Rounds after which the task is done again.
const STAGES: [u32; 3] = [0, 4, 12];
const STEPS: u32 = 30;

/// What was measured of one codec: of honest results, by the kinds of the two devices, and of the smallest cheat.
struct Measured {
    codec: Codec,
    honest: Vec<(DeviceKind, DeviceKind, f64)>,
    cheat: f64,
}

fn main() {
    // cargo passes `--bench`.
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--")).map(PathBuf::from);
    let corpus = data::read(path.as_slice()).expect("the text can be read").corpus;
    println!(
        "{:<8} {:<8} {:>5}  {:<24} {:>10} {:>10} {:>10}",
        "inner", "codec", "round", "done again", "codes", "scales", "exact"
    );
    let mut measured: Vec<Measured> =
        CODECS.into_iter().map(|codec| Measured { codec, honest: vec![], cheat: f64::INFINITY }).collect();
    for (name, optimizer, rate) in [("muon", InnerOptimizer::muon(), 3e-3), ("adamw", InnerOptimizer::adamw(), 1e-3)] {
        measure(name, optimizer, rate, &corpus, &mut measured);
    }
    println!("\n{:<8} {:<32} {:>10} {:>10} {:>10} {:>8}", "codec", "devices", "honest", "tolerance", "cheat", "margin");
    for Measured { codec, honest, cheat } in &measured {
        let mut pairs: Vec<(DeviceKind, DeviceKind)> = honest.iter().map(|(a, b, _)| (*a, *b)).collect();
        pairs.sort_unstable();
        pairs.dedup();
        for (a, b) in pairs {
            let of_pair = honest.iter().filter(|(c, d, _)| (*c, *d) == (a, b));
            let most = of_pair.map(|(.., most)| *most).fold(0.0, f64::max);
            let tolerance = Tolerance::between(a, b, *codec).of(*codec);
            let devices = format!("{a:?}, {b:?}");
            let margin = cheat / tolerance;
            println!(
                "{:<8} {devices:<32} {most:>10.1e} {tolerance:>10.1e} {cheat:>10.1e} {margin:>7.0}×",
                format!("{codec:?}").to_lowercase()
            );
        }
    }
    digests();
}

/// What it takes to digest the states on the way.
fn digests() {
    let recipe = Preset::Nano.recipe();
    let base = Params::initial(&recipe.model, &Seed::from_number(1));
    let times = (0..20).map(|_| {
        let start = Instant::now();
        let mut digester = Digester::in_domain("hydra bench");
        digester.numbers(base.values());
        std::hint::black_box(digester.finish());
        start.elapsed().as_secs_f64()
    });
    let best = times.fold(f64::INFINITY, f64::min);
    let (rate, each) = (4e-9 * base.values().len() as f64 / best, 1e3 * best);
    println!("\na digest of the weights: {each:.2} ms, {rate:.1} GB/s");
}

fn measure(name: &str, optimizer: InnerOptimizer, rate: f32, corpus: &Corpus, measured: &mut [Measured]) {
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
        short: None,
    };
    // The first computes the run; the processor with plain operations is another kind.
    let mut engines: Vec<BurnEngine> = DeviceChoice::present().into_iter().map(BurnEngine::new).collect();
    engines.insert(1, BurnEngine::plain(DeviceChoice::NdArray));
    let ours = engines[0].clone();
    let layout = Layout::of(&spec.model);
    let mut base = Params::initial(&spec.model, &spec.seed);
    for round in 0..=STAGES[2] {
        let task = Task::of_round(&spec, Round(round), 0, spec.dataset);
        if STAGES.contains(&round) {
            let other = Task::of_round(&spec, Round(round), 1, spec.dataset);
            let honest: Vec<(DeviceKind, Params)> =
                engines.iter().map(|engine| (engine.kind(), update(engine, &task, &base, corpus, |_| true))).collect();
            let again = update(&ours, &task, &base, corpus, |_| true);
            let cheats = [
                ("without last step", update(&ours, &task, &base, corpus, |step| step != STEPS - 1)),
                ("without a step", update(&ours, &task, &base, corpus, |step| step != STEPS / 2)),
                ("on other data", update(&ours, &other, &base, corpus, |_| true)),
            ];
            for Measured { codec, honest: pairs, cheat } in &mut *measured {
                let codec = *codec;
                let encode = |update: &Params| codec.encode(update, &task.seed).expect("finite");
                let difference =
                    |a: &[u8], b: &Params| codec.difference(&layout, a, &encode(b)).expect("sound payloads");
                let show = |what: &str, d: Difference| {
                    println!(
                        "{name:<8} {:<8} {round:>5}  {what:<24} {:>10.1e} {:>10.1e} {:>10.1e}",
                        format!("{codec:?}").to_lowercase(),
                        d.codes,
                        d.scales,
                        d.exact
                    );
                };
                let coded = !matches!(codec, Codec::Fp32 | Codec::Bf16);
                let size = |d: Difference| if coded { d.codes } else { d.exact };
                for (place, (kind, first)) in honest.iter().enumerate() {
                    let first = encode(first);
                    let others = honest[place + 1..].iter().map(|(other, update)| (*other, update));
                    for (other, update) in (place == 0).then_some((*kind, &again)).into_iter().chain(others) {
                        let d = difference(&first, update);
                        show(&format!("{kind:?}, {other:?}"), d);
                        pairs.push((*kind, other, size(d)));
                    }
                }
                let first = encode(&honest[0].1);
                for (what, again) in &cheats {
                    let d = difference(&first, again);
                    show(what, d);
                    *cheat = cheat.min(size(d));
                }
            }
        }
        let payload = do_task(&ours, &task, &base, corpus, |_| true).expect("a task").payload;
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
