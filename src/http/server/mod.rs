//! The server: connections, limits, and where requests go.

mod alone;
mod blobs;
mod ledger;
mod operations;
mod page;
mod queries;
mod readers;
mod reports;
mod request;
mod status;
mod verifiers;
mod watching;
mod workers;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use actix::Addr;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, crypto::ring};
use warp::Filter;
use warp::filters::BoxedFilter;
use warp::reply::Response;

use self::alone::{LedgerOnly, QueriesOnly};
use self::ledger::LedgerSite;
use self::queries::{LedgerHere, QuerySite, RunHere};
use self::readers::Readers;
use self::request::{Asked, Peer};
use super::admission::Admission;
use super::api::queries::Newest;
use super::auth::Gate;
use super::desk::{Desk, Lane};
use super::error::ApiError;
use super::hub::Hub;
use super::openapi::{Caller, Endpoint, ROUTES, Route, Table};
use super::rate::Rates;
use super::uploads::Uploads;
use crate::coordinator::{Coordinator, Look, State};
use crate::ledger::{LedgerActor, LedgerConfig};
use crate::protocol::limits::Rate;
use crate::protocol::{Digest, PublicKey, SessionId, limits};
use crate::runtime::{Clock, Stopwatch, entropy};
use crate::store::{Archive, FolderBlobs, History};

/// What a server serves.
pub struct ServerParts {
    /// The coordinator.
    pub coordinator: Addr<Coordinator>,
    /// The ledger that pays for the run.
    pub ledger: LedgerAt,
    /// What is to be verified by others, where others verify.
    pub desk: Option<Addr<Desk>>,
    /// The blob store.
    pub blobs: Arc<FolderBlobs>,
    /// Where uploads are kept until they are whole: on the file system of the blob store.
    pub uploads: PathBuf,
    /// Blobs that everybody needs: the dataset's manifest and its shards.
    pub dataset: BTreeSet<Digest>,
    /// Who may take part.
    pub admission: Admission,
    /// What answers queries, if anything does.
    pub queries: Option<QueryParts>,
    /// What queries are paid in, where the ledger is elsewhere.
    pub query_ledger: Option<Arc<dyn QueryLedger>>,
    /// What became of the rounds.
    pub history: History,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Events and numbers.
    pub hub: Arc<Hub>,
}

/// Where the ledger of a run is.
pub enum LedgerAt {
    /// In this process.
    Here(LedgerParts),
    /// In another one, which has this address.
    Elsewhere(String),
}

/// A ledger that is served.
pub struct LedgerParts {
    /// The ledger.
    pub actor: Addr<LedgerActor>,
    /// What it has written.
    pub archive: Arc<Archive>,
    /// What it was told when it started.
    pub config: LedgerConfig,
    /// The key that it signs with.
    pub key: PublicKey,
}

pub use self::queries::{LedgerTrouble, QueryLedger, QueryParts, QueryPorts, RunPort};

/// How a server serves it.
#[derive(Debug, Clone, Default)]
pub struct ServerConfig {
    /// The operator's key, if anything is to be operated from outside.
    pub admin: Option<PublicKey>,
    /// Whose verdicts count.
    pub verifiers: BTreeSet<PublicKey>,
    /// Coordinators in other processes, whose rounds this one's ledger pays.
    pub payers: BTreeSet<PublicKey>,
    /// Who serves queries: they may hold and settle what those cost.
    pub query_servers: BTreeSet<PublicKey>,
    /// Serves HTTPS with these.
    pub tls: Option<TlsFiles>,
    /// Whether a reverse proxy stands before it, whose `X-Forwarded-For` tells the client's address.
    pub behind_proxy: bool,
    /// Whether only what anybody may read is served: nobody takes part from outside. What is uploaded is not looked after.
    pub read_only: bool,
    /// Whether the page for people is left out.
    pub no_page: bool,
    /// The folder of the reports that are shown, if any are.
    pub reports: Option<PathBuf>,
    /// Bounds on what clients may do.
    pub limits: ServerLimits,
}

