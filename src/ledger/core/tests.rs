use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;

use super::super::testing::{
    NOW, accepted, ask, ask_at, config, expected_balances, key, ledger_key, micro, order, order_until, pay_round, pays,
    rejected, request_for, rounds, run, task, transfer, verdict, verifier, wallet,
};
use super::super::{Action, Batch, CheckedOrder, JournalStore, MemoryJournal, Order, Purpose, Totals, TransferId};
use super::*;
use crate::protocol::{
    Amount, Balance, Digest, EnvelopeError, Keypair, Layer, Outcome, Round, Signed, Verdict, WorkerRequest, limits,
    wire,
};

fn fresh() -> (Ledger, MemoryJournal) {
    let mut store = MemoryJournal::default();
    (Ledger::open(config(), &mut store).unwrap(), store)
}

/// One whose rounds emit 1 HYD each.
fn generous() -> (Ledger, MemoryJournal) {
    let mut economy = *config().economy.config();
    (economy.emission.initial, economy.emission.cap) = (Amount::from_hyd(1), Amount::from_hyd(10));
    let mut store = MemoryJournal::default();
    (Ledger::open(super::super::testing::emitting(economy), &mut store).unwrap(), store)
}

/// That `ledger` refuses `request` for this reason and is left as it was.
#[track_caller]
fn refused(ledger: &mut Ledger, store: &mut MemoryJournal, request: &Request, error: LedgerError) {
    let before = (format!("{ledger:?}"), store.copy());
    assert_eq!(ask(ledger, store, request), Err(error));
    assert_eq!((format!("{ledger:?}"), store.copy()), before);
}

#[test]
fn a_round_pays_accepted_work_by_verified_tokens_in_the_order_of_the_verdicts() {
    let (mut ledger, mut store) = fresh();
    let verdicts =
        vec![accepted(5, 1, 100), rejected(2, 3), accepted(1, 2, 200), accepted(9, 1, 0), accepted(3, 0, 400)];
    let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts.clone())).unwrap();
    let public = |n| key(n).public();
    // 1 000 over 100 : 200 : 400 is 142.9, 285.7, 571.4: the two largest remainders are rounded up.
    assert_eq!(pays(&answer), [(public(1), task(5), 143), (public(2), task(1), 286), (public(0), task(3), 571)]);
    let entries = store.copy();
    assert!(matches!(answer, Answer::RoundPaid { head, .. } if head == entries[2].chain));
    assert_eq!(ledger.journal().head(), entries[2].chain);
    let ids: Vec<TransferId> = entries.iter().map(|entry| entry.transfer.id).collect();
    assert_eq!(ids, [0, 1, 2].map(|index| TransferId::pay(run(), Round(0), index)));
    let Purpose::Pay { verdict, round, .. } = entries[1].transfer.purpose else { panic!() };
    assert_eq!((verdict, round), (Digest::of(&wire::encode(&verdicts[2])), Round(0)), "the pay names its verdict");
    assert_eq!(ledger.book().posts(wallet(1)).credits_pending, 143);
    assert_eq!(ledger.book().available(wallet(1)), Balance(0), "pay is not its worker's own before it vests");

    let totals = ask(&mut ledger, &mut store, &Request::Totals).unwrap();
    let expected = Totals {
        supply: Balance(1_000),
        emitted: Balance(1_000),
        unvested: Balance(1_000),
        burned: Balance(0),
        debits: Balance(0),
        credits: Balance(0),
        debits_pending: Balance(1_000),
        credits_pending: Balance(1_000),
    };
    assert_eq!(totals, Answer::Totals { totals: expected, transfers: 3, head: entries[2].chain });
    let Answer::Accounts(accounts) = ask(&mut ledger, &mut store, &Request::Accounts).unwrap() else { panic!() };
    assert!(accounts.is_sorted_by_key(|(account, _)| *account));
    let pending: Vec<i128> = [0, 1, 2].map(|n| ledger.book().posts(wallet(n)).credits_pending).into();
    assert_eq!((accounts.len(), pending), (4, vec![571, 143, 286]));
}

#[test]
fn a_round_without_accepted_work_emits_nothing() {
    let (mut ledger, mut store) = fresh();
    for (round, verdicts) in (0..).zip([vec![], vec![rejected(1, 1), rejected(2, 2)], vec![accepted(1, 1, 0)]]) {
        let answer = ask(&mut ledger, &mut store, &pay_round(round, verdicts)).unwrap();
        assert_eq!(pays(&answer), []);
    }
    assert_eq!(ledger.book().emitted(), Balance(0));
    assert!(store.copy().iter().all(|entry| entry.transfer.amount.is_zero()));
}

