use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::api::ledger::path as ledger;
use super::api::path;
use super::api::queries::path as queries;
use super::api::watch::path as watch;
use super::bodies;
use super::error::ApiError;

/// One thing that a server does. The server is built from this table, and so is its description.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// The HTTP method.
    pub method: &'static str,
    /// The path; `{digest}` stands for a blob's name, `{key}` for a public key, `{transfer}` for a transfer's id or number,
    /// `{model}` for a model's name, `{round}` for a round's number, `{report}` and `{file}` for names.
    pub path: &'static str,
    /// Who may call it.
    pub caller: Caller,
    /// For people.
    pub summary: &'static str,
    /// Parameters of the query.
    pub query: &'static [Parameter],
    /// The kind of body that it takes.
    pub takes: Option<&'static str>,
    /// The kind of body that it answers with.
    pub gives: &'static str,
    pub(super) endpoint: Endpoint,
}

/// A parameter of the query.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub meaning: &'static str,
    /// Whether there must be one.
    pub required: bool,
    /// Whether it is a number, from 0.
    pub number: bool,
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Anybody.
    Anybody,
    /// Anybody, where the run is open to all; else a signed call of an admitted key.
    Reader,
    /// A signed call of any key.
    Key,
    /// A signed call of an admitted key.
    Worker,
    /// A signed call of a verifier of this run.
    Verifier,
    /// A signed call of a coordinator whose rounds this ledger pays.
    Payer,
    /// A signed call of somebody who serves queries.
    QueryServer,
    /// A signed call of the operator.
    Admin,
    /// Whoever has an API key, or is let in without one.
    ApiKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Health,
    Ready,
    Metrics,
    OpenApi,
    Hello,
    Status,
    Audits,
    Events,
    Pass,
    Register,
    Lease,
    Commit,
    Submit,
    Heartbeat,
    Appeal,
    GiveBack,
    ReadBlob,
    UploadProgress,
    Upload,
    TakeCheck,
    TakeReplay,
    Verdicts,
    Finish,
    Invite,
    Keys,
    Ledger,
    Accounts,
    Account,
    History,
    Offers,
    Order,
    Orders,
    Transfer,
    TransferProof,
    Entries,
    Head,
    Heads,
    Growth,
    Holds,
    Hold,
    Settle,
    PayRound,
    Forfeit,
    Models,
    Model,
    Completions,
    Chat,
    Quote,
    NewApiKey,
    ApiKeys,
    RevokeApiKey,
    Balance,
    Samples,
    Newest,
    Rounds,
    Round,
    Workers,
    Reports,
    Report,
    Page,
    PageFile,
}

const JSON: &str = "application/json";
const HTML: &str = "text/html";
const BYTES: &str = "application/octet-stream";

const fn get(path: &'static str, caller: Caller, summary: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "GET", path, caller, summary, query: &[], takes: None, gives: JSON, endpoint }
}

const fn post(path: &'static str, caller: Caller, summary: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "POST", path, caller, summary, query: &[], takes: Some(JSON), gives: JSON, endpoint }
}

const fn number(name: &'static str, meaning: &'static str, required: bool) -> Parameter {
    Parameter { name, meaning, required, number: true }
}

const AFTER: &str = "What the page before named as `next`";
const MOST: Parameter = number("most", "How many, 100 by default and 1000 at most", false);
const BY_NUMBER: &[Parameter] = &[number("after", AFTER, false), MOST];
const BY_NAME: &[Parameter] = &[Parameter { name: "after", meaning: AFTER, required: false, number: false }, MOST];

const BLOB: &str = "/hydra/v1/blobs/{digest}";

