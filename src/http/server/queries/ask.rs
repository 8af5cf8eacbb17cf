//! Queries as `OpenAI`'s clients write them, made into what the engine takes.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use warp::http::StatusCode;

use crate::http::api::queries::{MODEL, path};
use crate::http::error::QueryError;
use crate::inference::{Job, Sampler, Sampling};
use crate::protocol::{Seed, VOCABULARY, VOCABULARY_END, limits};

/// Tokens that are added where a completion does not say how many (`OpenAI`'s default).
const COMPLETION_TOKENS: u64 = 16;

/// Likeliest tokens that a completion may ask for (`OpenAI`'s bound).
const COMPLETION_LOGPROBS_MAX: usize = 5;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Completion,
    Chat,
}

impl Kind {
    /// The id of a query of this kind.
    pub fn id(self, name: &str) -> String {
        match self {
            Self::Completion => format!("cmpl-{name}"),
            Self::Chat => format!("chatcmpl-{name}"),
        }
    }

    /// Where it is asked.
    pub fn path(self) -> &'static str {
        match self {
            Self::Completion => path::COMPLETIONS,
            Self::Chat => path::CHAT,
        }
    }
}

/// A query that was checked.
#[derive(Debug)]
pub struct Query {
    pub kind: Kind,
    /// What each text begins with: as many as are asked for, one after the other for each prompt.
    pub prompts: Vec<Vec<u16>>,
    /// Texts for each prompt.
    pub choices: usize,
    /// Tokens to add to each text.
    pub most: u32,
    sampling: Sampling,
    seed: Option<i64>,
    stop: Vec<Vec<u8>>,
    pub likeliest: Option<usize>,
    pub stream: bool,
    /// Whether a stream ends with what was used.
    pub include_usage: bool,
    /// Whether the text begins with the prompt.
    pub echo: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u16>),
    ManyTokens(Vec<Vec<u16>>),
}

#[derive(Deserialize)]
struct Message {
    role: Role,
    content: Content,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part {
    Text { text: String },
}

#[derive(Deserialize, Default)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// The fields of a body, taken one after the other: what is left was not understood.
struct Fields(Map<String, Value>);

impl Fields {
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, QueryError> {
        let value = self.0.remove(name).filter(|value| !value.is_null());
        let wrong = |_| QueryError::invalid(name, format!("'{name}' is not of the right type, or out of range"));
        value.map(serde_json::from_value).transpose().map_err(wrong)
    }

    fn needed<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, QueryError> {
        let missing = || QueryError::invalid(name, format!("you must provide a {name} parameter"));
        self.take(name)?.ok_or_else(missing)
    }

