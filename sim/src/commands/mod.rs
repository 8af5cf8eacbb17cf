//! What the command does, one file a kind.

mod files;
mod play;
mod sweep;

use std::process::Command as Process;

use hydra::protocol::Digest;

pub(crate) use files::{diff, list, new, replay, shrink_run};
pub(crate) use play::play;
pub(crate) use sweep::sweep;

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The code that this command was built of, where it still is.
fn commit() -> String {
    let git = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude=*"];
    let said = Process::new("git").args(git).output().ok().filter(|output| output.status.success());
    said.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(8).collect()
}
