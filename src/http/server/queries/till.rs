//! What queries cost, and who pays: held in the ledger before the first token, settled after the last.
//!
//! Each query that is paid is noted on the disk before anything is held for it, and its price before that is settled. So
//! after a crash what was not settled is settled or given back, once: the ledger does what has the same name once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::QuerySite;
use super::ports::LedgerTrouble;
use crate::http::error::{ApiError, QueryError};
use crate::ledger::{Request, TransferId};
use crate::protocol::{Amount, Digest, PublicKey, Time, limits};
use crate::runtime::entropy;
use crate::store::{OpenQuery, QueryStore, QueryStoreError};

/// A day of the free allowance, in milliseconds.
const DAY_MS: u64 = 24 * 3_600_000;

/// How long to wait before a settlement is tried again, at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(15);

/// Who pays for a query.
#[derive(Debug, Clone, Copy)]
pub enum Payer {
    /// Nobody: the operator asks.
    Operator,
    /// Nobody, as long as the allowance of this address lasts.
    Free(IpAddr),
    /// The wallet of an API key.
    Key { digest: Digest, wallet: PublicKey },
}

impl fmt::Display for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Free(_) => f.write_str("free"),
            Self::Key { digest, .. } => f.write_str(&digest.short()),
        }
    }
}

/// What a query owes when it has ended.
pub struct Bill {
    payer: Payer,
    /// Tokens that were taken from an allowance.
    allowed: u64,
    held: Option<OpenQuery>,
}

/// How many free tokens each address has used today.
#[derive(Debug)]
pub struct Allowance {
    tokens: u64,
    used: Mutex<(u64, BTreeMap<IpAddr, u64>)>,
}

impl Allowance {
    pub fn new(tokens: u64) -> Self {
        Self { tokens, used: Mutex::default() }
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.tokens > 0
    }

    /// How many tokens `address` may still use today.
    pub fn left(&self, address: IpAddr, now: Time) -> u64 {
        let guard = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (day, used) = &*guard;
        let mine = if *day == now.0 / DAY_MS { used.get(&address).copied().unwrap_or(0) } else { 0 };
        self.tokens.saturating_sub(mine)
    }

    fn take(&self, address: IpAddr, tokens: u64, now: Time) -> Result<(), QueryError> {
        let mut guard = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (day, used) = &mut *guard;
        if *day != now.0 / DAY_MS {
            *day = now.0 / DAY_MS;
            used.clear();
        }
        let mine = used.get(&address).copied().unwrap_or(0);
        if mine + tokens > self.tokens || (used.len() >= limits::FREE_ADDRESSES_MAX && mine == 0) {
            let left = self.tokens.saturating_sub(mine);
            return Err(QueryError::quota(format!(
                "{left} of today's {} free tokens are left, and this query may use {tokens}; use an API key of a wallet \
                 with HYD (`hydra wallet key create`)",
                self.tokens
            )));
        }
        used.insert(address, mine + tokens);
        Ok(())
    }

    fn give_back(&self, address: IpAddr, tokens: u64) {
        let mut guard = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = guard.1.get_mut(&address) {
            *used = used.saturating_sub(tokens);
        }
    }
}

/// Does something with the store, which may wait for the disk.
pub async fn with_store<T: Send + 'static>(
    queries: &QuerySite,
    act: impl FnOnce(&mut QueryStore) -> Result<T, QueryStoreError> + Send + 'static,
) -> Result<T, QueryStoreError> {
    let store = Arc::clone(&queries.store);
    let done =
        tokio::task::spawn_blocking(move || act(&mut store.lock().unwrap_or_else(PoisonError::into_inner))).await;
    done.unwrap_or(Err(QueryStoreError::Damaged))
}

fn internal(error: &QueryStoreError) -> ApiError {
    ApiError::Internal(error.to_string())
}