/// Everything that a server does.
pub const ROUTES: &[Route] = &[
    Route { gives: "text/plain", ..get("/healthz", Caller::Anybody, "Whether the process lives", Endpoint::Health) },
    Route {
        gives: "text/plain",
        ..get("/readyz", Caller::Anybody, "Whether the coordinator answers", Endpoint::Ready)
    },
    Route {
        gives: "text/plain",
        ..get("/metrics", Caller::Anybody, "Numbers in Prometheus' text format", Endpoint::Metrics)
    },
    get("/openapi.json", Caller::Anybody, "This description", Endpoint::OpenApi),
    get(path::HELLO, Caller::Anybody, "What signed calls must name, the run, the server's time", Endpoint::Hello),
    get(path::STATUS, Caller::Anybody, "How the run stands", Endpoint::Status),
    Route {
        query: &[number("round", "Which; the newest that is closed where nothing is said", false)],
        ..get(path::AUDITS, Caller::Anybody, "Who was audited in a round, and what came of it", Endpoint::Audits)
    },
    Route {
        gives: "text/event-stream",
        ..get(path::EVENTS, Caller::Anybody, "What happens, as it happens (server-sent events)", Endpoint::Events)
    },
    post(path::PASS, Caller::Key, "Ask for a pass, which proves further calls without signatures", Endpoint::Pass),
    post(path::REGISTER, Caller::Key, "Ask to be admitted, with an invite where one is needed", Endpoint::Register),
    post(path::LEASE, Caller::Worker, "Ask for work; held open until there is some", Endpoint::Lease),
    post(path::COMMIT, Caller::Worker, "Commit to a result", Endpoint::Commit),
    post(path::SUBMIT, Caller::Worker, "Hand in a result whose payload is uploaded", Endpoint::Submit),
    post(path::HEARTBEAT, Caller::Worker, "Renew the lease of a task that is being done", Endpoint::Heartbeat),
    post(path::APPEAL, Caller::Worker, "Appeal against a finding of false work", Endpoint::Appeal),
    post(path::GIVE_BACK, Caller::Worker, "Give a task back undone", Endpoint::GiveBack),
    Route { gives: BYTES, ..get(BLOB, Caller::Reader, "A blob, or a range of it", Endpoint::ReadBlob) },
    Route { method: "HEAD", gives: BYTES, ..get(BLOB, Caller::Reader, "The length of a blob", Endpoint::ReadBlob) },
    Route {
        method: "PUT",
        takes: Some(BYTES),
        query: &[
            number("offset", "Where this piece begins, in bytes", true),
            number("length", "Bytes of the whole upload", true),
        ],
        ..get(BLOB, Caller::Worker, "Append a piece to the upload of a committed payload", Endpoint::Upload)
    },
    get(
        "/hydra/v1/uploads/{digest}",
        Caller::Worker,
        "How far the upload of a committed payload has come",
        Endpoint::UploadProgress,
    ),
    get(path::CHECKS, Caller::Verifier, "Submissions to check; held open until there are some", Endpoint::TakeCheck),
    get(path::REPLAYS, Caller::Verifier, "A task to compute again; held open until there is one", Endpoint::TakeReplay),
    post(path::VERDICTS, Caller::Verifier, "What a verifier found", Endpoint::Verdicts),
    post(path::FINISH, Caller::Admin, "End the run after the open round", Endpoint::Finish),
    post(path::INVITES, Caller::Admin, "Make an invite token", Endpoint::Invite),
    post(path::KEYS, Caller::Admin, "Admit or block a key", Endpoint::Keys),
    get(ledger::LEDGER, Caller::Anybody, "What the ledger is, and its sums", Endpoint::Ledger),
    Route {
        query: BY_NAME,
        ..get(ledger::ACCOUNTS, Caller::Anybody, "All accounts, in the order of their names", Endpoint::Accounts)
    },
    get("/hydra/v1/ledger/accounts/{key}", Caller::Anybody, "How a key stands", Endpoint::Account),
    Route {
        query: &[number("before", AFTER, false), MOST],
        ..get(
            "/hydra/v1/ledger/accounts/{key}/history",
            Caller::Anybody,
            "The transfers of a key's wallet and stake, newest first",
            Endpoint::History,
        )
    },
    Route { query: BY_NAME, ..get(ledger::OFFERS, Caller::Anybody, "Open offers", Endpoint::Offers) },
    post(ledger::TRANSFERS, Caller::Key, "Have a signed order done", Endpoint::Order),
    post(ledger::BATCH, Caller::Key, "Have up to 1000 signed orders done, each by itself", Endpoint::Orders),
    get("/hydra/v1/ledger/transfers/{transfer}", Caller::Anybody, "A transfer", Endpoint::Transfer),
    get(
        "/hydra/v1/ledger/transfers/{transfer}/proof",
        Caller::Anybody,
        "The proof that a transfer is in the ledger",
        Endpoint::TransferProof,
    ),
    Route { query: BY_NUMBER, ..get(ledger::ENTRIES, Caller::Anybody, "The journal, oldest first", Endpoint::Entries) },
    get(ledger::HEAD, Caller::Anybody, "The newest signed head", Endpoint::Head),
    Route { query: BY_NUMBER, ..get(ledger::HEADS, Caller::Anybody, "All signed heads", Endpoint::Heads) },
    Route {
        query: &[number("since", "Transfers that it had then: one of the sizes that it signed", true)],
        ..get(ledger::GROWTH, Caller::Anybody, "The proof that the ledger goes on from what it was", Endpoint::Growth)
    },
    Route {
        query: BY_NAME,
        ..get(ledger::HOLDS, Caller::Anybody, "Pending transfers that nothing has resolved", Endpoint::Holds)
    },
    post(ledger::HOLDS, Caller::QueryServer, "Hold the most that a query may cost", Endpoint::Hold),
    post(ledger::SETTLEMENTS, Caller::QueryServer, "Settle a query, or give its hold back", Endpoint::Settle),
    post(ledger::PAY, Caller::Payer, "Pay the accepted work of a round", Endpoint::PayRound),
    post(ledger::FORFEITS, Caller::Payer, "Take what false work costs", Endpoint::Forfeit),
    get(queries::MODELS, Caller::Anybody, "The models that answer queries", Endpoint::Models),
    get("/v1/models/{model}", Caller::Anybody, "A model that answers queries", Endpoint::Model),
    post(queries::COMPLETIONS, Caller::ApiKey, "Have a text continued, as with OpenAI", Endpoint::Completions),
    post(queries::CHAT, Caller::ApiKey, "Have a conversation continued, as with OpenAI", Endpoint::Chat),
    post(queries::QUOTE, Caller::Anybody, "What a query may cost, given its body", Endpoint::Quote),
    post(queries::API_KEYS, Caller::Key, "Add an API key to the caller's wallet", Endpoint::NewApiKey),
    get(queries::API_KEYS, Caller::Key, "The API keys of the caller's wallet", Endpoint::ApiKeys),
    get(watch::BALANCE, Caller::ApiKey, "Who pays for queries with this API key, and what is left", Endpoint::Balance),
    post(queries::REVOKE, Caller::Key, "End an API key of the caller's wallet", Endpoint::RevokeApiKey),
    get(queries::NEWEST, Caller::Anybody, "The newest model, its sizes, and who trained it", Endpoint::Newest),
    get(watch::SAMPLES, Caller::Anybody, "What the models of earlier rounds wrote", Endpoint::Samples),
    Route {
        query: BY_NUMBER,
        ..get(watch::ROUNDS, Caller::Anybody, "The rounds so far, oldest first", Endpoint::Rounds)
    },
    get("/hydra/v1/rounds/{round}", Caller::Anybody, "A round, and what became of each task", Endpoint::Round),
    Route {
        query: BY_NAME,
        ..get(
            watch::WORKERS,
            Caller::Anybody,
            "Everybody who has ever worked, in the order of their keys",
            Endpoint::Workers,
        )
    },
    get(watch::REPORTS, Caller::Anybody, "Reports of simulations that the operator shows", Endpoint::Reports),
    Route { gives: HTML, ..get("/hydra/v1/reports/{report}", Caller::Anybody, "A report", Endpoint::Report) },
    Route { gives: HTML, ..get("/", Caller::Anybody, "The page for people", Endpoint::Page) },
    Route { gives: "*/*", ..get("/dashboard/{file}", Caller::Anybody, "A file of the page", Endpoint::PageFile) },
    Route {
        gives: "*/*",
        ..get("/dashboard/vendor/{file}", Caller::Anybody, "A library of the page", Endpoint::PageFile)
    },
];

