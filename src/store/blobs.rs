use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::protocol::{Digest, limits};

/// Content-addressed bytes: models, payloads, shards. A blob is found by its BLAKE3 digest and never changes.
pub trait Blobs: Send + Sync {
    /// Keeps `bytes` durably and gives their digest. Keeping the same bytes twice is keeping them once.
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError>;

    /// The bytes with this digest, checked against it.
    fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError>;

    /// Lets go of a blob; no error when it is not there.
    fn remove(&self, digest: &Digest) -> Result<(), BlobError>;
}

/// A store that a folder is a copy of.
pub trait BlobArchive: Blobs + std::fmt::Debug {
    /// Every blob in it.
    fn list(&self) -> Result<BTreeSet<Digest>, BlobError>;
}

/// Why a blob was not kept or found.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is none with this digest.
    #[error("there is no blob {0}")]
    Missing(Digest),
    /// The file is there, but its content is not what its name says.
    #[error("{} is damaged: its content does not match its name", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Larger than any blob may be.
    #[error("a blob of {0} bytes is over the limit of {limit}", limit = limits::BLOB_BYTES_MAX)]
    TooLarge(u64),
    /// The file system refused.
    #[error("cannot use {}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// A blob store on another machine cannot be reached or refused.
    #[error("blob {digest}: {problem}")]
    Remote {
        /// The blob.
        digest: Digest,
        /// What went wrong.
        problem: String,
    },
}

/// Blobs in a local folder, one file each, in subfolders by the first two digits.
///
/// A file appears under its name only when it is whole and on the disk: it is written beside, synced, renamed, and the
/// folder is synced. What a crash leaves behind are files that end in `.part`, which opening the folder clears away.
///
/// With an archive behind it, every blob is kept there first, and what is missing here is brought from there.
#[derive(Debug)]
pub struct FolderBlobs {
    folder: PathBuf,
    parts: AtomicU64,
    behind: Option<Box<dyn BlobArchive>>,
}

