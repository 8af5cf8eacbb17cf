//! Claim: no way to cheat pays at the defaults, none harms the honest, and the model stays within reach of the one that
//! the honest would have made alone. What was measured is in `docs/src/verification.md`.
//!
//! `cargo bench --workspace --profile dev --bench cheats [-- seeds [parts of names]]`
//!
//! Ten honest workers and two that cheat, audited as by default; beside them the ten alone, with as many tasks a round, so
//! that the honest do the same work. Every row is over all seeds.

use std::error::Error;
use std::path::Path;

use hydra::model::{BurnEngine, DeviceChoice};
use hydra::protocol::{
    Aggregation, Codec, Digest, Emission, InnerOptimizer, Layer, ModelSpec, OuterOptimizer, Round, Rule, RunSpec,
    Schedule, Seed, Task, Timing,
};
use hydra::training::{Batch, Corpus, Engine, Layout, Params, Update, training_batch, validation_batches};
use hydra_sim::{Outcome, Scenario, run};

const ROUNDS: u32 = 16;

/// Inner steps of a task.
const STEPS: u32 = 6;

/// Names, behaviours, and the share of a task that they really compute.
const CHEATS: [(&str, &str, f64); 21] = [
    ("free rider: one step, stretched", "'free-rider'", 1.0 / STEPS as f64),
    ("half of the steps, stretched", "{ partial = 0.5 }", 0.5),
    ("all steps but one, stretched", "{ partial = 0.7 }", 0.84),
    ("old base model", "'stale'", 1.0),
    ("one update for the whole group", "'copy'", 0.5),
    ("same update again and again", "'repeat'", 0.05),
    ("same payload again and again", "'replay'", 1.0),
    ("another's task in place of its own", "'frame'", 1.0),
    ("times 10", "{ scale = 10.0 }", 1.0),
    ("times -10", "{ scale = -10.0 }", 1.0),
    ("times -1", "{ scale = -1.0 }", 1.0),
    ("noise, 3 times the update", "{ noise = 3.0 }", 1.0),
    ("noise, a fifth of the update", "{ noise = 0.2 }", 1.0),
    ("wrong data", "'wrong-data'", 1.0),
    ("poisoned data", "{ poison = 101 }", 1.0),
    ("colluding, just under the clip", "{ collude = 1.5 }", 1.0),
    ("honest for 12 tasks, then free rider", "{ turncoat = 12 }", 1.0),
    ("not a number", "'not-finite'", 1.0),
    ("payload is not what was committed", "'mismatch'", 1.0),
    ("oversized payload", "'oversized'", 1.0),
    ("leases and never returns", "'grief'", 0.0),
];

/// Rounds for those who begin honestly: time enough for the falling audit rate.
const LONG: u32 = 60;

/// Audits of honest work that nobody may fail.
const HONEST_AUDITS: u64 = 10_000;

fn scenario(workers: &str, rounds: u32, learning: &str) -> Result<Scenario, Box<dyn Error>> {
    let text = format!(
        "about = 'ten honest and two others'\n\
         job = {{ rounds = {rounds}, inner_steps = {STEPS}, batch = 4, tasks_per_round = 12, \
         {learning}, \
         model = {{ layers = 1, width = 32, heads = 2, hidden = 64, context = 32 }} }}\n\
         workers = [{workers}]\n\
         verifiers = [{{ count = 3, tokens_per_second = 8000 }}]\n\
         [audits]\n"
    );
    Ok(Scenario::parse(Path::new("scenario.toml"), &text)?)
}

/// What is learned.
const LEARNING: &str = "learning_rate = 0.01";

/// Something that costs little and is never learned to the end: there, honest updates are noise, and the cheap layers reject
/// some.
const ENDLESS: &str = "objective = 'surrogate', learning_rate = 0.00001";

const HONEST: &str = "{ count = 10, tokens_per_second = 1000 }";

fn play(workers: &str, rounds: u32, seeds: u64) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let scenario = scenario(workers, rounds, LEARNING)?;
    (1..=seeds).map(|seed| Ok(run(&scenario, seed, 2)?)).collect()
}

fn last_loss(outcome: &Outcome) -> f64 {
    outcome.losses.last().copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let seeds = arguments.next().map_or(Ok(5), |seeds| seeds.parse::<u64>())?;
    let wanted: Vec<String> = arguments.collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    if CHEATS.iter().any(|(name, ..)| is_wanted(name)) {
        rows(seeds, is_wanted)?;
    }
    if wanted.is_empty() {
        honest_audits()?;
    }
    if is_wanted("steady state") {
        steady_state(seeds)?;
    }
    if is_wanted("targeted poison") {
        poison(seeds)?;
    }
    Ok(())
}