impl Route {
    /// Whether it is part of the page for people.
    #[must_use]
    pub(super) fn is_of_page(&self) -> bool {
        matches!(self.endpoint, Endpoint::Page | Endpoint::PageFile)
    }

    /// Whether every server has it, whatever it serves.
    fn is_of_all(&self) -> bool {
        let common = [Endpoint::Health, Endpoint::Ready, Endpoint::Metrics, Endpoint::OpenApi, Endpoint::Hello];
        common.contains(&self.endpoint)
    }

    /// Whether a ledger in a process of its own serves it too.
    #[must_use]
    pub fn is_of_ledger(&self) -> bool {
        self.path.starts_with(ledger::LEDGER) || self.is_of_all()
    }

    /// Whether a server of queries in a process of its own serves it too.
    #[must_use]
    pub fn is_of_queries(&self) -> bool {
        let own = [
            Endpoint::Models,
            Endpoint::Model,
            Endpoint::Completions,
            Endpoint::Chat,
            Endpoint::Quote,
            Endpoint::NewApiKey,
            Endpoint::ApiKeys,
            Endpoint::RevokeApiKey,
            Endpoint::Balance,
            Endpoint::Samples,
        ];
        own.contains(&self.endpoint) || self.is_of_all()
    }
}

/// Finds routes by method and path.
#[derive(Debug)]
pub(super) struct Table {
    /// Those without anything in braces.
    plain: BTreeMap<&'static str, Vec<&'static Route>>,
    others: Vec<&'static Route>,
}

