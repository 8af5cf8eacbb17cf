//! Balances, and which transfers may change them.

mod error;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::{Account, Content, Kind, Purpose, Transfer, TransferId};
use crate::protocol::{Amount, Balance, Time, limits};
pub use error::BookError;

/// What every account holds, and which transfers may change that.
///
/// Transfers come in linked chains: all of a chain is done, or nothing. [`Book::decide`] says what a chain would do and
/// changes nothing; [`Book::apply`] does it and cannot fail. The book's time is that of the last chain: it is handed in,
/// and never goes back.
#[derive(Debug, Clone)]
pub struct Book {
    cap: Amount,
    time: Time,
    accounts: BTreeMap<Account, Posts>,
    /// Every transfer that was done.
    known: BTreeMap<TransferId, Known>,
    /// Those that are pending and not resolved.
    holds: BTreeMap<TransferId, Hold>,
}

/// The sides of an account, in µHYD: all that was ever taken from it and put into it, and what pending transfers hold
/// on either side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posts {
    /// Taken.
    pub debits: i128,
    /// Put in.
    pub credits: i128,
    /// Held, to be taken.
    pub debits_pending: i128,
    /// Held elsewhere, to be put in.
    pub credits_pending: i128,
}

/// A transfer that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What came under its id.
    pub content: Content,
    /// Its place among all transfers, from 1.
    pub sequence: u64,
}

/// What an unresolved pending transfer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Where it is held.
    pub debit: Account,
    /// Where it would go.
    pub credit: Account,
    /// How much.
    pub amount: Amount,
    /// From when on it can only be expired.
    pub expires: Option<Time>,
}

/// What a chain does, or did the first time. The same however often the chain is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted {
    /// Transfers in the chain.
    pub transfers: usize,
    /// The place of the first of them among all transfers, from 1.
    pub sequence: u64,
}

/// What a chain would do to the book that decided it.
#[derive(Debug)]
#[must_use = "a decision has no effect until it is applied"]
pub struct Decision {
    posted: Posted,
    at: Time,
    accounts: BTreeMap<Account, Posts>,
    /// Holds that begin, and those that end.
    holds: BTreeMap<TransferId, Option<Hold>>,
    ids: Vec<(TransferId, Content)>,
    /// How many transfers the book knew when it decided.
    known: usize,
}

/// Sums over a book, in µHYD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// What exists: emitted and not burned.
    pub supply: Balance,
    /// All that rounds have emitted, what is not vested included, and what was forfeited not.
    pub emitted: Balance,
    /// What of it is not vested.
    pub unvested: Balance,
    /// All that was ever burned.
    pub burned: Balance,
    /// The debits of all accounts.
    pub debits: Balance,
    /// The credits of all accounts.
    pub credits: Balance,
    /// What pending transfers hold of all accounts.
    pub debits_pending: Balance,
    /// What pending transfers hold for all accounts.
    pub credits_pending: Balance,
}

impl Totals {
    /// The first law of double entry, posted and pending apart.
    #[must_use]
    pub fn debits_equal_credits(&self) -> bool {
        self.debits == self.credits && self.debits_pending == self.credits_pending
    }
}

impl Posts {
    /// What it has, held or not.
    #[must_use]
    pub fn balance(self) -> Balance {
        Balance(self.credits - self.debits)
    }

    /// What it can spend: what it has and no pending transfer holds.
    #[must_use]
    pub fn available(self) -> Balance {
        Balance(self.credits - self.debits - self.debits_pending)
    }
}

impl Decision {
    /// What the chain does.
    #[must_use]
    pub fn posted(&self) -> Posted {
        self.posted
    }

    /// Whether applying it changes anything: not when the chain was done before.
    #[must_use]
    pub fn is_new(&self) -> bool {
        !self.ids.is_empty()
    }

    /// The accounts that change, as they will be.
    #[must_use]
    pub fn accounts(&self) -> &BTreeMap<Account, Posts> {
        &self.accounts
    }
}

