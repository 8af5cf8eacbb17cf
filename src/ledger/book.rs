use std::collections::{BTreeMap, BTreeSet};

use super::{Account, Transfer, TransferId};
use crate::protocol::{Amount, Balance, Digest, limits};

/// What every account holds, and which transfers may change that.
///
/// Transfers come in linked chains: all of a chain is posted, or nothing. [`Book::decide`] says what a chain would do
/// and changes nothing; [`Book::apply`] does it and cannot fail. So what is decided can be made durable before it
/// counts.
#[derive(Debug, Clone)]
pub struct Book {
    cap: Amount,
    accounts: BTreeMap<Account, Posts>,
    /// Every transfer that was posted, with the digest of its encoding.
    posted: BTreeMap<TransferId, Digest>,
}

/// The two sides of an account, in µHYD: all that was ever taken from it, and all that was ever put into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Posts {
    debits: i128,
    credits: i128,
}

/// What a chain does, or did the first time. The same however often the chain is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted {
    /// Transfers in the chain.
    pub transfers: usize,
    /// The sum of their amounts, in µHYD.
    pub moved: Balance,
}

/// What a chain would do to the book that decided it.
#[derive(Debug)]
#[must_use = "a decision has no effect until it is applied"]
pub struct Decision {
    posted: Posted,
    accounts: BTreeMap<Account, Posts>,
    ids: Vec<(TransferId, Digest)>,
    /// How many transfers the book knew when it decided.
    known: usize,
}

/// Sums over a book, in µHYD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// What exists: emitted and not burned.
    pub supply: Balance,
    /// All that was ever emitted.
    pub emitted: Balance,
    /// All that was ever burned.
    pub burned: Balance,
    /// The debits of all accounts.
    pub debits: Balance,
    /// The credits of all accounts.
    pub credits: Balance,
}

/// Why a chain of transfers is refused. A refused chain changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookError {
    /// Nothing to do.
    #[error("the chain has no transfers")]
    ChainEmpty,
    /// More than one chain may hold.
    #[error("the chain has {transfers} transfers, the limit is {}", limits::CHAIN_TRANSFERS_MAX)]
    ChainTooLong {
        /// Transfers in it.
        transfers: usize,
    },
    /// One id twice in one chain.
    #[error("the chain has transfer {id} twice")]
    ChainRepeats {
        /// The id.
        id: TransferId,
    },
    /// Some of the chain was posted before, as part of another chain, and some was not.
    #[error("transfer {id} was posted before, but not the whole chain that it is in now")]
    ChainPartlyPosted {
        /// A transfer that was posted before.
        id: TransferId,
    },
    /// The id was used before, for something else.
    #[error("transfer {id} was posted before with another content")]
    IdReused {
        /// The id.
        id: TransferId,
    },
    /// A transfer of nothing.
    #[error("transfer {id} moves nothing")]
    Zero {
        /// The transfer.
        id: TransferId,
    },
    /// From an account to itself.
    #[error("transfer {id} moves from {account} to itself")]
    SameAccount {
        /// The transfer.
        id: TransferId,
        /// Both its accounts.
        account: Account,
    },
    /// Into `emission`, or out of `burn`.
    #[error("transfer {id} is against the one direction of {account}")]
    OneWay {
        /// The transfer.
        id: TransferId,
        /// The account.
        account: Account,
    },
    /// More than the account holds.
    #[error("transfer {id} takes {amount} from {account}, which has {balance}")]
    Insufficient {
        /// The transfer.
        id: TransferId,
        /// The account to be debited.
        account: Account,
        /// What it has at that point of the chain.
        balance: Balance,
        /// What was to be taken.
        amount: Amount,
    },
    /// More would be emitted than ever may.
    #[error("transfer {id} would bring what was emitted to {emitted}, the cap is {cap}")]
    Cap {
        /// The transfer.
        id: TransferId,
        /// All that would have been emitted.
        emitted: Balance,
        /// All that may be.
        cap: Amount,
    },
    /// An account's sum would not fit 128 bits.
    #[error("transfer {id} would overflow the sums of {account}")]
    Overflow {
        /// The transfer.
        id: TransferId,
        /// The account.
        account: Account,
    },
}