/// Bounds on what clients may do.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Signed calls of one key.
    pub per_key: Rate,
    /// Requests from one address.
    pub per_address: Rate,
    /// Open connections.
    pub connections: usize,
    /// Open connections from one address.
    pub connections_per_address: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            per_key: limits::HTTP_CALLS_PER_KEY,
            per_address: limits::HTTP_CALLS_PER_ADDRESS,
            connections: limits::HTTP_CONNECTIONS_MAX,
            connections_per_address: limits::HTTP_CONNECTIONS_PER_ADDRESS,
        }
    }
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The network, the file system or the machine refused.
    #[error("the server cannot start: {0}")]
    Io(#[from] io::Error),
    /// What queries are not settled cannot be read.
    #[error("the server cannot start: {0}")]
    Queries(#[from] crate::store::QueryStoreError),
    /// A certificate or key cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// Certificate and key do not fit.
    #[error("cannot serve TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A server at work, on threads of its own. The actors stay on theirs.
pub struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<()>,
}

/// What every server has, whatever it serves: who calls, how often, and when it stops.
pub(super) struct Front {
    clock: Arc<dyn Clock>,
    hub: Arc<Hub>,
    config: ServerConfig,
    gate: Gate,
    per_key: Rates<PublicKey>,
    per_address: Rates<IpAddr>,
    stop: watch::Receiver<bool>,
}

/// All that requests to a coordinator need.
pub(super) struct Site {
    front: Front,
    coordinator: Addr<Coordinator>,
    ledger: Result<Arc<LedgerSite>, String>,
    desk: Option<Addr<Desk>>,
    blobs: Arc<FolderBlobs>,
    uploads: Uploads,
    dataset: BTreeSet<Digest>,
    admission: Admission,
    queries: Option<Arc<QuerySite>>,
    /// What was last told of the newest model.
    newest: Mutex<Option<Arc<Newest>>>,
    past: Readers<History>,
    reports: Option<Readers<PathBuf>>,
}

impl Deref for Site {
    type Target = Front;

    fn deref(&self) -> &Front {
        &self.front
    }
}

/// What answers requests.
trait Answering: Send + Sync + 'static {
    fn front(&self) -> &Front;

    /// Whether it answers requests of this kind.
    fn serves(&self, route: &Route) -> bool;

    fn answer(
        self: Arc<Self>,
        endpoint: Endpoint,
        asked: Asked,
    ) -> impl Future<Output = Result<Response, ApiError>> + Send;
}

impl Server {
    /// Serves a coordinator on `listener` until it is told to stop.
    pub fn start(
        listener: std::net::TcpListener,
        parts: ServerParts,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        let (stop, stopping) = watch::channel(false);
        let ledger = match parts.ledger {
            LedgerAt::Here(ledger) => Ok(Arc::new(LedgerSite::new(ledger))),
            LedgerAt::Elsewhere(address) => Err(address),
        };
        let pays = parts.query_ledger.or_else(|| Some(Arc::new(LedgerHere(Arc::clone(ledger.as_ref().ok()?))) as _));
        let queries = parts.queries.zip(pays).map(|(queries, ledger)| {
            let run = Arc::new(RunHere(parts.coordinator.clone()));
            let ports = QueryPorts { run, blobs: Arc::clone(&parts.blobs) as _, ledger };
            Arc::new(QuerySite::new(queries, ports, Arc::clone(&parts.clock), Arc::clone(&parts.hub)))
        });
        let reports = config.reports.clone();
        let site = Arc::new(Site {
            front: Front::new(parts.clock, parts.hub, config, stopping)?,
            coordinator: parts.coordinator,
            ledger,
            desk: parts.desk,
            uploads: Uploads::open(&parts.uploads, Arc::clone(&parts.blobs))?,
            blobs: parts.blobs,
            dataset: parts.dataset,
            admission: parts.admission,
            queries,
            newest: Mutex::default(),
            past: Readers::new(Arc::new(parts.history), limits::ARCHIVE_WAITING_MAX),
            reports: reports.map(|folder| Readers::new(Arc::new(folder), limits::REPORTS_READ_AT_A_TIME)),
        });
        let server = Self::serve(listener, Arc::clone(&site), stop)?;
        if let Some(runtime) = &server.runtime
            && !site.config.read_only
        {
            runtime.spawn(blobs::sweep(Arc::clone(&site)));
        }
        server.answer_queries(site.queries.as_ref())?;
        Ok(server)
    }

