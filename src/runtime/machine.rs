//! What the operating system grants a process.

use std::path::Path;

/// Bytes that this process may still write on the file system of `path`. Known on Unix systems.
#[must_use]
pub fn free_disk(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let system = rustix::fs::statvfs(path).ok()?;
        Some(system.f_bavail.saturating_mul(system.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Lets this process have as many files and connections open as the system grants it at most, and says how many those
/// are. Shells start programs with far fewer. Known on Unix systems.
#[expect(clippy::must_use_candidate, reason = "it is called for what it does")]
pub fn raise_open_files() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        // Where this is refused, as on macOS for some values, what was granted before is what there is.
        let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        if raised.is_ok() { limit.maximum } else { limit.current }
    }
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_system_tells_what_it_grants() {
        assert!(free_disk(Path::new("/")).is_some());
        assert!(free_disk(Path::new("/no/such/place")).is_none());
        assert_eq!(raise_open_files(), raise_open_files());
    }
}
