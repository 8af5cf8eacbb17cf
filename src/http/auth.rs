use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use data_encoding::BASE64URL_NOPAD as BASE64;

use super::error::ApiError;
use super::passes::Passes;
use crate::protocol::{
    Call, Digest, EnvelopeError, ExchangeKey, ExchangeSecret, Keypair, PassId, PassKey, PassedCall, PublicKey,
    SessionId, Signed, Time, limits, wire,
};

/// The scheme of the `Authorization` header of signed calls.
const SCHEME: &str = "Hydra ";
/// The same of calls that a pass proves.
const PASS_SCHEME: &str = "Hydra-Pass ";

/// The value of the `Authorization` header for a call.
#[must_use]
pub fn authorization(key: &Keypair, call: &Call) -> String {
    format!("{SCHEME}{}", BASE64.encode(&wire::encode(&Signed::seal(key, call))))
}

/// The value of the `Authorization` header for a call that a pass proves.
#[must_use]
pub fn pass_authorization(call: &PassedCall) -> String {
    format!("{PASS_SCHEME}{}", BASE64.encode(&wire::encode(call)))
}

/// Whether this header names a pass.
#[must_use]
pub fn is_passed(header: &str) -> bool {
    header.starts_with(PASS_SCHEME)
}

/// A call that is its caller's, of this session and of the present time. Its body is still to be checked, and that of a
/// signed one that it was not made before.
#[derive(Debug)]
pub struct Claim {
    caller: PublicKey,
    body: Digest,
    /// Of a signed call; a pass has counted its own.
    nonce: Option<[u8; 16]>,
}

/// Checks signed calls, and takes each but once.
#[derive(Debug)]
pub struct Gate {
    session: SessionId,
    nonces: Mutex<Nonces>,
    passes: Passes,
}

impl Gate {
    /// The gate of a server process whose number is `session`: random, another for each process.
    #[must_use]
    pub fn new(session: SessionId) -> Self {
        Self { session, nonces: Mutex::default(), passes: Passes::default() }
    }

    /// The number of this server process.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Checks everything that can be said before the body is there: who signed, what, for whom and when.
    pub fn claim(&self, header: Option<&str>, method: &str, path: &str, now: Time) -> Result<Claim, ApiError> {
        if let Some(text) = header.and_then(|header| header.strip_prefix(PASS_SCHEME)) {
            return self.passed(text, method, path, now);
        }
        let text = header.and_then(|header| header.strip_prefix(SCHEME)).ok_or(ApiError::Unsigned)?;
        if text.len() > limits::HTTP_CALL_BYTES_MAX {
            return Err(ApiError::Signature("the header is too long"));
        }
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| ApiError::Signature("the header is not base64"))?;
        let signed: Signed = wire::decode(&bytes, limits::HTTP_CALL_BYTES_MAX)
            .map_err(|_| ApiError::Signature("the header is not a signed message"))?;
        let (caller, call) = signed.open::<Call>().map_err(|error| match error {
            EnvelopeError::Signature => ApiError::Signature("not signed by the key that it names"),
            EnvelopeError::Wire(_) => ApiError::Signature("the header does not hold a call"),
        })?;
        if call.method != method || call.path != path {
            return Err(ApiError::Signature("another method or path was signed"));
        }
        if call.session != self.session {
            return Err(ApiError::Session { session: self.session, time: now });
        }
        check_clock(call.time, now)?;
        Ok(Claim { caller, body: call.body, nonce: Some(call.nonce) })
    }

    fn passed(&self, text: &str, method: &str, path: &str, now: Time) -> Result<Claim, ApiError> {
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| ApiError::Signature("the header is not base64"))?;
        let call: PassedCall = wire::decode(&bytes, limits::HTTP_CALL_BYTES_MAX)
            .map_err(|_| ApiError::Signature("the header does not hold a call"))?;
        check_clock(call.time, now)?;
        let caller = self.passes.check(&call, method, path, now)?;
        Ok(Claim { caller, body: call.body, nonce: None })
    }

    /// Gives `caller` a pass: what to tell them, and until when it holds. `secret` and `id` are random.
    pub fn pass(
        &self,
        caller: PublicKey,
        asked: ExchangeKey,
        secret: &ExchangeSecret,
        id: PassId,
        now: Time,
    ) -> Result<(ExchangeKey, Time), ApiError> {
        let given = secret.public();
        let key = PassKey::agree(secret, asked, asked, given, &caller, self.session)
            .ok_or_else(|| ApiError::Malformed("no key can be agreed on with that half of an exchange".into()))?;
        Ok((given, self.passes.enter(id, key, caller, now)))
    }

    /// Checks the rest, and remembers the call: who makes it.
    pub fn admit(&self, claim: &Claim, body: &[u8], now: Time) -> Result<PublicKey, ApiError> {
        if Digest::of(body) != claim.body {
            return Err(ApiError::Signature("another body was signed"));
        }
        let Some(nonce) = claim.nonce else { return Ok(claim.caller) };
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.remember(claim.caller, &nonce, now)?;
        Ok(claim.caller)
    }
}

