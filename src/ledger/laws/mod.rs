//! What must always hold, over random histories: valid, invalid, repeated, across crashes. One model, three subjects: the
//! pure core, the core on a database, and the core behind the desk with a writer on a thread of its own.

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::testing::{accepted, ask_at, key, ledger_key, pay_round, pays, verifier, vests_soon, wallet};
use super::*;
use crate::protocol::{Balance, Digest, Emission, Keypair, Outcome, PublicKey, Time, Verdict, wire};
use crate::store::{Database, GroupCommit, LedgerStore};
use model::{Model, Op, PEOPLE, UNSTAKE_MS, VESTING, ops};

fn config() -> LedgerConfig {
    let mut economy = vests_soon();
    economy.vesting_rewards = VESTING as u32;
    economy.unstake_delay = Duration::from_millis(UNSTAKE_MS);
    let emission = Emission { initial: testing::micro(1_000), halving_rounds: 8, cap: testing::micro(12_000) };
    testing::emitting(EconomyConfig { emission, ..economy })
}

/// A ledger, however it is kept.
trait Subject {
    fn ask(&mut self, now: Time, request: &Request) -> Result<Answer, LedgerError>;
    /// Crashes, and opens again.
    fn reopen(&mut self);
    fn ledger(&self) -> &Ledger;
    fn source(&mut self) -> Box<dyn JournalSource>;
}

struct Pure(Ledger, MemoryJournal);

impl Pure {
    fn new() -> Self {
        let mut store = MemoryJournal::default();
        Self(Ledger::open(config(), &mut store).unwrap(), store)
    }
}

impl Subject for Pure {
    fn ask(&mut self, now: Time, request: &Request) -> Result<Answer, LedgerError> {
        ask_at(now, &mut self.0, &mut self.1, request)
    }
    fn reopen(&mut self) {
        self.0 = Ledger::open(config(), &mut self.1).unwrap();
    }
    fn ledger(&self) -> &Ledger {
        &self.0
    }
    fn source(&mut self) -> Box<dyn JournalSource> {
        Box::new(self.1.clone())
    }
}

/// A ledger on a database file.
struct OnDisk {
    folder: tempfile::TempDir,
    open: Option<(Ledger, LedgerStore)>,
}

fn database(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("hydra.db")
}

fn store(folder: &tempfile::TempDir) -> LedgerStore {
    LedgerStore::new(Database::open(database(folder)).unwrap()).unwrap()
}

impl OnDisk {
    fn new() -> Self {
        let mut new = Self { folder: tempfile::tempdir().unwrap(), open: None };
        new.reopen();
        new
    }
}

impl Subject for OnDisk {
    fn ask(&mut self, now: Time, request: &Request) -> Result<Answer, LedgerError> {
        let (ledger, store) = self.open.as_mut().unwrap();
        ask_at(now, ledger, store, request)
    }
    fn reopen(&mut self) {
        self.open = None;
        let mut store = store(&self.folder);
        self.open = Some((Ledger::open(config(), &mut store).unwrap(), store));
    }
    fn ledger(&self) -> &Ledger {
        &self.open.as_ref().unwrap().0
    }
    fn source(&mut self) -> Box<dyn JournalSource> {
        Box::new(LedgerStore::snapshot(&database(&self.folder)).unwrap())
    }
}

/// A ledger behind the desk, whose writer has a thread.
struct Desked {
    folder: tempfile::TempDir,
    desk: Option<(Desk<()>, Receiver<Written>)>,
}

impl Desked {
    fn new() -> Self {
        let mut new = Self { folder: tempfile::tempdir().unwrap(), desk: None };
        new.reopen();
        new
    }
}

impl Subject for Desked {
    fn ask(&mut self, now: Time, request: &Request) -> Result<Answer, LedgerError> {
        let (desk, written) = self.desk.as_mut().unwrap();
        let answer = match desk.ask(now, request, ()) {
            Some(((), answer)) => answer,
            None => loop {
                if let Some(((), answer)) = desk.written(written.recv().unwrap()).pop() {
                    break answer;
                }
            },
        };
        match answer {
            Answer::Refused { error, .. } => Err(error),
            answer => Ok(answer),
        }
    }
    fn reopen(&mut self) {
        self.desk = None;
        let writer = store(&self.folder);
        let reader = LedgerStore::read_only(&database(&self.folder)).unwrap();
        let writer = GroupCommit::start(writer, reader, ledger_key()).unwrap();
        let mut desk = Desk::open(config(), Box::new(writer)).unwrap();
        let (told, written) = channel();
        desk.listen(Box::new(move |what| told.send(what).unwrap()));
        self.desk = Some((desk, written));
    }
    fn ledger(&self) -> &Ledger {
        self.desk.as_ref().unwrap().0.core()
    }
    fn source(&mut self) -> Box<dyn JournalSource> {
        Box::new(LedgerStore::snapshot(&database(&self.folder)).unwrap())
    }
}

