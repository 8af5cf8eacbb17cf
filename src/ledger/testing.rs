//! Keys, transfers, verdicts and random histories for the tests of the ledger and its store.

use proptest::prelude::*;

use super::{Account, Answer, JournalStore, Ledger, LedgerConfig, LedgerError, Purpose, Request, Transfer, TransferId};
use crate::protocol::{
    Amount, Digest, Emission, Keypair, Layer, Outcome, PublicKey, Reason, Round, RunId, Signed, TaskId, Verdict,
};

/// The `n`-th of the tests' keys.
pub fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n + 1; 32])
}

/// The wallet of [`key`] `n`.
pub fn wallet(n: u8) -> Account {
    Account::Wallet(key(n).public())
}

/// A transfer of `amount` µHYD.
pub fn transfer(id: u128, debit: Account, credit: Account, amount: i64) -> Transfer {
    let amount = Amount::from_micro(amount).unwrap();
    Transfer { id: TransferId::new(id), debit, credit, amount, purpose: Purpose::Transfer }
}

fn account() -> impl Strategy<Value = Account> {
    prop_oneof![
        3 => Just(Account::Emission),
        1 => Just(Account::Treasury),
        1 => Just(Account::Burn),
        1 => Just(Account::Escrow),
        6 => (0..3u8).prop_map(wallet),
        1 => Just(Account::Stake(key(0).public())),
    ]
}

/// Chains of transfers, as careless clients would send them: most ids are new, some are used again, a third of the
/// chains are earlier ones sent again; amounts are now and then nothing or more than there is. The first puts something
/// into a wallet.
pub fn history() -> impl Strategy<Value = Vec<Vec<Transfer>>> {
    let id = prop_oneof![1 => 0..20u128, 9 => any::<u128>()];
    let amount = prop_oneof![1 => Just(0), 20 => 1..400i64, 1 => any::<i64>().prop_map(|n| n.max(0))];
    let one =
        (id, account(), account(), amount).prop_map(|(id, debit, credit, amount)| transfer(id, debit, credit, amount));
    let chain = prop::collection::vec(one, 0..4);
    let step = (chain, any::<Option<prop::sample::Index>>());
    prop::collection::vec(step, 1..40).prop_map(|steps| {
        let mut history = vec![vec![transfer(1 << 64, Account::Emission, wallet(0), 400)]];
        for (n, (chain, again)) in steps.into_iter().enumerate() {
            match again {
                Some(again) if n % 3 == 2 => history.push(again.get(&history).clone()),
                _ => history.push(chain),
            }
        }
        history
    })
}

/// The tests' trusted verifier.
pub fn verifier() -> Keypair {
    key(200)
}

/// A ledger's configuration that emits 1 000 µHYD a round, halved every 4 rounds, 2 500 in all.
pub fn config() -> LedgerConfig {
    let micro = |micro| Amount::from_micro(micro).unwrap();
    LedgerConfig {
        emission: Emission { initial: micro(1_000), halving_rounds: 4, cap: micro(2_500) },
        verifiers: [verifier().public()].into(),
    }
}

/// The `n`-th of the tests' tasks.
pub fn task(n: u32) -> TaskId {
    TaskId(Digest::of(&n.to_le_bytes()))
}

/// The trusted verifier's verdict that worker `worker` did `tokens` tokens of task `n`.
pub fn accepted(n: u32, worker: u8, tokens: u64) -> Signed {
    verdict(n, worker, Outcome::Accepted { layer: Layer::Replay, tokens, norm: 1.0 })
}

/// The trusted verifier's verdict that worker `worker` did not do task `n`.
pub fn rejected(n: u32, worker: u8) -> Signed {
    verdict(n, worker, Outcome::Rejected { layer: Layer::Replay, reason: Reason::NoProgress })
}

fn verdict(n: u32, worker: u8, outcome: Outcome) -> Signed {
    let payload = Digest::of(b"payload");
    Signed::seal(&verifier(), &Verdict { task: task(n), worker: key(worker).public(), payload, outcome })
}

/// The tests' run.
pub fn run() -> RunId {
    RunId(Digest::of(b"run"))
}

/// A request to pay a round of the tests' run.
pub fn pay_round(round: u32, verdicts: Vec<Signed>) -> Request {
    Request::PayRound { run: run(), round: Round(round), verdicts }
}

/// What the ledger's actor does with a request.
pub fn ask(ledger: &mut Ledger, store: &mut dyn JournalStore, request: &Request) -> Result<Answer, LedgerError> {
    let decided = ledger.decide(request)?;
    store.append(decided.entries())?;
    Ok(ledger.apply(decided))
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
