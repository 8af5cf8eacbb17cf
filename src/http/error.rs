use std::time::Duration;

use serde_json::{Map, Value, json};
use warp::http::{StatusCode, header};
use warp::reply::Response;

use crate::ledger::{BookError, LedgerError, OrderError, StoreError};
use crate::protocol::{SessionId, Time};

/// Why a server refuses a request. Each kind has a `code` that stays the same between versions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No such path.
    #[error("there is nothing here; GET /openapi.json tells what there is")]
    NoSuchRoute,
    /// The path is there, but not with this method.
    #[error("this path does not take that method")]
    NoSuchMethod,
    /// The request cannot be understood.
    #[error("the request is malformed: {0}")]
    Malformed(String),
    /// The body is larger than this route takes.
    #[error("the body is over the limit of {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The client took too long.
    #[error("the body did not come in time")]
    TooSlow,
    /// A route that wants a signature was called without.
    #[error("this call must be signed: Authorization: Hydra <signed call>")]
    Unsigned,
    /// The signature does not fit the key or the call.
    #[error("the call's signature does not match: {0}")]
    Signature(&'static str),
    /// Signed for another server process.
    #[error("the call is signed for another session of the server; sign it again for the present one")]
    Session {
        /// The present session.
        session: SessionId,
        /// The server's time.
        time: Time,
    },
    /// The caller's clock is off.
    #[error("your clock is {} ms {}; set it right", .off_ms.unsigned_abs(), if *.off_ms > 0 { "ahead" } else { "behind" })]
    ClockSkew {
        /// How far the caller's clock is ahead, in milliseconds; behind when negative.
        off_ms: i64,
        /// The server's time.
        time: Time,
    },
    /// A pass that this server process did not give, or that is over.
    #[error("there is no such pass, or not any more; ask for another")]
    NoSuchPass,
    /// This very call was made before.
    #[error("this call was made before")]
    Replayed,
    /// The key may not take part.
    #[error("this key is not admitted: {0}")]
    NotAdmitted(&'static str),
    /// The key may take part, but not do this.
    #[error("this key may not do that: {0}")]
    Forbidden(&'static str),
    /// No such round, yet.
    #[error("there is no such round yet")]
    NoSuchRound,
    /// No such report.
    #[error("there is no such report; the operator shows reports with --reports")]
    NoSuchReport,
    /// No such blob, or none that may be read.
    #[error("there is no such blob")]
    NoSuchBlob,
    /// The range does not lie within the blob.
    #[error("the blob has {length} bytes")]
    Range {
        /// Of the blob, in bytes.
        length: u64,
    },
    /// An upload that no open commitment of the caller names.
    #[error("upload what you have committed to, and only that")]
    NotCommitted,
    /// A piece of an upload that does not begin where the last ended.
    #[error("the upload is at {received} bytes")]
    Offset {
        /// Bytes that the server has.
        received: u64,
    },
    /// The bytes uploaded have another digest; they were thrown away.
    #[error("the uploaded bytes are not those with this digest")]
    UploadMismatch,
    /// The ledger refuses.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// No such transfer.
    #[error("there is no such transfer")]
    NoSuchTransfer,
    /// Nothing was signed when the journal had that size.
    #[error("no head of {size} transfers was signed{}", nearest_signed(*.nearest))]
    NeverSigned {
        /// The size that was asked for.
        size: u64,
        /// The last smaller size at which something was.
        nearest: Option<u64>,
    },
    /// The ledger of this run is another process.
    #[error("the ledger of this run is at {0}; ask there")]
    LedgerElsewhere(String),
    /// The ledger that queries are paid in does not answer.
    #[error("queries cannot be paid now, because the ledger does not answer ({0}); try again soon")]
    LedgerAway(String),
    /// A query is refused.
    #[error("{}", .0.message)]
    Query(Box<QueryError>),
    /// This coordinator answers no queries.
    #[error("this coordinator answers no queries; start it with --serve")]
    NotServing,
    /// An API key is refused a change.
    #[error("{0}")]
    ApiKey(String),
    /// Too many calls from this key or address.
    #[error("too many calls; wait {} ms", .0.as_millis())]
    TooManyCalls(Duration),
    /// The server has no room for more right now.
    #[error("the server is busy; try again soon")]
    Busy,
    /// A fault of the server.
    #[error("the server failed: {0}")]
    Internal(String),
}

/// Why a query is refused, as `OpenAI`'s clients know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A word for programs.
    pub code: &'static str,
    /// The parameter that it is about.
    pub param: Option<String>,
    /// For people.
    pub message: String,
}

impl QueryError {
    /// A parameter that cannot be.
    #[must_use]
    pub fn invalid(param: &str, message: String) -> Self {
        let (status, param) = (StatusCode::BAD_REQUEST, Some(param.to_owned()));
        Self { status, code: "invalid_value", param, message }
    }

    /// A parameter that is not known here.
    #[must_use]
    pub fn unknown(param: &str) -> Self {
        let message = format!("Unrecognized request argument supplied: {param}");
        Self { code: "unknown_parameter", ..Self::invalid(param, message) }
    }

    /// A model that is not served.
    #[must_use]
    pub fn model(name: &str) -> Self {
        let message = format!("The model `{name}` does not exist; GET /v1/models tells which do");
        let (status, code) = (StatusCode::NOT_FOUND, "model_not_found");
        Self { status, code, ..Self::invalid("model", message) }
    }

    /// An API key that is none, or none any more.
    #[must_use]
    pub fn key(message: &str) -> Self {
        let (status, code) = (StatusCode::UNAUTHORIZED, "invalid_api_key");
        Self { status, code, param: None, message: message.to_owned() }
    }

    /// Not enough HYD, or not enough that may be spent.
    #[must_use]
    pub fn quota(message: String) -> Self {
        Self { status: StatusCode::PAYMENT_REQUIRED, code: "insufficient_quota", param: None, message }
    }

    /// Something about a payment that the ledger refuses.
    #[must_use]
    pub fn unpaid(why: String) -> Self {
        let message = format!("the ledger does not take this query's payment: {why}");
        Self { status: StatusCode::CONFLICT, code: "payment_refused", param: None, message }
    }

    /// Too much at a time.
    #[must_use]
    pub fn busy(message: String) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, code: "rate_limit_exceeded", param: None, message }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        Self::Query(Box::new(error))
    }
}