/// What is seen of one request: the ledger's accounts before and after it, and whether it was done.
struct Seen<'a> {
    request: &'a Request,
    before: BTreeMap<Account, Posts>,
    answer: Result<&'a Answer, &'a LedgerError>,
}

fn accounts(ledger: &Ledger) -> BTreeMap<Account, Posts> {
    ledger.book().accounts().collect()
}

/// Plays a history on a subject beside the model, and shows every step.
fn play(subject: &mut dyn Subject, ops: &[Op], mut see: impl FnMut(&Ledger, Seen)) {
    let mut model = Model::default();
    for op in ops {
        let Some((index, request)) = model.request(op) else {
            let before = (accounts(subject.ledger()), subject.ledger().journal());
            subject.reopen();
            assert_eq!(
                (accounts(subject.ledger()), subject.ledger().journal()),
                before,
                "what is acknowledged is there"
            );
            continue;
        };
        let before = accounts(subject.ledger());
        let answer = subject.ask(Time(model.now), &request);
        let good = model.answered(index, answer.as_ref().ok());
        assert_eq!(answer.is_ok(), good, "{op:?} at {}: {answer:?}", model.now);
        compare(&model, subject.ledger());
        see(subject.ledger(), Seen { request: &request, before, answer: answer.as_ref() });
    }
    let audited = audit(config(), Some(ledger_key().public()), &mut *subject.source()).unwrap();
    assert_eq!(audited.head, subject.ledger().journal().head());
}