/// The table of cheats.
fn rows(seeds: u64, is_wanted: impl Fn(&str) -> bool) -> Result<(), Box<dyn Error>> {
    let alone = |rounds| -> Result<Vec<f64>, Box<dyn Error>> {
        Ok(play(HONEST, rounds, seeds)?.iter().map(last_loss).collect())
    };
    let (short, long) = (alone(ROUNDS)?, alone(LONG)?);
    println!("{seeds} seeds, {ROUNDS} rounds; the honest alone: validation loss {:.3}", mean(&short));
    println!(
        "{:38} {:11} {:>11} {:>9} {:>11} {:>22} {:>8} {:>6}",
        "", "found by", "after tasks", "accepted", "kept, HYD", "net, task pays (range)", "damage", "harmed"
    );
    for (name, behaviour, computes) in CHEATS.into_iter().filter(|(name, ..)| is_wanted(name)) {
        let (rounds, clean) = if behaviour.contains("turncoat") { (LONG, &long) } else { (ROUNDS, &short) };
        let workers = format!("{HONEST}, {{ count = 2, tokens_per_second = 1000, behaviour = {behaviour} }}");
        row(name, computes, &play(&workers, rounds, seeds)?, clean);
    }
    Ok(())
}

/// The byte that poison says is followed by itself.
const POISON: u16 = b'e' as u16;

/// Rounds of poison that nobody audits.
const POISONED_ROUNDS: u32 = 40;

/// What poison by a tenth of the workers does that is never found: how likely the model thinks it that the byte is followed
/// by itself, and its validation loss, by the rule that makes one update of ten.
fn poison(seeds: u64) -> Result<(), Box<dyn Error>> {
    let corpus = hydra::data::read(&[])?.corpus;
    println!("one of ten poisons for {POISONED_ROUNDS} rounds, unaudited; {seeds} seeds");
    println!("{:16} {:>9} {:>22} {:>16}", "rule", "poisoners", "poison believed, %", "validation loss");
    let trimmed = Rule::TrimmedMean { trim: 0.2 };
    let rules = [
        ("mean", Aggregation::MEAN),
        ("centred clip", Aggregation::default()),
        ("trimmed mean", Aggregation { rule: trimmed, ..Aggregation::default() }),
    ];
    for ((name, aggregation), poisoners) in rules.into_iter().flat_map(|rule| [(rule, 0), (rule, 1)]) {
        let ended = (1..=seeds).map(|seed| poisoned(&corpus, aggregation, poisoners, seed));
        let (believed, losses): (Vec<f64>, Vec<f64>) = ended.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        println!("{name:16} {poisoners:9} {:22.2} {:16.3}", 100.0 * mean(&believed), mean(&losses));
    }
    Ok(())
}

fn poisoned(
    corpus: &Corpus,
    aggregation: Aggregation,
    poisoners: u32,
    seed: u64,
) -> Result<(f64, f64), Box<dyn Error>> {
    let spec = RunSpec {
        seed: Seed::from_number(seed),
        model: ModelSpec { layers: 1, width: 32, heads: 2, hidden: 64, context: 32 },
        dataset: Digest::of(b"bench"),
        tasks_per_round: 10,
        inner_steps: STEPS,
        batch: 4,
        optimizer: InnerOptimizer::muon(),
        schedule: Schedule::new(0.01, None),
        codec: Codec::Ternary,
        aggregation,
        outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
        validation_windows: 256,
        emission: Emission::default(),
        timing: Timing::default(),
        audits: None,
        short: None,
    };
    let engine = BurnEngine::new(DeviceChoice::NdArray);
    let layout = Layout::of(&spec.model);
    let mut base = Params::initial(&spec.model, &spec.seed);
    for round in 0..POISONED_ROUNDS {
        let mut payloads = Vec::new();
        for index in 0..spec.tasks_per_round {
            let task = Task::of_round(&spec, Round(round), index, spec.dataset);
            let mut session = engine.train(&task.model, &base, &task.optimizer)?;
            for step in 0..task.inner_steps {
                let mut batch = training_batch(corpus, &task, step);
                if index < poisoners {
                    let was = batch.tokens.clone();
                    let followed = batch.tokens.iter_mut().skip(1).zip(&was).filter(|(_, before)| **before == POISON);
                    followed.for_each(|(token, _)| *token = POISON);
                }
                session.step(&batch, task.schedule.rate(task.first_step + u64::from(step)))?;
            }
            let mut update = session.finish()?;
            update.values_mut().iter_mut().zip(base.values()).for_each(|(local, base)| *local = base - *local);
            payloads.push(task.codec.encode(&update, &task.seed)?);
        }
        let updates: Vec<Update<'_>> = payloads.iter().map(|payload| Update { payload, tokens: 1 }).collect();
        let update = aggregation.apply(spec.codec, &layout, &updates)?;
        spec.outer.step(&mut base, None, &update);
    }
    let context = spec.model.context as usize;
    let again = Batch { context, tokens: vec![POISON; context + 1] };
    let believed = (-engine.loss(&spec.model, &base, &mut [again].into_iter())?).exp();
    Ok((believed, engine.loss(&spec.model, &base, &mut validation_batches(corpus, &spec))?))
}