#[test]
fn a_round_that_found_nothing_to_emit_stays_unpaid_when_there_is_something_later() {
    let (mut ledger, mut store) = fresh();
    let mut last = None;
    // Until the supply cap is reached.
    for round in 0..20 {
        let request = pay_round(round, vec![accepted(round, 1, 5)]);
        last = Some((ask(&mut ledger, &mut store, &request).unwrap(), request));
    }
    let (answer, request) = last.unwrap();
    assert_eq!(pays(&answer), []);
    ask(&mut ledger, &mut store, &Request::Forfeit { verdict: rejected(0, 1) }).unwrap();
    assert_eq!(ask(&mut ledger, &mut store, &request).unwrap(), answer);
    let next = ask(&mut ledger, &mut store, &pay_round(20, vec![accepted(20, 2, 5)])).unwrap();
    assert!(!pays(&next).is_empty(), "what was taken back may be emitted again");
}

#[test]
fn a_round_is_not_paid_again_for_other_verdicts() {
    let (mut ledger, mut store) = fresh();
    let verdicts = vec![accepted(1, 1, 100), accepted(2, 2, 100), rejected(3, 3)];
    let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts.clone())).unwrap();
    let [one, two, three] = [0, 1, 2].map(|n| verdicts[n].clone());
    let others = [
        vec![],
        vec![one.clone()],
        vec![one.clone(), two.clone()],
        vec![two.clone(), one.clone(), three.clone()],
        vec![one.clone(), accepted(2, 2, 101), three.clone()],
        vec![one.clone(), two.clone(), three.clone(), accepted(4, 0, 100)],
        vec![accepted(5, 0, 1)],
    ];
    for other in others {
        let error = LedgerError::RoundDiffers { run: run(), round: Round(0) };
        refused(&mut ledger, &mut store, &pay_round(0, other), error);
    }
    assert_eq!(ask(&mut ledger, &mut store, &pay_round(0, verdicts)), Ok(answer));
}

#[test]
fn whoever_does_work_again_is_paid_as_much_whatever_comes_of_it_and_once() {
    let (mut ledger, mut store) = fresh();
    let again = |n: u32, worker: u8, outcome: Outcome| {
        let payload = Digest::of(b"payload");
        let verdict =
            Verdict { task: task(n), worker: key(worker).public(), payload, work: 100, by: None, turn: 0, outcome };
        Signed::seal(&verifier(), &verdict)
    };
    let clean = Outcome::Accepted { layer: Layer::Replay, tokens: 100, norm: 1.0 };
    let false_work = Outcome::Rejected { layer: Layer::Replay, reason: crate::protocol::Reason::NoProgress };
    let verdicts = vec![accepted(1, 1, 100), accepted(2, 2, 100), again(1, 1, clean.clone()), again(7, 3, false_work)];
    let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts)).unwrap();
    let me = verifier().public();
    let Answer::RoundPaid { pays: paid, .. } = &answer else { panic!("{answer:?}") };
    let payees: Vec<PublicKey> = paid.iter().map(|(payee, ..)| *payee).collect();
    assert_eq!(payees, [key(1).public(), key(2).public(), me, me]);
    let shares: Vec<i64> = paid.iter().map(|(.., amount)| amount.micro()).collect();
    assert!(shares.iter().all(|share| *share == shares[0]), "{shares:?}");
    let error = LedgerError::WorkPaid { task: task(1), worker: me, run: run(), round: Round(0) };
    refused(&mut ledger, &mut store, &pay_round(1, vec![again(1, 1, clean)]), error);
}

#[test]
fn only_verdicts_signed_by_a_trusted_verifier_count() {
    let (mut ledger, mut store) = fresh();
    let outcome = Outcome::Accepted { layer: Layer::Statistics, tokens: 5, norm: 1.0 };
    let verdict = Verdict {
        task: task(1),
        worker: key(1).public(),
        payload: Digest::of(b""),
        work: 0,
        by: None,
        turn: 0,
        outcome,
    };
    let by = |keypair: &Keypair| Signed::seal(keypair, &verdict);
    let good = accepted(2, 2, 5);
    let unknown = LedgerError::VerifierUnknown { index: 1, signer: key(1).public() };
    refused(&mut ledger, &mut store, &pay_round(0, vec![good.clone(), by(&key(1))]), unknown);
    let other_kind = Signed::seal(&verifier(), &WorkerRequest::GiveBack(task(1)));
    let mut altered = serde_json::to_value(by(&verifier())).unwrap();
    altered["signer"] = serde_json::to_value(key(1).public()).unwrap();
    let stolen: Signed = serde_json::from_value(altered).unwrap();
    for bad in [other_kind, stolen] {
        let error = LedgerError::Verdict { index: 1, error: EnvelopeError::Signature };
        refused(&mut ledger, &mut store, &pay_round(0, vec![good.clone(), bad]), error);
    }
    assert_eq!(pays(&ask(&mut ledger, &mut store, &pay_round(0, vec![good, by(&verifier())])).unwrap()).len(), 2);
}

