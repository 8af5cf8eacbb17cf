use proptest::prelude::*;

use super::super::testing::{ends, expire, history, key, micro, pending, post, stake, transfer, void, wallet};
use super::*;
use crate::protocol::{Digest, Round, RunId, TaskId};

const T: Time = Time(100);

/// A book with a cap of 1 000 µHYD, 100 of them in the first wallet.
fn funded() -> Book {
    let mut book = Book::new(micro(1_000));
    book.post(T, &[transfer(1, Account::Emission, wallet(0), 100)]).unwrap();
    book
}

/// That `book` refuses `chain` for this reason and is left as it was.
#[track_caller]
fn refused(book: &mut Book, chain: &[Transfer], error: BookError) {
    let before = format!("{book:?}");
    assert_eq!(book.post(T, chain), Err(error));
    assert_eq!(format!("{book:?}"), before);
}

#[test]
fn every_refusal_has_its_reason_and_changes_nothing() {
    let book = &mut funded();
    let id = TransferId::new(9);
    let (emission, a, b) = (Account::Emission, wallet(0), wallet(1));
    refused(book, &[], BookError::ChainEmpty);
    refused(book, &[transfer(9, a, b, 0)], BookError::Zero { id });
    refused(book, &[pending(9, a, b, 0, None)], BookError::Zero { id });
    refused(book, &[transfer(9, a, a, 1)], BookError::SameAccount { id, account: a });
    refused(book, &[transfer(9, a, emission, 1)], BookError::OneWay { id, account: emission });
    refused(book, &[pending(9, a, emission, 1, None)], BookError::OneWay { id, account: emission });
    let burned = [transfer(8, a, Account::Burn, 1), transfer(9, Account::Burn, a, 1)];
    refused(book, &burned, BookError::OneWay { id, account: Account::Burn });
    let insufficient = |account, available, amount| BookError::Insufficient {
        id,
        account,
        available: Balance(available),
        amount: micro(amount),
    };
    refused(book, &[transfer(9, a, b, 101)], insufficient(a, 100, 101));
    refused(book, &[pending(9, a, b, 101, None)], insufficient(a, 100, 101));
    refused(book, &[transfer(9, b, a, 1)], insufficient(b, 0, 1));
    refused(book, &[transfer(8, a, b, 60), transfer(9, a, b, 41)], insufficient(a, 40, 41));
    refused(book, &[pending(8, a, b, 60, None), transfer(9, a, b, 41)], insufficient(a, 40, 41));
    refused(book, &[pending(8, a, b, 60, None), transfer(9, b, a, 1)], insufficient(b, 0, 1));
    let cap = |emitted| BookError::Cap { id, emitted: Balance(emitted), cap: micro(1_000) };
    refused(book, &[transfer(9, emission, a, 901)], cap(1_001));
    refused(book, &[pending(8, emission, a, 900, None), transfer(9, emission, a, 1)], cap(1_001));
    refused(book, &[transfer(9, emission, a, i64::MAX)], cap(100 + i128::from(i64::MAX)));
    refused(book, &[transfer(9, a, b, 1), transfer(9, a, b, 1)], BookError::ChainRepeats { id });
    refused(book, &[transfer(1, emission, a, 99)], BookError::IdReused { id: TransferId::new(1) });
    refused(book, &[transfer(1, emission, b, 100)], BookError::IdReused { id: TransferId::new(1) });
    refused(book, &[pending(1, emission, a, 100, None)], BookError::IdReused { id: TransferId::new(1) });
    let posted = transfer(1, emission, a, 100);
    refused(book, &[posted, transfer(9, a, b, 1)], BookError::ChainPartlyPosted { id: posted.id });
    let long: Vec<Transfer> = (0..=limits::CHAIN_TRANSFERS_MAX).map(|n| transfer(9 + n as u128, a, b, 1)).collect();
    refused(book, &long, BookError::ChainTooLong { transfers: long.len() });
    let early = BookError::TimeBackwards { at: Time(99), last: T };
    assert_eq!(book.post(Time(99), &[transfer(9, a, b, 1)]), Err(early));
}