impl FolderBlobs {
    /// Opens `folder`, making it where it is missing. The caller must be its only user: see the state directory's
    /// lock.
    pub fn open(folder: &Path) -> Result<Self, BlobError> {
        fs::create_dir_all(folder).map_err(|error| io_error(folder, error))?;
        for entry in fs::read_dir(folder).map_err(|error| io_error(folder, error))? {
            let path = entry.map_err(|error| io_error(folder, error))?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(|error| io_error(&path, error))?;
            }
        }
        Ok(Self::read_only(folder))
    }

    /// The same folder as a copy of `archive`, which outlives it.
    #[must_use]
    pub fn before(self, archive: Box<dyn BlobArchive>) -> Self {
        Self { behind: Some(archive), ..self }
    }

    /// A folder that another process may be writing to: for reading only, nothing is made or cleared away.
    #[must_use]
    pub fn read_only(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), parts: AtomicU64::new(0), behind: None }
    }

    /// Removes every blob that is not in `keep`: what a crash left between making a blob and recording it, or between
    /// recording that it is not needed and removing it. Gives how many those were. An archive gets what it lacks of
    /// `keep`, as one that the run had not from its beginning does.
    pub fn retain(&self, keep: &BTreeSet<Digest>) -> Result<u64, BlobError> {
        let mut removed = 0;
        for folder in fs::read_dir(&self.folder).map_err(|error| io_error(&self.folder, error))? {
            let folder = folder.map_err(|error| io_error(&self.folder, error))?.path();
            if !folder.is_dir() {
                continue;
            }
            for file in fs::read_dir(&folder).map_err(|error| io_error(&folder, error))? {
                let path = file.map_err(|error| io_error(&folder, error))?.path();
                let digest: Option<Digest> =
                    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                // A file whose name is no digest is not ours.
                if digest.is_some_and(|digest| !keep.contains(&digest)) {
                    fs::remove_file(&path).map_err(|error| io_error(&path, error))?;
                    removed += 1;
                }
            }
        }
        if let Some(archive) = &self.behind {
            let there = archive.list()?;
            for digest in there.difference(keep) {
                archive.remove(digest)?;
                removed += 1;
            }
            for digest in keep.difference(&there) {
                archive.put(&self.get(digest)?)?;
            }
        }
        Ok(removed)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// The file of this blob, brought from the archive where it is missing.
    pub fn fetch(&self, digest: &Digest) -> Result<PathBuf, BlobError> {
        let path = self.path(digest);
        match &self.behind {
            Some(archive) if !path.exists() => self.write(&path, &archive.get(digest)?)?,
            _ => {}
        }
        Ok(path)
    }

    /// Where a person finds the file of this blob.
    #[must_use]
    pub fn file(&self, digest: &Digest) -> PathBuf {
        self.path(digest)
    }

    /// Takes over a file that is whole and on the disk, after checking its content. A damaged file stays where it is.
    pub fn adopt(&self, file: &Path, digest: &Digest) -> Result<(), BlobError> {
        let size = fs::metadata(file).map_err(|error| io_error(file, error))?.len();
        check_size(size)?;
        let mut hasher = blake3::Hasher::new();
        let content = File::open(file).map_err(|error| io_error(file, error))?;
        hasher.update_reader(content).map_err(|error| io_error(file, error))?;
        if hasher.finalize().as_bytes() != digest.as_bytes() {
            return Err(BlobError::Damaged { path: file.to_owned() });
        }
        if let Some(archive) = &self.behind {
            archive.put(&fs::read(file).map_err(|error| io_error(file, error))?)?;
        }
        let path = self.path(digest);
        let folder = path.parent().unwrap_or(&self.folder);
        let made_folder = !folder.exists();
        fs::create_dir_all(folder)
            .and_then(|()| fs::rename(file, &path))
            .and_then(|()| sync_folder(folder))
            .and_then(|()| if made_folder { sync_folder(&self.folder) } else { Ok(()) })
            .map_err(|error| io_error(&path, error))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
        let part = self.folder.join(format!("{}.part", self.parts.fetch_add(1, Ordering::Relaxed)));
        let folder = path.parent().unwrap_or(&self.folder);
        let made_folder = !folder.exists();
        let written = fs::create_dir_all(folder)
            .and_then(|()| {
                let mut file = File::create(&part)?;
                file.write_all(bytes)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&part, path))
            .and_then(|()| sync_folder(folder))
            .and_then(|()| if made_folder { sync_folder(&self.folder) } else { Ok(()) });
        written.map_err(|error| {
            // The error is what matters; a part that cannot be removed is cleared away at the next start.
            let _ = fs::remove_file(&part);
            io_error(path, error)
        })
    }
}

impl Blobs for FolderBlobs {
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        check_size(bytes.len() as u64)?;
        let digest = Digest::of(bytes);
        let path = self.path(&digest);
        if !path.exists() {
            // In this order: whatever is here is there.
            if let Some(archive) = &self.behind {
                archive.put(bytes)?;
            }
            self.write(&path, bytes)?;
        }
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.fetch(digest)?;
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BlobError::Missing(*digest)),
            Err(error) => return Err(io_error(&path, error)),
        };
        check_size(size)?;
        let bytes = fs::read(&path).map_err(|error| io_error(&path, error))?;
        if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(BlobError::Damaged { path }) }
    }

    fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path, error)),
            _ => self.behind.as_ref().map_or(Ok(()), |archive| archive.remove(digest)),
        }
    }
}

/// Blobs in memory, for simulations and tests.
#[derive(Debug, Default)]
pub struct MemoryBlobs {
    blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
}

impl Blobs for MemoryBlobs {
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        check_size(bytes.len() as u64)?;
        let digest = Digest::of(bytes);
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, bytes.to_vec());
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.get(digest).cloned().ok_or(BlobError::Missing(*digest))
    }

    fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
        Ok(())
    }
}

