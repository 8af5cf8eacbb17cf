use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::merkle::{self, Frontier};
use super::{Account, Posts, Refusal, Transfer, TransferId};
use crate::protocol::{Digest, Keypair, Message, PublicKey, Signed, Time, wire};

/// A transfer in its place in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its place, counted from 1, without gaps.
    pub sequence: u64,
    /// When it was done, by the ledger's clock. Never before the entry before it.
    pub at: Time,
    /// What was done.
    pub transfer: Transfer,
    /// The head of the journal with this entry as the last.
    pub chain: Digest,
}

impl Entry {
    /// Its leaf in the Merkle tree: all that it says but for the chain, so that a proof needs no other entry.
    #[must_use]
    pub fn leaf(&self) -> Digest {
        leaf(self.sequence, self.at, &self.transfer)
    }
}

/// The leaf of an entry in the Merkle tree.
#[must_use]
pub fn leaf(sequence: u64, at: Time, transfer: &Transfer) -> Digest {
    merkle::leaf(&wire::encode(&(sequence, at, transfer)))
}

/// Where a journal ends: a number and a digest that stand for every transfer before it, in order.
///
/// Each entry's digest covers the one before it, the time and the transfer, so that altering, leaving out or moving any
/// transfer changes all digests from there on. The last one is *the ledger hash*: two ledgers with the same one have the
/// same history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journal {
    length: u64,
    head: Digest,
}

impl Default for Journal {
    fn default() -> Self {
        Self { length: 0, head: Digest::in_domain("hydra journal v2", b"") }
    }
}

impl Journal {
    /// Entries so far; the sequence number of the last one.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest over all entries so far: the ledger hash.
    #[must_use]
    pub fn head(&self) -> Digest {
        self.head
    }

    /// Adds `transfer`, done at `at`, and gives the entry that it became.
    pub fn append(&mut self, at: Time, transfer: Transfer) -> Entry {
        let mut linked = self.head.as_bytes().to_vec();
        linked.extend_from_slice(&at.0.to_be_bytes());
        linked.extend_from_slice(&transfer.encode());
        // One transfer a nanosecond for five centuries fits.
        *self = Self { length: self.length + 1, head: Digest::in_domain("hydra journal entry v2", &linked) };
        Entry { sequence: self.length, at, transfer, chain: self.head }
    }

    /// Adds an entry that was written before, if it is the next one and unaltered.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let mut next = *self;
        let expected = next.append(entry.at, entry.transfer);
        if entry.sequence != expected.sequence {
            let problem = format!("entry {} stands in its place", entry.sequence);
            return Err(StoreError::damaged(expected.sequence, problem));
        }
        if entry.chain != expected.chain {
            let problem = "its digest does not match it and the entries before it";
            return Err(StoreError::damaged(entry.sequence, problem));
        }
        *self = next;
        Ok(())
    }
}

/// What a ledger vouches for with its signature: after so many entries the journal was this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Entries.
    pub size: u64,
    /// The root of the Merkle tree over them.
    pub root: Digest,
    /// The ledger hash.
    pub chain: Digest,
    /// When the last of them was done.
    pub at: Time,
}

impl Message for Head {
    const DOMAIN: &'static str = "ledger head v1";
}

/// What is to be made durable together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Entries of the journal, in order.
    pub entries: Vec<Entry>,
    /// The accounts that they change, as they are after them.
    pub accounts: BTreeMap<Account, Posts>,
    /// Refusals to be remembered.
    pub refusals: Vec<Refusal>,
    /// Refusals that need not be remembered any more.
    pub forgotten: Vec<(PublicKey, TransferId)>,
    /// The Merkle tree after the entries.
    pub tree: Frontier,
    /// The signed head after the entries. Set by whoever writes the batch: see [`Batch::seal`].
    pub head: Option<Signed>,
}

