//! Makes a scenario that fails smaller, for as long as it fails in the same way.

use std::path::Path;

use toml::{Table, Value};

use crate::{Outcome, Scenario};

/// What is left of a failing scenario.
#[derive(Debug)]
pub struct Shrunk {
    /// Its text.
    pub text: String,
    /// What does not hold in it.
    pub failures: Vec<String>,
    /// How many scenarios were played to get there.
    pub plays: usize,
}

/// Plays ever smaller versions of the scenario `text` with `play`, at most so many, and keeps those that fail as `failures`
/// do. `play` gives nothing for a scenario that cannot be played.
pub fn shrink(
    path: &Path,
    text: &str,
    failures: &[String],
    most_plays: usize,
    mut play: impl FnMut(&Scenario) -> Option<Outcome>,
) -> Result<Shrunk, toml::de::Error> {
    let mut best: Table = toml::from_str(text)?;
    let wanted: Vec<String> = failures.iter().map(|failure| kind(failure)).collect();
    let mut shrunk = Shrunk { text: text.to_owned(), failures: failures.to_vec(), plays: 0 };
    'smaller: loop {
        for candidate in smaller(&best) {
            if shrunk.plays >= most_plays {
                return Ok(shrunk);
            }
            let Ok(text) = toml::to_string(&candidate) else { continue };
            let Ok(scenario) = Scenario::parse(path, &text) else { continue };
            shrunk.plays += 1;
            if let Some(outcome) = play(&scenario)
                && !outcome.failures.is_empty()
                && outcome.failures.iter().all(|failure| wanted.contains(&kind(failure)))
            {
                best = candidate;
                (shrunk.text, shrunk.failures) = (text, outcome.failures);
                continue 'smaller;
            }
        }
        return Ok(shrunk);
    }
}

/// A failure without its numbers, and without names of workers, tasks and blobs: what kind it is.
fn kind(failure: &str) -> String {
    let is_name = |word: &str| word.len() >= 8 && word.bytes().all(|letter| letter.is_ascii_hexdigit());
    let words = failure.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !is_name(word));
    let plain = |word: &str| word.chars().filter(|letter| !letter.is_ascii_digit()).collect::<String>();
    words.map(plain).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Everything that is a step smaller, the largest steps first.
fn smaller(scenario: &Table) -> Vec<Table> {
    let mut found = Vec::new();
    let mut with = |change: &dyn Fn(&mut Table) -> Option<()>| {
        let mut candidate = scenario.clone();
        if change(&mut candidate).is_some() && candidate != *scenario {
            found.push(candidate);
        }
    };
    let list = |name: &str| scenario.get(name).and_then(Value::as_array).map_or(0, Vec::len);
    for name in ["faults", "workers", "queries", "verifiers"] {
        for place in 0..list(name) {
            with(&|table| table.get_mut(name)?.as_array_mut().map(|items| drop(items.remove(place))));
        }
    }
    for name in ["network", "audits", "economy"] {
        with(&|table| table.remove(name).map(drop));
    }
    for key in ["store", "short_tasks"] {
        with(&|table| table.get_mut("job")?.as_table_mut()?.remove(key).map(drop));
    }
    for place in 0..list("workers") {
        with(&|table| halve(table.get_mut("workers")?.as_array_mut()?.get_mut(place)?.get_mut("count")?));
    }
    for key in ["rounds", "tasks_per_round", "inner_steps", "batch"] {
        with(&|table| halve(table.get_mut("job")?.get_mut(key)?));
    }
    for place in 0..list("workers") {
        for key in ["availability", "upload_kbps", "download_kbps", "clock_skew_seconds", "device"] {
            with(&|table| {
                let group = table.get_mut("workers")?.as_array_mut()?.get_mut(place)?.as_table_mut()?;
                group.remove(key).map(drop)
            });
        }
    }
    found
}

fn halve(value: &mut Value) -> Option<()> {
    let number = value.as_integer()?;
    *value = Value::Integer((number / 2).max(1));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_make_another_kind_of_failure() {
        assert_eq!(kind("3 of 4 rounds were done"), kind("1 of 2 rounds were done"));
        assert_ne!(kind("3 of 4 rounds were done"), kind("cheats keep 3 µHYD"));
    }

    #[test]
    fn the_same_law_about_another_worker_is_no_other_failure() {
        let paid = |worker, task| kind(&format!("always: worker {worker} was paid twice for task {task}"));
        let task = "2c67aad62c67aad62c67aad62c67aad6";
        assert_eq!(paid("c0ffee42", task), paid("0badf00d", "11111111111111111111111111111111"));
        assert_ne!(paid("c0ffee42", task), kind("always: worker c0ffee42 was told of a lease"));
    }

    #[test]
    fn every_candidate_is_another_scenario() {
        let text = "about = 'x'\n[job]\nrounds = 4\nstore = 'sqlite'\nshort_tasks = 1\n[[workers]]\ncount = 6\n[[workers]]\ncount = 1\n\
             [[faults]]\nwhat = 'cut'\n[[queries]]\ngroup = 'x'\n[economy]\nvesting_rewards = 1";
        let scenario: Table = toml::from_str(text).unwrap();
        let candidates = smaller(&scenario);
        // Without the fault, either group, the queries, the economy, the database or the short tasks; half of one group, and
        // half the rounds.
        assert_eq!(candidates.len(), 9);
        assert!(candidates.iter().all(|candidate| *candidate != scenario));
    }
}
