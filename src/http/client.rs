use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError};
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, Response, StatusCode, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::{self, RootCertStore, crypto::ring};
use zeroize::Zeroizing;

use super::api::{ErrorBody, ErrorDetail, Hello, NewPass, Pass, path};
use super::auth::{authorization, pass_authorization};
use crate::protocol::{
    Call, Digest, ExchangeSecret, Keypair, PassId, PassKey, PassedCall, SessionId, Signed, Time, WorkerReply,
    WorkerRequest, limits,
};
use crate::runtime::{Clock, entropy};

/// How long to try to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Idle connections are given up before the server gives them up.
const IDLE: Duration = Duration::from_secs(20);

/// Calls a coordinator process over HTTP, signing what must be signed.
pub struct Client {
    base: String,
    key: Keypair,
    clock: Arc<dyn Clock>,
    http: hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    session: Mutex<Option<SessionId>>,
    pass: Mutex<Option<Arc<HeldPass>>>,
}

/// A pass that the server has given, and the calls made with it so far.
struct HeldPass {
    id: PassId,
    key: PassKey,
    calls: AtomicU64,
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address of a server.
    #[error("{0} is no address of a server: it must look like http://host:port or https://host:port")]
    Address(String),
    /// The server cannot be reached, or the connection broke.
    #[error("cannot reach {base}: {problem}")]
    Unreachable {
        /// The server.
        base: String,
        /// What went wrong.
        problem: String,
    },
    /// The server refused.
    #[error("the server refuses ({}): {}", .detail.code, .detail.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        detail: Box<ErrorDetail>,
    },
    /// The server answered something that this build does not understand.
    #[error("the server's answer is not understood: {0}")]
    Answer(String),
    /// A certificate file cannot be read.
    #[error("cannot read the certificates in {}: {error}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// The machine has no TLS or no randomness to offer.
    #[error("cannot make a client: {0}")]
    Machine(#[from] io::Error),
    /// TLS cannot be set up.
    #[error("cannot use TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl HeldPass {
    /// The header of the next call.
    fn prove(&self, method: &Method, path: &str, body: &[u8], time: Time) -> String {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let body = Digest::of(body);
        let code = self.key.code(method.as_str(), path, &body, time, number);
        pass_authorization(&PassedCall { pass: self.id, number, time, body, code })
    }
}

impl ClientError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// The code that the server gave.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { detail, .. } => Some(&detail.code),
            _ => None,
        }
    }
}

impl Client {
    /// A client of the coordinator at `base` (`http://host:port`) that signs with `key`. `authorities` are
    /// certificates to trust besides the well-known ones.
    pub fn new(
        base: &str,
        key: Keypair,
        clock: Arc<dyn Clock>,
        authorities: Option<&Path>,
    ) -> Result<Self, ClientError> {
        let base = base.trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().map_err(|_| ClientError::Address(base.clone()))?;
        let plain = matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/" && uri.query().is_none();
        if !plain || uri.host().is_none() {
            return Err(ClientError::Address(base));
        }
        let http = connect(authorities)?;
        Ok(Self { base, key, clock, http, session: Mutex::new(None), pass: Mutex::new(None) })
    }

    /// Where the coordinator is.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Who calls.
    #[must_use]
    pub fn key(&self) -> &Keypair {
        &self.key
    }

    /// Asks the server who it is, and signs for it from now on.
    pub async fn hello(&self) -> Result<Hello, ClientError> {
        let hello: Hello = self.get(path::HELLO).await?;
        self.remember(hello.session);
        Ok(hello)
    }

