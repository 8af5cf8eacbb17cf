use super::*;

/// A whole task of [`testing::spec`] has 64 tokens; whoever does fewer in the ten seconds of [`Bench::sized`] is slow.
const FAST: u32 = 7;
const SLOW: u32 = 6;

impl Bench {
    /// The place and the steps of the task that somebody so fast is lent.
    fn lent(&mut self, worker: u8, tokens_per_second: u32) -> (u32, u32) {
        match self.ask(worker, &WorkerRequest::Lease { tokens_per_second }) {
            Some(WorkerReply::Leased(lease)) => (lease.task.index, lease.task.inner_steps),
            other => panic!("worker {worker} was to get a lease, not {other:?}"),
        }
    }
}

#[test]
fn the_slow_and_the_unknown_get_short_tasks_and_the_fast_whole_ones_as_long_as_there_are_any() {
    let mut bench = Bench::sized(6, 3);
    assert_eq!(bench.lent(1, FAST), (0, 4));
    assert_eq!(bench.lent(2, SLOW), (3, 1));
    assert_eq!(bench.lent(3, 0), (4, 1));
    assert_eq!(bench.lent(4, FAST), (1, 4));
    assert_eq!(bench.lent(5, SLOW), (5, 1));
    assert_eq!(bench.lent(6, SLOW), (2, 4), "better a long one than none");
    let mut bench = Bench::sized(2, 1);
    bench.lent(1, FAST);
    assert_eq!(bench.lent(2, FAST), (1, 1));
}

#[test]
fn a_round_of_short_and_whole_tasks_is_paid_and_averaged_by_their_tokens() {
    let mut bench = Bench::sized(3, 2);
    let tasks: Vec<Task> = (1..4).map(|worker| bench.lease(worker)).collect();
    for (worker, task) in (1..).zip(&tasks) {
        bench.hand_in(worker, task);
    }
    bench.judge(|_| true);
    let weights = bench.effects.iter().find_map(|effect| match effect {
        Effect::Aggregate { updates, .. } => Some(updates.iter().map(|(_, tokens)| *tokens).collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(weights.unwrap(), [64, 16, 16]);
    bench.finish_aggregation();
    assert_eq!(bench.rounds.state().tokens(), 96);
    let tokens: u64 = bench.rounds.state().workers().values().map(|record| record.tokens).sum();
    assert_eq!(tokens, 96);
}

#[test]
fn the_tasks_of_a_round_do_not_depend_on_who_does_them() {
    let tasks = |speeds: [u32; 3]| {
        let mut bench = Bench::sized(3, 1);
        let mut lent: Vec<Task> = (1..)
            .zip(speeds)
            .map(|(worker, tokens_per_second)| match bench.ask(worker, &WorkerRequest::Lease { tokens_per_second }) {
                Some(WorkerReply::Leased(lease)) => lease.task,
                other => panic!("{other:?}"),
            })
            .collect();
        lent.sort_by_key(|task| task.index);
        lent
    };
    assert_eq!(tasks([FAST, FAST, FAST]), tasks([SLOW, 0, SLOW]));
}
