//! What the bodies of requests look like, for the description of the routes. Written by hand beside the types that are
//! parsed; a test holds the two together.

use serde_json::{Map, Value, json};

use super::openapi::Endpoint;

const HEX_32: &str = "^[0-9a-f]{32}$";
const HEX_64: &str = "^[0-9a-f]{64}$";
const HEX_128: &str = "^[0-9a-f]{128}$";
const BASE64: &str = "^[0-9A-Za-z_-]+$";
const MICRO_HYD: &str = "^[0-9]{1,19}$";

fn text(pattern: &str, description: &str) -> Value {
    json!({ "type": "string", "pattern": pattern, "description": description })
}

fn digest() -> Value {
    text(HEX_64, "A BLAKE3 digest")
}

fn key() -> Value {
    text(HEX_64, "An Ed25519 public key")
}

fn amount() -> Value {
    text(MICRO_HYD, "µHYD")
}

fn transfer() -> Value {
    text(HEX_32, "The id of a transfer")
}

fn number(description: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": description })
}

fn time() -> Value {
    number("Milliseconds since 1970")
}

fn list(items: Value) -> Value {
    json!({ "type": "array", "items": items })
}

fn signed() -> Value {
    json!({ "$ref": "#/components/schemas/Signed" })
}

/// An object of these properties and no others; those that may be left out have a question mark.
fn object(properties: &[(&str, Value)]) -> Value {
    let name = |name: &str| name.trim_end_matches('?').to_owned();
    let required: Vec<&str> = properties.iter().map(|(name, _)| *name).filter(|name| !name.ends_with('?')).collect();
    let all: Map<String, Value> = properties.iter().map(|(key, schema)| (name(key), schema.clone())).collect();
    json!({ "type": "object", "required": required, "properties": all, "additionalProperties": false })
}

/// A signed request; where a pass may prove the call, also the bare one that is given.
fn request(bare: Option<(&str, Value)>) -> Value {
    match bare {
        Some(bare) => json!({ "anyOf": [signed(), object(&[bare])] }),
        None => signed(),
    }
}

/// A query as `OpenAI`'s clients make it. They send more than is looked at.
fn query(required: &[&str]) -> Value {
    json!({ "type": "object", "required": required, "properties": {
        "model": { "type": "string" },
        "prompt": { "description": "A text, or several" },
        "messages": { "type": "array", "items": { "type": "object" } },
        "max_tokens": { "type": ["integer", "null"], "minimum": 0 },
        "stream": { "type": ["boolean", "null"] },
    } })
}

/// What several bodies hold.
pub(super) fn components() -> Map<String, Value> {
    let signed = json!({
        "type": "object",
        "description": "A message in the canonical encoding with its author's signature; see the chapter on the protocol",
        "required": ["signer", "signature", "body"],
        "properties": {
            "signer": key(),
            "signature": text(HEX_128, "Ed25519"),
            "body": text(BASE64, "The message, base64url"),
        },
    });
    Map::from_iter([("Signed".to_owned(), signed)])
}

