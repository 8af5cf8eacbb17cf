//! Keys, transfers, verdicts and random histories for the tests of the ledger and its store.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;

use super::{
    Account, Action, Answer, Batch, CheckedOrder, Economy, EconomyConfig, Entry, JournalSource, JournalStore, Kept,
    Kind, Ledger, LedgerConfig, LedgerError, Order, Purpose, Request, StoreError, Transfer, TransferId,
};
use crate::protocol::{
    Amount, Digest, Emission, Keypair, Layer, Outcome, PublicKey, Reason, Round, RunId, Signed, TaskId, Time, Verdict,
};

/// The `n`-th of the tests' keys.
pub fn key(n: u8) -> Keypair {
    // Made once: that takes longer than most of what the tests do with them.
    static KEYS: LazyLock<Vec<Keypair>> =
        LazyLock::new(|| (1..=u8::MAX).map(|n| Keypair::from_secret(&[n; 32])).collect());
    KEYS[usize::from(n)].clone()
}

/// The wallet of [`key`] `n`.
pub fn wallet(n: u8) -> Account {
    Account::Wallet(key(n).public())
}

/// The stake of [`key`] `n`.
pub fn stake(n: u8) -> Account {
    Account::Stake(key(n).public())
}

pub fn micro(micro: i64) -> Amount {
    Amount::from_micro(micro).unwrap()
}

/// A transfer of `amount` µHYD.
pub fn transfer(id: u128, debit: Account, credit: Account, amount: i64) -> Transfer {
    Transfer {
        id: TransferId::new(id),
        kind: Kind::Single,
        debit,
        credit,
        amount: micro(amount),
        purpose: Purpose::Query,
    }
}

/// The same, held until `expires`.
pub fn pending(id: u128, debit: Account, credit: Account, amount: i64, expires: Option<u64>) -> Transfer {
    Transfer { kind: Kind::Pending { expires: expires.map(Time) }, ..transfer(id, debit, credit, amount) }
}

/// What ends `hold`: all of it, unless `amount` says less.
pub fn ends(id: u128, kind: fn(TransferId) -> Kind, hold: &Transfer, amount: Option<i64>) -> Transfer {
    let amount = amount.map_or(hold.amount, micro);
    Transfer { id: TransferId::new(id), kind: kind(hold.id), amount, ..*hold }
}

pub fn post(pending: TransferId) -> Kind {
    Kind::Post { pending }
}

pub fn void(pending: TransferId) -> Kind {
    Kind::Void { pending }
}

pub fn expire(pending: TransferId) -> Kind {
    Kind::Expire { pending }
}

fn account() -> impl Strategy<Value = Account> {
    prop_oneof![
        3 => Just(Account::Emission),
        1 => Just(Account::Treasury),
        1 => Just(Account::Burn),
        1 => Just(Account::Escrow),
        6 => (0..3u8).prop_map(wallet),
        1 => Just(stake(0)),
    ]
}

/// One transfer of a history, before it is known what came earlier.
#[derive(Debug, Clone)]
enum Step {
    #[expect(clippy::option_option, reason = "perhaps pending, and if so perhaps with an end")]
    New(u128, Account, Account, i64, Option<Option<u64>>),
    Ends(u128, u8, prop::sample::Index, Option<i64>),
}

