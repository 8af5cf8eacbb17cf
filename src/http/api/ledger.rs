//! The ledger's part of what travels as JSON. Amounts are decimal strings of µHYD.

use serde::{Deserialize, Serialize};

use crate::ledger::{Account, Entry, Offer, Posts, TransferId};
use crate::protocol::{Amount, Balance, Digest, Emission, PublicKey, Round, RunId, Signed, TaskId, Time};

/// The paths. Those with something to follow are followed by a slash and it.
pub mod path {
    /// What the ledger is, and its sums.
    pub const LEDGER: &str = "/hydra/v1/ledger";
    /// All accounts; with a key behind it, how that key stands.
    pub const ACCOUNTS: &str = "/hydra/v1/ledger/accounts";
    /// Open offers.
    pub const OFFERS: &str = "/hydra/v1/ledger/offers";
    /// Takes an order; with an id or a number behind it, that transfer.
    pub const TRANSFERS: &str = "/hydra/v1/ledger/transfers";
    /// Takes many orders.
    pub const BATCH: &str = "/hydra/v1/ledger/batch";
    /// The journal.
    pub const ENTRIES: &str = "/hydra/v1/ledger/entries";
    /// The newest signed head.
    pub const HEAD: &str = "/hydra/v1/ledger/head";
    /// All signed heads.
    pub const HEADS: &str = "/hydra/v1/ledger/heads";
    /// That the journal goes on from what it was.
    pub const GROWTH: &str = "/hydra/v1/ledger/growth";
    /// What is held; asked to, holds what a query may cost.
    pub const HOLDS: &str = "/hydra/v1/ledger/holds";
    /// Settles a query.
    pub const SETTLEMENTS: &str = "/hydra/v1/ledger/settlements";
    /// Pays a round.
    pub const PAY: &str = "/hydra/v1/ledger/pay";
    /// Takes what false work costs.
    pub const FORFEITS: &str = "/hydra/v1/ledger/forfeits";
}

/// Answers [`path::LEDGER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// What its heads are signed with.
    pub key: PublicKey,
    /// What its rounds emit.
    pub emission: Emission,
    /// Whose verdicts it pays by.
    pub verifiers: Vec<PublicKey>,
    /// Whose requests for pay it takes, besides those of its own process.
    pub payers: Vec<PublicKey>,
    /// Who may hold and settle what queries cost, besides its own process.
    pub query_servers: Vec<PublicKey>,
    /// Transfers in the journal.
    pub transfers: u64,
    /// The ledger hash.
    pub head: Digest,
    /// What exists: emitted and not burned.
    pub supply: Balance,
    /// Unvested pay included.
    pub emitted: Balance,
    /// What of it is not vested.
    pub unvested: Balance,
    /// All that was ever burned.
    pub burned: Balance,
    /// The sums of all accounts.
    #[serde(flatten)]
    pub sides: Sides,
}

/// The four sides of an account, or the sums of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// Taken.
    pub debits: Balance,
    /// Put in.
    pub credits: Balance,
    /// Held, to be taken.
    pub debits_pending: Balance,
    /// Held elsewhere, to be put in.
    pub credits_pending: Balance,
}

impl From<Posts> for Sides {
    fn from(posts: Posts) -> Self {
        Self {
            debits: Balance(posts.debits),
            credits: Balance(posts.credits),
            debits_pending: Balance(posts.debits_pending),
            credits_pending: Balance(posts.credits_pending),
        }
    }
}

impl From<Sides> for Posts {
    fn from(sides: Sides) -> Self {
        Self {
            debits: sides.debits.0,
            credits: sides.credits.0,
            debits_pending: sides.debits_pending.0,
            credits_pending: sides.credits_pending.0,
        }
    }
}

/// Answers a `GET` of [`path::ACCOUNTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// In the order of their names.
    pub accounts: Vec<AccountSides>,
    /// What to name as `after` for the next page; nothing on the last.
    pub next: Option<Account>,
}

/// What an account holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountSides {
    /// Which.
    pub account: Account,
    /// Its sides.
    #[serde(flatten)]
    pub sides: Sides,
}

/// Answers a `GET` of [`path::ACCOUNTS`] with a key: how it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Whose.
    pub key: PublicKey,
    /// What it may spend, has earned and not vested, and so on.
    pub wallet: Sides,
    /// What it stands to lose.
    pub stake: Sides,
    /// Rewards that have not vested.
    pub unvested_rewards: u32,
    /// Rewards since its work was last found false.
    pub clean_rewards: u32,
}

