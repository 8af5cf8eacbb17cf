//! The hydra command in a folder of its own.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its own part, and stops where it fails"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A folder, and the command run on it with a small job.
pub struct Hydra {
    folder: tempfile::TempDir,
}

impl Hydra {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.txt"), text()).unwrap();
        Self { folder }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// The command with `arguments`; for `up`, with a small job where they do not say otherwise.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args(arguments).arg("--state-dir").arg(self.state());
        if arguments[0] == "up" {
            let text = self.folder().join("text.txt");
            let small = [("--workers", "2"), ("--inner-steps", "3"), ("--batch", "2"), ("--context", "16")]
                .map(|(a, b)| [a, b]);
            let defaults = small.into_iter().chain([["--data", text.to_str().unwrap()]]);
            for [name, value] in defaults.filter(|[name, _]| !arguments.contains(name)) {
                command.args([name, value]);
            }
        }
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed: its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with this exit code: what it said.
    pub fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains("error: ") && !error.contains("panicked"), "{error}");
        error
    }

    /// Runs a command that cannot make any file larger than this, which must fail: what it said.
    #[cfg(unix)]
    pub fn fails_with_full_disk(&self, arguments: &[&str], kib: u32) -> String {
        let command = self.command(arguments);
        // Ignored, the signal becomes an error of `write`, as on a disk without space.
        let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", 2 * kib);
        let mut limited = Command::new("sh");
        limited.args(["-c", &limit, "sh"]).arg(command.get_program()).args(command.get_args());
        let output = limited.stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{kib} KiB: {error}");
        error
    }

    /// Runs `up --json`, whose standard output must be one JSON object.
    pub fn up_json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[&["up", "--json"], arguments].concat())).unwrap()
    }

    /// Starts a command and does not wait for it.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// Something to learn.
pub fn text() -> String {
    (0..400)
        .fold(String::new(), |text, line| text + &format!("line {line}: to be or not to be, that is the question\n"))
}

/// Waits until something is so; gives up after half a minute.
pub fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not happen within half a minute");
}
