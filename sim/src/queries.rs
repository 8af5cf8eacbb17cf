//! Customers who spend what they have on queries, and the till that they pay at.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use hydra::protocol::{Amount, Digest, PublicKey, below};
use hydra::store::{ApiKey, Database, QueryStore, QueryStoreError};
use rand::rngs::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chance::unit;
use crate::disk::Folder;

/// Workers of one group who also ask the model, and pay with what they have earned.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queries {
    /// Which group.
    pub group: String,
    /// How many virtual seconds pass between two queries of one of them, on average.
    pub every_seconds: f64,
    /// What a token costs, µHYD.
    pub price_micro: u32,
    /// The fewest and the most tokens that a query asks for; the price of those is held.
    pub tokens: [u32; 2],
    /// How many tokens a second the model writes. An answer has any number of tokens up to those asked for.
    #[serde(default = "fifty")]
    pub tokens_per_second: f64,
    /// The share of queries whose client goes away before the answer, from 0 to 1. They cost nothing.
    #[serde(default)]
    pub gone: f64,
    /// The first comes after this virtual second.
    #[serde(default)]
    pub from_seconds: f64,
    /// The last comes before this virtual second.
    pub until_seconds: Option<f64>,
}

fn fifty() -> f64 {
    50.0
}

impl Queries {
    /// What is wrong with its numbers.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let [fewest, most] = self.tokens;
        if fewest == 0 || fewest > most {
            Err("tokens is [fewest, most], from 1")
        } else if self.every_seconds < 0.1 || self.from_seconds < 0.0 || self.tokens_per_second < 0.1 {
            Err("every_seconds and tokens_per_second are at least 0.1, from_seconds at least 0")
        } else if f64::from(most) / self.tokens_per_second > 600.0 {
            Err("an answer takes at most ten minutes: its hold ends after fifteen")
        } else if !(0.0..=1.0).contains(&self.gone) {
            Err("gone is a share from 0 to 1")
        } else {
            Ok(())
        }
    }

    /// One query: what it asks for, and what it comes to, unless its client goes away.
    pub(crate) fn draw(&self, rng: &mut ChaCha8Rng) -> Query {
        let [fewest, most] = self.tokens.map(u64::from);
        let most = fewest + below(rng, most - fewest + 1);
        let written = 1 + below(rng, most);
        let gone = unit(rng) < self.gone;
        Query {
            most: self.cost(most),
            cost: self.cost(written),
            seconds: written as f64 / self.tokens_per_second,
            gone,
        }
    }

    fn cost(&self, tokens: u64) -> Amount {
        let micro = tokens.saturating_mul(self.price_micro.into());
        i64::try_from(micro).ok().and_then(|micro| Amount::from_micro(micro).ok()).unwrap_or(Amount::ZERO)
    }
}

/// One query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    pub most: Amount,
    pub cost: Amount,
    pub seconds: f64,
    pub gone: bool,
}

/// What became of the queries of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct QueryCounts {
    /// Asked, of a coordinator that was there.
    pub asked: u64,
    /// Answered and paid.
    pub answered: u64,
    /// Refused: the wallet had less than they might cost.
    pub refused: u64,
    /// Given back: the client went away, or the ledger or the coordinator did.
    pub given_back: u64,
    /// What was paid for them.
    pub paid: Amount,
}

/// Where customers pay: what `hydra coordinator --serve` keeps in its database, and what was paid so far.
pub(crate) struct Till {
    folder: Rc<Folder>,
    pub store: RefCell<QueryStore>,
    counts: Cell<QueryCounts>,
    /// Nobody asks any more.
    pub closed: Cell<bool>,
}

impl Till {
    pub fn new(folder: Rc<Folder>, customers: Vec<PublicKey>) -> Result<Self, QueryStoreError> {
        let mut store = Self::open(&folder)?;
        for wallet in customers {
            let digest = Self::key(&wallet);
            let (name, limit, spent) = ("key".to_owned(), None, Amount::ZERO);
            store.add(&ApiKey { digest, wallet, name, limit, spent, expires: None, revoked: false })?;
        }
        Ok(Self { folder, store: RefCell::new(store), counts: Cell::default(), closed: Cell::new(false) })
    }

    fn open(folder: &Folder) -> Result<QueryStore, QueryStoreError> {
        Ok(QueryStore::new(Database::open(folder.file("queries.db"))?))
    }

    /// As a process does that starts again.
    pub fn reopen(&self) -> Result<(), QueryStoreError> {
        self.store.replace(Self::open(&self.folder)?);
        Ok(())
    }

    /// The API key of a wallet.
    pub fn key(wallet: &PublicKey) -> Digest {
        Digest::in_domain("hydra simulated api key v1", wallet.as_bytes())
    }

    pub fn counts(&self) -> QueryCounts {
        self.counts.get()
    }

    pub fn count(&self, what: impl FnOnce(&mut QueryCounts)) {
        let mut counts = self.counts.get();
        what(&mut counts);
        self.counts.set(counts);
    }
}