/// Chains of transfers with their times, as careless clients would send them: most ids are new, some are used again, a
/// third of the chains are earlier ones sent again; a third is held, with and without an end; holds are posted, in part
/// or for more than they hold, given back and expired, more than once and at any time; amounts are now and then nothing
/// or more than there is. The first puts something into a wallet.
pub fn history() -> impl Strategy<Value = Vec<(Time, Vec<Transfer>)>> {
    let id = || prop_oneof![1 => 0..20u128, 9 => any::<u128>()];
    let amount = prop_oneof![1 => Just(0), 20 => 1..400i64, 1 => any::<i64>().prop_map(|n| n.max(0))];
    let held = prop_oneof![2 => Just(None), 1 => prop::option::of(0..60u64).prop_map(Some)];
    let new = (id(), account(), account(), amount, held)
        .prop_map(|(id, debit, credit, amount, held)| Step::New(id, debit, credit, amount, held));
    let end = (id(), 0..4u8, any::<prop::sample::Index>(), prop::option::of(1..400i64))
        .prop_map(|(id, kind, which, amount)| Step::Ends(id, kind, which, amount));
    let chain = prop::collection::vec(prop_oneof![2 => new, 1 => end], 0..4);
    let step = (chain, any::<Option<prop::sample::Index>>(), prop_oneof![5 => 0..3u64, 1 => 10..40u64]);
    prop::collection::vec(step, 1..40).prop_map(|steps| {
        let mut history = vec![(Time(0), vec![transfer(1 << 64, Account::Emission, wallet(0), 400)])];
        let (mut now, mut holds) = (0, vec![pending(2 << 64, wallet(0), Account::Escrow, 1, None)]);
        for (n, (chain, again, later)) in steps.into_iter().enumerate() {
            now += later;
            let chain = chain.into_iter().map(|step| match step {
                Step::New(id, debit, credit, amount, None) => transfer(id, debit, credit, amount),
                Step::New(id, debit, credit, amount, Some(expires)) => {
                    let hold = pending(id, debit, credit, amount, expires.map(|after| now + after));
                    holds.push(hold);
                    hold
                }
                Step::Ends(id, 0, which, amount) => ends(id, post, which.get(&holds), amount),
                Step::Ends(id, 1, which, _) => ends(id, post, which.get(&holds), None),
                Step::Ends(id, 2, which, _) => ends(id, void, which.get(&holds), None),
                Step::Ends(id, _, which, _) => ends(id, expire, which.get(&holds), None),
            });
            let chain = chain.collect();
            match again {
                Some(again) if n % 3 == 2 => {
                    let earlier = again.get(&history).1.clone();
                    history.push((Time(now), earlier));
                }
                _ => history.push((Time(now), chain)),
            }
        }
        history
    })
}

/// When the tests begin.
pub const NOW: Time = Time(1_000_000);

/// An order by [`key`] `who`, valid for an hour from [`NOW`]; `n` keeps ids apart.
pub fn order(who: u8, n: u64, action: Action) -> Request {
    order_until(who, n, action, Time(NOW.0 + 3_600_000))
}

/// The same with another end.
pub fn order_until(who: u8, n: u64, action: Action, valid_until: Time) -> Request {
    let signed = Signed::seal(&key(who), &Order { id: TransferId::request(NOW, n), valid_until, action });
    Request::Order(CheckedOrder::check(&signed).unwrap())
}

/// The key that the tests' ledger signs with.
pub fn ledger_key() -> Keypair {
    key(201)
}

/// The tests' trusted verifier.
pub fn verifier() -> Keypair {
    key(200)
}

/// A ledger's configuration that emits 1 000 µHYD a round, halved every 4 rounds, 2 500 in all.
pub fn config() -> LedgerConfig {
    config_with(EconomyConfig::default())
}

/// The same with other numbers where they are not the emission's.
pub fn config_with(economy: EconomyConfig) -> LedgerConfig {
    let emission = Emission { initial: micro(1_000), halving_rounds: 4, cap: micro(2_500) };
    emitting(EconomyConfig { emission, ..economy })
}

/// A ledger's configuration with this economy.
pub fn emitting(economy: EconomyConfig) -> LedgerConfig {
    let economy: Economy = economy.check().unwrap();
    LedgerConfig { economy, verifiers: [verifier().public()].into() }
}

/// An economy in which pay vests after one more reward, everything being audited.
pub fn vests_soon() -> EconomyConfig {
    let mut economy = EconomyConfig { vesting_rewards: 1, ..EconomyConfig::default() };
    economy.audit.floor = crate::protocol::Ppm::ONE;
    economy
}

/// The `n`-th of the tests' tasks.
pub fn task(n: u32) -> TaskId {
    TaskId(Digest::of(&n.to_le_bytes()))
}

/// The trusted verifier's verdict that worker `worker` did `tokens` tokens of task `n`.
pub fn accepted(n: u32, worker: u8, tokens: u64) -> Signed {
    verdict(n, worker, Outcome::Accepted { layer: Layer::Statistics, tokens, norm: 1.0 })
}

/// The trusted verifier's verdict that worker `worker` did not do task `n`.
pub fn rejected(n: u32, worker: u8) -> Signed {
    verdict(n, worker, Outcome::Rejected { layer: Layer::Replay, reason: Reason::NoProgress })
}

/// A verdict by somebody else.
pub fn verdict(n: u32, worker: u8, outcome: Outcome) -> Signed {
    let payload = Digest::of(b"payload");
    Signed::seal(
        &verifier(),
        &Verdict { task: task(n), worker: key(worker).public(), payload, work: 0, by: None, turn: 0, outcome },
    )
}

/// The tests' run.
pub fn run() -> RunId {
    RunId(Digest::of(b"run"))
}