impl Posts {
    fn balance(self) -> Balance {
        Balance(self.credits - self.debits)
    }

    fn debited(self, amount: Amount) -> Option<Self> {
        Some(Self { debits: self.debits.checked_add(amount.micro().into())?, ..self })
    }

    fn credited(self, amount: Amount) -> Option<Self> {
        Some(Self { credits: self.credits.checked_add(amount.micro().into())?, ..self })
    }
}

impl Decision {
    /// What the chain does.
    #[must_use]
    pub fn posted(&self) -> Posted {
        self.posted
    }

    /// Whether applying it changes anything: not when the chain was posted before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        !self.ids.is_empty()
    }
}

impl Book {
    /// An empty book that will never emit more than `cap`.
    #[must_use]
    pub fn new(cap: Amount) -> Self {
        Self { cap, accounts: BTreeMap::new(), posted: BTreeMap::new() }
    }

    /// What posting `chain` would do. Each transfer is judged by the balances that those before it leave.
    pub fn decide(&self, chain: &[Transfer]) -> Result<Decision, BookError> {
        let ids: Vec<(TransferId, Digest)> = chain.iter().map(|t| (t.id, Digest::of(&t.encode()))).collect();
        let mut decision = Decision {
            posted: Posted {
                transfers: chain.len(),
                moved: Balance(chain.iter().map(|t| i128::from(t.amount.micro())).sum()),
            },
            accounts: BTreeMap::new(),
            ids: Vec::new(),
            known: self.posted.len(),
        };
        if self.was_posted(&ids)? {
            return Ok(decision);
        }
        for transfer in chain {
            self.decide_one(transfer, &mut decision.accounts)?;
        }
        decision.ids = ids;
        Ok(decision)
    }

    /// Does what was decided.
    ///
    /// # Panics
    /// When the book has changed since it decided: the caller has mixed up two books, or the order.
    pub fn apply(&mut self, decision: Decision) -> Posted {
        assert_eq!(decision.known, self.posted.len(), "a decision is applied to the book that made it, at once");
        self.accounts.extend(decision.accounts);
        self.posted.extend(decision.ids);
        decision.posted
    }

    /// Decides and applies at once, where there is nothing to do in between.
    pub fn post(&mut self, chain: &[Transfer]) -> Result<Posted, BookError> {
        let decision = self.decide(chain)?;
        Ok(self.apply(decision))
    }

    /// Whether the chain with these ids and contents was posted before.
    fn was_posted(&self, chain: &[(TransferId, Digest)]) -> Result<bool, BookError> {
        if chain.is_empty() {
            return Err(BookError::ChainEmpty);
        }
        if chain.len() > limits::CHAIN_TRANSFERS_MAX {
            return Err(BookError::ChainTooLong { transfers: chain.len() });
        }
        let mut seen = BTreeSet::new();
        let mut before = None;
        let mut new = false;
        for (id, content) in chain {
            if !seen.insert(id) {
                return Err(BookError::ChainRepeats { id: *id });
            }
            match self.posted.get(id) {
                Some(posted) if posted != content => return Err(BookError::IdReused { id: *id }),
                Some(_) => before = Some(*id),
                None => new = true,
            }
        }
        match before {
            Some(id) if new => Err(BookError::ChainPartlyPosted { id }),
            before => Ok(before.is_some()),
        }
    }

