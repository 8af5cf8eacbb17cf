use serde::{Deserialize, Serialize};

use crate::ledger::{
    Account, BookError, CheckedOrder, Entry, OrderError, Posts, Purpose, StoreError, Totals, TransferId,
};
use crate::protocol::{Amount, Digest, EnvelopeError, PublicKey, Round, RunId, Signed, TaskId, Time};

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
    /// "A replay has shown that this work is false": whoever did it loses unvested pay and stake, once.
    Forfeit {
        /// The verdict, signed by a trusted verifier.
        verdict: Signed,
    },
    /// What the holder of a key wants.
    Order(CheckedOrder),
    /// "Keep so much of this wallet for a query." From those who serve queries, and who know whose key it is.
    Hold {
        /// The query's name, made by [`TransferId::request`].
        id: TransferId,
        /// Who pays.
        wallet: PublicKey,
        /// The most that it may cost.
        amount: Amount,
        /// When the hold ends, should nobody settle it.
        expires: Time,
    },
    /// "The query cost so much": that is shared out, the rest of the hold is given back.
    Settle {
        /// The query.
        query: TransferId,
        /// Who pays.
        wallet: PublicKey,
        /// What it cost; nothing gives back the whole hold.
        cost: Amount,
        /// Who trained the model that answered, and how much verified work it was. Where nobody did any, their part goes
        /// to the treasury.
        contributors: Vec<(PublicKey, u64)>,
    },
    /// "It is later now": whatever is due is done.
    Tick,
    /// "What are the sums?"
    Totals,
    /// "What does everybody have?"
    Accounts,
    /// "How does this key stand?"
    Wallet(PublicKey),
    /// "What is offered?"
    Offers {
        /// Offers with ids above this one.
        after: TransferId,
        /// No more than so many.
        most: usize,
    },
    /// "What is held?"
    Holds {
        /// Holds with ids above this one.
        after: TransferId,
        /// No more than so many.
        most: usize,
    },
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
        /// Who earned how much for which task; nobody who got nothing. It vests later.
        pays: Vec<(PublicKey, TaskId, Amount)>,
        /// The ledger hash after the last of these pays, or after the entry which says that there are none.
        head: Digest,
    },
    /// What false work has cost whoever did it. The same each time it is asked for.
    Forfeited(Forfeited),
    /// The order, hold or settlement is durable. The same each time it is asked for.
    Done {
        /// Its id.
        id: TransferId,
        /// The place of its first transfer in the journal.
        sequence: u64,
    },
    /// So many pending transfers came to their end.
    Ticked(usize),
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
    Accounts(Vec<(Account, Posts)>),
    /// How a key stands.
    Wallet(Standing),
    /// Open offers, in the order of their ids.
    Offers(Vec<(TransferId, Offer)>),
    /// Pending transfers that nothing has resolved, in order.
    Holds(Vec<TransferId>),
    /// No, and nothing has changed.
    Refused {
        /// The round that it was about, if any.
        round: Option<(RunId, Round)>,
        /// Why.
        error: LedgerError,
    },
}

/// What false work has cost whoever did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forfeited {
    /// The name of what was found: [`Verdict::finding`](crate::protocol::Verdict::finding).
    pub finding: Digest,
    /// Who.
    pub worker: PublicKey,
    /// Unvested pay that is not theirs any more.
    pub unvested: Amount,
    /// Stake that was burned.
    pub stake: Amount,
    /// The place of the burning in the journal.
    pub sequence: u64,
}

/// How a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Its wallet.
    pub wallet: Posts,
    /// Its stake.
    pub stake: Posts,
    /// Rewards that have not vested.
    pub unvested: u32,
    /// Rewards since its work was last found false: what the audit rate goes by.
    pub clean: u32,
}

/// An open offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Whose tokens.
    pub maker: PublicKey,
    /// How many.
    pub amount: Amount,
    /// Who may accept; anybody, if `None`.
    pub taker: Option<PublicKey>,
    /// The digest of what the two agree on.
    pub terms: Digest,
    /// When the tokens go back.
    pub expires: Time,
    /// Who has accepted it, and the transfer that holds the tokens for them.
    pub accepted: Option<(PublicKey, TransferId)>,
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
    /// Only a replay shows that work is false beyond doubt.
    #[error("the verdict is no rejection by replay, so nothing is forfeited")]
    NoFinding,
    /// More wallets than one query is shared among.
    #[error(
        "{contributors} wallets are to share in one query, the limit is {}",
        crate::protocol::limits::CONTRIBUTORS_MAX
    )]
    Contributors {
        /// How many.
        contributors: usize,
    },
    /// The order or the hold.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The transfers are not allowed.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The transfers cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LedgerError {
    /// A word for programs. The list is in the book's chapter on the economy.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Verdict { .. } => "verdict_invalid",
            Self::VerifierUnknown { .. } => "verifier_unknown",
            Self::TaskTwice { .. } => "task_twice",
            Self::WorkPaid { .. } => "work_paid",
            Self::RoundDiffers { .. } => "round_differs",
            Self::NoFinding => "no_finding",
            Self::Contributors { .. } => "too_many_contributors",
            Self::Order(error) => error.code(),
            Self::Book(error) => error.code(),
            Self::Store(_) => "store_failed",
        }
    }
}

impl Request {
    /// The round that it is about, if any.
    #[must_use]
    pub fn round(&self) -> Option<(RunId, Round)> {
        match self {
            Self::PayRound { run, round, .. } => Some((*run, *round)),
            _ => None,
        }
    }

    /// Whether it can change nothing.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        matches!(self, Self::Totals | Self::Accounts | Self::Wallet(_) | Self::Offers { .. } | Self::Holds { .. })
    }
}

/// A transfer that pays for work.
pub(super) struct Pay {
    pub run: RunId,
    pub round: Round,
    pub verdicts: Digest,
    pub what: (PublicKey, TaskId, Amount),
}

impl Pay {
    pub fn of(entry: &Entry) -> Option<Self> {
        match (entry.transfer.purpose, entry.transfer.credit) {
            (Purpose::Pay { run, round, task, verdicts, .. }, Account::Wallet(worker)) => {
                Some(Self { run, round, verdicts, what: (worker, task, entry.transfer.amount) })
            }
            _ => None,
        }
    }
}
