//! What a coordinator tells whoever looks on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::owner::{self, WorkerStatus};
use crate::coordinator::RoundSummary;
use crate::http::api::ledger::{Books, path as ledger};
use crate::http::api::watch::{Rounds, WorkerRow, Workers, path as watch};
use crate::http::api::{Status, path};
use crate::http::{Client, ClientError};
use crate::protocol::{Balance, PublicKey, Round, RunId, limits};
use crate::runtime::Stopwatch;

/// Rounds that are shown: the newest.
pub const ROUNDS_MAX: u32 = 64;

/// Workers that are asked for: pages of a thousand.
pub const WORKERS_MAX: usize = 10_000;

/// How often the list of workers, which may be long, and the ledger's sums are asked for.
const SELDOM: Duration = Duration::from_secs(3);

/// How a run stands: the JSON object of `--once --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Who was asked.
    pub coordinator: String,
    pub status: Status,
    /// The newest, the open one last.
    pub rounds: Vec<RoundSummary>,
    /// Those with the most accepted tokens first.
    pub workers: Vec<WorkerRow>,
    /// Nothing where the ledger is elsewhere.
    pub ledger: Option<Sums>,
    /// The worker of this machine, if one runs.
    pub worker: Option<WorkerStatus>,
}

/// The ledger's sums.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sums {
    pub supply: Balance,
    pub unvested: Balance,
    pub burned: Balance,
    pub transfers: u64,
}

/// Asks, and remembers what does not change.
pub struct Look {
    client: Arc<Client>,
    /// The folder of this machine's worker.
    worker: PathBuf,
    rounds: Kept,
    workers: Vec<WorkerRow>,
    ledger: Option<Sums>,
    seldom: Option<Stopwatch>,
}

/// The newest rounds of one run.
#[derive(Default)]
struct Kept {
    run: Option<RunId>,
    rounds: BTreeMap<Round, RoundSummary>,
}

impl Kept {
    /// From which round on is to be asked, in a run that is at round `open`: those that were open or not measured when they
    /// were last asked for, and later ones. Of another run nothing is kept, nor of one that was begun anew.
    fn ask_from(&mut self, run: RunId, open: Round) -> Round {
        let oldest = Round(open.0.saturating_sub(ROUNDS_MAX - 1));
        let same = self.run.replace(run) == Some(run);
        self.rounds.retain(|round, _| same && (oldest..=open).contains(round));
        let unsettled = |round: &RoundSummary| round.closed.is_none() || round.loss.is_none();
        let from = self.rounds.values().find(|round| unsettled(round)).map(|round| round.round);
        from.or_else(|| self.rounds.keys().next_back().map(|last| last.next())).unwrap_or(oldest)
    }

    fn take(&mut self, rounds: Vec<RoundSummary>) {
        self.rounds.extend(rounds.into_iter().map(|round| (round.round, round)));
        while self.rounds.len() > ROUNDS_MAX as usize {
            self.rounds.pop_first();
        }
    }
}

impl Look {
    pub fn new(client: Arc<Client>, worker: PathBuf) -> Self {
        Self { client, worker, rounds: Kept::default(), workers: Vec::new(), ledger: None, seldom: None }
    }

    /// How the run stands now.
    pub async fn now(&mut self) -> Result<Snapshot, ClientError> {
        let status: Status = self.client.get(path::STATUS).await?;
        self.rounds(&status).await?;
        if self.seldom.as_ref().is_none_or(|watch| watch.elapsed() >= SELDOM) {
            self.workers = self.workers().await?;
            // Where there is none, there is one elsewhere.
            self.ledger = self.client.get::<Books>(ledger::LEDGER).await.ok().map(|books| {
                let Books { supply, unvested, burned, transfers, .. } = books;
                Sums { supply, unvested, burned, transfers }
            });
            self.seldom = Some(Stopwatch::start());
        }
        let folder = self.worker.clone();
        let worker = tokio::task::spawn_blocking(move || owner::ask(&folder, "status").ok()).await;
        Ok(Snapshot {
            coordinator: self.client.base().to_owned(),
            status,
            rounds: self.rounds.rounds.values().copied().collect(),
            workers: self.workers.clone(),
            ledger: self.ledger,
            worker: worker.unwrap_or_default(),
        })
    }

    /// Asks for the newest rounds that may be another than those that are kept.
    async fn rounds(&mut self, status: &Status) -> Result<(), ClientError> {
        let from = self.rounds.ask_from(status.run, status.round);
        let after = from.0.checked_sub(1).map_or_else(String::new, |after| format!("&after={after}"));
        let page: Rounds = self.client.get(&format!("{}?most={ROUNDS_MAX}{after}", watch::ROUNDS)).await?;
        self.rounds.take(page.rounds);
        Ok(())
    }

    async fn workers(&self) -> Result<Vec<WorkerRow>, ClientError> {
        let (mut all, mut after): (Vec<WorkerRow>, Option<PublicKey>) = (Vec::new(), None);
        while all.len() < WORKERS_MAX {
            let after_it = after.map_or_else(String::new, |after| format!("&after={after}"));
            let most = limits::WATCH_PAGE_MAX;
            let page: Workers = self.client.get(&format!("{}?most={most}{after_it}", watch::WORKERS)).await?;
            all.extend(page.workers);
            match page.next {
                // A list that does not go on has an end all the same.
                Some(next) if Some(next) > after => after = Some(next),
                _ => break,
            }
        }
        all.truncate(WORKERS_MAX);
        all.sort_by_key(|worker| (std::cmp::Reverse(worker.record.tokens), worker.key));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Amount, Digest, Time};

    fn round(number: u32, is_over: bool) -> RoundSummary {
        RoundSummary {
            round: Round(number),
            base: Digest::of(b"model"),
            opened: Time(0),
            closed: is_over.then_some(Time(1)),
            accepted: 1,
            late: 0,
            rejected: 0,
            tokens: 1,
            train_loss: Some(1.0),
            loss: Some(1.0),
            paid: Amount::ZERO,
        }
    }

    #[test]
    fn only_rounds_that_may_have_changed_are_asked_for_again_and_none_of_another_run_are_kept() {
        let [one, other] = [b"one", b"two"].map(|name| RunId(Digest::of(name)));
        let mut kept = Kept::default();
        assert_eq!(kept.ask_from(one, Round(2)), Round(0));
        kept.take(vec![round(0, true), round(1, true), round(2, false)]);
        assert_eq!(kept.ask_from(one, Round(2)), Round(2));
        assert_eq!(kept.ask_from(one, Round(5)), Round(2));
        kept.take((2..=5).map(|number| round(number, number < 5)).collect());
        // As far, but another: on the same address, with a new state directory.
        assert_eq!(kept.ask_from(other, Round(5)), Round(0));
        assert!(kept.rounds.is_empty());
        kept.take((0..=5).map(|number| round(number, number < 5)).collect());
        assert_eq!(kept.ask_from(other, Round(1)), Round(2), "begun anew from the same text");
        assert_eq!(kept.ask_from(other, Round(200)), Round(200 - ROUNDS_MAX + 1));
    }
}
