use std::ops::Bound;

use warp::reply::Response;

use super::Site;
use super::request::{Asked, json, next};
use crate::http::api::watch::{RoundDetail, Rounds, WorkerRow, Workers};
use crate::http::error::ApiError;
use crate::protocol::{PublicKey, Round, limits};
use crate::store::{History, RunStoreError};

/// Where a path names a round, counted from 0.
const NAME: usize = 3;

/// Looks something up in what became of the rounds.
async fn look<T: Send + 'static>(
    site: &Site,
    look: impl FnOnce(&History) -> Result<T, RunStoreError> + Send + 'static,
) -> Result<T, ApiError> {
    site.past.look(look).await?.map_err(|error| ApiError::Internal(error.to_string()))
}

/// How many things of a page are asked for.
fn most(asked: &Asked) -> Result<usize, ApiError> {
    asked.most(limits::WATCH_PAGE, limits::WATCH_PAGE_MAX)
}

pub(super) async fn rounds(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (after, most) = (asked.parameter::<u32>("after")?.map(Round), most(asked)?);
    let rounds = look(site, move |history| history.rounds(after, most)).await?;
    Ok(json(&Rounds { next: next(&rounds, most, |round| round.round.0), rounds }))
}

pub(super) async fn round(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let round = Round(asked.part(NAME)?);
    let found = look(site, move |history| {
        let Some((summary, story)) = history.round(round)? else { return Ok(None) };
        let made = history.rounds(Some(round), 1)?.first().map(|next| next.base);
        Ok(Some(RoundDetail { summary, story, made }))
    });
    Ok(json(&found.await?.ok_or(ApiError::NoSuchRound)?))
}

pub(super) async fn workers(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (after, most) = (asked.parameter::<PublicKey>("after")?, most(asked)?);
    let now = site.clock.now();
    let page = site.look(move |state| {
        let holders = state.holders(now);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = state.workers().range((from, Bound::Unbounded)).take(most).map(|(key, record)| {
            let holds = holders.get(key).copied().unwrap_or(0);
            WorkerRow { key: *key, record: *record, holds, seen: None }
        });
        rows.collect::<Vec<_>>()
    });
    let mut workers = page.await?;
    // Only those of the page: each call of a worker waits for the same lock.
    let seen = site.hub.seen(now, workers.iter().map(|row| row.key));
    workers.iter_mut().zip(seen).for_each(|(row, seen)| row.seen = seen);
    Ok(json(&Workers { next: next(&workers, most, |row| row.key), workers }))
}
