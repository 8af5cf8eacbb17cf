use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::api::{Upload, path};
use super::client::{Client, ClientError};
use super::rate::Throttle;
use crate::protocol::{Digest, limits};
use crate::runtime::Clock;
use crate::store::{BlobError, Blobs, FolderBlobs};

/// The pause between two tries, and how many in a row may bring nothing. A coordinator that is being restarted or
/// updated is back within minutes.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const TRIES: u32 = 60;

/// The shortest piece of an upload, bytes: some times what a request costs besides.
const PIECE_MIN: u64 = 4096;

/// How far an upload is.
struct Sending {
    /// Bytes in the next piece.
    piece: Cell<u64>,
    received: Cell<u64>,
}

/// A coordinator's blob store seen from another process: what was fetched once is kept in a folder. Transfers go on
/// where they broke off, and their bytes are checked against the digest.
///
/// Its methods block, and must be called off the runtime's threads.
pub struct RemoteBlobs {
    client: Arc<Client>,
    runtime: Handle,
    kept: FolderBlobs,
    downloads: PathBuf,
    clock: Arc<dyn Clock>,
    up: Throttle,
    down: Throttle,
    stop: watch::Sender<bool>,
}

enum Problem {
    /// The same again may help.
    Passing(String),
    Final(BlobError),
}

impl RemoteBlobs {
    /// The blobs of `client`'s coordinator, kept in `folder`, at these rates. Transfers run on `runtime`.
    pub fn open(
        client: Arc<Client>,
        runtime: Handle,
        folder: &Path,
        clock: Arc<dyn Clock>,
        up: Throttle,
        down: Throttle,
    ) -> Result<Self, BlobError> {
        let kept = FolderBlobs::open(folder)?;
        let downloads = folder.join("downloads");
        fs::create_dir_all(&downloads).map_err(|error| io_error(&downloads, error))?;
        Ok(Self { client, runtime, kept, downloads, clock, up, down, stop: watch::Sender::new(false) })
    }