impl Book {
    /// An empty book that will never emit more than `cap`.
    #[must_use]
    pub fn new(cap: Amount) -> Self {
        Self { cap, time: Time(0), accounts: BTreeMap::new(), known: BTreeMap::new(), holds: BTreeMap::new() }
    }

    /// What doing `chain` at `at` would do. Each transfer is judged by what those before it leave.
    pub fn decide(&self, at: Time, chain: &[Transfer]) -> Result<Decision, BookError> {
        if at < self.time {
            return Err(BookError::TimeBackwards { at, last: self.time });
        }
        let ids: Vec<(TransferId, Content)> = chain.iter().map(|t| (t.id, t.content())).collect();
        let before = self.done_before(&ids)?;
        let sequence = before.unwrap_or(self.known.len() as u64 + 1);
        let mut decision = Decision {
            posted: Posted { transfers: chain.len(), sequence },
            at,
            accounts: BTreeMap::new(),
            holds: BTreeMap::new(),
            ids: Vec::new(),
            known: self.known.len(),
        };
        if before.is_some() {
            return Ok(decision);
        }
        for transfer in chain {
            self.decide_one(at, transfer, &mut decision)?;
        }
        if self.holds.len() + decision.holds.len() > limits::HOLDS_MAX {
            return Err(BookError::Full);
        }
        decision.ids = ids;
        Ok(decision)
    }

    /// Does what was decided.
    ///
    /// # Panics
    /// When the book has changed since it decided: the caller has mixed up two books, or the order.
    pub fn apply(&mut self, decision: Decision) -> Posted {
        assert_eq!(decision.known, self.known.len(), "a decision is applied to the book that made it, at once");
        self.accounts.extend(decision.accounts);
        for (id, hold) in decision.holds {
            match hold {
                Some(hold) => self.holds.insert(id, hold),
                None => self.holds.remove(&id),
            };
        }
        if !decision.ids.is_empty() {
            self.time = decision.at;
        }
        let places = decision.known as u64 + 1..;
        self.known.extend(
            decision.ids.into_iter().zip(places).map(|((id, content), sequence)| (id, Known { content, sequence })),
        );
        decision.posted
    }

    /// Decides and applies at once, where there is nothing to do in between.
    pub fn post(&mut self, at: Time, chain: &[Transfer]) -> Result<Posted, BookError> {
        let decision = self.decide(at, chain)?;
        Ok(self.apply(decision))
    }

    /// Where the chain with these ids and contents was done before, if it was.
    fn done_before(&self, chain: &[(TransferId, Content)]) -> Result<Option<u64>, BookError> {
        if chain.len() > limits::CHAIN_TRANSFERS_MAX {
            return Err(BookError::ChainTooLong { transfers: chain.len() });
        }
        let mut seen = BTreeSet::new();
        let (mut first, mut new) = (None, None);
        for (id, content) in chain {
            if !seen.insert(id) {
                return Err(BookError::ChainRepeats { id: *id });
            }
            match self.known.get(id) {
                Some(known) if known.content != *content => return Err(BookError::IdReused { id: *id }),
                Some(known) => first = first.or(Some((*id, known.sequence))),
                None => new = Some(*id),
            }
        }
        match (first, new) {
            (None, None) => Err(BookError::ChainEmpty),
            (Some((id, _)), Some(_)) => Err(BookError::ChainPartlyPosted { id }),
            (first, _) => Ok(first.map(|(_, sequence)| sequence)),
        }
    }