    /// Serves queries to the model of a run elsewhere, and nothing else, on `listener` until it is told to stop.
    pub fn start_queries(
        listener: std::net::TcpListener,
        parts: QueryParts,
        ports: QueryPorts,
        clock: Arc<dyn Clock>,
        hub: Arc<Hub>,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        let (stop, stopping) = watch::channel(false);
        let queries = Arc::new(QuerySite::new(parts, ports, Arc::clone(&clock), Arc::clone(&hub)));
        let front = Front::new(clock, hub, config, stopping)?;
        let server = Self::serve(listener, Arc::new(QueriesOnly { front, queries: Arc::clone(&queries) }), stop)?;
        server.answer_queries(Some(&queries))?;
        Ok(server)
    }

    /// Has queries answered by the newest model, and those settled that an earlier process has left.
    fn answer_queries(&self, queries: Option<&Arc<QuerySite>>) -> Result<(), ServerError> {
        if let Some((queries, runtime)) = queries.zip(self.runtime.as_ref()) {
            let unsettled = queries.unsettled()?;
            runtime.spawn(queries::recover(Arc::clone(queries), unsettled));
            runtime.spawn(queries::follow(Arc::clone(queries)));
        }
        Ok(())
    }

    /// Serves a ledger, and nothing else, on `listener` until it is told to stop.
    pub fn start_ledger(
        listener: std::net::TcpListener,
        ledger: LedgerParts,
        clock: Arc<dyn Clock>,
        hub: Arc<Hub>,
        config: ServerConfig,
    ) -> Result<Self, ServerError> {
        let (stop, stopping) = watch::channel(false);
        let front = Front::new(clock, hub, config, stopping)?;
        Self::serve(listener, Arc::new(LedgerOnly { front, ledger: LedgerSite::new(ledger) }), stop)
    }