    fn end(self) -> Result<(), QueryError> {
        match self.0.keys().next() {
            Some(name) => Err(QueryError::unknown(name)),
            None => Ok(()),
        }
    }
}

/// The tokens of a document that begins with `text`: what follows the end of another.
fn begin(text: &str) -> Vec<u16> {
    let end = u16::try_from(VOCABULARY_END).unwrap_or(0);
    std::iter::once(end).chain(text.bytes().map(u16::from)).collect()
}

/// A conversation as text: each message after the name of who says it, on lines of their own, and then the name of the
/// model. `developer` is another word for `system`.
fn conversation(messages: &[Message]) -> String {
    let mut text = String::new();
    for Message { role, content } in messages {
        text += match role {
            Role::System | Role::Developer => "system: ",
            Role::User => "user: ",
            Role::Assistant => "assistant: ",
        };
        match content {
            Content::Text(content) => text += content,
            Content::Parts(parts) => parts.iter().for_each(|Part::Text { text: part }| text += part),
        }
        text += "\n";
    }
    text + "assistant:"
}

/// What a model of messages and names may take for the beginning of the next message.
const NEXT_MESSAGE: [&str; 2] = ["\nuser:", "\nsystem:"];

impl Query {
    /// Reads a body. `context` is the number of tokens that the model sees.
    pub fn read(kind: Kind, body: &[u8], context: usize) -> Result<Self, QueryError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| QueryError::invalid("body", format!("the body is no JSON: {error}")))?;
        let Value::Object(fields) = body else {
            return Err(QueryError::invalid("body", "the body is no JSON object".to_owned()));
        };
        let mut fields = Fields(fields);
        let model: String = fields.needed("model")?;
        if model != MODEL {
            return Err(QueryError::model(&model));
        }
        let single = match kind {
            Kind::Chat => vec![begin(&conversation(&fields.needed::<Vec<Message>>("messages")?))],
            Kind::Completion => match fields.take("prompt")?.unwrap_or(Prompt::Text(String::new())) {
                Prompt::Text(text) => vec![begin(&text)],
                Prompt::Texts(texts) => texts.iter().map(|text| begin(text)).collect(),
                Prompt::Tokens(tokens) => vec![tokens],
                Prompt::ManyTokens(many) => many,
            },
        };
        let choices: usize = fields.take("n")?.unwrap_or(1);
        let all = choices.saturating_mul(single.len());
        if all == 0 || all > limits::CHOICES_MAX {
            let most = limits::CHOICES_MAX;
            return Err(QueryError::invalid("n", format!("{all} texts are asked for; it must be from 1 to {most}")));
        }
        let longest = single.iter().map(Vec::len).max().unwrap_or(0);
        if single.iter().any(|prompt| prompt.is_empty() || prompt.iter().any(|token| u32::from(*token) >= VOCABULARY)) {
            return Err(QueryError::invalid(
                "prompt",
                format!("tokens are from 0 to {}, one at least", VOCABULARY - 1),
            ));
        }
        let most = most(kind, &mut fields, longest, context)?;
        let standard = Sampling::default();
        let top_k = fields.take::<i64>("top_k")?.unwrap_or(0).max(0);
        let sampling = Sampling {
            temperature: fields.take("temperature")?.unwrap_or(standard.temperature),
            top_p: fields.take("top_p")?.unwrap_or(standard.top_p),
            top_k: u32::try_from(top_k).unwrap_or(0),
            min_p: fields.take("min_p")?.unwrap_or(standard.min_p),
            repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(standard.repetition_penalty),
            presence_penalty: fields.take("presence_penalty")?.unwrap_or(standard.presence_penalty),
            frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(standard.frequency_penalty),
        };
        let seed = fields.take("seed")?;
        Sampler::new(sampling, &Seed::from_number(0), &[])
            .map_err(|error| QueryError::invalid(error.name, error.to_string()))?;
        let stop = stops(kind, &mut fields)?;
        let likeliest = likeliest(kind, &mut fields)?;
        let echo = kind == Kind::Completion && fields.take("echo")?.unwrap_or(false);
        if echo && likeliest.is_some() {
            let why = "the probabilities of a prompt's tokens are not told: leave out echo or logprobs";
            return Err(QueryError::invalid("echo", why.to_owned()));
        }
        let stream = fields.take("stream")?.unwrap_or(false);
        let options: Option<StreamOptions> = fields.take("stream_options")?;
        if options.is_some() && !stream {
            let why = "'stream_options' is only allowed when 'stream' is set";
            return Err(QueryError::invalid("stream_options", why.to_owned()));
        }
        // About who asks, which does not change the answer.
        for ignored in ["user", "metadata"] {
            fields.take::<Value>(ignored)?;
        }
        fields.end()?;
        let prompts = single.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, choices)).collect();
        let include_usage = options.unwrap_or_default().include_usage;
        Ok(Self { kind, prompts, choices, most, sampling, seed, stop, likeliest, stream, include_usage, echo })
    }

    /// Tokens of the prompts, each counted once.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().step_by(self.choices).map(|prompt| prompt.len() as u64).sum()
    }

    /// Tokens that may be added, over all texts.
    pub fn completion_tokens(&self) -> u64 {
        self.prompts.len() as u64 * u64::from(self.most)
    }

    /// What the engine is to do: a sequence for each text. Where the query names no seed it is `random`.
    pub fn jobs(&self, random: u64) -> Vec<Job> {
        let seed = Seed::from_number(self.seed.map_or(random, i64::cast_unsigned));
        let jobs = (0..).zip(&self.prompts).filter_map(|(index, prompt)| {
            // It was checked.
            let sampler = Sampler::new(self.sampling, &seed.derive("choice", index), prompt).ok()?;
            let (prompt, stop) = (prompt.clone(), self.stop.clone());
            Some(Job { prompt, most: self.most, sampler, stop, likeliest: self.likeliest })
        });
        jobs.collect()
    }
}

fn most(kind: Kind, fields: &mut Fields, longest: usize, context: usize) -> Result<u32, QueryError> {
    let old = fields.take::<u64>("max_tokens")?;
    let new = if kind == Kind::Chat { fields.take::<u64>("max_completion_tokens")? } else { None };
    let asked = new.or(old);
    if asked == Some(0) {
        return Err(QueryError::invalid("max_tokens", "'max_tokens' is 0; it must be 1 or more".to_owned()));
    }
    let left = context.saturating_sub(longest) as u64;
    let most = asked.unwrap_or(if kind == Kind::Chat { left.max(1) } else { COMPLETION_TOKENS });
    if most > left {
        let all = (longest as u64).saturating_add(most);
        return Err(QueryError {
            status: StatusCode::BAD_REQUEST,
            code: "context_length_exceeded",
            param: Some(if kind == Kind::Chat { "messages" } else { "prompt" }.to_owned()),
            message: format!(
                "this model's context is {context} tokens (bytes); you asked for {all} ({longest} in the prompt, {most} \
                 for the completion). Shorten one of them"
            ),
        });
    }
    Ok(u32::try_from(most).unwrap_or(u32::MAX))
}

fn stops(kind: Kind, fields: &mut Fields) -> Result<Vec<Vec<u8>>, QueryError> {
    let mut stop = match fields.take::<OneOrMany<String>>("stop")? {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
    };
    let bytes = limits::STOP_BYTES_MAX;
    if stop.len() > limits::STOPS_MAX || stop.iter().any(|stop| stop.is_empty() || stop.len() > bytes) {
        let most = limits::STOPS_MAX;
        return Err(QueryError::invalid("stop", format!("at most {most} stop texts of 1 to {bytes} bytes")));
    }
    if kind == Kind::Chat {
        stop.extend(NEXT_MESSAGE.map(str::to_owned));
    }
    Ok(stop.into_iter().map(String::into_bytes).collect())
}

