//! Who holds how many tokens, and why: double entry, in whole µHYD.

mod account;
mod book;
pub mod economy;
#[cfg(test)]
pub(crate) mod testing;
mod transfer;

pub use account::{Account, AccountError};
pub use book::{Book, BookError, Decision, Posted, Totals};
pub use transfer::{Purpose, Transfer, TransferId, TransferIdError};
