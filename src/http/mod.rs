//! The networked world: the same actors in several processes, over HTTP.
//!
//! [`Server`] is what a coordinator process listens with; [`Client`] is how everybody else reaches it. [`Courier`] and
//! [`JobCourier`] stand for the coordinator in a worker's and a verifier's process, [`RemoteBlobs`] for its blob store,
//! so that the actors there are the ones of the in-process world. [`Desk`] stands for the verifiers in a coordinator's
//! process, [`LedgerCourier`] for a ledger that is a process of its own. Where queries are answered in a process of its
//! own, [`RemoteRun`] and [`RemoteQueryLedger`] stand for the run and the ledger. [`Bucket`] keeps blobs in S3. This is
//! the only place that knows warp, hyper and rustls.

mod admission;
pub mod api;
mod auth;
mod bodies;
mod bucket;
mod client;
mod courier;
mod desk;
mod error;
mod hub;
mod ledger_courier;
mod openapi;
mod passes;
mod query_metrics;
mod rate;
mod remote_blobs;
mod remote_run;
mod server;
mod uploads;

pub use admission::{Admission, AdmissionError, AdmissionRule};
pub use bucket::Bucket;
pub use client::{Client, ClientError};
pub use courier::{Courier, GiveUpJob, JobCourier, News};
pub use desk::Desk;
pub use error::{ApiError, QueryError};
pub use hub::Hub;
pub use ledger_courier::LedgerCourier;
pub use openapi::{Parameter, ROUTES, Route, document};
pub use rate::{Rates, Throttle};
pub use remote_blobs::RemoteBlobs;
pub use remote_run::{RemoteQueryLedger, RemoteRun, ServingNews};
pub use server::{
    LedgerAt, LedgerParts, LedgerTrouble, QueryLedger, QueryParts, QueryPorts, RunPort, Server, ServerConfig,
    ServerError, ServerLimits, ServerParts, TlsFiles,
};
