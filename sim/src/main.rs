//! `cargo sim SCENARIO`: plays a scenario and says whether what it promises holds.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hydra_sim::{Outcome, Scenario, run};

/// Plays a scenario of a swarm in virtual time, deterministically
#[derive(Debug, Parser)]
#[command(
    name = "hydra-sim",
    version,
    after_help = "\
Examples:
  cargo sim scenarios/baseline.toml
  cargo sim scenarios/cheat-scale.toml --seed 7 --trace

Exit codes: 0 all expectations hold, 1 one does not, 2 the scenario cannot be played."
)]
struct Args {
    /// The scenario file
    scenario: PathBuf,
    /// Play with this seed instead of the scenario's
    #[arg(long)]
    seed: Option<u64>,
    /// Print every event
    #[arg(long)]
    trace: bool,
    /// Play twice, and fail unless both come out the same
    #[arg(long)]
    check_determinism: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match play(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn play(args: &Args) -> anyhow::Result<bool> {
    let scenario = Scenario::read(&args.scenario)?;
    let seed = args.seed.unwrap_or(scenario.seed);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if !args.json {
        println!("{}: {}\nseed {seed}", args.scenario.display(), scenario.about);
    }
    let mut outcome = run(&scenario, seed, threads)?;
    if args.check_determinism {
        let again = run(&scenario, seed, 1)?;
        if again.state_hash != outcome.state_hash {
            outcome.passed = false;
            outcome.failures.push(format!("a second run came out differently: {}", again.state_hash));
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print(args, &outcome);
    }
    Ok(outcome.passed)
}

fn print(args: &Args, outcome: &Outcome) {
    if args.trace {
        outcome.log.iter().for_each(|line| println!("{line}"));
    }
    let losses: Vec<String> = outcome.losses.iter().map(|loss| format!("{loss:.3}")).collect();
    println!("validation loss  {}", losses.join(" "));
    println!("virtual time     {:.1} s, {} events", outcome.virtual_seconds, outcome.events);
    println!("worker   honest   accepted   rejected   pay");
    for (index, worker) in outcome.workers.iter().enumerate() {
        let honest = if worker.honest { "yes" } else { "no" };
        println!("{index:>6}   {honest:<6}   {:>8}   {:>8}   {}", worker.accepted, worker.rejected, worker.pay);
    }
    for failure in &outcome.failures {
        println!("FAILED: {failure}");
    }
    if outcome.passed {
        println!("passed");
    }
    println!("state {}", outcome.state_hash);
    println!("again: cargo sim {} --seed {}", args.scenario.display(), outcome.seed);
}
