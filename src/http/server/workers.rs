use actix::prelude::SendError;
use tokio::sync::oneshot;
use warp::reply::Response;

use super::Site;
use super::request::{Asked, json, parse};
use crate::coordinator::{Event, ReplyTo};
use crate::http::admission::{AdmissionError, AdmissionRule};
use crate::http::api::{Done, Register};
use crate::http::error::ApiError;
use crate::http::openapi::Endpoint;
use crate::protocol::{Signed, WorkerReply, WorkerRequest, limits};

pub(super) async fn register(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (caller, body) = asked.signed(site, limits::HTTP_BODY_BYTES_MAX).await?;
    let register: Register = parse(&body)?;
    if let Some(invite) = register.invite
        && site.admission.rule() == AdmissionRule::Invited
        && site.admission.check(&caller).is_err()
    {
        site.admission.redeem(caller, &invite).map_err(|error| match error {
            AdmissionError::Invite => ApiError::NotAdmitted("the invite is unknown or used up"),
            error => ApiError::Internal(error.to_string()),
        })?;
    }
    site.admitted(&caller)?;
    site.hub.heard(caller, site.clock.now(), false);
    Ok(json(&Done { ok: true }))
}

/// Hands a signed request to the coordinator and its reply back. The signature in the body is the coordinator's
/// evidence; that of the call keeps others from sending it again.
pub(super) async fn ask(site: &Site, endpoint: Endpoint, asked: &mut Asked) -> Result<Response, ApiError> {
    let (caller, body) = asked.admitted(site, limits::HTTP_BODY_BYTES_MAX).await?;
    let request: Signed = parse(&body)?;
    // Whether it is signed as it claims is checked by the coordinator, which keeps it.
    let content: WorkerRequest =
        request.claimed_message().map_err(|error| ApiError::Malformed(format!("the request in the body: {error}")))?;
    if request.claimed_signer() != caller {
        return Err(ApiError::Forbidden("the request in the body is another key's"));
    }
    let fits = matches!(
        (endpoint, &content),
        (Endpoint::Lease, WorkerRequest::Lease { .. })
            | (Endpoint::Commit, WorkerRequest::Commit(_))
            | (Endpoint::Submit, WorkerRequest::Submit(_))
            | (Endpoint::Heartbeat, WorkerRequest::Heartbeat(_))
            | (Endpoint::Appeal, WorkerRequest::Appeal(_))
            | (Endpoint::GiveBack, WorkerRequest::GiveBack(_))
    );
    if !fits {
        return Err(ApiError::Malformed("the request in the body belongs to another path".into()));
    }
    site.hub.heard(caller, site.clock.now(), false);
    let (reply, answer) = oneshot::channel();
    // Where the client has gone away meanwhile, nobody takes the reply.
    let reply: ReplyTo = Box::new(move |body| drop(reply.send(body)));
    site.coordinator.try_send(Event::Request { request, reply }).map_err(|error| match error {
        SendError::Full(_) => ApiError::Busy,
        SendError::Closed(_) => ApiError::Internal("the coordinator has stopped".into()),
    })?;
    let answer = tokio::time::timeout(limits::HTTP_ANSWER_WITHIN, answer).await;
    let answer: WorkerReply = answer.map_err(|_| ApiError::Busy)?.map_err(|_| ApiError::Busy)?;
    site.hub.heard(caller, site.clock.now(), answer == WorkerReply::Finished);
    Ok(json(&answer))
}
