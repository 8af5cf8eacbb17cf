use std::collections::{BTreeMap, BTreeSet};

use super::{
    Account, Book, BookError, Decision, Entry, Journal, JournalStore, Purpose, StoreError, Totals, Transfer,
    TransferId, economy,
};
use crate::protocol::{
    Amount, Balance, Digest, Emission, EnvelopeError, Outcome, PublicKey, Round, RunId, Signed, TaskId, Verdict, wire,
};

/// The ledger: what it is asked for, in transfers.
///
/// [`Ledger::decide`] changes nothing; what it decides is first appended to the [`JournalStore`], then given to
/// [`Ledger::apply`].
#[derive(Debug)]
pub struct Ledger {
    config: LedgerConfig,
    book: Book,
    journal: Journal,
    rounds: BTreeMap<(RunId, Round), PaidRound>,
    /// The round in which each worker was paid for each task.
    work: BTreeMap<(TaskId, PublicKey), (RunId, Round)>,
}

/// What a ledger is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerConfig {
    /// What rounds emit.
    pub emission: Emission,
    /// Whose verdicts count.
    pub verifiers: BTreeSet<PublicKey>,
}

/// What a ledger is asked. Every request may be made again, and then has no second effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// "Pay the accepted work of a round." The pays are in the order of the verdicts.
    PayRound {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
        /// Verdicts on the round's submissions, signed by trusted verifiers; the rejecting ones pay nothing.
        verdicts: Vec<Signed>,
    },
    /// "What are the sums?"
    Totals,
    /// "What does everybody have?"
    Balances,
}

/// What a ledger answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The round's pay is durable. The same each time it is asked for.
    RoundPaid {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
        /// Who got how much for which task; nobody who got nothing.
        pays: Vec<(PublicKey, TaskId, Amount)>,
        /// The ledger hash after the last of these pays; the present one when there are none.
        head: Digest,
    },
    /// The sums.
    Totals {
        /// Over all accounts.
        totals: Totals,
        /// Transfers in the journal.
        transfers: u64,
        /// The ledger hash.
        head: Digest,
    },
    /// Every account that was ever used, in order.
    Balances(Vec<(Account, Balance)>),
    /// No, and nothing has changed.
    Refused {
        /// The round that it was about, if any.
        round: Option<(RunId, Round)>,
        /// Why.
        error: LedgerError,
    },
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Not a signed verdict.
    #[error("verdict {index} of the round cannot be believed: {error}")]
    Verdict {
        /// Its place in the request, from 0.
        index: usize,
        /// What is wrong with it.
        error: EnvelopeError,
    },
    /// A verdict of somebody who is no verifier here.
    #[error("verdict {index} of the round is signed by {signer}, which is not the key of a trusted verifier")]
    VerifierUnknown {
        /// Its place in the request, from 0.
        index: usize,
        /// Who signed it.
        signer: PublicKey,
    },
    /// Two accepting verdicts on one task.
    #[error("task {task} has two accepting verdicts in one round")]
    TaskTwice {
        /// The task.
        task: TaskId,
    },
    /// The work was paid in another round.
    #[error("worker {worker} was paid for task {task} in round {round} of run {run}")]
    WorkPaid {
        /// The task.
        task: TaskId,
        /// Who did it.
        worker: PublicKey,
        /// The run it was paid in.
        run: RunId,
        /// The round it was paid in.
        round: Round,
    },
    /// The round was paid for other verdicts.
    #[error("round {round} of run {run} was paid before, for other verdicts")]
    RoundDiffers {
        /// The run.
        run: RunId,
        /// The round.
        round: Round,
    },
    /// The transfers are not allowed.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The transfers cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a request comes to: an answer, and what must be durable before the answer is true.
#[derive(Debug)]
#[must_use = "nothing is done until it is stored and applied"]
pub struct Decided {
    answer: Answer,
    entries: Vec<Entry>,
    effect: Option<Decision>,
}

/// A round that was paid.
#[derive(Debug)]
struct PaidRound {
    verdicts: Digest,
    pays: Vec<(PublicKey, TaskId, Amount)>,
    head: Digest,
}

/// Work that an accepting verdict makes due.
struct Work {
    task: TaskId,
    worker: PublicKey,
    tokens: u64,
    verdict: Digest,
}

impl Request {
    /// The round that it is about, if any.
    #[must_use]
    pub fn round(&self) -> Option<(RunId, Round)> {
        match self {
            Self::PayRound { run, round, .. } => Some((*run, *round)),
            Self::Totals | Self::Balances => None,
        }
    }
}

