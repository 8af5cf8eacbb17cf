use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use warp::http::StatusCode;
use warp::reply::Response;

use super::Site;
use super::request::{Asked, json, parse};
use crate::coordinator::Event;
use crate::http::api::{Done, Verdicts};
use crate::http::desk::{JobDone, Lane, TakeJob};
use crate::http::error::ApiError;
use crate::protocol::{PublicKey, Verdict, limits};

/// How long a verifier that asks for something to do is kept waiting.
const LONG_POLL: Duration = Duration::from_secs(20);

async fn verifier(site: &Site, asked: &mut Asked, limit: usize) -> Result<(PublicKey, Bytes), ApiError> {
    let (caller, body) = asked.signed(site, limit).await?;
    if site.config.verifiers.contains(&caller) {
        Ok((caller, body))
    } else {
        Err(ApiError::Forbidden("it is no verifier of this run"))
    }
}

/// Lends a job, or says with 204 that there is none.
pub(super) async fn take(site: &Site, asked: &mut Asked, lane: Lane) -> Result<Response, ApiError> {
    let (verifier, _) = verifier(site, asked, limits::HTTP_BODY_BYTES_MAX).await?;
    let Some(desk) = &site.desk else {
        return Err(ApiError::Forbidden("this coordinator verifies by itself"));
    };
    let (reply, job) = oneshot::channel();
    desk.try_send(TakeJob { verifier, lane, reply }).map_err(|_| ApiError::Busy)?;
    if let Ok(Ok(job)) = tokio::time::timeout(LONG_POLL, job).await {
        return Ok(json(&job));
    }
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub(super) async fn verdicts(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    // One for each result that may count in the round, where they are compared.
    let limit = limits::VERDICT_JSON_BYTES_MAX * limits::RESULTS_PER_ROUND_MAX;
    let (caller, body) = verifier(site, asked, limit).await?;
    let Verdicts { id, verdicts } = parse(&body)?;
    for verdict in &verdicts {
        let (signer, _) = verdict
            .open::<Verdict>()
            .map_err(|error| ApiError::Malformed(format!("a verdict in the body: {error}")))?;
        if signer != caller {
            return Err(ApiError::Forbidden("a verdict in the body is another key's"));
        }
    }
    site.coordinator.try_send(Event::Verdicts(verdicts)).map_err(|_| ApiError::Busy)?;
    if let Some(desk) = &site.desk {
        // If this gets lost, the job is lent once more.
        let _ = desk.try_send(JobDone(id));
    }
    Ok(json(&Done { ok: true }))
}