/// The schema of a body of JSON, where the endpoint takes one.
pub(super) fn body(endpoint: Endpoint) -> Option<Value> {
    let task = || text(HEX_64, "A task");
    let commitment = || {
        object(&[
            ("task", task()),
            ("payload", digest()),
            ("trace", digest()),
            ("states", digest()),
            ("device", json!({ "type": "string", "description": "The kind of device that it was computed on" })),
            ("tokens", number("Tokens trained on")),
        ])
    };
    Some(match endpoint {
        Endpoint::Pass => object(&[("exchange", text(HEX_64, "An X25519 public key made for this pass"))]),
        Endpoint::Register => object(&[("invite?", json!({ "type": ["string", "null"] }))]),
        Endpoint::Lease => {
            let speed = number("Measured training speed, tokens a second; 0 when not yet known");
            request(Some((
                "Lease",
                json!({ "type": "object", "required": ["tokens_per_second"], "properties": { "tokens_per_second": speed } }),
            )))
        }
        Endpoint::Submit => {
            let losses = list(json!({ "type": "number" }));
            let submission = json!({ "type": "object", "required": ["commitment", "losses", "states"],
                "properties": { "commitment": loose(commitment()), "losses": losses, "states": list(digest()) } });
            request(Some(("Submit", submission)))
        }
        Endpoint::Heartbeat => request(Some(("Heartbeat", task()))),
        Endpoint::GiveBack => request(Some(("GiveBack", task()))),
        Endpoint::Commit | Endpoint::Appeal => request(None),
        Endpoint::Verdicts => object(&[("id", digest()), ("verdicts", list(signed()))]),
        // Nothing need be sent.
        Endpoint::Finish => json!({}),
        Endpoint::Invite => object(&[("uses", number("How many keys it admits"))]),
        Endpoint::Keys => object(&[("key", key()), ("admitted", json!({ "type": "boolean" }))]),
        Endpoint::Order => signed(),
        Endpoint::Orders => object(&[("orders", list(signed()))]),
        Endpoint::Hold => object(&[("id", transfer()), ("wallet", key()), ("amount", amount()), ("expires", time())]),
        Endpoint::Settle => {
            let contributor = object(&[("wallet", key()), ("tokens", number("Tokens of verified work"))]);
            object(&[("query", transfer()), ("wallet", key()), ("cost", amount()), ("contributors", list(contributor))])
        }
        Endpoint::PayRound => object(&[("run", digest()), ("round", number("Which")), ("verdicts", list(signed()))]),
        Endpoint::Forfeit => object(&[("verdict", signed())]),
        Endpoint::Completions => query(&["prompt"]),
        Endpoint::Chat => query(&["messages"]),
        Endpoint::Quote => query(&[]),
        Endpoint::NewApiKey => object(&[
            ("digest", digest()),
            ("name", json!({ "type": "string" })),
            ("limit?", json!({ "type": ["string", "null"], "pattern": MICRO_HYD })),
            ("expires?", json!({ "type": ["integer", "null"], "minimum": 0 })),
        ]),
        Endpoint::RevokeApiKey => object(&[("name", json!({ "type": "string" }))]),
        _ => return None,
    })
}