impl QuerySite {
    /// Who pays, by what a request says in its header.
    pub async fn payer(&self, bearer: Option<&str>, address: IpAddr, now: Time) -> Result<Payer, ApiError> {
        let secret = match bearer {
            None | Some("free") if self.free.is_any() => return Ok(Payer::Free(address)),
            None => {
                return Err(
                    QueryError::key("you did not provide an API key; `hydra wallet key create` makes one").into()
                );
            }
            Some(secret) => Digest::of(secret.as_bytes()),
        };
        if self.operator == Some(secret) {
            return Ok(Payer::Operator);
        }
        let key = with_store(self, move |store| store.find(&secret)).await.map_err(|error| internal(&error))?;
        match key {
            None => Err(QueryError::key("this API key is not known here").into()),
            Some(key) if key.revoked => Err(QueryError::key("this API key was revoked").into()),
            Some(key) if key.expires.is_some_and(|expires| expires <= now) => {
                Err(QueryError::key("this API key has expired").into())
            }
            Some(key) => Ok(Payer::Key { digest: key.digest, wallet: key.wallet }),
        }
    }

    /// What so many tokens cost.
    pub fn cost(&self, tokens: u64) -> Amount {
        let micro = i64::try_from(tokens).ok().and_then(|tokens| self.price.micro().checked_mul(tokens));
        micro.and_then(|micro| Amount::from_micro(micro).ok()).unwrap_or(Amount::ZERO)
    }
}

/// Has the price of so many tokens held.
pub async fn hold(queries: &Arc<QuerySite>, payer: Payer, tokens: u64) -> Result<Bill, ApiError> {
    let now = queries.clock.now();
    let mut bill = Bill { payer, allowed: 0, held: None };
    let (digest, wallet) = match payer {
        Payer::Operator => return Ok(bill),
        Payer::Free(address) => {
            queries.free.take(address, tokens, now)?;
            return Ok(Bill { allowed: tokens, ..bill });
        }
        Payer::Key { digest, wallet } => (digest, wallet),
    };
    let most = queries.cost(tokens);
    if most.is_zero() {
        return Ok(bill);
    }
    // Nothing is noted for nothing: what is noted is settled until that is done.
    if let Some(problem) = queries.ledger.is_away() {
        return Err(ApiError::LedgerAway(problem));
    }
    let mut random = [0; 8];
    entropy(&mut random).map_err(|error| ApiError::Internal(error.to_string()))?;
    let id = TransferId::request(now, u64::from_le_bytes(random));
    let open = OpenQuery { id, key: digest, wallet, most, cost: None, expires: now + limits::QUERY_HOLD };
    with_store(queries, move |store| store.open(&open)).await.map_err(|error| match error {
        QueryStoreError::Limit { .. } => QueryError::quota(error.to_string()).into(),
        error => internal(&error),
    })?;
    let held = queries.ledger.ask(Request::Hold { id, wallet, amount: most, expires: open.expires }).await;
    bill.held = Some(open);
    match held {
        Ok(()) => Ok(bill),
        Err(trouble) => {
            // Whatever has become of it, it is given back.
            bill.release(queries);
            Err(match trouble {
                LedgerTrouble::Insufficient { .. } => {
                    QueryError::quota(format!("this query may cost {most}, and {trouble}")).into()
                }
                LedgerTrouble::Away(problem) => ApiError::LedgerAway(problem),
                trouble => QueryError::unpaid(trouble.to_string()).into(),
            })
        }
    }
}

impl Bill {
    /// Nothing is owed.
    pub fn release(self, queries: &Arc<QuerySite>) {
        if let Payer::Free(address) = self.payer {
            queries.free.give_back(address, self.allowed);
        }
        let Some(open) = self.held else { return };
        let queries = Arc::clone(queries);
        tokio::spawn(async move { settle_until_done(&queries, OpenQuery { cost: Some(Amount::ZERO), ..open }).await });
    }

    /// Pays for so many tokens: what was paid.
    pub async fn pay(self, queries: &Arc<QuerySite>, tokens: u64) -> Amount {
        if let Payer::Free(address) = self.payer {
            queries.free.give_back(address, self.allowed.saturating_sub(tokens));
        }
        let Some(open) = self.held else { return Amount::ZERO };
        let cost = queries.cost(tokens);
        let open = OpenQuery { cost: Some(cost), ..open };
        // Where the disk fails, the query is settled all the same; after a crash it would be given back.
        let _ = with_store(queries, move |store| store.price(open.id, cost)).await;
        match settle(queries, open).await {
            Some(paid) => paid,
            None => {
                let queries = Arc::clone(queries);
                tokio::spawn(async move { settle_until_done(&queries, open).await });
                cost
            }
        }
    }
}

/// Settles what was under way when the process ended.
pub async fn recover(queries: Arc<QuerySite>, unsettled: Vec<OpenQuery>) {
    for open in unsettled {
        settle_until_done(&queries, OpenQuery { cost: Some(open.cost.unwrap_or(Amount::ZERO)), ..open }).await;
    }
}

