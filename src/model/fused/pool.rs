use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers that the pool keeps at most: 1 GiB, the activations of a step of the largest preset.
const KEPT_MAX: usize = 1 << 28;

/// Buffers given back, by capacity. Fresh memory costs a page fault for every 4 KiB, which made nearly half of a small
/// model's step before buffers were kept.
#[derive(Debug, Default)]
struct Pool {
    free: BTreeMap<usize, Vec<Vec<f32>>>,
    kept: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), kept: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The capacity of a buffer for `length` numbers: the next of eight steps between powers of two, so that sequences of
/// growing length share buffers.
fn capacity(length: usize) -> usize {
    let step = (length.next_power_of_two() / 16).max(64);
    length.next_multiple_of(step)
}

/// A buffer of some length, with anything in it: whoever takes one writes each number before reading it.
pub(super) fn take(length: usize) -> Vec<f32> {
    let capacity = capacity(length);
    let mut pool = pool();
    let found = pool.free.get_mut(&capacity).and_then(Vec::pop);
    if found.is_some() {
        pool.kept -= capacity;
    }
    drop(pool);
    let mut buffer = found.unwrap_or_else(|| vec![0.0; capacity]);
    buffer.resize(length, 0.0);
    buffer
}

/// Keeps a buffer for the next who asks for one of its capacity. When too many are kept, all go: they are of lengths
/// that nobody asks for any more.
pub(super) fn give(buffer: Vec<f32>) {
    let size = buffer.capacity();
    if size != capacity(size) || size > KEPT_MAX {
        return;
    }
    let mut pool = pool();
    if pool.kept + size > KEPT_MAX {
        *pool = Pool::default();
    }
    pool.kept += size;
    pool.free.entry(size).or_default().push(buffer);
}

/// Bytes that are kept for later.
pub(in crate::model) fn kept_bytes() -> u64 {
    (pool().kept * size_of::<f32>()) as u64
}

/// A buffer that goes back to the pool when dropped.
#[derive(Debug)]
pub(super) struct Scratch(Vec<f32>);

impl Scratch {
    /// Takes one of `length` numbers, with anything in it.
    pub fn new(length: usize) -> Self {
        Self(take(length))
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Lengths that nothing else uses, because tests share the pool.

    #[test]
    fn a_buffer_given_back_is_handed_out_again() {
        let buffer = take(1_234_567);
        let address = buffer.as_ptr();
        give(buffer);
        let again = take(1_234_500);
        assert_eq!((again.as_ptr(), again.len()), (address, 1_234_500));
        let other = take(1_234_567);
        assert!(other.as_ptr() != address);
    }

    #[test]
    fn capacities_waste_an_eighth_at_most_and_are_their_own_capacity() {
        for length in (1..100_000).step_by(7) {
            let size = capacity(length);
            assert!(size >= length && size - length < (length / 8).max(64), "{length}: {size}");
            assert_eq!(capacity(size), size);
        }
    }
}
