//! Scenarios that nobody wrote: each kind of worker, line and trouble is in one or is not, by chance.

use std::fmt::Write;

use hydra::protocol::{Seed, below};
use rand::rngs::ChaCha8Rng;

use crate::chance::unit;

/// Ways to cheat that audits find, and those that need none to be found.
const CHEATS: [&str; 17] = [
    "{ scale = 10.0 }",
    "{ scale = -10.0 }",
    "{ noise = 0.2 }",
    "{ partial = 0.5 }",
    "'free-rider'",
    "'wrong-data'",
    "'stale'",
    "'repeat'",
    "'not-finite'",
    "{ turncoat = 3 }",
    "'grief'",
    "'mismatch'",
    "'replay'",
    "'frame'",
    "'forge'",
    "{ poison = 101 }",
    "'oversized'",
];

/// Ways to cheat together.
const CONSPIRACIES: [&str; 2] = ["'copy'", "{ collude = 1.5 }"];

/// What may go wrong, with whom, and for how many seconds at most.
const TROUBLES: [(&str, &str, u64); 21] = [
    ("'crash'", "coordinator", 20),
    ("'crash'", "ledger", 20),
    ("'crash'", "workers", 40),
    ("'crash'", "verifiers", 40),
    ("'crash-writing'", "coordinator", 10),
    ("'pause'", "coordinator", 30),
    ("'pause'", "workers", 60),
    ("'cut'", "coordinator", 30),
    ("'cut'", "workers", 60),
    ("'deaf'", "coordinator", 30),
    ("'mute'", "coordinator", 30),
    ("'mute'", "workers", 60),
    ("'deaf'", "workers", 60),
    ("'disk-full'", "coordinator", 30),
    ("'disk-full'", "ledger", 30),
    ("{ slow-disk = 300 }", "coordinator", 30),
    ("{ slow-disk = 900 }", "ledger", 30),
    ("'corrupt-blob'", "verifiers", 20),
    ("'corrupt-blob'", "workers", 20),
    ("{ clock-skew = -60 }", "workers", 100),
    ("{ clock-skew = 60 }", "workers", 100),
];

/// When the last trouble begins, virtual seconds.
const CALM: u64 = 150;

/// When the last query is asked: an audit that nobody can finish takes a day, and a day of queries takes minutes to play.
const LAST_QUERY: u64 = 600;

/// A scenario's text, made up from `seed`. All that always holds must hold in it, its rounds must be done, and where nobody
/// cheats nobody loses anything.
#[must_use]
pub fn made_up(seed: u64) -> String {
    let mut rng = Seed::from_number(seed).derive("made up", 0).rng();
    let mut text = String::new();
    write(&mut text, &mut rng).map_or_else(|_| String::new(), |()| text)
}

fn from(rng: &mut ChaCha8Rng, least: u64, most: u64) -> u64 {
    least + below(rng, most - least + 1)
}

fn one_of<'a>(rng: &mut ChaCha8Rng, choices: &[&'a str]) -> &'a str {
    choices[below(rng, choices.len() as u64) as usize]
}

fn write(text: &mut String, rng: &mut ChaCha8Rng) -> std::fmt::Result {
    let audits = unit(rng) < 0.7;
    let peers = audits && unit(rng) < 0.35;
    let queries = audits && unit(rng) < 0.4;
    let honest = from(rng, 5, 10);
    let cheats = if unit(rng) < 0.6 { from(rng, 1, honest / 4) } else { 0 };
    let others = if unit(rng) < 0.5 { from(rng, 1, 4) } else { 0 };
    writeln!(text, "about = 'made up'\n[job]\nrounds = {}\ninner_steps = 4\nbatch = 4", from(rng, 3, 6))?;
    let tasks = from(rng, honest, honest + cheats + others);
    writeln!(text, "tasks_per_round = {tasks}")?;
    if unit(rng) < 0.3 {
        writeln!(text, "short_tasks = {}\ntarget_seconds = {}", from(rng, 1, tasks), from(rng, 1, 15))?;
    }
    writeln!(text, "lease_seconds = {}\nround_seconds = {}", from(rng, 15, 60), from(rng, 60, 300))?;
    let codec = one_of(rng, &["fp32", "bf16", "int8", "int4", "ternary"]);
    let store = if unit(rng) < 0.25 { "sqlite" } else { "memory" };
    writeln!(text, "codec = '{codec}'\nstore = '{store}'\nobjective = 'surrogate'\nlearning_rate = 0.02")?;
    writeln!(text, "model = {{ layers = 1, width = 4, heads = 1, hidden = 4, context = 8 }}")?;
    workers(text, rng, [honest, others, cheats])?;
    if audits {
        let lies = one_of(rng, &["honest", "accept-all", "reject-all", "silent"]);
        writeln!(text, "[[verifiers]]\ncount = 3\ntokens_per_second = 2000")?;
        writeln!(text, "[[verifiers]]\ncount = 1\ntokens_per_second = 2000\nbehaviour = '{lies}'\n[audits]")?;
        writeln!(text, "by = '{}'", if peers { "peers" } else { "verifiers" })?;
    }
    if queries {
        let every = from(rng, 1, 10);
        writeln!(text, "floor = 1000000\n[economy]\nvesting_rewards = 1\n[[queries]]\ngroup = 'steady'")?;
        writeln!(text, "every_seconds = {every}\nprice_micro = 10000\ntokens = [1, 900]\ngone = 0.2")?;
        writeln!(text, "until_seconds = {LAST_QUERY}")?;
    }
    let (shortest, spread) = (from(rng, 1, 100), from(rng, 0, 2000));
    let share = |rng: &mut ChaCha8Rng, most: f64| if unit(rng) < 0.5 { most * unit(rng) } else { 0.0 };
    let (loss, duplicates) = (share(rng, 0.1), share(rng, 0.1));
    writeln!(text, "[network]\nlatency_ms = [{shortest}, {}]", shortest + spread)?;
    writeln!(text, "loss = {loss:.3}\nduplicates = {duplicates:.3}")?;
    troubles(text, rng, audits)?;
    // Where much of a small swarm cheats, or is cut off while cheats go on, the middle of all may be a cheat's.
    let unharmed = cheats == 0;
    writeln!(text, "[expect]\nhonest_lose_nothing = {unharmed}\nwithin_seconds = 200000")
}

