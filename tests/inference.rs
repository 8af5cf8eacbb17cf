//! A coordinator that answers queries, asked with plain requests, with its own commands and with `OpenAI`'s package; and
//! what it costs, to the µHYD.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]
#![cfg(unix)]

#[path = "common/asking.rs"]
mod asking;
mod common;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};

use asking::{code, request, send};
use common::Hydra;
use serde_json::{Value, json};

const OPERATOR: &str = "an operator's key, not guessed";

/// µHYD a token.
const PRICE: i64 = 3;

/// A coordinator whose worker has earned a hundred HYD.
struct Serving {
    hydra: Hydra,
    address: SocketAddr,
    child: Child,
}

impl Serving {
    fn new() -> Self {
        let hydra = Hydra::new();
        let run = ["--rounds", "33", "--workers", "1", "--inner-steps", "1", "--context", "40"];
        hydra.up_json(&run);
        std::fs::write(hydra.folder().join("operator"), OPERATOR).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Self::start(&hydra, address);
        Self { hydra, address, child }
    }

    fn start(hydra: &Hydra, address: SocketAddr) -> Child {
        let operator = hydra.folder().join("operator");
        let child = hydra.spawn(&[
            "coordinator",
            "--listen",
            &address.to_string(),
            "--serve",
            "--price",
            &PRICE.to_string(),
            "--free-tokens",
            "100",
            "--operator-key-file",
            operator.to_str().unwrap(),
            "--prefix-cache",
            "4",
            "--access-log",
            hydra.folder().join("access.log").to_str().unwrap(),
        ]);
        common::wait_for(|| TcpStream::connect(address).is_ok());
        common::wait_for(|| request(address, "GET", "/v1/models", None, "").0 == 200);
        child
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let url = format!("http://{}", self.address);
        self.hydra.ok(&[arguments, &["--coordinator", &url]].concat())
    }

    fn key(&self, arguments: &[&str]) -> String {
        self.ok(&[&["wallet", "key", "create"], arguments].concat()).trim().to_owned()
    }

    /// µHYD of the buyer's wallet: what can be spent, and what is held.
    fn balance(&self) -> [i64; 2] {
        let balance: Value =
            serde_json::from_str(&self.ok(&["wallet", "balance", "--wallet", "buyer", "--json"])).unwrap();
        ["spendable", "held"].map(|what| balance[what].as_str().unwrap().parse().unwrap())
    }

    fn spent(&self) -> i64 {
        let keys: Value =
            serde_json::from_str(&self.ok(&["wallet", "key", "list", "--wallet", "buyer", "--json"])).unwrap();
        keys.as_array().unwrap().iter().map(|key| key["spent"].as_str().unwrap().parse::<i64>().unwrap()).sum()
    }

