//! Playing scenarios that nobody wrote.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hydra::runtime::{Stopwatch, entropy};
use hydra_sim::sweep::made_up;
use hydra_sim::{Scenario, Simulation};

use super::{commit, cores};
use crate::Sweep;

/// How long a round may take, virtual: many times as long as one with every trouble that is made up. What cannot go on
/// fails in seconds instead of minutes.
const ROUND: Duration = Duration::from_secs(5000);

/// How many events there may be: about a minute's.
const EVENTS: usize = 500_000;

/// What is wrong with the scenario that this seed makes, played twice.
fn wrong(text: &str, seed: u64) -> anyhow::Result<Vec<String>> {
    let scenario = Scenario::parse(Path::new("made-up.toml"), text)?;
    let simulation = || Simulation::new(&scenario).give_up(ROUND, EVENTS);
    let mut one = simulation().run(seed, cores())?;
    let other = simulation().run(seed, 1)?;
    if one.state_hash != other.state_hash {
        one.failures.push(format!("a second run came out differently: {}", other.state_hash));
    }
    Ok(one.failures)
}

pub(crate) fn sweep(args: &Sweep) -> anyhow::Result<bool> {
    let first = match args.seed {
        Some(seed) => seed,
        None => {
            let mut bytes = [0; 4];
            entropy(&mut bytes)?;
            u32::from_le_bytes(bytes).into()
        }
    };
    println!("seed {first}, commit {}", commit());
    let (watch, limit) = (Stopwatch::start(), Duration::from_secs(args.seconds));
    let (mut played, mut failed) = (0, 0);
    while args.count.map_or(watch.elapsed() < limit, |count| played < count) {
        let seed = first + played;
        let text = made_up(seed);
        // Before it is played: whoever has enough of one that takes too long finds it there.
        let file = args.keep.join(format!("made-up-{seed}.toml"));
        fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
        let failures = wrong(&text, seed).with_context(|| format!("the scenario made up from seed {seed}"))?;
        played += 1;
        if failures.is_empty() {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
            continue;
        }
        failed += 1;
        failures.iter().for_each(|failure| println!("FAILED: {failure}"));
        println!("again: cargo sim {} --seed {seed} --check-determinism", file.display());
    }
    println!("{played} scenarios, each twice, in {:.0} s; {failed} failed", watch.elapsed().as_secs_f64());
    Ok(failed == 0)
}
