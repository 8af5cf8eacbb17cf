//! A server of queries in a process of its own: it follows a run elsewhere, is paid by its ledger to the µHYD, and
//! outlives the coordinator's and its own death.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test stops where it fails")]
#![cfg(unix)]

#[path = "common/asking.rs"]
mod asking;
mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use asking::{code, request, send};
use common::Hydra;
use serde_json::{Value, json};

const OPERATOR: &str = "an operator's key, not guessed";

/// µHYD a token.
const PRICE: i64 = 3;

/// A worker that has earned a hundred HYD, and processes that people ask.
struct Net {
    hydra: Hydra,
    coordinator: SocketAddr,
    /// Where wallets are, in the coordinator's process or in one of its own.
    ledger: SocketAddr,
    /// Where queries are answered.
    server: SocketAddr,
    children: Vec<Child>,
}

impl Net {
    fn new() -> Self {
        let hydra = Hydra::new();
        hydra.up_json(&["--rounds", "33", "--workers", "1", "--inner-steps", "1", "--context", "40"]);
        std::fs::write(hydra.folder().join("operator"), OPERATOR).unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (coordinator, server) = (free(), free());
        Self { coordinator, ledger: coordinator, server, hydra, children: vec![] }
    }

    /// A command on a state directory of its own, with its errors in a file.
    fn start(&self, state: &str, arguments: &[&str]) -> Child {
        let folder = self.hydra.folder();
        let log = std::fs::OpenOptions::new().append(true).create(true).open(folder.join(format!("{state}.log")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args(arguments).arg("--state-dir").arg(folder.join(state));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap()).spawn().unwrap()
    }

    fn log(&self, state: &str) -> String {
        std::fs::read_to_string(self.hydra.folder().join(format!("{state}.log"))).unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}", self.coordinator)
    }

    fn coordinate(&mut self) {
        let show = ["serve", "--coordinator", &self.url(), "--show-key", "--state-dir"];
        let state = self.hydra.folder().join("serve");
        let key = Command::new(env!("CARGO_BIN_EXE_hydra")).args(show).arg(state).output().unwrap().stdout;
        let key = String::from_utf8(key).unwrap();
        let listen = self.coordinator.to_string();
        self.children.push(self.start("state", &["coordinator", "--listen", &listen, "--server-key", key.trim()]));
        common::wait_for(|| TcpStream::connect(self.coordinator).is_ok());
    }

    fn serve(&mut self) {
        let operator = self.hydra.folder().join("operator");
        let (url, listen, price) = (self.url(), self.server.to_string(), PRICE.to_string());
        let child = self.start(
            "serve",
            &[
                "serve",
                "--coordinator",
                &url,
                "--listen",
                &listen,
                "--price",
                &price,
                "--free-tokens",
                "100",
                "--operator-key-file",
                operator.to_str().unwrap(),
            ],
        );
        self.children.push(child);
        common::wait_for(|| TcpStream::connect(self.server).is_ok() && get(self.server, "/readyz") == 200);
    }

    fn kill(&mut self, child: usize) {
        self.children[child].kill().unwrap();
        self.children[child].wait().unwrap();
    }

    /// A command of a wallet, which asks the coordinator or the server of queries.
    fn wallet(&self, at: SocketAddr, arguments: &[&str]) -> String {
        self.hydra.ok(&[&["wallet"], arguments, &["--coordinator", &format!("http://{at}")]].concat())
    }

    /// µHYD of the buyer's wallet: what can be spent, and what is held.
    fn balance(&self) -> [i64; 2] {
        let balance = self.wallet(self.ledger, &["balance", "--wallet", "buyer", "--json"]);
        let balance: Value = serde_json::from_str(&balance).unwrap();
        ["spendable", "held"].map(|what| balance[what].as_str().unwrap().parse().unwrap())
    }

    /// The buyer, with 50 HYD and an API key: the key.
    fn buyer(&self) -> String {
        let buyer = self.wallet(self.ledger, &["new", "--wallet", "buyer"]);
        self.wallet(self.ledger, &["send", buyer.trim(), "50", "--wallet", "worker-1"]);
        self.wallet(self.server, &["key", "create", "everyday", "--wallet", "buyer"]).trim().to_owned()
    }

