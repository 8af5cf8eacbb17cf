use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::digest::{deserialize_bytes32, serialize_bytes32};
use super::{Digest, limits, wire};

/// An Ed25519 public key: who somebody is, and the name of their wallet.
///
/// Always a point on the curve of full order: a text or message with another 32 bytes is not taken for a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// 32 bytes or a text that are no Ed25519 public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 public key (64 hexadecimal digits naming a point of full order)")]
pub struct PublicKeyError;

impl PublicKey {
    /// The key with these 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, PublicKeyError> {
        match VerifyingKey::from_bytes(&bytes) {
            Ok(key) if !key.is_weak() => Ok(Self(bytes)),
            _ => Err(PublicKeyError),
        }
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hexadecimal digits: for people.
    #[must_use]
    pub fn short(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..4])
    }

    fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.short())
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let digest: Digest = text.parse().map_err(|_| PublicKeyError)?;
        Self::from_bytes(*digest.as_bytes())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_bytes32(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_bytes(deserialize_bytes32(deserializer)?).map_err(de::Error::custom)
    }
}

/// A secret key and its public key. Its memory is wiped when it is dropped, and it never prints itself.
#[derive(Clone)]
pub struct Keypair(SigningKey);

impl Keypair {
    /// The key pair of 32 secret bytes.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The 32 secret bytes, for a key file.
    #[must_use]
    pub fn secret(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({})", self.public().short())
    }
}

/// Something that can be signed: its domain keeps a signature over one kind of message from passing for one over
/// another.
pub trait Message: Serialize + DeserializeOwned {
    /// A name that no other kind of message has.
    const DOMAIN: &'static str;
}

/// A message with its author's signature (Ed25519 over the domain and the canonical encoding).
///
/// The signed bytes travel as they were signed; [`Signed::open`] is the only way to the message, so nobody can
/// forget to check.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    signer: PublicKey,
    #[serde(with = "signature_bytes")]
    signature: [u8; 64],
    #[serde(with = "body_bytes")]
    body: Vec<u8>,
}

/// Why a signed message was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Not signed by the key it names, or altered since.
    #[error("the signature does not match the message")]
    Signature,
    /// Signed, but not an encoding of this kind of message.
    #[error(transparent)]
    Wire(#[from] wire::WireError),
}

impl Signed {
    /// Signs `message`.
    #[must_use]
    pub fn seal<M: Message>(key: &Keypair, message: &M) -> Self {
        let body = wire::encode(message);
        let signature = key.0.sign(&signed_bytes::<M>(&body)).to_bytes();
        Self { signer: key.public(), signature, body }
    }

    /// Checks the signature and decodes the message: who signed it, and what they said.
    pub fn open<M: Message>(&self) -> Result<(PublicKey, M), EnvelopeError> {
        if self.body.len() > limits::MESSAGE_BYTES_MAX {
            let bytes = self.body.len();
            return Err(wire::WireError::TooLong { bytes, limit: limits::MESSAGE_BYTES_MAX }.into());
        }
        if !self.signer.verifies(&signed_bytes::<M>(&self.body), &self.signature) {
            return Err(EnvelopeError::Signature);
        }
        Ok((self.signer, wire::decode(&self.body, limits::MESSAGE_BYTES_MAX)?))
    }

    /// The message, whoever wrote it: to see where it belongs. Not checked: whoever acts on it uses [`Signed::open`].
    pub fn claimed_message<M: Message>(&self) -> Result<M, wire::WireError> {
        wire::decode(&self.body, limits::MESSAGE_BYTES_MAX)
    }

    /// The key that the message claims to be from. Not checked: use [`Signed::open`] before believing it.
    #[must_use]
    pub fn claimed_signer(&self) -> PublicKey {
        self.signer
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed({} bytes by {})", self.body.len(), self.signer.short())
    }
}

fn signed_bytes<M: Message>(body: &[u8]) -> Vec<u8> {
    // A digest of fixed length first, so that no domain and body can run into each other.
    let mut bytes = Digest::in_domain("hydra signed message v1", M::DOMAIN.as_bytes()).as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

mod signature_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8; 64], serializer: S) -> Result<S::Ok, S::Error> {
        let halves: [&[u8]; 2] = [&bytes[..32], &bytes[32..]];
        if serializer.is_human_readable() {
            serializer.serialize_str(&data_encoding::HEXLOWER.encode(bytes))
        } else {
            halves.serialize(serializer)
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 64], D::Error> {
        let bytes = if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(de::Error::custom)?
        } else {
            <[Vec<u8>; 2]>::deserialize(deserializer)?.concat()
        };
        bytes.try_into().map_err(|_| de::Error::custom("a signature has 64 bytes"))
    }
}

/// Base64 in people's formats, where a list of numbers would be four times as long.
mod body_bytes {
    use data_encoding::BASE64URL_NOPAD as BASE64;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&BASE64.encode(bytes))
        } else {
            bytes.serialize(serializer)
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            BASE64.decode(text.as_bytes()).map_err(de::Error::custom)
        } else {
            Vec::deserialize(deserializer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Greeting(String);
    impl Message for Greeting {
        const DOMAIN: &'static str = "greeting";
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Order(String);
    impl Message for Order {
        const DOMAIN: &'static str = "order";
    }

    #[test]
    fn only_the_signed_bytes_under_the_signed_domain_open() {
        let key = Keypair::from_secret(&[7; 32]);
        let signed = Signed::seal(&key, &Greeting("hello".into()));
        assert_eq!(signed.open::<Greeting>(), Ok((key.public(), Greeting("hello".into()))));
        assert_eq!(signed.open::<Order>(), Err(EnvelopeError::Signature));
        let mut forged = signed.clone();
        forged.signer = Keypair::from_secret(&[8; 32]).public();
        assert_eq!(forged.open::<Greeting>(), Err(EnvelopeError::Signature));
        for place in 0..signed.body.len() {
            let mut altered = signed.clone();
            altered.body[place] ^= 1;
            assert_eq!(altered.open::<Greeting>(), Err(EnvelopeError::Signature));
        }
    }

    #[test]
    fn signed_messages_survive_both_encodings() {
        let signed = Signed::seal(&Keypair::from_secret(&[7; 32]), &Greeting("hello".into()));
        assert_eq!(wire::decode::<Signed>(&wire::encode(&signed), 1000), Ok(signed.clone()));
        assert_eq!(serde_json::from_str::<Signed>(&serde_json::to_string(&signed).unwrap()).unwrap(), signed);
    }

    #[test]
    fn weak_and_malformed_keys_are_no_keys() {
        assert_eq!(PublicKey::from_bytes([0; 32]), Err(PublicKeyError), "a point of small order signs anything");
        assert!("zz".parse::<PublicKey>().is_err());
    }
}
