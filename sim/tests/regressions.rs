//! What has gone wrong in other swarms that train together, and must not here.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::Path;
use std::time::Duration;

use hydra_sim::{Outcome, Scenario, Simulation, run};

const JOB: &str = "about = 'others have failed at this'\n[job]\nrounds = 4\ntasks_per_round = 6\ninner_steps = 4\nbatch = 4\n\
    lease_seconds = 30\nround_seconds = 600\nobjective = 'surrogate'\nlearning_rate = 0.02\n\
    model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 }\n";
const SIX: &str = "[[workers]]\nname = 'six'\ncount = 6\ntokens_per_second = [20, 60]\n";
const STRANGERS: &str = "[[workers]]\ncount = 2\ntokens_per_second = 1\nbehaviour = 'forge'\n";

fn scenario(text: &str) -> Scenario {
    Scenario::parse(Path::new("others.toml"), &format!("{JOB}{text}")).unwrap()
}

fn play(text: &str) -> Outcome {
    let outcome = run(&scenario(text), 7, 2).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new());
    outcome
}

fn paid(outcome: &Outcome) -> i64 {
    outcome.workers.iter().map(|worker| worker.pay.micro()).sum()
}

#[test]
fn nobody_who_was_lent_nothing_ends_a_round_early_or_changes_what_comes_of_it() {
    let calm = play(SIX);
    // Their tasks and payloads are those of others, of no task at all, and of the largest numbers that there are.
    let outcome = play(&format!("{SIX}{STRANGERS}[expect]\nhonest_lose_nothing = true"));
    let forged = outcome.log.iter().filter(|line| line.contains("worker 6 sends") || line.contains("worker 7 sends"));
    assert!(forged.count() > 500);
    assert_eq!(outcome.model, calm.model);
    assert!(outcome.rounds.iter().all(|round| round.accepted == 6));
    let strangers = &outcome.workers[6..];
    assert!(strangers.iter().all(|stranger| stranger.accepted == 0 && stranger.pay.micro() == 0), "{strangers:?}");
}

#[test]
fn no_number_of_strangers_who_judge_is_believed_and_the_verdicts_beside_theirs_are() {
    let verifiers = "[[verifiers]]\ncount = 2\ntokens_per_second = 2000\n[audits]\n";
    let outcome = play(&format!("{SIX}{STRANGERS}{verifiers}[expect]\nhonest_lose_nothing = true"));
    assert!(outcome.workers[..6].iter().all(|worker| worker.found_false == 0 && worker.rejected == 0));
    assert!(outcome.verifiers.iter().map(|verifier| verifier.replays).sum::<u64>() >= 24, "each result was drawn");
    assert!(outcome.verifiers.iter().all(|verifier| !verifier.struck_off));
}

#[test]
fn no_batch_is_lost_when_those_who_have_them_disconnect() {
    let calm = play(SIX);
    let faults = "[[faults]]\nwhat = 'cut'\nwho = 'workers'\nshare = 0.5\nevery_seconds = 10\nuntil_seconds = 120\nfor_seconds = 15\n\
        [[faults]]\nwhat = 'crash'\nwho = 'workers'\nshare = 0.5\nevery_seconds = 10\nuntil_seconds = 120\nfor_seconds = 5\n";
    let outcome = play(&format!("{SIX}{faults}[expect]\nhonest_lose_nothing = true\nstrikes_at_least = 6"));
    assert_eq!(outcome.model, calm.model);
    assert!(outcome.rounds.iter().all(|round| round.accepted == 6));
    assert_eq!(paid(&outcome), paid(&calm));
}

#[test]
fn a_round_that_fails_is_not_paid() {
    let leavers = "[[workers]]\ncount = 1\ntokens_per_second = 20\n[[workers]]\ncount = 5\ntokens_per_second = 20\n\
        availability = { between = [[0, 16]] }\n[[workers]]\ncount = 6\ntokens_per_second = 1\nbehaviour = 'grief'\n";
    // Two thirds of what is left are lent to those who hand nothing in, again and again.
    let mut scenario = scenario(&format!("{leavers}[expect]\nhonest_lose_nothing = true"));
    scenario.job.round_seconds = 60;
    let outcome = Simulation::new(&scenario).until(Duration::from_secs(200)).run(7, 2).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new());
    assert!(outcome.rounds.len() < 4 && outcome.log.iter().any(|line| line.contains("RoundClosed")));
    assert_eq!(paid(&outcome), 100_000_000 * outcome.rounds.len() as i64, "what was paid is what closed rounds emit");
}
