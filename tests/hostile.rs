//! A coordinator that is called by strangers, fools and attackers: typed answers, bounded memory, and it goes on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(target_os = "linux")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD as BASE64;
use hydra::http::{ROUTES, api};
use hydra::ledger::{Action, Order, TransferId};
use hydra::protocol::{
    Amount, Call, Commitment, DeviceKind, Digest, ExchangeSecret, Keypair, Layer, Outcome, PassId, PassKey, PassedCall,
    SessionId, Signed, Submission, TaskId, Time, Trail, Verdict, WorkerRequest, wire,
};
use hydra::runtime::{Clock, SystemClock};
use serde_json::{Value, json};

/// A coordinator in its own process, and what a caller needs to know of it.
struct Site {
    folder: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
    session: SessionId,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n; 32])
}

impl Site {
    fn new(arguments: &[&str]) -> Self {
        let small = ["--tasks", "2", "--inner-steps", "3", "--batch", "2", "--context", "16", "--data", "text.txt"];
        Self::start(&[&["coordinator"][..], &small, arguments].concat())
    }

    /// A ledger in its own process instead.
    fn ledger(arguments: &[&str]) -> Self {
        Self::start(&[&["ledger", "serve"], arguments].concat())
    }

    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.txt"), common::text()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args(arguments).current_dir(folder.path()).args(["--state-dir", "state"]);
        command.args(["--listen", &address.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut site = Self { folder, child, address, session: SessionId(Digest::of(b"")) };
        common::wait_for(|| TcpStream::connect(address).is_ok());
        let hello = site.get("/hydra/v1/hello").json();
        site.session = serde_json::from_value(hello["session"].clone()).unwrap();
        site
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends these bytes and reads the answer.
    fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may have said no before it has heard everything.
        let _ = stream.write_all(bytes);
        read(&mut stream)
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            text = text + name + ": " + value + "\r\n";
        }
        self.raw(&[text.as_bytes(), b"connection: close\r\n\r\n", body].concat())
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    fn call(&self, method: &str, path: &str, body: &[u8], nonce: u8) -> Call {
        let (method, path, body) = (method.to_owned(), path.to_owned(), Digest::of(body));
        Call { session: self.session, method, path, body, time: SystemClock.now(), nonce: [nonce; 16] }
    }

    /// A call that is signed as it should be.
    fn signed(&self, key: &Keypair, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut call = self.call(method, path, body, 0);
        hydra::runtime::entropy(&mut call.nonce).unwrap();
        self.request(method, path, &[("authorization", &authorization(key, &call))], body)
    }

    fn worker(&self, key: &Keypair, path: &str, request: &WorkerRequest) -> Answer {
        self.signed(key, "POST", path, &serde_json::to_vec(&Signed::seal(key, request)).unwrap())
    }

    fn lease(&self, key: &Keypair) -> hydra::protocol::Task {
        let answer = self.worker(key, "/hydra/v1/lease", &WorkerRequest::Lease { tokens_per_second: 0 }).json();
        serde_json::from_value(answer["Leased"]["task"].clone()).unwrap()
    }

    /// Memory of the process, in KiB: now, and at its highest.
    fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    fn is_well(&self) -> bool {
        self.get("/readyz").status == 200
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn authorization(key: &Keypair, call: &Call) -> String {
    format!("Hydra {}", BASE64.encode(&wire::encode(&Signed::seal(key, call))))
}

fn read(stream: &mut TcpStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            break;
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = Vec::new();
    if status != 0 && !head.contains("text/event-stream") {
        match length {
            Some(length) => drop(reader.take(length).read_to_end(&mut body)),
            None => drop(reader.read_to_end(&mut body)),
        }
    }
    Answer { status, head, body }
}

/// Calls everything that the server says it serves, as a stranger without anything: how many calls it was.
fn walk(site: &Site) -> usize {
    let document = site.get("/openapi.json").json();
    let (zeros, key) = ("0".repeat(64), key(1).public().to_string());
    let mut walked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            walked += 1;
            let named = path.replace("{digest}", &zeros).replace("{key}", &key).replace("{transfer}", "1");
            let named = named.replace("{round}", "0").replace("{report}", "none");
            let named = named.replace("vendor/{file}", "vendor/uplot.js").replace("{file}", "app.js");
            let required = operation["parameters"].as_array().unwrap().iter();
            let required = required.filter(|one| one["in"] == "query" && one["required"] == true);
            let query = required.fold("?".to_owned(), |query, one| query + one["name"].as_str().unwrap() + "=1&");
            let query = if operation["security"].is_null() { &query } else { "" };
            let answer = site.request(&method.to_uppercase(), &(named + query), &[], b"");
            let name = format!("{method} {path}");
            let head = method == "head";
            let of_queries =
                ["/v1/", "/hydra/v1/api-keys", "/hydra/v1/quote", "/hydra/v1/balance", "/hydra/v1/samples"]
                    .iter()
                    .any(|begins| path.starts_with(begins));
            if of_queries {
                assert_eq!((answer.status, answer.code().as_str()), (404, "not_serving"), "{name}: without --serve");
            } else if operation["security"].is_null() && (path.contains("{transfer}") || path.ends_with("/growth")) {
                assert_eq!(answer.status, 404, "{name}: there are no transfers yet");
                assert!(["no_such_transfer", "never_signed"].contains(&answer.code().as_str()), "{name}");
            } else if path.contains("{report}") {
                assert_eq!((answer.status, answer.code().as_str()), (404, "no_such_report"), "{name}");
            } else if operation["security"].is_null() {
                assert_eq!(answer.status, 200, "{name}");
                let kind = operation["responses"]["200"]["content"].as_object().unwrap().keys().next().unwrap();
                assert!(kind == "*/*" || answer.head.to_lowercase().contains(kind.as_str()), "{name}: {}", answer.head);
            } else if path.contains("/blobs/") && method != "put" {
                assert!(answer.status == 404 && (head || answer.code() == "no_such_blob"), "{name}");
            } else {
                assert_eq!((answer.status, answer.code().as_str()), (401, "unsigned"), "{name}");
            }
        }
    }
    walked
}

#[test]
fn every_described_path_is_served_and_refuses_strangers_with_a_code() {
    let ledger = Site::ledger(&[]);
    assert_eq!(walk(&ledger), ROUTES.iter().filter(|route| route.is_of_ledger()).count());
    assert_eq!(ledger.get("/hydra/v1/status").code(), "no_such_route");
    let site = Site::new(&[]);
    assert_eq!(walk(&site), ROUTES.len());
    assert_eq!(site.get("/hydra/v1/nothing").code(), "no_such_route");
    assert_eq!(site.get("/hydra/v1/lease").code(), "no_such_method");
    assert!(String::from_utf8(site.get("/metrics").body).unwrap().contains("hydra_http_requests_total"));
    let status = site.get("/hydra/v1/status").json();
    assert_eq!((status["round"].as_u64(), status["tasks"].as_u64()), (Some(0), Some(2)));
}

#[test]
fn forged_replayed_stale_and_foreign_calls_are_refused_by_name() {
    let mut site = Site::new(&[]);
    let path = "/hydra/v1/register";
    let body = b"{}";
    let send = |site: &Site, call: &Call| {
        site.request("POST", path, &[("authorization", &authorization(&key(1), call))], body)
    };
    let good = site.call("POST", path, body, 1);
    assert_eq!(send(&site, &good).status, 200);
    assert_eq!(send(&site, &good).code(), "replayed");

    let call = |change: &dyn Fn(&mut Call)| {
        let mut call = site.call("POST", path, body, 2);
        change(&mut call);
        send(&site, &call)
    };
    assert_eq!(call(&|call| call.body = Digest::of(b"other")).code(), "bad_signature");
    assert_eq!(call(&|call| call.path = "/hydra/v1/lease".into()).code(), "bad_signature");
    assert_eq!(call(&|call| call.method = "PUT".into()).code(), "bad_signature");
    let answer = call(&|call| call.session = SessionId(Digest::of(b"other")));
    assert_eq!(answer.code(), "other_session");
    assert_eq!(answer.json()["error"]["session"], json!(site.session));
    let answer = call(&|call| call.time = Time(call.time.0 - 600_000));
    assert_eq!(answer.code(), "clock_skew");
    let off = answer.json()["error"]["off_ms"].as_i64().unwrap();
    assert!((-601_000..=-600_000).contains(&off), "{off}");
    assert!(answer.json()["error"]["time"].is_u64());

    let mut forged = authorization(&key(1), &site.call("POST", path, body, 3)).into_bytes();
    forged[60] ^= 1;
    let forged = String::from_utf8(forged).unwrap();
    assert_eq!(site.request("POST", path, &[("authorization", &forged)], body).code(), "bad_signature");

    // A request in the body that is signed by somebody else, or belongs to another path.
    let lease = serde_json::to_vec(&Signed::seal(&key(2), &WorkerRequest::Lease { tokens_per_second: 0 })).unwrap();
    assert_eq!(site.signed(&key(1), "POST", "/hydra/v1/lease", &lease).code(), "forbidden");
    assert_eq!(site.signed(&key(2), "POST", "/hydra/v1/submit", &lease).code(), "malformed");
    assert_eq!(site.signed(&key(1), "POST", "/hydra/v1/admin/finish", b"").code(), "forbidden");
    assert_eq!(site.signed(&key(1), "GET", "/hydra/v1/jobs/checks", b"").code(), "forbidden");

    // The same call after a restart.
    let state = site.folder.path().join("state");
    let again = site.call("POST", path, body, 9);
    assert_eq!(send(&site, &again).status, 200);
    site.child.kill().unwrap();
    site.child.wait().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
    command.args(["coordinator", "--listen", &site.address.to_string()]).arg("--state-dir").arg(state);
    site.child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    common::wait_for(|| TcpStream::connect(site.address).is_ok());
    assert_eq!(send(&site, &again).code(), "other_session");
}

/// A pass of `who`, and its key.
fn pass(site: &Site, who: &Keypair) -> (PassId, PassKey) {
    let secret = ExchangeSecret::from_bytes([42; 32]);
    let asked = secret.public();
    let body = serde_json::to_vec(&api::NewPass { exchange: asked }).unwrap();
    let given = site.signed(who, "POST", "/hydra/v1/pass", &body);
    let given: api::Pass = serde_json::from_slice(&given.body).unwrap();
    let key = PassKey::agree(&secret, given.exchange, asked, given.exchange, &who.public(), given.session);
    (given.pass, key.unwrap())
}

#[test]
fn a_pass_proves_its_owners_calls_once_and_not_what_must_be_signed() {
    let site = Site::new(&[]);
    let (id, mine) = pass(&site, &key(1));
    let passed = |key: &PassKey, id: PassId, number: u64, path: &str, body: &[u8]| {
        let (time, digest) = (SystemClock.now(), Digest::of(body));
        let code = key.code("POST", path, &digest, time, number);
        let call = PassedCall { pass: id, number, time, body: digest, code };
        format!("Hydra-Pass {}", BASE64.encode(&wire::encode(&call)))
    };
    let send = |header: &str, path: &str, body: &[u8]| site.request("POST", path, &[("authorization", header)], body);
    let lease_path = "/hydra/v1/lease";
    let lease = serde_json::to_vec(&WorkerRequest::Lease { tokens_per_second: 0 }).unwrap();
    let first = passed(&mine, id, 1, lease_path, &lease);
    let task: hydra::protocol::Task =
        serde_json::from_value(send(&first, lease_path, &lease).json()["Leased"]["task"].clone()).unwrap();
    assert_eq!(send(&first, lease_path, &lease).code(), "replayed");
    let next = |number| passed(&mine, id, number, lease_path, &lease);
    assert_eq!(send(&next(2), "/hydra/v1/submit", &lease).code(), "bad_signature", "another path");
    assert_eq!(send(&next(2), lease_path, b"{}").code(), "bad_signature", "another body");
    let (_, stranger) = pass(&site, &key(2));
    assert_eq!(send(&passed(&stranger, id, 2, lease_path, &lease), lease_path, &lease).code(), "bad_signature");
    let unknown = PassId(Digest::of(b"none"));
    assert_eq!(send(&passed(&mine, unknown, 2, lease_path, &lease), lease_path, &lease).code(), "no_such_pass");
    assert_eq!(site.request("POST", "/hydra/v1/pass", &[("authorization", &next(4))], b"{}").code(), "bad_signature");

    // A commitment stands for itself: bare, or signed by another, it is none.
    let payload = Digest::of(b"payload");
    let trail = Trail { device: DeviceKind::Ndarray, states: vec![payload; 3] };
    let submission = Submission::new(task.id(), payload, vec![1.0; 3], trail, task.tokens());
    let commit = WorkerRequest::Commit(submission.commitment);
    let commit_path = "/hydra/v1/commit";
    let bare = serde_json::to_vec(&commit).unwrap();
    assert_eq!(send(&passed(&mine, id, 10, commit_path, &bare), commit_path, &bare).code(), "malformed");
    let others = serde_json::to_vec(&Signed::seal(&key(2), &commit)).unwrap();
    assert_eq!(send(&passed(&mine, id, 11, commit_path, &others), commit_path, &others).code(), "forbidden");
    let signed = serde_json::to_vec(&Signed::seal(&key(1), &commit)).unwrap();
    let answer = send(&passed(&mine, id, 9, commit_path, &signed), commit_path, &signed);
    assert!(answer.json()["Committed"].is_string(), "calls may overtake each other");

    let zeros = serde_json::to_vec(&json!({ "exchange": "0".repeat(64) })).unwrap();
    assert_eq!(site.signed(&key(1), "POST", "/hydra/v1/pass", &zeros).code(), "malformed");
    for _ in 0..4 {
        pass(&site, &key(1));
    }
    assert_eq!(send(&next(20), lease_path, &lease).code(), "no_such_pass", "a key has four at most");
}

#[test]
fn nobody_touches_tasks_uploads_or_blobs_that_are_not_theirs() {
    let site = Site::new(&[]);
    let (mine, thief) = (key(1), key(2));
    let task = site.lease(&mine);
    let payload = b"not really a payload".to_vec();
    let digest = Digest::of(&payload);
    let put = |who: &Keypair, offset: usize, length: usize, bytes: &[u8]| {
        let path = format!("/hydra/v1/blobs/{digest}?offset={offset}&length={length}");
        site.signed(who, "PUT", &path, bytes)
    };
    assert_eq!(put(&mine, 0, payload.len(), &payload).code(), "not_committed", "before the commitment");
    let trail = Trail { device: DeviceKind::Ndarray, states: vec![digest; 3] };
    let submission = Submission::new(task.id(), digest, vec![1.0; 3], trail, task.tokens());
    let commit = WorkerRequest::Commit(submission.commitment);
    assert!(site.worker(&thief, "/hydra/v1/commit", &commit).json()["Refused"]["reason"] == "not_your_task");
    assert!(site.worker(&mine, "/hydra/v1/commit", &commit).json()["Committed"].is_string());
    assert_eq!(put(&thief, 0, payload.len(), &payload).code(), "not_committed");
    assert_eq!(put(&mine, 0, 1 << 40, &payload).code(), "too_large");
    assert_eq!(put(&mine, 7, payload.len(), &payload[7..]).code(), "offset");
    assert_eq!(put(&mine, 0, payload.len(), &[0; 20]).code(), "upload_mismatch");
    assert_eq!(put(&mine, 0, payload.len(), &payload[..9]).json()["received"], 9);
    assert_eq!(put(&mine, 9, payload.len(), &payload[9..]).json()["complete"], true);
    for who in [&mine, &thief] {
        let read = site.signed(who, "GET", &format!("/hydra/v1/blobs/{digest}"), b"");
        assert_eq!(read.code(), "no_such_blob", "payloads are for verifiers");
    }
    let other = WorkerRequest::Commit(Commitment { task: TaskId(Digest::of(b"no task")), ..submission.commitment });
    assert!(site.worker(&mine, "/hydra/v1/commit", &other).json()["Refused"]["reason"] == "task_not_open");

    // The model is for everybody, whole or in part.
    let path = format!("/hydra/v1/blobs/{}", task.base);
    let whole = site.get(&path);
    assert_eq!(Digest::of(&whole.body), task.base);
    assert!(whole.head.contains("immutable"));
    let part = site.request("GET", &path, &[("range", "bytes=100-199")], b"");
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[100..200]));
    assert_eq!(site.request("GET", &path, &[("range", "bytes=999999999-")], b"").code(), "range");
    for path in ["..%2f..%2fhydra.db", "../../hydra.db", "..", "%00", &"a".repeat(64), &"A".repeat(64)] {
        let answer = site.get(&format!("/hydra/v1/blobs/{path}"));
        assert!(matches!(answer.code().as_str(), "malformed" | "no_such_blob" | "no_such_route"), "{path}");
    }
}

