use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use tokio::runtime::Runtime;

use super::client::{connect, innermost};
use crate::protocol::{Digest, limits};
use crate::store::{BlobArchive, BlobError, Blobs};

/// Blobs are sent in parts of so many bytes from this size on: one request has two minutes.
const PART: usize = 16 << 20;

/// How often a request that fails in passing is tried again, and for how long.
const TRIES: usize = 6;
const TRY_FOR: Duration = Duration::from_mins(1);

/// Blobs in a bucket of S3, or of anything that speaks like it, each under its digest.
///
/// Endpoint, region and keys come from the usual `AWS_*` variables. Its methods block, on any thread: the requests run
/// on a thread of their own.
pub struct Bucket {
    url: String,
    store: Arc<AmazonS3>,
    prefix: object_store::path::Path,
    runtime: Option<Runtime>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The store knows keys.
        f.debug_struct("Bucket").field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// Not an address of a bucket.
    #[error("{0} is no address of a bucket: it must look like s3://bucket or s3://bucket/prefix")]
    Address(String),
    /// The machine refused.
    #[error("cannot reach buckets: {0}")]
    Machine(#[from] std::io::Error),
    /// The bucket is not there, or refused.
    #[error(
        "cannot use {url}: {problem}. Endpoint, region and keys come from AWS_ENDPOINT, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Refused {
        /// Of the bucket.
        url: String,
        /// What went wrong.
        problem: String,
    },
}

impl Bucket {
    /// The bucket at `url` (`s3://bucket/prefix`), asked once whether it is there.
    pub fn open(url: &str) -> Result<Self, BucketError> {
        let address = || BucketError::Address(url.to_owned());
        let place = url.strip_prefix("s3://").ok_or_else(address)?;
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = object_store::path::Path::parse(prefix.trim_end_matches('/')).map_err(|_| address())?;
        if name.is_empty() {
            return Err(address());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let refused =
            |error: object_store::Error| BucketError::Refused { url: url.to_owned(), problem: innermost(&error) };
        let retry = RetryConfig { max_retries: TRIES, retry_timeout: TRY_FOR, ..RetryConfig::default() };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_retry(retry)
            .with_http_connector(Connector)
            .build()
            .map_err(refused)?;
        let bucket = Self { url: url.to_owned(), store: Arc::new(store), prefix, runtime: Some(runtime) };
        let (store, prefix) = (Arc::clone(&bucket.store), bucket.prefix.clone());
        bucket.wait(async move { store.list(Some(&prefix)).next().await.transpose() }).map_err(refused)?;
        Ok(bucket)
    }

    fn place(&self, digest: &Digest) -> object_store::path::Path {
        self.prefix.clone().join(digest.to_string())
    }

    /// Does something on the bucket's thread and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> object_store::Result<T> {
        let stopped = || object_store::Error::Generic { store: "S3", source: "its thread has stopped".into() };
        let (tell, heard) = std::sync::mpsc::sync_channel(1);
        let runtime = self.runtime.as_ref().ok_or_else(stopped)?;
        // Whoever waits is there until it is done.
        runtime.spawn(async move { drop(tell.send(work.await)) });
        heard.recv().map_err(|_| stopped())?
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn remote(digest: &Digest) -> impl FnOnce(object_store::Error) -> BlobError + use<> {
    let digest = *digest;
    move |error| match error {
        object_store::Error::NotFound { .. } => BlobError::Missing(digest),
        error => BlobError::Remote { digest, problem: innermost(&error) },
    }
}

impl Blobs for Bucket {
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        if bytes.len() as u64 > limits::BLOB_BYTES_MAX {
            return Err(BlobError::TooLarge(bytes.len() as u64));
        }
        let digest = Digest::of(bytes);
        let (store, place, bytes) = (Arc::clone(&self.store), self.place(&digest), Bytes::copy_from_slice(bytes));
        let sent = self.wait(async move {
            if bytes.len() <= PART {
                return store.put(&place, bytes.into()).await.map(drop);
            }
            let mut parts = WriteMultipart::new_with_chunk_size(store.put_multipart(&place).await?, PART);
            for part in 0..bytes.len().div_ceil(PART) {
                parts.wait_for_capacity(2).await?;
                parts.put(bytes.slice(part * PART..((part + 1) * PART).min(bytes.len())));
            }
            parts.finish().await.map(drop)
        });
        sent.map_err(remote(&digest))?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let (store, place) = (Arc::clone(&self.store), self.place(digest));
        let bytes = self.wait(async move {
            let found = store.get(&place).await?;
            let mut bytes = Vec::new();
            let mut stream = found.into_stream();
            loop {
                let piece = tokio::time::timeout(limits::HTTP_ANSWER_WITHIN, stream.try_next()).await;
                let slow = |error| object_store::Error::Generic { store: "S3", source: Box::new(error) };
                let Some(piece) = piece.map_err(slow)?? else { return Ok(bytes) };
                if (bytes.len() + piece.len()) as u64 > limits::BLOB_BYTES_MAX {
                    return Err(object_store::Error::Generic { store: "S3", source: "it is too large".into() });
                }
                bytes.extend_from_slice(&piece);
            }
        });
        let bytes = bytes.map_err(remote(digest))?;
        if Digest::of(&bytes) == *digest {
            return Ok(bytes);
        }
        Err(BlobError::Remote { digest: *digest, problem: format!("what {} has of it is damaged", self.url) })
    }

    /// Does not wait: what cannot be removed now is when the run is next begun.
    fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        let (store, place) = (Arc::clone(&self.store), self.place(digest));
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { store.delete(&place).await });
        }
        Ok(())
    }
}

impl BlobArchive for Bucket {
    fn list(&self) -> Result<BTreeSet<Digest>, BlobError> {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        let found = self.wait(async move {
            // What has another name is not ours.
            let digest = |object: object_store::ObjectMeta| object.location.filename()?.parse::<Digest>().ok();
            let here = |object: &object_store::ObjectMeta| object.location.prefix_match(&prefix).map(Iterator::count);
            let mut found = BTreeSet::new();
            let mut objects = store.list(Some(&prefix));
            while let Some(object) = objects.try_next().await? {
                if here(&object) == Some(1) {
                    found.extend(digest(object));
                }
            }
            Ok(found)
        });
        found.map_err(remote(&Digest::of(&[])))
    }
}

/// Lets `object_store` speak through the same client as everything else.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        // Where a private store's certificate comes from, as other programs have it.
        let authorities = std::env::var_os("AWS_CA_BUNDLE");
        let client = connect(authorities.as_deref().map(Path::new))
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(HttpClient::new(Http(client)))
    }
}

#[derive(Debug)]
struct Http(hyper_util::client::legacy::Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

#[async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = tokio::time::timeout(limits::HTTP_BODY_WITHIN, self.0.request(request)).await;
        let answer = answer.map_err(|error| HttpError::new(HttpErrorKind::Timeout, error))?;
        let answer = answer.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
            HttpError::new(kind, std::io::Error::other(innermost(&error)))
        })?;
        let broken = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(answer.map(|body| HttpResponseBody::new(body.map_err(broken))))
    }
}
