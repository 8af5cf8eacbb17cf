use bytes::Bytes;
use warp::reply::Response;

use super::Site;
use super::request::{Asked, json, parse};
use crate::coordinator::Event;
use crate::http::admission::AdmissionError;
use crate::http::api::{Done, Invite, KeyChange, NewInvite};
use crate::http::error::ApiError;
use crate::protocol::limits;

async fn admin(site: &Site, asked: &mut Asked) -> Result<Bytes, ApiError> {
    let (caller, body) = asked.signed(site, limits::HTTP_BODY_BYTES_MAX).await?;
    if site.config.admin == Some(caller) { Ok(body) } else { Err(ApiError::Forbidden("it is not the operator's")) }
}

fn internal(error: AdmissionError) -> ApiError {
    ApiError::Internal(error.to_string())
}

pub(super) async fn finish(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    admin(site, asked).await?;
    site.coordinator.try_send(Event::FinishRound).map_err(|_| ApiError::Busy)?;
    Ok(json(&Done { ok: true }))
}

pub(super) async fn invite(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let body = admin(site, asked).await?;
    let NewInvite { uses } = parse(&body)?;
    let token = site.admission.invite(uses).map_err(internal)?;
    Ok(json(&Invite { token }))
}

pub(super) async fn keys(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let body = admin(site, asked).await?;
    let KeyChange { key, admitted } = parse(&body)?;
    site.admission.set(key, admitted).map_err(internal)?;
    Ok(json(&Done { ok: true }))
}
