//! Queries to the run's newest model, as `OpenAI`'s clients make them, paid in HYD.

mod ask;
mod log;
mod tell;
mod till;

use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use warp::http::header;
use warp::reply::{Reply, Response};

use self::ask::{Kind, Query};
use self::log::{AccessLog, Entry};
use self::tell::{Choice, Head, Usage};
pub(super) use self::till::recover;
use self::till::{Allowance, Bill, Payer, hold, with_store};
use super::Site;
use super::request::{Asked, json, parse};
use crate::http::api::Done;
use crate::http::api::queries::{ApiKeys, KnownApiKey, MODEL, NewApiKey, Quote, RevokeApiKey};
use crate::http::api::watch::{PayerKind, Payment, Sample, Samples};
use crate::http::error::{ApiError, QueryError};
use crate::http::openapi::Endpoint;
use crate::inference::{Engine, Event, Model, NoPlace, Place};
use crate::model::{Decoder, checkpoint};
use crate::protocol::{Amount, Digest, Round, limits};
use crate::runtime::{Stopwatch, entropy};
use crate::store::{ApiKey, Blobs, OpenQuery, QueryStore, QueryStoreError};

/// How often to look for a newer model.
const LOOK: Duration = Duration::from_secs(1);

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

/// All that queries need besides the run.
pub(super) struct QuerySite {
    engine: Engine,
    store: Arc<Mutex<QueryStore>>,
    price: Amount,
    free: Allowance,
    operator: Option<Digest>,
    log: Option<AccessLog>,
    /// What each model wrote when it came, oldest first.
    samples: Mutex<VecDeque<Sample>>,
}

impl QuerySite {
    pub fn new(parts: QueryParts) -> Self {
        let QueryParts { engine, store, price, free_tokens, operator, log } = parts;
        let (store, free, log) = (Arc::new(Mutex::new(store)), Allowance::new(free_tokens), log.map(AccessLog::new));
        Self { engine, store, price, free, operator, log, samples: Mutex::default() }
    }

    /// Queries that an earlier process has left.
    pub fn unsettled(&self) -> Result<Vec<OpenQuery>, QueryStoreError> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).open_queries()
    }
}

pub(super) async fn answer(site: &Arc<Site>, endpoint: Endpoint, asked: &mut Asked) -> Result<Response, ApiError> {
    let queries = site.queries.as_ref().ok_or(ApiError::NotServing)?;
    match endpoint {
        Endpoint::Models => models(queries, None),
        Endpoint::Model => models(queries, Some(asked.part::<String>(2)?)),
        Endpoint::Completions => complete(site, queries, asked, Kind::Completion).await,
        Endpoint::Chat => complete(site, queries, asked, Kind::Chat).await,
        Endpoint::Quote => quote(site, queries, asked).await,
        Endpoint::NewApiKey => new_key(site, queries, asked).await,
        Endpoint::ApiKeys => keys(site, queries, asked).await,
        Endpoint::RevokeApiKey => revoke(site, queries, asked).await,
        Endpoint::Balance => payment(site, queries, asked).await,
        Endpoint::Samples => {
            let samples = queries.samples.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(json(&Samples { samples: samples.iter().cloned().collect() }))
        }
        _ => Err(ApiError::NoSuchRoute),
    }
}

/// Has the engine's numbers known.
pub(super) fn measure(site: &Site) {
    if let Some(queries) = &site.queries {
        let (running, waiting) = queries.engine.load();
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        site.hub.queries.running.set(number(running));
        site.hub.queries.waiting.set(number(waiting));
        let reuse = queries.engine.reuse();
        site.hub.queries.prefix_bytes.set(number(reuse.bytes));
        for (counter, number) in
            [(&site.hub.queries.prefix_asked, reuse.asked), (&site.hub.queries.prefix_found, reuse.found)]
        {
            counter.inc_by(number.saturating_sub(counter.get()));
        }
    }
}

