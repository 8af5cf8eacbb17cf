use std::io;

use rand::TryRng;
use rand::rngs::SysRng;

/// Fills `bytes` from the operating system's randomness: for keys, and for seeds that nobody gave. The only reader of
/// it in Hydra.
pub fn entropy(bytes: &mut [u8]) -> io::Result<()> {
    SysRng.try_fill_bytes(bytes).map_err(io::Error::other)
}
