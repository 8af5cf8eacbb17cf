use std::collections::{BTreeMap, BTreeSet};

use super::draft::Draft;
use super::index::Unvested;
use super::{Answer, Decided, Forfeited, Ledger, LedgerError};
use crate::ledger::economy;
use crate::ledger::{Account, Kind, Purpose, Transfer, TransferId};
use crate::protocol::{
    Amount, Digest, Layer, Outcome, PublicKey, Round, RunId, Signed, TaskId, Time, Verdict, limits, wire,
};

/// Work that a verdict makes due.
struct Work {
    task: TaskId,
    /// Who did it: a worker, or a verifier that did it again.
    worker: PublicKey,
    tokens: u64,
    verdict: Digest,
}

impl Ledger {
    /// What paying a round comes to: what it came to the first time, if it was paid before.
    pub(super) fn decide_round(
        &self,
        at: Time,
        run: RunId,
        round: Round,
        verdicts: &[Signed],
    ) -> Result<Decided, LedgerError> {
        let digest = Digest::in_domain("hydra round verdicts v1", &wire::encode(&verdicts));
        if let Some(paid) = self.index.rounds.get(&(run, round)) {
            if paid.verdicts != digest {
                return Err(LedgerError::RoundDiffers { run, round });
            }
            let (pays, head) = (paid.pays.clone(), paid.head);
            return Ok(self.unchanged(Answer::RoundPaid { run, round, pays, head }));
        }
        let work = self.accepted(verdicts)?;
        let emission = self.config.economy.emission(round, self.book.emitted());
        let tokens: Vec<u64> = work.iter().map(|work| work.tokens).collect();
        let shares = economy::split(emission, &tokens);
        let pays: Vec<(&Work, Amount)> = work.iter().zip(shares).filter(|(_, share)| !share.is_zero()).collect();
        let mut draft = Draft::new(self, at);
        for (&(work, amount), index) in pays.iter().zip(0..) {
            draft.push(Transfer {
                id: TransferId::pay(run, round, index),
                kind: Kind::Pending { expires: None },
                debit: Account::Emission,
                credit: Account::Wallet(work.worker),
                amount,
                purpose: Purpose::Pay { run, round, task: work.task, verdict: work.verdict, verdicts: digest },
            });
        }
        let what: Vec<_> = pays.iter().map(|(work, amount)| (work.worker, work.task, *amount)).collect();
        if draft.is_empty() {
            // Else what is asked again later could find that there is something to emit after all.
            let purpose = Purpose::NothingDue { run, round, verdicts: digest };
            let (id, amount) = (TransferId::pay(run, round, 0), Amount::ZERO);
            let (debit, credit) = (Account::Emission, Account::Treasury);
            draft.push(Transfer { id, kind: Kind::Single, debit, credit, amount, purpose });
        }
        self.vest(&mut draft, &what);
        Ok(draft.decide(|_, head| Answer::RoundPaid { run, round, pays: what, head })?)
    }

    /// Lets vest what these rewards make old enough: what has enough rewards of later rounds after it. Those of its own
    /// round do not count, or whoever hands in many false results at a time would have its pay before anybody can look.
    fn vest(&self, draft: &mut Draft, pays: &[(PublicKey, TaskId, Amount)]) {
        let mut rewards: BTreeMap<PublicKey, usize> = BTreeMap::new();
        for (worker, ..) in pays {
            *rewards.entry(*worker).or_default() += 1;
        }
        let keep = self.config.economy.config().vesting_rewards as usize;
        for (worker, new) in rewards {
            let old = self.index.workers.get(&worker).map(|worker| worker.unvested.iter().copied().collect::<Vec<_>>());
            let old = old.unwrap_or_default();
            let mut later = old.len() + new;
            for same_round in old.chunk_by(|one, next| one.round == next.round) {
                later -= same_round.len();
                if later < keep {
                    break;
                }
                // What does not fit into the chain vests with the next reward.
                let room = limits::CHAIN_TRANSFERS_MAX.saturating_sub(draft.len());
                for &Unvested { pending, amount, .. } in same_round.iter().take(room) {
                    let kind = Kind::Post { pending };
                    draft.add(kind, Account::Emission, Account::Wallet(worker), amount, Purpose::Vest);
                }
            }
        }
    }