    /// Judges one transfer by what `decision` leaves so far, and changes that further.
    fn decide_one(&self, at: Time, transfer: &Transfer, decision: &mut Decision) -> Result<(), BookError> {
        let Transfer { id, kind, debit, credit, amount, purpose } = *transfer;
        if amount.is_zero()
            && !matches!((kind, purpose), (Kind::Single, Purpose::Slash { .. } | Purpose::NothingDue { .. }))
        {
            return Err(BookError::Zero { id });
        }
        if debit == credit {
            return Err(BookError::SameAccount { id, account: debit });
        }
        if credit == Account::Emission || debit == Account::Burn {
            let account = if debit == Account::Burn { debit } else { credit };
            return Err(BookError::OneWay { id, account });
        }
        let moved = i128::from(amount.micro());
        // What ends a hold takes nothing that is not held already.
        let (posted, pending, new) = match kind {
            Kind::Single => (moved, 0, moved),
            Kind::Pending { expires } => {
                if expires.is_some_and(|expires| expires <= at) {
                    return Err(BookError::Expired { id, pending: id });
                }
                decision.holds.insert(id, Some(Hold { debit, credit, amount, expires }));
                (0, moved, moved)
            }
            Kind::Post { pending } | Kind::Void { pending } | Kind::Expire { pending } => {
                let held = self.resolve(at, transfer, pending, decision)?;
                (if matches!(kind, Kind::Post { .. }) { moved } else { 0 }, -held, 0)
            }
        };
        let now = |account| {
            decision.accounts.get(&account).or_else(|| self.accounts.get(&account)).copied().unwrap_or_default()
        };
        let (from, to) = (now(debit), now(credit));
        if debit == Account::Emission {
            let emitted = from.debits + from.debits_pending + new;
            if emitted > self.cap.micro().into() {
                return Err(BookError::Cap { id, emitted: Balance(emitted), cap: self.cap });
            }
        } else if from.available().0 < new {
            return Err(BookError::Insufficient { id, account: debit, available: from.available(), amount });
        }
        let overflow = |account| BookError::Overflow { id, account };
        let sum = |side: i128, more, account| side.checked_add(more).ok_or(overflow(account));
        let from = Posts {
            debits: sum(from.debits, posted, debit)?,
            debits_pending: sum(from.debits_pending, pending, debit)?,
            ..from
        };
        let to = Posts {
            credits: sum(to.credits, posted, credit)?,
            credits_pending: sum(to.credits_pending, pending, credit)?,
            ..to
        };
        decision.accounts.insert(debit, from);
        decision.accounts.insert(credit, to);
        Ok(())
    }

    /// Ends the hold that `transfer` resolves, in `decision`: how much it held.
    fn resolve(
        &self,
        at: Time,
        transfer: &Transfer,
        pending: TransferId,
        decision: &mut Decision,
    ) -> Result<i128, BookError> {
        let id = transfer.id;
        let hold = match decision.holds.get(&pending) {
            Some(hold) => *hold,
            None => self.holds.get(&pending).copied(),
        };
        let Some(hold) = hold else { return Err(BookError::NotPending { id, pending }) };
        if (hold.debit, hold.credit) != (transfer.debit, transfer.credit) {
            return Err(BookError::PendingDiffers { id, pending });
        }
        let over = hold.expires.is_some_and(|expires| expires <= at);
        match transfer.kind {
            Kind::Expire { .. } if !over => return Err(BookError::NotExpired { id, pending }),
            Kind::Post { .. } | Kind::Void { .. } if over => return Err(BookError::Expired { id, pending }),
            Kind::Post { .. } if transfer.amount > hold.amount => {
                return Err(BookError::PendingExceeded { id, held: hold.amount, amount: transfer.amount });
            }
            Kind::Void { .. } | Kind::Expire { .. } if transfer.amount != hold.amount => {
                return Err(BookError::PendingDiffers { id, pending });
            }
            _ => {}
        }
        decision.holds.insert(pending, None);
        Ok(hold.amount.micro().into())
    }

    /// The time of the last chain.
    #[must_use]
    pub fn time(&self) -> Time {
        self.time
    }

    /// What came under `id`, if anything did.
    #[must_use]
    pub fn known(&self, id: TransferId) -> Option<Known> {
        self.known.get(&id).copied()
    }

    /// What `pending` holds, if it is unresolved.
    #[must_use]
    pub fn hold(&self, pending: TransferId) -> Option<Hold> {
        self.holds.get(&pending).copied()
    }

