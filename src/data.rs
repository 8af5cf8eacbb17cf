//! Text to train on: files and folders, or Hydra's own code and documentation.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rust_embed::Embed;
use walkdir::WalkDir;

use crate::protocol::limits;
use crate::training::{Corpus, CorpusError};

/// Text to train on, and where it is from.
#[derive(Debug)]
pub struct Data {
    /// The text, split.
    pub corpus: Corpus,
    /// How many documents it was.
    pub documents: usize,
    /// How many bytes.
    pub bytes: u64,
    /// Where it is from, for people.
    pub source: String,
}

/// Why there is nothing to train on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or folder that is not there or not ours to read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A device, a pipe or the like.
    #[error("{} is neither a file nor a folder", .0.display())]
    Special(PathBuf),
    /// Not a single byte.
    #[error("there is no text in {0}: name files or folders that are not empty")]
    Empty(String),
    /// Too much text.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
}

#[derive(Embed)]
#[folder = "src/"]
struct Code;

#[derive(Embed)]
#[folder = "docs/"]
struct Book;

/// Reads files and folders, or Hydra's own code and documentation where none are named.
///
/// Folders are read in the order of their names, without hidden files and links, so that the same files give the same
/// corpus everywhere.
pub fn read(paths: &[PathBuf]) -> Result<Data, DataError> {
    let mut data = Data { corpus: Corpus::default(), documents: 0, bytes: 0, source: String::new() };
    if paths.is_empty() {
        data.source = String::from("Hydra's own code and documentation");
        data.push(include_bytes!("../README.md"))?;
        let book = Book::iter().filter(|name| name.ends_with(".md")).filter_map(|name| Book::get(&name));
        // The page's scripts are not to be learnt from: much of them is other people's, made small for machines.
        let code = Code::iter().filter(|name| name.ends_with(".rs")).filter_map(|name| Code::get(&name));
        for file in book.chain(code) {
            data.push(&file.data)?;
        }
        return Ok(data);
    }
    data.source = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    for path in paths {
        let metadata = fs::metadata(path).map_err(unreadable(path))?;
        if metadata.is_dir() {
            data.read_folder(path)?;
        } else if metadata.is_file() {
            data.read_file(path, metadata.len())?;
        } else {
            return Err(DataError::Special(path.clone()));
        }
    }
    if data.bytes == 0 {
        return Err(DataError::Empty(data.source));
    }
    Ok(data)
}

impl Data {
    fn push(&mut self, document: &[u8]) -> Result<(), DataError> {
        self.corpus.push(document)?;
        self.documents += 1;
        self.bytes += document.len() as u64;
        Ok(())
    }

    fn read_folder(&mut self, folder: &Path) -> Result<(), DataError> {
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        let entries = WalkDir::new(folder)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
        for entry in entries {
            let entry = entry.map_err(walk_error(folder))?;
            if entry.file_type().is_file() {
                let metadata = entry.metadata().map_err(walk_error(entry.path()))?;
                self.read_file(entry.path(), metadata.len())?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, bytes: u64) -> Result<(), DataError> {
        // Before it is read: a file larger than the memory must not be.
        if self.bytes + bytes > limits::CORPUS_BYTES_MAX {
            return Err(CorpusError::TooLong.into());
        }
        let document = fs::read(path).map_err(unreadable(path))?;
        self.push(&document)
    }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> DataError + use<> {
    let path = path.to_owned();
    move |error| DataError::Unreadable { path, error }
}

fn walk_error(folder: &Path) -> impl FnOnce(walkdir::Error) -> DataError + use<> {
    let folder = folder.to_owned();
    move |error| DataError::Unreadable { path: error.path().map_or(folder, Path::to_owned), error: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order_without_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("b.txt", "second"), ("a.txt", "first"), (".hidden", "no"), ("empty", "")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let data = read(&[folder.path().to_owned()]).unwrap();
        let mut expected = Corpus::default();
        expected.push(b"first").unwrap();
        expected.push(b"second").unwrap();
        assert_eq!((data.corpus, data.bytes), (expected, 11));
    }

    #[test]
    fn missing_and_empty_data_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let missing = read(&[folder.path().join("nothing-here")]).err().unwrap();
        assert!(format!("{missing:#}").contains("nothing-here"));
        let empty = read(&[folder.path().to_owned()]).err().unwrap();
        assert!(empty.to_string().contains("no text"), "{empty}");
    }

    #[test]
    fn hydra_itself_is_enough_text_to_train_on() {
        let data = read(&[]).unwrap();
        data.corpus.check(256).unwrap();
        assert!(data.bytes > 100_000 && data.documents > 20, "{} bytes", data.bytes);
    }
}
