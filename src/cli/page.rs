use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::Failure;
use crate::store::{History, StateDir};

/// Where `hydra up` shows itself, if nobody says where.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8787);

/// What people see of a run in their browsers.
#[derive(Debug, Args)]
pub(super) struct PageArgs {
    /// Serve no page for browsers
    #[arg(long)]
    pub no_page: bool,
    /// A folder of simulations that were kept with `cargo sim SCENARIO --out DIR/NAME`, to be listed on the page
    #[arg(long, value_name = "DIR")]
    pub reports: Option<PathBuf>,
}

/// A place to listen: the one that was asked for, or the usual one, or any port where that is taken.
pub(super) fn listen(asked: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    let listener = match asked {
        Some(address) => TcpListener::bind(address)
            .with_context(|| format!("cannot listen on {address}; choose another --listen"))?,
        None => TcpListener::bind(LISTEN)
            .or_else(|_| TcpListener::bind(SocketAddr::new(LISTEN.ip(), 0)))
            .context("cannot listen on this machine; leave the page out with --no-page")?,
    };
    Ok(listener)
}

/// What became of the rounds of the run in the state directory at `folder`.
pub(super) fn history(folder: &Path) -> Result<History, Failure> {
    let history = History::open(&StateDir::database(folder))?;
    Ok(history.context("there is no run in the state directory")?)
}
