use std::collections::{BTreeMap, BTreeSet};

use super::order::OrderError;
use super::{Content, TransferId};
use crate::protocol::{PublicKey, Time, limits};

/// A refusal that is remembered, so that a request which was refused is not done when it arrives once more and
/// circumstances have changed: whoever was told "no" may rely on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose request it was.
    pub wallet: PublicKey,
    /// The request's id.
    pub id: TransferId,
    /// The request.
    pub content: Content,
    /// Until when the request was valid: after that it is refused for that reason alone.
    pub until: Time,
    /// Why.
    pub error: OrderError,
}

/// The refusals that are remembered.
///
/// A refusal is remembered until its request would have lapsed, and a wallet has
/// [`REFUSALS_PER_WALLET`](limits::REFUSALS_PER_WALLET) at most. Where there would be more, the one that lapses first is
/// forgotten, and from then on the wallet's new requests must be valid longer than the next one: so nothing that was
/// forgotten can come back. A wallet can only spoil its own requests that way. Wallets that never held anything are not
/// remembered at all, or strangers could fill the memory with keys.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_request: BTreeMap<(PublicKey, TransferId), Refusal>,
    by_time: BTreeMap<PublicKey, BTreeSet<(Time, TransferId)>>,
    all_by_time: BTreeSet<(Time, TransferId, PublicKey)>,
}

impl Refusals {
    /// The refusal of the wallet's request `id`, if it is remembered.
    pub fn get(&self, wallet: PublicKey, id: TransferId) -> Option<&Refusal> {
        self.by_request.get(&(wallet, id))
    }

    /// What the wallet's new requests must be valid after.
    pub fn floor(&self, wallet: PublicKey) -> Option<Time> {
        let times = self.by_time.get(&wallet).filter(|times| times.len() >= limits::REFUSALS_PER_WALLET)?;
        times.first().map(|(time, _)| *time)
    }

    /// Remembers one more. What is forgotten for it, by time or by number, is appended to `forgotten`.
    pub fn add(&mut self, now: Time, refusal: Refusal, forgotten: &mut Vec<(PublicKey, TransferId)>) {
        while let Some(&(until, id, wallet)) = self.all_by_time.first().filter(|(until, ..)| *until < now) {
            self.remove(wallet, until, id);
            forgotten.push((wallet, id));
        }
        let wallet = refusal.wallet;
        self.by_time.entry(wallet).or_default().insert((refusal.until, refusal.id));
        self.all_by_time.insert((refusal.until, refusal.id, wallet));
        self.by_request.insert((wallet, refusal.id), refusal);
        let times = self.by_time.get(&wallet).filter(|times| times.len() > limits::REFUSALS_PER_WALLET);
        if let Some(&(until, id)) = times.and_then(BTreeSet::first) {
            self.remove(wallet, until, id);
            forgotten.push((wallet, id));
        }
    }

    fn remove(&mut self, wallet: PublicKey, until: Time, id: TransferId) {
        self.by_request.remove(&(wallet, id));
        self.all_by_time.remove(&(until, id, wallet));
        if let Some(times) = self.by_time.get_mut(&wallet) {
            times.remove(&(until, id));
            if times.is_empty() {
                self.by_time.remove(&wallet);
            }
        }
    }
}
