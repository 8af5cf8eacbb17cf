//! Who holds how many tokens, and why: double entry, in whole µHYD.
//!
//! From the inside out: [`Book`] holds balances and says which transfers are allowed; [`economy`] says what a round
//! emits, who gets which share and how often work is audited; [`Journal`] chains the transfers by hash and [`merkle`]
//! makes a tree of them, so that none can be altered unseen and each can be shown to anybody; [`Ledger`] turns requests
//! into transfers; [`Desk`] hands out answers when they are durable; [`LedgerActor`] gives it a mailbox.
//!
//! All but the actor is pure. The ledger decides and applies at once, and gives a [`Batch`] for the [`JournalWriter`]: a
//! transfer counts when it is on the disk, and an answer is given when it counts. All state follows from the journal.

mod account;
mod actor;
mod audit;
mod book;
mod core;
mod desk;
pub mod economy;
mod journal;
#[cfg(test)]
mod laws;
pub mod merkle;
mod order;
mod proof;
mod refusals;
#[cfg(test)]
pub(crate) mod testing;
mod transfer;

pub use self::core::{Answer, Decided, Forfeited, Ledger, LedgerConfig, LedgerError, Offer, Request, Standing};
pub use account::{Account, AccountError};
pub use actor::{AnswerTo, Ask, IsReady, LedgerActor, Question};
pub use audit::{Audited, audit, audit_journal};
pub use book::{Book, BookError, Decision, Hold, Known, Posted, Posts, Totals};
pub use desk::{Desk, Direct, Job, JournalWriter, Written};
pub use economy::{Economy, EconomyConfig, EconomyError};
pub use journal::{Batch, Entry, Head, Journal, JournalSource, JournalStore, Kept, MemoryJournal, StoreError, leaf};
pub use order::{Action, CheckedOrder, Order, OrderError};
pub use proof::{Proof, ProofError};
pub use refusals::Refusal;
pub use transfer::{Content, Kind, Purpose, Transfer, TransferId, TransferIdError};
