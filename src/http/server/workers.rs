use actix::prelude::SendError;
use tokio::sync::oneshot;
use warp::reply::Response;
use zeroize::Zeroizing;

use super::Site;
use super::request::{Asked, json, parse};
use crate::coordinator::{Event, ReplyTo};
use crate::http::admission::{AdmissionError, AdmissionRule};
use crate::http::api::{Done, NewPass, Pass, Register};
use crate::http::error::ApiError;
use crate::http::openapi::Endpoint;
use crate::protocol::{
    Digest, EnvelopeError, ExchangeSecret, PassId, PublicKey, Signed, WorkerReply, WorkerRequest, limits,
};
use crate::runtime::entropy;

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

/// Gives the caller a pass.
pub(super) async fn pass(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (caller, body) = asked.signed(site, limits::HTTP_BODY_BYTES_MAX).await?;
    let NewPass { exchange } = parse(&body)?;
    let (mut secret, mut id) = (Zeroizing::new([0; 32]), [0; 32]);
    let random = entropy(&mut *secret).and_then(|()| entropy(&mut id));
    random.map_err(|error| ApiError::Internal(error.to_string()))?;
    let pass = PassId(Digest::from_bytes(id));
    let secret = ExchangeSecret::from_bytes(*secret);
    let (exchange, until) = site.gate.pass(caller, exchange, &secret, pass, site.clock.now())?;
    Ok(json(&Pass { pass, exchange, session: site.gate.session(), until }))
}

/// What the body asks for. In a call that a pass proves it stands there as it is, but for what others must be able to check:
/// a commitment, which binds a whole submission, and an appeal are signed always.
fn request(asked: &Asked, endpoint: Endpoint, caller: PublicKey, body: &[u8]) -> Result<WorkerRequest, ApiError> {
    let always_signed = matches!(endpoint, Endpoint::Commit | Endpoint::Appeal);
    if asked.is_passed() && !always_signed {
        return parse(body);
    }
    let request: Signed = parse(body)?;
    if request.claimed_signer() != caller {
        return Err(ApiError::Forbidden("the request in the body is another key's"));
    }
    match request.open::<WorkerRequest>() {
        Ok((_, request)) => Ok(request),
        Err(EnvelopeError::Signature) => Err(ApiError::Signature("the request in the body is not signed by its key")),
        Err(EnvelopeError::Wire(error)) => Err(ApiError::Malformed(format!("the request in the body: {error}"))),
    }
}

/// Hands a request to the coordinator and its reply back. Signatures are checked here, on as many threads as there are; the
/// coordinator has one.
pub(super) async fn ask(site: &Site, endpoint: Endpoint, asked: &mut Asked) -> Result<Response, ApiError> {
    let (caller, body) = asked.admitted(site, limits::HTTP_BODY_BYTES_MAX).await?;
    let request = request(asked, endpoint, caller, &body)?;
    let fits = matches!(
        (endpoint, &request),
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
    site.coordinator.try_send(Event::Checked { worker: caller, request, reply }).map_err(|error| match error {
        SendError::Full(_) => ApiError::Busy,
        SendError::Closed(_) => ApiError::Internal("the coordinator has stopped".into()),
    })?;
    let answer = tokio::time::timeout(limits::HTTP_ANSWER_WITHIN, answer).await;
    let answer: WorkerReply = answer.map_err(|_| ApiError::Busy)?.map_err(|_| ApiError::Busy)?;
    if answer == WorkerReply::Finished {
        site.hub.heard(caller, site.clock.now(), true);
    }
    Ok(json(&answer))
}
