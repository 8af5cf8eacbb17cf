//! What a server of queries needs of the run that it serves and of the ledger that is paid, wherever those are.

use std::sync::Arc;

use actix::Addr;
use futures_util::future::BoxFuture;

use crate::coordinator::{Coordinator, Look, State};
use crate::http::api::ledger::Contributor;
use crate::http::api::queries::Newest;
use crate::http::error::ApiError;
use crate::http::server::ledger::LedgerSite;
use crate::ledger::{BookError, LedgerError, OrderError, Request};
use crate::protocol::{Balance, Digest, PublicKey, limits};

/// The run whose newest model answers.
pub trait RunPort: Send + Sync {
    /// Its newest model, where that is another than `known`; or why it cannot be told.
    fn newer(&self, known: Option<Digest>) -> BoxFuture<'_, Result<Option<Newest>, String>>;

    /// What answered when an earlier process ended, if it can answer again.
    fn last(&self) -> Option<Newest> {
        None
    }

    /// This one answers from now on. May wait for the disk.
    fn answers(&self, _newest: &Newest) {}

    /// This one cannot answer, and why. It is told once until that changes, however often it is tried again.
    fn cannot_answer(&self, _newest: &Newest, _problem: &str) {}
}

/// The ledger that queries are paid in.
pub trait QueryLedger: Send + Sync {
    /// Has a hold or a settlement done.
    fn ask(&self, request: Request) -> BoxFuture<'_, Result<(), LedgerTrouble>>;

    /// Why nothing should be asked now, if it is known that there will be no answer.
    fn is_away(&self) -> Option<String> {
        None
    }
}

/// Why a hold or a settlement is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerTrouble {
    /// The wallet has not so much.
    #[error("the wallet can spend {available}")]
    Insufficient {
        /// What it has.
        available: Balance,
    },
    /// It was done before, when others had contributed.
    #[error("it was done before, otherwise")]
    Done,
    /// Refused for another reason: it has no effect, and will not have any.
    #[error("{0}")]
    Refused(String),
    /// Nobody can say: it is to be asked again.
    #[error("{0}")]
    Away(String),
}

impl From<ApiError> for LedgerTrouble {
    fn from(error: ApiError) -> Self {
        let words = error.to_string();
        match error {
            ApiError::Ledger(LedgerError::Order(OrderError::IdReused { .. })) => Self::Done,
            ApiError::Ledger(LedgerError::Order(OrderError::Book(BookError::Insufficient { available, .. }))) => {
                Self::Insufficient { available }
            }
            ApiError::Ledger(LedgerError::Store(_)) => Self::Away(words),
            ApiError::Ledger(_) => Self::Refused(words),
            _ => Self::Away(words),
        }
    }
}

/// The newest model of a run, where that is another than `known`, and who trained it: those with the most work, where there
/// are many.
pub fn newer_than(known: Option<Digest>, state: &State) -> Option<Newest> {
    let newest = state.lineage().last().filter(|newest| Some(newest.digest) != known)?;
    let mut work: Vec<(PublicKey, u64)> =
        state.workers().iter().map(|(key, worker)| (*key, worker.tokens)).filter(|(_, tokens)| *tokens > 0).collect();
    work.sort_by_key(|(key, tokens)| (std::cmp::Reverse(*tokens), *key));
    work.truncate(limits::CONTRIBUTORS_MAX);
    Some(Newest {
        run: state.spec().id(),
        round: state.round(),
        digest: newest.digest,
        model: state.spec().model,
        contributors: work.into_iter().map(|(wallet, tokens)| Contributor { wallet, tokens }).collect(),
    })
}

/// A coordinator in this process.
pub struct RunHere(pub Addr<Coordinator>);

impl RunPort for RunHere {
    fn newer(&self, known: Option<Digest>) -> BoxFuture<'_, Result<Option<Newest>, String>> {
        let look = Look::new(move |state: &State| newer_than(known, state));
        Box::pin(async move { self.0.send(look).await.map_err(|error| error.to_string()) })
    }
}

/// A ledger in this process.
pub struct LedgerHere(pub Arc<LedgerSite>);

impl QueryLedger for LedgerHere {
    fn ask(&self, request: Request) -> BoxFuture<'_, Result<(), LedgerTrouble>> {
        Box::pin(async move { self.0.ask(request).await.map(drop).map_err(LedgerTrouble::from) })
    }
}
