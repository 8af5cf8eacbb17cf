//! What a run leaves behind: a folder with all that it takes to play it again, to look at it and to compare it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hydra::protocol::Digest;
use serde::{Deserialize, Serialize};

use crate::report::report;
use crate::{Outcome, Scenario, ScenarioError};

const SCENARIO: &str = "scenario.toml";
const EVENTS: &str = "events.jsonl";
const RUN: &str = "run.json";

/// How a run was played, and what came out: the file `run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Played {
    /// What the scenario is called.
    pub name: String,
    /// The folder that its data is relative to.
    pub folder: PathBuf,
    /// The seed.
    pub seed: u64,
    /// When it was told to end, virtual seconds.
    pub until: Option<u64>,
    /// The command that plays it again, where it was played.
    pub again: String,
    /// The code that played it, where that is known.
    pub commit: String,
    /// The digest of `scenario.toml`.
    pub scenario: Digest,
    /// The digest of `events.jsonl`.
    pub events: Digest,
    /// The digest of events, model and ledger.
    pub state_hash: Digest,
    /// What did not hold.
    pub failures: Vec<String>,
}

/// A run that can be played again.
#[derive(Debug)]
pub struct RunFolder {
    /// How it was played.
    pub played: Played,
    /// The scenario's text.
    pub text: String,
    /// The events, one JSON object a line.
    pub events: String,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read or written.
    #[error("cannot read or write {}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file is not what was written.
    #[error(
        "{} was cut off or edited after the run: {problem}. Play the scenario again with --out to make a new folder",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How it is known.
        problem: String,
    },
    /// The scenario in it cannot be played.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
}

#[derive(Serialize)]
struct EventLine<'a> {
    ms: u64,
    event: &'a str,
}

/// The events of an outcome, one JSON object a line: `ms` is virtual milliseconds since the beginning.
#[must_use]
pub fn events(outcome: &Outcome) -> String {
    let mut lines = String::new();
    for line in &outcome.log {
        let (ms, event) = line.split_once(' ').unwrap_or(("0", line));
        let line = EventLine { ms: ms.parse().unwrap_or(0), event };
        // A number and a text always have a JSON form.
        lines.push_str(&serde_json::to_string(&line).unwrap_or_default());
        lines.push('\n');
    }
    lines
}

/// The rounds of an outcome as a table: one line a round, counts from the beginning on.
#[must_use]
pub fn metrics(outcome: &Outcome) -> String {
    let mut table = String::from("round,closed_seconds,accepted,tokens,loss,workers_up,rejected,convicted,strikes\n");
    for row in &outcome.rounds {
        let loss = row.loss.map(|loss| loss.to_string()).unwrap_or_default();
        let [rejected, convicted] = [row.rejected, row.convicted];
        let (round, accepted, tokens, up, strikes) = (row.round, row.accepted, row.tokens, row.workers_up, row.strikes);
        // Writing to a string never fails.
        let _ = writeln!(
            table,
            "{round},{:.3},{accepted},{tokens},{loss},{up},{rejected},{convicted},{strikes}",
            row.closed_seconds,
        );
    }
    table
}

/// Writes everything that there is to say about a run into `folder`, which is made.
pub fn write(
    folder: &Path,
    mut played: Played,
    scenario: (&Scenario, &str),
    outcome: &Outcome,
) -> Result<(), FolderError> {
    let events = events(outcome);
    let (scenario, text) = scenario;
    played.scenario = Digest::of(text.as_bytes());
    played.events = Digest::of(events.as_bytes());
    played.state_hash = outcome.state_hash;
    played.failures.clone_from(&outcome.failures);
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| FolderError::Io { path, error })
    };
    fs::create_dir_all(folder).map_err(|error| FolderError::Io { path: folder.to_owned(), error })?;
    put(SCENARIO, text)?;
    put(EVENTS, &events)?;
    put("metrics.csv", &metrics(outcome))?;
    put("report.html", &report(&played, scenario, outcome))?;
    // The last: a folder that has it is whole.
    put(RUN, &format!("{}\n", serde_json::to_string_pretty(&played).unwrap_or_default()))
}

impl RunFolder {
    /// Reads a folder that [`write()`] wrote, if it is whole.
    pub fn read(folder: &Path) -> Result<Self, FolderError> {
        let get = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|error| FolderError::Io { path, error })
        };
        let damaged =
            |name: &str, problem: &str| FolderError::Damaged { path: folder.join(name), problem: problem.into() };
        let played: Played = serde_json::from_str(&get(RUN)?).map_err(|error| damaged(RUN, &error.to_string()))?;
        let (text, events) = (get(SCENARIO)?, get(EVENTS)?);
        if Digest::of(text.as_bytes()) != played.scenario {
            return Err(damaged(SCENARIO, "its digest is not the one in run.json"));
        }
        if Digest::of(events.as_bytes()) != played.events {
            return Err(damaged(EVENTS, "its digest is not the one in run.json"));
        }
        Ok(Self { played, text, events })
    }

    /// The scenario.
    pub fn scenario(&self) -> Result<Scenario, FolderError> {
        Ok(Scenario::parse(&self.played.folder.join(&self.played.name), &self.text)?)
    }

    /// How long it took, virtual time.
    #[must_use]
    pub fn took(&self) -> Duration {
        let last = self.events.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Duration::from_millis(last.and_then(|line| line["ms"].as_u64()).unwrap_or_default())
    }

    /// When it was told to end.
    #[must_use]
    pub fn until(&self) -> Option<Duration> {
        self.played.until.map(Duration::from_secs)
    }
}

/// Where two lists of events part: the number of the line, counted from 1, and what each has there.
#[must_use]
pub fn first_difference(one: &str, other: &str) -> Option<(usize, String, String)> {
    let (mut ones, mut others) = (one.lines(), other.lines());
    (1..).find_map(|number| match (ones.next(), others.next()) {
        (None, None) => Some(None),
        (a, b) if a == b => None,
        (a, b) => {
            let text = |line: Option<&str>| line.unwrap_or("(nothing any more)").to_owned();
            Some(Some((number, text(a), text(b))))
        }
    })?
}
