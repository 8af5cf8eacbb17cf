use serde::{Deserialize, Serialize};

use super::merkle;
use super::{Head, Transfer, leaf};
use crate::protocol::{Digest, EnvelopeError, PublicKey, Signed, Time};

/// Shows something about a ledger to somebody who has nothing of it but the key that it signs with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proof", rename_all = "snake_case", deny_unknown_fields)]
pub enum Proof {
    /// That a transfer is in the journal.
    Inclusion {
        /// Its place.
        sequence: u64,
        /// When it was done.
        at: Time,
        /// The transfer.
        transfer: Transfer,
        /// From its leaf up to the root.
        path: Vec<Digest>,
        /// The signed [`Head`] that it is under.
        head: Signed,
    },
    /// That a journal goes on from what it was earlier.
    Consistency {
        /// The earlier signed head.
        earlier: Signed,
        /// The later one.
        head: Signed,
        /// What connects them.
        path: Vec<Digest>,
    },
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// A head is not what was signed.
    #[error("the head of the proof cannot be believed: {0}")]
    Head(#[from] EnvelopeError),
    /// A head of somebody else.
    #[error("the head of the proof is signed by {0}, which is not the key of the ledger")]
    Signer(PublicKey),
    /// The digests lead elsewhere.
    #[error("the digests of the proof do not lead to what the ledger has signed")]
    Path,
}

impl Proof {
    /// Checks it against the key of the ledger: the head that it is about.
    pub fn check(&self, ledger: PublicKey) -> Result<Head, ProofError> {
        let open = |signed: &Signed| {
            let (signer, head) = signed.open::<Head>()?;
            if signer == ledger { Ok(head) } else { Err(ProofError::Signer(signer)) }
        };
        let (head, holds) = match self {
            Self::Inclusion { sequence, at, transfer, path, head } => {
                let head = open(head)?;
                let leaf = leaf(*sequence, *at, transfer);
                // Entries are counted from 1, leaves from 0.
                let index = sequence.checked_sub(1);
                let holds = index.is_some_and(|index| merkle::included(leaf, index, head.size, path, head.root));
                (head, holds)
            }
            Self::Consistency { earlier, head, path } => {
                let (earlier, head) = (open(earlier)?, open(head)?);
                (head, merkle::consistent(earlier.size, earlier.root, head.size, head.root, path))
            }
        };
        if holds { Ok(head) } else { Err(ProofError::Path) }
    }
}