impl Claim {
    /// Who signed it.
    #[must_use]
    pub fn caller(&self) -> PublicKey {
        self.caller
    }
}

fn check_clock(time: Time, now: Time) -> Result<(), ApiError> {
    let off_ms = i64::try_from(time.0).unwrap_or(i64::MAX).saturating_sub_unsigned(now.0);
    if u128::from(off_ms.unsigned_abs()) > limits::HTTP_CLOCK_SKEW.as_millis() {
        return Err(ApiError::ClockSkew { off_ms, time: now });
    }
    Ok(())
}

/// The calls of this session that would still pass the check of their time.
#[derive(Debug, Default)]
struct Nonces {
    seen: BTreeSet<[u8; 16]>,
    /// In the order in which they came, with the time after which they are refused for their age.
    order: VecDeque<(Time, [u8; 16])>,
}

impl Nonces {
    fn remember(&mut self, caller: PublicKey, nonce: &[u8; 16], now: Time) -> Result<(), ApiError> {
        while let Some((until, mark)) = self.order.front()
            && *until < now
        {
            self.seen.remove(mark);
            self.order.pop_front();
        }
        let mut mark = [0; 16];
        let whole = [caller.as_bytes().as_slice(), nonce].concat();
        mark.copy_from_slice(&Digest::of(&whole).as_bytes()[..16]);
        if self.seen.contains(&mark) {
            return Err(ApiError::Replayed);
        }
        if self.seen.len() >= limits::HTTP_NONCES_MAX {
            return Err(ApiError::Busy);
        }
        self.seen.insert(mark);
        // The call is at most one skew ahead, and is refused one skew after its own time.
        self.order.push_back((now + 2 * limits::HTTP_CLOCK_SKEW, mark));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    const NOW: Time = Time(1_000_000_000);

    fn gate() -> Gate {
        Gate::new(SessionId(Digest::of(b"session")))
    }

    fn call() -> Call {
        let (method, path) = ("POST".to_owned(), "/hydra/v1/lease".to_owned());
        let body = Digest::of(b"body");
        Call { session: gate().session(), method, path, body, time: NOW, nonce: [7; 16] }
    }

    fn check(gate: &Gate, call: &Call, body: &[u8], now: Time) -> Result<PublicKey, ApiError> {
        let header = authorization(&key(1), call);
        let claim = gate.claim(Some(&header), "POST", "/hydra/v1/lease", now)?;
        gate.admit(&claim, body, now)
    }

    #[test]
    fn a_call_passes_once() {
        let gate = gate();
        assert_eq!(check(&gate, &call(), b"body", NOW), Ok(key(1).public()));
        assert_eq!(check(&gate, &call(), b"body", NOW), Err(ApiError::Replayed));
        let end = NOW + limits::HTTP_CLOCK_SKEW;
        assert_eq!(check(&gate, &call(), b"body", end), Err(ApiError::Replayed));
        assert!(matches!(check(&gate, &call(), b"body", Time(end.0 + 1)), Err(ApiError::ClockSkew { .. })));
    }

    #[test]
    fn a_call_from_a_fast_clock_is_remembered_until_it_is_too_old() {
        let gate = gate();
        let early = Time(NOW.0 - 120_000);
        assert!(check(&gate, &call(), b"body", early).is_ok());
        for later in [0, 60_000, 120_000] {
            assert_eq!(check(&gate, &call(), b"body", Time(NOW.0 + later)), Err(ApiError::Replayed));
        }
    }

    #[test]
    fn another_server_process_takes_nothing_that_was_signed_for_this_one() {
        let other = Gate::new(SessionId(Digest::of(b"after a restart")));
        let refused = check(&other, &call(), b"body", NOW);
        assert_eq!(refused, Err(ApiError::Session { session: other.session(), time: NOW }));
    }

    #[test]
    fn every_part_of_the_call_is_bound() {
        let gate = gate();
        assert!(matches!(check(&gate, &call(), b"other", NOW), Err(ApiError::Signature(_))));
        let header = authorization(&key(1), &call());
        for (method, path) in [("GET", "/hydra/v1/lease"), ("POST", "/hydra/v1/lease?x"), ("POST", "/hydra/v1/commit")]
        {
            assert!(matches!(gate.claim(Some(&header), method, path, NOW), Err(ApiError::Signature(_))));
        }
        let skewed = gate.claim(Some(&header), "POST", "/hydra/v1/lease", Time(NOW.0 + 500_000));
        assert_eq!(skewed.unwrap_err(), ApiError::ClockSkew { off_ms: -500_000, time: Time(NOW.0 + 500_000) });
    }

    #[test]
    fn a_pass_that_was_asked_for_proves_calls_until_the_server_forgets_it() {
        let gate = gate();
        let (mine, theirs) = (ExchangeSecret::from_bytes([1; 32]), ExchangeSecret::from_bytes([2; 32]));
        let (id, me) = (PassId(Digest::of(b"id")), key(1).public());
        let (given, _) = gate.pass(me, mine.public(), &theirs, id, NOW).unwrap();
        let pass = PassKey::agree(&mine, given, mine.public(), given, &me, gate.session()).unwrap();
        let make = |number, time, sent: &[u8]| {
            let body = Digest::of(sent);
            let code = pass.code("POST", "/hydra/v1/lease", &body, time, number);
            pass_authorization(&PassedCall { pass: id, number, time, body, code })
        };
        let check = |header: &str, now| {
            let claim = gate.claim(Some(header), "POST", "/hydra/v1/lease", now)?;
            gate.admit(&claim, b"body", now)
        };
        assert_eq!(check(&make(1, NOW, b"body"), NOW), Ok(me));
        assert_eq!(check(&make(1, NOW, b"body"), NOW), Err(ApiError::Replayed));
        assert!(matches!(check(&make(2, NOW, b"other"), NOW), Err(ApiError::Signature(_))));
        assert!(matches!(check(&make(3, NOW, b"body"), Time(NOW.0 + 500_000)), Err(ApiError::ClockSkew { .. })));
        let later = NOW + limits::HTTP_PASS_LASTS;
        assert_eq!(check(&make(4, later, b"body"), later), Err(ApiError::NoSuchPass));
        let zero = ExchangeKey(Digest::from_bytes([0; 32]));
        assert!(matches!(gate.pass(me, zero, &theirs, id, NOW), Err(ApiError::Malformed(_))));
    }

    #[test]
    fn no_header_brings_the_gate_down() {
        let (gate, whole) = (gate(), authorization(&key(1), &call()).into_bytes());
        bolero::check!().with_iterations(2000).for_each(|input: &[u8]| {
            // As it is, after the scheme, and as a few altered bytes of a good one.
            let mut altered = whole.clone();
            for change in input.chunks_exact(2).take(4) {
                let at = usize::from(change[0]) % altered.len();
                altered[at] = change[1];
            }
            let text = String::from_utf8_lossy(input).into_owned();
            for header in [
                text.clone(),
                format!("{SCHEME}{text}"),
                format!("{PASS_SCHEME}{text}"),
                String::from_utf8_lossy(&altered).into_owned(),
            ] {
                if let Ok(claim) = gate.claim(Some(&header), "POST", "/hydra/v1/lease", NOW) {
                    assert_eq!(claim.caller(), key(1).public());
                }
            }
        });
    }

    #[test]
    fn garbage_is_refused_and_nothing_else() {
        let gate = gate();
        let long = format!("Hydra {}", "A".repeat(100_000));
        for header in [None, Some("Bearer x"), Some("Hydra "), Some("Hydra !!"), Some("Hydra AAAA"), Some(&long)] {
            let refused = gate.claim(header, "POST", "/", NOW).unwrap_err();
            assert!(matches!(refused, ApiError::Unsigned | ApiError::Signature(_)), "{header:?}: {refused:?}");
        }
        let header = authorization(&key(1), &call());
        for place in 6..header.len() {
            let mut bytes = header.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).unwrap();
            assert!(gate.claim(Some(&altered), "POST", "/hydra/v1/lease", NOW).is_err(), "byte {place}");
        }
    }
}