/// A request to pay a round of the tests' run.
pub fn pay_round(round: u32, verdicts: Vec<Signed>) -> Request {
    Request::PayRound { run: run(), round: Round(round), verdicts }
}

/// What the ledger's actor does with a request at [`NOW`].
pub fn ask(ledger: &mut Ledger, store: &mut dyn JournalStore, request: &Request) -> Result<Answer, LedgerError> {
    ask_at(NOW, ledger, store, request)
}

/// The same at another time.
pub fn ask_at(
    now: Time,
    ledger: &mut Ledger,
    store: &mut dyn JournalStore,
    request: &Request,
) -> Result<Answer, LedgerError> {
    let (answer, mut batch) = ledger.apply(ledger.decide(now, request)?);
    batch.seal(&ledger_key());
    store.append(&batch)?;
    match answer {
        Answer::Refused { error, .. } => Err(error),
        answer => Ok(answer),
    }
}

/// The pays of an answer, as (worker, task, µHYD).
#[track_caller]
pub fn pays(answer: &Answer) -> Vec<(PublicKey, TaskId, i64)> {
    let Answer::RoundPaid { pays, .. } = answer else { panic!("{answer:?}") };
    pays.iter().map(|(worker, task, amount)| (*worker, *task, amount.micro())).collect()
}

/// A round that a test has paid: its number, and the tokens that each worker did of each task (`None`: rejected).
pub type TestRound = (u32, Vec<(u8, Option<u64>)>);

/// Rounds of up to five tasks by up to four workers, some rejected, some rounds missing.
pub fn rounds() -> impl Strategy<Value = Vec<TestRound>> {
    let work = (0..4u8, prop_oneof![1 => Just(None), 4 => (0..1_000u64).prop_map(Some)]);
    let round = (0..3u32, prop::collection::vec(work, 0..5));
    prop::collection::vec(round, 1..12).prop_map(|rounds| {
        let mut number = 0;
        rounds
            .into_iter()
            .map(|(gap, work)| {
                number += gap + 1;
                (number - 1, work)
            })
            .collect()
    })
}

/// The request to pay such a round. Tasks are numbered so that no two rounds share one.
pub fn request_for((round, work): &TestRound) -> Request {
    let verdict = |(index, (worker, tokens)): (u32, &(u8, Option<u64>))| match tokens {
        Some(tokens) => accepted(round * 100 + index, *worker, *tokens),
        None => rejected(round * 100 + index, *worker),
    };
    pay_round(*round, (0..).zip(work).map(verdict).collect())
}

/// What each of the four workers and `emission` must hold after these rounds: the schedule of [`config`] and largest
/// remainders, computed in another way than the ledger does (one token of pay after the other, to whom is furthest
/// below his quota).
pub fn expected_balances(rounds: &[TestRound]) -> ([i64; 4], i64) {
    let (mut wallets, mut emitted) = ([0; 4], 0);
    for (round, work) in rounds {
        let due: Vec<(u8, i64)> =
            work.iter().filter_map(|(worker, tokens)| Some((*worker, i64::try_from((*tokens)?).unwrap()))).collect();
        let all: i64 = due.iter().map(|(_, tokens)| tokens).sum();
        if all == 0 {
            continue;
        }
        let mut scheduled = 1_000;
        for _ in 0..round / 4 {
            scheduled /= 2;
        }
        let total = scheduled.min(2_500 - emitted);
        let mut shares: Vec<i64> = due.iter().map(|(_, tokens)| total * tokens / all).collect();
        let mut topped = vec![false; due.len()];
        while shares.iter().sum::<i64>() < total {
            let below = |i: &usize| (total * due[*i].1 - shares[*i] * all, std::cmp::Reverse(*i));
            let next = (0..due.len()).filter(|i| !topped[*i]).max_by_key(below).unwrap();
            shares[next] += 1;
            topped[next] = true;
        }
        emitted += total;
        due.iter().zip(&shares).for_each(|((worker, _), share)| wallets[usize::from(*worker)] += share);
    }
    (wallets, emitted)
}

/// A store whose medium fails that many times.
pub struct Unreliable<S>(pub S, pub Arc<AtomicU32>);

impl<S: JournalSource> JournalSource for Unreliable<S> {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.0.entries(visit)
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.0.kept()
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.0.heads(visit)
    }
}

impl<S: JournalStore> JournalStore for Unreliable<S> {
    fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.probe()?;
        self.0.append(batch)
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        let fails = self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1)).is_ok();
        if fails { Err(StoreError::Failed("disk full".into())) } else { self.0.probe() }
    }
}
