//! What the first two layers of verification make of each way to cheat.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use std::path::Path;

use hydra_sim::{Outcome, Scenario, run};

/// Six honest workers and two of another kind.
fn play(behaviour: &str) -> Outcome {
    let text = format!(
        "about = 'two of eight cheat'\n\
         job = {{ rounds = 3, inner_steps = 6, batch = 4, learning_rate = 0.01, \
         model = {{ layers = 1, width = 32, heads = 2, hidden = 64, context = 32 }} }}\n\
         workers = [{{ count = 6, tokens_per_second = 1000 }}, \
         {{ count = 2, tokens_per_second = 1000, behaviour = {behaviour} }}]\n"
    );
    let outcome = run(&Scenario::parse(Path::new("scenario.toml"), &text).unwrap(), 3, 2).unwrap();
    assert_eq!(outcome.failures, Vec::<String>::new(), "{behaviour}");
    let harmed: u64 = outcome.workers.iter().filter(|worker| worker.honest).map(|worker| worker.rejected).sum();
    assert_eq!(harmed, 0, "{behaviour}: honest work was rejected");
    outcome
}

fn cheats(outcome: &Outcome) -> (u64, u64) {
    let cheats = || outcome.workers.iter().filter(|worker| !worker.honest);
    (cheats().map(|worker| worker.accepted).sum(), cheats().map(|worker| worker.rejected).sum())
}

#[test]
fn crude_cheats_never_pass() {
    for behaviour in ["{ scale = 10.0 }", "{ scale = -10.0 }", "{ scale = -1.0 }", "{ noise = 3.0 }", "'not-finite'"] {
        let (accepted, rejected) = cheats(&play(behaviour));
        assert!(accepted == 0 && rejected > 0, "{behaviour}: {accepted} accepted, {rejected} rejected");
    }
}

#[test]
fn whoever_hands_in_the_same_again_is_found_within_the_run() {
    let (_, rejected) = cheats(&play("'repeat'"));
    assert!(rejected > 0);
}

/// What looks like honest work has to be done again to be found; until then its pull on the model is bounded.
#[test]
fn subtle_cheats_keep_the_model_within_reach_of_an_honest_swarms() {
    let clean = *play("'honest'").losses.last().unwrap();
    for behaviour in ["{ partial = 0.5 }", "'free-rider'", "'wrong-data'", "'stale'", "{ poison = 101 }"] {
        let loss = *play(behaviour).losses.last().unwrap();
        assert!(loss < 1.1 * clean, "{behaviour}: {loss} beside {clean}");
    }
}
