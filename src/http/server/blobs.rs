use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::{Reply, Response};

use super::Site;
use super::request::{Asked, json};
use crate::http::admission::AdmissionRule;
use crate::http::error::ApiError;
use crate::protocol::{Digest, PublicKey, limits};
use crate::store::BlobError;

/// Bytes read from a file at a time: enough to make a system call worth it, little enough for thousands of slow
/// readers.
const PIECE: usize = 256 * 1024;

/// How often uploads that nobody needs are cleared away.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// A blob or a range of it, to whom it concerns: models and data to everybody who may take part, payloads to verifiers
/// only, so that nobody copies a rival's work.
pub(super) async fn read(site: &Arc<Site>, asked: &mut Asked) -> Result<Response, ApiError> {
    let digest = asked.digest()?;
    let mut all = false;
    if asked.is_signed() || site.admission.rule() != AdmissionRule::Open {
        let (caller, _) = asked.signed(site, 0).await?;
        all = site.config.verifiers.contains(&caller) || site.config.admin == Some(caller);
        // Who serves queries reads models, whoever may train.
        if !all && !site.config.query_servers.contains(&caller) {
            site.admitted(&caller)?;
        }
    }
    if !all && !is_public(site, digest).await? {
        return Err(ApiError::NoSuchBlob);
    }
    let blobs = Arc::clone(&site.blobs);
    let opened = blocking(move || {
        let path = blobs.fetch(&digest).map_err(|error| match error {
            BlobError::Missing(_) => io::ErrorKind::NotFound.into(),
            error => io::Error::other(error),
        })?;
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    });
    let (file, length) = match opened.await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ApiError::NoSuchBlob),
        opened => opened.map_err(|error| ApiError::Internal(error.to_string()))?,
    };
    let range = match asked.header(header::RANGE.as_str()).map(|text| parse_range(text, length)) {
        Some(Some(Err(()))) => return Err(ApiError::Range { length }),
        Some(Some(Ok(range))) => Some(range),
        // A kind of range that we do not know is ignored, as the standard has it.
        None | Some(None) => None,
    };
    let (start, end) = range.unwrap_or((0, length));
    site.hub.sent.inc_by(end - start);
    let mut response = warp::reply::stream(pieces(file, start, end)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, (end - start).into());
    // The name is the content: whoever has it need never ask again.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, tag);
    }
    if range.is_some()
        && let Ok(range) = HeaderValue::from_str(&format!("bytes {start}-{}/{length}", end - 1))
    {
        headers.insert(header::CONTENT_RANGE, range);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

async fn is_public(site: &Site, digest: Digest) -> Result<bool, ApiError> {
    if site.dataset.contains(&digest) {
        return Ok(true);
    }
    site.look(move |state| state.is_base(&digest)).await
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` as first byte and end; `Err` when it lies outside, `None` when it is something
/// else.
fn parse_range(text: &str, length: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(length)),
        (Ok(first), Err(_)) if last.is_empty() => (first, length),
        (Err(_), Ok(last)) if first.is_empty() => (length.saturating_sub(last), length),
        _ => return None,
    };
    Some(if start < end { Ok((start, end)) } else { Err(()) })
}

fn pieces(file: File, start: u64, end: u64) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    stream::try_unfold((Some(file), start), move |(file, at)| async move {
        let Some(mut file) = file.filter(|_| at < end) else { return Ok(None) };
        let (piece, file) = blocking(move || {
            if at == start {
                file.seek(SeekFrom::Start(start))?;
            }
            let mut piece = Vec::with_capacity(PIECE.min(usize::try_from(end - at).unwrap_or(PIECE)));
            (&mut file).take((end - at).min(PIECE as u64)).read_to_end(&mut piece)?;
            Ok((piece, file))
        })
        .await?;
        if piece.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let at = at + piece.len() as u64;
        Ok(Some((Bytes::from(piece), (Some(file), at))))
    })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The most that the caller may upload under `digest`: only a payload that they have committed to in the open round.
async fn allowed(site: &Site, caller: PublicKey, digest: Digest) -> Result<u64, ApiError> {
    let most = site.look(move |state| {
        // No codec takes more than the four bytes of a plain number, and a few for a header.
        state.committed(&caller, &digest).map(|task| task.model.parameters() * 4 + 64 * 1024)
    });
    most.await?.ok_or(ApiError::NotCommitted)
}

pub(super) async fn progress(site: &Arc<Site>, asked: &mut Asked) -> Result<Response, ApiError> {
    let (caller, _) = asked.admitted(site, 0).await?;
    let digest = asked.digest()?;
    allowed(site, caller, digest).await?;
    Ok(json(&site.uploads.progress(&digest)))
}

pub(super) async fn upload(site: &Arc<Site>, asked: &mut Asked) -> Result<Response, ApiError> {
    let (caller, piece) = asked.admitted(site, limits::HTTP_CHUNK_BYTES_MAX).await?;
    let digest = asked.digest()?;
    let (offset, length) = (asked.number("offset")?, asked.number("length")?);
    let most = allowed(site, caller, digest).await?;
    if length > most {
        return Err(ApiError::TooLarge { limit: usize::try_from(most).unwrap_or(usize::MAX) });
    }
    site.hub.heard(caller, site.clock.now(), false);
    let site = Arc::clone(site);
    let stored = tokio::task::spawn_blocking(move || site.uploads.append(&digest, offset, length, &piece)).await;
    Ok(json(&stored.map_err(|error| ApiError::Internal(error.to_string()))??))
}

/// Clears away, now and then, what was uploaded and is not needed any more.
pub(super) async fn sweep(site: Arc<Site>) {
    let mut stop = site.stop.clone();
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        // What cannot be cleared away now may be the next time.
        let _ = sweep_once(&site).await;
    }
}

async fn sweep_once(site: &Arc<Site>) -> Result<(), ApiError> {
    // In this order: whatever is there now was committed to before, so it is among what the coordinator then wants.
    let mut unwanted = site.uploads.list().map_err(|error| ApiError::Internal(error.to_string()))?;
    let state = site.look(|state| {
        let models: BTreeSet<Digest> = state.lineage().iter().map(|model| model.digest).collect();
        (state.blobs(), models)
    });
    let (wanted, mut kept) = state.await?;
    unwanted.retain(|digest| !wanted.contains(digest));
    kept.extend(&site.dataset);
    let site = Arc::clone(site);
    let cleared = tokio::task::spawn_blocking(move || site.uploads.clear(&unwanted, &kept)).await;
    cleared
        .map_err(|error| ApiError::Internal(error.to_string()))?
        .map_err(|error| ApiError::Internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        assert_eq!(parse_range("bytes=0-4", 10), Some(Ok((0, 5))));
        assert_eq!(parse_range("bytes=5-", 10), Some(Ok((5, 10))));
        assert_eq!(parse_range("bytes=-3", 10), Some(Ok((7, 10))));
        assert_eq!(parse_range("bytes=5-99", 10), Some(Ok((5, 10))));
        assert_eq!(parse_range("bytes=0-18446744073709551615", 10), Some(Ok((0, 10))));
        assert_eq!(parse_range("bytes=10-", 10), Some(Err(())));
        assert_eq!(parse_range("bytes=-0", 10), Some(Err(())));
        for other in ["bytes=4-2", "bytes=", "bytes=-", "lines=1-2", "bytes=0-1,3-4", "bytes=a-b"] {
            assert_eq!(parse_range(other, 10), None, "{other}");
        }
    }
}