    /// µHYD of what queries cost that went to wallets.
    fn shared(&self) -> i64 {
        let entries = self.hydra.ok(&["ledger", "export", "--coordinator", &format!("http://{}", self.ledger)]);
        let entries = entries.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let to_wallets = entries.filter(|entry| {
            entry["purpose"].get("share").is_some() && entry["credit"].as_str().unwrap().starts_with("wallet:")
        });
        to_wallets.map(|entry| entry["amount"].as_str().unwrap().parse::<i64>().unwrap()).sum()
    }

    fn spent(&self) -> i64 {
        let keys = self.wallet(self.server, &["key", "list", "--wallet", "buyer", "--json"]);
        serde_json::from_str::<Value>(&keys).unwrap()[0]["spent"].as_str().unwrap().parse().unwrap()
    }

    fn complete(&self, key: Option<&str>) -> (u16, Value) {
        let body = json!({ "model": "hydra", "prompt": "line 1", "max_tokens": 20, "temperature": 0 });
        request(self.server, "POST", "/v1/completions", key, &body.to_string())
    }

    /// The digest of the model that answers.
    fn model(&self) -> Value {
        request(self.server, "GET", "/v1/models/hydra", None, "").1["digest"].clone()
    }

    /// A stream of as many tokens as there are, of which the first has come.
    fn stream(&self, key: &str) -> BufReader<TcpStream> {
        let body =
            json!({ "model": "hydra", "prompt": "x", "max_tokens": 38, "n": 16, "stream": true, "temperature": 2 });
        let mut stream = BufReader::new(send(self.server, "POST", "/v1/completions", Some(key), &body.to_string()));
        let mut line = String::new();
        while !line.starts_with("data:") {
            line.clear();
            assert!(stream.read_line(&mut line).unwrap() > 0);
        }
        stream
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn get(address: SocketAddr, path: &str) -> u16 {
    request(address, "GET", path, None, "").0
}

/// The head of an answer to a query.
fn head(address: SocketAddr, key: &str, body: &str) -> String {
    let mut answer = String::new();
    send(address, "POST", "/v1/completions", Some(key), body).read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().0.to_lowercase()
}

#[test]
fn a_server_of_its_own_follows_the_run_and_is_paid_to_the_micro() {
    let mut net = Net::new();
    net.coordinate();
    net.serve();
    let key = net.buyer();
    let [before, _] = net.balance();
    let mut costs = 0;
    let cost = |answer: &(u16, Value)| {
        assert_eq!(answer.0, 200, "{}", answer.1);
        let cost: i64 = answer.1["usage"]["cost"].as_str().unwrap().parse().unwrap();
        assert_eq!(cost, PRICE * answer.1["usage"]["total_tokens"].as_i64().unwrap());
        cost
    };
    // What the run's own newest model writes.
    let first = net.complete(Some(&key));
    costs += cost(&first);
    let first = first.1["choices"][0]["text"].as_str().unwrap();
    let alone = net.hydra.ok(&["generate", "line 1", "--tokens", "20", "--temperature", "0"]);
    assert_eq!(alone.trim_end_matches('\n'), format!("line 1{first}").trim_end_matches('\n'));
    assert_eq!(net.balance(), [before - costs, 0]);
    assert_eq!(net.complete(Some(OPERATOR)).1["usage"]["cost"], "0");

    // A worker trains, and the models that come of it answer, while no query is dropped. All of them are paid.
    let old = net.model();
    let coordinator = net.url();
    let worker = net.start("worker", &["worker", "--coordinator", &coordinator]);
    net.children.push(worker);
    let mut asked = 0;
    while net.model() == old || asked < 50 {
        costs += cost(&net.complete(Some(&key)));
        asked += 1;
        assert!(asked < 5_000, "no newer model answers");
    }
    net.kill(2);
    assert_eq!(net.balance(), [before - costs, 0]);
    // Four fifths are for those who trained, but for rounding: less than a µHYD a query, either way.
    let (shared, queries) = (net.shared(), asked + 1);
    assert!((shared - costs * 4 / 5).abs() <= queries, "{shared} of {costs} for {queries} queries");

    // Its death in the middle of an answer costs nothing, and gives back what was held.
    let stream = net.stream(&key);
    net.kill(1);
    drop(stream);
    net.serve();
    common::wait_for(|| net.balance()[1] == 0);
    costs = net.spent();
    assert_eq!(net.balance(), [before - costs, 0]);

    // While the coordinator is away the last model answers, also after a start; what has to be paid waits.
    let newest = || request(net.coordinator, "GET", "/hydra/v1/status", None, "").1["model"].clone();
    common::wait_for(|| net.model() == newest());
    let newest = newest();
    net.kill(0);
    net.kill(net.children.len() - 1);
    net.serve();
    assert_eq!(net.model(), newest);
    assert_eq!(net.complete(Some(OPERATOR)).0, 200);
    assert_eq!(net.complete(None).0, 200);
    assert_eq!(code(&net.complete(Some(&key))), (503, "ledger_away"));
    let body = json!({ "model": "hydra", "prompt": "line 1" }).to_string();
    let refusal = head(net.server, &key, &body);
    assert!(refusal.contains("retry-after: ") && refusal.contains("x-request-id: cmpl-"), "{refusal}");
    net.coordinate();
    let mut answer = (0, Value::Null);
    for _ in 0..300 {
        answer = net.complete(Some(&key));
        if answer.0 == 200 {
            break;
        }
        assert_eq!(code(&answer), (503, "ledger_away"));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    costs += cost(&answer);
    common::wait_for(|| net.balance() == [before - costs, 0]);
    assert_eq!(net.spent(), costs);
    let log = net.log("serve");
    assert!(log.contains("the coordinator answers again") || log.contains("trying again"), "{log}");
}

#[test]
fn a_coordinator_that_answers_queries_is_paid_by_a_ledger_elsewhere_once_that_knows_it() {
    let mut net = Net::new();
    // The books of the worker that has earned something are a process of their own, and another run is paid by them.
    net.ledger = net.server;
    net.server = net.coordinator;
    let run = net.hydra.folder().join("run");
    let keys = Command::new(env!("CARGO_BIN_EXE_hydra"))
        .args(["coordinator", "--show-keys", "--state-dir"])
        .arg(run)
        .output()
        .unwrap();
    let keys = String::from_utf8(keys.stdout).unwrap();
    let keys: Vec<&str> = keys.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let (listen, url) = (net.ledger.to_string(), format!("http://{}", net.ledger));
    let books = ["ledger", "serve", "--listen", &listen, "--payer", keys[0], "--verifier", keys[1]];
    let child = net.start("state", &books);
    net.children.push(child);
    common::wait_for(|| TcpStream::connect(net.ledger).is_ok());
    let (listen, price) = (net.coordinator.to_string(), PRICE.to_string());
    let text = net.hydra.folder().join("text.txt");
    let small = ["--inner-steps", "1", "--context", "40", "--data", text.to_str().unwrap()];
    let answers = ["coordinator", "--listen", &listen, "--ledger", &url, "--serve", "--price", &price];
    let child = net.start("run", &[&answers[..], &small].concat());
    net.children.push(child);
    common::wait_for(|| TcpStream::connect(net.server).is_ok() && get(net.server, "/v1/models") == 200);
    let log = net.log("run");
    assert!(log.contains(&format!("it does not know this server; start it with --server-key {}", keys[0])), "{log}");
    let key = net.buyer();
    let [before, _] = net.balance();
    assert_eq!(code(&net.complete(Some(&key))), (503, "ledger_away"));

    net.kill(0);
    let child = net.start("state", &[&books[..], &["--server-key", keys[0]]].concat());
    net.children.push(child);
    let mut answer = (0, Value::Null);
    for _ in 0..300 {
        answer = net.complete(Some(&key));
        if answer.0 == 200 {
            break;
        }
        assert_eq!(code(&answer), (503, "ledger_away"));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let cost = PRICE * answer.1["usage"]["total_tokens"].as_i64().unwrap();
    assert_eq!(answer.1["usage"]["cost"], cost.to_string(), "{}", answer.1);
    common::wait_for(|| net.balance() == [before - cost, 0]);
    assert_eq!((net.spent(), net.shared()), (cost, 0), "nobody has trained this model");
}
