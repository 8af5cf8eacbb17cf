use std::io;
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::protocol::{Keypair, PublicKey};
use crate::runtime::entropy;

/// What a key file holds.
///
/// Without a passphrase: the 64 hexadecimal digits of the secret key. With one: a line `hydra-key-v1`, the public key, the
/// cost of the passphrase, salt, nonce and the encrypted secret key, in words and hexadecimal digits. The passphrase
/// becomes a key by Argon2id; the secret is encrypted with XChaCha20-Poly1305, with all that stands before it in the line
/// as additional data, so that no part of the file can be exchanged.
#[derive(Debug)]
pub enum KeyFile {
    /// The key.
    Open(Keypair),
    /// The key, for those who know the passphrase.
    Locked(LockedKey),
}

/// A key under a passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedKey {
    public: PublicKey,
    memory_kib: u32,
    passes: u32,
    salt: [u8; 16],
    nonce: [u8; 24],
    sealed: Vec<u8>,
}

/// Why a key file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file system refused.
    #[error("cannot use {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Something else is in it.
    #[error("{} is not a key file. Restore it from a copy", .0.display())]
    Malformed(PathBuf),
    /// It needs a passphrase.
    #[error("the passphrase does not fit the key")]
    Passphrase,
    /// The costs that it names are out of range.
    #[error("the passphrase cannot be tried: {0}")]
    Cost(String),
    /// The operating system has no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(io::Error),
}

/// What one try of a passphrase costs: what OWASP recommends for Argon2id (19 MiB, two passes, one lane).
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// More than this is no key file of ours, and would only be there to exhaust the machine.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 100;

const WORD: &str = "hydra-key-v1";

impl KeyFile {
    /// Reads a key file's text. `path` is for the error.
    pub fn parse(text: &str, path: &Path) -> Result<Self, KeyFileError> {
        let text = text.trim();
        let malformed = || KeyFileError::Malformed(path.to_owned());
        if let Ok(bytes) = data_encoding::HEXLOWER.decode(text.as_bytes()) {
            let secret: [u8; 32] = bytes.try_into().map_err(|_| malformed())?;
            return Ok(Self::Open(Keypair::from_secret(&secret)));
        }
        LockedKey::parse(text).map(Self::Locked).ok_or_else(malformed)
    }

    /// Whose it is.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Open(key) => key.public(),
            Self::Locked(locked) => locked.public,
        }
    }

    /// The text of a file with this key, under a passphrase if there is one.
    pub fn text(key: &Keypair, passphrase: Option<&str>) -> Result<String, KeyFileError> {
        match passphrase {
            None => Ok(data_encoding::HEXLOWER.encode(key.secret())),
            Some(passphrase) => Ok(LockedKey::seal(key, passphrase)?.text()),
        }
    }
}

impl LockedKey {
    fn seal(key: &Keypair, passphrase: &str) -> Result<Self, KeyFileError> {
        let (mut salt, mut nonce) = ([0; 16], [0; 24]);
        for bytes in [&mut salt[..], &mut nonce[..]] {
            entropy(bytes).map_err(KeyFileError::Random)?;
        }
        let mut locked =
            Self { public: key.public(), memory_kib: MEMORY_KIB, passes: PASSES, salt, nonce, sealed: Vec::new() };
        let head = locked.head();
        let payload = Payload { msg: key.secret(), aad: head.as_bytes() };
        let sealed = locked.cipher(passphrase)?.encrypt(&XNonce::from(nonce), payload);
        locked.sealed = sealed.map_err(|error| KeyFileError::Cost(error.to_string()))?;
        Ok(locked)
    }

    /// The key, with the passphrase that it was sealed with.
    pub fn open(&self, passphrase: &str) -> Result<Keypair, KeyFileError> {
        let head = self.head();
        let payload = Payload { msg: &self.sealed, aad: head.as_bytes() };
        let opened = self.cipher(passphrase)?.decrypt(&XNonce::from(self.nonce), payload);
        let secret = opened.ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).ok_or(KeyFileError::Passphrase)?;
        let key = Keypair::from_secret(&secret);
        if key.public() == self.public { Ok(key) } else { Err(KeyFileError::Passphrase) }
    }

    fn cipher(&self, passphrase: &str) -> Result<XChaCha20Poly1305, KeyFileError> {
        let cost = |error: argon2::Error| KeyFileError::Cost(error.to_string());
        let params = Params::new(self.memory_kib, self.passes, 1, Some(32)).map_err(cost)?;
        let mut key = [0; 32];
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon.hash_password_into(passphrase.as_bytes(), &self.salt, &mut key).map_err(cost)?;
        Ok(XChaCha20Poly1305::new(&Key::from(key)))
    }

    /// All of the line but the encrypted key.
    fn head(&self) -> String {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let Self { public, memory_kib, passes, salt, nonce, .. } = self;
        format!("{WORD} {public} argon2id {memory_kib} {passes} {} {}", hex(salt), hex(nonce))
    }

    fn text(&self) -> String {
        format!("{} {}", self.head(), data_encoding::HEXLOWER.encode(&self.sealed))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next();
        let hex = |word: &str| data_encoding::HEXLOWER.decode(word.as_bytes()).ok();
        if word()? != WORD {
            return None;
        }
        let public = word()?.parse().ok()?;
        if word()? != "argon2id" {
            return None;
        }
        let memory_kib = word()?.parse().ok().filter(|kib| *kib <= MEMORY_KIB_MAX)?;
        let passes = word()?.parse().ok().filter(|passes| *passes <= PASSES_MAX)?;
        let salt = hex(word()?)?.try_into().ok()?;
        let nonce = hex(word()?)?.try_into().ok()?;
        let sealed = hex(word()?)?;
        word().is_none().then_some(Self { public, memory_kib, passes, salt, nonce, sealed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_key_opens_with_its_passphrase_only_and_no_part_of_its_file_can_be_changed() {
        let key = Keypair::from_secret(&[7; 32]);
        let text = KeyFile::text(&key, Some("correct horse")).unwrap();
        assert!(!text.contains(&data_encoding::HEXLOWER.encode(key.secret())));
        let read = |text: &str| KeyFile::parse(text, Path::new("x.key"));
        let Ok(KeyFile::Locked(locked)) = read(&format!("{text}\n")) else { panic!() };
        assert_eq!(locked.public, key.public());
        assert_eq!(locked.open("correct horse").unwrap().public(), key.public());
        assert!(matches!(locked.open("correct house"), Err(KeyFileError::Passphrase)));
        let other = Keypair::from_secret(&[8; 32]).public();
        let renamed = LockedKey { public: other, ..locked.clone() };
        let cheaper = LockedKey { passes: 1, ..locked.clone() };
        let mut torn = locked.clone();
        torn.sealed.pop();
        for altered in [renamed, cheaper, torn] {
            assert!(matches!(altered.open("correct horse"), Err(KeyFileError::Passphrase)));
        }
        for bad in
            ["", "hydra-key-v1", &text[..text.len() - 1], &format!("{text} 00"), &text.replace("19456", "99999999")]
        {
            assert!(matches!(read(bad), Err(KeyFileError::Malformed(_))), "{bad}");
        }
    }
}
