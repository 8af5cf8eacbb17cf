use std::collections::BTreeMap;
use std::time::Duration;

use hydra::coordinator::State;
use hydra::ledger::{Account, Ledger};
use hydra::protocol::{Amount, Digest, Layer, PublicKey, Round};
use serde::Serialize;

use crate::expect::failures;
use crate::faults::{Trouble, Victim};
use crate::scenario::Group;
use crate::{Behaviour, QueryCounts, Scenario, VerifierBehaviour};

/// What came of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The seed that it was played with.
    pub seed: u64,
    /// The digest of the events, the model and the ledger: equal for equal runs.
    pub state_hash: Digest,
    /// Whether everything expected holds.
    pub passed: bool,
    /// What does not hold.
    pub failures: Vec<String>,
    /// Events in the log.
    pub events: usize,
    /// How long it took in the swarm's time.
    pub virtual_seconds: f64,
    /// Validation loss of each base model, nats a token.
    pub losses: Vec<f64>,
    /// The newest model.
    pub model: Digest,
    /// The ledger hash.
    pub ledger: Digest,
    /// Each worker, in the order of the scenario.
    pub workers: Vec<WorkerOutcome>,
    /// Each verifier, in the order of the scenario.
    pub verifiers: Vec<VerifierOutcome>,
    /// Each round that closed.
    pub rounds: Vec<RoundRow>,
    /// What became of the queries, where customers asked any.
    pub queries: Option<QueryCounts>,
    /// What went wrong, in order.
    pub strikes: Vec<Struck>,
    /// The events themselves: virtual milliseconds, a space and what happened.
    #[serde(skip)]
    pub log: Vec<String>,
}

/// What came of the workers of one group together.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupOutcome {
    /// The scenario's name for it, or its place and behaviour.
    pub name: String,
    /// How many they are.
    pub workers: usize,
    /// Tasks accepted.
    pub accepted: u64,
    /// Submissions rejected.
    pub rejected: u64,
    /// Tasks that were computed again and were false.
    pub found_false: u64,
    /// What they were paid, HYD.
    pub pay: f64,
    /// What is left of that, HYD.
    pub kept: f64,
    /// Those that get no more work.
    pub banned: usize,
}

impl Outcome {
    /// Each group of `scenario`, of which this came.
    #[must_use]
    pub fn groups(&self, scenario: &Scenario) -> Vec<GroupOutcome> {
        let mut workers = self.workers.as_slice();
        let group = |(group, place): (&Group, usize)| {
            let (these, rest) = workers.split_at((group.count as usize).min(workers.len()));
            workers = rest;
            let sum = |of: fn(&WorkerOutcome) -> u64| these.iter().map(of).sum::<u64>();
            let hyd = |of: fn(&WorkerOutcome) -> i64| these.iter().map(of).sum::<i64>() as f64 / 1e6;
            let behaviour = format!("{place} {:?}", group.behaviour).to_lowercase();
            GroupOutcome {
                name: group.name.clone().unwrap_or(behaviour),
                workers: these.len(),
                accepted: sum(|worker| worker.accepted),
                rejected: sum(|worker| worker.rejected),
                found_false: sum(|worker| worker.found_false),
                pay: hyd(|worker| worker.pay.micro()),
                kept: hyd(|worker| worker.kept.micro()),
                banned: these.iter().filter(|worker| worker.banned).count(),
            }
        };
        scenario.workers.iter().zip(1..).map(group).collect()
    }
}

/// What came of one worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerOutcome {
    /// Whether it did what it was asked for.
    pub honest: bool,
    /// Tasks accepted.
    pub accepted: u64,
    /// Submissions rejected.
    pub rejected: u64,
    /// Tasks that were computed again and were right.
    pub audited: u64,
    /// Tasks that were computed again and were false.
    pub found_false: u64,
    /// What it was paid.
    pub pay: Amount,
    /// What is left of that, vested or not; what went on queries, or came of them, is not counted.
    pub kept: Amount,
    /// Whether it gets no more work.
    pub banned: bool,
    /// The first time that anything of its own was found to be wrong.
    pub caught: Option<Caught>,
}

/// When something was found to be wrong, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Caught {
    /// The round that was open.
    pub round: Round,
    /// What found it.
    pub layer: Layer,
}

/// What came of one verifier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifierOutcome {
    /// What it did when it was to compute a task again.
    pub behaviour: VerifierBehaviour,
    /// Tasks computed again, or so it said.
    pub replays: u64,
    /// What it was paid.
    pub kept: Amount,
    /// Whether it is not believed any more.
    pub struck_off: bool,
}

