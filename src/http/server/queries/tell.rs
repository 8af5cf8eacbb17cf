//! Answers as `OpenAI`'s clients expect them.

use serde_json::{Value, json};

use super::ask::{Kind, Query};
use crate::http::api::queries::MODEL;
use crate::inference::{Finish, Utf8Pieces, Written};
use crate::protocol::{Amount, Digest, Time};

/// What every answer to a query says of itself.
#[derive(Debug, Clone)]
pub struct Head {
    kind: Kind,
    id: String,
    created: u64,
    model: Digest,
    include_usage: bool,
}

/// What a query used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// What was paid.
    pub cost: Amount,
}

/// One of the texts of an answer.
#[derive(Debug, Default)]
pub struct Choice {
    pieces: Utf8Pieces,
    text: String,
    /// Bytes of the text so far, that of a prompt that is echoed included.
    offset: usize,
    logprobs: Vec<Value>,
    finish: Option<Finish>,
    /// Whether a stream has said anything of it.
    begun: bool,
    /// Whether a stream has said anything but space.
    told: bool,
}

/// A byte as text. What is no character by itself is written as its number.
fn token(token: u16) -> String {
    match u8::try_from(token) {
        Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
        Ok(byte) => format!("bytes:\\x{byte:02x}"),
        Err(_) => "<|end|>".to_owned(),
    }
}

fn bytes(token: u16) -> Vec<u8> {
    u8::try_from(token).into_iter().collect()
}

fn finish(finish: Option<Finish>) -> Value {
    match finish {
        Some(Finish::Stop) => json!("stop"),
        Some(Finish::Length) => json!("length"),
        None => Value::Null,
    }
}

impl Usage {
    fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "cost": self.cost,
        })
    }
}

impl Choice {
    /// A text that begins with the prompt, where that is wanted.
    pub fn echoing(prompt: Option<&[u16]>) -> Self {
        let mut choice = Self::default();
        for token in prompt.into_iter().flatten() {
            if let Ok(byte) = u8::try_from(*token) {
                choice.text += &choice.pieces.push(byte);
                choice.offset += 1;
            }
        }
        choice
    }

    /// Takes text in.
    pub fn add(&mut self, kind: Kind, written: &[Written]) {
        for Written { byte, probability } in written {
            self.text += &self.pieces.push(*byte);
            if let Some(probability) = probability {
                let name = token((*byte).into());
                self.logprobs.push(match kind {
                    Kind::Chat => {
                        let top = probability.likeliest.iter().map(|&(other, log)| json!({ "token": token(other), "logprob": log, "bytes": bytes(other) }));
                        json!({ "token": name, "logprob": probability.log, "bytes": [byte], "top_logprobs": top.collect::<Vec<_>>() })
                    }
                    Kind::Completion => {
                        let top = probability.likeliest.iter().map(|&(other, log)| (token(other), json!(log)));
                        json!({ "token": name, "logprob": probability.log, "top": Value::Object(top.collect()), "offset": self.offset })
                    }
                });
            }
            self.offset += 1;
        }
    }

    /// What has come since it was last asked.
    fn take(&mut self, kind: Kind) -> (String, Value) {
        if self.finish.is_some() {
            self.text += &std::mem::take(&mut self.pieces).finish();
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        let logprobs = match kind {
            _ if logprobs.is_empty() => Value::Null,
            Kind::Chat => json!({ "content": logprobs, "refusal": null }),
            Kind::Completion => {
                let all = |what: &str| logprobs.iter().map(|one| one[what].clone()).collect::<Vec<_>>();
                json!({
                    "tokens": all("token"),
                    "token_logprobs": all("logprob"),
                    "top_logprobs": all("top"),
                    "text_offset": all("offset"),
                })
            }
        };
        (std::mem::take(&mut self.text), logprobs)
    }

    /// Nothing more will come.
    pub fn end(&mut self, finish: Finish) {
        self.finish = Some(finish);
    }
}

impl Head {
    pub fn new(query: &Query, id: &str, now: Time, model: Digest) -> Self {
        Self { kind: query.kind, id: id.to_owned(), created: now.0 / 1000, model, include_usage: query.include_usage }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn answer(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": MODEL,
            "system_fingerprint": self.model.short(),
            "choices": choices,
        })
    }

    /// The whole answer.
    pub fn whole(&self, choices: &mut [Choice], usage: &Usage) -> Value {
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let choices = choices.iter_mut().enumerate().map(|(index, choice)| {
            let finish = finish(choice.finish);
            let (text, logprobs) = choice.take(self.kind);
            match self.kind {
                Kind::Completion => {
                    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish })
                }
                Kind::Chat => json!({
                    "index": index,
                    "message": { "role": "assistant", "content": text.trim_start(), "refusal": null },
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }),
            }
        });
        let mut answer = self.answer(object, choices.collect());
        answer["usage"] = usage.json();
        answer
    }

    /// What a stream says of a text that has gone on or ended; nothing where a character is not whole yet.
    pub fn chunk(&self, index: usize, choice: &mut Choice) -> Option<Value> {
        let finish_reason = finish(choice.finish);
        let (mut text, logprobs) = choice.take(self.kind);
        let begins = !std::mem::replace(&mut choice.begun, true);
        if !begins && text.is_empty() && logprobs.is_null() && finish_reason.is_null() {
            return None;
        }
        let one = match self.kind {
            Kind::Completion => {
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason })
            }
            Kind::Chat => {
                // A message begins after the space that ends the name before it.
                if !choice.told {
                    text = text.trim_start().to_owned();
                    choice.told = !text.is_empty();
                }
                let mut delta = json!({ "content": text });
                if begins {
                    delta["role"] = json!("assistant");
                }
                json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason })
            }
        };
        let mut chunk = self.answer(self.object_of_chunks(), vec![one]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        Some(chunk)
    }

    /// How a stream ends: with what was used, where that is wanted.
    pub fn last(&self, usage: &Usage) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.answer(self.object_of_chunks(), Vec::new());
            chunk["usage"] = usage.json();
            chunk
        })
    }

    fn object_of_chunks(&self) -> &'static str {
        if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" }
    }
}
