//! Queries to the run's newest model, as `OpenAI`'s clients make them, paid in HYD.

mod ask;
mod complete;
mod follow;
mod log;
mod ports;
mod tell;
mod till;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use warp::http::header;
use warp::reply::Response;

use self::ask::{Kind, Query};
use self::complete::complete;
pub(super) use self::follow::follow;
use self::log::AccessLog;
pub(super) use self::ports::{LedgerHere, RunHere, newer_than};
pub use self::ports::{LedgerTrouble, QueryLedger, RunPort};
pub(super) use self::till::recover;
use self::till::{Allowance, Payer, with_store};
use super::Front;
use super::request::{Asked, json, parse};
use crate::http::api::Done;
use crate::http::api::ledger::Contributor;
use crate::http::api::queries::{ApiKeys, KnownApiKey, MODEL, NewApiKey, Newest, Quote, RevokeApiKey};
use crate::http::api::watch::{PayerKind, Payment, Sample, Samples};
use crate::http::error::{ApiError, QueryError};
use crate::http::hub::Hub;
use crate::http::openapi::Endpoint;
use crate::inference::Engine;
use crate::protocol::{Amount, Digest, PublicKey, RunId, limits};
use crate::runtime::Clock;
use crate::store::{ApiKey, Blobs, OpenQuery, QueryStore, QueryStoreError};

/// What answers queries.
pub struct QueryParts {
    /// What computes.
    pub engine: Engine,
    /// API keys, and what is not settled.
    pub store: QueryStore,
    /// What a token costs, of a prompt or of what is added.
    pub price: Amount,
    /// Tokens a day that each address may use without a key.
    pub free_tokens: u64,
    /// The digest of the operator's key, which pays nothing.
    pub operator: Option<Digest>,
    /// What was asked when, and what became of it, but not what was said: lines are added.
    pub log: Option<File>,
}

/// The run that is served and the ledger that is paid, wherever they are.
pub struct QueryPorts {
    /// The run.
    pub run: Arc<dyn RunPort>,
    /// Its models.
    pub blobs: Arc<dyn Blobs>,
    /// The ledger.
    pub ledger: Arc<dyn QueryLedger>,
}

/// All that answers queries.
pub(super) struct QuerySite {
    engine: Engine,
    store: Arc<Mutex<QueryStore>>,
    price: Amount,
    free: Allowance,
    operator: Option<Digest>,
    log: Option<AccessLog>,
    run: Arc<dyn RunPort>,
    blobs: Arc<dyn Blobs>,
    ledger: Arc<dyn QueryLedger>,
    clock: Arc<dyn Clock>,
    hub: Arc<Hub>,
    /// What is known of the model that answers.
    newest: Mutex<Option<Newest>>,
    /// What each model wrote when it came, oldest first.
    samples: Mutex<VecDeque<Sample>>,
}

impl QuerySite {
    pub fn new(parts: QueryParts, ports: QueryPorts, clock: Arc<dyn Clock>, hub: Arc<Hub>) -> Self {
        let QueryParts { engine, store, price, free_tokens, operator, log } = parts;
        let QueryPorts { run, blobs, ledger } = ports;
        Self {
            engine,
            store: Arc::new(Mutex::new(store)),
            price,
            free: Allowance::new(free_tokens),
            operator,
            log: log.map(AccessLog::new),
            run,
            blobs,
            ledger,
            clock,
            hub,
            newest: Mutex::default(),
            samples: Mutex::default(),
        }
    }

    /// Queries that an earlier process has left.
    pub fn unsettled(&self) -> Result<Vec<OpenQuery>, QueryStoreError> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).open_queries()
    }

    /// Whether there is a model to answer with.
    pub fn is_ready(&self) -> bool {
        self.engine.newest().is_some()
    }

    /// The run whose model answers, once there is one.
    pub fn run(&self) -> Option<RunId> {
        self.known(|newest| newest.run)
    }

    fn known<T>(&self, read: impl FnOnce(&Newest) -> T) -> Option<T> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(read)
    }

    /// Who trained the model that answers, and how much; nothing while there is none.
    fn contributors(&self) -> Option<Vec<(PublicKey, u64)>> {
        let work = |Contributor { wallet, tokens }: &Contributor| (*wallet, *tokens);
        self.known(|newest| newest.contributors.iter().map(work).collect())
    }

    /// Has the engine's numbers known.
    pub fn measure(&self) {
        let metrics = &self.hub.queries;
        let (running, waiting) = self.engine.load();
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.running.set(number(running));
        metrics.waiting.set(number(waiting));
        let reuse = self.engine.reuse();
        metrics.prefix_bytes.set(number(reuse.bytes));
        for (counter, number) in [(&metrics.prefix_asked, reuse.asked), (&metrics.prefix_found, reuse.found)] {
            counter.inc_by(number.saturating_sub(counter.get()));
        }
    }
}

