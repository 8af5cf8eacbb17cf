//! What a ledger is asked for, in transfers.

mod draft;
mod index;
mod pay;
mod request;
mod spend;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Bound;

use super::merkle::Frontier;
use super::refusals::{Refusal, Refusals};
use super::{Account, Batch, Book, Decision, Economy, Entry, Head, Journal, JournalSource, StoreError};
use crate::protocol::{PublicKey, Time};
use index::Index;
pub use request::{Answer, Forfeited, LedgerError, Offer, Request, Standing};

/// The ledger: what it is asked for, in transfers.
///
/// [`Ledger::decide`] changes nothing. [`Ledger::apply`] does what was decided, and gives an answer and a [`Batch`]: the
/// answer is true once the batch is durable, and nobody may hear it before. Should the batch not become durable, the
/// ledger is ahead of the truth and is opened again from where it is kept.
#[derive(Debug)]
pub struct Ledger {
    config: LedgerConfig,
    book: Book,
    journal: Journal,
    tree: Frontier,
    index: Index,
    refusals: Refusals,
}

/// What a ledger is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerConfig {
    /// What rounds emit, and all the other numbers.
    pub economy: Economy,
    /// Whose verdicts count.
    pub verifiers: BTreeSet<PublicKey>,
}

/// What a request comes to.
#[derive(Debug)]
#[must_use = "nothing is done until it is applied"]
pub struct Decided {
    answer: Answer,
    entries: Vec<Entry>,
    journal: Journal,
    effect: Option<Decision>,
    refusal: Option<Refusal>,
}

