//! Scenario files, and folders that runs left.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use hydra_sim::folder::{self, RunFolder};
use hydra_sim::shrink::shrink;
use hydra_sim::{Outcome, Scenario, Simulation};

use super::{commit, cores, short};

pub(crate) fn list(folder: &Path) -> anyhow::Result<bool> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut whole = true;
    for path in paths {
        match Scenario::read(&path) {
            Ok(scenario) => println!("{:<36} {}", path.display(), scenario.about),
            Err(error) => {
                whole = false;
                println!("{:<36} cannot be played: {error}", path.display());
            }
        }
    }
    Ok(whole)
}

const TEMPLATE: &str = include_str!("../template.toml");

pub(crate) fn new(path: &Path) -> anyhow::Result<bool> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(TEMPLATE.as_bytes())?;
    println!("{}: change it, then `cargo sim {}`", path.display(), path.display());
    Ok(true)
}

fn play_folder(folder: &RunFolder) -> anyhow::Result<Outcome> {
    let scenario = folder.scenario()?;
    Ok(Simulation::new(&scenario).until(folder.until()).run(folder.played.seed, cores())?)
}

pub(crate) fn replay(path: &Path) -> anyhow::Result<bool> {
    let folder = RunFolder::read(path)?;
    let (played, now) = (&folder.played, commit());
    println!("seed {}, commit {now}, scenario {}", played.seed, short(&played.scenario));
    let outcome = play_folder(&folder)?;
    let same = outcome.state_hash == played.state_hash;
    if same {
        println!("the same again");
    } else {
        println!("FAILED: it comes out differently; it was played at commit {}", played.commit);
        if let Some((line, was, is)) = folder::first_difference(&folder.events, &folder::events(&outcome)) {
            println!("from event {line} on:\n  was {was}\n  is  {is}");
        }
    }
    println!("state {}", outcome.state_hash);
    Ok(same)
}

pub(crate) fn shrink_run(path: &Path, plays: usize) -> anyhow::Result<bool> {
    let folder = RunFolder::read(path)?;
    let played = &folder.played;
    if played.failures.is_empty() {
        bail!("the run in {} did not fail: there is nothing to keep while it shrinks", path.display());
    }
    let shrunk = shrink(&played.folder.join(&played.name), &folder.text, &played.failures, plays, |scenario| {
        // Smaller, it should not take longer; nothing is gained by waiting for what never ends.
        let patience = (folder.took() * 3).max(Duration::from_mins(1));
        Simulation::new(scenario).patience(patience).until(folder.until()).run(played.seed, cores()).ok()
    })?;
    let to = path.join("shrunk.toml");
    fs::write(&to, &shrunk.text)?;
    println!(
        "{} of {} lines left after {} plays",
        shrunk.text.lines().count(),
        folder.text.lines().count(),
        shrunk.plays
    );
    shrunk.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    let until = played.until.map(|until| format!(" --until {until}")).unwrap_or_default();
    println!("again: cargo sim {} --seed {}{until}", to.display(), played.seed);
    Ok(true)
}

pub(crate) fn diff(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let (a, b) = (RunFolder::read(one)?, RunFolder::read(other)?);
    let row = |what: &str, one: &str, other: &str| {
        if one == other {
            println!("{what:<9} {one}");
        } else {
            println!("{what:<9} {one}  |  {other}");
        }
    };
    row("scenario", &short(&a.played.scenario), &short(&b.played.scenario));
    row("seed", &a.played.seed.to_string(), &b.played.seed.to_string());
    row("commit", &a.played.commit, &b.played.commit);
    row("state", &short(&a.played.state_hash), &short(&b.played.state_hash));
    row("failures", &a.played.failures.join("; "), &b.played.failures.join("; "));
    let last = |path: &Path| -> anyhow::Result<String> {
        Ok(fs::read_to_string(path.join("metrics.csv"))?.lines().last().unwrap_or_default().to_owned())
    };
    row("last row", &last(one)?, &last(other)?);
    match folder::first_difference(&a.events, &b.events) {
        None => println!("the same {} events", a.events.lines().count()),
        Some((line, one, other)) => println!("they part at event {line}:\n  {one}\n  {other}"),
    }
    Ok(a.played.state_hash == b.played.state_hash)
}
