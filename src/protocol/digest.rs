use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A BLAKE3 digest (32 bytes): the name of every blob, model, task and dataset.
///
/// Written as 64 lower-case hexadecimal digits for people and in JSON, as 32 raw bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A digest in the making, of what comes in pieces.
#[derive(Debug, Clone)]
pub struct Digester {
    hasher: blake3::Hasher,
    /// Numbers as bytes, before they are hashed: many at a time, which is how BLAKE3 is fast.
    bytes: Vec<u8>,
}

/// Numbers that are hashed at a time.
const NUMBERS_AT_A_TIME: usize = 1 << 14;

impl Digester {
    /// One under a domain, as [`Digest::in_domain`].
    #[must_use]
    pub fn in_domain(domain: &str) -> Self {
        Self { hasher: blake3::Hasher::new_derive_key(domain), bytes: Vec::new() }
    }

    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Adds numbers, little-endian.
    pub fn numbers(&mut self, numbers: &[f32]) {
        for numbers in numbers.chunks(NUMBERS_AT_A_TIME) {
            self.bytes.resize(4 * numbers.len(), 0);
            for (bytes, number) in self.bytes.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
                *bytes = number.to_le_bytes();
            }
            self.hasher.update(&self.bytes);
        }
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits, lower case")]
pub struct DigestError;

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of `bytes` under a domain, so that one kind of value can never pass for another
    /// (BLAKE3 `derive_key` mode).
    #[must_use]
    pub fn in_domain(domain: &str, bytes: &[u8]) -> Self {
        Self(blake3::derive_key(domain, bytes))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest that was computed elsewhere, for instance read back from a database column.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first eight hexadecimal digits: enough for a person to tell two apart, never for a comparison.
    #[must_use]
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..4])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| DigestError)?;
        Ok(Self(bytes.try_into().map_err(|_| DigestError)?))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes32(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(deserialize_bytes32(deserializer)?))
    }
}

/// Hexadecimal for people's formats, raw bytes for the wire.
pub(super) fn serialize_bytes32<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        serializer.serialize_str(&data_encoding::HEXLOWER.encode(bytes))
    } else {
        bytes.serialize(serializer)
    }
}

pub(super) fn deserialize_bytes32<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    if deserializer.is_human_readable() {
        let text = String::deserialize(deserializer)?;
        text.parse::<Digest>().map(|digest| digest.0).map_err(de::Error::custom)
    } else {
        <[u8; 32]>::deserialize(deserializer)
    }
}
