use std::collections::VecDeque;

use super::{Answer, Batch, JournalSource, JournalStore, Kept, Ledger, LedgerConfig, LedgerError, Request, StoreError};
use crate::protocol::{Keypair, Signed, Time, limits};

/// Makes batches durable, one after the other, and tells when they are. The port between the ledger, which decides at
/// once, and a medium that takes its time.
pub trait JournalWriter: JournalSource {
    /// Whom to tell. Once, before anything is submitted.
    fn listen(&mut self, listener: Box<dyn Fn(Written) + Send>);

    /// Takes a job on.
    fn submit(&mut self, job: Job);
}

/// A batch to be made durable; or, without one, the question whether anything can be.
#[derive(Debug)]
pub struct Job {
    /// Batches build on each other: when one fails, those of the same epoch after it are dropped.
    pub epoch: u64,
    /// Its number, counted up.
    pub ticket: u64,
    /// What to write.
    pub batch: Option<Batch>,
}

/// What became of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Their epoch.
    pub epoch: u64,
    /// The last of them; those before it are done too.
    pub ticket: u64,
    /// Whether they are durable.
    pub result: Result<(), StoreError>,
}

/// A writer that is done before it returns: for a store that takes no time.
pub struct Direct<S> {
    store: S,
    key: Keypair,
    listener: Box<dyn Fn(Written) + Send>,
}

impl<S: JournalStore> Direct<S> {
    /// Writes to `store` and signs heads with `key`.
    #[must_use]
    pub fn new(store: S, key: Keypair) -> Self {
        Self { store, key, listener: Box::new(|_| ()) }
    }
}

impl<S: JournalStore> JournalSource for Direct<S> {
    fn entries(&mut self, visit: &mut dyn FnMut(super::Entry) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.store.entries(visit)
    }
    fn kept(&mut self) -> Result<Kept, StoreError> {
        self.store.kept()
    }
    fn heads(&mut self, visit: &mut dyn FnMut(u64, Signed) -> Result<(), StoreError>) -> Result<(), StoreError> {
        self.store.heads(visit)
    }
}

impl<S: JournalStore> JournalWriter for Direct<S> {
    fn listen(&mut self, listener: Box<dyn Fn(Written) + Send>) {
        self.listener = listener;
    }

    fn submit(&mut self, Job { epoch, ticket, batch }: Job) {
        let result = match batch {
            Some(mut batch) => {
                batch.seal(&self.key);
                self.store.append(&batch)
            }
            None => self.store.probe(),
        };
        (self.listener)(Written { epoch, ticket, result });
    }
}

/// Takes requests, and hands out answers once what they say is durable. `R` takes an answer to whoever asked.
///
/// The ledger decides one request after the other without waiting for the medium, so that a batch may hold what many
/// asked for; no answer leaves before all that it rests on is durable, not even one to a question. When the medium fails,
/// everything that is under way is refused and the ledger is opened again from what is durable; until the medium takes
/// something again, requests that would change something are refused and all others answered.
pub struct Desk<R> {
    core: Ledger,
    config: LedgerConfig,
    writer: Box<dyn JournalWriter>,
    waiting: VecDeque<(u64, R, Answer)>,
    epoch: u64,
    sent: u64,
    durable: u64,
    trouble: Option<Trouble>,
}

/// The medium has failed.
struct Trouble {
    error: String,
    /// The core is ahead of what is durable, and could not be opened again yet.
    stale: bool,
    probing: bool,
}

impl<R> Desk<R> {
    /// Opens the ledger that `writer` keeps.
    pub fn open(config: LedgerConfig, mut writer: Box<dyn JournalWriter>) -> Result<Self, StoreError> {
        let core = Ledger::open(config.clone(), &mut *writer)?;
        let waiting = VecDeque::new();
        Ok(Self { core, config, writer, waiting, epoch: 0, sent: 0, durable: 0, trouble: None })
    }

    /// Whom the writer tells when something is durable, so that they tell [`Desk::written`].
    pub fn listen(&mut self, listener: Box<dyn Fn(Written) + Send>) {
        self.writer.listen(listener);
    }

    /// The ledger. What it says may not be durable yet.
    #[must_use]
    pub fn core(&self) -> &Ledger {
        &self.core
    }

    /// Whether something could be written when it was last tried.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.trouble.is_none()
    }

    /// Takes a request. Gives the answer if it can be given now; otherwise [`Desk::written`] gives it later.
    pub fn ask(&mut self, now: Time, request: &Request, reply: R) -> Option<(R, Answer)> {
        let refused = |error: StoreError| Answer::Refused { round: request.round(), error: error.into() };
        if let Some(trouble) = &mut self.trouble
            && (trouble.stale || !request.only_reads())
        {
            let error = StoreError::NotReady(trouble.error.clone());
            if !std::mem::replace(&mut trouble.probing, true) {
                self.submit(None);
            }
            return Some((reply, refused(error)));
        }
        if self.waiting.len() >= limits::LEDGER_WAITING_MAX {
            return Some((reply, refused(StoreError::Busy)));
        }
        let answer = match self.core.decide(now, request) {
            Ok(decided) => {
                let (answer, batch) = self.core.apply(decided);
                if !batch.is_empty() {
                    self.submit(Some(batch));
                }
                answer
            }
            Err(error) => Answer::Refused { round: request.round(), error },
        };
        if self.durable == self.sent {
            return Some((reply, answer));
        }
        self.waiting.push_back((self.sent, reply, answer));
        None
    }

    fn submit(&mut self, batch: Option<Batch>) {
        self.sent += 1;
        self.writer.submit(Job { epoch: self.epoch, ticket: self.sent, batch });
    }

    /// Takes what the writer tells: the answers that can be given now.
    pub fn written(&mut self, Written { epoch, ticket, result }: Written) -> Vec<(R, Answer)> {
        if epoch != self.epoch {
            return Vec::new();
        }
        match result {
            Ok(()) => {
                self.durable = ticket;
                self.recover();
                let ready = self.waiting.partition_point(|(needs, ..)| *needs <= ticket);
                self.waiting.drain(..ready).map(|(_, reply, answer)| (reply, answer)).collect()
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Something can be written again.
    fn recover(&mut self) {
        if let Some(trouble) = &mut self.trouble {
            trouble.probing = false;
            if trouble.stale && !self.reopen() {
                return;
            }
            self.trouble = None;
        }
    }

    /// Refuses all that is under way, and goes back to what is durable.
    fn fail(&mut self, error: &StoreError) -> Vec<(R, Answer)> {
        self.epoch += 1;
        self.durable = self.sent;
        // A failed question changes nothing; a failed batch leaves the core ahead of what is durable.
        let probed = self.trouble.as_ref().is_some_and(|trouble| trouble.probing);
        let stale = self.trouble.as_ref().is_none_or(|trouble| trouble.stale || !probed);
        self.trouble = Some(Trouble { error: error.to_string(), stale, probing: false });
        if stale && self.reopen() {
            self.trouble = Some(Trouble { error: error.to_string(), stale: false, probing: false });
        }
        let refuse = |(_, reply, answer): (u64, R, Answer)| {
            let round = match answer {
                Answer::RoundPaid { run, round, .. } => Some((run, round)),
                _ => None,
            };
            (reply, Answer::Refused { round, error: LedgerError::Store(error.clone()) })
        };
        self.waiting.drain(..).map(refuse).collect()
    }

    fn reopen(&mut self) -> bool {
        match Ledger::open(self.config.clone(), &mut *self.writer) {
            Ok(core) => {
                self.core = core;
                true
            }
            Err(_) => false,
        }
    }
}