    /// How many pending transfers are unresolved.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.holds.len()
    }

    /// The unresolved pending transfers after `id`, in order.
    pub fn holds_after(&self, id: TransferId) -> impl Iterator<Item = TransferId> {
        self.holds.range((Bound::Excluded(id), Bound::Unbounded)).map(|(id, _)| *id)
    }

    /// The sides of `account`.
    #[must_use]
    pub fn posts(&self, account: Account) -> Posts {
        self.accounts.get(&account).copied().unwrap_or_default()
    }

    /// What `account` has, held or not.
    #[must_use]
    pub fn balance(&self, account: Account) -> Balance {
        self.posts(account).balance()
    }

    /// What `account` can spend.
    #[must_use]
    pub fn available(&self, account: Account) -> Balance {
        self.posts(account).available()
    }

    /// Every account that was ever used, in order.
    pub fn accounts(&self) -> impl Iterator<Item = (Account, Posts)> {
        self.accounts.iter().map(|(account, posts)| (*account, *posts))
    }

    /// All that rounds have emitted, what is not vested included.
    #[must_use]
    pub fn emitted(&self) -> Balance {
        let emission = self.posts(Account::Emission);
        Balance(emission.debits + emission.debits_pending)
    }

    /// The sums over all accounts.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let emitted = self.emitted();
        let burned = self.balance(Account::Burn);
        let sum = |side: fn(&Posts) -> i128| Balance(self.accounts.values().map(side).sum());
        Totals {
            supply: Balance(emitted.0 - burned.0),
            emitted,
            unvested: Balance(self.posts(Account::Emission).debits_pending),
            burned,
            debits: sum(|posts| posts.debits),
            credits: sum(|posts| posts.credits),
            debits_pending: sum(|posts| posts.debits_pending),
            credits_pending: sum(|posts| posts.credits_pending),
        }
    }

    /// Checks the laws of double entry.
    ///
    /// # Panics
    /// When one does not hold: the book is wrong, and nothing may be built on it.
    pub fn assert_invariants(&self) {
        let totals = self.totals();
        assert_eq!(totals.debits, totals.credits, "posted debits equal posted credits");
        assert_eq!(totals.debits_pending, totals.credits_pending, "pending debits equal pending credits");
        assert!(totals.emitted <= self.cap.into(), "{} emitted, the cap is {}", totals.emitted, self.cap);
        let held: i128 = self.holds.values().map(|hold| i128::from(hold.amount.micro())).sum();
        assert_eq!(totals.debits_pending.0, held, "what is pending is held by an unresolved transfer");
        let in_hands: i128 = self
            .accounts()
            .filter(|(account, _)| !matches!(account, Account::Emission | Account::Burn))
            .map(|(_, posts)| posts.balance().0)
            .sum();
        let vested = totals.supply.0 - totals.unvested.0;
        assert_eq!(vested, in_hands, "what was emitted, is vested and not burned is held by somebody");
        for (account, posts) in self.accounts() {
            let sides = [posts.debits, posts.credits, posts.debits_pending, posts.credits_pending];
            assert!(sides.iter().all(|side| *side >= 0), "{account} has a negative side: {posts:?}");
            assert!(account == Account::Emission || posts.available().0 >= 0, "{account} is overdrawn: {posts:?}");
        }
    }

    /// Checks the laws for the accounts that `decision` changes only: [`Book::assert_invariants`] takes as long as there
    /// are accounts.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn assert_decision(&self, decision: &Decision) {
        let mut change = [0; 4];
        for (account, posts) in &decision.accounts {
            let before = self.posts(*account);
            let differences = [
                posts.debits - before.debits,
                posts.credits - before.credits,
                posts.debits_pending - before.debits_pending,
                posts.credits_pending - before.credits_pending,
            ];
            change.iter_mut().zip(differences).for_each(|(sum, difference)| *sum += difference);
            assert!(*account == Account::Emission || posts.available().0 >= 0, "{account} is overdrawn: {posts:?}");
        }
        assert_eq!(change[0], change[1], "posted debits equal posted credits");
        assert_eq!(change[2], change[3], "pending debits equal pending credits");
    }
}
