use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// µHYD in one HYD.
pub const MICRO_PER_HYD: i64 = 1_000_000;

/// A quantity of tokens in µHYD, from 0 to `i64::MAX`: what a transfer moves. A decimal string in JSON, because
/// JSON numbers are floats to many readers; 8 bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(i64);

/// A signed sum of amounts in µHYD: what an account holds (only `emission` may be below zero).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Balance(pub i128);

/// A number that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an amount is a whole number of µHYD from 0 to 9223372036854775807")]
pub struct AmountError;

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// `micro` µHYD.
    pub fn from_micro(micro: i64) -> Result<Self, AmountError> {
        if micro < 0 { Err(AmountError) } else { Ok(Self(micro)) }
    }

    /// `hyd` whole HYD. For constants: `hyd` is at most 9 × 10¹², which a `u32` always is.
    #[must_use]
    pub const fn from_hyd(hyd: u32) -> Self {
        Self(hyd as i64 * MICRO_PER_HYD)
    }

    /// Of a decimal text in HYD, such as `12.5`: at most six places, no sign, no exponent.
    pub fn from_hyd_text(text: &str) -> Result<Self, AmountError> {
        let (whole, places) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(places) || places.len() > 6 {
            return Err(AmountError);
        }
        format!("{whole}{places:0<6}").parse::<i64>().map_err(|_| AmountError).and_then(Self::from_micro)
    }

    /// In µHYD.
    #[must_use]
    pub const fn micro(self) -> i64 {
        self.0
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, if it is an amount.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or zero where `other` is more.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self((self.0 - other.0).max(0))
    }

    /// This halved `times` times, rounded down.
    #[must_use]
    pub fn halved(self, times: u32) -> Self {
        Self(self.0.checked_shr(times).unwrap_or(0))
    }
}

impl TryFrom<i128> for Amount {
    type Error = AmountError;

    fn try_from(micro: i128) -> Result<Self, AmountError> {
        i64::try_from(micro).map_err(|_| AmountError).and_then(Self::from_micro)
    }
}

impl From<Amount> for Balance {
    fn from(amount: Amount) -> Self {
        Self(amount.0.into())
    }
}

/// For people: `12.345678 HYD`, without trailing zeros beyond two places.
impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = u128::from(MICRO_PER_HYD.unsigned_abs());
        let (whole, rest) = (self.0.unsigned_abs() / per, self.0.unsigned_abs() % per);
        let digits = format!("{rest:06}");
        let kept = digits.trim_end_matches('0').len().max(2);
        let sign = if self.0 < 0 { "-" } else { "" };
        f.pad(&format!("{sign}{whole}.{} HYD", &digits[..kept]))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Balance::from(*self).fmt(f)
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(micro: &str) -> Result<Self, AmountError> {
        if micro.is_empty() || !micro.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AmountError);
        }
        micro.parse().map(Self).map_err(|_| AmountError)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(&self.0) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            Self::from_micro(i64::deserialize(deserializer)?).map_err(de::Error::custom)
        }
    }
}

impl Serialize for Balance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(&self.0) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Balance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map(Self).map_err(de::Error::custom)
        } else {
            i128::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_decimal_strings_in_json_and_never_floats_or_negative() {
        let amount = Amount::from_hyd(3);
        assert_eq!(serde_json::to_string(&amount).unwrap(), "\"3000000\"");
        assert_eq!(serde_json::from_str::<Amount>("\"3000000\"").unwrap(), amount);
        for bad in ["3000000", "3.5", "\"3.5\"", "\"-1\"", "\"+1\"", "\"\"", "\"9223372036854775808\"", "\"1e3\""] {
            assert!(serde_json::from_str::<Amount>(bad).is_err(), "{bad} was taken for an amount");
        }
    }

    #[test]
    fn amounts_in_hyd_are_read_to_the_last_place_and_nothing_else_is_taken_for_one() {
        let read = |text| Amount::from_hyd_text(text).map(Amount::micro);
        assert_eq!([read("0"), read("12.5"), read("0.000001")], [Ok(0), Ok(12_500_000), Ok(1)]);
        assert_eq!(read("9223372036854.775807"), Ok(i64::MAX));
        for bad in ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000001", "9223372036854.775808", "1,5", " 1", "1.-5"] {
            assert_eq!(read(bad), Err(AmountError), "{bad:?} was taken for an amount");
        }
    }

    #[test]
    fn balances_read_well() {
        assert_eq!(Balance(12_345_670).to_string(), "12.34567 HYD");
        assert_eq!(Balance(-5_000_000).to_string(), "-5.00 HYD");
        assert_eq!(Balance(1).to_string(), "0.000001 HYD");
    }
}
