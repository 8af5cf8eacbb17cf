use crate::Scenario;
use crate::outcome::{Outcome, Struck, WorkerOutcome};

/// What `scenario` expects and `outcome` is not, after so many rounds.
pub(crate) fn failures(scenario: &Scenario, done: u32, outcome: &Outcome) -> Vec<String> {
    let expect = &scenario.expect;
    let Outcome { workers, verifiers, losses, .. } = outcome;
    let mut failures = Vec::new();
    let mut demand = |holds: bool, failure: String| {
        if !holds {
            failures.push(failure);
        }
    };
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
        let took = outcome.virtual_seconds;
        demand(took < within as f64, format!("it took {took:.0} virtual seconds, not {within}"));
    }
    if let Some(within) = expect.recovers_within_seconds
        && let Some((from, needed)) = slowest_recovery(outcome, done == scenario.job.rounds)
    {
        let took = if needed.is_finite() { format!("for {needed:.0} s") } else { "any more".to_owned() };
        let failure =
            format!("after the fault that was over at {from:.0} s, no round closed {took}, not within {within} s");
        demand(needed <= within, failure);
    }
    let sum = |of: &dyn Fn(&WorkerOutcome) -> i64, honest: Option<bool>| {
        let counted = workers.iter().filter(|worker| honest.is_none_or(|honest| worker.honest == honest));
        counted.map(of).sum::<i64>() as f64
    };
    if let Some(least) = expect.honest_pay_share_at_least {
        let pay = |worker: &WorkerOutcome| worker.pay.micro();
        let share = sum(&pay, Some(true)) / sum(&pay, None).max(1.0);
        demand(share >= least, format!("the honest got {share:.3} of all pay, not at least {least}"));
    }
    if let Some(most) = expect.cheats_keep_share_at_most {
        let kept = |worker: &WorkerOutcome| worker.kept.micro();
        let share = sum(&kept, Some(false)) / sum(&kept, None).max(1.0);
        demand(share <= most, format!("cheats keep {share:.3} of all pay, not at most {most}"));
    }
    if let Some(most) = expect.banned_at_most {
        let banned = workers.iter().filter(|worker| worker.banned).count() as u64;
        demand(banned <= most, format!("{banned} workers were shut out, not at most {most}"));
    }
    if let Some(least) = expect.late_at_least {
        let late: u64 = outcome.rounds.iter().map(|row| u64::from(row.late)).sum();
        demand(late >= least, format!("{late} late results counted, not at least {least}"));
    }
    if let Some(least) = expect.strikes_at_least {
        let strikes = outcome.strikes.len() as u64;
        demand(strikes >= least, format!("{strikes} things went wrong, not at least {least}"));
    }
    let queries = outcome.queries.unwrap_or_default();
    for (least, count, what) in [
        (expect.answered_at_least, queries.answered, "answered"),
        (expect.refused_at_least, queries.refused, "refused for want of tokens"),
    ] {
        let least = least.unwrap_or(0);
        demand(count >= least, format!("{count} queries were {what}, not at least {least}"));
    }
    failures
}

/// Of the times at which all faults were over and a round closed before the next one came, the one after which it took
/// longest: when that was, and how long it took, virtual seconds. What is over after the last round has nothing to wait
/// for; where the rounds are not all done, it waits for ever.
fn slowest_recovery(outcome: &Outcome, finished: bool) -> Option<(f64, f64)> {
    let strikes = &outcome.strikes;
    let recovery = |strike: &Struck| {
        let healed = strike.until_seconds;
        let covers = |other: &Struck| other.at_seconds <= healed && other.until_seconds > healed;
        let closed = outcome.rounds.iter().map(|row| row.closed_seconds).find(|at| *at >= healed);
        let until = closed.unwrap_or(f64::INFINITY);
        let comes_first = |other: &Struck| other.at_seconds > healed && other.at_seconds < until;
        let waits = closed.is_some() || !finished;
        (waits && !strikes.iter().any(|other| covers(other) || comes_first(other))).then_some((healed, until - healed))
    };
    strikes.iter().filter_map(recovery).max_by(|a, b| a.1.total_cmp(&b.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RoundRow, Trouble, Victim};
    use hydra::protocol::Digest;

    fn outcome(rounds: &[f64], strikes: &[[f64; 2]]) -> Outcome {
        let strike = |[at_seconds, until_seconds]: &[f64; 2]| Struck {
            at_seconds: *at_seconds,
            until_seconds: *until_seconds,
            what: Trouble::Crash,
            who: Victim::Coordinator,
            hit: 1,
        };
        let row = |closed_seconds: &f64| RoundRow {
            round: 0,
            closed_seconds: *closed_seconds,
            accepted: 1,
            late: 0,
            tokens: 1,
            loss: None,
            workers_up: 1,
            rejected: 0,
            convicted: 0,
            strikes: 0,
        };
        Outcome {
            seed: 1,
            state_hash: Digest::of(&[]),
            passed: true,
            failures: vec![],
            events: 0,
            virtual_seconds: 100.0,
            losses: vec![],
            model: Digest::of(&[]),
            ledger: Digest::of(&[]),
            workers: vec![],
            verifiers: vec![],
            rounds: rounds.iter().map(row).collect(),
            queries: None,
            strikes: strikes.iter().map(strike).collect(),
            log: vec![],
        }
    }

    #[test]
    fn recovery_is_measured_from_when_all_faults_are_over_to_the_next_round() {
        let recovery = |rounds: &[f64], strikes: &[[f64; 2]]| slowest_recovery(&outcome(rounds, strikes), true);
        assert_eq!(recovery(&[10.0, 50.0], &[[5.0, 20.0]]), Some((20.0, 30.0)));
        assert_eq!(recovery(&[10.0, 50.0], &[[5.0, 20.0], [15.0, 30.0]]), Some((30.0, 20.0)), "both must be over");
        assert_eq!(recovery(&[10.0, 50.0], &[[5.0, 20.0], [25.0, 45.0]]), Some((45.0, 5.0)), "another came first");
        assert_eq!(recovery(&[10.0, 50.0], &[[60.0, 70.0]]), None, "nothing was left to be done");
        let never = slowest_recovery(&outcome(&[10.0], &[[60.0, 70.0]]), false);
        assert_eq!(never, Some((70.0, f64::INFINITY)));
    }
}
