use super::*;

impl Bench {
    /// Everybody asks for work and gets none.
    fn all_ask(&mut self, workers: &[u8]) {
        for worker in workers {
            assert_eq!(self.ask(*worker, &WorkerRequest::Lease { tokens_per_second: 0 }), None, "worker {worker}");
        }
    }

    fn wait_until_stuck(&mut self) {
        self.now = self.now + STUCK_AFTER;
        self.step(Event::Wake);
    }
}

#[test]
fn a_round_that_nobody_can_end_says_so_once_and_is_tried_again_at_its_deadline() {
    let mut bench = Bench::new(2, None);
    for (worker, other) in [(1, 2), (2, 1)] {
        let (mine, theirs) = (bench.lease(worker), bench.lease(other));
        bench.hand_in(worker, &mine);
        bench.hand_in(other, &theirs);
        bench.judge(|_| false);
    }
    bench.all_ask(&[1, 2]);
    let told = |effect: &Effect<u32>| matches!(effect, Effect::Report(Report::Stuck { tasks: 2, reason: Some(_), .. }));
    assert_eq!(bench.count(told), 0, "somebody may still come");
    assert!(bench.rounds.wake_at.is_some_and(|at| at <= bench.now + STUCK_AFTER));
    bench.wait_until_stuck();
    bench.wait_until_stuck();
    assert_eq!(bench.count(told), 1);
    assert!(!bench.rounds.state().closed);
    bench.now = bench.now + bench.rounds.state().spec().timing.round;
    bench.step(Event::Wake);
    bench.lease(1);
}

#[test]
fn a_round_with_a_quorum_does_not_wait_for_a_task_that_nobody_may_have() {
    let mut bench = Bench::new(3, None);
    let tasks: Vec<Task> = (1..4).map(|worker| bench.lease(worker)).collect();
    for (worker, task) in (1..).zip(&tasks) {
        bench.hand_in(worker, task);
    }
    bench.judge(|worker| worker != key(3).public());
    for worker in [1, 2] {
        assert_eq!(bench.lease(worker).id(), tasks[2].id());
        bench.hand_in(worker, &tasks[2]);
        bench.judge(|_| false);
    }
    bench.all_ask(&[1, 2, 3]);
    bench.wait_until_stuck();
    bench.judge(|_| true);
    assert!(bench.rounds.state().closed);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Report(Report::Stuck { .. }))), 0);
}

#[test]
fn a_round_that_somebody_may_still_do_is_not_given_up() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    bench.judge(|_| false);
    bench.all_ask(&[1]);
    bench.now = bench.now + Duration::from_secs(5);
    assert_eq!(bench.lease(2).id(), task.id(), "a newcomer has it");
    bench.wait_until_stuck();
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Report(Report::Stuck { .. }))), 0);
}

#[test]
fn a_round_does_not_close_over_a_late_result_that_is_being_judged() {
    let mut bench = Bench::new(3, None);
    for worker in [1, 2] {
        let task = bench.lease(worker);
        bench.hand_in(worker, &task);
    }
    let late = bench.lease(3);
    bench.judge(|_| true);
    bench.now = bench.now + bench.rounds.state().spec().timing.round;
    bench.step(Event::Wake);
    bench.judge(|_| true);
    bench.finish_aggregation();
    // Of the next round one task is left, which nobody may have.
    let tasks: Vec<Task> = [1, 2, 4].map(|worker| bench.lease(worker)).into();
    for (worker, task) in [1, 2, 4].iter().zip(&tasks) {
        bench.hand_in(*worker, task);
    }
    bench.judge(|worker| worker != key(4).public());
    for worker in [1, 2, 3] {
        let task = bench.lease(worker);
        assert_eq!(task.id(), tasks[2].id());
        bench.hand_in(worker, &task);
        bench.judge(|_| false);
    }
    bench.all_ask(&[1, 2, 3, 4]);
    bench.wait_until_stuck();
    // While what is to count is compared, one more comes.
    let comparison = bench.jobs();
    assert!(matches!(comparison[..], [Job::Statistics(_)]), "{comparison:?}");
    assert_eq!(bench.hand_in(3, &late), Some(WorkerReply::Received(late.id())));
    bench.step(Event::Verdicts(verdicts(&comparison[0], &|_| true)));
    assert!(!bench.rounds.state().closed, "whoever was told that it is received may rely on it");
    bench.judge(|_| true);
    bench.wait_until_stuck();
    bench.judge(|_| true);
    assert!(bench.rounds.state().closed);
    assert_eq!(bench.rounds.state().slots.late().accepted, 1);
}
