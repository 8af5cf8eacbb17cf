use serde::{Deserialize, Serialize};

use super::super::{Account, TransferId};
use crate::protocol::{Amount, Balance, Time, limits};

/// Why a chain of transfers is refused. A refused chain changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
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
    /// Some of the chain was done before, as part of another chain, and some was not.
    #[error("transfer {id} was done before, but not the whole chain that it is in now")]
    ChainPartlyPosted {
        /// A transfer that was done before.
        id: TransferId,
    },
    /// The id was used before, for something else.
    #[error("transfer {id} was done before with another content")]
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
    #[error("transfer {id} takes {amount} from {account}, which can spend {available}")]
    Insufficient {
        /// The transfer.
        id: TransferId,
        /// The account to be debited.
        account: Account,
        /// What it can spend at that point of the chain.
        available: Balance,
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
    /// What is to be ended is no pending transfer, or was ended before.
    #[error("transfer {id} ends {pending}, which is not pending")]
    NotPending {
        /// The transfer.
        id: TransferId,
        /// What it wants to end.
        pending: TransferId,
    },
    /// Between other accounts than the pending transfer, or gives back another amount.
    #[error("transfer {id} does not match {pending}, which it ends")]
    PendingDiffers {
        /// The transfer.
        id: TransferId,
        /// What it wants to end.
        pending: TransferId,
    },
    /// More than is held.
    #[error("transfer {id} posts {amount}, only {held} are held")]
    PendingExceeded {
        /// The transfer.
        id: TransferId,
        /// What is held.
        held: Amount,
        /// What was to be posted.
        amount: Amount,
    },
    /// Too late.
    #[error("transfer {id} comes after the time of {pending}, which can only expire")]
    Expired {
        /// The transfer.
        id: TransferId,
        /// The pending transfer; the same, when it would be born expired.
        pending: TransferId,
    },
    /// Too early.
    #[error("transfer {id} expires {pending}, whose time is not over")]
    NotExpired {
        /// The transfer.
        id: TransferId,
        /// The pending transfer.
        pending: TransferId,
    },
    /// More is pending than the book has room for.
    #[error("{} transfers are pending, which is as many as there may be", limits::HOLDS_MAX)]
    Full,
    /// Before what was done last.
    #[error("the time {} is before {}, when the last transfer was done", at.0, last.0)]
    TimeBackwards {
        /// The time that was handed in.
        at: Time,
        /// The time of the last chain.
        last: Time,
    },
}

impl BookError {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ChainEmpty => "chain_empty",
            Self::ChainTooLong { .. } => "chain_too_long",
            Self::ChainRepeats { .. } => "chain_repeats",
            Self::ChainPartlyPosted { .. } => "chain_partly_posted",
            Self::IdReused { .. } => "id_reused",
            Self::Zero { .. } => "zero_amount",
            Self::SameAccount { .. } => "same_account",
            Self::OneWay { .. } => "one_way_account",
            Self::Insufficient { .. } => "insufficient_funds",
            Self::Cap { .. } => "supply_cap",
            Self::Overflow { .. } => "overflow",
            Self::NotPending { .. } => "not_pending",
            Self::PendingDiffers { .. } => "pending_differs",
            Self::PendingExceeded { .. } => "pending_exceeded",
            Self::Expired { .. } => "expired",
            Self::NotExpired { .. } => "not_expired",
            Self::Full => "ledger_full",
            Self::TimeBackwards { .. } => "time_backwards",
        }
    }
}