fn workers(text: &mut String, rng: &mut ChaCha8Rng, [honest, others, cheats]: [u64; 3]) -> std::fmt::Result {
    writeln!(text, "[[workers]]\nname = 'steady'\ncount = {honest}\ntokens_per_second = [10, {}]", from(rng, 10, 60))?;
    if others > 0 {
        let (up, down) = (from(rng, 20, 200), from(rng, 5, 60));
        let skew = from(rng, 0, 60);
        let hours = |seconds: u64| seconds as f64 / 3600.0;
        let comes = match from(rng, 0, 3) {
            0 => format!(
                "{{ diurnal = {{ from_hour = {:.4}, hours = {:.4}, spread_hours = 0.02 }} }}",
                hours(down),
                hours(up)
            ),
            1 => format!("{{ between = [[0, {up}], [{}, {}]] }}", up + down, 2 * up + down),
            _ => format!("{{ churn = {{ up_seconds = {up}, down_seconds = {down} }} }}"),
        };
        writeln!(text, "[[workers]]\nname = 'restless'\ncount = {others}\ntokens_per_second = [5, 40]")?;
        writeln!(text, "availability = {comes}\nclock_skew_seconds = {skew}\nupload_kbps = {}", from(rng, 5, 100))?;
    }
    let conspire = cheats > 1 && unit(rng) < 0.25;
    let groups = if conspire { 1 } else { cheats };
    for _ in 0..groups {
        let behaviour = one_of(rng, if conspire { &CONSPIRACIES } else { &CHEATS });
        let count = cheats / groups;
        writeln!(text, "[[workers]]\ncount = {count}\ntokens_per_second = 30\nbehaviour = {behaviour}")?;
    }
    Ok(())
}

fn troubles(text: &mut String, rng: &mut ChaCha8Rng, audits: bool) -> std::fmt::Result {
    for (what, who, longest) in TROUBLES {
        if unit(rng) > 0.25 || (who == "verifiers" && !audits) {
            continue;
        }
        let (every, lasts) = (from(rng, 10, 80), from(rng, 1, longest));
        let when = if unit(rng) < 0.25 { "each_round_within_seconds" } else { "every_seconds" };
        writeln!(text, "[[faults]]\nwhat = {what}\nwho = '{who}'\n{when} = {every}\nuntil_seconds = {CALM}")?;
        writeln!(text, "for_seconds = {lasts}")?;
        if matches!(who, "workers" | "verifiers") {
            writeln!(text, "share = {:.2}", 0.1 + 0.6 * unit(rng))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scenario;
    use std::path::Path;

    #[test]
    fn everything_that_may_happen_does() {
        let all: String = (0..400).map(made_up).collect();
        let troubles = TROUBLES.map(|(what, who, _)| format!("what = {what}\nwho = '{who}'"));
        let cheats = CHEATS.iter().chain(&CONSPIRACIES).map(|cheat| format!("behaviour = {cheat}\n"));
        let others = [
            "by = 'peers'",
            "by = 'verifiers'",
            "short_tasks",
            "each_round_within_seconds",
            "churn",
            "diurnal",
            "between",
            "store = 'sqlite'",
            "[[queries]]",
            "behaviour = 'silent'",
        ];
        for part in others.map(str::to_owned).into_iter().chain(troubles).chain(cheats) {
            assert!(all.contains(&part), "{part}");
        }
    }

    #[test]
    fn whatever_is_made_up_can_be_played_and_no_two_are_alike() {
        let texts: std::collections::BTreeSet<String> = (0..200).map(made_up).collect();
        assert_eq!(texts.len(), 200);
        for text in texts {
            let read = Scenario::parse(Path::new("made-up.toml"), &text);
            assert!(read.is_ok(), "{}\n{text}", read.unwrap_err());
        }
    }
}