fn likeliest(kind: Kind, fields: &mut Fields) -> Result<Option<usize>, QueryError> {
    let (name, likeliest, most) = match kind {
        Kind::Completion => ("logprobs", fields.take::<usize>("logprobs")?, COMPLETION_LOGPROBS_MAX),
        Kind::Chat => {
            let wanted = fields.take("logprobs")?.unwrap_or(false);
            let top = fields.take::<usize>("top_logprobs")?;
            if top.is_some() && !wanted {
                let why = "'logprobs' must be true where 'top_logprobs' is used";
                return Err(QueryError::invalid("top_logprobs", why.to_owned()));
            }
            ("top_logprobs", wanted.then_some(top.unwrap_or(0)), limits::TOP_LOGPROBS_MAX)
        }
    };
    match likeliest {
        Some(likeliest) if likeliest > most => {
            Err(QueryError::invalid(name, format!("'{name}' is {likeliest}; it must be from 0 to {most}")))
        }
        likeliest => Ok(likeliest),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: Kind, body: Value) -> Result<Query, QueryError> {
        Query::read(kind, body.to_string().as_bytes(), 64)
    }

    fn completion(more: Value) -> Result<Query, QueryError> {
        let mut body = json!({ "model": "hydra", "prompt": "abc" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(Kind::Completion, body)
    }

    #[test]
    fn a_conversation_is_lines_with_names_and_ends_where_the_next_message_would_begin() {
        let messages = json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [{ "type": "text", "text": "Hi" }] },
        ]);
        let query = read(Kind::Chat, json!({ "model": "hydra", "messages": messages })).unwrap();
        let text: Vec<u8> = query.prompts[0][1..].iter().map(|&token| token as u8).collect();
        assert_eq!(String::from_utf8(text).unwrap(), "system: Be brief.\nuser: Hi\nassistant:");
        assert_eq!(query.most as usize, 64 - query.prompts[0].len(), "all that is left");
        assert!(query.jobs(1)[0].stop.contains(&b"\nuser:".to_vec()));
    }

    #[test]
    fn prompts_are_texts_or_tokens_one_or_many() {
        for (prompt, tokens) in [
            (json!("ab"), vec![vec![256, 97, 98]]),
            (json!(["a", "b"]), vec![vec![256, 97], vec![256, 98]]),
            (json!([97, 98]), vec![vec![97, 98]]),
            (json!([[97], [98, 99]]), vec![vec![97], vec![98, 99]]),
            (Value::Null, vec![vec![256]]),
        ] {
            assert_eq!(completion(json!({ "prompt": prompt })).unwrap().prompts, tokens);
        }
        let query = completion(json!({ "prompt": ["a", "bc"], "n": 2, "max_tokens": 7 })).unwrap();
        assert_eq!((query.prompts.len(), query.prompt_tokens(), query.completion_tokens()), (4, 5, 28));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (more, param) in [
            (json!({ "frobnicate": 1 }), "frobnicate"),
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "temperature": 11 }), "temperature"),
            (json!({ "top_p": 2 }), "top_p"),
            (json!({ "n": 0 }), "n"),
            (json!({ "n": 17 }), "n"),
            (json!({ "prompt": [300] }), "prompt"),
            (json!({ "prompt": [[]] }), "prompt"),
            (json!({ "max_tokens": 0 }), "max_tokens"),
            (json!({ "max_tokens": -1 }), "max_tokens"),
            (json!({ "max_tokens": 61 }), "prompt"),
            (json!({ "prompt": "x".repeat(64) }), "prompt"),
            (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop"),
            (json!({ "stop": "" }), "stop"),
            (json!({ "logprobs": 6 }), "logprobs"),
            (json!({ "logprobs": 1, "echo": true }), "echo"),
            (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
            (json!({ "tools": [] }), "tools"),
        ] {
            let error = completion(more.clone()).unwrap_err();
            assert_eq!((error.param.as_deref(), error.status), (Some(param), StatusCode::BAD_REQUEST), "{more}");
        }
        assert_eq!(completion(json!({ "max_tokens": 61 })).unwrap_err().code, "context_length_exceeded");
        assert_eq!(completion(json!({ "model": "gpt-4" })).unwrap_err().status, StatusCode::NOT_FOUND);
        assert_eq!(read(Kind::Chat, json!({ "model": "hydra" })).unwrap_err().param.as_deref(), Some("messages"));
        let odd = json!({ "model": "hydra", "messages": [{ "role": "tool", "content": "x" }] });
        assert_eq!(read(Kind::Chat, odd).unwrap_err().param.as_deref(), Some("messages"));
        let alone = json!({ "model": "hydra", "messages": [], "top_logprobs": 1 });
        assert_eq!(read(Kind::Chat, alone).unwrap_err().param.as_deref(), Some("top_logprobs"));
        completion(json!({ "max_tokens": 60, "user": "x", "temperature": null })).unwrap();
    }
}
