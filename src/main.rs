//! The `hydra` command: parse, run, report.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    hydra::cli::run(&arguments)
}
