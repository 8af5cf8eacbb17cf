use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::protocol::{Digest, PublicKey, limits};
use crate::runtime::entropy;

/// Who may take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmissionRule {
    /// Every key that is not blocked.
    Open,
    /// Keys that the operator has listed.
    Listed,
    /// Listed keys, and keys that came with an invite token.
    Invited,
}

impl AdmissionRule {
    /// Its name on the command line and on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Listed => "listed",
            Self::Invited => "invited",
        }
    }
}

/// Who is admitted, kept in a file.
#[derive(Debug)]
pub struct Admission {
    rule: AdmissionRule,
    path: PathBuf,
    book: Mutex<Book>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Book {
    admitted: BTreeSet<PublicKey>,
    blocked: BTreeSet<PublicKey>,
    /// How often each invite may still be used, by the digest of its token: whoever reads the file cannot use them.
    invites: BTreeMap<String, u32>,
}

/// The list of admitted keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The file system refused.
    #[error("cannot use {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{} is damaged: {error}. Restore it from a copy, or move it away to begin with an empty list", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// No such invite, or it is used up.
    #[error("the invite is unknown or used up")]
    Invite,
    /// The list is full.
    #[error("the list of keys is full")]
    Full,
}

impl Admission {
    /// Opens the list at `path`, with these keys on it in any case.
    pub fn open(
        rule: AdmissionRule,
        path: &Path,
        listed: impl IntoIterator<Item = PublicKey>,
    ) -> Result<Self, AdmissionError> {
        let mut book = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| AdmissionError::Damaged { path: path.to_owned(), error })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(AdmissionError::Io { path: path.to_owned(), error }),
        };
        book.admitted.extend(listed);
        Ok(Self { rule, path: path.to_owned(), book: Mutex::new(book) })
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> AdmissionRule {
        self.rule
    }

    /// Whether `key` may take part; if not, why.
    pub fn check(&self, key: &PublicKey) -> Result<(), &'static str> {
        let book = self.lock();
        if book.blocked.contains(key) {
            return Err("the operator has blocked it");
        }
        match self.rule {
            AdmissionRule::Open => Ok(()),
            _ if book.admitted.contains(key) => Ok(()),
            AdmissionRule::Listed => Err("ask the operator to list it"),
            AdmissionRule::Invited => Err("register with an invite token first"),
        }
    }

    /// Admits `key` by an invite, which is thereby used once. A key that is admitted already uses none.
    pub fn redeem(&self, key: PublicKey, token: &str) -> Result<(), AdmissionError> {
        self.change(|book| {
            if book.admitted.contains(&key) {
                return Ok(());
            }
            let uses = book.invites.get_mut(&invite_name(token)).ok_or(AdmissionError::Invite)?;
            *uses = uses.checked_sub(1).ok_or(AdmissionError::Invite)?;
            book.admitted.insert(key);
            book.invites.retain(|_, uses| *uses > 0);
            Ok(())
        })
    }

    /// Makes an invite that admits so many keys: its token.
    pub fn invite(&self, uses: u32) -> Result<String, AdmissionError> {
        let mut secret = [0; 16];
        entropy(&mut secret).map_err(|error| AdmissionError::Io { path: self.path.clone(), error })?;
        let token = data_encoding::BASE64URL_NOPAD.encode(&secret);
        self.change(|book| {
            book.invites.insert(invite_name(&token), uses);
            Ok(())
        })?;
        Ok(token)
    }

    /// Lists or blocks a key.
    pub fn set(&self, key: PublicKey, admitted: bool) -> Result<(), AdmissionError> {
        self.change(|book| {
            if admitted {
                book.blocked.remove(&key);
                book.admitted.insert(key);
            } else {
                book.admitted.remove(&key);
                book.blocked.insert(key);
            }
            Ok(())
        })
    }

    fn change(&self, change: impl FnOnce(&mut Book) -> Result<(), AdmissionError>) -> Result<(), AdmissionError> {
        let mut book = self.lock();
        let mut next = book.clone();
        change(&mut next)?;
        if next.admitted.len() + next.blocked.len() + next.invites.len() > limits::ADMITTED_MAX {
            return Err(AdmissionError::Full);
        }
        if next != *book {
            let io = |error| AdmissionError::Io { path: self.path.clone(), error };
            let text = serde_json::to_vec_pretty(&next).map_err(|error| io(error.into()))?;
            crate::store::replace_file(&self.path, &text).map_err(io)?;
            *book = next;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invite_name(token: &str) -> String {
    Digest::in_domain("hydra invite v1", token.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    #[test]
    fn rules_admit_whom_they_say_and_the_blocked_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admission.json");
        let open = |rule| Admission::open(rule, &path, [key(1).public()]).unwrap();
        assert!(open(AdmissionRule::Open).check(&key(2).public()).is_ok());
        assert!(open(AdmissionRule::Listed).check(&key(1).public()).is_ok());
        assert!(open(AdmissionRule::Listed).check(&key(2).public()).is_err());
        open(AdmissionRule::Open).set(key(2).public(), false).unwrap();
        assert!(open(AdmissionRule::Open).check(&key(2).public()).is_err(), "also after a restart");
        open(AdmissionRule::Listed).set(key(2).public(), true).unwrap();
        assert!(open(AdmissionRule::Listed).check(&key(2).public()).is_ok());
    }

    #[test]
    fn an_invite_admits_as_many_keys_as_it_was_made_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admission.json");
        let open = || Admission::open(AdmissionRule::Invited, &path, []).unwrap();
        let token = open().invite(2).unwrap();
        assert!(matches!(open().redeem(key(1).public(), "guess"), Err(AdmissionError::Invite)));
        for n in [1, 1, 2] {
            open().redeem(key(n).public(), &token).unwrap();
            assert!(open().check(&key(n).public()).is_ok());
        }
        assert!(matches!(open().redeem(key(3).public(), &token), Err(AdmissionError::Invite)));
        assert!(open().check(&key(3).public()).is_err());
        assert!(!fs::read_to_string(&path).unwrap().contains(&token));
    }
}
