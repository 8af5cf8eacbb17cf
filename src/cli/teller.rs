//! What the wallet commands need of a ledger, wherever it is.

use std::path::Path;

use anyhow::{Context, anyhow};

use super::run::economy;
use crate::http::api::ledger::{OpenOffer, Recorded};
use crate::ledger::{
    Account, Answer, CheckedOrder, Economy, EconomyConfig, Entry, JournalStore, Ledger, LedgerConfig, LedgerError,
    Posts, Request, TransferId,
};
use crate::protocol::{Keypair, PublicKey, Signed};
use crate::runtime::{Clock, SystemClock};
use crate::store::{Database, LedgerStore, RunStore, StateDir};

/// A ledger that answers wallets: one in a state directory ([`LocalTeller`]), or one behind a network
/// ([`RemoteLedger`](super::remote::RemoteLedger)).
pub(super) trait Teller {
    /// Has a signed order done: its id and the place of its first transfer in the journal, or why not.
    fn order(&mut self, order: &Signed) -> anyhow::Result<Recorded>;

    /// All open offers.
    fn offers(&mut self) -> anyhow::Result<Vec<OpenOffer>>;

    /// What a key's wallet and stake hold.
    fn posts(&mut self, key: PublicKey) -> anyhow::Result<(Posts, Posts)>;

    /// The last `most` entries of the journal that concern a key's wallet or stake, oldest first.
    fn history(&mut self, key: PublicKey, most: usize) -> anyhow::Result<Vec<Entry>>;
}

/// The ledger in a state directory. Looking at it is possible at any time; to change something it must be nobody else's
/// at that time.
pub(super) struct LocalTeller<'a> {
    folder: &'a Path,
    open: Option<OpenLedger>,
}

struct OpenLedger {
    _folder: StateDir,
    ledger: Ledger,
    store: LedgerStore,
    key: Keypair,
}

impl<'a> LocalTeller<'a> {
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, open: None }
    }

    fn reader(&self) -> anyhow::Result<LedgerStore> {
        Ok(LedgerStore::snapshot(&database(self.folder)?)?)
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let open = match self.open.take() {
            Some(open) => open,
            None => OpenLedger::new(self.folder)?,
        };
        let open = self.open.insert(open);
        // What is due by now is done first, as it would be in a ledger that runs.
        open.ask(&Request::Tick)?;
        Ok(open.ask(request)?)
    }
}

impl OpenLedger {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let database = database(path)?;
        let folder = StateDir::open(path)?;
        let key = folder.key("ledger")?;
        let mut store = LedgerStore::new(Database::open(&database)?)?;
        let ledger = Ledger::open(config(path)?, &mut store)?;
        Ok(Self { _folder: folder, ledger, store, key })
    }

    fn ask(&mut self, request: &Request) -> Result<Answer, LedgerError> {
        let (answer, mut batch) = self.ledger.apply(self.ledger.decide(SystemClock.now(), request)?);
        batch.seal(&self.key);
        self.store.append(&batch)?;
        match answer {
            Answer::Refused { error, .. } => Err(error),
            answer => Ok(answer),
        }
    }
}

impl Teller for LocalTeller<'_> {
    fn order(&mut self, order: &Signed) -> anyhow::Result<Recorded> {
        match self.ask(&Request::Order(CheckedOrder::check(order)?))? {
            Answer::Done { id, sequence } => Ok(Recorded { id, sequence }),
            _ => Err(anyhow!("the ledger answered something else")),
        }
    }

    fn offers(&mut self) -> anyhow::Result<Vec<OpenOffer>> {
        match self.ask(&Request::Offers { after: TransferId::new(0), most: usize::MAX })? {
            Answer::Offers(offers) => Ok(offers.into_iter().map(OpenOffer::from).collect()),
            _ => Err(anyhow!("the ledger answered something else")),
        }
    }

    fn posts(&mut self, key: PublicKey) -> anyhow::Result<(Posts, Posts)> {
        let reader = self.reader()?;
        Ok((reader.posts(Account::Wallet(key))?, reader.posts(Account::Stake(key))?))
    }

    fn history(&mut self, key: PublicKey, most: usize) -> anyhow::Result<Vec<Entry>> {
        Ok(self.reader()?.history(&[Account::Wallet(key), Account::Stake(key)], most)?)
    }
}

/// The database of a state directory that has one.
pub(super) fn database(folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    let database = StateDir::database(folder);
    if database.exists() {
        Ok(database)
    } else {
        Err(anyhow!(
            "there is no ledger in {}; `hydra up` makes one, and --state-dir names another place",
            folder.display()
        ))
    }
}

/// The configuration of the ledger in a state directory: its run's, or the defaults where there is no run.
pub(super) fn config(folder: &Path) -> anyhow::Result<LedgerConfig> {
    config_of(&StateDir::database(folder))
}

/// The same for a database file.
pub(super) fn config_of(database: &Path) -> anyhow::Result<LedgerConfig> {
    let run = RunStore::new(Database::open_read_only(database)?).load()?;
    let economy: Economy = match run {
        Some((spec, _)) => economy(&spec)?,
        None => EconomyConfig::default().check()?,
    };
    // Verdicts are not taken here.
    Ok(LedgerConfig { economy, verifiers: [].into() })
}

/// The key that the ledger in a state directory signs with, if it has signed anything.
pub(super) fn signer(folder: &Path) -> anyhow::Result<Option<PublicKey>> {
    let key = StateDir::find_key(folder, "ledger").context("the ledger's key")?;
    Ok(key.map(|key| key.public()))
}