    /// Judges one transfer by the accounts as `changed` leaves them, and changes them further.
    fn decide_one(&self, transfer: &Transfer, changed: &mut BTreeMap<Account, Posts>) -> Result<(), BookError> {
        let Transfer { id, debit, credit, amount, .. } = *transfer;
        if amount.is_zero() {
            return Err(BookError::Zero { id });
        }
        if debit == credit {
            return Err(BookError::SameAccount { id, account: debit });
        }
        if credit == Account::Emission || debit == Account::Burn {
            let account = if debit == Account::Burn { debit } else { credit };
            return Err(BookError::OneWay { id, account });
        }
        let posts =
            |account| changed.get(&account).or_else(|| self.accounts.get(&account)).copied().unwrap_or_default();
        let balance = posts(debit).balance();
        let debited = posts(debit).debited(amount).ok_or(BookError::Overflow { id, account: debit })?;
        let credited = posts(credit).credited(amount).ok_or(BookError::Overflow { id, account: credit })?;
        if debit == Account::Emission {
            if debited.debits > self.cap.micro().into() {
                return Err(BookError::Cap { id, emitted: Balance(debited.debits), cap: self.cap });
            }
        } else if balance < amount.into() {
            return Err(BookError::Insufficient { id, account: debit, balance, amount });
        }
        changed.insert(debit, debited);
        changed.insert(credit, credited);
        Ok(())
    }

    /// What `account` holds.
    #[must_use]
    pub fn balance(&self, account: Account) -> Balance {
        self.accounts.get(&account).copied().unwrap_or_default().balance()
    }

    /// Every account that was ever used, in order, with what it holds.
    pub fn balances(&self) -> impl Iterator<Item = (Account, Balance)> {
        self.accounts.iter().map(|(account, posts)| (*account, posts.balance()))
    }

    /// All that was ever emitted.
    #[must_use]
    pub fn emitted(&self) -> Balance {
        Balance(self.accounts.get(&Account::Emission).map_or(0, |posts| posts.debits))
    }