#[test]
fn work_is_paid_once() {
    let (mut ledger, mut store) = fresh();
    for twice in [accepted(1, 2, 10), accepted(1, 1, 10), accepted(1, 1, 20)] {
        let error = LedgerError::TaskTwice { task: task(1) };
        refused(&mut ledger, &mut store, &pay_round(0, vec![accepted(1, 1, 10), twice]), error);
    }
    // A worker failed, another did it.
    let request = pay_round(0, vec![rejected(1, 2), accepted(1, 1, 10)]);
    assert_eq!(pays(&ask(&mut ledger, &mut store, &request).unwrap()), [(key(1).public(), task(1), 1_000)]);
    let paid = LedgerError::WorkPaid { task: task(1), worker: key(1).public(), run: run(), round: Round(0) };
    refused(&mut ledger, &mut store, &pay_round(1, vec![accepted(2, 1, 10), accepted(1, 1, 10)]), paid.clone());
    let mut reopened = Ledger::open(config(), &mut store).unwrap();
    refused(&mut reopened, &mut store, &pay_round(1, vec![accepted(1, 1, 10)]), paid);
    // Somebody else's late result for the same task is other work.
    let late = pay_round(1, vec![accepted(1, 3, 10)]);
    assert_eq!(pays(&ask(&mut ledger, &mut store, &late).unwrap()), [(key(3).public(), task(1), 1_000)]);
}

/// The verifier's verdict, found by doing task `n` again, on what somebody had done.
fn replayed(n: u32) -> Signed {
    let outcome = Outcome::Accepted { layer: Layer::Replay, tokens: 7, norm: 1.0 };
    let payload = Digest::of(b"payload");
    let verdict = Verdict { task: task(n), worker: key(1).public(), payload, work: 7, by: None, turn: 0, outcome };
    Signed::seal(&verifier(), &verdict)
}

#[test]
fn a_largest_round_with_what_came_late_and_what_was_computed_again_is_one_chain() {
    let (mut ledger, mut store) = generous();
    let (results, replays) = (limits::RESULTS_PER_ROUND_MAX, limits::REPLAYS_PAID_MAX);
    let most = results + replays;
    // One worker and one verifier do all of it, so that every pay lets an older one vest.
    let mut pay = |ledger: &mut Ledger, round: u32, results: usize| {
        let first = round * 100_000;
        let own = (first..).take(results).map(|n| accepted(n, 1, if n % 2 == 0 { 8 } else { 4 }));
        let verdicts = own.chain((first..).take(replays).map(replayed)).collect();
        let before = ledger.journal().length();
        let answer = ask(ledger, &mut store, &pay_round(round, verdicts)).unwrap();
        assert_eq!(pays(&answer).len(), results + replays);
        ledger.journal().length() - before
    };
    let unvested = |ledger: &Ledger| ledger.standing(key(1).public()).unvested as usize;
    assert_eq!(pay(&mut ledger, 0, results), most as u64, "rewards of one round let none of them vest");
    assert_eq!(unvested(&ledger), results);
    // As many as nobody can have: what does not fit vests later.
    let more = limits::CHAIN_TRANSFERS_MAX - 2 * most + 9;
    assert_eq!(pay(&mut ledger, 1, results + more), limits::CHAIN_TRANSFERS_MAX as u64);
    assert_eq!(unvested(&ledger) + ledger.standing(verifier().public()).unvested as usize, most + more + 9);
    pay(&mut ledger, 2, 40);
    assert_eq!(unvested(&ledger), 40);
}

#[test]
fn a_reward_vests_for_those_of_later_rounds_only() {
    let (mut ledger, mut store) = generous();
    let mut n = 0;
    let mut unvested_after = |round: u32, rewards: u32| {
        let verdicts = (n..n + rewards).map(|n| accepted(n, 1, 5)).collect();
        n += rewards;
        ask(&mut ledger, &mut store, &pay_round(round, verdicts)).unwrap();
        ledger.standing(key(1).public()).unvested
    };
    assert_eq!(unvested_after(0, 100), 100, "a round's worth of results vests nothing by itself");
    assert_eq!(unvested_after(1, 31), 131);
    assert_eq!(unvested_after(2, 1), 32, "with the thirty-second all of them");
    assert_eq!(unvested_after(3, 31), 32, "and then those after it");
}