    fn serve<S: Answering>(
        listener: std::net::TcpListener,
        site: Arc<S>,
        stop: watch::Sender<bool>,
    ) -> Result<Self, ServerError> {
        let tls = site.front().config.tls.as_ref().map(acceptor).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("http").enable_all().build()?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (done, stopped) = watch::channel(());
        runtime.spawn(accept(listener, tls, site, done));
        Ok(Self { runtime: Some(runtime), address, stop, stopped })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, and waits for requests under way as long as is reasonable.
    pub async fn stop(mut self) {
        // Nobody hears it when the server has died.
        let _ = self.stop.send(true);
        // An error says that the last connection is gone.
        let _ = tokio::time::timeout(limits::HTTP_DRAIN, self.stopped.changed()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, ServerError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error| ServerError::Pem { path, error }
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(wrong(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(wrong(&files.key))?;
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes connections until told to stop. `done` is dropped with the last of them.
async fn accept<S: Answering>(listener: TcpListener, tls: Option<TlsAcceptor>, site: Arc<S>, done: watch::Sender<()>) {
    let done = Arc::new(done);
    let service = TowerToHyperService::new(warp::service(routes(&site)));
    let site = site.front();
    let mut stopping = site.stop.clone();
    let room = Arc::new(Semaphore::new(site.config.limits.connections));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.changed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, most likely: some will be free again soon.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        // Behind a proxy everybody has the same address, and the proxy is what bounds them.
        let most = if site.config.behind_proxy { usize::MAX } else { site.config.limits.connections_per_address };
        if !site.hub.connect(peer.ip(), most) {
            continue;
        }
        let service = service.clone();
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(Peer(peer.ip()));
            service.call(request)
        });
        let (tls, stopping, hub, done) = (tls.clone(), stopping.clone(), Arc::clone(&site.hub), Arc::clone(&done));
        tokio::spawn(async move {
            serve(stream, tls, service, stopping).await;
            hub.disconnect(peer.ip());
            drop((permit, done));
        });
    }
}

async fn serve<S>(stream: TcpStream, tls: Option<TlsAcceptor>, service: S, stopping: watch::Receiver<bool>)
where
    S: Service<hyper::Request<hyper::body::Incoming>, Response = Response, Error = std::convert::Infallible>,
    S::Future: Send,
{
    // Answers are small and waited for. Where it cannot be set, they come a little later.
    let _ = stream.set_nodelay(true);
    match tls {
        None => speak(stream, service, stopping).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(limits::HTTP_HEAD_WITHIN, tls.accept(stream)).await {
                speak(stream, service, stopping).await;
            }
        }
    }
}

async fn speak<S, T>(stream: T, service: S, mut stopping: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<hyper::Request<hyper::body::Incoming>, Response = Response, Error = std::convert::Infallible>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HTTP_HEAD_WITHIN)
        .max_buf_size(limits::HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        // What a client does wrong on its connection is told to it, not to us.
        _ = connection.as_mut() => return,
        _ = stopping.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// One filter for all routes: which it is, a table says. (A chain of sixty filters, each tried after the other, took more of
/// a request's time than everything else but its signatures.)
fn routes<S: Answering>(site: &Arc<S>) -> BoxedFilter<(Response,)> {
    let site = Arc::clone(site);
    let table = Arc::new(Table::new(ROUTES.iter().filter(|route| site.serves(route))));
    let filter = request::asked().then(move |asked: Asked| {
        let (site, table) = (Arc::clone(&site), Arc::clone(&table));
        async move {
            let route = match table.find(asked.method(), asked.path()) {
                Ok(route) => route,
                Err(error) => return error.into_response(),
            };
            let watch = Stopwatch::start();
            let front = site.front();
            let address = asked.address(front.config.behind_proxy);
            let answer = match front.per_address.take(address, front.clock.now()) {
                Ok(()) => Arc::clone(&site).answer(route.endpoint, asked).await,
                Err(pause) => Err(ApiError::TooManyCalls(pause)),
            };
            let response = answer.unwrap_or_else(ApiError::into_response);
            front.hub.answered(route.path, response.status().as_u16(), watch.elapsed());
            response
        }
    });
    filter.boxed().recover(refuse).unify().boxed()
}

async fn refuse(rejection: warp::Rejection) -> Result<Response, std::convert::Infallible> {
    Ok(ApiError::Malformed(format!("{rejection:?}")).into_response())
}

impl Front {
    fn new(
        clock: Arc<dyn Clock>,
        hub: Arc<Hub>,
        config: ServerConfig,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, ServerError> {
        let mut session = [0; 32];
        entropy(&mut session)?;
        Ok(Self {
            clock,
            hub,
            gate: Gate::new(SessionId(Digest::from_bytes(session))),
            per_key: Rates::new(config.limits.per_key, limits::HTTP_RATES_MAX),
            per_address: Rates::new(config.limits.per_address, limits::HTTP_RATES_MAX),
            stop,
            config,
        })
    }
}

impl Answering for Site {
    fn front(&self) -> &Front {
        &self.front
    }

    fn serves(&self, route: &Route) -> bool {
        let for_all = matches!(route.caller, Caller::Anybody | Caller::ApiKey);
        (for_all || !self.config.read_only) && !(self.config.no_page && route.is_of_page())
    }

    async fn answer(self: Arc<Self>, endpoint: Endpoint, mut asked: Asked) -> Result<Response, ApiError> {
        let (site, asked) = (&self, &mut asked);
        match endpoint {
            Endpoint::Pass => workers::pass(site, asked).await,
            Endpoint::Register => workers::register(site, asked).await,
            Endpoint::Lease
            | Endpoint::Commit
            | Endpoint::Submit
            | Endpoint::Heartbeat
            | Endpoint::Appeal
            | Endpoint::GiveBack => workers::ask(site, endpoint, asked).await,
            // In a box: thousands of workers wait, and room for the largest of these would else be kept for each.
            endpoint => Box::pin(self.answer_others(endpoint, asked)).await,
        }
    }
}

impl Site {
    /// What is not a worker's.
    async fn answer_others(self: &Arc<Self>, endpoint: Endpoint, asked: &mut Asked) -> Result<Response, ApiError> {
        let site = self;
        match endpoint {
            Endpoint::Health => Ok(status::plain("alive\n")),
            Endpoint::Ready => status::ready(site).await,
            Endpoint::Metrics => {
                site.queries.iter().for_each(|queries| queries.measure());
                status::metrics(site, site.ledger.as_deref().ok()).await
            }
            Endpoint::OpenApi => {
                let routes = ROUTES.iter().filter(|route| site.serves(route));
                Ok(request::json(&super::openapi::document(routes)))
            }
            Endpoint::Hello => status::hello(site).await,
            Endpoint::Status => status::status(site).await,
            Endpoint::Audits => status::audits(site, asked).await,
            Endpoint::Events => status::events(site),
            Endpoint::ReadBlob => blobs::read(site, asked).await,
            Endpoint::UploadProgress => blobs::progress(site, asked).await,
            Endpoint::Upload => blobs::upload(site, asked).await,
            Endpoint::TakeCheck => verifiers::take(site, asked, Lane::Check).await,
            Endpoint::TakeReplay => verifiers::take(site, asked, Lane::Replay).await,
            Endpoint::Verdicts => verifiers::verdicts(site, asked).await,
            Endpoint::Finish => operations::finish(site, asked).await,
            Endpoint::Invite => operations::invite(site, asked).await,
            Endpoint::Keys => operations::keys(site, asked).await,
            Endpoint::Models
            | Endpoint::Model
            | Endpoint::Completions
            | Endpoint::Chat
            | Endpoint::Quote
            | Endpoint::NewApiKey
            | Endpoint::ApiKeys
            | Endpoint::RevokeApiKey
            | Endpoint::Balance
            | Endpoint::Samples => {
                let queries = site.queries.as_ref().ok_or(ApiError::NotServing)?;
                queries::answer(&site.front, queries, endpoint, asked).await
            }
            Endpoint::Newest => status::newest(site).await,
            Endpoint::Rounds => watching::rounds(site, asked).await,
            Endpoint::Round => watching::round(site, asked).await,
            Endpoint::Workers => watching::workers(site, asked).await,
            Endpoint::Reports => reports::list(site).await,
            Endpoint::Report => reports::show(site, asked).await,
            Endpoint::Page => page::index(asked),
            Endpoint::PageFile => page::asset(asked),
            endpoint => match &site.ledger {
                Ok(ledger) => ledger::answer(&site.front, ledger, endpoint, asked).await,
                Err(elsewhere) => Err(ApiError::LedgerElsewhere(elsewhere.clone())),
            },
        }
    }

    /// Reads something of what the coordinator knows.
    async fn look<T: Send + 'static>(&self, read: impl FnOnce(&State) -> T + Send + 'static) -> Result<T, ApiError> {
        let answer = self.coordinator.send(Look::new(read)).await;
        answer.map_err(|_| ApiError::Internal("the coordinator does not answer".into()))
    }

    /// Whether `key` may take part.
    fn admitted(&self, key: &PublicKey) -> Result<(), ApiError> {
        self.admission.check(key).map_err(ApiError::NotAdmitted)
    }
}
