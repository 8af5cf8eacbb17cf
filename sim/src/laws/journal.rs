use std::collections::{BTreeMap, BTreeSet};

use hydra::coordinator::Record;
use hydra::ledger::{Account, Economy, Entry, Kind, Purpose, TransferId};
use hydra::protocol::{Amount, Digest, Emission, PublicKey, Round, TaskId};

/// What a ledger's journal must say.
pub(super) struct JournalLaws {
    economy: Economy,
    /// Work that was paid.
    paid: BTreeSet<(PublicKey, TaskId)>,
    /// Pays that are neither vested nor forfeited, and whose they are, with the rounds that they were paid with.
    pays: BTreeMap<TransferId, (PublicKey, Round)>,
    /// What each round was paid, in the order of the journal.
    rounds: BTreeMap<Round, Vec<(PublicKey, Amount)>>,
    /// False work that was paid for by whoever did it.
    findings: BTreeSet<Digest>,
    /// How many pays of each round each has that are neither vested nor forfeited.
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
            rounds: BTreeMap::new(),
            findings: BTreeSet::new(),
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

    /// What the coordinator says that the ledger has done, it has.
    pub fn confirm(&self, record: &Record) -> Result<(), String> {
        match record {
            Record::RoundPaid { round, pays } if self.rounds.get(round) != Some(pays) => {
                let (said, round) = (pays.len(), round.0);
                Err(format!("the coordinator believes in {said} pays for round {round}, which are not in the journal"))
            }
            Record::Forfeited { finding } if !self.findings.contains(finding) => Err(format!(
                "the coordinator believes that finding {finding} was paid for, which the journal does not say"
            )),
            _ => Ok(()),
        }
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
                    self.rounds.entry(round).or_default().push((worker, transfer.amount));
                    *self.unvested.entry(worker).or_default().entry(round).or_default() += 1;
                }
                (_, Purpose::NothingDue { round, .. }) => {
                    self.rounds.entry(round).or_default();
                }
                (_, Purpose::Slash { finding, .. }) => {
                    self.findings.insert(finding);
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
            let due = due(self.economy.config().emission, round, before);
            if paid != due {
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

/// What a round emits when so much was emitted before it, µHYD.
fn due(Emission { initial, halving_rounds, cap }: Emission, round: Round, before: i128) -> i128 {
    let scheduled = i128::from(initial.micro()) >> (round.0 / halving_rounds).min(127);
    scheduled.min(i128::from(cap.micro()) - before)
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
        let due = 100_000_000;
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

    #[test]
    fn emission_is_halved_and_ends_at_the_cap() {
        let hyd = |hyd| Amount::from_hyd(hyd);
        let emission = Emission { initial: hyd(100), halving_rounds: 10, cap: hyd(1550) };
        assert_eq!(
            [0, 9, 10, 25].map(|round| due(emission, Round(round), 0)),
            [100, 100, 50, 25].map(|n| n * 1_000_000)
        );
        assert_eq!(due(emission, Round(30), 1_545_000_000), 5_000_000);
        assert_eq!(due(emission, Round(5000), 0), 0);
    }

    #[test]
    fn what_the_coordinator_believes_was_paid_is_in_the_journal() {
        let mut laws = JournalLaws::new(EconomyConfig::default().check().unwrap());
        let (digest, finding) = (Digest::of(b"a verdict"), Digest::of(b"a finding"));
        let key = Keypair::from_secret(&[1; 32]).public();
        let (run, worker) = (RunId(digest), Account::Wallet(key));
        let paid = |round: u32, micro| Record::RoundPaid {
            round: Round(round),
            pays: vec![(key, Amount::from_micro(micro).unwrap())],
        };
        let (nothing, forfeited) = (Record::RoundPaid { round: Round(1), pays: vec![] }, Record::Forfeited { finding });
        for record in [paid(0, 100_000_000), nothing.clone(), forfeited.clone()] {
            assert!(laws.confirm(&record).unwrap_err().contains("believes"), "{record:?}");
        }
        let task = TaskId(Digest::of(b"a"));
        let purpose = Purpose::Pay { run, round: Round(0), task, verdict: digest, verdicts: digest };
        let slash = Purpose::Slash { verdict: digest, finding };
        let entries = [
            entry(1, Kind::Pending { expires: None }, Account::Emission, worker, 100_000_000, purpose),
            entry(2, Kind::Single, Account::Stake(key), Account::Burn, 0, slash),
        ];
        assert_eq!(laws.read(&entries, &BTreeSet::from([digest])), Vec::<String>::new());
        let none = Purpose::NothingDue { run, round: Round(1), verdicts: digest };
        laws.read(&[entry(3, Kind::Single, Account::Emission, Account::Treasury, 0, none)], &BTreeSet::new());
        for record in [paid(0, 100_000_000), nothing, forfeited] {
            assert_eq!(laws.confirm(&record), Ok(()));
        }
        assert!(laws.confirm(&paid(0, 99_999_999)).is_err() && laws.confirm(&paid(1, 1)).is_err());
    }
}
