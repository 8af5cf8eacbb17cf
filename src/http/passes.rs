//! Calls that are proved by a pass instead of a signature.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::error::ApiError;
use crate::protocol::{PassId, PassKey, PassedCall, PublicKey, Time, limits};

/// Calls that may overtake each other: those with a number so far below the highest are refused.
const WINDOW: u64 = u128::BITS as u64;

/// The passes of a server process.
#[derive(Debug, Default)]
pub(super) struct Passes(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    passes: BTreeMap<PassId, Pass>,
    /// In the order in which they were made, with the time until which they hold: all hold equally long.
    order: VecDeque<(Time, PassId)>,
    /// Of each key, oldest first.
    of: BTreeMap<PublicKey, VecDeque<PassId>>,
}

#[derive(Debug)]
struct Pass {
    owner: PublicKey,
    key: PassKey,
    until: Time,
    seen: Seen,
}

/// Which numbers were used: the highest, and for each of those just below it, whether.
#[derive(Debug, Default)]
struct Seen {
    highest: u64,
    below: u128,
}

impl Seen {
    /// Takes a number, if it was not taken before and is not too far behind. Numbers begin with 1.
    fn take(&mut self, number: u64) -> bool {
        if number > self.highest {
            let ahead = number - self.highest;
            self.below = if ahead < WINDOW { self.below << ahead } else { 0 } | 1;
            self.highest = number;
            return true;
        }
        let behind = self.highest - number;
        if number == 0 || behind >= WINDOW || self.below >> behind & 1 == 1 {
            return false;
        }
        self.below |= 1 << behind;
        true
    }
}

impl Passes {
    /// Keeps a new pass of `owner`: until when it holds.
    pub fn enter(&self, id: PassId, key: PassKey, owner: PublicKey, now: Time) -> Time {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now + limits::HTTP_PASS_LASTS;
        while let Some((soonest, oldest)) = book.order.front().copied()
            && (soonest <= now || book.passes.len() >= limits::HTTP_PASSES_MAX)
        {
            book.order.pop_front();
            book.forget(&oldest);
        }
        let mine = book.of.entry(owner).or_default();
        mine.push_back(id);
        let older = (mine.len() > limits::HTTP_PASSES_PER_KEY).then(|| mine.pop_front()).flatten();
        if let Some(older) = older {
            // Its place in the order stays until its time is over.
            book.passes.remove(&older);
        }
        book.order.push_back((until, id));
        while book.order.len() > 2 * limits::HTTP_PASSES_MAX {
            if let Some((_, oldest)) = book.order.pop_front() {
                book.forget(&oldest);
            }
        }
        book.passes.insert(id, Pass { owner, key, until, seen: Seen::default() });
        until
    }

    /// Whose call it is, if its code is right and its number was not used.
    pub fn check(&self, call: &PassedCall, method: &str, path: &str, now: Time) -> Result<PublicKey, ApiError> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = book.passes.get_mut(&call.pass).filter(|pass| now < pass.until).ok_or(ApiError::NoSuchPass)?;
        if !pass.key.proves(call, method, path) {
            return Err(ApiError::Signature("the pass does not prove this call"));
        }
        if !pass.seen.take(call.number) {
            return Err(ApiError::Replayed);
        }
        Ok(pass.owner)
    }
}

impl Book {
    fn forget(&mut self, id: &PassId) {
        let Some(pass) = self.passes.remove(id) else { return };
        if let Some(mine) = self.of.get_mut(&pass.owner) {
            mine.retain(|other| other != id);
            if mine.is_empty() {
                self.of.remove(&pass.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Digest, ExchangeSecret, SessionId};
    use crate::testing::key;

    const PATH: &str = "/hydra/v1/lease";

    fn pass_key(n: u8) -> PassKey {
        let (mine, theirs) = (ExchangeSecret::from_bytes([n; 32]), ExchangeSecret::from_bytes([100; 32]));
        let (asked, given) = (mine.public(), theirs.public());
        let session = SessionId(Digest::of(b"session"));
        PassKey::agree(&mine, given, asked, given, &key(n).public(), session).unwrap()
    }

    fn id(n: u64) -> PassId {
        PassId(Digest::of(&n.to_le_bytes()))
    }

    fn call(key: &PassKey, pass: PassId, number: u64) -> PassedCall {
        let (time, body) = (Time(5), Digest::of(b"body"));
        let code = key.code("POST", PATH, &body, time, number);
        PassedCall { pass, number, time, body, code }
    }

    #[test]
    fn a_pass_proves_its_owners_calls_each_once_while_it_holds() {
        let passes = Passes::default();
        let mine = pass_key(1);
        let until = passes.enter(id(1), mine.clone(), key(1).public(), Time(0));
        let check = |call: &PassedCall, path: &str, now| passes.check(call, "POST", path, now);
        let first = call(&mine, id(1), 1);
        assert_eq!(check(&first, PATH, Time(9)), Ok(key(1).public()));
        assert_eq!(check(&first, PATH, Time(9)), Err(ApiError::Replayed));
        assert!(matches!(check(&call(&mine, id(1), 2), "/other", Time(9)), Err(ApiError::Signature(_))));
        assert!(matches!(check(&call(&pass_key(2), id(1), 2), PATH, Time(9)), Err(ApiError::Signature(_))));
        assert_eq!(check(&call(&mine, id(2), 2), PATH, Time(9)), Err(ApiError::NoSuchPass));
        assert_eq!(check(&call(&mine, id(1), 2), PATH, until), Err(ApiError::NoSuchPass), "it is over");
    }

    #[test]
    fn a_key_has_few_passes_and_the_oldest_go() {
        let passes = Passes::default();
        for n in 0..100 {
            passes.enter(id(n), pass_key(1), key(1).public(), Time(n));
        }
        let others = passes.check(&call(&pass_key(1), id(95), 1), "POST", PATH, Time(200));
        assert_eq!(others, Err(ApiError::NoSuchPass));
        assert!(passes.check(&call(&pass_key(1), id(96), 1), "POST", PATH, Time(200)).is_ok());
        let end = Time(200) + limits::HTTP_PASS_LASTS;
        passes.enter(id(1000), pass_key(2), key(2).public(), end);
        let book = passes.0.lock().unwrap();
        assert_eq!((book.passes.len(), book.order.len(), book.of.len()), (1, 1, 1), "what is over is forgotten");
    }

    proptest! {
        /// However calls overtake each other: no number is taken twice, and one that is not far behind is taken.
        #[test]
        fn numbers_are_taken_once_in_any_order(numbers in prop::collection::vec(0u64..400, 1..300)) {
            let (mut seen, mut taken, mut highest) = (Seen::default(), BTreeSet::new(), 0);
            for number in numbers {
                let fresh = number > 0 && !taken.contains(&number) && highest.max(number) - number < WINDOW;
                prop_assert_eq!(seen.take(number), fresh, "{}", number);
                if fresh {
                    taken.insert(number);
                    highest = highest.max(number);
                }
            }
        }
    }
}