#[test]
fn a_journal_that_the_book_does_not_allow_is_refused_with_the_number() {
    let good = transfer(1, Account::Emission, wallet(0), 100);
    let bad = [
        (transfer(2, wallet(0), wallet(1), 101), "takes 0.000101 HYD"),
        (transfer(2, Account::Emission, wallet(1), 2_401), "the cap is"),
        (transfer(1, Account::Emission, wallet(1), 1), "another content"),
        (good, "done before"),
    ];
    for (bad, says) in bad {
        let mut journal = Journal::default();
        let mut store = MemoryJournal::default();
        let mut batch =
            Batch { entries: vec![journal.append(NOW, good), journal.append(NOW, bad)], ..Batch::default() };
        batch.seal(&ledger_key());
        store.append(&batch).unwrap();
        match Ledger::open(config(), &mut store) {
            Err(StoreError::Damaged { sequence: 2, problem }) => assert!(problem.contains(says), "{problem}"),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn paying_rounds_any_number_of_times_with_restarts_in_between_has_one_effect(
        rounds in rounds(), again in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 12),
    ) {
        let (mut ledger, mut store) = fresh();
        let mut answers = Vec::new();
        for (n, round) in rounds.iter().enumerate() {
            let answer = ask(&mut ledger, &mut store, &request_for(round)).unwrap();
            prop_assert_eq!(pays(&answer).iter().any(|(_, _, amount)| *amount == 0), false);
            answers.push(answer);
            let (index, restart) = &again[n];
            if *restart {
                let reopened = Ledger::open(config(), &mut store).unwrap();
                prop_assert_eq!(format!("{reopened:?}"), format!("{ledger:?}"));
                ledger = reopened;
            }
            let earlier = index.index(answers.len());
            let before = format!("{ledger:?}");
            let repeated = ask(&mut ledger, &mut store, &request_for(&rounds[earlier])).unwrap();
            prop_assert_eq!(format!("{ledger:?}"), before);
            if !pays(&answers[earlier]).is_empty() {
                prop_assert_eq!(&repeated, &answers[earlier]);
            }
        }
        let (wallets, emitted) = expected_balances(&rounds);
        for (n, expected) in (0..).zip(wallets) {
            let posts = ledger.book().posts(wallet(n));
            prop_assert_eq!(posts.credits + posts.credits_pending, i128::from(expected));
        }
        prop_assert_eq!(ledger.book().emitted(), Balance(emitted.into()));
        prop_assert!(emitted <= 2_500);
        let paid: i64 = answers.iter().flat_map(pays).map(|(_, _, amount)| amount).sum();
        prop_assert_eq!(paid, emitted);
    }
}

#[test]
fn orders_and_holds_that_cannot_be_are_refused_with_their_reasons() {
    let (mut ledger, mut store) = rich();
    let (a, b) = (key(0).public(), key(1).public());
    let now = NOW.0;
    let send = |amount| Action::Send { to: b, amount: micro(amount) };
    let code = |result: Result<Answer, LedgerError>| result.unwrap_err().code();
    let mut case = |request: Request, expected: &str| {
        let before = accounts(&ledger);
        assert_eq!(code(ask(&mut ledger, &mut store, &request)), expected, "{request:?}");
        assert_eq!(accounts(&ledger), before);
    };
    case(order(0, 1, send(0)), "zero_amount");
    case(order(0, 2, send(i64::MAX)), "insufficient_funds");
    case(order(0, 3, Action::Send { to: a, amount: micro(1) }), "same_account");
    case(order(7, 4, send(1)), "insufficient_funds");
    case(order_until(0, 5, send(1), Time(now - 1)), "order_lapsed");
    case(order_until(0, 6, send(1), Time(now + 24 * 3_600_000 + 1)), "order_too_far");
    case(order(0, 7, Action::Unstake { amount: micro(1) }), "insufficient_funds");
    case(order(0, 8, Action::Accept { offer: TransferId::request(NOW, 99) }), "offer_unknown");
    let own = Order { id: TransferId::nth(NOW, 1), valid_until: Time(now + 1), action: send(1) };
    case(Request::Order(CheckedOrder::check(&Signed::seal(&key(0), &own)).unwrap()), "id_kind");
    let offer =
        |expires| Action::Offer { amount: micro(1), taker: None, terms: Digest::of(b""), expires: Time(expires) };
    case(order(0, 9, offer(now)), "expired");
    case(order(0, 10, offer(now + 91 * 24 * 3_600_000)), "order_too_far");
    let hold = |n, wallet, amount, expires| Request::Hold {
        id: TransferId::request(NOW, n),
        wallet,
        amount: micro(amount),
        expires: Time(expires),
    };
    case(hold(11, a, i64::MAX, now + 1), "insufficient_funds");
    case(hold(12, a, 1, now), "expired");
    case(hold(13, a, 1, now + 3_600_001), "order_too_far");
    let settle = |n, cost, contributors| Request::Settle {
        query: TransferId::request(NOW, n),
        wallet: a,
        cost: micro(cost),
        contributors,
    };
    case(settle(14, 1, vec![]), "not_pending");
    case(settle(14, 0, vec![]), "zero_amount");
    case(settle(14, 1, vec![(a, 1); limits::CONTRIBUTORS_MAX + 1]), "too_many_contributors");
    case(Request::Forfeit { verdict: accepted(1, 1, 5) }, "no_finding");
    let stranger = Verdict {
        task: task(1),
        worker: a,
        payload: Digest::of(b""),
        work: 0,
        by: None,
        turn: 0,
        outcome: Outcome::Rejected { layer: Layer::Replay, reason: crate::protocol::Reason::NoProgress },
    };
    case(Request::Forfeit { verdict: Signed::seal(&key(3), &stranger) }, "verifier_unknown");
    let shallow = Outcome::Rejected { layer: Layer::Statistics, reason: crate::protocol::Reason::NoProgress };
    case(Request::Forfeit { verdict: verdict(1, 1, shallow) }, "no_finding");
    // A replayed order is the order; another body under its id is not.
    assert!(ask(&mut ledger, &mut store, &order(0, 20, send(1))).is_ok());
    let before = accounts(&ledger);
    assert!(ask(&mut ledger, &mut store, &order(0, 20, send(1))).is_ok());
    assert_eq!(code(ask(&mut ledger, &mut store, &order(0, 20, send(2)))), "id_reused");
    assert_eq!(code(ask(&mut ledger, &mut store, &order(1, 20, send(1)))), "id_reused");
    assert_eq!(accounts(&ledger), before);
}

#[test]
fn an_order_is_nobodys_but_its_signers() {
    let signed = Signed::seal(
        &key(0),
        &Order {
            id: TransferId::request(NOW, 1),
            valid_until: NOW,
            action: Action::Send { to: key(1).public(), amount: micro(1) },
        },
    );
    let mut altered = serde_json::to_value(&signed).unwrap();
    altered["signer"] = serde_json::to_value(key(1).public()).unwrap();
    let stolen: Signed = serde_json::from_value(altered).unwrap();
    assert_eq!(CheckedOrder::check(&stolen), Err(EnvelopeError::Signature));
    let mut altered = serde_json::to_value(&signed).unwrap();
    let mut body = BASE64URL_NOPAD.decode(altered["body"].as_str().unwrap().as_bytes()).unwrap();
    *body.last_mut().unwrap() = 4;
    altered["body"] = BASE64URL_NOPAD.encode(&body).into();
    let raised: Signed = serde_json::from_value(altered).unwrap();
    assert_eq!(CheckedOrder::check(&raised), Err(EnvelopeError::Signature));
    let other_kind = Signed::seal(&key(0), &WorkerRequest::GiveBack(task(1)));
    assert_eq!(CheckedOrder::check(&other_kind), Err(EnvelopeError::Signature));
}

#[test]
fn what_was_refused_stays_refused_across_restarts_until_it_lapses() {
    let (mut ledger, mut store) = rich();
    let (poor, to) = (2, key(0).public());
    let send = |who, n, amount| order(who, n, Action::Send { to, amount: micro(amount) });
    ask(&mut ledger, &mut store, &order(0, 1, Action::Send { to: key(poor).public(), amount: micro(10) })).unwrap();
    let too_much = send(poor, 2, 50);
    let refused = ask(&mut ledger, &mut store, &too_much).unwrap_err();
    ask(&mut ledger, &mut store, &order(0, 3, Action::Send { to: key(poor).public(), amount: micro(90) })).unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&mut ledger, &mut store, &too_much), Err(refused.clone()), "it would be covered now");
        ledger = Ledger::open(rich_config(), &mut store).unwrap();
    }
    assert_eq!(ask(&mut ledger, &mut store, &send(poor, 2, 51)).unwrap_err().code(), "id_reused");
    assert_eq!(ledger.book().available(wallet(poor)), Balance(100));
    // Whoever never held anything is not remembered: there would be no end of such keys.
    let stranger = send(5, 4, 1);
    assert!(ask(&mut ledger, &mut store, &stranger).is_err());
    ask(&mut ledger, &mut store, &order(0, 5, Action::Send { to: key(5).public(), amount: micro(1) })).unwrap();
    assert!(ask(&mut ledger, &mut store, &stranger).is_ok());
}

