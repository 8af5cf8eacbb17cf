//! The canonical encoding: one version byte, then [postcard](https://postcard.jamesmunns.com/wire-format).
//!
//! Postcard alone lets a few values be written in more than one way (over-long varints). [`decode`] encodes again
//! what it read and compares, so a value has exactly one encoding and a digest of the encoding names the value.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The version of every encoding that this build writes and reads.
pub const VERSION: u8 = 1;

/// Why bytes were not taken for a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// There is not even a version byte.
    #[error("the message is empty")]
    Empty,
    /// Longer than this kind of message may be.
    #[error("the message has {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Written by another version of the protocol.
    #[error("the message is of protocol version {0}, this build speaks {VERSION}")]
    Version(u8),
    /// Not an encoding of this kind of value.
    #[error("the message does not decode: {0}")]
    Malformed(String),
    /// Decodes, but is not what encoding the value gives: trailing bytes or an over-long number.
    #[error("the message is not in canonical form")]
    NotCanonical,
}

/// The canonical encoding of `value`.
///
/// # Panics
/// Never for the protocol's own types: postcard refuses only sequences of unknown length and maps keyed oddly, and
/// the types here have neither.
#[must_use]
#[expect(clippy::expect_used, reason = "infallible for our own types, see above")]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("protocol types encode")
}

/// Reads back what [`encode`] wrote, from a source that nobody vouches for.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, WireError> {
    if bytes.len() > limit {
        return Err(WireError::TooLong { bytes: bytes.len(), limit });
    }
    let (&version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let value: T = postcard::from_bytes(body).map_err(|error| WireError::Malformed(error.to_string()))?;
    if encode(&value) == bytes { Ok(value) } else { Err(WireError::NotCanonical) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_exactly_one_encoding() {
        let bytes = encode(&(7u32, "seven".to_owned()));
        assert_eq!(decode::<(u32, String)>(&bytes, 100), Ok((7, "seven".to_owned())));
        let mut trailing = bytes.clone();
        trailing.push(0);
        assert_eq!(decode::<(u32, String)>(&trailing, 100), Err(WireError::NotCanonical));
        assert_eq!(decode::<u32>(&[VERSION, 0x87, 0x00], 100), Err(WireError::NotCanonical));
        assert_eq!(decode::<u32>(&[], 100), Err(WireError::Empty));
        assert_eq!(decode::<u32>(&[9, 7], 100), Err(WireError::Version(9)));
        assert_eq!(decode::<u32>(&[VERSION, 7], 1), Err(WireError::TooLong { bytes: 2, limit: 1 }));
        assert!(matches!(decode::<String>(&[VERSION, 200], 100), Err(WireError::Malformed(_))));
    }
}
