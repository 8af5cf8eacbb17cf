use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use actix::Actor;
use anyhow::Context;
use clap::Args;

use super::Failure;
use super::run::{stop_signals, system};
use super::teller::config;
use crate::http::{Hub, LedgerParts, Server, ServerConfig};
use crate::ledger::{Desk, LedgerActor};
use crate::protocol::PublicKey;
use crate::runtime::{Clock, SystemClock};
use crate::store::{Archive, Database, GroupCommit, LedgerStore, StateDir};

/// Serve the ledger in a state directory, as a process of its own
///
/// Coordinators started with --ledger have their rounds paid here. It may be stopped or killed at any time: coordinators
/// wait, and go on when it is back.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7710")]
    listen: SocketAddr,
    /// Public keys of verifiers: only what they have accepted is paid
    #[arg(long, value_name = "KEY", num_args = 1..)]
    verifier: Vec<PublicKey>,
    /// Public keys of coordinators that may have rounds paid
    #[arg(long, value_name = "KEY", num_args = 1..)]
    payer: Vec<PublicKey>,
    #[command(flatten)]
    front: FrontArgs,
}

/// How a ledger is served, whatever else the process does.
#[derive(Debug, Args)]
pub(super) struct FrontArgs {
    /// Public keys of those who serve queries: they may hold and settle what those cost
    #[arg(long, value_name = "KEY", num_args = 1..)]
    pub server_key: Vec<PublicKey>,
    #[command(flatten)]
    pub door: DoorArgs,
}

/// How connections come in, whatever is served.
#[derive(Debug, Args)]
pub(super) struct DoorArgs {
    /// Certificate chain for HTTPS, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<std::path::PathBuf>,
    /// Private key for HTTPS, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<std::path::PathBuf>,
    /// A reverse proxy stands before this server: believe its X-Forwarded-For
    #[arg(long)]
    pub behind_proxy: bool,
}

impl FrontArgs {
    /// The part of a server's configuration that these say.
    pub fn config(&self) -> ServerConfig {
        ServerConfig { query_servers: self.server_key.iter().copied().collect(), ..self.door.config() }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.door.scheme()
    }
}

impl DoorArgs {
    /// The part of a server's configuration that these say.
    pub fn config(&self) -> ServerConfig {
        let tls = self.tls_cert.clone().zip(self.tls_key.clone());
        ServerConfig {
            tls: tls.map(|(certificate, key)| crate::http::TlsFiles { certificate, key }),
            behind_proxy: self.behind_proxy,
            ..ServerConfig::default()
        }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls_cert.is_some() { "https" } else { "http" }
    }
}

pub(super) fn run(args: &ServeArgs, folder: &Path) -> Result<(), Failure> {
    let listener = TcpListener::bind(args.listen)
        .with_context(|| format!("cannot listen on {}; choose another --listen", args.listen))?;
    let folder = StateDir::open(folder)?;
    let path = StateDir::database(folder.path());
    let store = LedgerStore::new(Database::open(&path)?)?;
    let mut config = config(folder.path())?;
    config.verifiers = args.verifier.iter().copied().collect();
    let key = folder.key("ledger")?;
    let public = key.public();
    let journal = GroupCommit::start(store, LedgerStore::read_only(&path)?, key)?;
    let desk = Desk::open(config.clone(), Box::new(journal))?;
    let archive = Arc::new(Archive::open(LedgerStore::read_only(&path)?)?);
    eprintln!("  ledger      {public}");
    eprintln!("  state       {}", folder.path().display());
    eprintln!("  transfers   {}", super::report::thousands(desk.core().journal().length()));
    eprintln!("  listening   {}://{}", args.front.scheme(), listener.local_addr()?);
    if args.payer.is_empty() || args.verifier.is_empty() {
        eprintln!("  no rounds are paid: that takes --payer KEY and --verifier KEY");
    }
    let mut server = args.front.config();
    server.payers = args.payer.iter().copied().collect::<BTreeSet<_>>();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    system().block_on(async {
        let actor = LedgerActor::new(desk, Arc::clone(&clock)).start();
        let parts = LedgerParts { actor, archive, config, key: public };
        let server = Server::start_ledger(listener, parts, clock, Arc::new(Hub::default()), server)?;
        stop_signals()?.recv().await;
        server.stop().await;
        Ok(())
    })
}
