use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Account;
use crate::protocol::{Amount, Digest, PublicKey, Round, RunId, TaskId, Time, wire};

/// The name of a transfer, made by whoever asks for it, so that asking twice is the same as asking once.
///
/// 128 bits, ordered roughly by time, because a database index grows fastest at its end. Written as 32 lower-case
/// hexadecimal digits for people and in JSON. Every way to make one puts its own kind into bits 56 to 63, so that two
/// ways never make the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(u128);

/// A text that is no transfer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a transfer id is 32 hexadecimal digits, lower case")]
pub struct TransferIdError;

/// The kind bytes: of [`TransferId::pay`], [`TransferId::request`], [`TransferId::resolution`], [`TransferId::nth`].
const KIND_PAY: u128 = 1;
const KIND_REQUEST: u128 = 2;
const KIND_RESOLUTION: u128 = 3;
const KIND_NTH: u128 = 4;
/// The 56 bits below the kind.
const LOW: u128 = (1 << 56) - 1;

impl TransferId {
    /// The id with these bits.
    #[must_use]
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// The id of a round's `index`-th pay. From the highest bit: 32 bits round, 32 bits index, 8 bits kind, 56 bits of
    /// the run's digest. It follows from what is paid alone, so the same pay has the same id whenever it is asked for.
    #[must_use]
    pub fn pay(run: RunId, round: Round, index: u32) -> Self {
        let run = run.0.as_bytes().iter().take(7).fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        Self(u128::from(round.0) << 96 | u128::from(index) << 64 | KIND_PAY << 56 | run)
    }

    /// An id for somebody's request, made at `at`. From the highest bit: 64 bits milliseconds, 8 bits kind, 56 bits of
    /// `random`, which keeps the ids of one millisecond apart.
    #[must_use]
    pub const fn request(at: Time, random: u64) -> Self {
        Self((at.0 as u128) << 64 | KIND_REQUEST << 56 | random as u128 & LOW)
    }

    /// Whether it is of the form that [`TransferId::request`] makes. Others are the ledger's own, and nobody may take
    /// one away from it.
    #[must_use]
    pub const fn is_request(self) -> bool {
        self.0 >> 56 & 0xff == KIND_REQUEST
    }

    /// The id of what ends the pending transfer that a request made under this id.
    #[must_use]
    pub const fn resolution(self) -> Self {
        Self(self.0 & !(0xff << 56) | KIND_RESOLUTION << 56)
    }

    /// The id of a transfer that the ledger makes as its `sequence`-th, at `at`.
    #[must_use]
    pub const fn nth(at: Time, sequence: u64) -> Self {
        Self((at.0 as u128) << 64 | KIND_NTH << 56 | sequence as u128 & LOW)
    }

    /// The 16 bytes, highest first, so that bytes sort as ids do.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl From<[u8; 16]> for TransferId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TransferId {
    type Err = TransferIdError;

    fn from_str(text: &str) -> Result<Self, TransferIdError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| TransferIdError)?;
        Ok(Self(u128::from_be_bytes(bytes.try_into().map_err(|_| TransferIdError)?)))
    }
}

impl Serialize for TransferId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for TransferId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u128::deserialize(deserializer).map(Self)
        }
    }
}

/// An amount that moves, or is held to move, from one account to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its name.
    pub id: TransferId,
    /// Whether it moves at once, is held, or ends a hold.
    pub kind: Kind,
    /// Where the amount is taken.
    pub debit: Account,
    /// Where it goes.
    pub credit: Account,
    /// How much, in µHYD; more than nothing, but for [`Purpose::Slash`] and [`Purpose::NothingDue`].
    pub amount: Amount,
    /// What for.
    pub purpose: Purpose,
}

/// What a transfer does. The order of the variants is the wire format: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Moves the amount.
    Single,
    /// Holds the amount: the debited account cannot spend it, the credited one does not have it yet.
    Pending {
        /// From when on it can only be expired; never, if `None`.
        expires: Option<Time>,
    },
    /// Moves the amount, which is at most what the pending transfer holds, and gives back the rest.
    Post {
        /// The pending transfer.
        pending: TransferId,
    },
    /// Gives back all that the pending transfer holds.
    Void {
        /// The pending transfer.
        pending: TransferId,
    },
    /// Gives back all that the pending transfer holds, because its time is over.
    Expire {
        /// The pending transfer.
        pending: TransferId,
    },
}

