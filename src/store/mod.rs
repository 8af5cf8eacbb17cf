//! What outlives a crash: one SQLite file, a folder of blobs, key files. The only place that knows SQL.
//!
//! [`Database`] opens the file and brings its tables up to date; [`LedgerStore`], [`RunStore`] and [`QueryStore`] keep one
//! kind of thing in it each, and own the tables for that. [`GroupCommit`] writes what many asked the ledger for in one
//! transaction, [`Archive`] looks things up in what they have written, and [`History`] in what became of a run's rounds. [`Blobs`] keeps large things by their digest. [`StateDir`] is the folder that holds all of it, keys
//! ([`KeyFile`]) included.

mod archive;
mod blobs;
mod coordinator;
mod group;
mod history;
mod key_file;
mod ledger;
mod queries;
mod results;
mod sqlite;
mod state_dir;

pub use archive::{Archive, Growth};
pub use blobs::{BlobArchive, BlobError, Blobs, FolderBlobs, MemoryBlobs};
pub use coordinator::{Goal, RunStore, RunStoreError};
pub use group::GroupCommit;
pub use history::History;
pub use key_file::{KeyFile, KeyFileError, LockedKey};
pub use ledger::LedgerStore;
pub use queries::{ApiKey, OpenQuery, QueryStore, QueryStoreError};
pub use results::ResultFile;
pub use sqlite::{Database, DatabaseError};
pub use state_dir::{StateDir, StateDirError, replace_file};
