use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Arg, Args, Command};

use super::Failure;
use super::remote::RemoteLedger;
use crate::http::QueryParts;
use crate::inference::Engine;
use crate::protocol::{Amount, Digest, PublicKey, limits};
use crate::store::{Database, QueryStore, StateDir};

/// Bytes of the shortest operator's key that nobody guesses.
const OPERATOR_KEY_BYTES_MIN: usize = 16;

/// Whether queries are answered, and how.
#[derive(Debug, Args)]
#[command(mut_args(only_with_serve))]
pub(super) struct QueryArgs {
    /// Answer queries to the newest model over HTTP (the chapter on inference says how)
    #[arg(long)]
    serve: bool,
    #[command(flatten)]
    answers: AnswerArgs,
}

/// How queries are answered, and what they cost.
#[derive(Debug, Args)]
pub(super) struct AnswerArgs {
    /// What a token costs, of a prompt or of an answer, in µHYD
    #[arg(long, value_name = "MICRO", default_value_t = 10, value_parser = clap::value_parser!(u32))]
    price: u32,
    /// Tokens a day that each address may use without an API key
    #[arg(long, value_name = "N", default_value_t = 0)]
    free_tokens: u64,
    /// A file with the operator's API key in its first line: queries with it cost nothing
    #[arg(long, value_name = "FILE")]
    operator_key_file: Option<PathBuf>,
    /// Threads that answer queries [default: as many as there are cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    serve_threads: Option<u16>,
    /// Add a line of JSON for each query to this file: when, who paid, tokens, price, but nothing that was said
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Memory for prompts that begin alike, in MiB; 0 keeps none
    #[arg(long, value_name = "MIB", default_value_t = (limits::PREFIX_BYTES >> 20) as u32)]
    prefix_cache: u32,
}

/// Says so where the ledger will not take what queries cost of the server with this key. Those that cost nothing are answered
/// all the same.
pub(super) fn check_ledger(ledger: &RemoteLedger, key: PublicKey) {
    let problem = match ledger.books_now() {
        Ok(Some(books)) if books.query_servers.contains(&key) => return,
        Ok(Some(_)) => format!("it does not know this server; start it with --server-key {key}"),
        Ok(None) => "it cannot be reached".to_owned(),
        Err(error) => error.to_string(),
    };
    eprintln!("  ledger      {problem}. Until then queries that cost something are refused");
}

/// Has what says how queries are answered refused where none are.
fn only_with_serve(arg: Arg) -> Arg {
    let of_answers = AnswerArgs::augment_args(Command::new("")).get_arguments().any(|one| one.get_id() == arg.get_id());
    if of_answers { arg.requires("serve") } else { arg }
}

impl QueryArgs {
    /// Whether queries are answered.
    pub fn is_on(&self) -> bool {
        self.serve
    }

    /// Whether queries are answered that may cost anything.
    pub fn is_paid(&self) -> bool {
        self.serve && self.answers.is_paid()
    }

    /// What answers queries, if anything does, with what must not be forgotten in the state directory.
    pub fn open(&self, folder: &Path) -> Result<Option<QueryParts>, Failure> {
        self.serve.then(|| self.answers.open(folder)).transpose()
    }
}

impl AnswerArgs {
    /// Whether queries may cost anything.
    pub fn is_paid(&self) -> bool {
        self.price > 0
    }

    /// What answers queries, with what must not be forgotten in the state directory.
    pub fn open(&self, folder: &Path) -> Result<QueryParts, Failure> {
        let operator = self.operator_key_file.as_deref().map(operator).transpose()?;
        let store = QueryStore::new(Database::open(StateDir::database(folder))?);
        let engine = Engine::start(
            self.serve_threads.map_or_else(super::cores, usize::from),
            (self.prefix_cache as usize).saturating_mul(1 << 20),
        )?;
        let log = self.access_log.as_ref().map(|path| {
            let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("cannot write {}", path.display()))
        });
        let log = log.transpose()?;
        let price = Amount::from_micro(self.price.into()).context("the price is no amount")?;
        Ok(QueryParts { engine, store, price, free_tokens: self.free_tokens, operator, log })
    }
}

fn operator(path: &Path) -> Result<Digest, Failure> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = text.lines().next().unwrap_or_default().trim();
    if key.len() < OPERATOR_KEY_BYTES_MIN {
        let least = OPERATOR_KEY_BYTES_MIN;
        return Err(Failure::Usage(anyhow!(
            "the operator's key in {} must have {least} bytes or more",
            path.display()
        )));
    }
    Ok(Digest::of(key.as_bytes()))
}
