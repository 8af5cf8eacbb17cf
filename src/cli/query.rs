use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use crate::http::Client;
use crate::http::api::queries::{MODEL, path};
use crate::protocol::Keypair;
use crate::runtime::{Clock, SystemClock, entropy};

/// Whom to ask, and with which key.
#[derive(Debug, Args)]
struct Asking {
    /// Whom to ask: a coordinator that was started with --serve, http://host:port
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7700")]
    coordinator: String,
    /// A file with the API key in its first line [default: the variable `HYDRA_API_KEY`, or the free allowance]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// How many tokens (bytes) to add at most [default: 16, or in a chat what there is room for]
    #[arg(long, value_name = "N")]
    tokens: Option<u32>,
    /// 0 always takes the likeliest token; 1 draws as the model believes
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// The same seed, prompt and model give the same text [default: another each time]
    #[arg(long)]
    seed: Option<i64>,
}

/// Have a coordinator's newest model continue a text, for HYD
#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// What to continue
    prompt: String,
    #[command(flatten)]
    asking: Asking,
}

/// Talk with a coordinator's newest model, for HYD: a line is a message, an empty line ends it
#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    asking: Asking,
    /// What the model is told first
    #[arg(long)]
    system: Option<String>,
}

/// A client of the model.
struct Model<'a> {
    asking: &'a Asking,
    client: Arc<Client>,
    key: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl Asking {
    fn open(&self) -> Result<Model<'_>, Failure> {
        let key = match &self.key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Some(text.lines().next().unwrap_or_default().trim().to_owned())
            }
            None => std::env::var("HYDRA_API_KEY").ok(),
        };
        // Queries bear an API key and no signature.
        let mut secret = [0; 32];
        entropy(&mut secret).context("the operating system gives no random numbers")?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let client = super::client(&self.coordinator, Keypair::from_secret(&secret), &clock, self.tls_ca.as_deref())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Model { asking: self, client, key, runtime })
    }
}

impl Model<'_> {
    /// Asks, and prints the answer as it comes: the whole of it.
    fn ask(&self, path: &str, mut body: Value, text_of: fn(&Value) -> Option<&str>) -> Result<String, Failure> {
        body["model"] = json!(MODEL);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        body["temperature"] = json!(self.asking.temperature);
        if let Some(tokens) = self.asking.tokens {
            body["max_tokens"] = json!(tokens);
        }
        if let Some(seed) = self.asking.seed {
            body["seed"] = json!(seed);
        }
        let (mut answer, mut usage) = (String::new(), None);
        let mut out = io::stdout().lock();
        self.runtime.block_on(self.client.stream(path, self.key.as_deref(), &body, |event: &Value| {
            if let Some(text) = text_of(&event["choices"][0]) {
                answer += text;
                // Who does not read any more has seen enough.
                if write!(out, "{text}").and_then(|()| out.flush()).is_err() {
                    return false;
                }
            }
            if event["usage"].is_object() {
                usage = Some(event["usage"].clone());
            }
            true
        }))?;
        // Nobody reads it who has closed the output.
        let _ = writeln!(out);
        if let Some(usage) = usage {
            let (tokens, cost) = (&usage["total_tokens"], usage["cost"].as_str().unwrap_or("0"));
            eprintln!("  {tokens} tokens, {cost} µHYD");
        }
        Ok(answer)
    }
}

pub(super) fn run(args: &QueryArgs) -> Result<(), Failure> {
    let model = args.asking.open()?;
    print!("{}", args.prompt);
    model.ask(path::COMPLETIONS, json!({ "prompt": args.prompt }), |choice| choice["text"].as_str()).map(drop)
}

pub(super) fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let model = args.asking.open()?;
    let mut messages: Vec<Value> =
        args.system.iter().map(|system| json!({ "role": "system", "content": system })).collect();
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        messages.push(json!({ "role": "user", "content": line }));
        let body = json!({ "messages": messages });
        let answer = model.ask(path::CHAT, body, |choice| choice["delta"]["content"].as_str())?;
        messages.push(json!({ "role": "assistant", "content": answer }));
    }
    Ok(())
}
