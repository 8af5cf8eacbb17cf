//! What strategies earn under the default economy: exact expectations, no sampling.
//!
//! A reward is 1. Honest work costs a part of it in computing, false work nothing. A worker's standing is the number `n` of
//! clean results since its last failure: it is audited with probability `q(n)`, has `min(n, 32)` unvested rewards, and
//! false work that is audited is found with probability `d`: then the reward is not paid, what is unvested is gone, and `n`
//! is 0 again. What is unvested in the end is counted as if it were paid, in favour of the cheats.
//!
//! `cargo test --test incentives -- --nocapture` prints the table of the book's chapter on the economy.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

use hydra::ledger::{Economy, EconomyConfig};

/// Tasks in a worker's life.
const TASKS: usize = 2_000;

fn economy() -> Economy {
    EconomyConfig::default().check().unwrap()
}

/// What a replay finds and what honest work costs.
#[derive(Debug, Clone, Copy)]
struct World {
    detection: f64,
    cost: f64,
}

/// What is expected of a life of `tasks` tasks: pay, and pay less computing. `cheats` gives the probability that the task
/// number `t` is cheated with `n` clean results. `thrown_away`: the key is given up in the end, and what is unvested with
/// it.
fn expected(world: World, tasks: usize, thrown_away: bool, cheats: impl Fn(usize, usize) -> f64) -> (f64, f64) {
    let economy = economy();
    let keep = economy.config().vesting_rewards as usize;
    let lost = |n: usize| if thrown_away { n.min(keep) as f64 } else { 0.0 };
    // By the number of clean results, from the last task back to the first.
    let mut after: Vec<(f64, f64)> = (0..tasks + 2).map(|n| (-lost(n), -lost(n))).collect();
    for t in (0..tasks).rev() {
        let value = |n: usize| {
            let caught = economy.audit_rate(n as u32).fraction() * world.detection;
            let unvested = n.min(keep) as f64;
            let x = cheats(t, n);
            let (good, fresh) = (after[n + 1], after[0]);
            let each = |good: f64, fresh: f64, cost: f64| {
                let honest = 1.0 - cost + good;
                let cheat = (1.0 - caught) * (1.0 + good) + caught * (fresh - unvested);
                (1.0 - x) * honest + x * cheat
            };
            (each(good.0, fresh.0, 0.0), each(good.1, fresh.1, world.cost))
        };
        let mut now: Vec<(f64, f64)> = (0..=t.min(tasks)).map(value).collect();
        now.resize(tasks + 2, (0.0, 0.0));
        after = now;
    }
    after[0]
}

/// The strategies: a name, pay and profit in all.
fn strategies(world: World) -> Vec<(String, f64, f64)> {
    let mut all = Vec::new();
    let mut add = |name: String, (pay, profit): (f64, f64)| all.push((name, pay, profit));
    add("honest".to_owned(), expected(world, TASKS, false, |_, _| 0.0));
    for x in [0.01, 0.1, 0.5, 1.0] {
        add(format!("cheats at {:.0} % of its tasks", x * 100.0), expected(world, TASKS, false, |_, _| x));
    }
    for m in [10, 32, 100, 1_000] {
        let name = format!("is honest for {m} tasks, then cheats on");
        add(name, expected(world, TASKS, false, |t, _| if t >= m { 1.0 } else { 0.0 }));
        let name = format!("cheats whenever it has {m} clean results");
        add(name, expected(world, TASKS, false, |_, n| if n >= m { 1.0 } else { 0.0 }));
    }
    for keys in [10, 100] {
        let (pay, profit) = expected(world, TASKS / keys, false, |_, _| 0.1);
        add(format!("{keys} keys, each cheats at 10 %"), (keys as f64 * pay, keys as f64 * profit));
        // Each key does honest work as long as that is all there is to its name, then one piece of false work, and is
        // thrown away before anybody can know.
        let life = TASKS / keys;
        let (pay, profit) = expected(world, life, true, |t, _| if t + 1 == life { 1.0 } else { 0.0 });
        let name = format!("a new key every {life} tasks, the last of which it cheats");
        add(name, (keys as f64 * pay, keys as f64 * profit));
    }
    all
}

#[test]
fn an_honest_worker_earns_more_than_every_cheating_strategy_at_the_defaults() {
    for world in [
        World { detection: 1.0, cost: 0.9 },
        World { detection: 1.0, cost: 0.5 },
        World { detection: 0.95, cost: 0.9 },
        World { detection: 0.7, cost: 0.6 },
    ] {
        let all = strategies(world);
        let (honest_pay, honest_profit) = (all[0].1, all[0].2);
        println!(
            "\nreplays find {:.0} %, honest work costs {:.0} % of the reward",
            world.detection * 100.0,
            world.cost * 100.0
        );
        println!("{:<52} {:>6} {:>8}", format!("strategy over {TASKS} tasks"), "pay", "profit");
        for (name, pay, profit) in &all {
            let bar = "█".repeat((profit.max(0.0) / honest_profit * 20.0).round() as usize);
            println!("{name:<52} {pay:>6.0} {profit:>8.1} {bar}");
            if name != "honest" {
                assert!(*pay < honest_pay, "{name} is paid {pay}, honest work {honest_pay}");
                assert!(*profit < honest_profit, "{name} profits {profit}, honest work {honest_profit}");
            }
        }
    }
}

/// The best answer to the economy there is: at every task and standing whatever promises most, to be honest, to cheat, or to
/// begin anew under another key.
#[test]
fn no_strategy_whatever_is_better_than_honest_work() {
    for world in [
        World { detection: 1.0, cost: 1.0 },
        World { detection: 0.95, cost: 0.95 },
        World { detection: 0.7, cost: 0.7 },
    ] {
        let economy = economy();
        let keep = economy.config().vesting_rewards as usize;
        let mut after = vec![0.0f64; TASKS + 2];
        let mut margin = f64::INFINITY;
        for t in (0..TASKS).rev() {
            let mut now = vec![0.0; TASKS + 2];
            for n in 0..=t {
                let caught = economy.audit_rate(n as u32).fraction() * world.detection;
                let unvested = n.min(keep) as f64;
                let honest = 1.0 - world.cost + after[n + 1];
                let cheat = (1.0 - caught) * (1.0 + after[n + 1]) + caught * (after[0] - unvested);
                let anew = (after[0] - unvested).max((1.0 - caught) * 1.0 + after[0] - unvested);
                // Equal where nothing is at stake: a first task that is audited for sure, and costs what it brings.
                assert!(
                    honest >= cheat.max(anew) - 1e-9,
                    "{world:?}, task {t}, {n} clean: {honest} or {cheat} or {anew}"
                );
                now[n] = honest.max(cheat).max(anew);
                if n >= economy.config().audit.probation as usize {
                    margin = margin.min(caught * (1.0 + unvested) / world.cost);
                }
            }
            after = now;
        }
        println!("{world:?}: false work costs at least {margin:.2} times what it saves");
        assert!(margin >= 1.5);
    }
}
