//! The clients of the HTTP bench: a process of its own, on one thread, with as little between it and the socket as there
//! can be.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD as BASE64;
use hydra::http::api::{Hello, NewPass, Pass, path};
use hydra::protocol::{
    Call, DeviceKind, Digest, ExchangeSecret, Keypair, Lease, PassId, PassKey, PassedCall, Seed, SessionId, Signed,
    Submission, Trail, WorkerReply, WorkerRequest, wire,
};
use hydra::runtime::{Clock, SystemClock, entropy, raise_open_files};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{BLOB_BYTES, Result};

/// Does what it is told on its standard input, and tells what it measured.
pub(super) fn run(arguments: &[&str]) -> Result<()> {
    let [address, plain, workers, cycles, blob] = arguments else { return Err("too few arguments".into()) };
    let (address, plain): (SocketAddr, SocketAddr) = (address.parse()?, plain.parse()?);
    let (workers, cycles): (u64, u32) = (workers.parse()?, cycles.parse()?);
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut everybody = runtime.block_on(connect(address, workers))?;
    println!("connected");
    order("work")?;
    let began = Instant::now();
    let (mut latencies, mut tries) = (Vec::new(), 0);
    runtime.block_on(async {
        let tasks: Vec<_> = everybody.drain(..).map(|worker| tokio::spawn(worker.work(cycles))).collect();
        for task in tasks {
            let worker = task.await??;
            latencies.extend_from_slice(&worker.latencies);
            tries += worker.tries;
            everybody.push(worker);
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    let took = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("{took} {} {} {tries}", at(0.5), at(0.99));
    order("wait")?;
    // Held for longer than anybody looks.
    for worker in everybody {
        runtime.spawn(worker.wait());
    }
    runtime.block_on(async { tokio::time::sleep(Duration::from_secs(3)).await });
    println!("waiting");
    order("download")?;
    let (mut hydra, mut other) = (f64::MAX, f64::MAX);
    for _ in 0..5 {
        hydra = hydra.min(download(address, &format!("{}/{blob}", path::BLOBS))?);
        other = other.min(download(plain, "/")?);
    }
    println!("{hydra} {other}");
    Ok(())
}

fn order(expected: &str) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    if line.trim() == expected { Ok(()) } else { Err(format!("told to {line}").into()) }
}

async fn connect(address: SocketAddr, workers: u64) -> Result<Vec<Worker>> {
    let mut everybody = Vec::new();
    for n in 0..workers {
        let key = Keypair::from_secret(Seed::from_number(5).derive("worker", n).as_bytes());
        everybody.push(Worker::connect(address, key).await?);
    }
    Ok(everybody)
}

struct Worker {
    key: Arc<Keypair>,
    stream: TcpStream,
    buffer: Vec<u8>,
    session: SessionId,
    pass: Option<(PassId, PassKey)>,
    calls: u64,
    latencies: Vec<Duration>,
    tries: u64,
}

impl Worker {
    async fn connect(address: SocketAddr, key: Keypair) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let session = SessionId(Digest::of(b""));
        let (buffer, latencies) = (Vec::with_capacity(4096), Vec::new());
        let mut worker =
            Self { key: Arc::new(key), stream, buffer, session, pass: None, calls: 0, latencies, tries: 0 };
        worker.session = worker.exchange::<Hello>("GET", path::HELLO, None, b"").await?.ok_or("busy")?.session;
        let mut secret = [0; 32];
        entropy(&mut secret)?;
        let secret = ExchangeSecret::from_bytes(secret);
        let exchange = secret.public();
        let body = serde_json::to_vec(&NewPass { exchange })?;
        let signature = worker.sign(path::PASS, &body)?;
        let given: Pass = worker.exchange("POST", path::PASS, Some(&signature), &body).await?.ok_or("busy")?;
        let me = worker.key.public();
        let key = PassKey::agree(&secret, given.exchange, exchange, given.exchange, &me, given.session);
        worker.pass = Some((given.pass, key.ok_or("no key")?));
        Ok(worker)
    }

    fn sign(&self, path: &str, body: &[u8]) -> Result<String> {
        let mut nonce = [0; 16];
        entropy(&mut nonce)?;
        let (method, path, body) = ("POST".to_owned(), path.to_owned(), Digest::of(body));
        let call = Call { session: self.session, method, path, body, time: SystemClock.now(), nonce };
        Ok(format!("Hydra {}", BASE64.encode(&wire::encode(&Signed::seal(&self.key, &call)))))
    }

    fn prove(&mut self, path: &str, body: &[u8]) -> Result<String> {
        self.calls += 1;
        let (pass, key) = self.pass.as_ref().ok_or("no pass")?;
        let (number, time, body) = (self.calls, SystemClock.now(), Digest::of(body));
        let code = key.code("POST", path, &body, time, number);
        let call = PassedCall { pass: *pass, number, time, body, code };
        Ok(format!("Hydra-Pass {}", BASE64.encode(&wire::encode(&call))))
    }

    async fn work(mut self, cycles: u32) -> Result<Self> {
        for _ in 0..cycles {
            let reply = self.ask(path::LEASE, &WorkerRequest::Lease { tokens_per_second: 1 }).await?;
            let WorkerReply::Leased(lease) = reply else { return Err(format!("{reply:?}").into()) };
            let Lease { task, .. } = *lease;
            let payload = Digest::of(task.id().0.as_bytes());
            let states = task.segments().map(|_| payload).collect();
            let trail = Trail { device: DeviceKind::Ndarray, states };
            let submission = Submission::new(task.id(), payload, vec![1.0; 30], trail, task.tokens());
            let commit = Signed::seal(&self.key, &WorkerRequest::Commit(submission.commitment));
            expect(&self.ask(path::COMMIT, &commit).await?, &WorkerReply::Committed(task.id()))?;
            let submit = WorkerRequest::Submit(submission);
            expect(&self.ask(path::SUBMIT, &submit).await?, &WorkerReply::Received(task.id()))?;
        }
        Ok(self)
    }

    async fn wait(mut self) {
        // Nobody is there to hear of a failure; what it did to the memory is seen.
        let _ = self.ask(path::LEASE, &WorkerRequest::Lease { tokens_per_second: 1 }).await;
    }

    async fn ask<B: Serialize>(&mut self, path: &str, body: &B) -> Result<WorkerReply> {
        let body = serde_json::to_vec(body)?;
        loop {
            let proof = self.prove(path, &body)?;
            let began = Instant::now();
            let answer = self.exchange("POST", path, Some(&proof), &body).await?;
            if let Some(reply) = answer {
                self.latencies.push(began.elapsed());
                return Ok(reply);
            }
            self.tries += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// One request and its answer; nothing, where the server is busy.
    async fn exchange<T: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        authorization: Option<&str>,
        body: &[u8],
    ) -> Result<Option<T>> {
        self.buffer.clear();
        write!(self.buffer, "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len())?;
        if let Some(authorization) = authorization {
            write!(self.buffer, "authorization: {authorization}\r\n")?;
        }
        self.buffer.extend_from_slice(b"\r\n");
        self.buffer.extend_from_slice(body);
        self.stream.write_all(&self.buffer).await?;
        self.buffer.clear();
        let head = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection was closed".into());
            }
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text.get(9..12).ok_or("no status")?.to_owned();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = head + length.ok_or("no length")?.parse::<usize>()?;
        while self.buffer.len() < whole {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection was closed".into());
            }
        }
        match status.as_str() {
            "200" => Ok(Some(serde_json::from_slice(&self.buffer[head..whole])?)),
            "503" | "429" => Ok(None),
            _ => Err(String::from_utf8_lossy(&self.buffer).into_owned().into()),
        }
    }
}

fn expect(reply: &WorkerReply, right: &WorkerReply) -> Result<()> {
    if reply == right { Ok(()) } else { Err(format!("{reply:?}").into()) }
}

/// Seconds for a whole download.
fn download(address: SocketAddr, path: &str) -> Result<f64> {
    let began = Instant::now();
    let mut stream = std::net::TcpStream::connect(address)?;
    // All at once: a server that closes with something unread resets the connection.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => total += read,
        }
    }
    if total < BLOB_BYTES {
        return Err(format!("{total} bytes came").into());
    }
    Ok(began.elapsed().as_secs_f64())
}
