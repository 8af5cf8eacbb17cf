use super::{Answer, Decided, Ledger};
use crate::ledger::{Account, BookError, Kind, Purpose, Transfer, TransferId};
use crate::protocol::{Amount, Digest, Time};

/// A chain of transfers in the making.
pub(super) struct Draft<'a> {
    ledger: &'a Ledger,
    at: Time,
    chain: Vec<Transfer>,
}

impl<'a> Draft<'a> {
    pub fn new(ledger: &'a Ledger, at: Time) -> Self {
        Self { ledger, at, chain: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.chain.is_empty()
    }

    pub fn len(&self) -> usize {
        self.chain.len()
    }

    pub fn push(&mut self, transfer: Transfer) {
        self.chain.push(transfer);
    }

    /// Adds a transfer of the ledger's own making.
    pub fn add(&mut self, kind: Kind, debit: Account, credit: Account, amount: Amount, purpose: Purpose) {
        let sequence = self.ledger.journal.length() + self.chain.len() as u64 + 1;
        self.push(Transfer { id: TransferId::nth(self.at, sequence), kind, debit, credit, amount, purpose });
    }

    /// Has the book decide. `answer` is given the place of the first transfer in the journal, and the ledger hash after
    /// the last one that pays for work, or tells that nothing was due.
    pub fn decide(self, answer: impl FnOnce(u64, Digest) -> Answer) -> Result<Decided, BookError> {
        let effect = self.ledger.book.decide(self.at, &self.chain)?;
        let sequence = effect.posted().sequence;
        let mut journal = self.ledger.journal;
        let mut paid = journal.head();
        let mut entries = Vec::with_capacity(self.chain.len());
        if effect.is_new() {
            for transfer in self.chain {
                entries.push(journal.append(self.at, transfer));
                if matches!(transfer.purpose, Purpose::Pay { .. } | Purpose::NothingDue { .. }) {
                    paid = journal.head();
                }
            }
        }
        Ok(Decided { answer: answer(sequence, paid), entries, journal, effect: Some(effect), refusal: None })
    }

    /// As [`Draft::decide`], for what came under `id`.
    pub fn done(self, id: TransferId) -> Result<Decided, BookError> {
        self.decide(|sequence, _| Answer::Done { id, sequence })
    }
}
