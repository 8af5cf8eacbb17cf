use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rust_embed::Embed;
use walkdir::WalkDir;

use crate::protocol::limits;
use crate::training::Corpus;

/// Text to train on, and where it is from.
pub(super) struct Data {
    pub corpus: Corpus,
    pub documents: usize,
    pub bytes: u64,
    pub source: String,
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
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Data> {
    let mut data = Data { corpus: Corpus::default(), documents: 0, bytes: 0, source: String::new() };
    if paths.is_empty() {
        data.source = "Hydra's own code and documentation".to_owned();
        data.push(include_bytes!("../../README.md"))?;
        let book = Book::iter().filter(|name| name.ends_with(".md")).filter_map(|name| Book::get(&name));
        for file in book.chain(Code::iter().filter_map(|name| Code::get(&name))) {
            data.push(&file.data)?;
        }
        return Ok(data);
    }
    data.source = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    for path in paths {
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if metadata.is_dir() {
            data.read_folder(path)?;
        } else if metadata.is_file() {
            data.read_file(path, metadata.len())?;
        } else {
            bail!("{} is neither a file nor a folder", path.display());
        }
    }
    ensure!(data.bytes > 0, "there is no text in {}: name files or folders that are not empty", data.source);
    Ok(data)
}

impl Data {
    fn push(&mut self, document: &[u8]) -> anyhow::Result<()> {
        self.corpus.push(document)?;
        self.documents += 1;
        self.bytes += document.len() as u64;
        Ok(())
    }

    fn read_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
        let entries = WalkDir::new(folder)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
        for entry in entries {
            let entry = entry.context("cannot read the data")?;
            if entry.file_type().is_file() {
                self.read_file(entry.path(), entry.metadata()?.len())?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, bytes: u64) -> anyhow::Result<()> {
        ensure!(
            self.bytes + bytes <= limits::CORPUS_BYTES_MAX,
            "the data has more than {} GiB with {}; name fewer files",
            limits::CORPUS_BYTES_MAX >> 30,
            path.display()
        );
        let document = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.push(&document)
    }
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
