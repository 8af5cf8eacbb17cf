//! What travels as JSON to those who look on: the page that a coordinator serves, and programs that want the same.

use serde::{Deserialize, Serialize};

use crate::coordinator::{RoundStory, RoundSummary, WorkerRecord};
use crate::protocol::{Amount, Digest, PublicKey, Round, Time};

/// The paths.
pub mod path {
    /// The rounds so far; with a number behind it, what became of each task of that round.
    pub const ROUNDS: &str = "/hydra/v1/rounds";
    /// Everybody who has ever worked.
    pub const WORKERS: &str = "/hydra/v1/workers";
    /// What earlier models wrote.
    pub const SAMPLES: &str = "/hydra/v1/samples";
    /// Who pays for queries with an API key, and what is left.
    pub const BALANCE: &str = "/hydra/v1/balance";
    /// Reports of simulations; with a name behind it, that report.
    pub const REPORTS: &str = "/hydra/v1/reports";
    /// The page's files, each followed by its name.
    pub const PAGE: &str = "/dashboard";
}

/// Answers [`path::ROUNDS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Oldest first; the last of all is the open one.
    pub rounds: Vec<RoundSummary>,
    /// What to name as `after` for the next page; nothing on the last.
    pub next: Option<u32>,
}

/// Answers [`path::ROUNDS`] with a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundDetail {
    /// In short.
    #[serde(flatten)]
    pub summary: RoundSummary,
    /// What became of its tasks.
    #[serde(flatten)]
    pub story: RoundStory,
    /// The base model that came of it, once there is one.
    pub made: Option<Digest>,
}

/// Answers [`path::WORKERS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    /// In the order of their keys.
    pub workers: Vec<WorkerRow>,
    /// What to name as `after` for the next page; nothing on the last.
    pub next: Option<PublicKey>,
}

/// What a worker has done, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRow {
    /// Its key.
    pub key: PublicKey,
    /// What it has done.
    #[serde(flatten)]
    pub record: WorkerRecord,
    /// Tasks of the open round that it holds and has not handed in.
    pub holds: u32,
    /// When it last called over the network, if in the last minute.
    pub seen: Option<Time>,
}

/// Answers [`path::SAMPLES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Oldest first.
    pub samples: Vec<Sample>,
}

/// What a model wrote at the beginning of a document, always with the same seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The round that starts from the model.
    pub round: Round,
    /// The model.
    pub model: Digest,
    /// The text.
    pub text: String,
}

/// Answers [`path::BALANCE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Who pays for a query that comes with this key, or with none.
    pub payer: PayerKind,
    /// The wallet that pays.
    pub wallet: Option<PublicKey>,
    /// The most that may ever be spent with the key.
    pub limit: Option<Amount>,
    /// What was spent with the key.
    pub spent: Option<Amount>,
    /// Tokens that this address may still use today without a key.
    pub free_tokens: Option<u64>,
}

/// Who pays for a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayerKind {
    /// A wallet.
    Wallet,
    /// The day's allowance of an address.
    Allowance,
    /// Nobody: the operator asks.
    Operator,
}

/// Answers [`path::REPORTS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reports {
    /// In the order of their names.
    pub reports: Vec<Report>,
}

/// A simulation that was played and kept with `cargo sim SCENARIO --out FOLDER`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The folder.
    pub name: String,
    /// What the scenario is called.
    pub scenario: String,
    /// The seed that it was played with.
    pub seed: u64,
    /// The digest of events, model and ledger.
    pub state_hash: Digest,
    /// What did not hold.
    pub failures: Vec<String>,
    /// Rounds that were trained.
    pub rounds: u64,
    /// The last validation loss, nats a token.
    pub loss: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::{Chronicle, Record};
    use crate::testing;

    #[test]
    fn the_parts_of_a_round_in_one_object_have_names_of_their_own() {
        let spec = testing::spec(2);
        let base = Digest::of(b"base");
        let records = [Record::RoundOpened { round: Round(0), base, momentum: None, at: Time(1) }];
        let mut chronicle = Chronicle::new(&spec);
        chronicle.apply(&records[0]);
        let detail =
            RoundDetail { summary: chronicle.rounds()[0], story: RoundStory::of(&spec, &records).unwrap(), made: None };
        let parts = |part: serde_json::Value| part.as_object().unwrap().len();
        let apart = [serde_json::to_value(detail.summary).unwrap(), serde_json::to_value(&detail.story).unwrap()];
        assert_eq!(parts(serde_json::to_value(&detail).unwrap()), apart.map(parts).iter().sum::<usize>() + 1);
    }
}
