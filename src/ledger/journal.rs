use std::cell::RefCell;
use std::rc::Rc;

use super::Transfer;
use crate::protocol::Digest;

/// A transfer in its place in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its place, counted from 1, without gaps.
    pub sequence: u64,
    /// What was done.
    pub transfer: Transfer,
    /// The head of the journal with this entry as the last.
    pub chain: Digest,
}

/// Where a journal ends: a number and a digest that stand for every transfer before it, in order.
///
/// Each entry's digest covers the one before it and the transfer, so that altering, leaving out or moving any transfer
/// changes all digests from there on. The last one is *the ledger hash*: two ledgers with the same one have the same
/// history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journal {
    length: u64,
    head: Digest,
}

impl Default for Journal {
    fn default() -> Self {
        Self { length: 0, head: Digest::in_domain("hydra journal v1", b"") }
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

    /// Adds `transfer` and gives the entry that it became.
    pub fn append(&mut self, transfer: Transfer) -> Entry {
        let mut linked = self.head.as_bytes().to_vec();
        linked.extend_from_slice(&transfer.encode());
        // One transfer a nanosecond for five centuries fits.
        *self = Self { length: self.length + 1, head: Digest::in_domain("hydra journal entry v1", &linked) };
        Entry { sequence: self.length, transfer, chain: self.head }
    }

    /// Adds an entry that was written before, if it is the next one and unaltered.
    pub fn replay(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let mut next = *self;
        let expected = next.append(entry.transfer);
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

/// Where the journal is kept. The ledger's only memory: all else follows from it.
pub trait JournalStore {
    /// Hands over all entries from the first on; stops at the first error, its own or the visitor's, and returns it.
    fn load(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError>;

    /// Makes `entries` durable, all of them or none, before it returns.
    fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError>;
}

/// Why a journal cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// An entry is not what was written.
    #[error(
        "journal entry {sequence} is damaged: {problem}. Nothing was changed. Restore the database from a copy made \
         before the damage, and keep this one for inspection"
    )]
    Damaged {
        /// Its sequence number, or the one that should be where something else is.
        sequence: u64,
        /// What is wrong with it.
        problem: String,
    },
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
}

impl StoreError {
    /// Entry `sequence` is damaged.
    pub fn damaged(sequence: u64, problem: impl Into<String>) -> Self {
        Self::Damaged { sequence, problem: problem.into() }
    }
}

/// A journal in memory, for simulations and tests. Clones share the entries, as two openings of a file would, so the
/// journal survives the ledger that writes it.
#[derive(Debug, Clone, Default)]
pub struct MemoryJournal(Rc<RefCell<Vec<Entry>>>);

impl MemoryJournal {
    /// A copy of all entries.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.0.borrow().clone()
    }
}

impl From<Vec<Entry>> for MemoryJournal {
    fn from(entries: Vec<Entry>) -> Self {
        Self(Rc::new(RefCell::new(entries)))
    }
}

impl JournalStore for MemoryJournal {
    fn load(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.entries().into_iter().try_for_each(visit)
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut all = self.0.borrow_mut();
        let last = all.last().map_or(0, |entry| entry.sequence);
        if let Some(first) = entries.first().filter(|first| first.sequence <= last) {
            return Err(StoreError::Conflict { sequence: first.sequence });
        }
        all.extend_from_slice(entries);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::history;
    use super::*;
    use crate::protocol::Amount;

    fn journal_of(transfers: &[Transfer]) -> (Journal, Vec<Entry>) {
        let mut journal = Journal::default();
        let entries = transfers.iter().map(|transfer| journal.append(*transfer)).collect();
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
        fn what_was_appended_replays_to_the_same_head_and_numbers_have_no_gaps(history in history()) {
            let transfers = history.concat();
            let (journal, entries) = journal_of(&transfers);
            prop_assert!(entries.iter().map(|entry| entry.sequence).eq(1..=transfers.len() as u64));
            prop_assert_eq!(replayed(&entries), Ok(journal));
            prop_assert_eq!(entries.last().map_or(Journal::default().head(), |entry| entry.chain), journal.head());
        }

        #[test]
        fn an_entry_altered_left_out_or_moved_is_named(history in history(), which in any::<prop::sample::Index>()) {
            let mut transfers = history.concat();
            transfers.push(transfers[0]);
            let (_, entries) = journal_of(&transfers);
            let at = which.index(entries.len() - 1);
            let sequence = entries[at].sequence;

            let mut altered = entries.clone();
            let amount = altered[at].transfer.amount.micro() ^ 1;
            altered[at].transfer.amount = Amount::from_micro(amount).unwrap();
            prop_assert_eq!(sequence_of(replayed(&altered).unwrap_err()), sequence);

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
        let transfer =
            super::super::testing::transfer(1, super::super::Account::Emission, super::super::testing::wallet(0), 1);
        let (_, entries) = journal_of(&[transfer, transfer]);
        let mut one = MemoryJournal::default();
        let mut other = one.clone();
        one.append(&entries[..1]).unwrap();
        assert_eq!(other.append(&entries[..1]), Err(StoreError::Conflict { sequence: 1 }));
        other.append(&entries[1..]).unwrap();
        assert_eq!(one.entries(), entries);
    }
}
