use std::collections::BTreeMap;

use super::{Head, JournalSource, Ledger, LedgerConfig, StoreError, Totals};
use crate::protocol::{Digest, PublicKey, Signed};

/// A ledger that is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audited {
    /// Transfers in the journal.
    pub transfers: u64,
    /// Signed heads, each of them checked.
    pub heads: u64,
    /// Whose signature they bear; nobody's, while there are none.
    pub signer: Option<PublicKey>,
    /// The ledger hash.
    pub head: Digest,
    /// The sums.
    pub totals: Totals,
}

/// Checks everything that is kept in `source`: what [`audit_journal`] does, and that the accounts that are kept beside the
/// journal follow from it.
pub fn audit(
    config: LedgerConfig,
    signer: Option<PublicKey>,
    source: &mut dyn JournalSource,
) -> Result<Audited, StoreError> {
    let (ledger, audited) = replayed(config, signer, source)?;
    ledger.compare_accounts(&source.kept()?.accounts)?;
    Ok(audited)
}

/// Checks the journal in `source`: every entry as [`Ledger::open`] does, every signed head against the journal, that one
/// covers the last entry, and that they are all signed by the same key, `signer` where it is known.
pub fn audit_journal(
    config: LedgerConfig,
    signer: Option<PublicKey>,
    source: &mut dyn JournalSource,
) -> Result<Audited, StoreError> {
    replayed(config, signer, source).map(|(_, audited)| audited)
}

fn replayed(
    config: LedgerConfig,
    signer: Option<PublicKey>,
    source: &mut dyn JournalSource,
) -> Result<(Ledger, Audited), StoreError> {
    let mut heads = BTreeMap::new();
    let mut found = signer;
    source.heads(&mut |size, signed: Signed| {
        let (by, head) =
            signed.open::<Head>().map_err(|error| StoreError::Unsound(format!("a signed head: {error}")))?;
        if *found.get_or_insert(by) != by {
            return Err(StoreError::damaged(head.size, format!("its head is signed by {by}, which is another key")));
        }
        if head.size != size {
            return Err(StoreError::damaged(size, format!("its head is that of entry {}", head.size)));
        }
        heads.insert(size, head);
        Ok(())
    })?;
    let number = heads.len() as u64;
    let newest = heads.last_key_value().map_or(0, |(size, _)| *size);
    let mut ledger = Ledger::empty(config);
    source.entries(&mut |entry| {
        ledger.replay(&entry)?;
        match heads.remove(&entry.sequence) {
            Some(head) if head != ledger.head() => {
                Err(StoreError::damaged(entry.sequence, "what was signed when it was the last was another history"))
            }
            _ => Ok(()),
        }
    })?;
    let transfers = ledger.journal().length();
    if let Some((missing, _)) = heads.first_key_value() {
        return Err(StoreError::damaged((*missing).min(transfers + 1), "it was signed, and is missing"));
    }
    ledger.book().assert_invariants();
    if newest < transfers {
        return Err(StoreError::damaged(newest + 1, "no signed head covers it"));
    }
    let signer = found.filter(|_| number > 0);
    let (head, totals) = (ledger.journal().head(), ledger.book().totals());
    Ok((ledger, Audited { transfers, heads: number, signer, head, totals }))
}
