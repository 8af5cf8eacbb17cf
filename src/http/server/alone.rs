//! Servers of one thing only, in processes of their own.

use std::sync::Arc;

use warp::reply::Response;

use super::ledger::LedgerSite;
use super::queries::QuerySite;
use super::request::{self, Asked};
use super::{Answering, Front, ledger, queries, status};
use crate::http::error::ApiError;
use crate::http::openapi::{Endpoint, ROUTES, Route, document};

/// All that requests to a ledger in a process of its own need.
pub(super) struct LedgerOnly {
    pub front: Front,
    pub ledger: LedgerSite,
}

/// All that requests to a server of queries in a process of its own need.
pub(super) struct QueriesOnly {
    pub front: Front,
    pub queries: Arc<QuerySite>,
}

impl Answering for LedgerOnly {
    fn front(&self) -> &Front {
        &self.front
    }

    fn serves(&self, route: &Route) -> bool {
        route.is_of_ledger()
    }

    async fn answer(self: Arc<Self>, endpoint: Endpoint, mut asked: Asked) -> Result<Response, ApiError> {
        let Self { front, ledger } = &*self;
        match endpoint {
            Endpoint::Health => Ok(status::plain("alive\n")),
            Endpoint::Ready => status::ready_ledger(ledger).await,
            Endpoint::Metrics => status::metrics(front, Some(ledger)).await,
            Endpoint::OpenApi => {
                let routes = ROUTES.iter().filter(|route| self.serves(route));
                Ok(request::json(&document(routes)))
            }
            Endpoint::Hello => Ok(status::hello_to(front, None, "open")),
            endpoint => ledger::answer(front, ledger, endpoint, &mut asked).await,
        }
    }
}

impl Answering for QueriesOnly {
    fn front(&self) -> &Front {
        &self.front
    }

    fn serves(&self, route: &Route) -> bool {
        route.is_of_queries()
    }

    async fn answer(self: Arc<Self>, endpoint: Endpoint, mut asked: Asked) -> Result<Response, ApiError> {
        let Self { front, queries } = &*self;
        match endpoint {
            Endpoint::Health => Ok(status::plain("alive\n")),
            Endpoint::Ready if queries.is_ready() => Ok(status::plain("ready\n")),
            Endpoint::Ready => Err(ApiError::Busy),
            Endpoint::Metrics => {
                queries.measure();
                status::metrics(front, None).await
            }
            Endpoint::OpenApi => {
                let routes = ROUTES.iter().filter(|route| self.serves(route));
                Ok(request::json(&document(routes)))
            }
            Endpoint::Hello => Ok(status::hello_to(front, queries.run(), "open")),
            endpoint => queries::answer(front, queries, endpoint, &mut asked).await,
        }
    }
}
