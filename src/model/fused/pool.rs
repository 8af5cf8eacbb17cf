use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers that the pool keeps at most: 1 GiB, the activations of a step of the largest preset.
const KEPT_MAX: usize = 1 << 28;

/// Buffers given back, by length. Fresh memory costs a page fault for every 4 KiB, which made nearly half of a small
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

/// A buffer of some length, with anything in it: whoever takes one writes each number before reading it.
pub(super) fn take(length: usize) -> Vec<f32> {
    let mut pool = pool();
    let found = pool.free.get_mut(&length).and_then(Vec::pop);
    if found.is_some() {
        pool.kept -= length;
    }
    drop(pool);
    found.unwrap_or_else(|| vec![0.0; length])
}

/// Keeps a buffer for the next who asks for one of its length.
pub(super) fn give(buffer: Vec<f32>) {
    let mut pool = pool();
    if !buffer.is_empty() && pool.kept + buffer.len() <= KEPT_MAX {
        pool.kept += buffer.len();
        pool.free.entry(buffer.len()).or_default().push(buffer);
    }
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

    #[test]
    fn a_buffer_given_back_is_handed_out_again() {
        // A length that nothing else uses.
        let mut buffer = take(1_234_567);
        buffer[7] = 3.0;
        let address = buffer.as_ptr();
        give(buffer);
        let again = take(1_234_567);
        assert_eq!((again.as_ptr(), again.len()), (address, 1_234_567));
        let other = take(1_234_567);
        assert!(other.as_ptr() != address);
    }
}