impl ApiError {
    /// The stable name of the kind.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.kind().0
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.kind().1
    }

    fn kind(&self) -> (&'static str, StatusCode) {
        match self {
            Self::NoSuchRoute => ("no_such_route", StatusCode::NOT_FOUND),
            Self::NoSuchMethod => ("no_such_method", StatusCode::METHOD_NOT_ALLOWED),
            Self::Malformed(_) => ("malformed", StatusCode::BAD_REQUEST),
            Self::TooLarge { .. } => ("too_large", StatusCode::PAYLOAD_TOO_LARGE),
            Self::TooSlow => ("too_slow", StatusCode::REQUEST_TIMEOUT),
            Self::Unsigned => ("unsigned", StatusCode::UNAUTHORIZED),
            Self::Signature(_) => ("bad_signature", StatusCode::UNAUTHORIZED),
            Self::Session { .. } => ("other_session", StatusCode::UNAUTHORIZED),
            Self::ClockSkew { .. } => ("clock_skew", StatusCode::UNAUTHORIZED),
            Self::NoSuchPass => ("no_such_pass", StatusCode::UNAUTHORIZED),
            Self::Replayed => ("replayed", StatusCode::UNAUTHORIZED),
            Self::NotAdmitted(_) => ("not_admitted", StatusCode::FORBIDDEN),
            Self::Forbidden(_) => ("forbidden", StatusCode::FORBIDDEN),
            Self::NoSuchRound => ("no_such_round", StatusCode::NOT_FOUND),
            Self::NoSuchReport => ("no_such_report", StatusCode::NOT_FOUND),
            Self::NoSuchBlob => ("no_such_blob", StatusCode::NOT_FOUND),
            Self::Range { .. } => ("range", StatusCode::RANGE_NOT_SATISFIABLE),
            Self::NotCommitted => ("not_committed", StatusCode::FORBIDDEN),
            Self::Offset { .. } => ("offset", StatusCode::CONFLICT),
            Self::UploadMismatch => ("upload_mismatch", StatusCode::UNPROCESSABLE_ENTITY),
            Self::Ledger(error) => (error.code(), ledger_status(error)),
            Self::NoSuchTransfer => ("no_such_transfer", StatusCode::NOT_FOUND),
            Self::NeverSigned { .. } => ("never_signed", StatusCode::NOT_FOUND),
            Self::LedgerElsewhere(_) => ("ledger_elsewhere", StatusCode::MISDIRECTED_REQUEST),
            Self::LedgerAway(_) => ("ledger_away", StatusCode::SERVICE_UNAVAILABLE),
            Self::Query(error) => (error.code, error.status),
            Self::NotServing => ("not_serving", StatusCode::NOT_FOUND),
            Self::ApiKey(_) => ("api_key_refused", StatusCode::CONFLICT),
            Self::TooManyCalls(_) => ("too_many_calls", StatusCode::TOO_MANY_REQUESTS),
            Self::Busy => ("busy", StatusCode::SERVICE_UNAVAILABLE),
            Self::Internal(_) => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// The object under `error`: with `type` and `param`, which `OpenAI`'s clients look for.
    #[must_use]
    pub fn object(&self) -> Map<String, Value> {
        let kind = match self.status() {
            StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let param = match self {
            Self::Query(error) => error.param.as_deref(),
            _ => None,
        };
        let fields = [
            ("code", json!(self.code())),
            ("message", json!(self.to_string())),
            ("type", json!(kind)),
            ("param", json!(param)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The answer on the wire: `{"error": {"code", "message", "type", "param", …}}`.
    #[must_use]
    pub fn into_response(self) -> Response {
        let mut error = self.object();
        let mut detail = |name: &str, value: Value| error.insert(name.into(), value);
        match &self {
            Self::Session { session, time } => {
                detail("session", json!(session));
                detail("time", json!(time));
            }
            Self::ClockSkew { off_ms, time } => {
                detail("off_ms", json!(off_ms));
                detail("time", json!(time));
            }
            Self::Range { length } => {
                detail("length", json!(length));
            }
            Self::Offset { received } => {
                detail("received", json!(received));
            }
            Self::TooLarge { limit } => {
                detail("limit", json!(limit));
            }
            Self::NeverSigned { nearest, .. } => {
                detail("nearest", json!(nearest));
            }
            Self::Ledger(
                LedgerError::Order(OrderError::Book(BookError::Insufficient { available, .. }))
                | LedgerError::Book(BookError::Insufficient { available, .. }),
            ) => {
                detail("available", json!(available));
            }
            Self::LedgerElsewhere(ledger) => {
                detail("ledger", json!(ledger));
            }
            _ => {}
        }
        let retry_after = match &self {
            Self::TooManyCalls(pause) => Some(pause.as_secs() + 1),
            _ if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&self.status()) => Some(1),
            _ => None,
        };
        let body = Value::Object(Map::from_iter([("error".to_owned(), Value::Object(error))])).to_string();
        let mut response = Response::new(body.into());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if matches!(self, Self::TooLarge { .. } | Self::TooSlow) {
            // What is still to come of the body is not read, so nothing can follow on this connection.
            headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        }
        response
    }
}

fn nearest_signed(size: Option<u64>) -> String {
    size.map_or_else(String::new, |size| format!("; the nearest size that was signed is {size}"))
}

/// What a refusal of the ledger is in the words of HTTP: what is malformed is 400 or 422, what may go another way later
/// 402 or 409, what is somebody else's 403, what is over or never was 404 or 410, and what is the ledger's own trouble 500
/// or 503.
fn ledger_status(error: &LedgerError) -> StatusCode {
    match error {
        LedgerError::Verdict { .. } => StatusCode::BAD_REQUEST,
        LedgerError::VerifierUnknown { .. } => StatusCode::FORBIDDEN,
        LedgerError::NoFinding | LedgerError::Contributors { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        LedgerError::TaskTwice { .. } | LedgerError::WorkPaid { .. } | LedgerError::RoundDiffers { .. } => {
            StatusCode::CONFLICT
        }
        LedgerError::Order(error) => order_status(error),
        LedgerError::Book(error) => book_status(error),
        LedgerError::Store(StoreError::Busy | StoreError::NotReady(_) | StoreError::Failed(_)) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        LedgerError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn order_status(error: &OrderError) -> StatusCode {
    match error {
        OrderError::Lapsed { .. } => StatusCode::GONE,
        OrderError::TooFar { .. } | OrderError::IdKind { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        OrderError::IdReused { .. } | OrderError::Stale { .. } | OrderError::Unstaking => StatusCode::CONFLICT,
        OrderError::OfferUnknown { .. } => StatusCode::NOT_FOUND,
        OrderError::OfferClosed { .. } | OrderError::OfferNotYours { .. } => StatusCode::FORBIDDEN,
        OrderError::Book(error) => book_status(error),
    }
}

fn book_status(error: &BookError) -> StatusCode {
    match error {
        BookError::Insufficient { .. } => StatusCode::PAYMENT_REQUIRED,
        BookError::Expired { .. } => StatusCode::GONE,
        BookError::IdReused { .. }
        | BookError::NotPending { .. }
        | BookError::PendingExceeded { .. }
        | BookError::NotExpired { .. }
        | BookError::ChainPartlyPosted { .. }
        | BookError::Cap { .. } => StatusCode::CONFLICT,
        BookError::Full => StatusCode::INSUFFICIENT_STORAGE,
        BookError::TimeBackwards { .. } | BookError::Overflow { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Codes and the names of their statuses, as this file has them. Those of the ledger and of queries have tables of their
    /// own.
    fn codes() -> BTreeSet<(String, String)> {
        let kinds = include_str!("error.rs").split("fn kind(&self)").nth(1).unwrap().split("\n    }").next().unwrap();
        let rows = kinds.lines().filter_map(|line| line.split_once("=> (\"")?.1.split_once("\", StatusCode::"));
        rows.map(|(code, status)| (code.to_owned(), status.trim_end_matches("),").to_owned())).collect()
    }

    #[test]
    fn the_book_has_every_code_with_its_status() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/protocol.md");
        let chapter = std::fs::read_to_string(path).unwrap();
        let table = chapter.split("\n## Errors\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut told = BTreeSet::new();
        for row in table.lines().filter(|line| line.starts_with("| `")) {
            let columns: Vec<&str> = row.split('|').map(str::trim).collect();
            let status = StatusCode::from_bytes(&columns[2].as_bytes()[..3]).unwrap();
            let name = status.canonical_reason().unwrap().to_uppercase().replace(' ', "_");
            told.extend(columns[1].split('`').skip(1).step_by(2).map(|code| (code.to_owned(), name.clone())));
        }
        assert!(told.len() > 25);
        assert_eq!(told, codes());
    }
}
