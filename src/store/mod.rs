//! What outlives a crash, in one `SQLite` file. The only place that knows SQL.
//!
//! [`Database`] opens the file and brings its tables up to date; each other module keeps one kind of thing in it and
//! owns the tables for that.

mod ledger;
mod sqlite;

pub use ledger::LedgerStore;
pub use sqlite::{Database, DatabaseError};
