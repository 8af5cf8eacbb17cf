//! The `hydra` command: parse, run, report.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    hydra::cli::run(hydra::cli::Args::parse())
}
