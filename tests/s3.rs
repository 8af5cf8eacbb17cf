//! Blobs in a bucket, against a real server that speaks S3: moto, in a Python environment that `tests/s3-server` makes.
//! Where that was not made, these tests say so and do nothing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(unix)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::Hydra;
use hydra::http::Bucket;
use hydra::protocol::Digest;
use hydra::store::{BlobArchive, BlobError, Blobs};
use serde_json::Value;

/// Set in processes that have the variables of a bucket.
const INSIDE: &str = "HYDRA_TEST_S3";

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// A server with an empty bucket named `bucket`.
    fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/s3-server");
        let found = Command::new(script).arg("--if-made").output().ok().filter(|found| found.status.success());
        let Some(found) = found else {
            println!("left out: there is no S3 server; tests/s3-server makes one");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let program = String::from_utf8(found.stdout).unwrap();
        let mut command = Command::new(program.trim());
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { child: command.spawn().unwrap(), port };
        common::wait_for(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert!(server.ask("PUT", "/bucket", b"").starts_with("HTTP/1.1 200"));
        Some(server)
    }

    /// Asks for something with a signature that means nothing, which this server does not check: what it answers.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let length = body.len();
        let signature =
            "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x";
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: {signature}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn variables(&self, command: &mut Command) {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        command.envs([("AWS_ENDPOINT", endpoint.as_str()), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "us-east-1")]);
        command.envs([("AWS_ACCESS_KEY_ID", "somebody"), ("AWS_SECRET_ACCESS_KEY", "secret"), (INSIDE, "1")]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_bucket_keeps_blobs_by_their_digest() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let Some(server) = Server::start() else { return };
    // The variables are those of a process, so this is another one.
    let mut again = Command::new(std::env::current_exe().unwrap());
    server.variables(again.args(["--exact", "a_bucket_keeps_blobs_by_their_digest", "--nocapture"]));
    let output = again.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer = server.ask("GET", &format!("/bucket/runs/one/{}", Digest::of(b"some bytes")), b"");
    assert!(answer.ends_with("some bytes"), "{answer}");
}

fn inside() {
    let bucket = Bucket::open("s3://bucket/runs/one").unwrap();
    let other = Bucket::open("s3://bucket").unwrap();
    let digest = bucket.put(b"some bytes").unwrap();
    assert_eq!(bucket.put(b"some bytes").unwrap(), digest);
    assert_eq!(bucket.get(&digest).unwrap(), b"some bytes");
    let missing = Digest::of(b"nobody put this");
    assert!(matches!(bucket.get(&missing), Err(BlobError::Missing(digest)) if digest == missing));
    // In parts, the last of which is short.
    let large: Vec<u8> = (0..40_000_000u32).map(|byte| byte.to_le_bytes()[1]).collect();
    let digest_of_large = bucket.put(&large).unwrap();
    assert!(bucket.get(&digest_of_large).unwrap() == large);
    assert_eq!(bucket.list().unwrap(), [digest, digest_of_large].into());
    assert!(other.list().unwrap().is_empty(), "what is under a longer prefix is another run's");
    bucket.remove(&digest_of_large).unwrap();
    common::wait_for(|| bucket.list().unwrap() == [digest].into());
    for wrong in ["s3://", "bucket", "http://bucket"] {
        assert!(Bucket::open(wrong).unwrap_err().to_string().contains("it must look like s3://"), "{wrong}");
    }
    let error = Bucket::open("s3://no-such-bucket").unwrap_err().to_string();
    assert!(error.contains("cannot use s3://no-such-bucket") && !error.contains("secret"), "{error}");
}

#[test]
fn a_run_outlives_the_folder_of_its_blobs() {
    let Some(server) = Server::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.txt"), common::text()).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let coordinator = |rounds: &str| -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hydra"));
        command.args([
            "coordinator",
            "--json",
            // As in one process: replays are paid too, which changes the ledger.
            "--audits",
            "none",
            "--rounds",
            rounds,
            "--tasks",
            "2",
            "--inner-steps",
            "3",
            "--batch",
            "2",
        ]);
        command.args(["--context", "16", "--data", "text.txt", "--state-dir", "state", "--blobs", "s3://bucket/run"]);
        command.args(["--listen", &format!("127.0.0.1:{port}")]).current_dir(folder.path());
        server.variables(&mut command);
        let coordinator = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut worker = Command::new(env!("CARGO_BIN_EXE_hydra"));
        worker.args(["worker", "--coordinator", &format!("http://127.0.0.1:{port}"), "--state-dir", "worker"]);
        worker.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut worker = worker.spawn().unwrap();
        let output = coordinator.wait_with_output().unwrap();
        let _ = worker.kill();
        let _ = worker.wait();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let here = Hydra::new();
    for rounds in ["2", "1"] {
        let (summary, expected) = (coordinator(rounds), here.up_json(&["--rounds", rounds]));
        for what in ["run", "rounds", "model_digest", "transfers"] {
            assert_eq!(summary[what], expected[what], "another {what} than in one process with a folder");
        }
        let model = summary["model_digest"].as_str().unwrap();
        let answer = server.ask("HEAD", &format!("/bucket/run/{model}"), b"");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        std::fs::remove_dir_all(folder.path().join("state/blobs")).unwrap();
        std::fs::remove_dir_all(folder.path().join("worker")).unwrap();
    }
}
