use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::request::Pay;
use super::{Forfeited, Offer};
use crate::ledger::{Account, Entry, Hold, Kind, Purpose, TransferId};
use crate::protocol::{Amount, Digest, PublicKey, Round, RunId, TaskId, Time};

/// What the journal means for requests to come. A fold of its entries.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub rounds: BTreeMap<(RunId, Round), PaidRound>,
    /// The round in which each worker was paid for each task.
    pub work: BTreeMap<(TaskId, PublicKey), (RunId, Round)>,
    pub workers: BTreeMap<PublicKey, Worker>,
    /// What each finding has cost.
    pub findings: BTreeMap<Digest, Forfeited>,
    /// Open offers, by the id of the order that made them.
    pub offers: BTreeMap<TransferId, Offer>,
    /// The offers that accepted holds belong to.
    accepted: BTreeMap<TransferId, TransferId>,
    /// Pending transfers that the clock ends, by when.
    pub due: BTreeSet<(Time, TransferId)>,
}

/// A round that was paid.
#[derive(Debug)]
pub(super) struct PaidRound {
    pub verdicts: Digest,
    pub pays: Vec<(PublicKey, TaskId, Amount)>,
    pub head: Digest,
}

/// What is under way for one worker.
#[derive(Debug, Default)]
pub(super) struct Worker {
    /// Pays that have not vested, oldest first.
    pub unvested: VecDeque<Unvested>,
    /// Stake that is on its way out, and when it is there.
    pub unstaking: BTreeMap<TransferId, (Amount, Time)>,
    /// Rewards since the last finding.
    pub clean: u32,
}

/// A pay that is not its worker's own yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unvested {
    pub pending: TransferId,
    pub amount: Amount,
    /// What it was paid with.
    pub round: (RunId, Round),
}

impl Worker {
    /// It is nearly always the oldest.
    fn end_unvested(&mut self, pending: TransferId) {
        if let Some(place) = self.unvested.iter().position(|unvested| unvested.pending == pending) {
            self.unvested.remove(place);
        }
    }
}

impl Index {
    /// Takes in an entry. `ended` is what the pending transfer held that it ends, if it ends one.
    pub fn see(&mut self, entry: &Entry, ended: Option<Hold>) {
        let transfer = &entry.transfer;
        if let Kind::Pending { expires: Some(expires) } = transfer.kind {
            self.due.insert((expires, transfer.id));
        }
        let resolved = transfer.kind.resolves();
        if let (Some(pending), Some(expires)) = (resolved, ended.and_then(|hold| hold.expires)) {
            self.due.remove(&(expires, pending));
        }
        match transfer.purpose {
            Purpose::Pay { .. } => self.see_pay(entry),
            Purpose::NothingDue { run, round, verdicts } => {
                self.rounds.insert((run, round), PaidRound { verdicts, pays: Vec::new(), head: entry.chain });
            }
            Purpose::Vest => {
                if let (Some(pending), Account::Wallet(worker)) = (resolved, transfer.credit) {
                    self.worker(worker).end_unvested(pending);
                }
            }
            Purpose::Forfeit { finding } => self.see_forfeit(entry, finding),
            Purpose::Slash { finding, .. } => {
                if let Account::Stake(worker) = transfer.debit {
                    let found = self.finding(finding, worker);
                    found.stake = transfer.amount;
                    found.sequence = entry.sequence;
                    self.worker(worker).clean = 0;
                }
            }
            Purpose::Unstaking { matures, .. } => {
                if let Account::Stake(worker) = transfer.debit {
                    self.due.insert((matures, transfer.id));
                    self.worker(worker).unstaking.insert(transfer.id, (transfer.amount, matures));
                }
            }
            Purpose::Unstaked => {
                if let (Account::Stake(worker), Some(pending)) = (transfer.debit, resolved) {
                    self.end_unstaking(worker, pending);
                }
            }
            Purpose::Offered { taker, terms, .. } => {
                if let (Account::Wallet(maker), Kind::Pending { expires: Some(expires) }) =
                    (transfer.debit, transfer.kind)
                {
                    let offer = Offer { maker, amount: transfer.amount, taker, terms, expires, accepted: None };
                    self.offers.insert(transfer.id, offer);
                }
            }
            Purpose::Accepted { offer, .. } => {
                if let (Account::Wallet(taker), Kind::Pending { .. }) = (transfer.credit, transfer.kind) {
                    self.accepted.insert(transfer.id, offer);
                    if let Some(offer) = self.offers.get_mut(&offer) {
                        offer.accepted = Some((taker, transfer.id));
                    }
                }
            }
            Purpose::Traded { offer, .. } | Purpose::Withdrawn { offer, .. } => self.end_offer(offer),
            Purpose::Expired => {
                if let Some(pending) = resolved {
                    self.end_offer(self.accepted.get(&pending).copied().unwrap_or(pending));
                }
            }
            Purpose::Query
            | Purpose::Settled { .. }
            | Purpose::Share { .. }
            | Purpose::Released { .. }
            | Purpose::Sent { .. }
            | Purpose::Staked { .. } => {}
        }
    }

    fn worker(&mut self, key: PublicKey) -> &mut Worker {
        self.workers.entry(key).or_default()
    }

    fn finding(&mut self, finding: Digest, worker: PublicKey) -> &mut Forfeited {
        let new = Forfeited { finding, worker, unvested: Amount::ZERO, stake: Amount::ZERO, sequence: 0 };
        self.findings.entry(finding).or_insert(new)
    }

    fn see_pay(&mut self, entry: &Entry) {
        let Some(Pay { run, round, verdicts, what: (worker, task, amount) }) = Pay::of(entry) else { return };
        let new = || PaidRound { verdicts, pays: Vec::new(), head: entry.chain };
        let paid = self.rounds.entry((run, round)).or_insert_with(new);
        paid.pays.push((worker, task, amount));
        paid.head = entry.chain;
        self.work.insert((task, worker), (run, round));
        let worker = self.worker(worker);
        worker.unvested.push_back(Unvested { pending: entry.transfer.id, amount, round: (run, round) });
        worker.clean = worker.clean.saturating_add(1);
    }

    fn see_forfeit(&mut self, entry: &Entry, finding: Digest) {
        let transfer = &entry.transfer;
        let (Some(pending), Account::Wallet(worker)) = (transfer.kind.resolves(), transfer.credit) else { return };
        if transfer.debit == Account::Emission {
            self.worker(worker).end_unvested(pending);
            let found = self.finding(finding, worker);
            // Sums of what one worker was paid stay far below what a number holds.
            found.unvested = found.unvested.checked_add(transfer.amount).unwrap_or(found.unvested);
        } else {
            self.end_unstaking(worker, pending);
        }
    }

    fn end_unstaking(&mut self, worker: PublicKey, pending: TransferId) {
        if let Some((_, matures)) = self.worker(worker).unstaking.remove(&pending) {
            self.due.remove(&(matures, pending));
        }
    }

    fn end_offer(&mut self, offer: TransferId) {
        if let Some(Offer { accepted: Some((_, hold)), .. }) = self.offers.remove(&offer) {
            self.accepted.remove(&hold);
        }
    }
}