/// The same, with other properties too: these types do not refuse what they do not know.
fn loose(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("additionalProperties");
    }
    schema
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::http::api::ledger::{Contributor, Forfeit, Hold, Orders, PayRound, Settle};
    use crate::http::api::queries::{NewApiKey, RevokeApiKey};
    use crate::http::api::{KeyChange, NewInvite, NewPass, Register, Verdicts};
    use crate::http::openapi::ROUTES;
    use crate::ledger::TransferId;
    use crate::protocol::{Amount, Digest, ExchangeKey, Round, RunId, Signed, Submission, TaskId, Time, WorkerRequest};
    use crate::testing::key;

    /// Whether a value is what a schema says: as much of JSON Schema as these use.
    fn fits(schema: &Value, value: &Value) -> bool {
        if let Some(name) = schema["$ref"].as_str() {
            return fits(&components()[name.rsplit('/').next().unwrap()], value);
        }
        if let Some(any) = schema["anyOf"].as_array() {
            return any.iter().any(|schema| fits(schema, value));
        }
        let is = |kind: &Value| match kind.as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("{other}"),
        };
        let kinds = &schema["type"];
        let right = kinds.as_array().map_or_else(|| kinds.is_null() || is(kinds), |kinds| kinds.iter().any(is));
        let text = value.as_str().unwrap_or_default();
        let hex = |length| text.len() == length && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
        let pattern = match schema["pattern"].as_str() {
            _ if !value.is_string() => true,
            None => true,
            Some(HEX_32) => hex(32),
            Some(HEX_64) => hex(64),
            Some(HEX_128) => hex(128),
            Some(BASE64) => {
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            }
            Some(MICRO_HYD) => (1..=19).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()),
            Some(other) => panic!("{other}"),
        };
        let required = schema["required"].as_array().into_iter().flatten();
        let has_all = required.map(|name| name.as_str().unwrap()).all(|name| value.get(name).is_some());
        let properties =
            value.as_object().into_iter().flatten().all(|(name, value)| match schema["properties"].get(name) {
                Some(schema) => fits(schema, value),
                None => schema["additionalProperties"] != json!(false),
            });
        let items = value
            .as_array()
            .into_iter()
            .flatten()
            .all(|value| schema.get("items").is_none_or(|items| fits(items, value)));
        right && pattern && has_all && properties && items
    }

    /// What is sent fits the schema; and what the schema says about what must be there and what may, the parser says too.
    fn check<T: Serialize + DeserializeOwned>(endpoint: Endpoint, sent: &T) {
        let schema = body(endpoint).unwrap();
        let value = serde_json::to_value(sent).unwrap();
        assert!(fits(&schema, &value), "{endpoint:?}: {value} is not {schema}");
        let parses = |value: &Value| serde_json::from_value::<T>(value.clone()).is_ok();
        let Some(properties) = schema["properties"].as_object() else { return };
        for name in properties.keys() {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(name);
            assert_eq!(fits(&schema, &without), parses(&without), "{endpoint:?} without {name}");
            let mut wrong = value.clone();
            wrong[name] = json!({ "neither": [] });
            assert!(!fits(&schema, &wrong) && !parses(&wrong), "{endpoint:?} with another {name}");
        }
        let mut more = value.clone();
        more["something else"] = json!(1);
        assert_eq!(fits(&schema, &more), parses(&more), "{endpoint:?} with more");
    }

    #[test]
    fn what_is_described_is_what_is_parsed() {
        let mine = key(1);
        let public = mine.public();
        let digest = Digest::of(b"digest");
        let signed = Signed::seal(&mine, &WorkerRequest::Lease { tokens_per_second: 1 });
        let id = TransferId::request(Time(5), 9);
        let amount = Amount::from_hyd(5);
        check(Endpoint::Pass, &NewPass { exchange: ExchangeKey(digest) });
        check(Endpoint::Register, &Register { invite: Some("token".into()) });
        check(Endpoint::Verdicts, &Verdicts { id: digest, verdicts: vec![signed.clone()] });
        check(Endpoint::Invite, &NewInvite { uses: 3 });
        check(Endpoint::Keys, &KeyChange { key: public, admitted: true });
        check(Endpoint::Order, &signed);
        check(Endpoint::Orders, &Orders { orders: vec![signed.clone()] });
        check(Endpoint::Hold, &Hold { id, wallet: public, amount, expires: Time(7) });
        let contributors = vec![Contributor { wallet: public, tokens: 3 }];
        check(Endpoint::Settle, &Settle { query: id, wallet: public, cost: amount, contributors });
        check(Endpoint::PayRound, &PayRound { run: RunId(digest), round: Round(1), verdicts: vec![signed.clone()] });
        check(Endpoint::Forfeit, &Forfeit { verdict: signed.clone() });
        let (name, limit, expires) = ("phone".to_owned(), Some(amount), Some(Time(7)));
        check(Endpoint::NewApiKey, &NewApiKey { digest, name: name.clone(), limit, expires });
        check(Endpoint::RevokeApiKey, &RevokeApiKey { name });

        let task = TaskId(digest);
        let submission = Submission::new(task, digest, vec![1.5, 1.0], crate::testing::trail(2), 64);
        for (endpoint, request, bare) in [
            (Endpoint::Lease, WorkerRequest::Lease { tokens_per_second: 1 }, true),
            (Endpoint::Commit, WorkerRequest::Commit(submission.commitment), false),
            (Endpoint::Submit, WorkerRequest::Submit(submission), true),
            (Endpoint::Heartbeat, WorkerRequest::Heartbeat(task), true),
            (Endpoint::GiveBack, WorkerRequest::GiveBack(task), true),
            (Endpoint::Appeal, WorkerRequest::Appeal(task), false),
        ] {
            check(endpoint, &Signed::seal(&mine, &request));
            assert_eq!(fits(&body(endpoint).unwrap(), &serde_json::to_value(&request).unwrap()), bare, "{endpoint:?}");
        }
    }

    #[test]
    fn every_route_that_takes_json_says_what() {
        for route in ROUTES {
            let json = route.takes == Some("application/json");
            assert_eq!(body(route.endpoint).is_some(), json, "{} {}", route.method, route.path);
        }
    }
}