async fn settle_until_done(queries: &QuerySite, open: OpenQuery) {
    let mut pause = AGAIN;
    while settle(queries, open).await.is_none() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

/// What was paid, by the ledger's answer to a settlement; nothing where it cannot say, and is to be asked again.
fn paid(settled: Result<(), LedgerTrouble>, cost: Amount) -> Option<Amount> {
    match settled {
        Ok(()) | Err(LedgerTrouble::Done) => Some(cost),
        Err(LedgerTrouble::Away(_)) => None,
        // There is no hold, or none any more.
        Err(LedgerTrouble::Insufficient { .. } | LedgerTrouble::Refused(_)) => Some(Amount::ZERO),
    }
}

/// Settles a query: what was paid, or nothing where the ledger cannot say.
async fn settle(queries: &QuerySite, open: OpenQuery) -> Option<Amount> {
    let OpenQuery { id, wallet, cost, .. } = open;
    let cost = cost.unwrap_or(Amount::ZERO);
    let contributors = if cost.is_zero() { Vec::new() } else { queries.contributors()? };
    let settled = queries.ledger.ask(Request::Settle { query: id, wallet, cost, contributors }).await;
    let paid = paid(settled, cost)?;
    with_store(queries, move |store| store.close(id, paid)).await.ok()?;
    queries.hub.queries.paid_micro.inc_by(u64::try_from(paid.micro()).unwrap_or(0));
    Some(paid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::testing::{NOW, accepted, ask, emitting, key, micro, pay_round, vests_soon, wallet};
    use crate::ledger::{Ledger, MemoryJournal};
    use crate::protocol::Emission;
    use crate::store::{ApiKey, Database};

    /// What a key may spend, of more that its wallet has.
    const LIMIT: i64 = 300;

    /// What happens next, to one of the queries under way.
    #[derive(Debug, Clone)]
    enum Op {
        /// A query that may cost so much.
        Come(i64),
        /// One goes on by a step, and the ledger's answer is heard or lost.
        GoOn(prop::sample::Index, bool),
        /// One ends here: it has cost so much of a hundred parts of the most, or it failed or was given up.
        End(prop::sample::Index, i64),
        /// The process ends, and begins again.
        Crash,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let which = any::<prop::sample::Index>;
        let op = prop_oneof![
            4 => (1i64..200).prop_map(Op::Come),
            9 => (which(), prop::bool::weighted(0.8)).prop_map(|(which, heard)| Op::GoOn(which, heard)),
            5 => (which(), 0i64..=100).prop_map(|(which, share)| Op::End(which, share)),
            1 => Just(Op::Crash),
        ];
        prop::collection::vec(op, 1..50)
    }

    /// How far a query is: what the process has in memory, as [`hold`], [`Bill`] and [`recover`] have it.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Step {
        Noted,
        Held,
        /// To be settled for what the disk knows.
        Owing(Amount),
        Settled(Amount),
    }

    struct World {
        ledger: Ledger,
        journal: MemoryJournal,
        store: QueryStore,
        queries: Vec<(OpenQuery, Step)>,
        count: u64,
        /// What clients were told that they paid.
        told: BTreeMap<TransferId, Amount>,
    }

    impl World {
        fn new(folder: &tempfile::TempDir) -> Self {
            let mut economy = vests_soon();
            economy.emission = Emission { initial: micro(1_000), halving_rounds: 1_000, cap: micro(1_000_000) };
            let mut journal = MemoryJournal::default();
            let mut ledger = Ledger::open(emitting(economy), &mut journal).unwrap();
            for round in 0..2 {
                let verdicts = vec![accepted(round * 10, 0, 1), accepted(round * 10 + 1, 1, 1)];
                ask(&mut ledger, &mut journal, &pay_round(round, verdicts)).unwrap();
            }
            let mut store = QueryStore::new(Database::open(folder.path().join("hydra.db")).unwrap());
            store.add(&Self::key()).unwrap();
            Self { ledger, journal, store, queries: vec![], count: 0, told: BTreeMap::new() }
        }

        fn key() -> ApiKey {
            ApiKey {
                digest: Digest::of(b"a key"),
                wallet: key(0).public(),
                name: "key".to_owned(),
                limit: Some(micro(LIMIT)),
                spent: Amount::ZERO,
                expires: None,
                revoked: false,
            }
        }

        fn ask(&mut self, request: &Request) -> Result<(), LedgerTrouble> {
            let answer = ask(&mut self.ledger, &mut self.journal, request);
            answer.map(drop).map_err(|error| ApiError::Ledger(error).into())
        }

        fn come(&mut self, most: i64) {
            self.count += 1;
            let id = TransferId::request(NOW, self.count);
            let World { store, .. } = self;
            let ApiKey { digest, wallet, .. } = Self::key();
            let open =
                OpenQuery { id, key: digest, wallet, most: micro(most), cost: None, expires: Time(NOW.0 + 1_000) };
            match store.open(&open) {
                Ok(()) => self.queries.push((open, Step::Noted)),
                Err(error) => assert!(matches!(error, QueryStoreError::Limit { .. }), "{error}"),
            }
        }

        fn go_on(&mut self, at: usize, heard: bool) {
            let (open, step) = self.queries[at];
            let OpenQuery { id, wallet, most, expires, .. } = open;
            match step {
                Step::Noted => {
                    let held = self.ask(&Request::Hold { id, wallet, amount: most, expires });
                    // Whatever has become of it, it is given back, where that is not known.
                    let next = if held.is_ok() && heard { Step::Held } else { Step::Owing(Amount::ZERO) };
                    self.queries[at].1 = next;
                }
                // It is being answered.
                Step::Held => {}
                Step::Owing(cost) => {
                    // Others may have contributed since the last time.
                    let contributors = vec![(key(1).public(), 1), (key(2).public(), u64::from(heard))];
                    let settled = self.ask(&Request::Settle { query: id, wallet, cost, contributors });
                    if heard && let Some(paid) = paid(settled, cost) {
                        self.queries[at].1 = Step::Settled(paid);
                    }
                }
                Step::Settled(paid) => {
                    self.store.close(id, paid).unwrap();
                    assert_eq!(*self.told.entry(id).or_insert(paid), paid, "one price for one query");
                    self.queries.remove(at);
                }
            }
        }

        fn end(&mut self, at: usize, share: i64) {
            let (open, step) = self.queries[at];
            if step != Step::Held {
                return;
            }
            let cost = micro(open.most.micro() * share / 100);
            if !cost.is_zero() {
                self.store.price(open.id, cost).unwrap();
            }
            self.queries[at].1 = Step::Owing(cost);
        }

        fn crash(&mut self) {
            let open = self.store.open_queries().unwrap();
            self.queries =
                open.into_iter().map(|open| (open, Step::Owing(open.cost.unwrap_or(Amount::ZERO)))).collect();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever is interleaved, lost, given up or cut off: in the end nothing is held, and what left the wallet is what
        /// clients were told, query by query, and what was counted for the key, within its limit.
        #[test]
        fn every_query_is_paid_once_for_what_it_was_told_to_cost_and_the_rest_comes_back(ops in ops()) {
            let folder = tempfile::tempdir().unwrap();
            let mut world = World::new(&folder);
            let start = world.ledger.book().available(wallet(0)).0;
            for op in ops {
                let under_way = world.queries.len();
                match op {
                    Op::Come(most) => world.come(most),
                    Op::Crash => world.crash(),
                    Op::GoOn(..) | Op::End(..) if under_way == 0 => {}
                    Op::GoOn(which, heard) => world.go_on(which.index(under_way), heard),
                    Op::End(which, share) => world.end(which.index(under_way), share),
                }
                prop_assert!(world.store.find(&World::key().digest).unwrap().unwrap().spent <= micro(LIMIT));
            }
            // What is being answered ends, and all is settled.
            for _ in 0..4 * world.queries.len() {
                if !world.queries.is_empty() {
                    world.end(0, 50);
                    world.go_on(0, true);
                }
            }
            prop_assert!(world.queries.is_empty() && world.store.open_queries().unwrap().is_empty());
            let paid: i64 = world.told.values().map(|paid| paid.micro()).sum();
            prop_assert_eq!(world.ledger.book().available(wallet(0)).0, start - i128::from(paid));
            prop_assert_eq!(world.ledger.book().posts(wallet(0)).debits_pending, 0);
            let spent = world.store.find(&World::key().digest).unwrap().unwrap().spent;
            prop_assert_eq!(spent, micro(paid));
        }
    }
}