    /// The work that `verdicts` make due, in their order. What was found false since earns nothing; a replay earns whoever
    /// did it as much as the task earned, whatever came of it.
    fn accepted(&self, verdicts: &[Signed]) -> Result<Vec<Work>, LedgerError> {
        let mut accepted = Vec::new();
        let mut due = BTreeSet::new();
        for (index, signed) in verdicts.iter().enumerate() {
            let (signer, verdict) = signed.open::<Verdict>().map_err(|error| LedgerError::Verdict { index, error })?;
            if !self.config.verifiers.contains(&signer) {
                return Err(LedgerError::VerifierUnknown { index, signer });
            }
            let task = verdict.task;
            let (worker, tokens, again) = match verdict.outcome {
                Outcome::Accepted { layer: Layer::Replay, .. } | Outcome::Rejected { layer: Layer::Replay, .. } => {
                    let payee = verdict.by.unwrap_or(signer);
                    (payee, verdict.work, Some(payee))
                }
                Outcome::Accepted { tokens, .. } => (verdict.worker, tokens, None),
                Outcome::Rejected { .. } => continue,
            };
            if !due.insert((task, again)) {
                return Err(LedgerError::TaskTwice { task });
            }
            if let Some(&(run, round)) = self.index.work.get(&(task, worker)) {
                return Err(LedgerError::WorkPaid { task, worker, run, round });
            }
            if again.is_some() || !self.index.findings.contains_key(&verdict.finding()) {
                accepted.push(Work { task, worker, tokens, verdict: Digest::of(&wire::encode(signed)) });
            }
        }
        Ok(accepted)
    }

    /// What a finding comes to: what it came to the first time, if it is known.
    pub(super) fn decide_forfeit(&self, at: Time, signed: &Signed) -> Result<Decided, LedgerError> {
        let (signer, verdict) = signed.open::<Verdict>().map_err(|error| LedgerError::Verdict { index: 0, error })?;
        if !self.config.verifiers.contains(&signer) {
            return Err(LedgerError::VerifierUnknown { index: 0, signer });
        }
        if !matches!(verdict.outcome, Outcome::Rejected { layer: Layer::Replay, .. }) {
            return Err(LedgerError::NoFinding);
        }
        let finding = verdict.finding();
        if let Some(forfeited) = self.index.findings.get(&finding) {
            return Ok(self.unchanged(Answer::Forfeited(*forfeited)));
        }
        let worker = verdict.worker;
        let (wallet, stake) = (Account::Wallet(worker), Account::Stake(worker));
        let mut draft = Draft::new(self, at);
        let mut unvested = Amount::ZERO;
        if let Some(worker) = self.index.workers.get(&worker) {
            for &Unvested { pending, amount, .. } in &worker.unvested {
                draft.add(Kind::Void { pending }, Account::Emission, wallet, amount, Purpose::Forfeit { finding });
                // Together less than the cap, which is an amount.
                unvested = unvested.checked_add(amount).unwrap_or(unvested);
            }
            for (&pending, &(amount, _)) in &worker.unstaking {
                draft.add(Kind::Void { pending }, stake, wallet, amount, Purpose::Forfeit { finding });
            }
        }
        let burned = Amount::try_from(self.book.balance(stake).0).unwrap_or(Amount::ZERO);
        let purpose = Purpose::Slash { verdict: Digest::of(&wire::encode(signed)), finding };
        draft.add(Kind::Single, stake, Account::Burn, burned, purpose);
        let places = draft.len() as u64 - 1;
        Ok(draft.decide(|first, _| {
            Answer::Forfeited(Forfeited { finding, worker, unvested, stake: burned, sequence: first + places })
        })?)
    }
}