/// Has each new base model answer queries, until the server stops.
pub(super) async fn follow(site: Arc<Site>) {
    let Some(queries) = &site.queries else { return };
    loop {
        let newest = site.look(|state| {
            let newest = state.lineage().last()?;
            Some((state.round(), newest.digest, state.spec().model))
        });
        if let Ok(Some((round, digest, spec))) = newest.await
            && queries.engine.newest().is_none_or(|model| model.digest != digest)
        {
            let blobs = Arc::clone(&site.blobs);
            let loaded = tokio::task::spawn_blocking(move || {
                let params = checkpoint::decode(&blobs.get(&digest).ok()?, &spec).ok()?;
                Decoder::new(&spec, params).ok()
            });
            // One that cannot be read is tried again, or a newer one.
            if let Ok(Some(decoder)) = loaded.await {
                queries.engine.swap(Model { digest, decoder });
                sample(queries, round).await;
                continue;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Has the newest model write what is shown of it. Where there is no room, it is left out.
async fn sample(queries: &QuerySite, round: Round) {
    let Ok(mut place) = queries.engine.reserve(1) else { return };
    let model = place.model().digest;
    let context = u32::try_from(place.model().decoder.context()).unwrap_or(u32::MAX);
    let most = limits::SAMPLE_TOKENS.min(context.saturating_sub(1));
    // As if somebody had asked for it: the same seed each time, so that only the models differ.
    let query = json!({ "model": MODEL, "prompt": "", "max_tokens": most, "temperature": 0.8, "seed": 0 });
    let query = Query::read(Kind::Completion, query.to_string().as_bytes(), context as usize);
    let Some(job) = query.ok().and_then(|query| query.jobs(0).pop()) else { return };
    let (events, mut heard) = mpsc::unbounded_channel();
    if place.begin(job, Box::new(move |event| events.send(event).is_ok())).is_err() {
        return;
    }
    let mut bytes = Vec::new();
    while let Some(event) = heard.recv().await {
        match event {
            Event::Token(written) => bytes.extend(written.iter().map(|written| written.byte)),
            Event::Ended(_) => break,
            Event::Failed(_) => return,
        }
    }
    let mut samples = queries.samples.lock().unwrap_or_else(PoisonError::into_inner);
    samples.push_back(Sample { round, model, text: String::from_utf8_lossy(&bytes).into_owned() });
    while samples.len() > limits::SAMPLES_KEPT {
        samples.pop_front();
    }
}

/// Who would pay for a query that came like this.
async fn payment(site: &Site, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (now, address) = (site.clock.now(), asked.address(site.config.behind_proxy));
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
        "price": queries.price,
    });
    match name {
        None => Ok(json(&json!({ "object": "list", "data": [model] }))),
        Some(name) if name == MODEL => Ok(json(&model)),
        Some(name) => Err(QueryError::model(&name).into()),
    }
}

async fn quote(site: &Site, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let body = asked.unsigned(site, limits::QUERY_BYTES_MAX).await?;
    let model = queries.engine.newest().ok_or_else(no_model)?;
    let chat = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body.get("messages").is_some());
    let query = Query::read(if chat { Kind::Chat } else { Kind::Completion }, &body, model.decoder.context())?;
    let (prompt_tokens, completion_tokens) = (query.prompt_tokens(), query.completion_tokens());
    let most = queries.cost(prompt_tokens + completion_tokens);
    Ok(json(&Quote { prompt_tokens, completion_tokens, price: queries.price, most }))
}

async fn new_key(site: &Site, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (wallet, body) = asked.signed(site, limits::HTTP_BODY_BYTES_MAX).await?;
    let NewApiKey { digest, name, limit, expires } = parse(&body)?;
    if name.is_empty() || name.len() > limits::API_KEY_NAME_BYTES_MAX {
        let most = limits::API_KEY_NAME_BYTES_MAX;
        return Err(ApiError::Malformed(format!("a key's name has 1 to {most} bytes")));
    }
    let key = ApiKey { digest, wallet, name, limit, spent: Amount::ZERO, expires, revoked: false };
    with_store(queries, move |store| store.add(&key)).await.map_err(refused)?;
    Ok(json(&Done { ok: true }))
}

async fn keys(site: &Site, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (wallet, _) = asked.signed(site, 0).await?;
    let keys = with_store(queries, move |store| store.of(&wallet)).await.map_err(refused)?;
    let known = |key: ApiKey| {
        let ApiKey { name, limit, spent, expires, revoked, .. } = key;
        KnownApiKey { name, limit, spent, expires, revoked }
    };
    Ok(json(&ApiKeys { keys: keys.into_iter().map(known).collect() }))
}

async fn revoke(site: &Site, queries: &QuerySite, asked: &mut Asked) -> Result<Response, ApiError> {
    let (wallet, body) = asked.signed(site, limits::HTTP_BODY_BYTES_MAX).await?;
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

/// What whoever asked is told, piece by piece.
enum Part {
    /// A text goes on, or has ended.
    Text(usize, Event),
    /// All have ended, and this was paid.
    Done(Usage),
    /// Something has failed; nothing was paid.
    Failed(ApiError),
}

async fn complete(
    site: &Arc<Site>,
    queries: &Arc<QuerySite>,
    asked: &mut Asked,
    kind: Kind,
) -> Result<Response, ApiError> {
    let mut random = [0; 16];
    entropy(&mut random).map_err(|error| ApiError::Internal(error.to_string()))?;
    let id = kind.id(&data_encoding::HEXLOWER.encode(&random));
    let mut entry =
        Entry { at: site.clock.now(), id: id.clone(), payer: None, path: kind.path(), watch: Stopwatch::start() };
    let random = u64::from_le_bytes(random[..8].try_into().unwrap_or_default());
    let Begun { head, choices, heard, stream } = match begin(site, queries, asked, kind, &mut entry, random).await {
        Ok(begun) => begun,
        Err(error) => {
            if let Some(log) = &queries.log {
                log.refused(&entry, &error);
            }
            return Err(error);
        }
    };
    let mut response = if stream { streamed(head, choices, heard) } else { whole(&head, choices, heard).await? };
    if let Ok(id) = header::HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    Ok(response)
}

/// A query that is being answered.
struct Begun {
    head: Head,
    choices: Vec<Choice>,
    heard: mpsc::UnboundedReceiver<Part>,
    stream: bool,
}

async fn begin(
    site: &Arc<Site>,
    queries: &Arc<QuerySite>,
    asked: &mut Asked,
    kind: Kind,
    entry: &mut Entry,
    random: u64,
) -> Result<Begun, ApiError> {
    let now = entry.at;
    let address = asked.address(site.config.behind_proxy);
    let payer = queries.payer(bearer(asked), address, now).await?;
    entry.payer = Some(payer.to_string());
    let body = asked.unsigned(site, limits::QUERY_BYTES_MAX).await?;
    let context = queries.engine.newest().ok_or_else(no_model)?.decoder.context();
    let query = Query::read(kind, &body, context)?;
    // A place first: who is turned away has not troubled the ledger.
    let place = queries.engine.reserve(query.prompts.len()).map_err(|error| match error {
        NoPlace::Full(full) => QueryError::busy(full.to_string()).into(),
        NoPlace::NoModel => no_model(),
    })?;
    let head = Head::new(&query, &entry.id, now, place.model().digest);
    let choices: Vec<Choice> =
        query.prompts.iter().map(|prompt| Choice::echoing(query.echo.then_some(&prompt[..]))).collect();
    let stream = query.stream;
    let (parts, heard) = mpsc::unbounded_channel();
    // By itself: whether the client stays or not, what is held is settled.
    let begun = tokio::spawn({
        let (site, queries, entry) = (Arc::clone(site), Arc::clone(queries), entry.clone());
        async move {
            let bill = hold(&site, &queries, payer, query.prompt_tokens() + query.completion_tokens()).await?;
            tokio::spawn(run(site, queries, query, random, place, bill, entry, parts));
            Ok::<(), ApiError>(())
        }
    });
    begun.await.map_err(|error| ApiError::Internal(error.to_string()))??;
    Ok(Begun { head, choices, heard, stream })
}

/// Writes the texts of a query and pays for them.
#[expect(clippy::too_many_arguments, reason = "all that there is of a query, once")]
async fn run(
    site: Arc<Site>,
    queries: Arc<QuerySite>,
    query: Query,
    random: u64,
    mut place: Place,
    bill: Bill,
    entry: Entry,
    parts: mpsc::UnboundedSender<Part>,
) {
    let watch = Stopwatch::start();
    let nothing = Usage { prompt_tokens: 0, completion_tokens: 0, cost: Amount::ZERO };
    let tell = |how: &'static str, usage: &Usage| {
        site.hub.queries.ended(how);
        if let Some(log) = &queries.log {
            log.ended(&entry, how, usage);
        }
    };
    let metrics = &site.hub.queries;
    let (events, mut heard) = mpsc::unbounded_channel();
    let mut failed = None;
    for (index, job) in query.jobs(random).into_iter().enumerate() {
        let events = events.clone();
        if let Err(error) = place.begin(job, Box::new(move |event| events.send((index, event)).is_ok())) {
            failed = Some(error.to_string());
        }
    }
    drop(events);
    let (mut open, mut written, mut gone) = (query.prompts.len(), 0u64, false);
    while open > 0 && failed.is_none() && !gone {
        let event = tokio::select! {
            biased;
            () = parts.closed() => {
                gone = true;
                continue;
            }
            event = heard.recv() => event,
        };
        match event {
            Some((index, event)) => {
                match &event {
                    Event::Token(_) => {
                        if written == 0 {
                            metrics.first_token.observe(watch.elapsed().as_secs_f64());
                        }
                        written += 1;
                    }
                    Event::Ended(_) => open -= 1,
                    Event::Failed(error) => failed = Some(error.clone()),
                }
                // Whether they are gone is seen above.
                let _ = parts.send(Part::Text(index, event));
            }
            None => failed = Some("the engine has stopped".to_owned()),
        }
    }
    // What has not ended is not gone on with.
    drop(place);
    let prompt_tokens = query.prompt_tokens();
    metrics.latency.observe(watch.elapsed().as_secs_f64());
    let last = match failed {
        Some(error) => {
            bill.release(&site, &queries);
            tell("error", &nothing);
            Part::Failed(ApiError::Internal(error))
        }
        None if gone && written == 0 => {
            bill.release(&site, &queries);
            tell("abort", &nothing);
            return;
        }
        None => {
            metrics.prompt_tokens.inc_by(prompt_tokens);
            metrics.generation_tokens.inc_by(written);
            let cost = bill.pay(&site, &queries, prompt_tokens + written).await;
            let usage = Usage { prompt_tokens, completion_tokens: written, cost };
            tell(if gone { "abort" } else { "stop" }, &usage);
            Part::Done(usage)
        }
    };
    // Nobody hears it who is gone.
    let _ = parts.send(last);
}

/// Takes a part of a text in.
fn take_in(head: &Head, choices: &mut [Choice], index: usize, event: Event) {
    let Some(choice) = choices.get_mut(index) else { return };
    match event {
        Event::Token(written) => choice.add(head.kind(), &written),
        Event::Ended(finish) => choice.end(finish),
        Event::Failed(_) => {}
    }
}

async fn whole(
    head: &Head,
    mut choices: Vec<Choice>,
    mut heard: mpsc::UnboundedReceiver<Part>,
) -> Result<Response, ApiError> {
    loop {
        match heard.recv().await {
            Some(Part::Text(index, event)) => take_in(head, &mut choices, index, event),
            Some(Part::Done(usage)) => return Ok(json(&head.whole(&mut choices, &usage))),
            Some(Part::Failed(error)) => return Err(error),
            None => return Err(ApiError::Internal("the answer has no end".to_owned())),
        }
    }
}

/// What a stream still has to say.
struct Told {
    head: Head,
    choices: Vec<Choice>,
    heard: mpsc::UnboundedReceiver<Part>,
    /// Said before more is heard.
    next: Vec<String>,
    over: bool,
}

fn streamed(head: Head, choices: Vec<Choice>, heard: mpsc::UnboundedReceiver<Part>) -> Response {
    let told = Told { head, choices, heard, next: Vec::new(), over: false };
    let events = stream::unfold(told, |mut told| async move {
        loop {
            if let Some(data) = told.next.pop() {
                let event = warp::sse::Event::default().data(data);
                return Some((Ok::<_, std::convert::Infallible>(event), told));
            }
            if told.over {
                return None;
            }
            match told.heard.recv().await {
                Some(Part::Text(index, event)) => {
                    take_in(&told.head, &mut told.choices, index, event);
                    let chunk = told.choices.get_mut(index).and_then(|choice| told.head.chunk(index, choice));
                    told.next.extend(chunk.map(|chunk| chunk.to_string()));
                }
                Some(Part::Done(usage)) => {
                    told.next = vec!["[DONE]".to_owned()];
                    told.next.extend(told.head.last(&usage).map(|last| last.to_string()));
                    told.over = true;
                }
                Some(Part::Failed(error)) => {
                    told.next = vec![json!({ "error": error.object() }).to_string()];
                    told.over = true;
                }
                None => return None,
            }
        }
    });
    warp::sse::reply(events).into_response()
}
