use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::replace_file;
use crate::protocol::{limits, wire};
use crate::worker::{Finished, ResultStore};

/// A worker's result in a file, until it is acknowledged.
#[derive(Debug)]
pub struct ResultFile {
    path: PathBuf,
}

impl ResultFile {
    /// The file at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What an earlier process kept and did not let go. A damaged file is none: its task will be done again.
    #[must_use]
    pub fn load(&self) -> Option<Finished> {
        let bytes = fs::read(&self.path).ok()?;
        let limit = usize::try_from(limits::BLOB_BYTES_MAX).unwrap_or(usize::MAX);
        let finished: Finished = wire::decode(&bytes, limit).ok()?;
        let digest = crate::protocol::Digest::of(&finished.payload);
        (digest == finished.submission.commitment.payload).then_some(finished)
    }

    fn complain(path: &Path, error: &io::Error) -> String {
        format!("cannot keep the result in {}: {error}", path.display())
    }
}

impl ResultStore for ResultFile {
    fn keep(&mut self, finished: &Finished) -> Result<(), String> {
        replace_file(&self.path, &wire::encode(finished)).map_err(|error| Self::complain(&self.path, &error))
    }

    fn let_go(&mut self) -> Result<(), String> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Self::complain(&self.path, &error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Digest, Submission, TaskId};

    #[test]
    fn a_result_is_there_until_it_is_let_go_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result");
        let mut file = ResultFile::new(path.clone());
        assert_eq!(file.load(), None);
        let payload = b"payload".to_vec();
        let submission =
            Submission::new(TaskId(Digest::of(b"task")), Digest::of(&payload), vec![1.0], crate::testing::trail(1), 5);
        let finished = Finished { submission, payload };
        file.keep(&finished).unwrap();
        assert_eq!(file.load(), Some(finished));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(file.load(), None);
        file.let_go().unwrap();
        file.let_go().unwrap();
        assert!(!path.exists());
    }
}
