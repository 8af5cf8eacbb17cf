use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::protocol::PublicKey;

/// Where tokens are. Ordered as listed, keys by their bytes.
///
/// For people and in JSON a text such as `emission` or `wallet:<64 hexadecimal digits>`. The order of the variants is
/// the wire format: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum Account {
    /// Where all tokens come from: the only account below zero, by as much as was ever emitted. Nothing flows back.
    Emission,
    /// The organiser's share.
    Treasury,
    /// Where tokens go to be gone. Nothing flows out.
    Burn,
    /// Tokens on their way between two parties.
    Escrow,
    /// What the holder of a key may spend.
    Wallet(PublicKey),
    /// What the holder of a key stands to lose by cheating.
    Stake(PublicKey),
}

/// A text that names no account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an account is emission, treasury, burn, escrow, wallet:<public key> or stake:<public key>, not {0:?}")]
pub struct AccountError(String);

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Emission => f.write_str("emission"),
            Self::Treasury => f.write_str("treasury"),
            Self::Burn => f.write_str("burn"),
            Self::Escrow => f.write_str("escrow"),
            Self::Wallet(key) => write!(f, "wallet:{key}"),
            Self::Stake(key) => write!(f, "stake:{key}"),
        }
    }
}

impl FromStr for Account {
    type Err = AccountError;

    fn from_str(text: &str) -> Result<Self, AccountError> {
        let unknown = || AccountError(text.chars().take(80).collect());
        let key = |hex: &str| hex.parse::<PublicKey>().map_err(|_| unknown());
        match text {
            "emission" => Ok(Self::Emission),
            "treasury" => Ok(Self::Treasury),
            "burn" => Ok(Self::Burn),
            "escrow" => Ok(Self::Escrow),
            _ => match text.split_once(':') {
                Some(("wallet", hex)) => Ok(Self::Wallet(key(hex)?)),
                Some(("stake", hex)) => Ok(Self::Stake(key(hex)?)),
                _ => Err(unknown()),
            },
        }
    }
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // `remote` made the derived functions inherent ones, which the path `Self::` means here and below.
        if serializer.is_human_readable() { serializer.collect_str(self) } else { Self::serialize(self, serializer) }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            Self::deserialize(deserializer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Keypair, wire};

    #[test]
    fn accounts_read_back_from_text_json_and_wire() {
        let key = Keypair::from_secret(&[7; 32]).public();
        let all = [
            Account::Emission,
            Account::Treasury,
            Account::Burn,
            Account::Escrow,
            Account::Wallet(key),
            Account::Stake(key),
        ];
        for account in all {
            let text = account.to_string();
            assert_eq!(text.parse(), Ok(account));
            assert_eq!(serde_json::to_string(&account).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Account>(&format!("\"{text}\"")).unwrap(), account);
            assert_eq!(wire::decode(&wire::encode(&account), 100), Ok(account));
        }
        assert_eq!(Account::Wallet(key).to_string(), format!("wallet:{key}"));
        assert_eq!(wire::encode(&Account::Wallet(key)).len(), 34, "a version, a variant and 32 bytes");
    }

    #[test]
    fn other_texts_name_no_account() {
        let weak = format!("wallet:{}", "0".repeat(64));
        for bad in ["", "Emission", "wallet", "wallet:", "wallet:12", "burn:", " burn", "purse:12", weak.as_str()] {
            assert!(bad.parse::<Account>().is_err(), "{bad:?} was taken for an account");
        }
    }
}