    /// Whether the bytes are here.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.kept.file(digest).exists()
    }

    /// Lets go of every copy that is here but of these: how many those were.
    pub fn retain(&self, keep: &BTreeSet<Digest>) -> Result<u64, BlobError> {
        self.kept.retain(keep)
    }

    /// Breaks off every transfer; nothing is tried again.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Tries until it works, nothing more can be hoped for, or the transfers are to stop. `progress` says how far a
    /// transfer has come: as long as it moves, it is tried again.
    fn patiently<T, P: PartialEq>(
        &self,
        digest: &Digest,
        mut attempt: impl AsyncFnMut() -> Result<T, Problem>,
        progress: impl Fn() -> P,
    ) -> Result<T, BlobError> {
        let mut stop = self.stop.subscribe();
        let remote = |problem: &str| BlobError::Remote { digest: *digest, problem: problem.to_owned() };
        self.runtime.block_on(async {
            let work = async {
                let (mut pause, mut idle, mut last) = (PAUSE, 0, progress());
                loop {
                    let problem = match attempt().await {
                        Ok(value) => return Ok(value),
                        Err(Problem::Final(error)) => return Err(error),
                        Err(Problem::Passing(problem)) => problem,
                    };
                    let now = progress();
                    (pause, idle) = if now == last { ((pause * 2).min(PAUSE_MAX), idle + 1) } else { (PAUSE, 0) };
                    last = now;
                    if idle >= TRIES {
                        return Err(remote(&problem));
                    }
                    tokio::time::sleep(pause).await;
                }
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => Err(remote("the transfer was broken off")),
                done = work => done,
            }
        })
    }

    async fn download(&self, digest: &Digest, part: &Path) -> Result<(), Problem> {
        let here = |error| Problem::Final(io_error(part, error));
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(here)?;
        let there = file.metadata().map_err(here)?.len();
        let answer = self.client.bytes_from(&format!("{}/{digest}", path::BLOBS), there).await;
        let mut answer = match answer {
            Ok(answer) => answer,
            // It is whole, or too long: the digest will tell.
            Err(error) if error.code() == Some("range") => return self.take_over(digest, part),
            Err(error) if error.code() == Some("no_such_blob") => {
                return Err(Problem::Final(BlobError::Missing(*digest)));
            }
            Err(error) => return Err(passing(digest, &error)),
        };
        if there > 0 && answer.status() != hyper::StatusCode::PARTIAL_CONTENT {
            file.set_len(0).map_err(here)?;
        }
        loop {
            let frame = tokio::time::timeout(limits::HTTP_ANSWER_WITHIN, answer.frame()).await;
            let frame = frame.map_err(|_| Problem::Passing("nothing came for too long".to_owned()))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| Problem::Passing(error.to_string()))?;
            if let Some(bytes) = frame.data_ref() {
                tokio::time::sleep(self.down.pass(bytes.len(), self.clock.now())).await;
                file.write_all(bytes).map_err(here)?;
                if file.metadata().map_err(here)?.len() > limits::BLOB_BYTES_MAX {
                    let _ = fs::remove_file(part);
                    return Err(Problem::Final(BlobError::TooLarge(limits::BLOB_BYTES_MAX + 1)));
                }
            }
        }
        file.sync_all().map_err(here)?;
        self.take_over(digest, part)
    }

    fn take_over(&self, digest: &Digest, part: &Path) -> Result<(), Problem> {
        match self.kept.adopt(part, digest) {
            Ok(()) => Ok(()),
            Err(BlobError::Damaged { .. }) => {
                let _ = fs::remove_file(part);
                Err(Problem::Passing("the bytes that came are not those with this digest".to_owned()))
            }
            Err(error) => Err(Problem::Final(error)),
        }
    }

    /// Sends the next pieces until the coordinator has all of them. A piece that does not arrive is tried again half as
    /// long: a line that breaks often lets some through.
    async fn upload(&self, digest: &Digest, bytes: &Bytes, sending: &Sending) -> Result<(), Problem> {
        let wrong = |error: ClientError| passing(digest, &error);
        let state: Option<Upload> = self.client.poll(&format!("/hydra/v1/uploads/{digest}")).await.map_err(wrong)?;
        let mut state = state.unwrap_or(Upload { received: 0, complete: false });
        let total = bytes.len() as u64;
        while !state.complete {
            let start = state.received.min(total);
            let most = sending.piece.get();
            let piece = bytes.slice(start as usize..(start + most).min(total) as usize);
            tokio::time::sleep(self.up.pass(piece.len(), self.clock.now())).await;
            let path = format!("{}/{digest}?offset={start}&length={total}", path::BLOBS);
            sending.piece.set((most / 2).max(PIECE_MIN));
            state = self.client.put(&path, piece).await.map_err(wrong)?;
            sending.piece.set((most * 2).min(self.up.piece(limits::HTTP_CHUNK_BYTES_MAX) as u64));
            sending.received.set(state.received);
        }
        Ok(())
    }
}

fn passing(digest: &Digest, error: &ClientError) -> Problem {
    // An offset is wrong where an earlier piece arrived and its answer did not.
    if error.is_passing() || matches!(error.code(), Some("offset" | "clock_skew" | "upload_mismatch")) {
        Problem::Passing(error.to_string())
    } else {
        Problem::Final(BlobError::Remote { digest: *digest, problem: error.to_string() })
    }
}

fn io_error(path: &Path, error: io::Error) -> BlobError {
    BlobError::Io { path: path.to_owned(), error }
}

impl Blobs for RemoteBlobs {
    /// Keeps the bytes here and at the coordinator.
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = self.kept.put(bytes)?;
        let bytes = Bytes::copy_from_slice(bytes);
        let most = self.up.piece(limits::HTTP_CHUNK_BYTES_MAX).min(bytes.len()) as u64;
        let sending = Sending { piece: Cell::new(most), received: Cell::new(0) };
        self.patiently(
            &digest,
            async || self.upload(&digest, &bytes, &sending).await,
            || (sending.received.get(), sending.piece.get()),
        )?;
        self.kept.remove(&digest)?;
        Ok(digest)
    }

    /// The bytes from here, or else from the coordinator.
    fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        match self.kept.get(digest) {
            Err(BlobError::Missing(_)) => {}
            Err(BlobError::Damaged { .. }) => self.kept.remove(digest)?,
            known => return known,
        }
        let part = self.downloads.join(digest.to_string());
        let length = || fs::metadata(&part).map_or(0, |metadata| metadata.len());
        self.patiently(digest, async || self.download(digest, &part).await, length)?;
        self.kept.get(digest)
    }

    /// Lets go of the copy that is here.
    fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        self.kept.remove(digest)
    }
}