    /// Reads what anybody may read.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.request(&Method::GET, path, Bytes::new(), None, None)?;
        self.read_json(self.send(request, limits::HTTP_ANSWER_WITHIN).await?).await
    }

    /// A signed call with a body of JSON.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        self.read_json(self.call(Method::POST, path, body.into(), None).await?).await
    }

    /// A worker's request. Only what others must be able to check is signed; the rest is proved by a pass, which is asked
    /// for where there is none.
    pub async fn ask(&self, path: &str, request: &Signed) -> Result<WorkerReply, ClientError> {
        let unclear = |error: &dyn std::fmt::Display| ClientError::Answer(error.to_string());
        let content: WorkerRequest = request.claimed_message().map_err(|error| unclear(&error))?;
        let body = match &content {
            WorkerRequest::Commit(_) | WorkerRequest::Appeal(_) => serde_json::to_vec(request),
            content => serde_json::to_vec(content),
        };
        let body: Bytes = body.map_err(|error| unclear(&error))?.into();
        for last in [false, true] {
            let pass = self.pass().await?;
            let proof = pass.prove(&Method::POST, path, &body, self.clock.now());
            let request = self.request(&Method::POST, path, body.clone(), Some(proof), None)?;
            match self.send(request, limits::HTTP_ANSWER_WITHIN).await {
                // The server was started anew, or the pass is over.
                Err(ClientError::Refused { detail, .. }) if !last && detail.code == "no_such_pass" => {
                    self.held_pass().take_if(|held| held.id == pass.id);
                }
                answer => return self.read_json(answer?).await,
            }
        }
        Err(ClientError::Answer("the server forgets its passes at once".to_owned()))
    }

    /// The pass that there is, or a new one.
    async fn pass(&self) -> Result<Arc<HeldPass>, ClientError> {
        if let Some(pass) = &*self.held_pass() {
            return Ok(Arc::clone(pass));
        }
        let mut secret = Zeroizing::new([0; 32]);
        entropy(&mut *secret)?;
        let secret = ExchangeSecret::from_bytes(*secret);
        let asked = secret.public();
        let given: Pass = self.post(path::PASS, &NewPass { exchange: asked }).await?;
        let key = PassKey::agree(&secret, given.exchange, asked, given.exchange, &self.key.public(), given.session);
        let key = key.ok_or_else(|| ClientError::Answer("it gives a pass that everybody knows".to_owned()))?;
        let pass = Arc::new(HeldPass { id: given.pass, key, calls: AtomicU64::new(0) });
        *self.held_pass() = Some(Arc::clone(&pass));
        Ok(pass)
    }

    fn held_pass(&self) -> MutexGuard<'_, Option<Arc<HeldPass>>> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A signed call that brings JSON, or nothing when there is nothing.
    pub async fn poll<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ClientError> {
        let response = self.call(Method::GET, path, Bytes::new(), None).await?;
        if response.status() == StatusCode::NO_CONTENT { Ok(None) } else { self.read_json(response).await.map(Some) }
    }

    /// A signed call that sends bytes and brings JSON.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<T, ClientError> {
        self.read_json(self.call(Method::PUT, path, body, None).await?).await
    }

    /// A signed call for bytes from `offset` on.
    pub async fn bytes_from(&self, path: &str, offset: u64) -> Result<Response<Incoming>, ClientError> {
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        self.call(Method::GET, path, Bytes::new(), range).await
    }

    /// Asks with an API key for what comes piece by piece: hands each server-sent event to `see`, until that says to stop.
    pub async fn stream<B: Serialize>(
        &self,
        path: &str,
        key: Option<&str>,
        body: &B,
        mut see: impl FnMut(&serde_json::Value) -> bool,
    ) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer(error.to_string()))?;
        let bearer = key.map(|key| format!("Bearer {key}"));
        let request = self.request(&Method::POST, path, body.into(), bearer, None)?;
        let mut body = self.send(request, limits::HTTP_ANSWER_WITHIN).await?.into_body();
        let mut held: Vec<u8> = Vec::new();
        loop {
            let frame = tokio::time::timeout(limits::HTTP_ANSWER_WITHIN, body.frame()).await;
            let frame = frame.map_err(|_| self.unreachable("nothing came for too long".to_owned()))?;
            let Some(frame) = frame else { return Err(ClientError::Answer("it has no end".to_owned())) };
            let frame = frame.map_err(|error| self.unreachable(innermost(&error)))?;
            held.extend(frame.into_data().unwrap_or_default());
            if held.len() > limits::HTTP_ANSWER_BYTES_MAX {
                return Err(ClientError::Answer("a line is too long".to_owned()));
            }
            while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = held.drain(..=end).collect();
                let Some(data) = line.trim_ascii().strip_prefix(b"data:") else { continue };
                if data.trim_ascii() == b"[DONE]" {
                    return Ok(());
                }
                let event: serde_json::Value =
                    serde_json::from_slice(data).map_err(|error| ClientError::Answer(error.to_string()))?;
                if let Some(message) = event["error"]["message"].as_str() {
                    return Err(ClientError::Answer(message.to_owned()));
                }
                if !see(&event) {
                    return Ok(());
                }
            }
        }
    }

    /// Makes a signed call: the answer, whose body is still to be read. Where the server has been started anew, it is
    /// signed once more for the new session.
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        range: Option<String>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut session = self.session();
        for last in [false, true] {
            let known = match session {
                Some(session) => session,
                None => self.hello().await?.session,
            };
            let signature = self.sign(known, &method, path, &body)?;
            let request = self.request(&method, path, body.clone(), Some(signature), range.as_deref())?;
            match self.send(request, limits::HTTP_ANSWER_WITHIN).await {
                Err(ClientError::Refused { detail, .. }) if !last && detail.code == "other_session" => {
                    session = detail.session;
                    if let Some(session) = session {
                        self.remember(session);
                    }
                }
                answer => return answer,
            }
        }
        Err(ClientError::Answer("the server changes its session all the time".to_owned()))
    }

    fn session(&self) -> Option<SessionId> {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, session: SessionId) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    fn sign(&self, session: SessionId, method: &Method, path: &str, body: &[u8]) -> Result<String, ClientError> {
        let mut nonce = [0; 16];
        entropy(&mut nonce)?;
        let (method, path) = (method.to_string(), path.to_owned());
        let call = Call { session, method, path, body: Digest::of(body), time: self.clock.now(), nonce };
        Ok(authorization(&self.key, &call))
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        authorization: Option<String>,
        range: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::USER_AGENT, concat!("hydra/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        request.body(Full::new(body)).map_err(|error| ClientError::Answer(error.to_string()))
    }

    async fn send(&self, request: Request<Full<Bytes>>, within: Duration) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |problem| self.unreachable(problem);
        let response = tokio::time::timeout(within, self.http.request(request))
            .await
            .map_err(|_| unreachable("no answer in time".to_owned()))?
            .map_err(|error| unreachable(innermost(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.read(response).await?;
        let detail = serde_json::from_slice::<ErrorBody>(&body).map_or_else(
            // Not one of ours: a proxy in between, or another program.
            |_| ErrorDetail {
                code: "unknown".to_owned(),
                message: format!("HTTP status {status}"),
                session: None,
                time: None,
                received: None,
                available: None,
            },
            |body| body.error,
        );
        Err(ClientError::Refused { status: status.as_u16(), detail: Box::new(detail) })
    }

    fn unreachable(&self, problem: String) -> ClientError {
        ClientError::Unreachable { base: self.base.clone(), problem }
    }

    /// Reads a body that is not to be larger than an answer ever is.
    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = http_body_util::Limited::new(response.into_body(), limits::HTTP_ANSWER_BYTES_MAX);
        let body = tokio::time::timeout(limits::HTTP_BODY_WITHIN, body.collect()).await;
        let body = body.map_err(|_| self.unreachable("the answer did not come in time".to_owned()))?;
        match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(ClientError::Answer(error.to_string())),
            // The connection broke.
            Err(error) => Err(self.unreachable(innermost(&*error))),
        }
    }

    async fn read_json<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, ClientError> {
        serde_json::from_slice(&self.read(response).await?).map_err(|error| ClientError::Answer(error.to_string()))
    }
}

/// A client of HTTP and HTTPS that trusts the well-known certificates and those in the file `authorities`.
pub(super) fn connect<B>(
    authorities: Option<&Path>,
) -> Result<hyper_util::client::legacy::Client<HttpsConnector<HttpConnector>, B>, ClientError>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = authorities {
        let wrong = |error| ClientError::Certificates { path: path.to_owned(), error };
        for certificate in CertificateDer::pem_file_iter(path).map_err(wrong)? {
            roots.add(certificate.map_err(wrong)?)?;
        }
    }
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WITHIN));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .build(connector))
}

/// What went wrong first, which says more than what followed from it.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
