//! A run and a ledger as a server of queries in a process of its own sees them: over HTTP.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::api::Status;
use super::api::ledger::{Contributor, Hold, Recorded, Settle, path as ledger};
use super::api::path;
use super::api::queries::{Newest, path as queries};
use super::client::{Client, ClientError};
use super::remote_blobs::RemoteBlobs;
use super::server::{LedgerTrouble, QueryLedger, RunPort};
use crate::ledger::Request;
use crate::protocol::{Digest, Time};
use crate::runtime::Clock;
use crate::store::{BlobError, Blobs, replace_file};

/// How long a ledger may take to answer, before whoever asked hears that it does not.
const LEDGER_WITHIN: Duration = Duration::from_secs(10);

/// How long nothing new is asked of a ledger that has not answered.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);

/// What a server of queries has to say.
#[derive(Debug)]
pub enum ServingNews<'a> {
    /// This model answers from now on.
    Answers(&'a Newest),
    /// This one cannot answer, and why. What answered before it goes on.
    CannotAnswer(&'a Newest, &'a str),
    /// The coordinator does not answer, or refuses.
    Trouble(&'a ClientError),
    /// It answers again, or still.
    Reached,
}

type Tell = Box<dyn Fn(ServingNews<'_>) + Send + Sync>;

/// A run whose coordinator is elsewhere. The model that answered last is kept in a folder, so that queries are answered
/// also where the coordinator is away when this process starts.
pub struct RemoteRun {
    client: Arc<Client>,
    blobs: Arc<RemoteBlobs>,
    file: PathBuf,
    last: Mutex<Option<Newest>>,
    tell: Tell,
}

impl RemoteRun {
    /// The run of `client`'s coordinator. What answers is noted in `file`, and its blob the only one that is kept.
    pub fn open(
        client: Arc<Client>,
        blobs: Arc<RemoteBlobs>,
        file: &Path,
        tell: impl Fn(ServingNews<'_>) + Send + Sync + 'static,
    ) -> Result<Self, BlobError> {
        // One that cannot be read is fetched anew.
        let last = fs::read(file).ok().and_then(|text| serde_json::from_slice::<Newest>(&text).ok());
        blobs.retain(&last.iter().map(|last| last.digest).collect())?;
        Ok(Self { client, blobs, file: file.to_owned(), last: Mutex::new(last), tell: Box::new(tell) })
    }
}

impl RunPort for RemoteRun {
    fn newer(&self, known: Option<Digest>) -> BoxFuture<'_, Result<Option<Newest>, String>> {
        Box::pin(async move {
            let newer = async {
                let status: Status = self.client.get(path::STATUS).await?;
                if Some(status.model) == known { Ok(None) } else { self.client.get(queries::NEWEST).await.map(Some) }
            };
            let newer = newer.await;
            (self.tell)(newer.as_ref().map_or_else(ServingNews::Trouble, |_| ServingNews::Reached));
            newer.map_err(|error| error.to_string())
        })
    }

    fn last(&self) -> Option<Newest> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.filter(|last| self.blobs.has(&last.digest))
    }

    fn answers(&self, newest: &Newest) {
        let older = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(newest.clone());
        // Where the disk is full, the next start has to ask the coordinator.
        let noted = serde_json::to_vec(newest).is_ok_and(|text| replace_file(&self.file, &text).is_ok());
        if let Some(older) = older.filter(|older| noted && older.digest != newest.digest) {
            // What is left is removed at the next start.
            let _ = self.blobs.remove(&older.digest);
        }
        (self.tell)(ServingNews::Answers(newest));
    }

    fn cannot_answer(&self, newest: &Newest, problem: &str) {
        (self.tell)(ServingNews::CannotAnswer(newest, problem));
    }
}

/// A ledger in another process, which must know this one's key as that of a server of queries (`--server-key`).
pub struct RemoteQueryLedger {
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    /// When it last did not answer, and what was the matter.
    away: Mutex<Option<(Time, String)>>,
}

impl RemoteQueryLedger {
    /// The ledger that `client` calls.
    #[must_use]
    pub fn new(client: Arc<Client>, clock: Arc<dyn Clock>) -> Self {
        Self { client, clock, away: Mutex::default() }
    }

    async fn post(&self, request: Request) -> Result<Recorded, ClientError> {
        match request {
            Request::Hold { id, wallet, amount, expires } => {
                self.client.post(ledger::HOLDS, &Hold { id, wallet, amount, expires }).await
            }
            Request::Settle { query, wallet, cost, contributors } => {
                let contributors =
                    contributors.into_iter().map(|(wallet, tokens)| Contributor { wallet, tokens }).collect();
                self.client.post(ledger::SETTLEMENTS, &Settle { query, wallet, cost, contributors }).await
            }
            other => Err(ClientError::Answer(format!("queries do not ask {other:?}"))),
        }
    }

    fn heard(&self, problem: Option<&str>) {
        let now = self.clock.now();
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = problem.map(|problem| (now, problem.to_owned()));
    }
}

/// What a refusal over HTTP means. Only what the ledger itself has decided is for good: whoever is not let in, or comes
/// too often, has not been heard.
fn trouble(error: &ClientError) -> LedgerTrouble {
    let ClientError::Refused { status, detail } = error else { return LedgerTrouble::Away(error.to_string()) };
    match (*status, detail.code.as_str()) {
        (_, "id_reused") => LedgerTrouble::Done,
        (402 | 409 | 410 | 422, code) => match detail.available.filter(|_| code == "insufficient_funds") {
            Some(available) => LedgerTrouble::Insufficient { available },
            None => LedgerTrouble::Refused(detail.message.clone()),
        },
        _ => LedgerTrouble::Away(error.to_string()),
    }
}

impl QueryLedger for RemoteQueryLedger {
    fn ask(&self, request: Request) -> BoxFuture<'_, Result<(), LedgerTrouble>> {
        Box::pin(async move {
            let answer = match tokio::time::timeout(LEDGER_WITHIN, self.post(request)).await {
                Ok(answer) => answer.map(drop).map_err(|error| trouble(&error)),
                Err(_) => Err(LedgerTrouble::Away("no answer in time".to_owned())),
            };
            match &answer {
                Err(LedgerTrouble::Away(problem)) => self.heard(Some(problem)),
                _ => self.heard(None),
            }
            answer
        })
    }

    fn is_away(&self) -> Option<String> {
        let now = self.clock.now();
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.as_ref().filter(|(since, _)| now.since(*since) < LEDGER_PAUSE).map(|(_, problem)| problem.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::api::ErrorDetail;
    use crate::protocol::Balance;

    #[test]
    fn only_what_the_ledger_has_decided_is_for_good() {
        let refused = |status, code: &str| {
            let detail = ErrorDetail {
                code: code.to_owned(),
                message: "words".to_owned(),
                session: None,
                time: None,
                received: None,
                available: (code == "insufficient_funds").then_some(Balance(7)),
            };
            trouble(&ClientError::Refused { status, detail: Box::new(detail) })
        };
        assert_eq!(refused(402, "insufficient_funds"), LedgerTrouble::Insufficient { available: Balance(7) });
        assert_eq!(refused(409, "id_reused"), LedgerTrouble::Done);
        for (status, code) in [(409, "not_pending"), (410, "expired"), (422, "zero_amount"), (410, "order_lapsed")] {
            assert_eq!(refused(status, code), LedgerTrouble::Refused("words".to_owned()), "{code}");
        }
        let lost =
            [(403, "forbidden"), (401, "clock_skew"), (404, "no_such_route"), (429, "too_many_calls"), (503, "busy")];
        for (status, code) in lost {
            assert!(matches!(refused(status, code), LedgerTrouble::Away(_)), "{code}");
        }
    }
}