impl Kind {
    /// The pending transfer that this one ends, if it does.
    #[must_use]
    pub fn resolves(self) -> Option<TransferId> {
        match self {
            Self::Single | Self::Pending { .. } => None,
            Self::Post { pending } | Self::Void { pending } | Self::Expire { pending } => Some(pending),
        }
    }

    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Pending { .. } => "pending",
            Self::Post { .. } => "post",
            Self::Void { .. } => "void",
            Self::Expire { .. } => "expire",
        }
    }
}

/// Why an amount moves. `order` is the digest of the signed order that asked for it. The order of the variants is the
/// wire format: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// For accepted work: held until it vests.
    Pay {
        /// The run.
        run: RunId,
        /// The round it was paid in.
        round: Round,
        /// The work.
        task: TaskId,
        /// The signed verdict that accepted it ([`Signed`](crate::protocol::Signed), digest of the canonical encoding).
        verdict: Digest,
        /// All the verdicts that the round was paid for, so that nobody can have it paid again for others.
        verdicts: Digest,
    },
    /// A pay that its worker has now for good.
    Vest,
    /// A pay, or a stake on its way out, that is taken back for false work.
    Forfeit {
        /// What was found.
        finding: Digest,
    },
    /// A stake that is burned for false work; nothing, where there was no stake: it still tells of the finding.
    Slash {
        /// The signed verdict.
        verdict: Digest,
        /// What was found.
        finding: Digest,
    },
    /// The most that a query may cost, held.
    Query,
    /// What a query did cost.
    Settled {
        /// The digest of the settlement that was asked for.
        request: Digest,
    },
    /// A share of what a query did cost.
    Share {
        /// The hold.
        of: TransferId,
    },
    /// A query that costs nothing.
    Released {
        /// The digest of the settlement that was asked for.
        request: Digest,
    },
    /// Nobody made use of it in time.
    Expired,
    /// To another wallet.
    Sent {
        /// The order.
        order: Digest,
    },
    /// To stand for one's work.
    Staked {
        /// The order.
        order: Digest,
    },
    /// A stake on its way out.
    Unstaking {
        /// The order.
        order: Digest,
        /// When it is back in the wallet, unless it is slashed until then.
        matures: Time,
    },
    /// A stake that is back.
    Unstaked,
    /// Offered for something outside of the ledger.
    Offered {
        /// The order.
        order: Digest,
        /// Who may accept; anybody, if `None`.
        taker: Option<PublicKey>,
        /// The digest of what the two agree on.
        terms: Digest,
    },
    /// An offer that somebody accepted: it can only go to them now, or back.
    Accepted {
        /// The order.
        order: Digest,
        /// The offer: the id of the transfer that first held it.
        offer: TransferId,
    },
    /// An offer that its maker let go to whoever accepted it.
    Traded {
        /// The order.
        order: Digest,
        /// The offer.
        offer: TransferId,
    },
    /// An offer that is back with its maker.
    Withdrawn {
        /// The order.
        order: Digest,
        /// The offer.
        offer: TransferId,
    },
    /// A round that pays nobody, of nothing: it still tells that the round was paid.
    NothingDue {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
        /// All the verdicts that it was to be paid for.
        verdicts: Digest,
    },
}