/// A round that closed. Counts are from the beginning of the run on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundRow {
    /// Which.
    pub round: u32,
    /// When, virtual seconds.
    pub closed_seconds: f64,
    /// Results accepted in it.
    pub accepted: u32,
    /// Those of them that were for tasks of earlier rounds.
    pub late: u32,
    /// Tokens of them.
    pub tokens: u64,
    /// Validation loss of the model that was made of it, nats a token.
    pub loss: Option<f64>,
    /// Workers that ran when it closed.
    pub workers_up: usize,
    /// Submissions rejected so far.
    pub rejected: u64,
    /// Results found false so far.
    pub convicted: u64,
    /// Faults so far.
    pub strikes: usize,
}

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Struck {
    /// When, virtual seconds.
    pub at_seconds: f64,
    /// When it was mended.
    pub until_seconds: f64,
    /// What.
    pub what: Trouble,
    /// With whom.
    pub who: Victim,
    /// How many of them.
    pub hit: usize,
}

/// A world at its end.
pub(crate) struct Played {
    pub state: State,
    pub ledger: Ledger,
    pub workers: Vec<(PublicKey, Behaviour)>,
    pub verifiers: Vec<(PublicKey, VerifierBehaviour)>,
    pub caught: BTreeMap<PublicKey, Caught>,
    pub rounds: Vec<RoundRow>,
    /// What each has spent on queries, less what others' queries have brought, µHYD.
    pub spent: BTreeMap<PublicKey, i128>,
    pub queries: Option<QueryCounts>,
    pub struck: Vec<Struck>,
    /// What must always hold and did not.
    pub broken: Vec<String>,
    /// Whoever played it wanted to see only its beginning.
    pub cut_short: bool,
    pub took: Duration,
    pub log: Vec<String>,
}

/// What came of `scenario`.
pub(crate) fn outcome(scenario: &Scenario, seed: u64, played: Played) -> Outcome {
    let Played {
        state,
        ledger,
        workers,
        verifiers,
        caught,
        mut rounds,
        spent,
        queries,
        struck,
        broken,
        cut_short,
        took,
        log,
    } = played;
    let kept = |key: &PublicKey| {
        let posts = ledger.book().posts(Account::Wallet(*key));
        let spent = spent.get(key).copied().unwrap_or(0);
        Amount::try_from(posts.balance().0 + posts.credits_pending + spent).unwrap_or(Amount::ZERO)
    };
    let worker = |(key, behaviour): &(PublicKey, Behaviour)| {
        let record = state.workers().get(key).copied().unwrap_or_default();
        WorkerOutcome {
            honest: behaviour.is_honest(),
            accepted: record.accepted,
            rejected: record.rejected,
            audited: record.audited,
            found_false: record.found_false,
            pay: record.pay,
            kept: kept(key),
            banned: record.banned,
            caught: caught.get(key).copied(),
        }
    };
    let workers: Vec<WorkerOutcome> = workers.iter().map(worker).collect();
    let losses: Vec<f64> = state.lineage().iter().filter_map(|model| model.loss).collect();
    let model = state.lineage().last().map_or(Digest::of(&[]), |model| model.digest);
    let verifier = |(key, behaviour): &(PublicKey, VerifierBehaviour)| {
        let record = state.verifiers().get(key).copied().unwrap_or_default();
        let (replays, struck_off) = (record.replays, record.struck_off);
        VerifierOutcome { behaviour: *behaviour, replays, kept: kept(key), struck_off }
    };
    let verifiers: Vec<VerifierOutcome> = verifiers.iter().map(verifier).collect();
    for row in &mut rounds {
        row.loss = state.lineage().get(row.round as usize + 1).and_then(|model| model.loss);
    }
    let mut outcome = Outcome {
        seed,
        state_hash: Digest::of(&[]),
        passed: false,
        failures: broken.into_iter().map(|law| format!("always: {law}")).collect(),
        events: log.len(),
        virtual_seconds: took.as_secs_f64(),
        losses,
        model,
        ledger: ledger.journal().head(),
        workers,
        verifiers,
        rounds,
        queries,
        strikes: struck,
        log,
    };
    if !cut_short {
        outcome.failures.extend(failures(scenario, state.round().0, &outcome));
    }
    outcome.passed = outcome.failures.is_empty();
    let everything = [outcome.log.join("\n").as_bytes(), outcome.model.as_bytes(), outcome.ledger.as_bytes()].concat();
    outcome.state_hash = Digest::in_domain("hydra simulation v1", &everything);
    outcome
}
