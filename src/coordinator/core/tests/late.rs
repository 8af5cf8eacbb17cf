use std::collections::BTreeSet;

use super::*;
use crate::protocol::RefusalReason::{AlreadySubmitted, RejectedBefore, TaskDone, TaskNotOpen};

/// Tokens of a task of [`testing::spec`].
const TOKENS: u64 = 64;

impl Bench {
    /// Has the round that is open closed at its deadline.
    fn close_at_deadline(&mut self) {
        self.now = self.now + self.rounds.state().spec().timing.round;
        self.step(Event::Wake);
        self.judge_cheap();
        assert!(self.rounds.state().closed, "the round was to close");
    }

    fn do_next(&mut self, worker: u8) {
        let task = self.lease(worker);
        assert_eq!(self.hand_in(worker, &task), Some(WorkerReply::Received(task.id())));
    }

    /// A round of three tasks, two of which are done and the third is lent to worker 3, that is closed and over.
    fn with_straggler() -> (Self, Task) {
        let mut bench = Self::new(3, None);
        bench.do_next(1);
        bench.do_next(2);
        let task = bench.lease(3);
        bench.judge(|_| true);
        bench.close_at_deadline();
        bench.finish_aggregation();
        (bench, task)
    }

    /// What was paid for `round`, as its workers and tokens.
    fn paid(&self, round: u32) -> Vec<(PublicKey, u64)> {
        let verdicts = self.effects.iter().find_map(|effect| match effect {
            Effect::Pay { round: paid, verdicts } if *paid == Round(round) => Some(verdicts.clone()),
            _ => None,
        });
        let verdicts = verdicts.unwrap_or_default();
        verdicts
            .iter()
            .map(|verdict| match verdict.open::<Verdict>().unwrap().1 {
                Verdict { worker, outcome: Outcome::Accepted { tokens, .. }, .. } => (worker, tokens),
                other => panic!("{other:?} was paid for"),
            })
            .collect()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with the answer to a request, which may have none")]
fn refused(task: &Task, reason: RefusalReason) -> Option<WorkerReply> {
    Some(WorkerReply::Refused { task: Some(task.id()), reason })
}

#[test]
fn a_result_that_comes_after_its_round_counts_half_in_the_next() {
    let (mut bench, task) = Bench::with_straggler();
    assert_eq!(bench.rounds.state().tokens(), 2 * TOKENS);
    assert_eq!(bench.ask(3, &WorkerRequest::Heartbeat(task.id())), Some(WorkerReply::Received(task.id())));
    assert_eq!(bench.hand_in(3, &task), Some(WorkerReply::Received(task.id())));
    bench = bench.crash();
    for worker in [1, 2, 4] {
        bench.do_next(worker);
    }
    bench.judge(|_| true);
    assert!(bench.rounds.state().closed);
    let [one, two, three, four] = [1, 2, 3, 4].map(|n| key(n).public());
    assert_eq!(bench.paid(1), [(one, TOKENS), (two, TOKENS), (four, TOKENS), (three, TOKENS / 2)]);
    let report = Report::RoundClosed { round: Round(1), accepted: 4, late: 1, tokens: 3 * TOKENS + TOKENS / 2 };
    assert!(bench.effects.contains(&Effect::Report(report)));
    let weights = bench.effects.iter().find_map(|effect| match effect {
        Effect::Aggregate { round: Round(1), updates, .. } => Some(updates.clone()),
        _ => None,
    });
    let late = (submission(&task, 3).commitment.payload, TOKENS / 2);
    assert_eq!(weights.unwrap()[3], late);
    bench.finish_aggregation();
    assert_eq!(bench.rounds.state().tokens(), 5 * TOKENS + TOKENS / 2);
    assert_eq!(bench.rounds.state().workers()[&three].tokens, TOKENS / 2);
    assert_eq!(bench.hand_in(3, &task), refused(&task, TaskDone), "it counts once");
}

#[test]
fn while_the_next_model_is_made_a_straggler_is_asked_to_wait() {
    let mut bench = Bench::new(3, None);
    bench.do_next(1);
    bench.do_next(2);
    let task = bench.lease(3);
    bench.judge(|_| true);
    bench.close_at_deadline();
    let wait = Some(WorkerReply::Wait);
    assert_eq!(bench.ask(3, &WorkerRequest::Heartbeat(task.id())), wait);
    assert_eq!(bench.hand_in(3, &task), wait);
    let first = bench.rounds.state().slots.get(0).unwrap().task.clone();
    assert_eq!(bench.hand_in(4, &first), refused(&first, TaskNotOpen), "there is nothing to wait for");
    bench.finish_aggregation();
    assert_eq!(bench.hand_in(3, &task), Some(WorkerReply::Received(task.id())));
}

#[test]
fn what_was_done_by_another_in_time_is_refused_by_name() {
    let mut bench = Bench::new(2, None);
    let mine = bench.lease(1);
    bench.now = bench.now + bench.rounds.state().spec().timing.lease;
    for worker in [2, 3] {
        bench.do_next(worker);
    }
    assert_eq!(bench.hand_in(1, &mine), refused(&mine, AlreadySubmitted));
    bench.judge(|_| true);
    assert_eq!(bench.hand_in(1, &mine), refused(&mine, TaskNotOpen), "the round has just closed");
    for _ in 0..limits::LATE_ROUNDS_MAX {
        bench.finish_aggregation();
        assert_eq!(bench.hand_in(1, &mine), refused(&mine, TaskDone));
        for worker in [2, 3] {
            bench.do_next(worker);
        }
        bench.judge(|_| true);
    }
    bench.finish_aggregation();
    assert_eq!(bench.hand_in(1, &mine), refused(&mine, TaskNotOpen), "so long ago that nobody remembers");
}

#[test]
fn a_result_may_come_as_many_rounds_late_as_its_base_model_is_kept_and_counts_half_as_much_with_each() {
    let (mut bench, task) = Bench::with_straggler();
    for late in 1..limits::LATE_ROUNDS_MAX {
        for worker in [1, 2, 4] {
            bench.do_next(worker);
        }
        bench.judge(|_| true);
        assert!(bench.rounds.state().closed, "nobody waits for what is {late} rounds late");
        bench.finish_aggregation();
    }
    let mut in_time = Bench { records: bench.records.clone(), ..Bench::new(3, None) };
    in_time.now = bench.now;
    let mut in_time = in_time.restored_from_records();
    assert_eq!(in_time.hand_in(3, &task), Some(WorkerReply::Received(task.id())));
    for worker in [1, 2, 4] {
        bench.do_next(worker);
        in_time.do_next(worker);
    }
    in_time.judge(|_| true);
    let round = limits::LATE_ROUNDS_MAX;
    assert_eq!(in_time.paid(round)[3], (key(3).public(), TOKENS >> round));
    assert!(bench.rounds.state().blobs().contains(&task.base), "whoever checks it needs the model");
    bench.judge(|_| true);
    bench.finish_aggregation();
    assert_eq!(bench.hand_in(3, &task), refused(&task, TaskNotOpen));
}

#[test]
fn late_tasks_are_lent_to_nobody_else_and_the_first_of_two_holders_has_them() {
    let mut bench = Bench::new(3, None);
    bench.do_next(1);
    bench.do_next(2);
    let task = bench.lease(3);
    bench.now = bench.now + bench.rounds.state().spec().timing.lease;
    assert_eq!(bench.lease(4).id(), task.id(), "two have it");
    bench.judge(|_| true);
    bench.close_at_deadline();
    bench.finish_aggregation();
    for worker in 5..8 {
        assert_eq!(bench.lease(worker).round, Round(1));
    }
    assert_eq!(bench.ask(8, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
    let (tasks, ..) = bench.rounds.state().tasks(bench.now);
    assert_eq!(tasks, 3, "the round has its own tasks");
    assert_eq!(bench.hand_in(4, &task), Some(WorkerReply::Received(task.id())));
    assert_eq!(bench.hand_in(3, &task), refused(&task, AlreadySubmitted));
    let stranger = bench.hand_in(9, &task);
    assert_eq!(stranger, refused(&task, RefusalReason::NotYourTask));
}

#[test]
fn a_late_result_that_is_rejected_is_over() {
    let (mut bench, task) = Bench::with_straggler();
    bench.hand_in(3, &task);
    for worker in [1, 2, 4] {
        bench.do_next(worker);
    }
    bench.judge(|worker| worker != key(3).public());
    assert!(bench.rounds.state().closed);
    assert_eq!(bench.paid(1).len(), 3);
    bench.finish_aggregation();
    assert!(matches!(bench.hand_in(3, &task), Some(WorkerReply::Refused { reason: TaskNotOpen | RejectedBefore, .. })));
}

#[test]
fn what_is_late_at_the_end_of_a_run_is_refused() {
    let mut bench = Bench::new(3, Some(1));
    bench.do_next(1);
    bench.do_next(2);
    let task = bench.lease(3);
    bench.judge(|_| true);
    bench.close_at_deadline();
    assert_eq!(bench.hand_in(3, &task), refused(&task, TaskNotOpen));
    bench.finish_aggregation();
    assert_eq!(bench.hand_in(3, &task), refused(&task, TaskNotOpen));
}

#[test]
fn late_results_are_drawn_in_the_round_that_they_count_in_and_computed_again_from_their_own_base() {
    let mut bench = Bench::audited(3, 3);
    bench.do_next(1);
    bench.do_next(2);
    let task = bench.lease(3);
    bench.judge_cheap();
    bench.close_at_deadline();
    bench.finish_aggregation();
    bench.hand_in(3, &task);
    for worker in [1, 2, 4] {
        bench.do_next(worker);
    }
    bench.judge_cheap();
    assert!(bench.rounds.state().closed);
    bench.finish_aggregation();
    let job = bench.replays().into_iter().find(|job| job.task.id() == task.id()).unwrap();
    assert_eq!(job.task, task);
    bench.opine(100, &job, true);
    bench = bench.crash();
    let drawn = bench.rounds.state().draw_of(Round(1)).unwrap();
    let mine = drawn.results.iter().find(|result| result.task == task.id()).unwrap();
    assert_eq!((mine.ending, mine.verdicts.len()), (Some(Ending::Clean), 1));
    assert!(bench.rounds.state().draw_of(Round(0)).unwrap().results.iter().all(|result| result.task != task.id()));
}

impl Bench {
    fn restored_from_records(self) -> Self {
        Self::restored(self.rounds.state().spec().clone(), self.records, None, self.now)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However rounds close early and late, with crashes in between: each task is paid and averaged once at most, for as
    /// much as its lateness leaves of it.
    #[test]
    fn a_task_counts_once_for_what_its_lateness_leaves(
        moves in prop::collection::vec((0u8..8, 1u8..6), 1..160),
    ) {
        let mut bench = Bench::new(3, None);
        let mut held: BTreeMap<u8, Task> = BTreeMap::new();
        let (mut counted, mut rounds) = (BTreeSet::new(), BTreeSet::new());
        for (action, worker) in moves {
            match action {
                0 | 1 => {
                    if let Some(WorkerReply::Leased(lease)) =
                        bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 1 })
                    {
                        held.insert(worker, lease.task);
                    }
                }
                2 | 3 => {
                    if let Some(task) = held.get(&worker) {
                        bench.hand_in(worker, task);
                    }
                }
                4 => bench.judge_cheap(),
                5 => {
                    bench.now = bench.now + Duration::from_mins(5);
                    bench.step(Event::Wake);
                    bench.judge_cheap();
                }
                6 if bench.rounds.state().closed => bench.finish_aggregation(),
                6 => {}
                _ => bench = bench.crash(),
            }
            for effect in std::mem::take(&mut bench.effects) {
                match effect {
                    Effect::Pay { round, verdicts } if rounds.insert(round) => {
                        for verdict in verdicts {
                            let (_, verdict) = verdict.open::<Verdict>().unwrap();
                            prop_assert!(counted.insert(verdict.task), "a task was paid for twice");
                            let Outcome::Accepted { tokens, .. } = verdict.outcome else { panic!("{verdict:?}") };
                            let own = (0..3).any(|index| {
                                let base = bench.rounds.state().lineage()[round.0 as usize].digest;
                                Task::of_round(bench.rounds.state().spec(), round, index, base).id() == verdict.task
                            });
                            prop_assert_eq!(tokens == TOKENS, own);
                            prop_assert!(tokens >= TOKENS >> limits::LATE_ROUNDS_MAX);
                        }
                    }
                    Effect::Judge(job) => bench.effects.push(Effect::Judge(job)),
                    _ => {}
                }
            }
        }
    }
}