    /// The sums over all accounts.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let emitted = self.emitted();
        let burned = self.balance(Account::Burn);
        Totals {
            supply: Balance(emitted.0 - burned.0),
            emitted,
            burned,
            debits: Balance(self.accounts.values().map(|posts| posts.debits).sum()),
            credits: Balance(self.accounts.values().map(|posts| posts.credits).sum()),
        }
    }

    /// Checks the laws of double entry.
    ///
    /// # Panics
    /// When one does not hold: the book is wrong, and nothing may be built on it.
    pub fn assert_invariants(&self) {
        let totals = self.totals();
        assert_eq!(totals.debits, totals.credits, "debits equal credits");
        assert!(totals.emitted <= self.cap.into(), "{} emitted, the cap is {}", totals.emitted, self.cap);
        let held: i128 = self
            .balances()
            .filter(|(account, _)| !matches!(account, Account::Emission | Account::Burn))
            .map(|(_, balance)| balance.0)
            .sum();
        assert_eq!(totals.supply, Balance(held), "what was emitted and not burned is held by somebody");
        for (account, balance) in self.balances() {
            assert!(account == Account::Emission || balance.0 >= 0, "{account} is overdrawn: {balance}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Purpose;
    use super::super::testing::{history, transfer, wallet};
    use super::*;

    fn micro(micro: i64) -> Amount {
        Amount::from_micro(micro).unwrap()
    }

    /// A book with a cap of 1 000 µHYD, 100 of them in the first wallet.
    fn funded() -> Book {
        let mut book = Book::new(micro(1_000));
        book.post(&[transfer(1, Account::Emission, wallet(0), 100)]).unwrap();
        book
    }

    /// That `book` refuses `chain` for this reason and is left as it was.
    #[track_caller]
    fn refused(book: &mut Book, chain: &[Transfer], error: BookError) {
        let before = format!("{book:?}");
        assert_eq!(book.post(chain), Err(error));
        assert_eq!(format!("{book:?}"), before);
    }

    #[test]
    fn every_refusal_has_its_reason_and_changes_nothing() {
        let book = &mut funded();
        let id = TransferId::new(9);
        let (emission, a, b) = (Account::Emission, wallet(0), wallet(1));
        refused(book, &[], BookError::ChainEmpty);
        refused(book, &[transfer(9, a, b, 0)], BookError::Zero { id });
        refused(book, &[transfer(9, a, a, 1)], BookError::SameAccount { id, account: a });
        refused(book, &[transfer(9, a, emission, 1)], BookError::OneWay { id, account: emission });
        refused(
            book,
            &[transfer(8, a, Account::Burn, 1), transfer(9, Account::Burn, a, 1)],
            BookError::OneWay { id, account: Account::Burn },
        );
        let insufficient = |account, balance, amount| BookError::Insufficient {
            id,
            account,
            balance: Balance(balance),
            amount: micro(amount),
        };
        refused(book, &[transfer(9, a, b, 101)], insufficient(a, 100, 101));
        refused(book, &[transfer(9, b, a, 1)], insufficient(b, 0, 1));
        refused(book, &[transfer(8, a, b, 60), transfer(9, a, b, 41)], insufficient(a, 40, 41));
        refused(
            book,
            &[transfer(8, b, a, 1), transfer(9, a, b, 1)],
            BookError::Insufficient { id: TransferId::new(8), account: b, balance: Balance(0), amount: micro(1) },
        );
        refused(
            book,
            &[transfer(9, emission, a, 901)],
            BookError::Cap { id, emitted: Balance(1_001), cap: micro(1_000) },
        );
        refused(
            book,
            &[transfer(9, emission, a, i64::MAX)],
            BookError::Cap { id, emitted: Balance(100 + i128::from(i64::MAX)), cap: micro(1_000) },
        );
        refused(book, &[transfer(9, a, b, 1), transfer(9, a, b, 1)], BookError::ChainRepeats { id });
        refused(book, &[transfer(1, emission, a, 99)], BookError::IdReused { id: TransferId::new(1) });
        refused(book, &[transfer(1, emission, b, 100)], BookError::IdReused { id: TransferId::new(1) });
        let posted = transfer(1, emission, a, 100);
        refused(book, &[posted, transfer(9, a, b, 1)], BookError::ChainPartlyPosted { id: posted.id });
        let long: Vec<Transfer> = (0..=limits::CHAIN_TRANSFERS_MAX).map(|n| transfer(9 + n as u128, a, b, 1)).collect();
        refused(book, &long, BookError::ChainTooLong { transfers: long.len() });
    }

    #[test]
    fn the_whole_content_is_under_the_id() {
        let mut book = funded();
        let pay = |verdict: &[u8]| Transfer {
            purpose: Purpose::Pay {
                run: crate::protocol::RunId(Digest::of(b"run")),
                round: crate::protocol::Round(0),
                task: crate::protocol::TaskId(Digest::of(b"task")),
                verdict: Digest::of(verdict),
                verdicts: Digest::of(b"all"),
            },
            ..transfer(2, Account::Emission, wallet(0), 5)
        };
        book.post(&[pay(b"one")]).unwrap();
        refused(&mut book, &[pay(b"other")], BookError::IdReused { id: TransferId::new(2) });
    }

    #[test]
    fn sums_that_do_not_fit_are_refused() {
        let mut book = funded();
        let id = TransferId::new(9);
        let full = Posts { debits: i128::MAX - 10, credits: i128::MAX - 5 };
        book.accounts.insert(wallet(1), full);
        refused(&mut book, &[transfer(9, wallet(0), wallet(1), 6)], BookError::Overflow { id, account: wallet(1) });
        book.accounts.insert(wallet(1), Posts { debits: i128::MAX, credits: i128::MAX });
        refused(&mut book, &[transfer(9, wallet(1), wallet(0), 1)], BookError::Overflow { id, account: wallet(1) });
    }

    #[test]
    fn a_chain_may_spend_what_it_brings_and_the_last_token_may_go() {
        let mut book = funded();
        book.post(&[
            transfer(2, Account::Emission, wallet(1), 900),
            transfer(3, wallet(1), wallet(2), 900),
            transfer(4, wallet(2), Account::Burn, 900),
            transfer(5, wallet(0), Account::Stake(super::super::testing::key(0).public()), 100),
        ])
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
        let decision = book.decide(&[transfer(2, wallet(0), wallet(1), 100)]).unwrap();
        book.post(&[transfer(3, wallet(0), wallet(2), 100)]).unwrap();
        book.apply(decision);
    }

    /// What a book must do, written down a second time and as simply as possible: balances by name, and what was
    /// posted.
    #[derive(Clone, Default)]
    struct Model {
        balances: BTreeMap<String, i128>,
        emitted: i128,
        posted: BTreeMap<u128, Transfer>,
    }

    impl Model {
        /// Whether the chain is posted (again), and the state after it.
        fn post(&mut self, chain: &[Transfer], cap: i128) -> bool {
            let key = |t: &Transfer| u128::from_be_bytes(t.id.to_bytes());
            let again = chain.iter().filter(|t| self.posted.get(&key(t)) == Some(t)).count();
            if !chain.is_empty() && again == chain.len() {
                let ids: BTreeSet<u128> = chain.iter().map(key).collect();
                return ids.len() == chain.len();
            }
            let mut next = self.clone();
            for t in chain {
                let amount = i128::from(t.amount.micro());
                let [debit, credit] = [t.debit.to_string(), t.credit.to_string()];
                if next.posted.insert(key(t), *t).is_some() || amount == 0 || debit == credit {
                    return false;
                }
                *next.balances.entry(debit.clone()).or_default() -= amount;
                *next.balances.entry(credit.clone()).or_default() += amount;
                if debit == "emission" {
                    next.emitted += amount;
                }
                let overdrawn = debit != "emission" && next.balances[&debit] < 0;
                if overdrawn || next.emitted > cap || debit == "burn" || credit == "emission" {
                    return false;
                }
            }
            *self = next;
            !chain.is_empty()
        }
    }

    proptest! {
        #[test]
        fn over_any_history_debits_equal_credits_and_balances_are_the_sums_of_what_was_posted(
            history in history(), cap in 0..3_000i64,
        ) {
            let mut book = Book::new(micro(cap));
            let mut model = Model::default();
            let mut moved = 0;
            for chain in &history {
                let new = chain.iter().all(|t| !book.posted.contains_key(&t.id));
                let result = book.post(chain);
                prop_assert_eq!(result.is_ok(), model.post(chain, cap.into()), "{:?} for {:?}", result, chain);
                if let (Ok(posted), true) = (&result, new) {
                    moved += posted.moved.0;
                }
                book.assert_invariants();
                let balances: BTreeMap<String, i128> =
                    book.balances().map(|(account, balance)| (account.to_string(), balance.0)).collect();
                prop_assert_eq!(&balances, &model.balances);
            }
            let totals = book.totals();
            prop_assert_eq!((totals.debits.0, totals.credits.0), (moved, moved));
            prop_assert_eq!(totals.emitted.0, model.emitted);
            prop_assert!(totals.supply.0 <= i128::from(cap));
            prop_assert_eq!(totals.burned.0, model.balances.get("burn").copied().unwrap_or(0));
        }

        #[test]
        fn a_refused_chain_and_a_repeated_one_change_nothing_and_a_decision_alone_neither(history in history()) {
            let mut book = Book::new(micro(2_000));
            for chain in &history {
                let before = format!("{book:?}");
                let decided = book.decide(chain).map(|decision| decision.posted());
                prop_assert_eq!(&format!("{book:?}"), &before);
                let result = book.post(chain);
                prop_assert_eq!(&result, &decided);
                if result.is_err() {
                    prop_assert_eq!(&format!("{book:?}"), &before);
                } else {
                    let after = format!("{book:?}");
                    prop_assert_eq!(book.post(chain), result);
                    prop_assert_eq!(&format!("{book:?}"), &after);
                }
            }
        }

        #[test]
        fn the_same_id_with_another_content_is_refused(
            history in history(), which in any::<prop::sample::Index>(), more in 1..100i64,
        ) {
            let mut book = Book::new(micro(2_000));
            let posted: Vec<Transfer> =
                history.iter().filter(|chain| book.post(chain).is_ok()).flatten().copied().collect();
            let first = *which.get(&posted);
            let other = Transfer { amount: micro(first.amount.micro() + more), ..first };
            let before = format!("{book:?}");
            prop_assert_eq!(book.post(&[other]), Err(BookError::IdReused { id: first.id }));
            prop_assert_eq!(format!("{book:?}"), before);
        }
    }
}