impl Table {
    pub fn new(routes: impl Iterator<Item = &'static Route>) -> Self {
        let (mut plain, mut others) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        for route in routes {
            if route.path.contains('{') {
                others.push(route);
            } else {
                plain.entry(route.path).or_default().push(route);
            }
        }
        Self { plain, others }
    }

    /// The route of a request. A slash at the end makes no difference.
    pub fn find(&self, method: &str, path: &str) -> Result<&'static Route, ApiError> {
        let path = path.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(path);
        let matching = self.others.iter().copied().filter(|route| matches(route.path, path));
        let mut here = false;
        for route in self.plain.get(path).into_iter().flatten().copied().chain(matching) {
            if route.method == method {
                return Ok(route);
            }
            here = true;
        }
        Err(if here { ApiError::NoSuchMethod } else { ApiError::NoSuchRoute })
    }
}

/// Whether a path has the parts that a pattern has, with anything in the place of what stands in braces.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return true,
            (Some(wanted), Some(part)) if wanted == part || (wanted.starts_with('{') && !part.is_empty()) => {}
            _ => return false,
        }
    }
}

/// The description of these routes, in the form of `OpenAPI` 3.1.
#[must_use]
pub fn document<'a>(routes: impl Iterator<Item = &'a Route>) -> Value {
    let mut paths = serde_json::Map::new();
    for route in routes {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.to_lowercase()] = operation(route);
    }
    let mut schemas = bodies::components();
    schemas.insert(
        "Error".to_owned(),
        json!({
            "type": "object",
            "required": ["error"],
            "properties": { "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": { "code": { "type": "string" }, "message": { "type": "string" } },
            }},
        }),
    );
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hydra",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Trains one neural network on many people's computers. Errors are {\"error\": {\"code\", \"message\", …}}.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": { "signed": {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "\"Hydra \" and a signed Call (session, method, path, body digest, time, nonce) in base64url; see the chapter on the protocol",
            }, "api_key": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas,
        },
    })
}