#[test]
fn what_ends_a_hold_must_match_it_and_come_in_time() {
    let book = &mut funded();
    let (id, a, b) = (TransferId::new(9), wallet(0), wallet(1));
    let hold = pending(2, a, b, 50, Some(200));
    book.post(T, &[hold]).unwrap();
    let of = hold.id;
    refused(book, &[pending(9, a, b, 1, Some(100))], BookError::Expired { id, pending: id });
    refused(
        book,
        &[ends(9, post, &hold, Some(51))],
        BookError::PendingExceeded { id, held: micro(50), amount: micro(51) },
    );
    refused(book, &[ends(9, void, &hold, Some(49))], BookError::PendingDiffers { id, pending: of });
    refused(
        book,
        &[Transfer { credit: wallet(2), ..ends(9, post, &hold, None) }],
        BookError::PendingDiffers { id, pending: of },
    );
    refused(
        book,
        &[Transfer { debit: wallet(2), ..ends(9, void, &hold, None) }],
        BookError::PendingDiffers { id, pending: of },
    );
    refused(book, &[ends(9, expire, &hold, None)], BookError::NotExpired { id, pending: of });
    let single = transfer(1, Account::Emission, a, 100);
    refused(book, &[ends(9, post, &single, None)], BookError::NotPending { id, pending: single.id });
    let unknown = pending(7, a, b, 50, None);
    refused(book, &[ends(9, void, &unknown, None)], BookError::NotPending { id, pending: unknown.id });

    let mut later = book.clone();
    assert_eq!(
        later.decide(Time(200), &[ends(9, post, &hold, None)]).unwrap_err(),
        BookError::Expired { id, pending: of }
    );
    assert_eq!(
        later.decide(Time(200), &[ends(9, void, &hold, None)]).unwrap_err(),
        BookError::Expired { id, pending: of }
    );
    assert!(later.decide(Time(199), &[ends(9, post, &hold, None)]).is_ok());
    later.post(Time(200), &[ends(9, expire, &hold, None)]).unwrap();
    assert_eq!((later.available(a), later.holds()), (Balance(100), 0));
    assert_eq!(
        later.post(Time(200), &[ends(10, expire, &hold, None)]),
        Err(BookError::NotPending { id: TransferId::new(10), pending: of })
    );

    book.post(T, &[ends(8, post, &hold, Some(20))]).unwrap();
    assert_eq!((book.available(a), book.balance(b), book.holds()), (Balance(80), Balance(20), 0));
    for kind in [post, void, expire] {
        refused(book, &[ends(9, kind, &hold, None)], BookError::NotPending { id, pending: of });
    }
}

#[test]
fn a_chain_may_end_what_it_holds_and_hold_it_anew() {
    let mut book = funded();
    let (first, second) = (pending(2, wallet(0), wallet(1), 100, None), pending(4, wallet(0), wallet(2), 100, None));
    book.post(T, &[first, ends(3, void, &first, None), second, ends(5, post, &second, Some(99))]).unwrap();
    assert_eq!((book.available(wallet(0)), book.balance(wallet(2)), book.holds()), (Balance(1), Balance(99), 0));
    book.assert_invariants();
}

#[test]
fn the_whole_content_is_under_the_id() {
    let mut book = funded();
    let digest = Digest::of;
    let pay = |verdict: &[u8]| Transfer {
        purpose: Purpose::Pay {
            run: RunId(digest(b"run")),
            round: Round(0),
            task: TaskId(digest(b"task")),
            verdict: digest(verdict),
            verdicts: digest(b"all"),
        },
        ..transfer(2, Account::Emission, wallet(0), 5)
    };
    book.post(T, &[pay(b"one")]).unwrap();
    refused(&mut book, &[pay(b"other")], BookError::IdReused { id: TransferId::new(2) });
}

#[test]
fn only_a_slash_may_move_nothing() {
    let mut book = funded();
    let purpose = Purpose::Slash { verdict: Digest::of(b"v"), finding: Digest::of(b"f") };
    let slash = Transfer { purpose, ..transfer(2, stake(0), Account::Burn, 0) };
    book.post(T, &[slash]).unwrap();
    let held = Transfer { purpose, ..pending(3, stake(0), Account::Burn, 0, None) };
    refused(&mut book, &[held], BookError::Zero { id: TransferId::new(3) });
}

#[test]
fn sums_that_do_not_fit_are_refused() {
    let mut book = funded();
    let id = TransferId::new(9);
    let full = Posts { debits: i128::MAX - 10, credits: i128::MAX - 5, ..Posts::default() };
    book.accounts.insert(wallet(1), full);
    refused(&mut book, &[transfer(9, wallet(0), wallet(1), 6)], BookError::Overflow { id, account: wallet(1) });
    book.accounts.insert(wallet(1), Posts { debits: i128::MAX, credits: i128::MAX, ..Posts::default() });
    let error = BookError::Insufficient { id, account: wallet(1), available: Balance(0), amount: micro(1) };
    refused(&mut book, &[transfer(9, wallet(1), wallet(0), 1)], error);
}

