use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::stream;
use warp::http::header;
use warp::reply::{Reply, Response};

use super::ledger::LedgerSite;
use super::request::{Asked, json};
use super::{Front, Site};
use crate::http::api::{Hello, RoundAudits, Status};
use crate::http::error::ApiError;
use crate::protocol::{Round, RunId, limits};

/// How long the coordinator may take to answer before the process does not count as ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

pub(super) fn plain(text: impl Into<String>) -> Response {
    let mut response = Response::new(text.into().into());
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

pub(super) async fn ready(site: &Site) -> Result<Response, ApiError> {
    let answer = tokio::time::timeout(READY_WITHIN, site.look(|_| ())).await;
    answer.map_err(|_| ApiError::Busy)??;
    match &site.ledger {
        Ok(ledger) => ready_ledger(ledger).await,
        // What is elsewhere says so itself; workers are served while it is away.
        Err(_) => Ok(plain("ready\n")),
    }
}

/// Whether a ledger answers, and could write when it last tried.
pub(super) async fn ready_ledger(ledger: &LedgerSite) -> Result<Response, ApiError> {
    let ready = tokio::time::timeout(READY_WITHIN, ledger.is_ready()).await;
    if ready.map_err(|_| ApiError::Busy)?? { Ok(plain("ready\n")) } else { Err(ApiError::Busy) }
}

pub(super) async fn metrics(front: &Front, ledger: Option<&LedgerSite>) -> Result<Response, ApiError> {
    if let Some(ledger) = ledger {
        // Where the ledger does not answer, its numbers are those of the last time.
        let _ = tokio::time::timeout(READY_WITHIN, ledger.measure(&front.hub)).await;
    }
    Ok(plain(front.hub.metrics(front.clock.now())))
}

pub(super) async fn hello(site: &Site) -> Result<Response, ApiError> {
    let run = site.look(|state| state.spec().id()).await?;
    Ok(hello_to(site, Some(run), site.admission.rule().name()))
}

pub(super) fn hello_to(front: &Front, run: Option<RunId>, admission: &str) -> Response {
    json(&Hello {
        session: front.gate.session(),
        time: front.clock.now(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run,
        admission: admission.to_owned(),
    })
}

pub(super) async fn status(site: &Site) -> Result<Response, ApiError> {
    let time = site.clock.now();
    let workers_seen = site.hub.present(time);
    let status = site.look(move |state| {
        let (tasks, accepted, leased) = state.tasks(time);
        let newest = state.lineage().last()?;
        Some(Status {
            run: state.spec().id(),
            round: state.round(),
            closed: state.is_closed(),
            tasks,
            accepted,
            leased,
            tokens: state.tokens(),
            model: newest.digest,
            loss: state.lineage().iter().rev().find_map(|model| model.loss),
            parameters: state.spec().model.parameters(),
            workers: state.workers().len() as u64,
            workers_seen: workers_seen.max(state.holders(time).len() as u64),
            opened: state.opened(),
            deadline: state.opened() + state.spec().timing.round,
            time,
        })
    });
    let status = status.await?.ok_or_else(|| ApiError::Internal("the run has no model yet".into()))?;
    Ok(json(&status))
}

/// Who trained a model is put together once: anybody may ask.
pub(super) async fn newest(site: &Site) -> Result<Response, ApiError> {
    let known = site.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let digest = known.as_ref().map(|known| known.digest);
    let newer = site.look(move |state| super::queries::newer_than(digest, state)).await?;
    let newest = match newer {
        Some(newer) => {
            let newer = Arc::new(newer);
            *site.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&newer));
            newer
        }
        None => known.ok_or_else(|| ApiError::Internal("the run has no model yet".into()))?,
    };
    Ok(json(&*newest))
}

pub(super) async fn audits(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let round = asked.parameter::<u64>("round")?;
    let round = round.map(|round| u32::try_from(round).map_or(Round(limits::ROUNDS_MAX), Round));
    let audits = site
        .look(move |state| RoundAudits::of(state, round.unwrap_or_else(|| Round(state.round().0.saturating_sub(1)))));
    Ok(json(&audits.await?))
}

pub(super) fn events(site: &Site) -> Result<Response, ApiError> {
    let heard = site.hub.watch().ok_or(ApiError::Busy)?;
    // Ends with the server; a watcher that is too slow misses events and goes on with the newest.
    let stream = stream::unfold((heard, site.stop.clone()), |(mut heard, mut stop)| async move {
        loop {
            let event = tokio::select! {
                biased;
                _ = stop.changed() => return None,
                event = heard.recv() => event,
            };
            match event {
                Ok(event) => {
                    let event = warp::sse::Event::default().data(event);
                    return Some((Ok::<_, std::convert::Infallible>(event), (heard, stop)));
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    Ok(warp::sse::reply(warp::sse::keep_alive().stream(stream)).into_response())
}