/// A page of the journal: of all of it, oldest first, or of what concerns a key, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entries {
    /// Its entries.
    pub entries: Vec<Entry>,
    /// What to name as `after` or `before` for the next page; nothing on the last.
    pub next: Option<u64>,
}

/// Answers a `GET` of [`path::HOLDS`]: pending transfers that nothing has resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// Oldest first.
    pub entries: Vec<Entry>,
    /// What to name as `after` for the next page; nothing on the last.
    pub next: Option<TransferId>,
}

/// Answers a `GET` of [`path::OFFERS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    /// In the order of their ids.
    pub offers: Vec<OpenOffer>,
    /// What to name as `after` for the next page; nothing on the last.
    pub next: Option<TransferId>,
}

/// An open offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOffer {
    /// Its name.
    pub id: TransferId,
    /// Whose tokens.
    pub maker: PublicKey,
    /// How many.
    pub amount: Amount,
    /// Who may accept; anybody, if nothing.
    pub taker: Option<PublicKey>,
    /// Who has accepted.
    pub accepted_by: Option<PublicKey>,
    /// The digest of what the two agree on.
    pub terms: Digest,
    /// When the tokens go back.
    pub expires: Time,
}

impl From<(TransferId, Offer)> for OpenOffer {
    fn from((id, offer): (TransferId, Offer)) -> Self {
        let Offer { maker, amount, taker, terms, expires, accepted } = offer;
        Self { id, maker, amount, taker, accepted_by: accepted.map(|(taker, _)| taker), terms, expires }
    }
}

/// Answers [`path::HEAD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewestHead {
    /// The key of the ledger.
    pub key: PublicKey,
    /// A signed [`Head`](crate::ledger::Head); nothing, while the journal is empty.
    pub head: Option<Signed>,
}

/// Answers [`path::HEADS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Smallest first.
    pub heads: Vec<Signed>,
    /// What to name as `after` for the next page; nothing on the last.
    pub next: Option<u64>,
}

/// An order, hold or settlement that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its id.
    pub id: TransferId,
    /// The place of its first transfer in the journal.
    pub sequence: u64,
}

/// Asks [`path::BATCH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Orders {
    /// Each a signed [`Order`](crate::ledger::Order), decided in this order and each by itself.
    pub orders: Vec<Signed>,
}

/// Answers [`path::BATCH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// In the order of the orders.
    pub outcomes: Vec<Outcome>,
}

/// What became of an order of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    Done(Recorded),
    /// It is not, and nothing has changed.
    Refused {
        /// As in errors.
        code: String,
        /// For people.
        message: String,
    },
}

/// Asks [`path::PAY`]: see [`Request::PayRound`](crate::ledger::Request::PayRound).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PayRound {
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
    /// Signed verdicts on its submissions.
    pub verdicts: Vec<Signed>,
}

/// Answers [`path::PAY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundPaid {
    /// Who earned how much for which task.
    pub pays: Vec<Pay>,
    /// The ledger hash after the last of them.
    pub head: Digest,
}

/// What somebody earned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pay {
    /// Who.
    pub worker: PublicKey,
    /// For which task.
    pub task: TaskId,
    /// How much.
    pub amount: Amount,
}

/// Asks [`path::FORFEITS`]: see [`Request::Forfeit`](crate::ledger::Request::Forfeit).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forfeit {
    /// A signed verdict that rejects by replay.
    pub verdict: Signed,
}

/// Asks [`path::HOLDS`]: see [`Request::Hold`](crate::ledger::Request::Hold).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The query's name.
    pub id: TransferId,
    /// Who pays.
    pub wallet: PublicKey,
    /// The most that it may cost.
    pub amount: Amount,
    /// When the hold ends by itself.
    pub expires: Time,
}

/// Asks [`path::SETTLEMENTS`]: see [`Request::Settle`](crate::ledger::Request::Settle).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settle {
    /// The query.
    pub query: TransferId,
    /// Who pays.
    pub wallet: PublicKey,
    /// What it cost.
    pub cost: Amount,
    /// Who trained the model that answered.
    pub contributors: Vec<Contributor>,
}

/// Somebody who shares in what a query costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contributor {
    /// Who.
    pub wallet: PublicKey,
    /// Tokens of verified work.
    pub tokens: u64,
}
