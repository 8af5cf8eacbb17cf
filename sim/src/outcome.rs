use std::collections::BTreeMap;
use std::time::Duration;

use hydra::coordinator::State;
use hydra::ledger::{Account, Ledger};
use hydra::protocol::{Amount, Digest, Layer, PublicKey, Round};
use serde::Serialize;

use crate::{Behaviour, Scenario, VerifierBehaviour};

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
    /// The events themselves.
    #[serde(skip)]
    pub log: Vec<String>,
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
    /// What is left of that, vested or not.
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

/// A world at its end.
pub(crate) struct Played {
    pub state: State,
    pub ledger: Ledger,
    pub workers: Vec<(PublicKey, Behaviour)>,
    pub verifiers: Vec<(PublicKey, VerifierBehaviour)>,
    pub caught: BTreeMap<PublicKey, Caught>,
    pub took: Duration,
    pub log: Vec<String>,
}

/// What came of `scenario`.
pub(crate) fn outcome(scenario: &Scenario, seed: u64, played: Played) -> Outcome {
    let Played { state, ledger, workers, verifiers, caught, took, log } = played;
    let kept = |key: &PublicKey| {
        let posts = ledger.book().posts(Account::Wallet(*key));
        Amount::try_from(posts.balance().0 + posts.credits_pending).unwrap_or(Amount::ZERO)
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
    let failures = failures(scenario, &state, (&workers, &verifiers), &losses, took);
    let ledger = ledger.journal().head();
    let everything = [log.join("\n").as_bytes(), model.as_bytes(), ledger.as_bytes()].concat();
    Outcome {
        seed,
        state_hash: Digest::in_domain("hydra simulation v1", &everything),
        passed: failures.is_empty(),
        failures,
        events: log.len(),
        virtual_seconds: took.as_secs_f64(),
        losses,
        model,
        ledger,
        workers,
        verifiers,
        log,
    }
}

fn failures(
    scenario: &Scenario,
    state: &State,
    (workers, verifiers): (&[WorkerOutcome], &[VerifierOutcome]),
    losses: &[f64],
    took: Duration,
) -> Vec<String> {
    let expect = &scenario.expect;
    let mut failures = Vec::new();
    let mut demand = |holds: bool, failure: String| {
        if !holds {
            failures.push(failure);
        }
    };
    let done = state.round().0;
    demand(done == scenario.job.rounds, format!("{done} of {} rounds were done", scenario.job.rounds));
    if let (Some(bound), Some(loss)) = (expect.loss_below, losses.last()) {
        demand(*loss < bound, format!("the validation loss is {loss:.4}, not below {bound}"));
    }
    let cheats = || workers.iter().filter(|worker| !worker.honest);
    if let Some(least) = expect.rejected_at_least {
        let rejected: u64 = cheats().map(|worker| worker.rejected).sum();
        demand(rejected >= least, format!("{rejected} submissions of cheats were rejected, not at least {least}"));
    }
    if expect.honest_lose_nothing {
        let loses = |worker: &&WorkerOutcome| worker.rejected > 0 || worker.banned || worker.kept < worker.pay;
        let lost = workers.iter().filter(|worker| worker.honest).filter(loses).count();
        demand(lost == 0, format!("{lost} honest workers lost work or pay, or were shut out"));
    }
    if expect.cheats_earn_nothing {
        let paid: i64 = cheats().map(|worker| worker.pay.micro()).sum();
        demand(paid == 0, format!("cheats were paid {paid} µHYD"));
    }
    if expect.cheats_keep_nothing {
        let kept: i64 = cheats().map(|worker| worker.kept.micro()).sum();
        demand(kept == 0, format!("cheats keep {kept} µHYD"));
    }
    if let Some(least) = expect.found_false_at_least {
        let found: u64 = cheats().map(|worker| worker.found_false).sum();
        demand(found >= least, format!("{found} results of cheats were found false, not at least {least}"));
    }
    if let Some(struck) = expect.verifiers_struck_off {
        let found = verifiers.iter().filter(|verifier| verifier.struck_off).count() as u64;
        demand(found == struck, format!("{found} verifiers are not believed at the end, not {struck}"));
    }
    if let Some(within) = expect.within_seconds {
        demand(took.as_secs() < within, format!("it took {:.0} virtual seconds, not {within}", took.as_secs_f64()));
    }
    failures
}