/// A name for an operation that no other has.
fn operation_id(route: &Route) -> String {
    let more = match (route.method, route.path.contains("/vendor/")) {
        ("HEAD", _) => "Head",
        (_, true) => "Vendor",
        _ => "",
    };
    format!("{:?}{more}", route.endpoint)
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = route
        .query
        .iter()
        .map(|Parameter { name, meaning, required, number }| {
            let schema = if *number { json!({ "type": "integer", "minimum": 0 }) } else { json!({ "type": "string" }) };
            json!({ "name": name, "in": "query", "required": required, "description": meaning, "schema": schema })
        })
        .collect();
    for (name, meaning, pattern) in [
        ("digest", "BLAKE3, lower-case hexadecimal", "^[0-9a-f]{64}$"),
        ("key", "An Ed25519 public key, lower-case hexadecimal", "^[0-9a-f]{64}$"),
        ("transfer", "The id of a transfer, or its number", "^([0-9a-f]{32}|[0-9]{1,19})$"),
        ("model", "The name of a model", "^hydra$"),
        ("round", "The number of a round", "^[0-9]{1,9}$"),
        ("report", "The name of a report", "^[0-9A-Za-z._-]+$"),
        ("file", "The name of a file", "^[0-9a-z.-]+$"),
    ] {
        if route.path.contains(&format!("{{{name}}}")) {
            parameters.push(json!({
                "name": name, "in": "path", "required": true, "description": meaning,
                "schema": { "type": "string", "pattern": pattern },
            }));
        }
    }
    let error = json!({ "description": "Refused", "content": { JSON: { "schema": { "$ref": "#/components/schemas/Error" } } } });
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "parameters": parameters,
        "responses": { "200": { "description": "Done", "content": { route.gives: {} } }, "4XX": error.clone(), "5XX": error },
    });
    if let Some(takes) = route.takes {
        let content = match bodies::body(route.endpoint).filter(|_| takes == JSON) {
            Some(schema) => json!({ "schema": schema }),
            None => json!({}),
        };
        operation["requestBody"] = json!({ "required": true, "content": { takes: content } });
    }
    match route.caller {
        Caller::Anybody => {}
        Caller::ApiKey => operation["security"] = json!([{ "api_key": [] }, {}]),
        _ => operation["security"] = json!([{ "signed": [] }]),
    }
    operation
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn every_route_is_described_once() {
        let document = document(ROUTES.iter());
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method.to_lowercase()];
            assert_eq!(operation["summary"], route.summary, "{} {}", route.method, route.path);
        }
        let described: usize =
            document["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum();
        assert_eq!(described, ROUTES.len());
    }

    #[test]
    fn every_route_is_found_by_its_path_and_nothing_else() {
        let table = Table::new(ROUTES.iter());
        for route in ROUTES {
            let path = route.path.replace(['{', '}'], "");
            assert_eq!(table.find(route.method, &path).unwrap().path, route.path);
            assert_eq!(table.find(route.method, &format!("{path}/")).unwrap().path, route.path);
            assert_eq!(table.find("DELETE", &path).unwrap_err(), ApiError::NoSuchMethod);
            if path != "/" {
                assert_eq!(table.find(route.method, &format!("{path}/x/y/z")).unwrap_err(), ApiError::NoSuchRoute);
            }
        }
        for path in ["", "/hydra", "/hydra/v1/blobs", "/hydra/v1/blobs/", "/dashboard/", "/hydra/v1//lease"] {
            assert_eq!(table.find("GET", path).unwrap_err(), ApiError::NoSuchRoute, "{path}");
        }
    }

    fn caller(caller: Caller) -> &'static str {
        match caller {
            Caller::Anybody => "anybody",
            Caller::Reader => "anybody; where the run is not open, an admitted key",
            Caller::Key => "any key",
            Caller::Worker => "an admitted key",
            Caller::Verifier => "a verifier",
            Caller::Payer => "a coordinator of this ledger",
            Caller::QueryServer => "a server of queries",
            Caller::Admin => "the operator",
            Caller::ApiKey => "an API key, or the free allowance",
        }
    }

    /// The tables of the book's chapter, from the routes themselves.
    fn reference() -> String {
        let of = |route: &Route| match route.path {
            path if path.starts_with(ledger::LEDGER) => "The ledger",
            path if path.starts_with("/v1/") || path.starts_with(queries::API_KEYS) => "Queries",
            path if [queries::QUOTE, watch::BALANCE, watch::SAMPLES].contains(&path) => "Queries",
            path if path.starts_with("/hydra/v1/admin/") => "The operator",
            _ if matches!(route.caller, Caller::Worker | Caller::Key | Caller::Reader) => "Workers",
            _ if route.caller == Caller::Verifier => "Verifiers",
            _ => "The server and the run",
        };
        let mut text = String::new();
        for part in ["The server and the run", "Workers", "Verifiers", "The operator", "The ledger", "Queries"] {
            write!(text, "\n## {part}\n\n| call | who may | what it does |\n| --- | --- | --- |\n").unwrap();
            for route in ROUTES.iter().filter(|route| of(route) == part) {
                let query: Vec<String> = route
                    .query
                    .iter()
                    .map(|Parameter { name, meaning, required, .. }| {
                        format!("`{name}`{}: {meaning}", if *required { "" } else { " (may be left out)" })
                    })
                    .collect();
                let query = if query.is_empty() { String::new() } else { format!(". Query: {}", query.join("; ")) };
                let takes =
                    route.takes.filter(|takes| *takes != JSON).map_or_else(String::new, |t| format!(". Takes {t}"));
                let gives = if route.gives == JSON { String::new() } else { format!(". Gives {}", route.gives) };
                let (method, path, who, summary) = (route.method, route.path, caller(route.caller), route.summary);
                writeln!(text, "| `{method} {path}` | {who} | {summary}{query}{takes}{gives} |").unwrap();
            }
        }
        text
    }

    /// `HYDRA_TEST_WRITE=1 cargo test the_book` writes the chapter anew.
    #[test]
    fn the_book_tells_of_every_route() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/api.md");
        let chapter = std::fs::read_to_string(&path).unwrap();
        let begin = chapter.split("\n## ").next().unwrap();
        let right = format!("{begin}{}", reference());
        if std::env::var_os("HYDRA_TEST_WRITE").is_some() {
            return std::fs::write(&path, &right).unwrap();
        }
        let same = chapter == right;
        assert!(same, "the chapter on the HTTP API is old; HYDRA_TEST_WRITE=1 cargo test the_book writes it anew");
    }
}
