//! `hydra top` against a coordinator: what it prints is what the API says, and a terminal is given back as it was.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]
#![cfg(unix)]

#[path = "common/asking.rs"]
mod asking;
mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use asking::request;
use common::Hydra;
use serde_json::Value;

struct Watched {
    hydra: Hydra,
    address: SocketAddr,
    children: Vec<Child>,
}

impl Watched {
    /// A run of two rounds, and a coordinator that would go on with it.
    fn new() -> Self {
        let hydra = Hydra::new();
        hydra.up_json(&["--rounds", "2", "--workers", "1"]);
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let coordinator = hydra.spawn(&["coordinator", "--listen", &address.to_string()]);
        common::wait_for(|| TcpStream::connect(address).is_ok());
        Self { hydra, address, children: vec![coordinator] }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn top(&self, arguments: &[&str]) -> String {
        self.hydra.ok(&[&["top", "--coordinator", &self.url()], arguments].concat())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn one_look_is_what_the_api_says() {
    let mut watched = Watched::new();
    let seen: Value = serde_json::from_str(&watched.top(&["--once", "--json"])).unwrap();
    let api = |path: &str| request(watched.address, "GET", path, None, "").1;
    let status = api("/hydra/v1/status");
    for name in ["run", "round", "tokens", "model", "loss", "tasks", "parameters", "workers", "opened"] {
        assert_eq!(seen["status"][name], status[name], "{name}");
    }
    assert_eq!(seen["rounds"], api("/hydra/v1/rounds")["rounds"]);
    assert_eq!(seen["workers"], api("/hydra/v1/workers")["workers"]);
    assert_eq!(seen["ledger"]["supply"], api("/hydra/v1/ledger")["supply"]);
    assert_eq!((seen["rounds"].as_array().unwrap().len(), &seen["worker"]), (3, &Value::Null));

    // As people read it: without control characters, since nobody sees it.
    for arguments in [&["--once"][..], &[]] {
        let frame = watched.top(arguments);
        assert!(frame.contains("hydra top") && frame.contains("workers: 1") && frame.contains("tokens/s"), "{frame}");
        assert!(!frame.contains('\u{1b}') && frame.lines().count() > 10, "{frame}");
        let worker = seen["workers"][0]["key"].as_str().unwrap();
        assert!(frame.contains(&worker[..8]), "{frame}");
    }

    // With a worker on this machine, which is told what it does.
    let folder = watched.hydra.folder().join("worker");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_hydra"));
    worker.args(["worker", "--coordinator", &watched.url(), "--state-dir"]).arg(&folder);
    watched.children.push(worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let here = || {
        let mut top = Command::new(env!("CARGO_BIN_EXE_hydra"));
        top.args(["top", "--once", "--json", "--coordinator", &watched.url(), "--state-dir"]).arg(&folder);
        let seen: Value = serde_json::from_slice(&top.output().unwrap().stdout).unwrap();
        seen["worker"].clone()
    };
    common::wait_for(|| here()["coordinator"] == watched.url().as_str());
}

#[test]
fn where_nobody_answers_it_says_so_and_fails() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = Hydra::new().fails(&["top", "--once", "--coordinator", &format!("http://{free}")], 1);
    assert!(said.contains("cannot reach http://127.0.0.1"), "{said}");
}

#[test]
fn a_terminal_is_drawn_on_and_given_back() {
    let watched = Watched::new();
    let top = format!("stty rows 24 cols 80; exec {} top --coordinator {}", env!("CARGO_BIN_EXE_hydra"), watched.url());
    // A terminal of its own.
    let script = Command::new("script")
        .args(["-qefc", &top, "/dev/null"])
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut script) = script else {
        println!("left out: there is no `script` to make a terminal with");
        return;
    };
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let (mut shown, mut piece) = (Vec::new(), [0; 4096]);
    let text = |shown: &[u8]| String::from_utf8_lossy(shown).into_owned();
    // Blanks that are there already are not drawn again.
    while !text(&shown).contains("workers:") {
        let length = screen.read(&mut piece).unwrap();
        assert!(length > 0, "{}", text(&shown));
        shown.extend(&piece[..length]);
    }
    keys.write_all(b"q").unwrap();
    screen.read_to_end(&mut shown).unwrap();
    assert!(script.wait().unwrap().success());
    let shown = text(&shown);
    assert!(shown.contains("\u{1b}[?1049h") && shown.ends_with("\u{1b}[?1049l\u{1b}[?25h"), "{shown:?}");
}
