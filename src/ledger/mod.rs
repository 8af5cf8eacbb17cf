//! Who holds how many tokens, and why: double entry, in whole µHYD.
//!
//! From the inside out: [`Book`] holds balances and says which transfers are allowed; [`economy`] says what a round
//! emits and who gets which share; [`Journal`] chains the transfers by hash, so that none can be altered unseen;
//! [`Ledger`] turns requests into transfers; [`LedgerActor`] gives it a mailbox and a [`JournalStore`].
//!
//! All but the actor is pure. Deciding and applying are two steps, with the store between them: a transfer counts when
//! it is on the disk, and an answer is given when it counts. All state follows from the journal.

mod account;
mod actor;
mod book;
mod core;
pub mod economy;
mod journal;
#[cfg(test)]
pub(crate) mod testing;
mod transfer;

pub use self::core::{Answer, Decided, Ledger, LedgerConfig, LedgerError, Request};
pub use account::{Account, AccountError};
pub use actor::{Ask, LedgerActor};
pub use book::{Book, BookError, Decision, Posted, Totals};
pub use journal::{Entry, Journal, JournalStore, MemoryJournal, StoreError};
pub use transfer::{Purpose, Transfer, TransferId, TransferIdError};