#[test]
fn floods_cost_little_and_stop_nothing() {
    let site = Site::new(&[]);
    let (before, _) = site.memory();

    // A body of 10 GB announced; then one without a length, of which more comes than may.
    let path = "/hydra/v1/lease";
    let call = authorization(&key(1), &site.call("POST", path, b"", 1));
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {call}\r\n");
    let announced = site.raw(format!("{head}content-length: 10000000000\r\n\r\n").as_bytes());
    assert_eq!((announced.status, announced.code().as_str()), (413, "too_large"));
    let mut endless = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..40 {
        endless.extend_from_slice(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes());
    }
    let answer = site.raw(&endless);
    assert!(matches!(answer.status, 413 | 0), "{}", answer.status);
    // Nothing is read of a body whose caller is not known.
    let unsigned =
        site.raw(format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n").as_bytes());
    assert_eq!(unsigned.code(), "unsigned");

    // A head without end.
    let answer = site.raw(&[b"GET /healthz HTTP/1.1\r\n".as_slice(), &b"x: y\r\n".repeat(50_000)].concat());
    assert!(matches!(answer.status, 431 | 0), "{}", answer.status);

    // Malformed bodies of a caller who signs them.
    let deep = "[".repeat(30_000);
    for body in ["", "{", "null", "[]", r#"{"signer":5}"#, &deep] {
        let answer = site.signed(&key(1), "POST", path, body.as_bytes());
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed"), "{body:.20}");
    }

    // Connections that say nothing, or little: one address gets so many and no more, others still get through.
    let mut idle: Vec<TcpStream> = (0..600).filter_map(|_| TcpStream::connect(site.address).ok()).collect();
    for stream in &mut idle {
        let _ = stream.write_all(b"GET /heal");
    }
    std::thread::sleep(Duration::from_millis(300));
    let open = idle.iter().filter(|stream| {
        stream.set_nonblocking(true).unwrap();
        let mut stream: &TcpStream = stream;
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    });
    assert_eq!(open.count(), hydra::protocol::limits::HTTP_CONNECTIONS_PER_ADDRESS);
    drop(idle);
    common::wait_for(|| site.is_well());

    // More calls than anybody needs.
    let mut refused = 0;
    for _ in 0..300 {
        let answer = site.signed(&key(5), "POST", "/hydra/v1/register", b"{}");
        refused += u32::from(answer.code() == "too_many_calls" && answer.head.contains("retry-after"));
    }
    assert!(refused > 10, "{refused} of 300 calls were refused");
    let (_, peak) = site.memory();
    assert!(peak < before + 64 * 1024, "memory grew from {before} to {peak} KiB");
    assert!(site.is_well());
}

#[test]
fn ten_thousand_connections_cost_little_and_stop_nobody() {
    const CONNECTIONS: u64 = 10_000;
    let granted = hydra::runtime::raise_open_files();
    if granted.is_some_and(|granted| granted < CONNECTIONS + 200) {
        println!("left out: the system grants {granted:?} open files");
        return;
    }
    let site = Site::new(&[]);
    let (before, _) = site.memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let streams = runtime.block_on(async {
        let mut streams = Vec::new();
        for number in 0..CONNECTIONS {
            // As from so many households: each address has a bound of its own.
            let address = SocketAddr::from(([127, 0, 1, u8::try_from(number % 250).unwrap() + 1], 0));
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(address).unwrap();
            let stream = socket.connect(site.address).await.unwrap();
            stream.writable().await.unwrap();
            stream.try_write(b"GET /healthz HTTP/1.1\r\nhost: ").unwrap();
            streams.push(stream);
        }
        streams
    });
    let watch = hydra::runtime::Stopwatch::start();
    assert!(site.is_well());
    let answered = watch.elapsed();
    // Nothing to read is what a connection looks like that is open and was not answered.
    let open = |stream: &&tokio::net::TcpStream| matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
    assert_eq!(streams.iter().filter(open).count() as u64, CONNECTIONS, "none was turned away");
    let (_, peak) = site.memory();
    let each = (peak - before) / (CONNECTIONS / 1000);
    println!("peak {peak} KiB, {before} KiB before: {each} bytes a connection; a request took {answered:?}");
    assert!(peak < before + CONNECTIONS * 64, "memory grew from {before} to {peak} KiB");
    assert!(answered < Duration::from_secs(5), "{answered:?}");
    drop(streams);
    common::wait_for(|| site.is_well());
}

#[test]
fn only_the_admitted_take_part() {
    let admin = key(9);
    let admin_key = admin.public().to_string();
    let site = Site::new(&["--admission", "invited", "--admin", &admin_key]);
    let lease = |who: &Keypair| site.worker(who, "/hydra/v1/lease", &WorkerRequest::Lease { tokens_per_second: 0 });
    assert_eq!(lease(&key(1)).code(), "not_admitted");
    assert_eq!(site.signed(&key(1), "POST", "/hydra/v1/admin/invites", br#"{"uses":1}"#).code(), "forbidden");
    let invite = site.signed(&admin, "POST", "/hydra/v1/admin/invites", br#"{"uses":1}"#).json();
    let register = |who: &Keypair, invite: &Value| {
        site.signed(who, "POST", "/hydra/v1/register", json!({ "invite": invite }).to_string().as_bytes())
    };
    assert_eq!(register(&key(1), &json!("guess")).code(), "not_admitted");
    assert_eq!(register(&key(1), &invite["token"]).status, 200);
    assert_eq!(register(&key(2), &invite["token"]).code(), "not_admitted", "used up");
    assert_eq!(lease(&key(1)).status, 200);
    let task: hydra::protocol::Task = serde_json::from_value(lease(&key(1)).json()["Leased"]["task"].clone()).unwrap();
    let model = format!("/hydra/v1/blobs/{}", task.base);
    assert_eq!(site.get(&model).code(), "unsigned");
    assert_eq!(site.signed(&key(2), "GET", &model, b"").code(), "not_admitted");
    assert_eq!(site.signed(&key(1), "GET", &model, b"").status, 200);
    let block = json!({ "key": key(1).public(), "admitted": false }).to_string();
    assert_eq!(site.signed(&admin, "POST", "/hydra/v1/admin/keys", block.as_bytes()).status, 200);
    assert_eq!(lease(&key(1)).code(), "not_admitted");
}

/// An order of `who` to send one HYD to somebody.
fn order(who: &Keypair, n: u64) -> Signed {
    let now = SystemClock.now();
    let action = Action::Send { to: key(3).public(), amount: Amount::from_hyd(1) };
    let order = Order { id: TransferId::request(now, n), valid_until: now + Duration::from_mins(1), action };
    Signed::seal(who, &order)
}

#[test]
fn anybody_reads_the_ledger_and_nobody_changes_what_is_not_theirs() {
    let (server, payer) = (key(4), key(5));
    let (server_key, payer_key) = (server.public().to_string(), payer.public().to_string());
    let site = Site::ledger(&["--server-key", &server_key, "--payer", &payer_key, "--verifier", &payer_key]);
    let post = |who: &Keypair, path: &str, body: &Value| {
        site.signed(who, "POST", &format!("/hydra/v1/ledger/{path}"), body.to_string().as_bytes())
    };
    let refused = |answer: &Answer| (answer.status, answer.code());
    let is = |status: u16, code: &str| (status, code.to_owned());

    // An order of somebody who has nothing; one that somebody else has altered; one of another kind.
    let mine = json!(order(&key(1), 1));
    assert_eq!(refused(&post(&key(1), "transfers", &mine)), is(402, "insufficient_funds"));
    assert_eq!(refused(&post(&key(2), "transfers", &mine)), is(402, "insufficient_funds"), "anybody may bring it");
    let mut forged = mine.clone();
    forged["signer"] = json!(key(2).public());
    assert_eq!(refused(&post(&key(2), "transfers", &forged)), is(400, "malformed"));
    let lease = json!(Signed::seal(&key(1), &WorkerRequest::Lease { tokens_per_second: 0 }));
    assert_eq!(refused(&post(&key(1), "transfers", &lease)), is(400, "malformed"));
    let batch = json!({ "orders": [mine, forged, order(&key(2), 2)] });
    let outcomes = post(&key(1), "batch", &batch).json()["outcomes"].clone();
    let codes: Vec<&str> = (0..3).map(|n| outcomes[n]["refused"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["insufficient_funds", "malformed", "insufficient_funds"]);
    let many = json!({ "orders": vec![json!(order(&key(1), 1)); 1001] });
    assert_eq!(refused(&post(&key(1), "batch", &many)), is(400, "malformed"));

    // What only some may ask for, and what is wrong about it when they do.
    let now = SystemClock.now();
    let id = TransferId::request(now, 9);
    let hold = json!({ "id": id, "wallet": key(1).public(), "amount": "5", "expires": now + Duration::from_mins(1) });
    let settle = json!({ "query": id, "wallet": key(1).public(), "cost": "5", "contributors": [] });
    let pay = |verdicts: &[Signed]| json!({ "run": Digest::of(b"run"), "round": 0, "verdicts": verdicts });
    let forfeit = json!({ "verdict": order(&key(1), 1) });
    for (path, body) in [("holds", &hold), ("settlements", &settle), ("pay", &pay(&[])), ("forfeits", &forfeit)] {
        assert_eq!(refused(&post(&key(1), path, body)), is(403, "forbidden"), "{path}");
    }
    assert_eq!(refused(&post(&payer, "holds", &hold)), is(403, "forbidden"));
    assert_eq!(refused(&post(&server, "pay", &pay(&[]))), is(403, "forbidden"));
    assert_eq!(refused(&post(&server, "holds", &hold)), is(402, "insufficient_funds"));
    assert_eq!(refused(&post(&server, "settlements", &settle)), is(409, "not_pending"));
    assert_eq!(refused(&post(&payer, "pay", &pay(&[order(&key(1), 1)]))), is(400, "verdict_invalid"));
    let verdict = Verdict {
        task: TaskId(Digest::of(b"task")),
        worker: key(1).public(),
        payload: Digest::of(b"payload"),
        work: 0,
        by: None,
        turn: 0,
        outcome: Outcome::Accepted { layer: Layer::Admission, tokens: 7, norm: 1.0 },
    };
    let verdicts = |by: &Keypair| pay(&[Signed::seal(by, &verdict)]);
    assert_eq!(refused(&post(&payer, "pay", &verdicts(&key(1)))), is(403, "verifier_unknown"));
    let paid = post(&payer, "pay", &verdicts(&payer));
    assert_eq!((paid.status, &paid.json()["pays"][0]["amount"]), (200, &json!("100000000")));
    assert_eq!(post(&payer, "pay", &verdicts(&payer)).body, paid.body, "asked twice, paid once");
    assert_eq!(refused(&post(&payer, "pay", &pay(&[]))), is(409, "round_differs"));
    let forfeit = json!({ "verdict": Signed::seal(&payer, &verdict) });
    assert_eq!(refused(&post(&payer, "forfeits", &forfeit)), is(422, "no_finding"));

    // Everybody sees what came of it.
    let get = |path: &str| site.get(&format!("/hydra/v1/ledger{path}"));
    assert_eq!(get("").json()["transfers"], 1);
    let key_path = format!("/accounts/{}", key(1).public());
    assert_eq!(get(&key_path).json()["wallet"]["credits_pending"], "100000000");
    assert_eq!(get(&format!("{key_path}/history")).json()["entries"][0]["sequence"], 1);
    assert_eq!(get("/entries?most=1000000000").json()["entries"].as_array().unwrap().len(), 1);
    assert_eq!(get("/accounts?most=1").json()["next"], "emission");
    assert_eq!(get("/transfers/1/proof").json()["proof"], "inclusion");
    for path in
        ["/accounts/xyz", "/accounts?after=purse", "/entries?most=-1", "/offers?after=1", "/growth", "/transfers/x"]
    {
        assert_eq!(refused(&get(path)), is(400, "malformed"), "{path}");
    }
    for path in ["/transfers/2", "/transfers/0/proof", &format!("/transfers/{id}")] {
        assert_eq!(refused(&get(path)), is(404, "no_such_transfer"), "{path}");
    }
    assert_eq!(get("/growth?since=7").json()["error"]["nearest"], 1);
    let metrics = String::from_utf8(site.get("/metrics").body).unwrap();
    for line in [
        "hydra_ledger_transfers 1\n",
        "hydra_ledger_head_size 1\n",
        "hydra_ledger_supply_micro 100000000\n",
        "hydra_ledger_refused_total{code=\"insufficient_funds\"} 5\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(site.is_well());
}
