//! A ledger on another computer, for commands that end when they have their answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::de::DeserializeOwned;

use super::Failure;
use super::teller::Teller;
use crate::http::api::ledger::{
    AccountSides, Accounts, Books, Entries, Heads, NewestHead, Offers, OpenOffer, Recorded, Standing, path,
};
use crate::http::{Client, ClientError};
use crate::ledger::{Entry, Head, JournalSource, Kept, Posts, Proof, StoreError};
use crate::protocol::{Keypair, PublicKey, Signed, limits};
use crate::runtime::{Clock, Stopwatch, SystemClock, entropy};

/// Pauses before an answer is asked for once more, in milliseconds.
const AGAIN_MS: [u64; 5] = [200, 500, 1000, 2000, 4000];

/// From when on nothing is asked for once more: with the last pause, commands give up after eighteen seconds at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a ledger on another computer is.
#[derive(Debug, Args)]
pub(super) struct Remote {
    /// Ask the ledger over the network: where its coordinator is, or its own process: http://host:port
    #[arg(long, value_name = "URL", global = true)]
    coordinator: Option<String>,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE", global = true)]
    tls_ca: Option<PathBuf>,
}

impl Remote {
    /// Where it is.
    pub fn address(&self) -> Option<&str> {
        self.coordinator.as_deref()
    }

    /// Certificates to trust besides the well-known ones.
    pub fn authorities(&self) -> Option<&Path> {
        self.tls_ca.as_deref()
    }

    /// The ledger over the network, if it is one.
    pub fn ledger(&self) -> Result<Option<RemoteLedger>, Failure> {
        let Some(address) = &self.coordinator else { return Ok(None) };
        // Orders bear their owner's signature: whoever brings them needs no name.
        let mut secret = [0; 32];
        entropy(&mut secret).context("the operating system gives no random numbers")?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let client = super::client(address, Keypair::from_secret(&secret), &clock, self.tls_ca.as_deref())?;
        Ok(Some(RemoteLedger::new(client)?))
    }
}

/// A ledger on another computer.
pub(super) struct RemoteLedger {
    client: Arc<Client>,
    runtime: tokio::runtime::Runtime,
    /// Where a journal that is read ends: what comes after it meanwhile is not looked at.
    end: Option<u64>,
}

