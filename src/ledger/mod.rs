//! Who holds how many tokens, and why: double entry, in whole µHYD.

mod account;
pub mod economy;
mod transfer;

pub use account::{Account, AccountError};
pub use transfer::{Purpose, Transfer, TransferId, TransferIdError};
