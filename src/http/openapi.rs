use serde_json::{Value, json};

use super::api::path;

/// One thing that a server does. The server is built from this table, and so is its description.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// The HTTP method.
    pub method: &'static str,
    /// The path; `{digest}` stands for a blob's name.
    pub path: &'static str,
    /// Who may call it.
    pub caller: Caller,
    /// For people.
    pub summary: &'static str,
    /// Parameters of the query: name and meaning.
    pub query: &'static [(&'static str, &'static str)],
    /// The kind of body that it takes.
    pub takes: Option<&'static str>,
    /// The kind of body that it answers with.
    pub gives: &'static str,
    pub(super) endpoint: Endpoint,
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
    /// A signed call of the operator.
    Admin,
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
    Register,
    Lease,
    Commit,
    Submit,
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
}

const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

const fn get(path: &'static str, caller: Caller, summary: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "GET", path, caller, summary, query: &[], takes: None, gives: JSON, endpoint }
}

const fn post(path: &'static str, caller: Caller, summary: &'static str, endpoint: Endpoint) -> Route {
    Route { method: "POST", path, caller, summary, query: &[], takes: Some(JSON), gives: JSON, endpoint }
}

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
        query: &[("round", "Which")],
        ..get(path::AUDITS, Caller::Anybody, "Who was audited in a round, and what came of it", Endpoint::Audits)
    },
    Route {
        gives: "text/event-stream",
        ..get(path::EVENTS, Caller::Anybody, "What happens, as it happens (server-sent events)", Endpoint::Events)
    },
    post(path::REGISTER, Caller::Key, "Ask to be admitted, with an invite where one is needed", Endpoint::Register),
    post(path::LEASE, Caller::Worker, "Ask for work; held open until there is some", Endpoint::Lease),
    post(path::COMMIT, Caller::Worker, "Commit to a result", Endpoint::Commit),
    post(path::SUBMIT, Caller::Worker, "Hand in a result whose payload is uploaded", Endpoint::Submit),
    post(path::APPEAL, Caller::Worker, "Appeal against a finding of false work", Endpoint::Appeal),
    post(path::GIVE_BACK, Caller::Worker, "Give a task back undone", Endpoint::GiveBack),
    Route { gives: BYTES, ..get(BLOB, Caller::Reader, "A blob, or a range of it", Endpoint::ReadBlob) },
    Route { method: "HEAD", gives: BYTES, ..get(BLOB, Caller::Reader, "The length of a blob", Endpoint::ReadBlob) },
    Route {
        method: "PUT",
        takes: Some(BYTES),
        query: &[("offset", "Where this piece begins, in bytes"), ("length", "Bytes of the whole upload")],
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
];

/// The description of all routes, in the form of `OpenAPI` 3.1.
#[must_use]
pub fn document() -> Value {
    let mut paths = serde_json::Map::new();
    for route in ROUTES {
        let item = paths.entry(route.path).or_insert_with(|| json!({}));
        item[route.method.to_lowercase()] = operation(route);
    }
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
            }},
            "schemas": { "Error": {
                "type": "object",
                "required": ["error"],
                "properties": { "error": {
                    "type": "object",
                    "required": ["code", "message"],
                    "properties": { "code": { "type": "string" }, "message": { "type": "string" } },
                }},
            }},
        },
    })
}

fn operation(route: &Route) -> Value {
    let mut parameters: Vec<Value> = route
        .query
        .iter()
        .map(|(name, meaning)| {
            json!({
                "name": name, "in": "query", "required": true, "description": meaning,
                "schema": { "type": "integer", "minimum": 0 },
            })
        })
        .collect();
    if route.path.contains("{digest}") {
        parameters.push(json!({
            "name": "digest", "in": "path", "required": true, "description": "BLAKE3, lower-case hexadecimal",
            "schema": { "type": "string", "pattern": "^[0-9a-f]{64}$" },
        }));
    }
    let error = json!({ "description": "Refused", "content": { JSON: { "schema": { "$ref": "#/components/schemas/Error" } } } });
    let mut operation = json!({
        "summary": route.summary,
        "operationId": format!("{:?}{}", route.endpoint, if route.method == "HEAD" { "Head" } else { "" }),
        "parameters": parameters,
        "responses": { "200": { "description": "Done", "content": { route.gives: {} } }, "4XX": error.clone(), "5XX": error },
    });
    if let Some(takes) = route.takes {
        operation["requestBody"] = json!({ "required": true, "content": { takes: {} } });
    }
    if route.caller != Caller::Anybody {
        operation["security"] = json!([{ "signed": [] }]);
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_once() {
        let document = document();
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method.to_lowercase()];
            assert_eq!(operation["summary"], route.summary, "{} {}", route.method, route.path);
        }
        let described: usize =
            document["paths"].as_object().unwrap().values().map(|item| item.as_object().unwrap().len()).sum();
        assert_eq!(described, ROUTES.len());
    }
}