impl Decided {
    /// What to append to the journal's store; none when nothing is to change.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn unchanged(answer: Answer) -> Self {
        Self { answer, entries: Vec::new(), effect: None }
    }
}

impl Ledger {
    /// The ledger that the journal in `store` tells of. Every entry is checked: its place, its digest, and that the
    /// book allows it.
    pub fn open(config: LedgerConfig, store: &mut dyn JournalStore) -> Result<Self, StoreError> {
        let mut ledger = Self {
            book: Book::new(config.emission.cap),
            config,
            journal: Journal::default(),
            rounds: BTreeMap::new(),
            work: BTreeMap::new(),
        };
        store.load(&mut |entry| {
            ledger.journal.replay(&entry)?;
            match ledger.book.decide(&[entry.transfer]) {
                Ok(decision) if decision.is_new() => ledger.book.apply(decision),
                Ok(_) => return Err(StoreError::damaged(entry.sequence, "its transfer was posted before")),
                Err(refusal) => return Err(StoreError::damaged(entry.sequence, refusal.to_string())),
            };
            ledger.index(&entry);
            Ok(())
        })?;
        ledger.book.assert_invariants();
        Ok(ledger)
    }

    /// What `request` comes to. Changes nothing.
    pub fn decide(&self, request: &Request) -> Result<Decided, LedgerError> {
        match request {
            Request::PayRound { run, round, verdicts } => self.decide_round(*run, *round, verdicts),
            Request::Totals => Ok(Decided::unchanged(Answer::Totals {
                totals: self.book.totals(),
                transfers: self.journal.length(),
                head: self.journal.head(),
            })),
            Request::Balances => Ok(Decided::unchanged(Answer::Balances(self.book.balances().collect()))),
        }
    }

    /// Does what was decided, once its entries are durable, and gives the answer.
    ///
    /// # Panics
    /// When something else was applied since the decision: see [`Book::apply`].
    pub fn apply(&mut self, decided: Decided) -> Answer {
        if let Some(decision) = decided.effect {
            self.book.apply(decision);
        }
        for entry in &decided.entries {
            let written = self.journal.append(entry.transfer);
            assert_eq!(written, *entry, "what is applied is what was made durable");
            self.index(entry);
        }
        if cfg!(debug_assertions) {
            self.book.assert_invariants();
        }
        decided.answer
    }

    /// The balances.
    #[must_use]
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Where the journal ends.
    #[must_use]
    pub fn journal(&self) -> Journal {
        self.journal
    }

    /// What paying a round comes to: what it came to the first time, if it was paid before.
    fn decide_round(&self, run: RunId, round: Round, verdicts: &[Signed]) -> Result<Decided, LedgerError> {
        let digest = Digest::in_domain("hydra round verdicts v1", &wire::encode(&verdicts));
        if let Some(paid) = self.rounds.get(&(run, round)) {
            if paid.verdicts != digest {
                return Err(LedgerError::RoundDiffers { run, round });
            }
            let (pays, head) = (paid.pays.clone(), paid.head);
            return Ok(Decided::unchanged(Answer::RoundPaid { run, round, pays, head }));
        }
        let work = self.accepted(verdicts)?;
        let chain = self.pay(run, round, digest, &work);
        if chain.is_empty() {
            let (pays, head) = (Vec::new(), self.journal.head());
            return Ok(Decided::unchanged(Answer::RoundPaid { run, round, pays, head }));
        }
        let decision = self.book.decide(&chain)?;
        assert!(decision.is_new(), "a pay that was posted is indexed, so its round is known");
        let mut journal = self.journal;
        let entries: Vec<Entry> = chain.into_iter().map(|transfer| journal.append(transfer)).collect();
        let pays = entries.iter().filter_map(|entry| pay_of(&entry.transfer)).map(|pay| pay.what).collect();
        let answer = Answer::RoundPaid { run, round, pays, head: journal.head() };
        Ok(Decided { answer, entries, effect: Some(decision) })
    }

