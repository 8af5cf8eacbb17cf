//! `cargo sim`: plays scenarios of a swarm and says whether what they promise holds.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use hydra_sim::Scenario;

use commands::{diff, list, new, play, replay, shrink_run, sweep};

const EXAMPLES: &str = "\
Examples:
  Play a story about a swarm:
    cargo sim scenarios/baseline.toml
  Play it with other luck, and print every event:
    cargo sim scenarios/cheat-scale.toml --seed 7 --trace
  Leave a folder with a report:
    cargo sim scenarios/split-network.toml --out runs/split
  Change it, and play it with a hundred seeds, two at a time:
    cargo sim scenarios/baseline.toml --seeds 1..100 --jobs 2 \\
      --set workers.0.count=3
  Play scenarios that nobody wrote, for ten minutes:
    cargo sim sweep --seconds 600
  Begin with one of your own:
    cargo sim new mine.toml";

/// As in `hydra`: examples before options.
const HELP_TEMPLATE: &str = "\
{before-help}{about-with-newline}
{usage-heading} {usage}{after-help}

{all-args}

Exit codes: 0 all expectations hold, 1 one does not, 2 the scenario cannot be played.";

/// Plays a scenario of a swarm in virtual time, deterministically
#[derive(Debug, Parser)]
#[command(
    name = "hydra-sim",
    version,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES,
    help_template = HELP_TEMPLATE
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    play: Play,
}

#[derive(Debug, Args)]
struct Play {
    /// The scenario file
    scenario: Option<PathBuf>,
    /// Play with this seed instead of the scenario's
    #[arg(long)]
    seed: Option<u64>,
    /// Play with each of these seeds, the last not included
    #[arg(long, value_name = "A..B", value_parser = parse_seeds, conflicts_with_all = ["seed", "trace", "out"])]
    seeds: Option<(u64, u64)>,
    /// How many seeds to play at a time
    #[arg(long, requires = "seeds")]
    jobs: Option<usize>,
    /// Change the scenario: a dotted key and a TOML value (again for more)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// End after so many virtual seconds, and demand only what must always hold
    #[arg(long, value_name = "SECONDS")]
    until: Option<u64>,
    /// Print every event
    #[arg(long)]
    trace: bool,
    /// Write events.jsonl, metrics.csv and report.html into this folder, and what it takes to play it again
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Play twice, and fail unless both come out the same
    #[arg(long)]
    check_determinism: bool,
    /// Print one JSON object a run instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scenarios of a folder and what they are about
    #[command(after_help = "Examples:\n  Those that come with Hydra:\n    cargo sim list\n  Your own:\n    cargo sim list mine/", help_template = HELP_TEMPLATE)]
    List {
        /// The folder
        #[arg(default_value = "scenarios")]
        folder: PathBuf,
    },
    /// Write a scenario to begin with
    #[command(after_help = "Examples:\n  A file with every part explained:\n    cargo sim new mine.toml\n  Play it:\n    cargo sim mine.toml", help_template = HELP_TEMPLATE)]
    New {
        /// The file, which must not be there yet
        path: PathBuf,
    },
    /// Play a run of --out again, and fail unless it comes out the same
    #[command(after_help = "Examples:\n  Keep a run:\n    cargo sim scenarios/baseline.toml --out runs/base\n  Is it the same today?:\n    cargo sim replay runs/base", help_template = HELP_TEMPLATE)]
    Replay {
        /// Its folder
        folder: PathBuf,
    },
    /// Make the scenario of a failed run of --out smaller for as long as it fails in the same way
    #[command(after_help = "Examples:\n  Find the least that fails:\n    cargo sim shrink runs/failed\n  In a few minutes:\n    cargo sim shrink runs/failed --plays 20", help_template = HELP_TEMPLATE)]
    Shrink {
        /// Its folder
        folder: PathBuf,
        /// How many scenarios to play at most
        #[arg(long, default_value_t = 100)]
        plays: usize,
    },
    /// Say where two runs of --out part
    #[command(after_help = "Examples:\n  Two seeds of a story:\n    cargo sim diff runs/seed-1 runs/seed-2", help_template = HELP_TEMPLATE)]
    Diff {
        /// The folder of one
        one: PathBuf,
        /// The folder of the other
        other: PathBuf,
    },
    /// Print the JSON Schema of scenario files
    #[command(after_help = "Examples:\n  For an editor that knows schemas:\n    cargo sim schema > scenario.schema.json", help_template = HELP_TEMPLATE)]
    Schema,
    /// Play scenarios that are made up by chance, each twice, and keep those that fail
    #[command(after_help = "Examples:\n  For ten minutes:\n    cargo sim sweep --seconds 600\n  The same sixty as ever, and those that fail into a folder:\n    cargo sim sweep --seed 1 --count 60 --keep runs", help_template = HELP_TEMPLATE)]
    Sweep(Sweep),
}

#[derive(Debug, Args)]
struct Sweep {
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many, instead
    #[arg(long)]
    count: Option<u64>,
    /// The seed of the first, the others follow; by chance, where this is missing
    #[arg(long)]
    seed: Option<u64>,
    /// The folder for those that fail
    #[arg(long, value_name = "DIR", default_value = ".")]
    keep: PathBuf,
}

fn main() -> ExitCode {
    match dispatch(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<bool> {
    match &cli.command {
        None => play(&cli.play),
        Some(Command::List { folder }) => list(folder),
        Some(Command::New { path }) => new(path),
        Some(Command::Replay { folder }) => replay(folder),
        Some(Command::Shrink { folder, plays }) => shrink_run(folder, *plays),
        Some(Command::Diff { one, other }) => diff(one, other),
        Some(Command::Sweep(args)) => sweep(args),
        Some(Command::Schema) => {
            println!("{}", serde_json::to_string_pretty(&Scenario::schema())?);
            Ok(true)
        }
    }
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let ends = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    ends.filter(|(from, to)| from < to).ok_or_else(|| "write A..B, with A below B: 1..100".to_owned())
}
