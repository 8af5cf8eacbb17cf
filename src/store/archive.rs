use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::LedgerStore;
use crate::ledger::merkle::Tree;
use crate::ledger::{Account, Entry, Posts, Proof, StoreError, TransferId};
use crate::protocol::{Digest, Signed, limits};

/// Looks things up in the journal of a ledger, also while that writes: entries, whom they concern, signed heads, proofs.
/// It sees what is durable and nothing else, and every answer is of one moment.
///
/// The places of each account's entries and the inner nodes of the Merkle tree are in memory, 16 to 32 bytes an entry,
/// so that an answer takes the same time however long the journal is.
#[derive(Debug)]
pub struct Archive(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    store: LedgerStore,
    tree: Tree,
    /// The entries that move or hold something of each account, by their numbers.
    places: BTreeMap<Account, Vec<u64>>,
}

/// Whether a journal goes on from what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Growth {
    /// It does.
    Proved(Box<Proof>),
    /// Nothing was signed when it had that size.
    NeverSigned {
        /// The last smaller size at which something was, if there is one.
        nearest: Option<u64>,
    },
}

impl Archive {
    /// The archive of the ledger in `store`, which must be one that reads what is there now (not a snapshot). Reads the
    /// whole journal.
    pub fn open(store: LedgerStore) -> Result<Self, StoreError> {
        let archive = Self(Mutex::new(Inner { store, tree: Tree::default(), places: BTreeMap::new() }));
        archive.look(|_, _| Ok(()))?;
        Ok(archive)
    }

    /// Reads what was written since the last time, and then something of it at the same moment. `read` is given the
    /// newest head and its size.
    fn look<T>(
        &self,
        read: impl FnOnce(&Lookup, Option<(u64, Signed)>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { store, tree, places } = &mut *inner;
        store.at_once(|store| {
            let newest = store.head_until(u64::MAX)?;
            loop {
                let entries = store.entries_after(tree.size(), limits::ARCHIVE_READ)?;
                for entry in &entries {
                    tree.push(entry.leaf());
                    for account in [entry.transfer.debit, entry.transfer.credit] {
                        places.entry(account).or_default().push(entry.sequence);
                    }
                }
                if entries.len() < limits::ARCHIVE_READ {
                    break;
                }
            }
            read(&Lookup { store, tree, places }, newest)
        })
    }

    /// The newest signed head; none, while the journal is empty.
    pub fn head(&self) -> Result<Option<Signed>, StoreError> {
        self.look(|_, newest| Ok(newest.map(|(_, head)| head)))
    }

    /// Signed heads of sizes after `after`, and no more than `most`.
    pub fn heads(&self, after: u64, most: usize) -> Result<Vec<Signed>, StoreError> {
        self.look(|at, _| Ok(at.store.heads_after(after, most)?.into_iter().map(|(_, head)| head).collect()))
    }

    /// The `most` entries after number `after`, oldest first.
    pub fn entries(&self, after: u64, most: usize) -> Result<Vec<Entry>, StoreError> {
        self.look(|at, _| at.store.entries_after(after, most))
    }

    /// Accounts in the order of their names, those after `after`, and no more than `most`.
    pub fn accounts(&self, after: Option<Account>, most: usize) -> Result<Vec<(Account, Posts)>, StoreError> {
        self.look(|at, _| at.store.accounts_after(after, most))
    }

    /// The place of the transfer `id`, if it was done.
    pub fn find(&self, id: TransferId) -> Result<Option<u64>, StoreError> {
        self.look(|at, _| at.store.find(id))
    }

    /// Those of these transfers that were done.
    pub fn transfers(&self, ids: &[TransferId]) -> Result<Vec<Entry>, StoreError> {
        self.look(|at, _| {
            let places = ids.iter().map(|id| at.store.find(*id)).collect::<Result<Vec<_>, _>>()?;
            places.into_iter().flatten().map(|sequence| at.entry(sequence)).collect()
        })
    }

    /// The `most` last entries before number `before` that concern one of these accounts, newest first.
    pub fn history(&self, accounts: &[Account], before: u64, most: usize) -> Result<Vec<Entry>, StoreError> {
        self.look(|at, _| {
            let earlier = |places: &Vec<u64>| {
                let end = places.partition_point(|place| *place < before);
                places.iter().take(end).rev().take(most).copied().collect::<Vec<_>>()
            };
            let mut wanted: Vec<u64> = accounts.iter().filter_map(|one| at.places.get(one)).flat_map(earlier).collect();
            wanted.sort_unstable_by(|one, other| other.cmp(one));
            wanted.dedup();
            wanted.truncate(most);
            wanted.into_iter().map(|sequence| at.entry(sequence)).collect()
        })
    }

    /// The proof that entry number `sequence` is in the journal; none, where there is no such entry.
    pub fn inclusion(&self, sequence: u64) -> Result<Option<Proof>, StoreError> {
        self.look(|at, newest| {
            let Some(((size, head), index)) = newest.zip(sequence.checked_sub(1)) else { return Ok(None) };
            let Some(path) = at.tree.inclusion(index, size, &mut |range| at.leaves(range))? else { return Ok(None) };
            let Entry { sequence, at, transfer, .. } = at.entry(sequence)?;
            Ok(Some(Proof::Inclusion { sequence, at, transfer, path, head }))
        })
    }

    /// The proof that the journal goes on from when it had `since` entries.
    pub fn growth(&self, since: u64) -> Result<Growth, StoreError> {
        self.look(|at, newest| {
            let nearest = at.store.head_until(since)?;
            match (nearest, newest) {
                (Some((signed, earlier)), Some((size, head))) if signed == since => {
                    let path = at.tree.consistency(since, size, &mut |range| at.leaves(range))?.unwrap_or_default();
                    Ok(Growth::Proved(Box::new(Proof::Consistency { earlier, head, path })))
                }
                (nearest, _) => Ok(Growth::NeverSigned { nearest: nearest.map(|(size, _)| size) }),
            }
        })
    }
}

/// What is there at one moment.
struct Lookup<'a> {
    store: &'a LedgerStore,
    tree: &'a Tree,
    places: &'a BTreeMap<Account, Vec<u64>>,
}

