use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Account;
use crate::protocol::{Amount, Digest, Round, RunId, TaskId, wire};

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

/// The kind byte of ids made by [`TransferId::pay`].
const KIND_PAY: u128 = 1;

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

    /// The 16 bytes, highest first, so that bytes sort as ids do.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
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

/// An amount that moves from one account to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Its name.
    pub id: TransferId,
    /// Where the amount is taken.
    pub debit: Account,
    /// Where it goes.
    pub credit: Account,
    /// How much, in µHYD; more than nothing.
    pub amount: Amount,
    /// What for.
    pub purpose: Purpose,
}

/// Why an amount moves. The order of the variants is the wire format: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// For accepted work.
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
    /// Because its owner said so.
    Transfer,
}

impl Transfer {
    /// The canonical encoding: what the journal chains, and what the store keeps.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
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
