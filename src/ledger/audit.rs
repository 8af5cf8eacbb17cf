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

/// Checks everything that is kept in `source`: every entry as [`Ledger::open`] does, every signed head against the
/// journal, that one covers the last entry, and that they are all signed by the same key, `signer` where it is known.
pub fn audit(
    config: LedgerConfig,
    signer: Option<PublicKey>,
    source: &mut dyn JournalSource,
) -> Result<Audited, StoreError> {
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
    ledger.compare_accounts(&source.kept()?.accounts)?;
    ledger.book().assert_invariants();
    let newest = source.kept()?.head.and_then(|signed| signed.open::<Head>().ok()).map_or(0, |(_, head)| head.size);
    if newest < transfers {
        return Err(StoreError::damaged(newest + 1, "no signed head covers it"));
    }
    let signer = found.filter(|_| number > 0);
    Ok(Audited { transfers, heads: number, signer, head: ledger.journal().head(), totals: ledger.book().totals() })
}