impl Lookup<'_> {
    fn entry(&self, sequence: u64) -> Result<Entry, StoreError> {
        let entry = self.store.entries_after(sequence.saturating_sub(1), 1)?.pop();
        entry.ok_or_else(|| StoreError::damaged(sequence, "it is missing"))
    }

    /// The leaves of exactly these entries, counted from 0.
    fn leaves(&self, range: Range<u64>) -> Result<Vec<Digest>, StoreError> {
        let many = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let entries = self.store.entries_after(range.start, many)?;
        if entries.len() != many {
            return Err(StoreError::damaged(range.start + entries.len() as u64 + 1, "it is missing"));
        }
        Ok(entries.iter().map(Entry::leaf).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::testing::{accepted, emitting, ledger_key, micro, pay_round, vests_soon, wallet};
    use crate::ledger::{EconomyConfig, Head, JournalStore, Ledger, MemoryJournal};
    use crate::protocol::{Emission, Time};
    use crate::store::Database;

    #[test]
    fn an_archive_follows_the_journal_and_proves_every_entry_and_every_growth() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        let emission = Emission { initial: micro(100_000), halving_rounds: 1_000, cap: micro(10_000_000) };
        let config = emitting(EconomyConfig { emission, ..vests_soon() });
        let mut store = LedgerStore::new(Database::open(&path).unwrap()).unwrap();
        let archive = Archive::open(LedgerStore::read_only(&path).unwrap()).unwrap();
        assert_eq!((archive.head().unwrap(), archive.inclusion(1).unwrap()), (None, None));
        assert_eq!(archive.growth(0).unwrap(), Growth::NeverSigned { nearest: None });
        let (mut ledger, mut memory) = (Ledger::open(config, &mut store).unwrap(), MemoryJournal::default());
        let mut sizes = Vec::new();
        for round in 0..5 {
            let verdicts = (0..70).map(|n| accepted(round * 100 + n, (n % 3) as u8, 5)).collect();
            let decided = ledger.decide(Time(7), &pay_round(round, verdicts)).unwrap();
            let (_, mut batch) = ledger.apply(decided);
            batch.seal(&ledger_key());
            store.append(&batch).unwrap();
            memory.append(&batch).unwrap();
            sizes.push(ledger.journal().length());
            // Every so often, so that it has more than one step to catch up with.
            if round % 2 == 0 {
                check(&archive, &memory.copy(), &sizes);
            }
        }
        assert!(sizes[4] > 512, "more than one block of leaves: {sizes:?}");
        let reopened = Archive::open(LedgerStore::read_only(&path).unwrap()).unwrap();
        check(&reopened, &memory.copy(), &sizes);
    }

    fn check(archive: &Archive, entries: &[Entry], sizes: &[u64]) {
        let key = ledger_key().public();
        let last = entries.len() as u64;
        let newest = archive.head().unwrap().unwrap().open::<Head>().unwrap().1;
        assert_eq!((newest.size, newest.chain), (last, entries.last().unwrap().chain));
        for entry in entries.iter().step_by(37).chain(entries.last()) {
            let proof = archive.inclusion(entry.sequence).unwrap().unwrap();
            assert_eq!(proof.check(key), Ok(newest));
            let Proof::Inclusion { transfer, .. } = proof else { panic!() };
            assert_eq!(transfer, entry.transfer);
            assert_eq!(archive.find(transfer.id).unwrap(), Some(entry.sequence));
        }
        assert_eq!(archive.inclusion(last + 1).unwrap(), None);
        assert_eq!(archive.inclusion(0).unwrap(), None);
        for size in sizes {
            let Growth::Proved(proof) = archive.growth(*size).unwrap() else { panic!("{size} was signed") };
            assert_eq!(proof.check(key), Ok(newest));
        }
        let unsigned = archive.growth(sizes[0] + 1).unwrap();
        assert!(sizes.contains(&(sizes[0] + 1)) || unsigned == Growth::NeverSigned { nearest: Some(sizes[0]) });
        assert_eq!(archive.heads(0, 100).unwrap().len(), sizes.len());
        assert_eq!(archive.entries(3, 5).unwrap(), entries[3..8]);

        let concerns = |entry: &&Entry| [entry.transfer.debit, entry.transfer.credit].contains(&wallet(1));
        let mut expected: Vec<Entry> = entries.iter().filter(concerns).copied().collect();
        expected.reverse();
        assert_eq!(archive.history(&[wallet(1)], u64::MAX, usize::MAX).unwrap(), expected);
        // Page by page, and no entry twice where it concerns both.
        let (mut paged, mut before) = (Vec::new(), u64::MAX);
        while let Some(last) = {
            let page = archive.history(&[wallet(1), Account::Emission], before, 50).unwrap();
            let last = page.last().map(|entry| entry.sequence);
            paged.extend(page);
            last
        } {
            before = last;
        }
        paged.reverse();
        assert_eq!(paged, entries, "every entry so far comes from the emission");
        let accounts = archive.accounts(None, 2).unwrap();
        let rest = archive.accounts(accounts.last().map(|(account, _)| *account), 10).unwrap();
        assert_eq!((accounts.len(), rest.len()), (2, 2), "emission and three workers");
    }
}