impl Decided {
    /// The answer, should it be applied and made durable.
    #[must_use]
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The entries that it adds to the journal.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl Ledger {
    /// The ledger that is kept in `source`. Every entry is checked: its place, its digest, and that the book allows it;
    /// then that the accounts and the newest head that are kept beside them follow from them. (Every signed head is
    /// checked by [`audit`](fn@super::audit), which takes longer.)
    pub fn open(config: LedgerConfig, source: &mut dyn JournalSource) -> Result<Self, StoreError> {
        let mut ledger = Self::empty(config);
        source.entries(&mut |entry| ledger.replay(&entry))?;
        let kept = source.kept()?;
        ledger.compare_accounts(&kept.accounts)?;
        if let Some(signed) = kept.head {
            let (_, head) = signed
                .open::<Head>()
                .map_err(|error| StoreError::Unsound(format!("the newest signed head cannot be believed: {error}")))?;
            if head != ledger.head() {
                let problem = "the newest signed head is not that of the journal: entries are missing, or were added";
                return Err(StoreError::damaged(head.size.min(ledger.journal.length()) + 1, problem));
            }
        } else if ledger.journal.length() > 0 {
            return Err(StoreError::damaged(1, "no signed head covers it"));
        }
        for refusal in kept.refusals {
            ledger.refusals.add(Time(0), refusal, &mut Vec::new());
        }
        ledger.book.assert_invariants();
        Ok(ledger)
    }

    /// A ledger in which nothing was done.
    pub(super) fn empty(config: LedgerConfig) -> Self {
        Self {
            book: Book::new(config.economy.config().emission.cap),
            config,
            journal: Journal::default(),
            tree: Frontier::default(),
            index: Index::default(),
            refusals: Refusals::default(),
        }
    }

    /// Takes in an entry that was written before, if it is the next one, unaltered, and allowed.
    pub(super) fn replay(&mut self, entry: &Entry) -> Result<(), StoreError> {
        self.journal.replay(entry)?;
        match self.book.decide(entry.at, &[entry.transfer]) {
            Ok(decision) if decision.is_new() => {
                self.see(entry);
                self.book.apply(decision);
                Ok(())
            }
            Ok(_) => Err(StoreError::damaged(entry.sequence, "its transfer was done before")),
            Err(refusal) => Err(StoreError::damaged(entry.sequence, refusal.to_string())),
        }
    }

    /// That the accounts that are kept are those of the journal.
    pub(super) fn compare_accounts(
        &self,
        kept: &std::collections::BTreeMap<Account, super::Posts>,
    ) -> Result<(), StoreError> {
        let differs = |account: Account| {
            let text = format!("what is kept for the account {account} is not what the journal comes to");
            StoreError::Unsound(text)
        };
        if let Some((account, _)) = self.book.accounts().find(|(account, posts)| kept.get(account) != Some(posts)) {
            return Err(differs(account));
        }
        match kept.keys().find(|account| self.book.posts(**account) == super::Posts::default()) {
            Some(unused) if self.book.accounts().all(|(account, _)| account != *unused) => Err(differs(*unused)),
            _ => Ok(()),
        }
    }

    /// What `request` comes to at `now`. Changes nothing. The ledger's time never goes back: should the clock, it stands.
    pub fn decide(&self, now: Time, request: &Request) -> Result<Decided, LedgerError> {
        let now = now.max(self.book.time());
        let answer = match request {
            Request::PayRound { run, round, verdicts } => return self.decide_round(now, *run, *round, verdicts),
            Request::Forfeit { verdict } => return self.decide_forfeit(now, verdict),
            Request::Order(order) => return self.decide_order(now, order),
            Request::Hold { id, wallet, amount, expires } => {
                return self.decide_hold(now, *id, *wallet, *amount, *expires);
            }
            Request::Settle { query, wallet, cost, contributors } => {
                return self.decide_settle(now, *query, *wallet, *cost, contributors);
            }
            Request::Tick => return self.decide_tick(now),
            Request::Totals => Answer::Totals {
                totals: self.book.totals(),
                transfers: self.journal.length(),
                head: self.journal.head(),
            },
            Request::Accounts => Answer::Accounts(self.book.accounts().collect()),
            Request::Wallet(key) => Answer::Wallet(self.standing(*key)),
            Request::Offers { after, most } => {
                let later = self.index.offers.range((Bound::Excluded(*after), Bound::Unbounded));
                Answer::Offers(later.take(*most).map(|(id, offer)| (*id, *offer)).collect())
            }
            Request::Holds { after, most } => Answer::Holds(self.book.holds_after(*after).take(*most).collect()),
        };
        Ok(self.unchanged(answer))
    }

    fn unchanged(&self, answer: Answer) -> Decided {
        Decided { answer, entries: Vec::new(), journal: self.journal, effect: None, refusal: None }
    }

    /// Does what was decided: the answer, and what must be durable before anybody hears it.
    ///
    /// # Panics
    /// When something else was applied since the decision: see [`Book::apply`].
    pub fn apply(&mut self, decided: Decided) -> (Answer, Batch) {
        let Decided { answer, entries, journal, effect, refusal } = decided;
        let mut batch = Batch::default();
        for entry in &entries {
            self.see(entry);
        }
        if let Some(decision) = effect {
            if cfg!(debug_assertions) {
                self.book.assert_decision(&decision);
            }
            if decision.is_new() {
                batch.accounts.clone_from(decision.accounts());
            }
            self.book.apply(decision);
        }
        if let Some(refusal) = refusal {
            batch.refusals.push(refusal.clone());
            self.refusals.add(self.book.time(), refusal, &mut batch.forgotten);
        }
        if !entries.is_empty() {
            self.journal = journal;
            batch.tree = self.tree.clone();
        }
        batch.entries = entries;
        (answer, batch)
    }

    /// Takes in an entry that the book is about to.
    fn see(&mut self, entry: &Entry) {
        let ended = entry.transfer.kind.resolves().and_then(|pending| self.book.hold(pending));
        self.index.see(entry, ended);
        self.tree.push(entry.leaf());
    }

    /// When the clock next ends something, if it does: a [`Request::Tick`] is due then.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.index.due.first().map(|(time, _)| *time)
    }

    /// The balances.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Where the journal ends.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.journal
    }

    /// What a signature over the journal as it is would vouch for.
    #[must_use]
    pub fn head(&self) -> Head {
        let (size, chain) = (self.journal.length(), self.journal.head());
        Head { size, root: self.tree.root(), chain, at: self.book.time() }
    }

    /// How a key stands.
    #[must_use]
    pub fn standing(&self, key: PublicKey) -> Standing {
        let worker = self.index.workers.get(&key);
        Standing {
            wallet: self.book.posts(Account::Wallet(key)),
            stake: self.book.posts(Account::Stake(key)),
            unvested: worker.map_or(0, |worker| u32::try_from(worker.unvested.len()).unwrap_or(u32::MAX)),
            clean: worker.map_or(0, |worker| worker.clean),
        }
    }
}