impl Purpose {
    /// One word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pay { .. } => "pay",
            Self::Vest => "vest",
            Self::Forfeit { .. } => "forfeit",
            Self::Slash { .. } => "slash",
            Self::Query => "query",
            Self::Settled { .. } => "settled",
            Self::Share { .. } => "share",
            Self::Released { .. } => "released",
            Self::Expired => "expired",
            Self::Sent { .. } => "sent",
            Self::Staked { .. } => "staked",
            Self::Unstaking { .. } => "unstaking",
            Self::Unstaked => "unstaked",
            Self::Offered { .. } => "offered",
            Self::Accepted { .. } => "accepted",
            Self::Traded { .. } => "traded",
            Self::Withdrawn { .. } => "withdrawn",
            Self::NothingDue { .. } => "nothing_due",
        }
    }

    /// The request that it comes from, if that came under the transfer's id.
    fn request(&self) -> Option<Digest> {
        match *self {
            Self::Settled { request } | Self::Released { request } => Some(request),
            Self::Sent { order }
            | Self::Staked { order }
            | Self::Unstaking { order, .. }
            | Self::Offered { order, .. }
            | Self::Accepted { order, .. }
            | Self::Traded { order, .. }
            | Self::Withdrawn { order, .. } => Some(order),
            _ => None,
        }
    }
}

impl Transfer {
    /// The canonical encoding: what the journal chains, and what the store keeps.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// What its id stands for: the request, where one asked for it under this id, or the transfer itself.
    #[must_use]
    pub fn content(&self) -> Content {
        Content::of(self.purpose.request().unwrap_or_else(|| Digest::of(&self.encode())))
    }
}

/// The first 64 bits of the digest of what came under an id: enough to notice that something else comes under the same
/// id later, and a quarter of the memory that the whole digest takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content(u64);

impl Content {
    /// Of what has this digest.
    #[must_use]
    pub fn of(digest: Digest) -> Self {
        Self(digest.as_bytes().iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }

    /// As a number, for a database column.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl From<u64> for Content {
    fn from(bits: u64) -> Self {
        Self(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Keypair, limits};

    #[test]
    fn the_same_pay_always_has_the_same_id_and_ids_sort_by_round_then_index() {
        let run = RunId(Digest::of(b"run"));
        assert_eq!(TransferId::pay(run, Round(3), 4), TransferId::pay(run, Round(3), 4));
        let digits = format!("0000000300000004{}{}", "01", &run.to_string()[..14]);
        assert_eq!(TransferId::pay(run, Round(3), 4).to_string(), digits);
        let ids = [(0, 0), (0, 1), (0, u32::MAX), (1, 0), (limits::ROUNDS_MAX, 0)];
        assert!(ids.map(|(round, index)| TransferId::pay(run, Round(round), index).to_bytes()).is_sorted());
        assert_ne!(TransferId::pay(run, Round(3), 4), TransferId::pay(RunId(Digest::of(b"other")), Round(3), 4));
    }

    #[test]
    fn ids_read_back_from_text_json_and_wire() {
        for id in [TransferId::new(0), TransferId::new(u128::MAX), TransferId::pay(RunId(Digest::of(b"")), Round(1), 2)]
        {
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(serde_json::from_str::<TransferId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
            assert_eq!(wire::decode(&wire::encode(&id), 100), Ok(id));
        }
        for bad in ["", "1", &"F".repeat(32), &"+".repeat(32), &"0".repeat(34)] {
            assert_eq!(bad.parse::<TransferId>(), Err(TransferIdError));
        }
    }

    #[test]
    fn the_largest_transfer_is_within_its_limit() {
        let key = Keypair::from_secret(&[7; 32]).public();
        let digest = Digest::from_bytes([255; 32]);
        let purpose = Purpose::Pay {
            run: RunId(digest),
            round: Round(u32::MAX),
            task: TaskId(digest),
            verdict: digest,
            verdicts: digest,
        };
        let transfer = Transfer {
            id: TransferId::new(u128::MAX),
            kind: Kind::Post { pending: TransferId::new(u128::MAX) },
            debit: Account::Stake(key),
            credit: Account::Wallet(key),
            amount: Amount::from_micro(i64::MAX).unwrap(),
            purpose,
        };
        let bytes = transfer.encode();
        assert!(bytes.len() * 2 <= limits::TRANSFER_BYTES_MAX, "{}", bytes.len());
        assert_eq!(wire::decode(&bytes, limits::TRANSFER_BYTES_MAX), Ok(transfer));
    }
}
