use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{KeyFile, KeyFileError};
use crate::protocol::{Digest, Keypair, Seed};
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
    /// A key that is used without anybody there to be asked.
    #[error("{} is under a passphrase; what runs by itself needs a key without one", .0.display())]
    Locked(PathBuf),
    /// A name that is not for a key.
    #[error("{0:?} is no name for a key: letters, digits, - and _ make one")]
    Name(String),
    /// There is such a key already.
    #[error("{} is there already, and its tokens with it; choose another name", .0.display())]
    KeyExists(PathBuf),
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
        let parts = [&DATABASE_FILES[..], &["blobs", AUDIT_SECRET]].concat();
        if !database.exists() && parts.iter().all(|part| !self.path.join(part).exists()) {
            return Ok(None);
        }
        self.move_aside("earlier-run", &parts).map(Some)
    }

    /// The key `name`, made from the operating system's randomness when it is first asked for. Its file is readable by
    /// its owner only.
    pub fn key(&self, name: &str) -> Result<Keypair, StateDirError> {
        match Self::find_key(&self.path, name)? {
            Some(KeyFile::Open(key)) => Ok(key),
            Some(KeyFile::Locked(_)) => Err(StateDirError::Locked(key_path(&self.path, name)?)),
            None => Self::make_key(&self.path, name, None),
        }
    }

    /// The key `name` of the state directory `path`, if there is one.
    pub fn find_key(path: &Path, name: &str) -> Result<Option<KeyFile>, StateDirError> {
        let path = key_path(path, name)?;
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)) {
            Ok(_) => KeyFile::parse(&text, &path).map(Some).map_err(|_| StateDirError::Key(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Makes the key `name` from the operating system's randomness, under a passphrase if there is one.
    pub fn make_key(path: &Path, name: &str, passphrase: Option<&str>) -> Result<Keypair, StateDirError> {
        let path = key_path(path, name)?;
        if path.exists() {
            return Err(StateDirError::KeyExists(path));
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
        }
        let mut secret = [0; 32];
        entropy(&mut secret).map_err(io_error(&path))?;
        let key = Keypair::from_secret(&secret);
        let text =
            KeyFile::text(&key, passphrase).map_err(|error: KeyFileError| io_error(&path)(io::Error::other(error)))?;
        replace_file(&path, (text + "\n").as_bytes()).map_err(io_error(&path))?;
        Ok(key)
    }

    /// A new root for the secrets of a run's audits, from the operating system's randomness, in the place of any that is
    /// there.
    pub fn make_audit_seed(&self) -> Result<Seed, StateDirError> {
        let path = self.path.join(AUDIT_SECRET);
        let mut secret = [0; 32];
        entropy(&mut secret).map_err(io_error(&path))?;
        let seed = Digest::from_bytes(secret);
        replace_file(&path, format!("{seed}\n").as_bytes()).map_err(io_error(&path))?;
        Ok(Seed::from_digest(seed))
    }

    /// The root of the secrets of the run's audits, if it is there.
    pub fn audit_seed(&self) -> Result<Option<Seed>, StateDirError> {
        let path = self.path.join(AUDIT_SECRET);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)) {
            Ok(_) => match text.trim().parse() {
                Ok(seed) => Ok(Some(Seed::from_digest(seed))),
                Err(_) => Err(StateDirError::Key(path)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// The names of the keys in the state directory `path`, in order.
    pub fn key_names(path: &Path) -> Result<Vec<String>, StateDirError> {
        let folder = path.join("keys");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error(&folder)(error)),
        };
        let name = |file: &fs::DirEntry| file.file_name().to_str()?.strip_suffix(".key").map(str::to_owned);
        let mut names: Vec<String> = entries.flatten().filter_map(|file| name(&file)).collect();
        names.sort();
        Ok(names)
    }

    /// Puts `copy` in the place of the database, which is kept in a subfolder: its path, if there was one.
    pub fn replace_database(&self, copy: &Path) -> Result<Option<PathBuf>, StateDirError> {
        let database = Self::database(&self.path);
        let new = database.with_extension("new");
        fs::copy(copy, &new).map_err(io_error(&new))?;
        File::open(&new).and_then(|file| file.sync_all()).map_err(io_error(&new))?;
        let aside = if database.exists() { Some(self.move_aside("replaced-database", &DATABASE_FILES)?) } else { None };
        fs::rename(&new, &database).map_err(io_error(&database))?;
        Ok(aside)
    }

    /// Moves these parts of the folder into a new subfolder.
    fn move_aside(&self, name: &str, parts: &[&str]) -> Result<PathBuf, StateDirError> {
        let aside = (1..=u32::MAX)
            .map(|number| self.path.join(format!("{name}-{number}")))
            .find(|folder| !folder.exists())
            .unwrap_or_else(|| self.path.join(name));
        fs::create_dir(&aside).map_err(io_error(&aside))?;
        for name in parts {
            let part = self.path.join(name);
            match fs::rename(&part, aside.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&part)(error)),
                _ => {}
            }
        }
        Ok(aside)
    }
}

/// Where the root of a run's audit secrets is: 64 hexadecimal digits. Part of the run, and no key: it owns nothing.
const AUDIT_SECRET: &str = "audits.secret";

const DATABASE_FILES: [&str; 3] = ["hydra.db", "hydra.db-wal", "hydra.db-shm"];

/// A key file is a line of some hundred bytes.
const KEY_FILE_BYTES_MAX: u64 = 4096;

fn key_path(path: &Path, name: &str) -> Result<PathBuf, StateDirError> {
    let good =
        !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if good { Ok(path.join("keys").join(format!("{name}.key"))) } else { Err(StateDirError::Name(name.to_owned())) }
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