#[test]
fn a_chain_may_spend_what_it_brings_and_the_last_token_may_go() {
    let mut book = funded();
    book.post(
        T,
        &[
            transfer(2, Account::Emission, wallet(1), 900),
            transfer(3, wallet(1), wallet(2), 900),
            transfer(4, wallet(2), Account::Burn, 900),
            transfer(5, wallet(0), Account::Stake(key(0).public()), 100),
        ],
    )
    .unwrap();
    book.assert_invariants();
    assert_eq!(book.balance(wallet(0)), Balance(0));
    let totals = book.totals();
    assert_eq!((totals.emitted, totals.burned, totals.supply), (Balance(1_000), Balance(900), Balance(100)));
    assert_eq!((totals.debits, totals.credits), (Balance(2_900), Balance(2_900)));
}

#[test]
#[should_panic(expected = "applied to the book that made it")]
fn a_decision_that_the_book_has_moved_past_is_not_applied() {
    let mut book = funded();
    let decision = book.decide(T, &[transfer(2, wallet(0), wallet(1), 100)]).unwrap();
    book.post(T, &[transfer(3, wallet(0), wallet(2), 100)]).unwrap();
    book.apply(decision);
}

/// What a book must do, written down a second time and as simply as possible: what was done by id, and balances by name.
#[derive(Debug, Clone, Default)]
struct Model {
    /// (posted, held of it, held for it)
    accounts: BTreeMap<String, (i128, i128, i128)>,
    /// What was done, and of holds what is left of them.
    done: BTreeMap<TransferId, (Transfer, i128)>,
}

impl Model {
    /// Whether the chain is done (again), and the state after it.
    fn post(&mut self, at: Time, chain: &[Transfer], cap: i128) -> bool {
        let again = chain.iter().filter(|t| self.done.get(&t.id).is_some_and(|(done, _)| done == *t)).count();
        if !chain.is_empty() && again == chain.len() {
            let ids: BTreeSet<TransferId> = chain.iter().map(|t| t.id).collect();
            return ids.len() == chain.len();
        }
        let mut next = self.clone();
        let good = !chain.is_empty() && chain.iter().all(|t| next.post_one(at, t, cap));
        if good {
            *self = next;
        }
        good
    }

    fn post_one(&mut self, at: Time, t: &Transfer, cap: i128) -> bool {
        let amount = i128::from(t.amount.micro());
        let [debit, credit] = [t.debit.to_string(), t.credit.to_string()];
        if amount == 0 || debit == credit || debit == "burn" || credit == "emission" || self.done.contains_key(&t.id) {
            return false;
        }
        let (mut moves, mut holds, mut left) = (0, 0, 0);
        match t.kind {
            Kind::Single => moves = amount,
            Kind::Pending { expires } => {
                if expires.is_some_and(|expires| expires <= at) {
                    return false;
                }
                (holds, left) = (amount, amount);
            }
            Kind::Post { pending } | Kind::Void { pending } | Kind::Expire { pending } => {
                let Some((hold, held)) = self.done.get_mut(&pending) else { return false };
                let Kind::Pending { expires } = hold.kind else { return false };
                let over = expires.is_some_and(|expires| expires <= at);
                let is_post = matches!(t.kind, Kind::Post { .. });
                let fits = if is_post { amount <= *held } else { amount == *held };
                let in_time = if matches!(t.kind, Kind::Expire { .. }) { over } else { !over };
                if *held == 0 || !fits || !in_time || (hold.debit, hold.credit) != (t.debit, t.credit) {
                    return false;
                }
                holds = -std::mem::take(held);
                moves = if is_post { amount } else { 0 };
            }
        }
        let from = self.accounts.entry(debit.clone()).or_default();
        *from = (from.0 - moves, from.1 + holds, from.2);
        let poor = debit != "emission" && from.0 - from.1 < 0;
        let emitted = if debit == "emission" { from.1 - from.0 } else { 0 };
        let to = self.accounts.entry(credit).or_default();
        *to = (to.0 + moves, to.1, to.2 + holds);
        self.done.insert(t.id, (*t, left));
        !poor && emitted <= cap
    }
}

