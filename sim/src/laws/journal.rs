use std::collections::{BTreeMap, BTreeSet};

use hydra::ledger::{Account, Economy, Entry, Kind, Purpose, TransferId};
use hydra::protocol::{Amount, Balance, Digest, PublicKey, Round, TaskId};

/// What a ledger's journal must say.
pub(super) struct JournalLaws {
    economy: Economy,
    /// Work that was paid.
    paid: BTreeSet<(PublicKey, TaskId)>,
    /// Pays that are neither vested nor forfeited, and whose they are, with the rounds that they were paid with.
    pays: BTreeMap<TransferId, (PublicKey, Round)>,
    /// How many of them each has of each round.
    unvested: BTreeMap<PublicKey, BTreeMap<Round, u32>>,
    emitted: i128,
    /// What queries hold, and of whom.
    holds: BTreeMap<TransferId, (Account, Amount)>,
    settled: i128,
    /// What each has spent on queries, less what others' queries have brought.
    spent: BTreeMap<PublicKey, i128>,
}

/// What one batch comes to.
#[derive(Default)]
struct Sums {
    /// What was emitted before, and for this round.
    round: Option<(Round, i128, i128)>,
    /// Whose pay vested, of which round.
    vested: BTreeSet<(PublicKey, Round)>,
    /// What queries did cost, and what was shared out of that.
    queries: BTreeMap<TransferId, (i128, i128)>,
}

impl JournalLaws {
    pub fn new(economy: Economy) -> Self {
        Self {
            economy,
            paid: BTreeSet::new(),
            pays: BTreeMap::new(),
            unvested: BTreeMap::new(),
            emitted: 0,
            holds: BTreeMap::new(),
            settled: 0,
            spent: BTreeMap::new(),
        }
    }

    /// What each has spent on queries, less what others' queries have brought, µHYD.
    pub fn spent(&self) -> &BTreeMap<PublicKey, i128> {
        &self.spent
    }

    /// Queries that hold something.
    pub fn held(&self) -> usize {
        self.holds.len()
    }

    /// What was paid for queries, µHYD.
    pub fn settled(&self) -> i128 {
        self.settled
    }

    /// Takes in what was written together; says what is wrong with it.
    pub fn read(&mut self, entries: &[Entry], verdicts: &BTreeSet<Digest>) -> Vec<String> {
        let (mut broken, mut sums) = (Vec::new(), Sums::default());
        for Entry { transfer, .. } in entries {
            let amount = i128::from(transfer.amount.micro());
            match (transfer.kind, transfer.purpose) {
                (Kind::Pending { .. }, Purpose::Pay { round, task, verdict, .. }) => {
                    let (_, _, sum) = sums.round.get_or_insert((round, self.emitted, 0));
                    *sum += amount;
                    self.emitted += amount;
                    let Account::Wallet(worker) = transfer.credit else { continue };
                    if !self.paid.insert((worker, task)) {
                        broken.push(format!("worker {} was paid twice for task {task}", worker.short()));
                    }
                    if !verdicts.contains(&verdict) {
                        broken.push(format!("worker {} was paid for a verdict that is not on record", worker.short()));
                    }
                    self.pays.insert(transfer.id, (worker, round));
                    *self.unvested.entry(worker).or_default().entry(round).or_default() += 1;
                }
                (Kind::Post { pending }, Purpose::Vest) => sums.vested.extend(self.resolve(pending)),
                // A stake on its way out is taken back like that too, and was not emitted.
                (Kind::Void { pending }, Purpose::Forfeit { .. }) => {
                    self.emitted -= self.resolve(pending).map_or(0, |_| amount);
                }
                (Kind::Pending { .. }, Purpose::Query) => {
                    self.holds.insert(transfer.id, (transfer.debit, transfer.amount));
                }
                (Kind::Post { pending }, Purpose::Settled { .. }) => {
                    if self
                        .holds
                        .remove(&pending)
                        .is_none_or(|hold| hold.0 != transfer.debit || hold.1 < transfer.amount)
                    {
                        broken.push(format!("a query took {} that it did not hold", transfer.amount));
                    }
                    self.settled += amount;
                    if let Account::Wallet(customer) = transfer.debit {
                        *self.spent.entry(customer).or_default() += amount;
                    }
                    sums.queries.entry(pending).or_default().0 += amount;
                }
                (Kind::Single, Purpose::Share { of }) => {
                    sums.queries.entry(of).or_default().1 += amount;
                    if let Account::Wallet(contributor) = transfer.credit {
                        *self.spent.entry(contributor).or_default() -= amount;
                    }
                }
                (Kind::Void { pending } | Kind::Expire { pending }, Purpose::Released { .. } | Purpose::Expired) => {
                    self.holds.remove(&pending);
                }
                _ => {}
            }
        }
        self.check(&sums, &mut broken);
        broken
    }