impl Batch {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.refusals.is_empty()
    }

    /// Adds a batch that comes directly after this one: the two are one from here on.
    pub fn extend(&mut self, next: Self) {
        self.entries.extend(next.entries);
        self.accounts.extend(next.accounts);
        self.refusals.extend(next.refusals);
        self.forgotten.extend(next.forgotten);
        if next.tree.size() >= self.tree.size() {
            self.tree = next.tree;
        }
    }

    /// Signs the head after its entries. One signature for however many batches were put together.
    pub fn seal(&mut self, key: &Keypair) {
        if let Some(last) = self.entries.last() {
            let head = Head { size: last.sequence, root: self.tree.root(), chain: last.chain, at: last.at };
            self.head = Some(Signed::seal(key, &head));
        }
    }
}

/// Where a ledger can be read from.
pub trait JournalSource {
    /// Hands over all entries from the first on; stops at the first error, its own or the visitor's, and returns it.
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError>;

    /// What is kept besides the entries.
    fn kept(&mut self) -> Result<Kept, StoreError>;

    /// Hands over all signed heads and the size that each is kept under, like [`JournalSource::entries`].
    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError>;
}

/// Where a ledger is kept.
pub trait JournalStore: JournalSource {
    /// Makes `batch` durable, all of it or nothing, before it returns.
    fn append(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// Finds out whether anything can be written, and changes nothing.
    fn probe(&mut self) -> Result<(), StoreError>;
}

/// What is kept besides the entries of the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The accounts as they stand. They follow from the journal, and are kept for readers in a hurry.
    pub accounts: BTreeMap<Account, Posts>,
    /// Refusals to be remembered.
    pub refusals: Vec<Refusal>,
    /// The newest signed head.
    pub head: Option<Signed>,
}

/// Why a ledger cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// An entry is not what was written.
    #[error(
        "journal entry {sequence} is damaged: {problem}. Nothing was changed. `hydra ledger verify` looks at all of it; \
         restore the database from a copy made before the damage, and keep this one for inspection"
    )]
    Damaged {
        /// Its sequence number, or the one that should be where something else is.
        sequence: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// What is kept besides the journal does not follow from it.
    #[error(
        "the ledger is damaged: {0}. Nothing was changed. `hydra ledger verify` looks at all of it; restore the database \
         from a copy made before the damage, and keep this one for inspection"
    )]
    Unsound(String),
    /// Somebody else has written to the journal.
    #[error(
        "the journal has an entry {sequence} already: another process writes to it. Nothing was changed. Let only one \
         ledger run on a database, and start it again"
    )]
    Conflict {
        /// The entry that was to be written.
        sequence: u64,
    },
    /// The medium failed: full, read-only, gone.
    #[error("the journal cannot be read or written: {0}")]
    Failed(String),
    /// More is under way than can be kept in mind.
    #[error("too many requests are waiting to be written; nothing was changed, ask again later")]
    Busy,
    /// Nothing is written until the medium takes something again.
    #[error("the ledger cannot write at present ({0}); nothing was changed, ask again later")]
    NotReady(String),
}

impl StoreError {
    /// Entry `sequence` is damaged.
    pub fn damaged(sequence: u64, problem: impl Into<String>) -> Self {
        Self::Damaged { sequence, problem: problem.into() }
    }
}

/// A ledger in memory, for simulations and tests. Clones share it, as two openings of a file would, so it survives
/// whoever writes it.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal(Rc<RefCell<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    entries: Vec<Entry>,
    kept: Kept,
    heads: Vec<(u64, Signed)>,
}

impl MemoryJournal {
    /// A copy of all entries.
    #[must_use]
    pub fn copy(&self) -> Vec<Entry> {
        self.0.borrow().entries.clone()
    }
}

impl JournalSource for MemoryJournal {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.copy().into_iter().try_for_each(visit)
    }

    fn kept(&mut self) -> Result<Kept, StoreError> {
        Ok(self.0.borrow().kept.clone())
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let heads = self.0.borrow().heads.clone();
        heads.into_iter().try_for_each(|(size, head)| visit(size, head))
    }
}