proptest! {
    #[test]
    fn debits_equal_credits_posted_and_pending_apart_and_balances_are_the_sums_of_what_was_done(
        history in history(), cap in 0..3_000i64,
    ) {
        let mut book = Book::new(micro(cap));
        let mut model = Model::default();
        for (at, chain) in &history {
            let result = book.post(*at, chain);
            prop_assert_eq!(result.is_ok(), model.post(*at, chain, cap.into()), "{:?} for {:?}", result, chain);
            book.assert_invariants();
            let accounts: BTreeMap<String, (i128, i128, i128)> = book
                .accounts()
                .map(|(account, posts)| {
                    (account.to_string(), (posts.balance().0, posts.debits_pending, posts.credits_pending))
                })
                .collect();
            prop_assert_eq!(&accounts, &model.accounts);
        }
    }

    #[test]
    fn supply_is_emitted_minus_burned_and_at_most_the_cap(history in history(), cap in 0..3_000i64) {
        let mut book = Book::new(micro(cap));
        for (at, chain) in &history {
            let _ = book.post(*at, chain);
            let totals = book.totals();
            prop_assert_eq!(totals.supply.0, totals.emitted.0 - totals.burned.0);
            prop_assert!(totals.supply.0 <= i128::from(cap) && totals.emitted.0 <= i128::from(cap));
            prop_assert_eq!(totals.burned, book.balance(Account::Burn));
        }
    }

    #[test]
    fn no_account_but_emission_is_below_zero_holds_included(history in history()) {
        let mut book = Book::new(micro(2_000));
        for (at, chain) in &history {
            let _ = book.post(*at, chain);
            for (account, posts) in book.accounts() {
                prop_assert!(account == Account::Emission || posts.credits - posts.debits - posts.debits_pending >= 0);
            }
        }
    }

    #[test]
    fn a_pending_transfer_is_resolved_at_most_once_for_at_most_what_it_holds_and_the_rest_returns(history in history()) {
        let mut book = Book::new(micro(2_000));
        let (mut held, mut resolved) = (BTreeMap::new(), BTreeSet::new());
        for (at, chain) in &history {
            let fresh = chain.iter().any(|t| book.known(t.id).is_none());
            if !fresh || book.post(*at, chain).is_err() {
                continue;
            }
            for t in chain {
                if let Kind::Pending { .. } = t.kind {
                    held.insert(t.id, t.amount);
                }
                if let Some(pending) = t.kind.resolves() {
                    prop_assert!(resolved.insert(pending), "resolved twice");
                    prop_assert!(t.amount <= held[&pending]);
                }
            }
            let left: i64 = held.iter().filter(|(id, _)| !resolved.contains(id)).map(|(_, amount)| amount.micro()).sum();
            prop_assert_eq!(book.totals().debits_pending, Balance(left.into()));
        }
    }

    #[test]
    fn a_refused_operation_changes_nothing_nor_does_a_repeated_one_or_a_decision_alone(history in history()) {
        let mut book = Book::new(micro(2_000));
        for (at, chain) in &history {
            let before = format!("{book:?}");
            let decided = book.decide(*at, chain).map(|decision| decision.posted());
            prop_assert_eq!(&format!("{book:?}"), &before);
            let result = book.post(*at, chain);
            prop_assert_eq!(&result, &decided);
            if result.is_err() {
                prop_assert_eq!(&format!("{book:?}"), &before);
            } else {
                let after = format!("{book:?}");
                prop_assert_eq!(book.post(*at, chain), result);
                prop_assert_eq!(&format!("{book:?}"), &after);
            }
        }
    }

    #[test]
    fn the_same_id_with_another_content_is_refused(
        history in history(), which in any::<prop::sample::Index>(), more in 1..100i64,
    ) {
        let mut book = Book::new(micro(2_000));
        let mut done = Vec::new();
        for (at, chain) in &history {
            if book.post(*at, chain).is_ok() {
                done.extend_from_slice(chain);
            }
        }
        let first = *which.get(&done);
        let other = Transfer { amount: micro(first.amount.micro() + more), ..first };
        let before = format!("{book:?}");
        prop_assert_eq!(book.post(book.time(), &[other]), Err(BookError::IdReused { id: first.id }));
        prop_assert_eq!(format!("{book:?}"), before);
    }
}
