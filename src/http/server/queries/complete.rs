//! A query from its body to the last word of its answer.

use std::sync::Arc;

use futures_util::stream;
use serde_json::json;
use tokio::sync::mpsc;
use warp::http::header;
use warp::reply::{Reply, Response};

use super::ask::{Kind, Query};
use super::log::Entry;
use super::tell::{Choice, Head, Usage};
use super::till::{Bill, hold};
use super::{QuerySite, bearer, no_model};
use crate::http::error::{ApiError, QueryError};
use crate::http::server::Front;
use crate::http::server::request::{Asked, json};
use crate::inference::{Event, NoPlace, Place};
use crate::protocol::{Amount, limits};
use crate::runtime::{Stopwatch, entropy};

/// What whoever asked is told, piece by piece.
enum Part {
    /// A text goes on, or has ended.
    Text(usize, Event),
    /// All have ended, and this was paid.
    Done(Usage),
    /// Something has failed; nothing was paid.
    Failed(ApiError),
}

/// Answers a query, with its id, also where it is refused.
pub async fn complete(front: &Front, queries: &Arc<QuerySite>, asked: &mut Asked, kind: Kind) -> Response {
    let mut random = [0; 16];
    if let Err(error) = entropy(&mut random) {
        return ApiError::Internal(error.to_string()).into_response();
    }
    let id = kind.id(&data_encoding::HEXLOWER.encode(&random));
    let mut entry =
        Entry { at: front.clock.now(), id: id.clone(), payer: None, path: kind.path(), watch: Stopwatch::start() };
    let random = u64::from_le_bytes(random[..8].try_into().unwrap_or_default());
    let answer = match begin(front, queries, asked, kind, &mut entry, random).await {
        Ok(Begun { head, choices, heard, stream: true }) => Ok(streamed(head, choices, heard)),
        Ok(Begun { head, choices, heard, stream: false }) => whole(&head, choices, heard).await,
        Err(error) => {
            if let Some(log) = &queries.log {
                log.refused(&entry, &error);
            }
            Err(error)
        }
    };
    let mut response = answer.unwrap_or_else(ApiError::into_response);
    if let Ok(id) = header::HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// A query that is being answered.
struct Begun {
    head: Head,
    choices: Vec<Choice>,
    heard: mpsc::UnboundedReceiver<Part>,
    stream: bool,
}

async fn begin(
    front: &Front,
    queries: &Arc<QuerySite>,
    asked: &mut Asked,
    kind: Kind,
    entry: &mut Entry,
    random: u64,
) -> Result<Begun, ApiError> {
    let now = entry.at;
    let address = asked.address(front.config.behind_proxy);
    let payer = queries.payer(bearer(asked), address, now).await?;
    entry.payer = Some(payer.to_string());
    let body = asked.unsigned(front, limits::QUERY_BYTES_MAX).await?;
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
        let (queries, entry) = (Arc::clone(queries), entry.clone());
        async move {
            let bill = hold(&queries, payer, query.prompt_tokens() + query.completion_tokens()).await?;
            tokio::spawn(run(queries, query, random, place, bill, entry, parts));
            Ok::<(), ApiError>(())
        }
    });
    begun.await.map_err(|error| ApiError::Internal(error.to_string()))??;
    Ok(Begun { head, choices, heard, stream })
}

/// Writes the texts of a query and pays for them.
async fn run(
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
        queries.hub.queries.ended(how);
        if let Some(log) = &queries.log {
            log.ended(&entry, how, usage);
        }
    };
    let metrics = &queries.hub.queries;
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
            bill.release(&queries);
            tell("error", &nothing);
            Part::Failed(ApiError::Internal(error))
        }
        None if gone && written == 0 => {
            bill.release(&queries);
            tell("abort", &nothing);
            return;
        }
        None => {
            metrics.prompt_tokens.inc_by(prompt_tokens);
            metrics.generation_tokens.inc_by(written);
            let cost = bill.pay(&queries, prompt_tokens + written).await;
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