fn check_size(bytes: u64) -> Result<(), BlobError> {
    if bytes > limits::BLOB_BYTES_MAX { Err(BlobError::TooLarge(bytes)) } else { Ok(()) }
}

fn io_error(path: &Path, error: io::Error) -> BlobError {
    BlobError::Io { path: path.to_owned(), error }
}

/// Makes a rename in `folder` survive a power cut. Windows cannot sync a folder and does not need to.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_contract(blobs: &dyn Blobs) {
        let digest = blobs.put(b"some bytes").unwrap();
        assert_eq!(blobs.put(b"some bytes").unwrap(), digest);
        assert_eq!(blobs.get(&digest).unwrap(), b"some bytes");
        blobs.remove(&digest).unwrap();
        blobs.remove(&digest).unwrap();
        assert!(matches!(blobs.get(&digest), Err(BlobError::Missing(missing)) if missing == digest));
    }

    #[test]
    fn blobs_are_found_by_their_digest_until_removed() {
        let folder = tempfile::tempdir().unwrap();
        check_contract(&FolderBlobs::open(folder.path()).unwrap());
        check_contract(&MemoryBlobs::default());
    }

    #[test]
    fn a_damaged_file_is_never_taken_for_its_blob() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(folder.path()).unwrap();
        let digest = blobs.put(b"some bytes").unwrap();
        fs::write(blobs.file(&digest), b"some bytez").unwrap();
        assert!(matches!(blobs.get(&digest), Err(BlobError::Damaged { .. })));
    }

    impl BlobArchive for MemoryBlobs {
        fn list(&self) -> Result<BTreeSet<Digest>, BlobError> {
            Ok(self.blobs.lock().unwrap().keys().copied().collect())
        }
    }

    #[derive(Debug, Clone, Default)]
    struct Shared(std::sync::Arc<MemoryBlobs>);

    impl Blobs for Shared {
        fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
            self.0.put(bytes)
        }
        fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
            self.0.get(digest)
        }
        fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
            self.0.remove(digest)
        }
    }

    impl BlobArchive for Shared {
        fn list(&self) -> Result<BTreeSet<Digest>, BlobError> {
            self.0.list()
        }
    }

    #[test]
    fn an_archive_has_all_that_the_folder_has_and_fills_an_empty_one() {
        let (folder, archive) = (tempfile::tempdir().unwrap(), Shared::default());
        let before = FolderBlobs::open(folder.path()).unwrap();
        let early = before.put(b"from before there was an archive").unwrap();
        let blobs = before.before(Box::new(archive.clone()));
        check_contract(&blobs);
        let kept = blobs.put(b"kept").unwrap();
        let upload = folder.path().join("upload");
        fs::write(&upload, b"uploaded").unwrap();
        let uploaded = Digest::of(b"uploaded");
        blobs.adopt(&upload, &uploaded).unwrap();
        assert_eq!(archive.list().unwrap(), [kept, uploaded].into());
        let orphan = archive.put(b"nobody needs this").unwrap();
        assert_eq!(blobs.retain(&[early, kept].into()).unwrap(), 3, "one here, it and the orphan there");
        assert_eq!(archive.list().unwrap(), [early, kept].into());
        assert!(archive.get(&orphan).is_err());

        let empty = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(empty.path()).unwrap().before(Box::new(archive.clone()));
        assert_eq!(blobs.get(&kept).unwrap(), b"kept");
        assert_eq!(fs::read(blobs.fetch(&early).unwrap()).unwrap(), b"from before there was an archive");
        assert!(matches!(blobs.get(&orphan), Err(BlobError::Missing(_))));
    }

    #[test]
    fn half_written_files_are_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let part = folder.path().join("7.part");
        fs::write(&part, b"half").unwrap();
        FolderBlobs::open(folder.path()).unwrap();
        assert!(!part.exists());
    }
}