pub(super) async fn answer(
    front: &Front,
    queries: &Arc<QuerySite>,
    endpoint: Endpoint,
    asked: &mut Asked,
) -> Result<Response, ApiError> {
    match endpoint {
        Endpoint::Models => models(queries, None),
        Endpoint::Model => models(queries, Some(asked.part::<String>(2)?)),
        Endpoint::Completions => Ok(complete(front, queries, asked, Kind::Completion).await),
        Endpoint::Chat => Ok(complete(front, queries, asked, Kind::Chat).await),
        Endpoint::Quote => quote(front, queries, asked).await,
        Endpoint::NewApiKey => new_key(front, queries, asked).await,
        Endpoint::ApiKeys => keys(front, queries, asked).await,
        Endpoint::RevokeApiKey => revoke(front, queries, asked).await,
        Endpoint::Balance => payment(front, queries, asked).await,
        Endpoint::Samples => {
            let samples = queries.samples.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(json(&Samples { samples: samples.iter().cloned().collect() }))
        }
        _ => Err(ApiError::NoSuchRoute),
    }
}

/// Who would pay for a query that came like this.
async fn payment(front: &Front, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (now, address) = (front.clock.now(), asked.address(front.config.behind_proxy));
    let mut payment = Payment { payer: PayerKind::Operator, wallet: None, limit: None, spent: None, free_tokens: None };
    match queries.payer(bearer(asked), address, now).await? {
        Payer::Operator => {}
        Payer::Free(address) => {
            payment.payer = PayerKind::Allowance;
            payment.free_tokens = Some(queries.free.left(address, now));
        }
        Payer::Key { digest, wallet } => {
            let key = with_store(queries, move |store| store.find(&digest)).await.map_err(refused)?;
            (payment.payer, payment.wallet) = (PayerKind::Wallet, Some(wallet));
            (payment.limit, payment.spent) = key.map_or((None, None), |key| (key.limit, Some(key.spent)));
        }
    }
    Ok(json(&payment))
}

/// The API key that a request brings.
fn bearer(asked: &Asked) -> Option<&str> {
    asked.header(header::AUTHORIZATION.as_str()).map(|header| header.strip_prefix("Bearer ").unwrap_or_default())
}

fn no_model() -> ApiError {
    ApiError::Busy
}

fn models(queries: &QuerySite, name: Option<String>) -> Result<Response, ApiError> {
    let newest = queries.engine.newest().ok_or_else(no_model)?;
    let model = json!({
        "id": MODEL,
        "object": "model",
        "created": 0,
        "owned_by": "hydra",
        "context_length": newest.decoder.context(),
        "digest": newest.digest,
        "round": queries.known(|known| known.round),
        "price": queries.price,
    });
    match name {
        None => Ok(json(&json!({ "object": "list", "data": [model] }))),
        Some(name) if name == MODEL => Ok(json(&model)),
        Some(name) => Err(QueryError::model(&name).into()),
    }
}

async fn quote(front: &Front, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let body = asked.unsigned(front, limits::QUERY_BYTES_MAX).await?;
    let model = queries.engine.newest().ok_or_else(no_model)?;
    let chat = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body.get("messages").is_some());
    let query = Query::read(if chat { Kind::Chat } else { Kind::Completion }, &body, model.decoder.context())?;
    let (prompt_tokens, completion_tokens) = (query.prompt_tokens(), query.completion_tokens());
    let most = queries.cost(prompt_tokens + completion_tokens);
    Ok(json(&Quote { prompt_tokens, completion_tokens, price: queries.price, most }))
}

async fn new_key(front: &Front, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (wallet, body) = asked.signed(front, limits::HTTP_BODY_BYTES_MAX).await?;
    let NewApiKey { digest, name, limit, expires } = parse(&body)?;
    if name.is_empty() || name.len() > limits::API_KEY_NAME_BYTES_MAX {
        let most = limits::API_KEY_NAME_BYTES_MAX;
        return Err(ApiError::Malformed(format!("a key's name has 1 to {most} bytes")));
    }
    let key = ApiKey { digest, wallet, name, limit, spent: Amount::ZERO, expires, revoked: false };
    with_store(queries, move |store| store.add(&key)).await.map_err(refused)?;
    Ok(json(&Done { ok: true }))
}

async fn keys(front: &Front, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (wallet, _) = asked.signed(front, 0).await?;
    let keys = with_store(queries, move |store| store.of(&wallet)).await.map_err(refused)?;
    let known = |key: ApiKey| {
        let ApiKey { name, limit, spent, expires, revoked, .. } = key;
        KnownApiKey { name, limit, spent, expires, revoked }
    };
    Ok(json(&ApiKeys { keys: keys.into_iter().map(known).collect() }))
}

async fn revoke(front: &Front, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (wallet, body) = asked.signed(front, limits::HTTP_BODY_BYTES_MAX).await?;
    let RevokeApiKey { name } = parse(&body)?;
    with_store(queries, move |store| store.revoke(&wallet, &name)).await.map_err(refused)?;
    Ok(json(&Done { ok: true }))
}

fn refused(error: QueryStoreError) -> ApiError {
    match error {
        QueryStoreError::Database(_) | QueryStoreError::Sqlite(_) | QueryStoreError::Damaged => {
            ApiError::Internal(error.to_string())
        }
        error => ApiError::ApiKey(error.to_string()),
    }
}