    /// The work that `verdicts` accept, in their order.
    fn accepted(&self, verdicts: &[Signed]) -> Result<Vec<Work>, LedgerError> {
        let mut accepted = Vec::new();
        let mut tasks = BTreeSet::new();
        for (index, signed) in verdicts.iter().enumerate() {
            let (signer, verdict) = signed.open::<Verdict>().map_err(|error| LedgerError::Verdict { index, error })?;
            if !self.config.verifiers.contains(&signer) {
                return Err(LedgerError::VerifierUnknown { index, signer });
            }
            let Verdict { task, worker, outcome: Outcome::Accepted { tokens, .. }, .. } = verdict else { continue };
            if !tasks.insert(task) {
                return Err(LedgerError::TaskTwice { task });
            }
            if let Some(&(run, round)) = self.work.get(&(task, worker)) {
                return Err(LedgerError::WorkPaid { task, worker, run, round });
            }
            accepted.push(Work { task, worker, tokens, verdict: Digest::of(&wire::encode(signed)) });
        }
        Ok(accepted)
    }

    /// The round's emission, shared over `work` by verified tokens.
    fn pay(&self, run: RunId, round: Round, verdicts: Digest, work: &[Work]) -> Vec<Transfer> {
        let emission = economy::emission(&self.config.emission, round, self.book.emitted());
        let tokens: Vec<u64> = work.iter().map(|work| work.tokens).collect();
        let shares = economy::split(emission, &tokens);
        let pays = work.iter().zip(shares).filter(|(_, share)| !share.is_zero());
        pays.zip(0..)
            .map(|((work, amount), index)| Transfer {
                id: TransferId::pay(run, round, index),
                debit: Account::Emission,
                credit: Account::Wallet(work.worker),
                amount,
                purpose: Purpose::Pay { run, round, task: work.task, verdict: work.verdict, verdicts },
            })
            .collect()
    }

    /// Remembers what an entry of the journal means for requests to come.
    fn index(&mut self, entry: &Entry) {
        let Some(Pay { run, round, verdicts, what: (worker, task, amount) }) = pay_of(&entry.transfer) else { return };
        let new = || PaidRound { verdicts, pays: Vec::new(), head: entry.chain };
        let paid = self.rounds.entry((run, round)).or_insert_with(new);
        paid.pays.push((worker, task, amount));
        paid.head = entry.chain;
        self.work.insert((task, worker), (run, round));
    }
}

/// A transfer that pays for work.
struct Pay {
    run: RunId,
    round: Round,
    verdicts: Digest,
    what: (PublicKey, TaskId, Amount),
}

