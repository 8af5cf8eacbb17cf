//! What travels as JSON between those who ask a model and the server that answers: what `OpenAI`'s clients do not know.

use serde::{Deserialize, Serialize};

use super::ledger::Contributor;
use crate::protocol::{Amount, Digest, ModelSpec, Round, RunId, Time};

/// The paths.
pub mod path {
    /// The models that answer.
    pub const MODELS: &str = "/v1/models";
    /// Has a text continued.
    pub const COMPLETIONS: &str = "/v1/completions";
    /// Has a conversation continued.
    pub const CHAT: &str = "/v1/chat/completions";
    /// Says what a query may cost.
    pub const QUOTE: &str = "/hydra/v1/quote";
    /// Adds an API key to the caller's wallet, and lists its keys.
    pub const API_KEYS: &str = "/hydra/v1/api-keys";
    /// Ends an API key.
    pub const REVOKE: &str = "/hydra/v1/api-keys/revoke";
    /// The newest model of a run, for those who serve it.
    pub const NEWEST: &str = "/hydra/v1/newest";
}

/// The name by which the newest model of the run is asked.
pub const MODEL: &str = "hydra";

/// Asks [`path::API_KEYS`]: the secret stays with its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    /// The digest of the secret.
    pub digest: Digest,
    /// What the owner calls it.
    pub name: String,
    /// The most that may ever be spent with it.
    pub limit: Option<Amount>,
    /// When it ends.
    pub expires: Option<Time>,
}

/// Asks [`path::REVOKE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeApiKey {
    /// What the owner calls it.
    pub name: String,
}

/// Answers a GET of [`path::API_KEYS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKeys {
    /// The keys of the caller's wallet, by name.
    pub keys: Vec<KnownApiKey>,
}

/// An API key as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownApiKey {
    /// What the owner calls it.
    pub name: String,
    /// The most that may ever be spent with it.
    pub limit: Option<Amount>,
    /// What was spent with it.
    pub spent: Amount,
    /// When it ends.
    pub expires: Option<Time>,
    /// Whether its owner has ended it.
    pub revoked: bool,
}

/// Answers [`path::QUOTE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Tokens of the prompts.
    pub prompt_tokens: u64,
    /// Tokens that may be added at most, over all texts.
    pub completion_tokens: u64,
    /// What a token costs.
    pub price: Amount,
    /// The most that the query may cost: what will be held.
    pub most: Amount,
}

/// Answers [`path::NEWEST`]: what a server of queries needs to know of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    /// The run.
    pub run: RunId,
    /// The round that starts from the model.
    pub round: Round,
    /// The model's blob.
    pub digest: Digest,
    /// Its sizes.
    pub model: ModelSpec,
    /// Who trained it: those with the most work, where there are many.
    pub contributors: Vec<Contributor>,
}