impl RemoteLedger {
    pub fn new(client: Arc<Client>) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { client, runtime, end: None })
    }

    /// Makes a call until it is answered, or has failed too often, and says that it waits. What is asked for twice is done
    /// once.
    fn call<T>(&self, call: impl AsyncFn(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let began = Stopwatch::start();
        self.runtime.block_on(async {
            let mut pauses = AGAIN_MS.into_iter();
            loop {
                let error = match call(&self.client).await {
                    Err(error) if error.is_passing() => error,
                    answer => return answer,
                };
                match pauses.next().filter(|_| began.elapsed() < PATIENCE) {
                    Some(pause) => {
                        if pause == AGAIN_MS[0] {
                            eprintln!("{error}; trying again for some seconds");
                        }
                        tokio::time::sleep(Duration::from_millis(pause)).await;
                    }
                    None => return Err(given_up(error, began.elapsed())),
                }
            }
        })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(async |client| client.get(path).await)
    }

    pub fn books(&self) -> Result<Books, ClientError> {
        self.get(path::LEDGER)
    }

    /// The same if it answers now; nothing if it cannot be reached.
    pub fn books_now(&self) -> Result<Option<Books>, ClientError> {
        match self.runtime.block_on(self.client.get(path::LEDGER)) {
            Ok(books) => Ok(Some(books)),
            Err(error) if error.is_passing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn head(&self) -> Result<NewestHead, ClientError> {
        self.get(path::HEAD)
    }

    /// The proof that a transfer, by id or number, is in the journal.
    pub fn inclusion(&self, transfer: &str) -> Result<Proof, ClientError> {
        self.get(&format!("{}/{transfer}/proof", path::TRANSFERS))
    }

    /// The proof that the journal goes on from when it had `since` transfers.
    pub fn growth(&self, since: u64) -> Result<Proof, ClientError> {
        self.get(&format!("{}?since={since}", path::GROWTH))
    }

    /// All accounts.
    pub fn accounts(&self) -> Result<Vec<AccountSides>, ClientError> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page: Accounts = self.get(&format!("{}?most={}{after}", path::ACCOUNTS, limits::LEDGER_PAGE_MAX))?;
            all.extend(page.accounts);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }

    /// Has whoever reads the journal from now on see no more of it than there is now: how much that is.
    pub fn hold_still(&mut self) -> Result<u64, ClientError> {
        let head = self.head()?.head;
        let size = match head {
            Some(head) => head.open::<Head>().map_err(|error| ClientError::Answer(error.to_string()))?.1.size,
            None => 0,
        };
        self.end = Some(size);
        Ok(size)
    }

    fn end(&self) -> u64 {
        self.end.unwrap_or(u64::MAX)
    }
}

/// What to do about a server that does not answer.
fn given_up(error: ClientError, after: Duration) -> ClientError {
    match error {
        ClientError::Unreachable { base, problem } => {
            let seconds = after.as_secs();
            let problem = format!(
                "{problem}, also after {seconds} seconds. Is that the address of a coordinator or of `hydra ledger serve`, and \
                 does it run? `hydra doctor --coordinator {base}` says more"
            );
            ClientError::Unreachable { base, problem }
        }
        error => error,
    }
}

impl Teller for RemoteLedger {
    fn order(&mut self, order: &Signed) -> anyhow::Result<Recorded> {
        Ok(self.call(async |client| client.post(path::TRANSFERS, order).await)?)
    }

    fn offers(&mut self) -> anyhow::Result<Vec<OpenOffer>> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let page: Offers = self.get(&format!("{}?most={}{after}", path::OFFERS, limits::LEDGER_PAGE_MAX))?;
            all.extend(page.offers);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }

    fn posts(&mut self, key: PublicKey) -> anyhow::Result<(Posts, Posts)> {
        let standing: Standing = self.get(&format!("{}/{key}", path::ACCOUNTS))?;
        Ok((standing.wallet.into(), standing.stake.into()))
    }

    fn history(&mut self, key: PublicKey, most: usize) -> anyhow::Result<Vec<Entry>> {
        let (mut all, mut before) = (Vec::new(), String::new());
        while all.len() < most {
            let some = (most - all.len()).min(limits::LEDGER_PAGE_MAX);
            let page: Entries = self.get(&format!("{}/{key}/history?most={some}{before}", path::ACCOUNTS))?;
            all.extend(page.entries);
            match page.next {
                Some(next) => before = format!("&before={next}"),
                None => break,
            }
        }
        all.reverse();
        Ok(all)
    }
}

impl From<ClientError> for StoreError {
    fn from(error: ClientError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The journal, page by page.
impl JournalSource for RemoteLedger {
    fn entries(&mut self, visit: &mut dyn FnMut(Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut after = 0;
        while after < self.end() {
            let query = format!("{}?most={}&after={after}", path::ENTRIES, limits::LEDGER_PAGE_MAX);
            let page: Entries = self.get(&query)?;
            let Some(last) = page.entries.last().map(|entry| entry.sequence).filter(|last| *last > after) else {
                return Ok(());
            };
            let end = self.end();
            page.entries.into_iter().filter(|entry| entry.sequence <= end).try_for_each(&mut *visit)?;
            after = last;
        }
        Ok(())
    }

    /// Nothing: what a ledger keeps besides its journal is its own.
    fn kept(&mut self) -> Result<Kept, StoreError> {
        Ok(Kept::default())
    }

    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut after = 0;
        while after < self.end() {
            let page: Heads = self.get(&format!("{}?most={}&after={after}", path::HEADS, limits::LEDGER_PAGE_MAX))?;
            let mut last = after;
            for signed in page.heads {
                let size =
                    signed.claimed_message::<Head>().map_err(|error| StoreError::Unsound(error.to_string()))?.size;
                if size > self.end() {
                    return Ok(());
                }
                visit(size, signed)?;
                last = last.max(size);
            }
            if last == after {
                return Ok(());
            }
            after = last;
        }
        Ok(())
    }
}