fn pay_of(transfer: &Transfer) -> Option<Pay> {
    match (transfer.purpose, transfer.credit) {
        (Purpose::Pay { run, round, task, verdicts, .. }, Account::Wallet(worker)) => {
            Some(Pay { run, round, verdicts, what: (worker, task, transfer.amount) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MemoryJournal;
    use super::super::testing::{
        accepted, ask, config, expected_balances, key, pay_round, pays, rejected, request_for, rounds, run, task,
        transfer, verifier, wallet,
    };
    use super::*;
    use crate::protocol::{Keypair, Layer, WorkerRequest};

    fn fresh() -> (Ledger, MemoryJournal) {
        let mut store = MemoryJournal::default();
        (Ledger::open(config(), &mut store).unwrap(), store)
    }

    /// That `ledger` refuses `request` for this reason and is left as it was.
    #[track_caller]
    fn refused(ledger: &mut Ledger, store: &mut MemoryJournal, request: &Request, error: LedgerError) {
        let before = (format!("{ledger:?}"), store.entries());
        assert_eq!(ask(ledger, store, request), Err(error));
        assert_eq!((format!("{ledger:?}"), store.entries()), before);
    }

    #[test]
    fn a_round_pays_accepted_work_by_verified_tokens_in_the_order_of_the_verdicts() {
        let (mut ledger, mut store) = fresh();
        let verdicts =
            vec![accepted(5, 1, 100), rejected(2, 3), accepted(1, 2, 200), accepted(9, 1, 0), accepted(3, 0, 400)];
        let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts.clone())).unwrap();
        let public = |n| key(n).public();
        // 1 000 over 100 : 200 : 400 is 142.9, 285.7, 571.4: the two largest remainders are rounded up.
        assert_eq!(pays(&answer), [(public(1), task(5), 143), (public(2), task(1), 286), (public(0), task(3), 571)]);
        let entries = store.entries();
        assert!(matches!(answer, Answer::RoundPaid { head, .. } if head == entries[2].chain));
        assert_eq!(ledger.journal().head(), entries[2].chain);
        let ids: Vec<TransferId> = entries.iter().map(|entry| entry.transfer.id).collect();
        assert_eq!(ids, [0, 1, 2].map(|index| TransferId::pay(run(), Round(0), index)));
        let Purpose::Pay { verdict, round, .. } = entries[1].transfer.purpose else { panic!() };
        assert_eq!((verdict, round), (Digest::of(&wire::encode(&verdicts[2])), Round(0)), "the pay names its verdict");
        assert_eq!(ledger.book().balance(wallet(1)), Balance(143));
        assert_eq!(ledger.book().balance(Account::Emission), Balance(-1_000));

        let totals = ask(&mut ledger, &mut store, &Request::Totals).unwrap();
        let expected = Totals {
            supply: Balance(1_000),
            emitted: Balance(1_000),
            burned: Balance(0),
            debits: Balance(1_000),
            credits: Balance(1_000),
        };
        assert_eq!(totals, Answer::Totals { totals: expected, transfers: 3, head: entries[2].chain });
        let Answer::Balances(balances) = ask(&mut ledger, &mut store, &Request::Balances).unwrap() else { panic!() };
        assert!(balances.is_sorted());
        let mut expected = vec![(Account::Emission, Balance(-1_000)), (wallet(0), Balance(571))];
        expected.extend([(wallet(1), Balance(143)), (wallet(2), Balance(286))]);
        expected.sort_unstable();
        assert_eq!(balances, expected);
    }

    #[test]
    fn a_round_without_accepted_work_emits_nothing() {
        let (mut ledger, mut store) = fresh();
        for verdicts in [vec![], vec![rejected(1, 1), rejected(2, 2)], vec![accepted(1, 1, 0)]] {
            let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts)).unwrap();
            assert_eq!(pays(&answer), []);
        }
        assert_eq!((ledger.book().emitted(), store.entries()), (Balance(0), vec![]));
    }

    #[test]
    fn a_round_is_not_paid_again_for_other_verdicts() {
        let (mut ledger, mut store) = fresh();
        let verdicts = vec![accepted(1, 1, 100), accepted(2, 2, 100), rejected(3, 3)];
        let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts.clone())).unwrap();
        let [one, two, three] = [0, 1, 2].map(|n| verdicts[n].clone());
        let others = [
            vec![],
            vec![one.clone()],
            vec![one.clone(), two.clone()],
            vec![two.clone(), one.clone(), three.clone()],
            vec![one.clone(), accepted(2, 2, 101), three.clone()],
            vec![one.clone(), two.clone(), three.clone(), accepted(4, 0, 100)],
            vec![accepted(5, 0, 1)],
        ];
        for other in others {
            let error = LedgerError::RoundDiffers { run: run(), round: Round(0) };
            refused(&mut ledger, &mut store, &pay_round(0, other), error);
        }
        assert_eq!(ask(&mut ledger, &mut store, &pay_round(0, verdicts)), Ok(answer));
    }

    #[test]
    fn only_verdicts_signed_by_a_trusted_verifier_count() {
        let (mut ledger, mut store) = fresh();
        let outcome = Outcome::Accepted { layer: Layer::Replay, tokens: 5, norm: 1.0 };
        let verdict = Verdict { task: task(1), worker: key(1).public(), payload: Digest::of(b""), outcome };
        let by = |keypair: &Keypair| Signed::seal(keypair, &verdict);
        let good = accepted(2, 2, 5);
        let unknown = LedgerError::VerifierUnknown { index: 1, signer: key(1).public() };
        refused(&mut ledger, &mut store, &pay_round(0, vec![good.clone(), by(&key(1))]), unknown);
        let other_kind = Signed::seal(&verifier(), &WorkerRequest::GiveBack(task(1)));
        let mut altered = serde_json::to_value(by(&verifier())).unwrap();
        altered["signer"] = serde_json::to_value(key(1).public()).unwrap();
        let stolen: Signed = serde_json::from_value(altered).unwrap();
        for bad in [other_kind, stolen] {
            let error = LedgerError::Verdict { index: 1, error: EnvelopeError::Signature };
            refused(&mut ledger, &mut store, &pay_round(0, vec![good.clone(), bad]), error);
        }
        assert_eq!(pays(&ask(&mut ledger, &mut store, &pay_round(0, vec![good, by(&verifier())])).unwrap()).len(), 2);
    }

    #[test]
    fn work_is_paid_once() {
        let (mut ledger, mut store) = fresh();
        for twice in [accepted(1, 2, 10), accepted(1, 1, 10), accepted(1, 1, 20)] {
            let error = LedgerError::TaskTwice { task: task(1) };
            refused(&mut ledger, &mut store, &pay_round(0, vec![accepted(1, 1, 10), twice]), error);
        }
        // A worker failed, another did it.
        let request = pay_round(0, vec![rejected(1, 2), accepted(1, 1, 10)]);
        assert_eq!(pays(&ask(&mut ledger, &mut store, &request).unwrap()), [(key(1).public(), task(1), 1_000)]);
        let paid = LedgerError::WorkPaid { task: task(1), worker: key(1).public(), run: run(), round: Round(0) };
        refused(&mut ledger, &mut store, &pay_round(1, vec![accepted(2, 1, 10), accepted(1, 1, 10)]), paid.clone());
        let mut reopened = Ledger::open(config(), &mut store).unwrap();
        refused(&mut reopened, &mut store, &pay_round(1, vec![accepted(1, 1, 10)]), paid);
        // Somebody else's late result for the same task is other work.
        let late = pay_round(1, vec![accepted(1, 3, 10)]);
        assert_eq!(pays(&ask(&mut ledger, &mut store, &late).unwrap()), [(key(3).public(), task(1), 1_000)]);
    }

    #[test]
    fn a_largest_round_is_one_chain_and_a_larger_one_is_refused() {
        let most = crate::protocol::limits::CHAIN_TRANSFERS_MAX;
        let mut config = config();
        config.emission.initial = Amount::from_hyd(1);
        config.emission.cap = Amount::from_hyd(1);
        let mut store = MemoryJournal::default();
        let mut ledger = Ledger::open(config, &mut store).unwrap();
        let verdicts: Vec<Signed> = (0..).take(most + 1).map(|n| accepted(n, 1, 7)).collect();
        let error = LedgerError::Book(BookError::ChainTooLong { transfers: most + 1 });
        refused(&mut ledger, &mut store, &pay_round(0, verdicts.clone()), error);
        let answer = ask(&mut ledger, &mut store, &pay_round(0, verdicts[..most].to_vec())).unwrap();
        assert_eq!(pays(&answer).len(), most);
        assert_eq!(ledger.book().balance(wallet(1)), Balance(1_000_000));
    }

    #[test]
    fn a_journal_that_the_book_does_not_allow_is_refused_with_the_number() {
        let good = transfer(1, Account::Emission, wallet(0), 100);
        let bad = [
            (transfer(2, wallet(0), wallet(1), 101), "takes 0.000101 HYD"),
            (transfer(2, Account::Emission, wallet(1), 2_401), "the cap is"),
            (transfer(1, Account::Emission, wallet(1), 1), "another content"),
            (good, "posted before"),
        ];
        for (bad, says) in bad {
            let mut journal = Journal::default();
            let entries = vec![journal.append(good), journal.append(bad)];
            match Ledger::open(config(), &mut MemoryJournal::from(entries)) {
                Err(StoreError::Damaged { sequence: 2, problem }) => assert!(problem.contains(says), "{problem}"),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn paying_rounds_any_number_of_times_with_restarts_in_between_has_one_effect(
            rounds in rounds(), again in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 12),
        ) {
            let (mut ledger, mut store) = fresh();
            let mut answers = Vec::new();
            for (n, round) in rounds.iter().enumerate() {
                let answer = ask(&mut ledger, &mut store, &request_for(round)).unwrap();
                prop_assert_eq!(pays(&answer).iter().any(|(_, _, amount)| *amount == 0), false);
                answers.push(answer);
                let (index, restart) = &again[n];
                if *restart {
                    let reopened = Ledger::open(config(), &mut store).unwrap();
                    prop_assert_eq!(format!("{reopened:?}"), format!("{ledger:?}"));
                    ledger = reopened;
                }
                let earlier = index.index(answers.len());
                let before = format!("{ledger:?}");
                let repeated = ask(&mut ledger, &mut store, &request_for(&rounds[earlier])).unwrap();
                prop_assert_eq!(format!("{ledger:?}"), before);
                if !pays(&answers[earlier]).is_empty() {
                    prop_assert_eq!(&repeated, &answers[earlier]);
                }
            }
            let (wallets, emitted) = expected_balances(&rounds);
            for (n, expected) in (0..).zip(wallets) {
                prop_assert_eq!(ledger.book().balance(wallet(n)), Balance(expected.into()));
            }
            prop_assert_eq!(ledger.book().emitted(), Balance(emitted.into()));
            prop_assert!(emitted <= 2_500);
            let paid: i64 = answers.iter().flat_map(pays).map(|(_, _, amount)| amount).sum();
            prop_assert_eq!(paid, emitted);
        }
    }
}
