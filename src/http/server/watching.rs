use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::Semaphore;
use warp::reply::Response;

use super::Site;
use super::request::{Asked, json};
use crate::http::api::watch::{RoundDetail, Rounds, WorkerRow, Workers};
use crate::http::error::ApiError;
use crate::protocol::{PublicKey, Round, limits};
use crate::store::{History, RunStoreError};

/// Where a path names a round, counted from 0.
const NAME: usize = 3;

/// What became of the rounds, and room for requests that wait to read it.
pub(super) struct Past {
    history: Arc<History>,
    readers: Semaphore,
}

impl Past {
    pub fn new(history: History) -> Self {
        Self { history: Arc::new(history), readers: Semaphore::new(limits::ARCHIVE_WAITING_MAX) }
    }

    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&History) -> Result<T, RunStoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _room = self.readers.try_acquire().map_err(|_| ApiError::Busy)?;
        let history = Arc::clone(&self.history);
        let found = tokio::task::spawn_blocking(move || look(&history)).await;
        let found = found.map_err(|error| ApiError::Internal(error.to_string()))?;
        found.map_err(|error| ApiError::Internal(error.to_string()))
    }
}

/// How many things of a page are asked for.
fn most(asked: &Asked) -> Result<usize, ApiError> {
    let most = asked.parameter("most")?.unwrap_or(limits::WATCH_PAGE);
    Ok(most.clamp(1, limits::WATCH_PAGE_MAX))
}

pub(super) async fn rounds(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (after, most) = (asked.parameter::<u32>("after")?.map(Round), most(asked)?);
    let rounds = site.past.look(move |history| history.rounds(after, most)).await?;
    let next = rounds.last().filter(|_| rounds.len() >= most).map(|last| last.round.0);
    Ok(json(&Rounds { rounds, next }))
}

pub(super) async fn round(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let round = Round(asked.part(NAME)?);
    let found = site.past.look(move |history| {
        let Some((summary, story)) = history.round(round)? else { return Ok(None) };
        let made = history.rounds(Some(round), 1)?.first().map(|next| next.base);
        Ok(Some(RoundDetail { summary, story, made }))
    });
    Ok(json(&found.await?.ok_or(ApiError::NoSuchRound)?))
}

pub(super) async fn workers(site: &Site, asked: &mut Asked) -> Result<Response, ApiError> {
    let (after, most) = (asked.parameter::<PublicKey>("after")?, most(asked)?);
    let now = site.clock.now();
    let seen = site.hub.seen(now);
    let page = site.look(move |state| {
        let holders = state.holders(now);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = state.workers().range((from, Bound::Unbounded)).take(most).map(|(key, record)| WorkerRow {
            key: *key,
            accepted: record.accepted,
            rejected: record.rejected,
            tokens: record.tokens,
            pay: record.pay,
            clean: record.clean,
            audited: record.audited,
            found_false: record.found_false,
            banned: record.banned,
            holds: holders.get(key).copied().unwrap_or(0),
            seen: seen.get(key).copied(),
        });
        rows.collect::<Vec<_>>()
    });
    let workers = page.await?;
    let next = workers.last().filter(|_| workers.len() >= most).map(|last| last.key);
    Ok(json(&Workers { workers, next }))
}