    fn complete(&self, key: Option<&str>, more: Value) -> (u16, Value) {
        let mut body = json!({ "model": "hydra", "prompt": "line 1", "max_tokens": 20 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request(self.address, "POST", "/v1/completions", key, &body.to_string())
    }

    /// A stream of as many tokens as there are, of which the first has come.
    fn stream(&self, key: &str) -> BufReader<TcpStream> {
        let body =
            json!({ "model": "hydra", "prompt": "x", "max_tokens": 38, "n": 16, "stream": true, "temperature": 2 });
        let mut stream = BufReader::new(send(self.address, "POST", "/v1/completions", Some(key), &body.to_string()));
        let mut line = String::new();
        while !line.starts_with("data:") {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0);
        }
        stream
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn queries_are_answered_and_paid_to_the_micro() {
    let mut serving = Serving::new();
    let buyer = serving.ok(&["wallet", "new", "--wallet", "buyer"]);
    serving.ok(&["wallet", "send", buyer.trim(), "50", "--wallet", "worker-1"]);
    let key = serving.key(&["everyday", "--wallet", "buyer"]);
    let [before, _] = serving.balance();
    let mut costs = 0;
    let mut pay = |answer: (u16, Value)| {
        assert_eq!(answer.0, 200, "{}", answer.1);
        let usage = &answer.1["usage"];
        let cost: i64 = usage["cost"].as_str().unwrap().parse().unwrap();
        assert_eq!(cost, PRICE * usage["total_tokens"].as_i64().unwrap());
        costs += cost;
        answer.1
    };
    let greedy = json!({ "temperature": 0 });
    let first = pay(serving.complete(Some(&key), greedy.clone()));
    assert_eq!((&first["object"], &first["usage"]["prompt_tokens"]), (&json!("text_completion"), &json!(7)));
    assert_eq!(first["choices"], pay(serving.complete(Some(&key), greedy.clone()))["choices"]);
    // What `hydra generate` writes on the same state, without a cache: the first of it.
    let alone = serving.hydra.ok(&["generate", "line 1", "--tokens", "20", "--temperature", "0"]);
    assert_eq!(
        alone.trim_end_matches('\n'),
        format!("line 1{}", first["choices"][0]["text"].as_str().unwrap()).trim_end_matches('\n')
    );

    // What it may cost is told before, held, and what is too much given back.
    let body = json!({ "model": "hydra", "prompt": "line 1", "max_tokens": 20 }).to_string();
    let quote = request(serving.address, "POST", "/hydra/v1/quote", None, &body).1;
    assert_eq!((&quote["completion_tokens"], &quote["most"]), (&json!(20), &json!((27 * PRICE).to_string())));

    // Refusals cost nothing.
    let tight = serving.key(&["tight", "--wallet", "buyer", "--limit", "0.0001"]);
    pay(serving.complete(Some(&tight), greedy.clone()));
    assert_eq!(
        code(&serving.complete(Some(&tight), greedy.clone())),
        (402, "insufficient_quota"),
        "of 100 µHYD 81 are spent"
    );
    serving.ok(&["wallet", "new", "--wallet", "poor"]);
    let poor = serving.key(&["none", "--wallet", "poor"]);
    assert_eq!(code(&serving.complete(Some(&poor), greedy.clone())), (402, "insufficient_quota"));
    let brief = serving.key(&["brief", "--wallet", "buyer", "--expires", "1ms"]);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(code(&serving.complete(Some(&brief), greedy.clone())), (401, "invalid_api_key"));
    let ended = serving.key(&["ended", "--wallet", "buyer"]);
    serving.ok(&["wallet", "key", "revoke", "ended", "--wallet", "buyer"]);
    assert_eq!(code(&serving.complete(Some(&ended), greedy.clone())), (401, "invalid_api_key"));
    assert_eq!(code(&serving.complete(Some(&key), json!({ "max_tokens": 60 }))), (400, "context_length_exceeded"));
    assert_eq!(code(&serving.complete(Some(&key), json!({ "model": "other" }))), (404, "model_not_found"));

    // Without a key as long as the day's allowance lasts; the operator's costs nothing.
    for expected in [(200, ""), (200, ""), (200, ""), (402, "insufficient_quota")] {
        assert_eq!(code(&serving.complete(None, greedy.clone())), expected);
    }
    assert_eq!(serving.complete(Some(OPERATOR), greedy.clone()).1["usage"]["cost"], "0");
    assert_eq!(serving.balance(), [before - costs, 0]);
    assert_eq!(serving.spent(), costs);

    // A client that goes away pays for what was written, and no more is.
    drop(serving.stream(&key));
    common::wait_for(|| serving.balance()[1] == 0 && serving.spent() > costs);
    let left = serving.spent() - costs;
    assert!(left <= PRICE * (2 + 16 * 38), "{left}");
    costs += left;
    assert_eq!(serving.balance(), [before - costs, 0]);

    // What was under way in a crash costs nothing, and is given back.
    let stream = serving.stream(&key);
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    drop(stream);
    serving.child = Serving::start(&serving.hydra, serving.address);
    common::wait_for(|| serving.balance()[1] == 0);
    let since = serving.spent() - costs;
    assert!(since == 0 || since <= PRICE * (2 + 16 * 38), "it was all written before the end came");
    costs += since;
    assert_eq!(serving.balance(), [before - costs, 0]);

    // The command of its own.
    let file = serving.hydra.folder().join("key");
    std::fs::write(&file, &key).unwrap();
    let url = format!("http://{}", serving.address);
    let asked = Command::new(env!("CARGO_BIN_EXE_hydra"))
        .args(["query", "line 1", "--tokens", "20", "--temperature", "0", "--coordinator", &url, "--key-file"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(asked.stdout).unwrap().trim_end_matches('\n'), alone.trim_end_matches('\n'));
    let told = String::from_utf8(asked.stderr).unwrap();
    let cost: i64 = told.split_whitespace().nth_back(1).unwrap().parse().unwrap();
    costs += cost;
    assert_eq!(serving.balance(), [before - costs, 0]);

    // Four fifths of each query go to whoever trained the model, give or take a µHYD each.
    let worker = serving.ok(&["wallet", "balance", "--wallet", "worker-1", "--json"]);
    let worker: i64 = serde_json::from_str::<Value>(&worker).unwrap()["spendable"].as_str().unwrap().parse().unwrap();
    assert!((worker - 50_000_000 - costs * 4 / 5).abs() < 20, "{worker} of {costs}");

    let id = first["id"].as_str().unwrap();
    the_log_has_what_was_paid_and_nothing_that_was_said(&serving, id, &[costs, costs - since]);
    what_there_is_no_room_for_is_turned_away_and_then_all_is_as_before(&serving, &first["choices"]);
    assert_eq!(serving.balance(), [before - costs, 0]);

    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/ask.py");
    let output = Command::new(python).arg(script).args([&url, &key, &poor, OPERATOR]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    costs += String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().unwrap();
    assert_eq!(serving.balance(), [before - costs, 0]);
    assert_eq!(serving.spent(), costs);
}

/// The Python that has `OpenAI`'s package.
fn python() -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/make");
    let found = Command::new(script).arg("--if-made").output().ok().filter(|found| found.status.success());
    if found.is_none() {
        println!("left out: there is no openai package; tests/openai/make makes an environment with one");
    }
    Some(String::from_utf8(found?.stdout).unwrap().trim().to_owned())
}

/// What was under way when the process was killed may have been paid without a line, so there are two sums.
fn the_log_has_what_was_paid_and_nothing_that_was_said(serving: &Serving, id: &str, costs: &[i64]) {
    let log = std::fs::read_to_string(serving.hydra.folder().join("access.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged: i64 = lines.iter().filter_map(|line| line["cost"].as_str()?.parse::<i64>().ok()).sum();
    assert!(costs.contains(&logged), "{logged}, not {costs:?}");
    assert!(!log.contains("line 1") && log.contains("insufficient_quota") && log.contains("\"payer\":\"operator\""));
    assert!(lines.iter().any(|line| line["id"] == id && line["finished"] == "stop"), "{log}");
}

fn what_there_is_no_room_for_is_turned_away_and_then_all_is_as_before(serving: &Serving, greedy: &Value) {
    let crowd = || -> Vec<u16> {
        let ask = || serving.complete(Some(OPERATOR), json!({ "n": 16, "max_tokens": 30, "temperature": 1 })).0;
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..60).map(|_| scope.spawn(ask)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    crowd();
    let before = memory(serving.child.id());
    for _ in 0..4 {
        let told = crowd();
        assert!(told.iter().all(|status| [200, 429].contains(status)), "{told:?}");
        assert!(told.contains(&200) && told.contains(&429), "{told:?}");
    }
    assert_eq!(serving.complete(Some(OPERATOR), json!({ "temperature": 0 })).1["choices"], *greedy);
    let grown = memory(serving.child.id()).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more after four times as many");
}

/// Bytes of memory that a process has.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}