impl JournalStore for MemoryJournal {
    fn append(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let Memory { entries, kept, heads } = &mut *self.0.borrow_mut();
        let last = entries.last().map_or(0, |entry| entry.sequence);
        if let Some(first) = batch.entries.first().filter(|first| first.sequence <= last) {
            return Err(StoreError::Conflict { sequence: first.sequence });
        }
        entries.extend_from_slice(&batch.entries);
        kept.accounts.extend(&batch.accounts);
        kept.refusals.retain(|refusal| !batch.forgotten.contains(&(refusal.wallet, refusal.id)));
        kept.refusals.extend_from_slice(&batch.refusals);
        if batch.head.is_some() {
            kept.head.clone_from(&batch.head);
            heads.extend(batch.entries.last().map(|last| last.sequence).zip(batch.head.clone()));
        }
        Ok(())
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{history, transfer, wallet};
    use super::*;
    use crate::protocol::Amount;

    fn journal_of(transfers: &[Transfer]) -> (Journal, Vec<Entry>) {
        let mut journal = Journal::default();
        let entries = transfers.iter().zip(0..).map(|(transfer, at)| journal.append(Time(at), *transfer)).collect();
        (journal, entries)
    }

    fn replayed(entries: &[Entry]) -> Result<Journal, StoreError> {
        let mut journal = Journal::default();
        entries.iter().try_for_each(|entry| journal.replay(entry)).map(|()| journal)
    }

    fn sequence_of(error: StoreError) -> u64 {
        match error {
            StoreError::Damaged { sequence, .. } => sequence,
            other => panic!("{other}"),
        }
    }

    proptest! {
        #[test]
        fn sequence_numbers_have_no_gaps_and_what_was_appended_replays_to_the_same_head(history in history()) {
            let transfers: Vec<Transfer> = history.into_iter().flat_map(|(_, chain)| chain).collect();
            let (journal, entries) = journal_of(&transfers);
            prop_assert!(entries.iter().map(|entry| entry.sequence).eq(1..=transfers.len() as u64));
            prop_assert_eq!(replayed(&entries), Ok(journal));
            prop_assert_eq!(entries.last().map_or(Journal::default().head(), |entry| entry.chain), journal.head());
        }

        #[test]
        fn an_entry_altered_left_out_or_moved_is_named(history in history(), which in any::<prop::sample::Index>()) {
            let mut transfers: Vec<Transfer> = history.into_iter().flat_map(|(_, chain)| chain).collect();
            transfers.push(transfers[0]);
            let (_, entries) = journal_of(&transfers);
            let at = which.index(entries.len() - 1);
            let sequence = entries[at].sequence;

            let mut altered = entries.clone();
            let amount = altered[at].transfer.amount.micro() ^ 1;
            altered[at].transfer.amount = Amount::from_micro(amount).unwrap();
            prop_assert_eq!(sequence_of(replayed(&altered).unwrap_err()), sequence);

            let mut earlier = entries.clone();
            earlier[at].at = Time(u64::MAX);
            prop_assert_eq!(sequence_of(replayed(&earlier).unwrap_err()), sequence);

            let mut forged = entries.clone();
            forged[at].chain = Digest::of(b"forged");
            prop_assert_eq!(sequence_of(replayed(&forged).unwrap_err()), sequence);

            let mut left_out = entries.clone();
            left_out.remove(at);
            prop_assert_eq!(sequence_of(replayed(&left_out).unwrap_err()), sequence);

            let mut moved = entries.clone();
            moved.swap(at, at + 1);
            prop_assert_eq!(sequence_of(replayed(&moved).unwrap_err()), sequence);

            // Renumbered as well, so that only the digests can tell.
            let mut renumbered = moved.clone();
            for (entry, sequence) in renumbered.iter_mut().zip(1..) {
                entry.sequence = sequence;
            }
            let named = sequence_of(replayed(&renumbered).unwrap_err());
            prop_assert_eq!(named, sequence);
        }
    }

    #[test]
    fn a_second_writer_is_noticed() {
        let transfer = transfer(1, Account::Emission, wallet(0), 1);
        let (_, entries) = journal_of(&[transfer, transfer]);
        let batch = |entries: &[Entry]| Batch { entries: entries.to_vec(), ..Batch::default() };
        let mut one = MemoryJournal::default();
        let mut other = one.clone();
        one.append(&batch(&entries[..1])).unwrap();
        assert_eq!(other.append(&batch(&entries[..1])), Err(StoreError::Conflict { sequence: 1 }));
        other.append(&batch(&entries[1..])).unwrap();
        assert_eq!(one.copy(), entries);
    }
}