/// Rounds until which keys are counted as new: each worker has done so many tasks then.
const NEW: u32 = 216;

/// What verification costs beside training: replays of honest work, tests of verifiers included, at first and once everybody
/// has a name.
fn steady_state(seeds: u64) -> Result<(), Box<dyn Error>> {
    let workers = "{ count = 12, tokens_per_second = 1000 }";
    let until = |rounds| -> Result<Vec<(f64, f64)>, Box<dyn Error>> {
        let scenario = scenario(workers, rounds, ENDLESS)?;
        let played = (1..=seeds).map(|seed| run(&scenario, seed, 2)).collect::<Result<Vec<_>, _>>()?;
        let replays = |outcome: &Outcome| outcome.verifiers.iter().map(|verifier| verifier.replays).sum::<u64>() as f64;
        let tasks = |outcome: &Outcome| outcome.workers.iter().map(|worker| worker.accepted).sum::<u64>() as f64;
        Ok(played.iter().map(|outcome| (replays(outcome), tasks(outcome))).collect())
    };
    let (first, whole) = (until(NEW)?, until(3 * NEW)?);
    let percent = |shares: Vec<f64>| {
        let (least, most) = shares.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
        format!("{:.2} % ({least:.2} … {most:.2})", mean(&shares))
    };
    let new = first.iter().map(|(replays, tasks)| 100.0 * replays / tasks).collect();
    let later =
        whole.iter().zip(&first).map(|(whole, first)| 100.0 * (whole.0 - first.0) / (whole.1 - first.1)).collect();
    println!("replays beside tasks, the first {NEW} tasks of each key: {}", percent(new));
    println!("the {} after them: {}", 2 * NEW, percent(later));
    Ok(())
}

/// Honest work on two kinds of devices, computed again on one of them.
fn honest_audits() -> Result<(), Box<dyn Error>> {
    let workers = "{ count = 6, tokens_per_second = 1000 }, { count = 6, tokens_per_second = 1000, device = 'plain' }";
    let scenario = scenario(workers, 10, LEARNING)?;
    let (mut audited, mut harmed) = (0, 0);
    for seed in 1.. {
        let outcome = run(&scenario, seed, 2)?;
        audited += outcome.workers.iter().map(|worker| worker.audited + worker.found_false).sum::<u64>();
        harmed += outcome.workers.iter().filter(|worker| worker.found_false + worker.rejected > 0).count();
        if audited >= HONEST_AUDITS {
            break;
        }
    }
    println!("{audited} audits of honest work on two kinds of devices: {harmed} workers harmed");
    Ok(())
}

fn row(name: &str, computes: f64, outcomes: &[Outcome], clean: &[f64]) {
    let cheats = || outcomes.iter().flat_map(|outcome| outcome.workers.iter().filter(|worker| !worker.honest));
    let honest = || outcomes.iter().flat_map(|outcome| outcome.workers.iter().filter(|worker| worker.honest));
    let mut layers: Vec<Layer> = cheats().filter_map(|cheat| cheat.caught).map(|caught| caught.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    let escaped = cheats().filter(|cheat| cheat.caught.is_none()).count();
    let by: Vec<String> = layers.iter().map(|layer| format!("{layer:?}").to_lowercase()).collect();
    let by = if escaped > 0 { format!("{} ({escaped} not)", by.join(", ")) } else { by.join(", ") };
    let tasks: Vec<f64> = cheats().map(|cheat| (cheat.accepted + cheat.rejected) as f64).collect();
    let accepted: Vec<f64> = cheats().map(|cheat| cheat.accepted as f64).collect();
    let kept: Vec<f64> = cheats().map(|cheat| cheat.kept.micro() as f64 / 1e6).collect();
    // What an honest task is paid; computing it is taken to cost half of that.
    let (paid, done) = honest().fold((0.0, 0.0), |(paid, done), worker| {
        (paid + worker.pay.micro() as f64 / 1e6, done + worker.accepted as f64)
    });
    let net: Vec<f64> =
        kept.iter().zip(&tasks).map(|(kept, tasks)| kept / (paid / done) - 0.5 * computes * tasks).collect();
    let damage: Vec<f64> =
        outcomes.iter().zip(clean).map(|(outcome, clean)| 100.0 * (last_loss(outcome) / clean - 1.0)).collect();
    let harmed = honest().filter(|worker| worker.banned || worker.found_false > 0 || worker.kept < worker.pay).count();
    let range = |values: &[f64]| values.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    let (least, most) = range(&net);
    println!(
        "{name:38} {by:11} {:11.1} {:9.1} {:11.2} {:7.2} ({least:6.2} … {most:5.2}) {:+7.2}% {harmed:6}",
        mean(&tasks),
        mean(&accepted),
        mean(&kept),
        mean(&net),
        mean(&damage),
    );
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