#[test]
fn a_wallet_that_is_refused_too_often_must_sign_for_longer_and_nothing_forgotten_comes_back() {
    let (mut ledger, mut store) = rich();
    let until = |n| Time(NOW.0 + 1_000 + n);
    let send = |n, amount| order_until(0, n, Action::Send { to: key(1).public(), amount: micro(amount) }, until(n));
    let most = limits::REFUSALS_PER_WALLET as u64;
    for n in 1..=most + 2 {
        let error = ask(&mut ledger, &mut store, &send(n, i64::MAX)).unwrap_err();
        assert_eq!(error.code(), "insufficient_funds");
    }
    assert_eq!(store.kept().unwrap().refusals.len() as u64, most);
    for reopened in [false, true] {
        for n in [1, 2, 3] {
            let expected = if n < 3 { "order_stale" } else { "insufficient_funds" };
            assert_eq!(ask(&mut ledger, &mut store, &send(n, i64::MAX)).unwrap_err().code(), expected);
        }
        let stale = order_until(0, 500, Action::Send { to: key(1).public(), amount: micro(1) }, until(3));
        assert_eq!(ask(&mut ledger, &mut store, &stale).unwrap_err().code(), "order_stale");
        if !reopened {
            ledger = Ledger::open(rich_config(), &mut store).unwrap();
        }
    }
    assert!(ask(&mut ledger, &mut store, &send(501, 1)).is_ok(), "valid for longer");
    // Somebody else is not concerned.
    let other = order_until(1, 502, Action::Send { to: key(0).public(), amount: micro(1) }, until(1));
    assert!(ask(&mut ledger, &mut store, &other).is_ok());
}