    fn resolve(&mut self, pending: TransferId) -> Option<(PublicKey, Round)> {
        let (worker, round) = self.pays.remove(&pending)?;
        if let Some(unvested) = self.unvested.get_mut(&worker).and_then(|rounds| rounds.get_mut(&round)) {
            *unvested = unvested.saturating_sub(1);
        }
        Some((worker, round))
    }

    fn check(&self, sums: &Sums, broken: &mut Vec<String>) {
        if let Some((round, before, paid)) = sums.round {
            let due = self.economy.emission(round, Balance(before)).micro();
            if paid != i128::from(due) {
                broken.push(format!("round {} paid {paid} µHYD of {due}", round.0));
            }
        }
        let least = self.economy.config().vesting_rewards;
        for (worker, round) in &sums.vested {
            // What was paid with it does not count: it may be false like it, and nobody has looked yet.
            let others = self.unvested.get(worker).into_iter().flatten().filter(|(other, _)| *other != round);
            let left = others.map(|(_, left)| left).sum::<u32>();
            if left < least {
                broken.push(format!(
                    "pay of worker {} vested when it had {left} rewards of other rounds after it, not {least}",
                    worker.short()
                ));
            }
        }
        for (cost, shared) in sums.queries.values().filter(|(cost, shared)| cost != shared) {
            broken.push(format!("of the {cost} µHYD that a query cost, {shared} were shared out"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydra::ledger::{EconomyConfig, Transfer};
    use hydra::protocol::{Keypair, RunId, Time};

    fn entry(id: u128, kind: Kind, debit: Account, credit: Account, micro: i64, purpose: Purpose) -> Entry {
        let amount = Amount::from_micro(micro).unwrap();
        let transfer = Transfer { id: TransferId::new(id), kind, debit, credit, amount, purpose };
        Entry { sequence: 1, at: Time(0), transfer, chain: Digest::of(&[]) }
    }

    #[test]
    fn every_law_of_the_journal_can_be_broken() {
        let laws = || JournalLaws::new(EconomyConfig::default().check().unwrap());
        let digest = Digest::of(b"a verdict");
        let (worker, run) = (Account::Wallet(Keypair::from_secret(&[1; 32]).public()), RunId(digest));
        let due = laws().economy.emission(Round(0), Balance(0)).micro();
        let pay = |id, task: &[u8], micro| {
            let task = TaskId(Digest::of(task));
            let purpose = Purpose::Pay { run, round: Round(0), task, verdict: digest, verdicts: digest };
            entry(id, Kind::Pending { expires: None }, Account::Emission, worker, micro, purpose)
        };
        let said = BTreeSet::from([digest]);
        let read = |entries: &[Entry], said: &BTreeSet<Digest>| laws().read(entries, said).join("; ");
        assert_eq!(read(&[pay(1, b"a", due)], &said), "");
        assert!(read(&[pay(1, b"a", due - 1)], &said).contains("round 0 paid"));
        assert!(read(&[pay(1, b"a", 1), pay(2, b"a", due - 1)], &said).contains("paid twice"));
        assert!(read(&[pay(1, b"a", due)], &BTreeSet::new()).contains("not on record"));
        let vest = entry(3, Kind::Post { pending: TransferId::new(1) }, Account::Emission, worker, due, Purpose::Vest);
        assert!(read(&[pay(1, b"a", due), vest], &said).contains("vested when it had 0"));

        let query = TransferId::new(7);
        let hold = entry(7, Kind::Pending { expires: None }, worker, Account::Escrow, 10, Purpose::Query);
        let post = |micro| {
            let purpose = Purpose::Settled { request: digest };
            entry(8, Kind::Post { pending: query }, worker, Account::Escrow, micro, purpose)
        };
        let share =
            |micro| entry(9, Kind::Single, Account::Escrow, Account::Treasury, micro, Purpose::Share { of: query });
        assert_eq!(read(&[hold, post(10), share(10)], &said), "");
        assert!(read(&[hold, post(11), share(11)], &said).contains("did not hold"));
        assert!(read(&[hold, post(9), share(8)], &said).contains("8 were shared out"));
    }
}
