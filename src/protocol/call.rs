use std::fmt;

use curve25519_dalek::MontgomeryPoint;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Digest, Message, PublicKey, Time, wire};

/// What the caller of an HTTP route signs: exactly this call, to this server process, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The server process that it is meant for: a number that the server drew when it started and tells everybody. A
    /// call that another process has seen, even one on the same machine before a restart, says nothing to this one.
    pub session: SessionId,
    /// The HTTP method, in capitals.
    pub method: String,
    /// The path with its query, as on the request line.
    pub path: String,
    /// The digest of the body; of no bytes where there is none.
    pub body: Digest,
    /// When it was made, by the caller's clock.
    pub time: Time,
    /// Random: a session takes each but once.
    pub nonce: [u8; 16],
}

impl Message for Call {
    const DOMAIN: &'static str = "http call v1";
}

/// The number of a server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Digest);

/// What proves a call that is not signed: a code that only the two who share a [pass](PassKey) can make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedCall {
    /// The pass.
    pub pass: PassId,
    /// Which call with this pass it is: a server takes each number but once.
    pub number: u64,
    /// When it was made, by the caller's clock.
    pub time: Time,
    /// The digest of the body; of no bytes where there is none.
    pub body: Digest,
    /// The code: see [`PassKey::code`].
    pub code: [u8; 32],
}

/// The name of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PassId(pub Digest);

/// One half of an exchange of keys (X25519): what each side tells the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExchangeKey(pub Digest);

/// The other half, which nobody is told. Wiped when it is dropped.
pub struct ExchangeSecret(Zeroizing<[u8; 32]>);

impl ExchangeSecret {
    /// The secret of 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What the other side is told.
    #[must_use]
    pub fn public(&self) -> ExchangeKey {
        ExchangeKey(Digest::from_bytes(MontgomeryPoint::mul_base_clamped(*self.0).0))
    }
}

/// A key that a caller and a server share after one signed call: what proves further calls without signatures. It proves
/// them to the server alone, which could have made them itself: what others must be able to check stays signed.
#[derive(Clone)]
pub struct PassKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for PassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassKey")
    }
}

impl PassKey {
    /// The key that `mine` and `theirs` give, for calls of `caller` in `session`; nothing where `theirs` is no key that an
    /// honest side would have sent. `asked` is the caller's half, `given` the server's: one of them is `theirs`.
    #[must_use]
    pub fn agree(
        mine: &ExchangeSecret,
        theirs: ExchangeKey,
        asked: ExchangeKey,
        given: ExchangeKey,
        caller: &PublicKey,
        session: SessionId,
    ) -> Option<Self> {
        let shared = Zeroizing::new(MontgomeryPoint(*theirs.0.as_bytes()).mul_clamped(*mine.0).0);
        // What a point of small order gives is known to everybody.
        if *shared == [0; 32] {
            return None;
        }
        let parts = [*asked.0.as_bytes(), *given.0.as_bytes(), *caller.as_bytes(), *session.0.as_bytes()];
        let whole = Zeroizing::new([shared.as_slice(), parts.as_flattened()].concat());
        Some(Self(Zeroizing::new(*Digest::in_domain("hydra pass v1", &whole).as_bytes())))
    }

    /// The code of a call: BLAKE3 with this key over the canonical encoding of its method, its path with the query, the
    /// digest of its body, its time and its number.
    #[must_use]
    pub fn code(&self, method: &str, path: &str, body: &Digest, time: Time, number: u64) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, &wire::encode(&(method, path, body, time, number))).as_bytes()
    }

    /// Whether `call` has the code that it must have. Takes equally long whatever is wrong.
    #[must_use]
    pub fn proves(&self, call: &PassedCall, method: &str, path: &str) -> bool {
        let code = self.code(method, path, &call.body, call.time, call.number);
        blake3::Hash::from(code) == blake3::Hash::from(call.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    fn session(name: &[u8]) -> SessionId {
        SessionId(Digest::of(name))
    }

    #[test]
    fn both_sides_come_to_one_key_and_nobody_else_to_the_same() {
        let (mine, theirs) = (ExchangeSecret::from_bytes([1; 32]), ExchangeSecret::from_bytes([2; 32]));
        let (asked, given) = (mine.public(), theirs.public());
        let caller = key(1).public();
        let agree = |secret: &ExchangeSecret, other, caller: &PublicKey, session| {
            PassKey::agree(secret, other, asked, given, caller, session).unwrap().code(
                "GET",
                "/",
                &Digest::of(b""),
                Time(1),
                1,
            )
        };
        let here = session(b"here");
        let code = agree(&mine, given, &caller, here);
        assert_eq!(code, agree(&theirs, asked, &caller, here));
        assert_ne!(code, agree(&theirs, asked, &key(2).public(), here));
        assert_ne!(code, agree(&theirs, asked, &caller, session(b"there")));
        assert_ne!(code, agree(&ExchangeSecret::from_bytes([3; 32]), asked, &caller, here));
    }

    #[test]
    fn a_half_that_makes_the_key_known_to_all_is_refused() {
        let mine = ExchangeSecret::from_bytes([1; 32]);
        for small in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            let theirs = ExchangeKey(Digest::from_bytes(small));
            let key = PassKey::agree(&mine, theirs, theirs, mine.public(), &key(1).public(), session(b"here"));
            assert!(key.is_none());
        }
    }

    #[test]
    fn a_code_is_of_one_call_only() {
        let (mine, theirs) = (ExchangeSecret::from_bytes([1; 32]), ExchangeSecret::from_bytes([2; 32]));
        let (asked, given) = (mine.public(), theirs.public());
        let pass = PassKey::agree(&mine, given, asked, given, &key(1).public(), session(b"here")).unwrap();
        let body = Digest::of(b"body");
        let code = pass.code("POST", "/hydra/v1/lease", &body, Time(5), 7);
        let call = PassedCall { pass: PassId(Digest::of(b"id")), number: 7, time: Time(5), body, code };
        assert!(pass.proves(&call, "POST", "/hydra/v1/lease"));
        assert!(!pass.proves(&call, "PUT", "/hydra/v1/lease"));
        assert!(!pass.proves(&call, "POST", "/hydra/v1/submit"));
        for other in [
            PassedCall { number: 8, ..call.clone() },
            PassedCall { time: Time(6), ..call.clone() },
            PassedCall { body: Digest::of(b"other"), ..call.clone() },
            PassedCall { code: [0; 32], ..call.clone() },
        ] {
            assert!(!pass.proves(&other, "POST", "/hydra/v1/lease"));
        }
    }
}