#[test]
fn time_that_goes_back_stands_still() {
    let (mut ledger, mut store) = rich();
    let send = |n| order(0, n, Action::Send { to: key(1).public(), amount: micro(1) });
    ask_at(Time(NOW.0 + 500), &mut ledger, &mut store, &send(1)).unwrap();
    ask_at(Time(3), &mut ledger, &mut store, &send(2)).unwrap();
    let times: Vec<u64> = store.copy().iter().rev().take(2).map(|entry| entry.at.0).collect();
    assert_eq!(times, [NOW.0 + 500, NOW.0 + 500]);
}

#[test]
fn an_offer_is_held_until_it_is_let_go_given_back_or_over() {
    let (mut ledger, mut store) = rich();
    let (maker, taker, other) = (0, 1, 2);
    let mut n = 0;
    let offer = |ledger: &mut Ledger, store: &mut MemoryJournal, n: u64, to: Option<u8>| {
        let expires = Time(NOW.0 + 10_000);
        let taker = to.map(|to| key(to).public());
        let action = Action::Offer { amount: micro(100), taker, terms: Digest::of(b"a bicycle"), expires };
        let Ok(Answer::Done { id, .. }) = ask(ledger, store, &order(maker, n, action)) else { panic!() };
        id
    };
    let start = ledger.book().available(wallet(maker));
    let mut make = |ledger: &mut Ledger, store: &mut MemoryJournal, to| {
        n += 100;
        (offer(ledger, store, n, to), n)
    };
    let left = Balance(start.0 - 100);

    // Made, accepted, released.
    let (id, n) = make(&mut ledger, &mut store, Some(taker));
    assert_eq!((ledger.book().available(wallet(maker)), ledger.book().balance(wallet(maker))), (left, start));
    let mut act = |ledger: &mut Ledger, who, n, action| {
        ask(ledger, &mut store, &order(who, n, action)).map_err(|error| error.code())
    };
    let (accept, release, cancel) =
        (Action::Accept { offer: id }, Action::Release { offer: id }, Action::Cancel { offer: id });
    assert_eq!(act(&mut ledger, other, n + 1, accept), Err("offer_closed"), "it is for somebody else");
    assert_eq!(act(&mut ledger, maker, n + 2, accept), Err("offer_closed"), "it is his own");
    assert_eq!(act(&mut ledger, maker, n + 3, release), Err("offer_not_yours"), "nobody has accepted it");
    assert_eq!(act(&mut ledger, taker, n + 4, cancel), Err("offer_not_yours"));
    act(&mut ledger, taker, n + 5, accept).unwrap();
    assert_eq!(ledger.book().available(wallet(maker)), left, "held without a gap");
    assert_eq!(act(&mut ledger, taker, n + 6, accept), Err("offer_closed"));
    assert_eq!(act(&mut ledger, maker, n + 7, cancel), Err("offer_not_yours"), "the maker is bound");
    assert_eq!(act(&mut ledger, taker, n + 8, release), Err("offer_not_yours"));
    let before = ledger.book().available(wallet(taker));
    act(&mut ledger, maker, n + 9, release).unwrap();
    assert_eq!(ledger.book().available(wallet(taker)), Balance(before.0 + 100));
    assert_eq!(act(&mut ledger, maker, n + 10, release), Err("offer_unknown"));

    // Given back by whoever accepted it.
    let (id, n) = make(&mut ledger, &mut store, None);
    let own = ask(&mut ledger, &mut store, &order(maker, n + 3, Action::Accept { offer: id })).unwrap_err();
    assert_eq!(own.code(), "offer_closed", "open to anybody else");
    let mut act = |ledger: &mut Ledger, who, n, action| ask(ledger, &mut store, &order(who, n, action)).unwrap();
    act(&mut ledger, other, n + 1, Action::Accept { offer: id });
    act(&mut ledger, other, n + 2, Action::Cancel { offer: id });
    assert_eq!(ledger.book().available(wallet(maker)), left);

    // Over: not before its time, accepted or not; after a restart as well.
    let (open, _) = make(&mut ledger, &mut store, None);
    let (accepted, n) = make(&mut ledger, &mut store, None);
    ask(&mut ledger, &mut store, &order(other, n + 1, Action::Accept { offer: accepted })).unwrap();
    let mut listed = |after, most| match ask(&mut ledger, &mut store, &Request::Offers { after, most }) {
        Ok(Answer::Offers(offers)) => offers.into_iter().map(|(id, _)| id).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(listed(TransferId::new(0), 10), [open, accepted]);
    assert_eq!((listed(TransferId::new(0), 1), listed(open, 1)), (vec![open], vec![accepted]));
    ledger = Ledger::open(rich_config(), &mut store).unwrap();
    assert_eq!(ledger.next_due(), Some(Time(NOW.0 + 10_000)));
    let tick = |ledger: &mut Ledger, store: &mut MemoryJournal, at| {
        ask_at(Time(NOW.0 + at), ledger, store, &Request::Tick).unwrap()
    };
    assert_eq!(tick(&mut ledger, &mut store, 9_999), Answer::Ticked(0));
    assert_eq!(tick(&mut ledger, &mut store, 10_000), Answer::Ticked(2));
    assert_eq!(ledger.book().available(wallet(maker)), left);
    assert_eq!((ledger.next_due(), ledger.book().holds()), (None, rich_holds()));
}

#[test]
fn false_work_costs_unvested_pay_and_the_whole_stake_also_what_is_on_its_way_out() {
    let (mut ledger, mut store) = rich();
    let worker = key(0).public();
    ask(&mut ledger, &mut store, &order(0, 1, Action::Stake { amount: micro(300) })).unwrap();
    ask(&mut ledger, &mut store, &order(0, 2, Action::Unstake { amount: micro(100) })).unwrap();
    let standing = ledger.standing(worker);
    assert_eq!(
        (standing.unvested, standing.stake.balance(), standing.stake.available()),
        (1, Balance(300), Balance(200))
    );
    let unvested = standing.wallet.credits_pending - 100;
    let (kept, emitted) = (standing.wallet.balance(), ledger.book().emitted());
    let request = Request::Forfeit { verdict: rejected(300, 0) };
    let answer = ask(&mut ledger, &mut store, &request).unwrap();
    let Answer::Forfeited(Forfeited { unvested: voided, stake, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!((i128::from(voided.micro()), stake), (unvested, micro(300)));
    let standing = ledger.standing(worker);
    assert_eq!((standing.unvested, standing.clean, standing.stake.balance()), (0, 0, Balance(0)));
    assert_eq!(standing.wallet.balance(), kept, "what has vested stays");
    assert_eq!(ledger.book().balance(Account::Burn), Balance(300));
    assert_eq!(ledger.book().emitted(), Balance(emitted.0 - unvested), "forfeited pay was never emitted");
    assert_eq!(ledger.next_due(), None);
    // The same finding again, also from another verifier or after a restart, and the same work handed in for pay.
    let mut reopened = Ledger::open(rich_config(), &mut store).unwrap();
    assert_eq!(ask(&mut reopened, &mut store, &request), Ok(answer));
    let answer =
        ask(&mut reopened, &mut store, &pay_round(99, vec![accepted(300, 0, 10), accepted(301, 1, 10)])).unwrap();
    assert_eq!(pays(&answer).len(), 1, "false work earns nothing");
}

#[test]
fn a_stake_is_back_after_its_delay_and_not_before() {
    let (mut ledger, mut store) = rich();
    ask(&mut ledger, &mut store, &order(0, 1, Action::Stake { amount: micro(50) })).unwrap();
    let before = ledger.book().available(wallet(0));
    for n in 0..limits::UNSTAKING_MAX as u64 {
        ask(&mut ledger, &mut store, &order(0, 10 + n, Action::Unstake { amount: micro(2) })).unwrap();
    }
    let one_more = ask(&mut ledger, &mut store, &order(0, 40, Action::Unstake { amount: micro(2) }));
    assert_eq!(one_more.unwrap_err().code(), "unstaking_limit");
    let due = ledger.next_due().unwrap();
    assert_eq!(due, Time(NOW.0 + 3_600_000) + rich_config().economy.config().unstake_delay);
    assert_eq!(ask_at(Time(due.0 - 1), &mut ledger, &mut store, &Request::Tick), Ok(Answer::Ticked(0)));
    ask_at(due, &mut ledger, &mut store, &Request::Tick).unwrap();
    assert_eq!(ledger.book().available(wallet(0)), Balance(before.0 + 32));
    assert_eq!(ledger.book().balance(super::super::testing::stake(0)), Balance(18));
}

#[test]
fn a_query_pays_at_most_what_was_held_and_its_parts_reach_everybody() {
    let (mut ledger, mut store) = rich();
    let (payer, query) = (key(0).public(), TransferId::request(NOW, 1));
    let hold = Request::Hold { id: query, wallet: payer, amount: micro(200), expires: Time(NOW.0 + 1_000) };
    let start = ledger.book().available(wallet(0));
    ask(&mut ledger, &mut store, &hold).unwrap();
    ask(&mut ledger, &mut store, &hold).unwrap();
    assert_eq!(ledger.book().available(wallet(0)), Balance(start.0 - 200));
    let settle = |cost| Request::Settle {
        query,
        wallet: payer,
        cost: micro(cost),
        contributors: vec![(key(2).public(), 2), (key(3).public(), 1), (key(4).public(), 0)],
    };
    assert_eq!(ask(&mut ledger, &mut store, &settle(201)).unwrap_err().code(), "pending_exceeded");
    let done = ask(&mut ledger, &mut store, &settle(101)).unwrap();
    assert_eq!(ask(&mut ledger, &mut store, &settle(101)), Ok(done));
    assert_eq!(ask(&mut ledger, &mut store, &settle(100)).unwrap_err().code(), "id_reused");
    let balance = |account| ledger.book().balance(account).0;
    // 101: 80.8, 15.15 and 5.05 are 81, 15 and 5; 81 in 2 : 1 is 54 and 27.
    assert_eq!([balance(wallet(2)), balance(wallet(3)), balance(wallet(4))], [54, 27, 0]);
    assert_eq!([balance(Account::Treasury), balance(Account::Burn), balance(Account::Escrow)], [15, 5, 0]);
    assert_eq!(ledger.book().available(wallet(0)), Balance(start.0 - 101));
}

fn rich_config() -> LedgerConfig {
    let mut economy = super::super::testing::vests_soon();
    economy.emission =
        crate::protocol::Emission { initial: micro(1_000), halving_rounds: 1_000, cap: micro(1_000_000) };
    super::super::testing::emitting(economy)
}

/// A ledger in which the first two keys have earned something: two rounds' worth, of which one has vested.
fn rich() -> (Ledger, MemoryJournal) {
    let mut store = MemoryJournal::default();
    let mut ledger = Ledger::open(rich_config(), &mut store).unwrap();
    for round in 0..2 {
        let verdicts = vec![accepted(round * 10, 0, 1), accepted(round * 10 + 1, 1, 1)];
        ask(&mut ledger, &mut store, &pay_round(round, verdicts)).unwrap();
    }
    assert_eq!(ledger.book().available(wallet(0)), Balance(500));
    (ledger, store)
}

/// Unvested pays in it.
fn rich_holds() -> usize {
    2
}

fn accounts(ledger: &Ledger) -> Vec<(Account, super::super::Posts)> {
    ledger.book().accounts().collect()
}
