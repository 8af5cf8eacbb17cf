use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::protocol::Time;
use crate::protocol::limits::Rate;

/// How often each of many callers may do something: a bucket of permissions for each, which fills as time goes by.
#[derive(Debug)]
pub struct Rates<K> {
    rate: Rate,
    most: usize,
    buckets: Mutex<Buckets<K>>,
}

#[derive(Debug)]
struct Buckets<K> {
    /// For each caller, the time at which their bucket will be full again: it says how empty it is now.
    full_at: BTreeMap<K, u64>,
    order: BTreeSet<(u64, K)>,
}

impl<K: Ord + Copy> Rates<K> {
    /// Everybody at this rate; remembers `most` callers.
    #[must_use]
    pub fn new(rate: Rate, most: usize) -> Self {
        Self { rate, most, buckets: Mutex::new(Buckets { full_at: BTreeMap::new(), order: BTreeSet::new() }) }
    }

    /// Takes one permission of `caller`, or says how long until there is one.
    pub fn take(&self, caller: K, now: Time) -> Result<(), Duration> {
        // In microseconds, so that a thousand a second can be told from two thousand.
        let now = now.0.saturating_mul(1000);
        let each = 1_000_000 / u64::from(self.rate.per_second.max(1));
        let whole = each.saturating_mul(u64::from(self.rate.burst.max(1)));
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let old = buckets.full_at.get(&caller).copied();
        let full_at = old.unwrap_or(now).max(now) + each;
        if full_at - now > whole {
            return Err(Duration::from_micros(full_at - now - whole));
        }
        if let Some(old) = old {
            buckets.order.remove(&(old, caller));
        }
        buckets.full_at.insert(caller, full_at);
        buckets.order.insert((full_at, caller));
        // Full buckets say nothing; and where there are too many, the fullest are given up first.
        while let Some((soonest, other)) = buckets.order.first().copied()
            && (soonest <= now || buckets.order.len() > self.most)
        {
            buckets.order.remove(&(soonest, other));
            buckets.full_at.remove(&other);
        }
        Ok(())
    }
}

/// Keeps a stream of bytes below a rate.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: Option<u64>,
    free_at: Mutex<u64>,
}

impl Throttle {
    /// At most so many bytes a second, or as many as there are.
    #[must_use]
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(0) }
    }

    /// How many bytes to send at a time: what takes a second, and at most `most`.
    #[must_use]
    pub fn piece(&self, most: usize) -> usize {
        let second = self.bytes_per_second.map_or(most, |rate| usize::try_from(rate).unwrap_or(most));
        second.clamp(16 * 1024, most)
    }

    /// Accounts for `bytes` that are about to pass: how long to wait before they do.
    pub fn pass(&self, bytes: usize, now: Time) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now.0.saturating_mul(1000);
        let wait = free_at.saturating_sub(now);
        *free_at = now + wait + (bytes as u64).saturating_mul(1_000_000) / rate.max(1);
        Duration::from_micros(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_burst_is_let_through_and_then_one_at_a_time() {
        let rates = Rates::new(RATE, 10);
        for _ in 0..3 {
            assert_eq!(rates.take("a", Time(0)), Ok(()));
        }
        assert_eq!(rates.take("a", Time(0)), Err(Duration::from_millis(100)));
        assert_eq!(rates.take("b", Time(0)), Ok(()), "everybody has a bucket of their own");
        assert_eq!(rates.take("a", Time(100)), Ok(()));
        assert!(rates.take("a", Time(100)).is_err());
    }

    #[test]
    fn only_so_many_callers_are_remembered() {
        let rates = Rates::new(RATE, 5);
        for caller in 0..1000 {
            let _ = rates.take(caller, Time(0));
        }
        assert_eq!(rates.buckets.lock().unwrap().full_at.len(), 5);
        rates.take(0, Time(10_000)).unwrap();
        assert_eq!(rates.buckets.lock().unwrap().full_at.len(), 1, "the quiet are forgotten");
    }

    #[test]
    fn a_throttle_spreads_bytes_over_time() {
        let throttle = Throttle::new(Some(1000));
        assert_eq!(throttle.pass(500, Time(0)), Duration::ZERO);
        assert_eq!(throttle.pass(500, Time(0)), Duration::from_millis(500));
        assert_eq!(throttle.pass(500, Time(2000)), Duration::ZERO);
        assert_eq!(Throttle::new(None).pass(1 << 40, Time(0)), Duration::ZERO);
    }
}