fn compare(model: &Model, ledger: &Ledger) {
    let book = ledger.book();
    book.assert_invariants();
    for who in 0..PEOPLE {
        let (key, at) = (key(who).public(), usize::from(who));
        let posts = book.posts(Account::Wallet(key));
        let unvested: i64 = model.unvested[at].iter().map(|(_, amount)| amount).sum();
        assert_eq!(posts.balance().0, model.wallets[at], "wallet {who}");
        assert_eq!(posts.debits_pending, model.held(who), "what is held of wallet {who}");
        assert!(posts.credits_pending >= unvested.into(), "unvested pay of {who}");
        assert_eq!(ledger.standing(key).unvested as usize, model.unvested[at].len());
        assert_eq!(book.balance(Account::Stake(key)).0, model.stakes[at], "stake {who}");
    }
    assert_eq!(book.balance(Account::Treasury).0, model.treasury);
    assert_eq!(book.balance(Account::Burn).0, model.burned);
    assert_eq!(book.posts(Account::Escrow).credits_pending, model.in_escrow());
    let unvested: i64 = model.unvested.iter().flatten().map(|(_, amount)| amount).sum();
    assert_eq!(book.totals().unvested.0, i128::from(unvested));
    assert_eq!(book.emitted().0, i128::from(unvested) + model.vested);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_pure_ledger_does_what_the_model_does(ops in ops(60)) {
        play(&mut Pure::new(), &ops, |_, _| ());
    }

    #[test]
    fn only_the_owners_signature_settlement_or_a_verdict_lowers_a_balance(ops in ops(60)) {
        play(&mut Pure::new(), &ops, |ledger, Seen { request, before, .. }| {
            for (account, old) in before {
                let new = ledger.book().posts(account);
                if new.balance() >= old.balance() && new.available() >= old.available() {
                    continue;
                }
                let allowed = match (account, request) {
                    (Account::Emission, Request::PayRound { .. }) => true,
                    (Account::Wallet(owner) | Account::Stake(owner), Request::Order(order)) => order.signer() == owner,
                    (Account::Wallet(owner), Request::Hold { wallet, .. } | Request::Settle { wallet, .. }) => *wallet == owner,
                    (Account::Stake(owner), Request::Forfeit { verdict }) => verdict.open::<Verdict>().unwrap().1.worker == owner,
                    // What its owner took out, and was held since then, goes to the wallet.
                    (Account::Stake(_), Request::Tick) => new.available() == old.available(),
                    _ => false,
                };
                assert!(allowed, "{request:?} lowered {account}: {old:?} to {new:?}");
            }
        });
    }

    #[test]
    fn escrow_is_empty_after_each_settlement(ops in ops(60)) {
        play(&mut Pure::new(), &ops, |ledger, seen| {
            let escrow = ledger.book().posts(Account::Escrow);
            assert_eq!(escrow.balance(), Balance(0), "{:?}", seen.request);
            assert_eq!(escrow.debits_pending, 0);
        });
    }

    #[test]
    fn a_refused_request_changes_nothing(ops in ops(60)) {
        play(&mut Pure::new(), &ops, |ledger, Seen { before, answer, request }| {
            if answer.is_err() {
                assert_eq!(accounts(ledger), before, "{request:?}");
            }
        });
    }

    #[test]
    fn a_task_is_paid_once_to_a_worker_and_only_with_an_accepting_verdict(ops in ops(60)) {
        let mut subject = Pure::new();
        let mut verdicts = BTreeMap::new();
        play(&mut subject, &ops, |_, Seen { request, .. }| {
            if let Request::PayRound { verdicts: signed, .. } = request {
                verdicts.extend(signed.iter().map(|signed| (Digest::of(&wire::encode(signed)), signed.clone())));
            }
        });
        let mut paid = BTreeSet::new();
        for entry in subject.1.copy() {
            if let (Purpose::Pay { task, verdict, .. }, Account::Wallet(worker)) = (entry.transfer.purpose, entry.transfer.credit) {
                prop_assert!(paid.insert((task, worker)), "{} paid twice", task);
                let (by, verdict) = verdicts[&verdict].open::<Verdict>().unwrap();
                let is_accepted = matches!(verdict.outcome, Outcome::Accepted { .. });
                prop_assert!(is_accepted);
                prop_assert_eq!((by, verdict.task, verdict.worker), (verifier().public(), task, worker));
            }
        }
    }

    #[test]
    fn a_slash_is_at_most_stake_and_unvested_pay_and_once_per_verdict(ops in ops(60)) {
        let mut findings = BTreeMap::new();
        play(&mut Pure::new(), &ops, |ledger, Seen { request, before, answer }| {
            let (Request::Forfeit { verdict }, Ok(Answer::Forfeited(cost))) = (request, answer) else { return };
            let worker = verdict.open::<Verdict>().unwrap().1.worker;
            let old = |account| before.get(&account).copied().unwrap_or_default();
            let lost = old(Account::Stake(worker)).balance().0 - ledger.book().balance(Account::Stake(worker)).0;
            let verdict = Digest::of(&wire::encode(verdict));
            if let Some(first) = findings.insert(verdict, *cost) {
                assert_eq!((first, lost), (*cost, 0), "slashed again");
                assert_eq!(accounts(ledger), before);
            } else {
                let had = old(Account::Stake(worker)).balance().0 + old(Account::Wallet(worker)).credits_pending;
                assert!(i128::from(cost.stake.micro() + cost.unvested.micro()) <= had);
                assert_eq!(lost, i128::from(cost.stake.micro()));
                let wallet = Account::Wallet(worker);
                assert_eq!(old(wallet).balance(), ledger.book().balance(wallet), "what has vested stays");
            }
        });
    }

    #[test]
    fn the_same_request_gets_the_same_answer_and_has_one_effect(ops in ops(60)) {
        let mut answers: Vec<(Request, Answer)> = Vec::new();
        play(&mut Pure::new(), &ops, |ledger, Seen { request, before, answer }| {
            let (Ok(answer), false) = (answer, matches!(request, Request::Tick)) else { return };
            match answers.iter().find(|(earlier, _)| earlier == request) {
                Some((_, first)) => {
                    assert_eq!(first, answer);
                    assert_eq!(accounts(ledger), before);
                }
                None => answers.push((request.clone(), answer.clone())),
            }
        });
    }

    #[test]
    fn k_keys_earn_no_more_than_one_key_doing_the_same_work(
        rounds in prop::collection::vec(prop::collection::vec((0..4u8, 1..1_000u64), 1..6), 1..12), keys in 2..4u8,
    ) {
        // Person 0 does the same tasks, once under one key and once under several, taken in turn.
        let earned = |keys: u8| {
            let mut subject = Pure::new();
            let mut sum = 0;
            for (round, work) in (0..).zip(&rounds) {
                let by = |index: usize, who: u8| if who == 0 { 10 + index as u8 % keys } else { who };
                let verdicts = work.iter().enumerate().map(|(index, (who, tokens))| {
                    accepted(round * 100 + index as u32, by(index, *who), *tokens)
                });
                let answer = subject.ask(testing::NOW, &pay_round(round, verdicts.collect())).unwrap();
                let own = |of: &PublicKey| (10..10 + keys).any(|n| key(n).public() == *of);
                sum += pays(&answer).iter().filter(|(worker, ..)| own(worker)).map(|(.., amount)| amount).sum::<i64>();
            }
            let vested: i128 = (10..10 + keys).map(|n| subject.0.book().balance(wallet(n)).0).sum();
            (sum, vested)
        };
        let (one, vested) = earned(1);
        let (several, vested_of_several) = earned(keys);
        prop_assert_eq!(several, one);
        prop_assert!(vested_of_several <= vested, "several keys have more unvested");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_ledger_on_a_database_does_what_the_model_does_and_is_replayed_as_stored(ops in ops(50)) {
        play(&mut OnDisk::new(), &ops, |_, _| ());
    }

    #[test]
    fn the_ledger_behind_the_desk_does_what_the_model_does(ops in ops(50)) {
        play(&mut Desked::new(), &ops, |_, _| ());
    }
}

#[test]
fn balances_and_heads_that_do_not_follow_from_the_journal_are_noticed() {
    let play = || {
        let mut subject = OnDisk::new();
        for round in 0..5 {
            subject
                .ask(testing::NOW, &pay_round(round, vec![accepted(round, 0, 1), accepted(round + 50, 1, 1)]))
                .unwrap();
        }
        subject.open = None;
        subject
    };
    let broken = |sql: &str| {
        let mut subject = play();
        rusqlite::Connection::open(database(&subject.folder)).unwrap().execute_batch(sql).unwrap();
        let opened = Ledger::open(config(), &mut *subject.source()).map(|_| ());
        (opened, audit(config(), Some(ledger_key().public()), &mut *subject.source()))
    };
    assert!(matches!(broken(""), (Ok(()), Ok(Audited { heads: 5, transfers: 16, .. }))));
    let accounts = [
        "UPDATE accounts SET credits = '1000000' WHERE account LIKE 'wallet%'",
        "UPDATE accounts SET credits_pending = '0' WHERE account LIKE 'wallet%'",
        "DELETE FROM accounts WHERE account = 'emission'",
        "INSERT INTO accounts VALUES ('treasury', '0', '5', '0', '0')",
        "INSERT INTO accounts VALUES ('purse', '0', '0', '0', '0')",
    ];
    for sql in accounts {
        let (opened, audited) = broken(sql);
        assert!(matches!(opened, Err(StoreError::Unsound(_))), "{sql}: {opened:?}");
        assert!(matches!(audited, Err(StoreError::Unsound(_))), "{sql}: {audited:?}");
    }
    // The newest head is looked at whenever the ledger is opened, the others by `verify`.
    let (opened, audited) = broken("DELETE FROM heads WHERE size > 8");
    assert!(matches!((opened, audited), (Err(_), Err(StoreError::Damaged { sequence: 9, .. }))));
    let (opened, audited) = broken("DELETE FROM journal WHERE sequence = 16");
    assert!(matches!(
        (opened, audited),
        (Err(_), Err(StoreError::Unsound(_) | StoreError::Damaged { sequence: 16, .. }))
    ));
    let (opened, audited) = broken("DELETE FROM heads");
    assert!(matches!((opened, audited), (Err(_), Err(StoreError::Damaged { sequence: 1, .. }))));
    let swapped = "UPDATE heads SET body = (SELECT body FROM heads WHERE size = 4) WHERE size = 2";
    let (opened, audited) = broken(swapped);
    assert!(opened.is_ok() && audited.is_err(), "{audited:?}");
    let other = Some(Keypair::from_secret(&[9; 32]).public());
    assert!(matches!(audit(config(), other, &mut *play().source()), Err(StoreError::Damaged { sequence: 2, .. })));
}
