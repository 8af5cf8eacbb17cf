use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::protocol::Keypair;
use crate::runtime::entropy;

/// A folder that holds one run: `hydra.db`, `blobs/`, `keys/`. Locked while it is open, so that only one process
/// writes to it.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process has it.
    #[error("{} is in use by another hydra process. Stop that one first, or choose another --state-dir", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("cannot use {}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// A key file with something else in it.
    #[error("{} is not a key file: it must hold 64 hexadecimal digits. Restore it from a copy, or move it away to get a new key (the old key's tokens stay with the old key)", .0.display())]
    Key(PathBuf),
}

impl StateDir {
    /// Opens `path`, making it where it is missing, and locks it until this is dropped.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        fs::create_dir_all(path).map_err(io_error(path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(io_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(io_error(&lock_path)(error)),
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database file in a state directory.
    #[must_use]
    pub fn database(path: &Path) -> PathBuf {
        path.join("hydra.db")
    }

    /// The blob folder in a state directory.
    #[must_use]
    pub fn blobs(path: &Path) -> PathBuf {
        path.join("blobs")
    }

    /// Moves the run that is here into a subfolder, and gives its path, or `None` where there was no run. Keys stay:
    /// they own tokens.
    pub fn set_aside(&self) -> Result<Option<PathBuf>, StateDirError> {
        let database = Self::database(&self.path);
        let parts = ["hydra.db", "hydra.db-wal", "hydra.db-shm", "blobs"].map(|name| (name, self.path.join(name)));
        if !database.exists() && parts.iter().all(|(_, part)| !part.exists()) {
            return Ok(None);
        }
        let aside = (1..=u32::MAX)
            .map(|number| self.path.join(format!("earlier-run-{number}")))
            .find(|folder| !folder.exists())
            .unwrap_or_else(|| self.path.join("earlier-run"));
        fs::create_dir(&aside).map_err(io_error(&aside))?;
        for (name, part) in parts {
            match fs::rename(&part, aside.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&part)(error)),
                _ => {}
            }
        }
        Ok(Some(aside))
    }

    /// The key `name`, made from the operating system's randomness when it is first asked for. Its file is readable by
    /// its owner only.
    pub fn key(&self, name: &str) -> Result<Keypair, StateDirError> {
        let folder = self.path.join("keys");
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let path = folder.join(format!("{name}.key"));
        match File::open(&path) {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(io_error(&path))?;
                let bytes = data_encoding::HEXLOWER.decode(text.trim().as_bytes()).ok();
                let secret: Option<[u8; 32]> = bytes.and_then(|bytes| bytes.try_into().ok());
                secret.map(|secret| Keypair::from_secret(&secret)).ok_or(StateDirError::Key(path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut secret = [0; 32];
                entropy(&mut secret).map_err(io_error(&path))?;
                let key = Keypair::from_secret(&secret);
                let text = data_encoding::HEXLOWER.encode(key.secret()) + "\n";
                replace_file(&path, text.as_bytes()).map_err(io_error(&path))?;
                Ok(key)
            }
            Err(error) => Err(io_error(&path)(error)),
        }
    }
}

/// Writes a file that only its owner may read, beside the old one, syncs and renames: a crash leaves the whole new file
/// or the old one.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StateDirError + use<> {
    let path = path.to_owned();
    move |error| StateDirError::Io { path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        assert!(matches!(StateDir::open(folder.path()), Err(StateDirError::InUse(_))));
        drop(first);
        StateDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_key_stays_the_same_is_private_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let key = state.key("worker-1").unwrap().public();
        assert_eq!(state.key("worker-1").unwrap().public(), key);
        assert_ne!(state.key("worker-2").unwrap().public(), key);
        let path = folder.path().join("keys/worker-1.key");
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(state.key("worker-1"), Err(StateDirError::Key(_))));
    }

    #[test]
    fn setting_a_run_aside_keeps_every_file_and_the_keys_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.set_aside().unwrap(), None);
        state.key("worker-1").unwrap();
        for round in 1..=2 {
            fs::write(folder.path().join("hydra.db"), format!("run {round}")).unwrap();
            fs::create_dir(folder.path().join("blobs")).unwrap();
            let aside = state.set_aside().unwrap().unwrap();
            assert_eq!(fs::read_to_string(aside.join("hydra.db")).unwrap(), format!("run {round}"));
            assert!(aside.join("blobs").is_dir() && !folder.path().join("hydra.db").exists());
        }
        assert!(folder.path().join("keys/worker-1.key").exists());
    }
}
