use serde::{Deserialize, Serialize};

use super::{BookError, TransferId};
use crate::protocol::{Amount, Digest, EnvelopeError, Message, PublicKey, Signed, Time, limits, wire};

/// What the holder of a key asks the ledger to do, signed with that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The order's name, made by [`TransferId::request`]: the same order is done once, however often it arrives.
    pub id: TransferId,
    /// Until when it may be done for the first time. At most [`limits::ORDER_LIFETIME_MAX`] ahead.
    pub valid_until: Time,
    /// What is to be done.
    pub action: Action,
}

impl Message for Order {
    const DOMAIN: &'static str = "ledger order v1";
}

/// What an order does. The order of the variants is the wire format: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Moves tokens to another wallet.
    Send {
        /// Whose.
        to: PublicKey,
        /// How much.
        amount: Amount,
    },
    /// Puts tokens at stake.
    Stake {
        /// How much.
        amount: Amount,
    },
    /// Takes tokens out of the stake. They are back after the economy's delay, unless they are slashed until then.
    Unstake {
        /// How much.
        amount: Amount,
    },
    /// Holds tokens for somebody who gives something for them outside of the ledger.
    Offer {
        /// How much.
        amount: Amount,
        /// Who may accept; anybody, if `None`.
        taker: Option<PublicKey>,
        /// The digest of what the two agree on.
        terms: Digest,
        /// When the tokens go back, unless they were let go before. At most [`limits::OFFER_LIFETIME_MAX`] ahead.
        expires: Time,
    },
    /// Binds an offer to whoever signs this.
    Accept {
        /// The id of the order that made it.
        offer: TransferId,
    },
    /// The maker lets an accepted offer go to whoever accepted it.
    Release {
        /// The offer.
        offer: TransferId,
    },
    /// The maker takes back an offer that nobody accepted, or whoever accepted it gives it back.
    Cancel {
        /// The offer.
        offer: TransferId,
    },
}

/// An order whose signature was checked. Checking takes a core some 50 µs, and needs no ledger: it is done where orders
/// come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedOrder {
    signer: PublicKey,
    order: Order,
    digest: Digest,
}

impl CheckedOrder {
    /// Checks the signature.
    pub fn check(signed: &Signed) -> Result<Self, EnvelopeError> {
        let (signer, order) = signed.open()?;
        Ok(Self { signer, order, digest: Digest::of(&wire::encode(signed)) })
    }

    /// Who signed it.
    #[must_use]
    pub fn signer(&self) -> PublicKey {
        self.signer
    }

    /// What they want.
    #[must_use]
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// The digest of the signed order.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Why an order, or a query's hold, is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum OrderError {
    /// Its time is over.
    #[error("the order was valid until {}, it is {} now; sign a new one", valid_until.0, now.0)]
    Lapsed {
        /// Until when.
        valid_until: Time,
        /// The ledger's time.
        now: Time,
    },
    /// It would have to be remembered for too long.
    #[error("the order names the time {}, the latest that is taken now is {}", time.0, latest.0)]
    TooFar {
        /// What it names.
        time: Time,
        /// What it may name.
        latest: Time,
    },
    /// An id that is not for requests.
    #[error("{id} is not the id of a request: those have the byte 02 in their ninth place")]
    IdKind {
        /// The id.
        id: TransferId,
    },
    /// The id was used before, for something else.
    #[error("another request came under the id {id} before; use a new one")]
    IdReused {
        /// The id.
        id: TransferId,
    },
    /// So many orders of this wallet were refused lately that the ledger may not know this one any more.
    #[error(
        "more than {} orders of this wallet were refused lately; sign one that is valid later than {}",
        limits::REFUSALS_PER_WALLET, after.0
    )]
    Stale {
        /// What it must be valid after.
        after: Time,
    },
    /// There is no such offer any more, or there never was.
    #[error("there is no open offer {offer}")]
    OfferUnknown {
        /// The offer.
        offer: TransferId,
    },
    /// Somebody has accepted it already, or it is for somebody else, or it is one's own.
    #[error("the offer {offer} is not open to this wallet")]
    OfferClosed {
        /// The offer.
        offer: TransferId,
    },
    /// Only somebody else may do that at this point.
    #[error("the offer {offer} is not this wallet's to release or cancel now")]
    OfferNotYours {
        /// The offer.
        offer: TransferId,
    },
    /// Too much under way.
    #[error("this wallet takes {} amounts out of its stake already; wait for one of them", limits::UNSTAKING_MAX)]
    Unstaking,
    /// The transfers are not allowed.
    #[error(transparent)]
    Book(#[from] BookError),
}

impl OrderError {
    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Lapsed { .. } => "order_lapsed",
            Self::TooFar { .. } => "order_too_far",
            Self::IdKind { .. } => "id_kind",
            Self::IdReused { .. } => "id_reused",
            Self::Stale { .. } => "order_stale",
            Self::OfferUnknown { .. } => "offer_unknown",
            Self::OfferClosed { .. } => "offer_closed",
            Self::OfferNotYours { .. } => "offer_not_yours",
            Self::Unstaking => "unstaking_limit",
            Self::Book(error) => error.code(),
        }
    }

    /// Whether it would be the same at any later time.
    pub(super) fn lasts(&self) -> bool {
        matches!(
            self,
            Self::Lapsed { .. }
                | Self::TooFar { .. }
                | Self::IdKind { .. }
                | Self::IdReused { .. }
                | Self::Stale { .. }
        )
    }
}
