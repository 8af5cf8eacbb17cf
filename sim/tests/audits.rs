//! What becomes of each way to cheat where part of the work is computed again, and of verifiers that lie.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::Path;

use hydra_sim::{Outcome, Scenario, run};

/// Six honest workers and two that behave otherwise, audited as by default, by these verifiers.
fn play(behaviour: &str, verifiers: &str) -> Outcome {
    play_by("verifiers", behaviour, verifiers)
}

fn play_by(by: &str, behaviour: &str, verifiers: &str) -> Outcome {
    let text = format!(
        "about = 'two of eight cheat'\n\
         job = {{ rounds = 4, inner_steps = 6, batch = 4, learning_rate = 0.01, \
         model = {{ layers = 1, width = 32, heads = 2, hidden = 64, context = 32 }} }}\n\
         workers = [{{ count = 6, tokens_per_second = 1000 }}, \
         {{ count = 2, tokens_per_second = 1000, behaviour = {behaviour} }}]\n\
         verifiers = [{verifiers}]\n\
         [audits]\n\
         by = '{by}'\n\
         [expect]\n\
         honest_lose_nothing = true\n\
         cheats_keep_nothing = true\n"
    );
    let outcome = run(&Scenario::parse(Path::new("scenario.toml"), &text).unwrap(), 3, 2).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new(), "{behaviour} {verifiers}");
    outcome
}

const HONEST: &str = "{ count = 2, tokens_per_second = 8000 }";

#[test]
fn what_passes_the_cheap_checks_is_found_by_replay_and_earns_nothing() {
    for behaviour in ["{ partial = 0.5 }", "'free-rider'", "'wrong-data'", "{ noise = 0.2 }"] {
        let outcome = play(behaviour, HONEST);
        for cheat in outcome.workers.iter().filter(|worker| !worker.honest) {
            assert!(cheat.found_false > 0 || cheat.accepted == 0, "{behaviour}: {cheat:?}");
        }
        assert!(outcome.verifiers.iter().all(|verifier| verifier.replays > 0 && verifier.kept.micro() > 0));
    }
}

#[test]
fn a_verifier_that_says_that_all_is_false_harms_nobody_and_is_not_believed_for_long() {
    let outcome = play(
        "'wrong-data'",
        "{ count = 2, tokens_per_second = 8000 }, { count = 1, tokens_per_second = 8000, behaviour = 'reject-all' }",
    );
    assert!(outcome.verifiers[2].struck_off && !outcome.verifiers[0].struck_off);
}

#[test]
fn a_verifier_that_never_answers_only_delays() {
    play(
        "'wrong-data'",
        "{ count = 2, tokens_per_second = 8000 }, { count = 1, tokens_per_second = 8000, behaviour = 'silent' }",
    );
}

#[test]
fn where_workers_check_each_other_cheats_who_are_few_lose_everything() {
    for behaviour in ["{ partial = 0.5 }", "'wrong-data'"] {
        let outcome = play_by("peers", behaviour, HONEST);
        assert!(
            outcome.workers.iter().filter(|worker| !worker.honest).all(|cheat| cheat.found_false > 0),
            "{behaviour}"
        );
        assert!(outcome.verifiers.iter().all(|verifier| verifier.replays == 0));
    }
}
