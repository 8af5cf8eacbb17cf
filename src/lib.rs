//! Hydra trains one neural network on many people's computers, and pays them for it in tokens.
//!
//! The map, in reading order:
//!
//! - [`protocol`]: the vocabulary. Ids, digests, amounts, tasks, submissions, verdicts, signed envelopes, limits.
//! - [`training`]: what training means, whatever computes it. Batches, inner loop, codecs, aggregation.
//! - [`model`]: the network and its optimisers, on burn.
//! - [`coordinator`], [`worker`], [`verifier`], [`ledger`]: the four roles. Each is a pure core and a thin actor.
//! - [`store`]: what outlives a crash. SQLite, blobs, keys.
//! - [`data`]: text to train on.
//! - [`compute`]: what roles compute off their actors' threads.
//! - [`runtime`]: clock, threads, and somebody who watches.
//! - [`swarm`]: the four roles wired together in one process.
//! - [`http`]: the same roles in several processes.
//! - [`inference`]: text from a trained model.
//! - [`cli`]: the command line.
//!
//! Cores do no I/O, read no clock and draw no randomness that was not handed to them; `tests/tidy.rs` holds them to
//! it.

pub mod cli;
pub mod compute;
pub mod coordinator;
pub mod data;
pub mod http;
pub mod inference;
pub mod ledger;
pub mod model;
pub mod protocol;
pub mod runtime;
pub mod store;
pub mod swarm;
#[cfg(test)]
mod testing;
pub mod training;
pub mod verifier;
pub mod worker;
