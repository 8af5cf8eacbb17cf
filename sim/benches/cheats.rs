//! Claim: no way to cheat pays at the defaults, none harms the honest, and the model stays within reach of the one that
//! the honest would have made alone. What was measured is in `docs/src/verification.md`.
//!
//! `cargo bench --workspace --profile dev --bench cheats [-- seeds [parts of names]]`
//!
//! Ten honest workers and two that cheat, audited as by default; beside them the ten alone, with as many tasks a round, so
//! that the honest do the same work. Every row is over all seeds.

use std::error::Error;

use hydra::protocol::Layer;
use hydra_sim::{Outcome, Scenario, run};

const ROUNDS: u32 = 16;

/// Inner steps of a task.
const STEPS: u32 = 6;

/// Names, behaviours, and the share of a task that they really compute.
const CHEATS: [(&str, &str, f64); 20] = [
    ("free rider: one step, stretched", "'free-rider'", 1.0 / STEPS as f64),
    ("half of the steps, stretched", "{ partial = 0.5 }", 0.5),
    ("all steps but one, stretched", "{ partial = 0.7 }", 0.84),
    ("old base model", "'stale'", 1.0),
    ("one update for the whole group", "'copy'", 0.5),
    ("same update again and again", "'repeat'", 0.05),
    ("same payload again and again", "'replay'", 1.0),
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

fn scenario(workers: &str, rounds: u32) -> Result<Scenario, Box<dyn Error>> {
    let text = format!(
        "about = 'ten honest and two others'\n\
         job = {{ rounds = {rounds}, inner_steps = {STEPS}, batch = 4, learning_rate = 0.01, tasks_per_round = 12, \
         model = {{ layers = 1, width = 32, heads = 2, hidden = 64, context = 32 }} }}\n\
         workers = [{workers}]\n\
         verifiers = [{{ count = 3, tokens_per_second = 8000 }}]\n\
         [audits]\n"
    );
    let folder = std::env::temp_dir().join(format!("hydra-cheats-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("scenario.toml");
    std::fs::write(&path, text)?;
    Ok(Scenario::read(&path)?)
}

const HONEST: &str = "{ count = 10, tokens_per_second = 1000 }";

fn play(workers: &str, rounds: u32, seeds: u64) -> Result<Vec<Outcome>, Box<dyn Error>> {
    let scenario = scenario(workers, rounds)?;
    (1..=seeds).map(|seed| Ok(run(&scenario, seed, 2)?)).collect()
}

fn last_loss(outcome: &Outcome) -> f64 {
    outcome.losses.last().copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let seeds = arguments.next().map_or(Ok(5), |seeds| seeds.parse::<u64>())?;
    let wanted: Vec<String> = arguments.collect();
    let alone = |rounds| -> Result<Vec<f64>, Box<dyn Error>> {
        Ok(play(HONEST, rounds, seeds)?.iter().map(last_loss).collect())
    };
    let (short, long) = (alone(ROUNDS)?, alone(LONG)?);
    println!("{seeds} seeds, {ROUNDS} rounds; the honest alone: validation loss {:.3}", mean(&short));
    println!(
        "{:38} {:11} {:>11} {:>9} {:>11} {:>22} {:>8} {:>6}",
        "", "found by", "after tasks", "accepted", "kept, HYD", "net, task pays (range)", "damage", "harmed"
    );
    for (name, behaviour, computes) in CHEATS {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let (rounds, clean) = if behaviour.contains("turncoat") { (LONG, &long) } else { (ROUNDS, &short) };
        let workers = format!("{HONEST}, {{ count = 2, tokens_per_second = 1000, behaviour = {behaviour} }}");
        row(name, computes, &play(&workers, rounds, seeds)?, clean);
    }
    if wanted.is_empty() {
        honest_audits()?;
    }
    Ok(())
}

/// Honest work on two kinds of devices, computed again on one of them.
fn honest_audits() -> Result<(), Box<dyn Error>> {
    let workers = "{ count = 6, tokens_per_second = 1000 }, { count = 6, tokens_per_second = 1000, device = 'plain' }";
    let scenario = scenario(workers, 10)?;
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
