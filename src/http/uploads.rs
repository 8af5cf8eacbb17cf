use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::api::Upload;
use super::error::ApiError;
use crate::protocol::Digest;
use crate::store::{BlobError, FolderBlobs};

/// Payloads on their way in: pieces are appended to a file beside the blob store, and the whole is taken over into it
/// when its digest is right.
///
/// The file `DIGEST.part` is what is there so far; an empty file `DIGEST` marks a blob that came this way, so that
/// those which nobody needs can be cleared away later.
#[derive(Debug)]
pub(super) struct Uploads {
    folder: PathBuf,
    blobs: Arc<FolderBlobs>,
    busy: Mutex<BTreeSet<Digest>>,
}

impl Uploads {
    pub fn open(folder: &Path, blobs: Arc<FolderBlobs>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), blobs, busy: Mutex::default() })
    }

    fn part(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.part"))
    }

    /// How far an upload has come.
    pub fn progress(&self, digest: &Digest) -> Upload {
        if let Ok(metadata) = fs::metadata(self.blobs.file(digest)) {
            return Upload { received: metadata.len(), complete: true };
        }
        let received = fs::metadata(self.part(digest)).map_or(0, |metadata| metadata.len());
        Upload { received, complete: false }
    }

    /// Appends the piece that begins at `offset` to an upload of `length` bytes. Blocks.
    pub fn append(&self, digest: &Digest, offset: u64, length: u64, piece: &[u8]) -> Result<Upload, ApiError> {
        if !self.busy().insert(*digest) {
            return Err(ApiError::Busy);
        }
        let result = self.append_alone(digest, offset, length, piece);
        self.busy().remove(digest);
        result
    }

    fn append_alone(&self, digest: &Digest, offset: u64, length: u64, piece: &[u8]) -> Result<Upload, ApiError> {
        let there = self.progress(digest);
        if there.complete {
            return Ok(there);
        }
        if offset != there.received {
            return Err(ApiError::Offset { received: there.received });
        }
        let end = offset.checked_add(piece.len() as u64).filter(|end| *end <= length);
        let end = end.ok_or_else(|| ApiError::Malformed("the piece goes beyond the length".into()))?;
        let path = self.part(digest);
        let written = OpenOptions::new().create(true).truncate(false).write(true).open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(piece)?;
            if end == length { file.sync_all() } else { Ok(()) }
        });
        if let Err(error) = written {
            // Half a piece would be taken for a whole one.
            let cut = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(offset));
            if cut.is_err() {
                let _ = fs::remove_file(&path);
            }
            return Err(ApiError::Internal(format!("cannot keep the upload: {error}")));
        }
        if end < length {
            return Ok(Upload { received: end, complete: false });
        }
        let marked = File::create(self.folder.join(digest.to_string()));
        marked.map_err(|error| ApiError::Internal(format!("cannot keep the upload: {error}")))?;
        match self.blobs.adopt(&path, digest) {
            Ok(()) => Ok(Upload { received: length, complete: true }),
            Err(BlobError::Damaged { .. }) => {
                let _ = fs::remove_file(&path);
                Err(ApiError::UploadMismatch)
            }
            Err(error) => Err(ApiError::Internal(format!("cannot keep the upload: {error}"))),
        }
    }

    /// Every upload, whole or not.
    pub fn list(&self) -> io::Result<BTreeSet<Digest>> {
        let mut all = BTreeSet::new();
        for entry in fs::read_dir(&self.folder)? {
            all.extend(entry?.path().file_stem().and_then(|stem| stem.to_str()?.parse::<Digest>().ok()));
        }
        Ok(all)
    }

    /// Clears these away, and the blobs that they have become; but no blob in `kept`.
    pub fn clear(&self, unwanted: &BTreeSet<Digest>, kept: &BTreeSet<Digest>) -> Result<(), BlobError> {
        for digest in unwanted {
            if self.busy().contains(digest) {
                continue;
            }
            let marker = self.folder.join(digest.to_string());
            if marker.exists() && !kept.contains(digest) {
                crate::store::Blobs::remove(&*self.blobs, digest)?;
            }
            for path in [self.part(digest), marker] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(BlobError::Io { path, error });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, BTreeSet<Digest>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Blobs;

    struct Bench {
        _folder: tempfile::TempDir,
        blobs: Arc<FolderBlobs>,
        uploads: Uploads,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Arc::new(FolderBlobs::open(&folder.path().join("blobs")).unwrap());
        let uploads = Uploads::open(&folder.path().join("uploads"), Arc::clone(&blobs)).unwrap();
        Bench { _folder: folder, blobs, uploads }
    }

    #[test]
    fn pieces_in_order_make_a_blob_and_a_repeated_piece_is_told_where_it_stands() {
        let Bench { blobs, uploads, .. } = &bench();
        let digest = Digest::of(b"some bytes");
        assert_eq!(uploads.append(&digest, 0, 10, b"some ").unwrap(), Upload { received: 5, complete: false });
        assert_eq!(uploads.append(&digest, 0, 10, b"some "), Err(ApiError::Offset { received: 5 }));
        assert!(matches!(uploads.append(&digest, 5, 10, b"bytes and more"), Err(ApiError::Malformed(_))));
        assert_eq!(uploads.append(&digest, 5, 10, b"bytes").unwrap(), Upload { received: 10, complete: true });
        assert_eq!(uploads.append(&digest, 0, 10, b"some ").unwrap(), Upload { received: 10, complete: true });
        assert_eq!(blobs.get(&digest).unwrap(), b"some bytes");
    }

    #[test]
    fn bytes_with_another_digest_are_thrown_away() {
        let Bench { blobs, uploads, .. } = &bench();
        let digest = Digest::of(b"some bytes");
        assert_eq!(uploads.append(&digest, 0, 10, b"some bytez"), Err(ApiError::UploadMismatch));
        assert_eq!(uploads.progress(&digest), Upload { received: 0, complete: false });
        assert!(matches!(blobs.get(&digest), Err(BlobError::Missing(_))));
        assert!(uploads.append(&digest, 0, 10, b"some bytes").is_ok());
    }

    #[test]
    fn clearing_takes_away_orphans_and_half_uploads_and_never_what_is_kept() {
        let Bench { blobs, uploads, .. } = &bench();
        let contents: [&[u8]; 4] = [b"wanted", b"orphan", b"model", b"half"];
        let [wanted, orphan, model, half] = contents.map(Digest::of);
        for (bytes, digest) in contents.iter().zip([wanted, orphan, model]) {
            uploads.append(&digest, 0, bytes.len() as u64, bytes).unwrap();
        }
        uploads.append(&half, 0, 100, b"half").unwrap();
        let mut unwanted = uploads.list().unwrap();
        assert_eq!(unwanted, [wanted, orphan, model, half].into());
        unwanted.remove(&wanted);
        uploads.clear(&unwanted, &[model].into()).unwrap();
        assert!(blobs.get(&wanted).is_ok() && blobs.get(&model).is_ok());
        assert!(blobs.get(&orphan).is_err());
        assert_eq!(uploads.progress(&half), Upload { received: 0, complete: false });
    }
}
