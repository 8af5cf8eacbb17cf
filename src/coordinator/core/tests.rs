mod audits;
mod late;
mod sizes;
mod stuck;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::coordinator::Ending;
use crate::coordinator::slots::Stage;
use crate::protocol::{
    Amount, AuditPolicy, Auditors, Audits, Commitment, Digest, Layer, Outcome, Parting, Ppm, Reason, RefusalReason,
    RunSpec, Seed, ShortTasks, Signed, Submission, Task, TaskId, Trail, Verdict, WorkerReply, WorkerRequest,
};
use crate::testing::{self, key};
use crate::verifier::{Candidate, Job, ReplayJob};

const VERIFIER: u8 = 100;

/// A coordinator, and what it has asked for so far. Replies are tagged with the number of the request.
struct Bench {
    rounds: Rounds<u32>,
    now: Time,
    records: Vec<Record>,
    effects: Vec<Effect<u32>>,
    requests: u32,
}

impl Bench {
    fn new(tasks: u32, end: Option<u32>) -> Self {
        let base = Digest::of(b"model 0");
        let records = vec![Record::RoundOpened { round: Round(0), base, momentum: None, at: Time(0) }];
        let mut bench = Self::restored(testing::spec(tasks), records, end, Time(0));
        bench.step(Event::Started);
        bench.effects.clear();
        bench
    }

    /// One in which everything is audited, by so many verifiers.
    fn audited(tasks: u32, verifiers: u8) -> Self {
        Self::audited_by(Auditors::Verifiers, tasks, verifiers)
    }

    fn audited_by(by: Auditors, tasks: u32, verifiers: u8) -> Self {
        Self::with_probation(1000, by, tasks, verifiers)
    }

    /// One in which workers are established after so many results, and everything is audited all the same.
    fn with_probation(probation: u32, by: Auditors, tasks: u32, verifiers: u8) -> Self {
        Self::with_policy(AuditPolicy { probation, decay: 1, floor: Ppm::ONE }, by, tasks, verifiers)
    }

    fn with_policy(policy: AuditPolicy, by: Auditors, tasks: u32, verifiers: u8) -> Self {
        let audits = Some(Audits { policy, by, anchor: secrets().anchor() });
        let base = Digest::of(b"model 0");
        let records = vec![Record::RoundOpened { round: Round(0), base, momentum: None, at: Time(0) }];
        let spec = RunSpec { audits, ..testing::spec(tasks) };
        let mut bench = Self::with_verifiers(spec, records, None, Time(0), verifiers);
        bench.step(Event::Started);
        bench.effects.clear();
        bench
    }

    /// One whose rounds have so many tasks, the last of which are short.
    fn sized(tasks: u32, short: u32) -> Self {
        let short = Some(ShortTasks { tasks: short, target: Duration::from_secs(10) });
        let base = Digest::of(b"model 0");
        let records = vec![Record::RoundOpened { round: Round(0), base, momentum: None, at: Time(0) }];
        let mut bench = Self::restored(RunSpec { short, ..testing::spec(tasks) }, records, None, Time(0));
        bench.step(Event::Started);
        bench.effects.clear();
        bench
    }

    fn restored(spec: RunSpec, records: Vec<Record>, end: Option<u32>, now: Time) -> Self {
        Self::with_verifiers(spec, records, end, now, 1)
    }

    fn with_verifiers(spec: RunSpec, records: Vec<Record>, end: Option<u32>, now: Time, count: u8) -> Self {
        let secrets = spec.audits.is_some().then(secrets);
        let state = State::replay(spec, records.clone());
        let verifiers = (VERIFIER..VERIFIER + count).map(|n| key(n).public()).collect();
        let rounds = Rounds::new(state, verifiers, secrets, end.map(Round));
        Self { rounds, now, records, effects: Vec::new(), requests: 0 }
    }

    /// The same coordinator after a crash: only its records are left.
    fn crash(self) -> Self {
        let end = self.rounds.end.map(|end| end.0);
        let live = self.rounds.state().clone();
        let count = self.rounds.verifiers.len() as u8;
        let mut again = Self::with_verifiers(live.spec().clone(), self.records, end, self.now, count);
        assert_eq!(*again.rounds.state(), live, "what is on disk is not what was in memory");
        again.step(Event::Started);
        again
    }

    fn step(&mut self, event: Event<u32>) {
        for effect in self.rounds.step(self.now, event) {
            match effect {
                Effect::Persist(records) => self.records.extend(records),
                other => self.effects.push(other),
            }
        }
    }

    fn ask(&mut self, worker: u8, request: &WorkerRequest) -> Option<WorkerReply> {
        self.requests += 1;
        let reply = self.requests;
        self.step(Event::Request { request: Signed::seal(&key(worker), request), reply });
        self.answer_to(reply)
    }

    fn answer_to(&self, request: u32) -> Option<WorkerReply> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Reply { reply, body } if *reply == request => Some(body.clone()),
            _ => None,
        })
    }

    fn lease(&mut self, worker: u8) -> Task {
        match self.ask(worker, &WorkerRequest::Lease { tokens_per_second: 0 }) {
            Some(WorkerReply::Leased(lease)) => lease.task,
            other => panic!("worker {worker} was to get a lease, not {other:?}"),
        }
    }

    fn hand_in(&mut self, worker: u8, task: &Task) -> Option<WorkerReply> {
        let submission = submission(task, worker);
        match self.ask(worker, &WorkerRequest::Commit(submission.commitment)) {
            Some(WorkerReply::Committed(_)) => self.ask(worker, &WorkerRequest::Submit(submission)),
            refused => refused,
        }
    }

    fn jobs(&mut self) -> Vec<Job> {
        let effects = std::mem::take(&mut self.effects);
        let (jobs, rest) = effects.into_iter().partition(|effect| matches!(effect, Effect::Judge(_)));
        self.effects = rest;
        jobs.into_iter().filter_map(|job| if let Effect::Judge(job) = job { Some(job) } else { None }).collect()
    }

    /// Judges everything that waits for it; `accept` says whose work passes.
    fn judge(&mut self, accept: impl Fn(PublicKey) -> bool) {
        loop {
            let jobs = self.jobs();
            if jobs.is_empty() {
                return;
            }
            for job in jobs {
                let verdicts = verdicts(&job, &accept);
                self.step(Event::Verdicts(verdicts));
            }
        }
    }

    /// Every round so far, with a worker for each task, up to the point where the audits of the last are owed.
    fn work(&mut self, rounds: u32) -> Vec<Task> {
        let mut tasks = Vec::new();
        for _ in 0..rounds {
            let workers = 1..=self.rounds.state().spec().tasks_per_round as u8;
            let leased: Vec<Task> = workers.clone().map(|worker| self.lease(worker)).collect();
            for (worker, task) in workers.zip(&leased) {
                self.hand_in(worker, task);
            }
            tasks.extend(leased);
            self.judge_cheap();
            self.finish_aggregation();
        }
        tasks
    }

    /// Judges all but replays, which are left to be taken by [`Bench::replays`].
    fn judge_cheap(&mut self) {
        loop {
            let (again, jobs): (Vec<_>, Vec<_>) =
                self.jobs().into_iter().partition(|job| matches!(job, Job::Replay(_) | Job::Copies(_)));
            self.effects.extend(again.into_iter().map(Effect::Judge));
            if jobs.is_empty() {
                return;
            }
            for job in jobs {
                let verdicts = verdicts(&job, &|_| true);
                self.step(Event::Verdicts(verdicts));
            }
        }
    }

    fn replays(&mut self) -> Vec<ReplayJob> {
        let jobs = self.jobs().into_iter();
        jobs.filter_map(|job| if let Job::Replay(job) = job { Some(*job) } else { None }).collect()
    }

    /// Verifier `verifier` says of a replay that it is `clean`, or not.
    fn opine(&mut self, verifier: u8, job: &ReplayJob, clean: bool) {
        self.step(Event::Verdicts(vec![opinion(verifier, job, clean)]));
    }

    /// Compares the copies that were handed in; `alike` says whether those of these two workers agree.
    fn compare_copies(&mut self, alike: impl Fn(PublicKey, PublicKey) -> bool) {
        for job in self.jobs() {
            let Job::Copies(job) = job else { continue };
            let (tokens, layer) = (job.task.tokens(), Layer::Replay);
            let outcome = if alike(job.worker, job.peer) {
                Outcome::Accepted { layer, tokens, norm: 1.0 }
            } else {
                let with = job.against.iter().map(|(other, ..)| *other).find(|other| alike(*other, job.peer));
                let alone = Reason::ReplayMismatch { distance: 1.0, tolerance: 0.1, parting: Parting::Unknown };
                Outcome::Rejected { layer, reason: with.map_or(alone, |with| Reason::Outvoted { with }) }
            };
            let (task, worker, payload, by) = (job.task.id(), job.worker, job.payload, Some(job.peer));
            let verdict = Verdict { task, worker, payload, work: tokens, by, turn: 0, outcome };
            self.step(Event::Verdicts(vec![Signed::seal(&key(VERIFIER), &verdict)]));
        }
    }

    fn records_of(&self, wanted: fn(&Record) -> bool) -> usize {
        self.records.iter().filter(|record| wanted(record)).count()
    }

    fn ending_of(&self, job: &ReplayJob) -> Option<Ending> {
        let id = (job.task.id(), job.payload);
        self.records.iter().find_map(|record| match record {
            Record::AuditEnded { case, ending } if *case == id => Some(*ending),
            _ => None,
        })
    }

    fn count(&self, wanted: fn(&Effect<u32>) -> bool) -> usize {
        self.effects.iter().filter(|effect| wanted(effect)).count()
    }

    fn finish_aggregation(&mut self) {
        let round = self.rounds.state().round();
        let model = Digest::of(format!("model {}", round.0 + 1).as_bytes());
        self.step(Event::Aggregated { round, model, momentum: None, left_out: vec![] });
    }
}

fn secrets() -> SecretChain {
    SecretChain::new(&Seed::from_number(9), 100)
}

fn opinion(verifier: u8, job: &ReplayJob, clean: bool) -> Signed {
    let tokens = job.task.tokens();
    let outcome = if clean {
        Outcome::Accepted { layer: Layer::Replay, tokens, norm: 1.0 }
    } else {
        let parting = Parting::Steps { first: 2, last: 3 };
        let reason = Reason::ReplayMismatch { distance: 1.0, tolerance: 0.1, parting };
        Outcome::Rejected { layer: Layer::Replay, reason }
    };
    let ReplayJob { worker, payload, turn, .. } = *job;
    let verdict = Verdict { task: job.task.id(), worker, payload, work: tokens, by: None, turn, outcome };
    Signed::seal(&key(verifier), &verdict)
}

fn submission(task: &Task, worker: u8) -> Submission {
    let payload = Digest::of(&[&[worker], task.id().0.as_bytes().as_slice()].concat());
    let trail = Trail { states: vec![task.id().0; 4], ..testing::trail(4) };
    Submission::new(task.id(), payload, vec![1.0; 4], trail, task.tokens())
}

fn verdicts(job: &Job, accept: &impl Fn(PublicKey) -> bool) -> Vec<Signed> {
    let (layer, judged): (_, Vec<(TaskId, PublicKey, Digest, u64)>) = match job {
        Job::Admission(job) => {
            let payload = job.submission.commitment.payload;
            (Layer::Admission, vec![(job.task.id(), job.worker, payload, job.task.tokens())])
        }
        Job::Statistics(job) => {
            let candidate = |c: &Candidate| (c.task.id(), c.worker, c.payload, c.tokens());
            (Layer::Statistics, job.candidates.iter().map(candidate).collect())
        }
        Job::Replay(job) => (Layer::Replay, vec![(job.task.id(), job.worker, job.payload, job.task.tokens())]),
        Job::Copies(_) => panic!("copies are judged one by one"),
    };
    judged
        .into_iter()
        .map(|(task, worker, payload, tokens)| {
            let outcome = if accept(worker) {
                Outcome::Accepted { layer, tokens, norm: 1.0 }
            } else {
                Outcome::Rejected { layer, reason: Reason::NotFinite }
            };
            Signed::seal(&key(VERIFIER), &Verdict { task, worker, payload, work: 0, by: None, turn: 0, outcome })
        })
        .collect()
}

#[test]
fn a_round_goes_from_leases_to_the_next_base_model() {
    let mut bench = Bench::new(2, None);
    let (first, second) = (bench.lease(1), bench.lease(2));
    assert_eq!((first.index, second.index), (0, 1));
    assert_eq!(bench.hand_in(1, &first), Some(WorkerReply::Received(first.id())));
    assert_eq!(bench.hand_in(2, &second), Some(WorkerReply::Received(second.id())));
    bench.judge(|_| true);
    let paid = bench.effects.iter().find_map(|effect| match effect {
        Effect::Pay { round, verdicts } => Some((*round, verdicts.len())),
        _ => None,
    });
    assert_eq!(paid, Some((Round(0), 2)));
    let updates = bench.effects.iter().find_map(|effect| match effect {
        Effect::Aggregate { updates, .. } => Some(updates.clone()),
        _ => None,
    });
    let payload = |task, worker| (submission(task, worker).commitment.payload, 64);
    assert_eq!(updates, Some(vec![payload(&first, 1), payload(&second, 2)]));
    bench.finish_aggregation();
    let state = bench.rounds.state();
    assert_eq!((state.round(), state.tokens(), state.lineage().len()), (Round(1), 128, 2));
    assert_eq!(bench.lease(1).round, Round(1));
}

#[test]
fn the_tasks_of_a_round_do_not_depend_on_who_asks_or_when() {
    let tasks = |order: [u8; 2]| {
        let mut bench = Bench::new(2, None);
        order.map(|worker| bench.lease(worker)).map(|task| task.id())
    };
    assert_eq!(tasks([1, 2]), tasks([7, 3]));
}

#[test]
fn a_worker_that_asks_again_gets_the_task_it_holds() {
    let mut bench = Bench::new(2, None);
    let task = bench.lease(1);
    assert_eq!(bench.lease(1), task);
    assert_eq!(bench.lease(2).index, 1);
}

#[test]
fn a_request_for_work_waits_until_there_is_some_or_its_time_is_up() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    assert_eq!(bench.ask(2, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
    let waiting = bench.requests;
    bench.hand_in(1, &task);
    bench.judge(|_| true);
    bench.finish_aggregation();
    assert!(matches!(bench.answer_to(waiting), Some(WorkerReply::Leased(lease)) if lease.task.round == Round(1)));

    assert_eq!(bench.ask(3, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
    let waiting = bench.requests;
    bench.now = bench.now + LONG_POLL;
    bench.step(Event::Wake);
    assert_eq!(bench.answer_to(waiting), Some(WorkerReply::Wait));
}

#[test]
fn an_expired_lease_goes_to_another_and_the_first_to_hand_in_counts() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    assert_eq!(bench.ask(2, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
    bench.now = bench.now + bench.rounds.state().spec().timing.lease;
    bench.step(Event::Wake);
    let lent = |effect: &Effect<u32>| matches!(effect, Effect::Reply { body: WorkerReply::Leased(lease), .. } if lease.task.index == 0);
    assert_eq!(bench.count(lent), 2);
    assert_eq!(bench.hand_in(1, &task), Some(WorkerReply::Received(task.id())), "late, but first");
    let refused = WorkerReply::Refused { task: Some(task.id()), reason: RefusalReason::AlreadySubmitted };
    assert_eq!(bench.hand_in(2, &task), Some(refused));
}

#[test]
fn a_heartbeat_renews_a_lease_until_somebody_else_has_it() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    let lease = bench.rounds.state().spec().timing.lease;
    for _ in 0..3 {
        bench.now = bench.now + lease * 2 / 3;
        assert_eq!(bench.ask(1, &WorkerRequest::Heartbeat(task.id())), Some(WorkerReply::Received(task.id())));
        assert_eq!(bench.ask(2, &WorkerRequest::Lease { tokens_per_second: 0 }), None, "it is not free");
    }
    let stranger = bench.ask(2, &WorkerRequest::Heartbeat(task.id()));
    let refused = |reason| Some(WorkerReply::Refused { task: Some(task.id()), reason });
    assert_eq!(stranger, refused(RefusalReason::NotYourTask));
    bench.now = bench.now + lease;
    assert_eq!(bench.lease(2), task);
    let before = bench.records.len();
    assert_eq!(bench.ask(1, &WorkerRequest::Heartbeat(task.id())), Some(WorkerReply::Received(task.id())));
    assert_eq!(bench.records.len(), before, "but it may still be first");
    bench.hand_in(2, &task);
    assert_eq!(bench.ask(1, &WorkerRequest::Heartbeat(task.id())), refused(RefusalReason::AlreadySubmitted));
}

#[test]
fn a_lease_that_is_renewed_without_end_comes_to_an_end_also_when_the_round_is_extended() {
    let mut bench = Bench::new(2, None);
    let task = bench.lease(1);
    let lease = bench.rounds.state().spec().timing.lease;
    let last = bench.now + lease * limits::LEASES_HELD_MAX;
    while bench.now < last {
        assert!(bench.rounds.holds(bench.now, &key(1).public()));
        bench.now = (bench.now + lease * 2 / 3).min(last);
        bench.ask(1, &WorkerRequest::Heartbeat(task.id()));
    }
    assert!(bench.records_of(|record| matches!(record, Record::Extended { .. })) > 0);
    assert!(!bench.rounds.holds(bench.now, &key(1).public()));
    assert_ne!(bench.lease(1).id(), task.id(), "others first");
    bench = bench.crash();
    assert_eq!(bench.lease(2).id(), task.id());
    assert_eq!(bench.hand_in(1, &task), Some(WorkerReply::Received(task.id())), "it may still be first");
}

#[test]
fn nobody_renews_two_leases_at_a_time() {
    let mut bench = Bench::new(2, None);
    let first = bench.lease(1);
    bench.now = bench.now + bench.rounds.state().spec().timing.lease;
    let second = bench.lease(1);
    let (left, other) = if second.id() == first.id() { panic!("the other was free") } else { (first, second) };
    let before = bench.records.len();
    assert_eq!(bench.ask(1, &WorkerRequest::Heartbeat(left.id())), Some(WorkerReply::Received(left.id())));
    assert_eq!(bench.records.len(), before);
    bench.now = bench.now + Duration::from_secs(1);
    bench.ask(1, &WorkerRequest::Heartbeat(other.id()));
    assert_eq!(bench.records.len(), before + 1);
    assert_eq!(bench.lease(2).id(), left.id());
}

#[test]
fn nobody_can_hand_in_what_is_not_theirs_or_was_not_committed() {
    let mut bench = Bench::new(2, None);
    let task = bench.lease(1);
    let refusal = |reply: Option<WorkerReply>| match reply {
        Some(WorkerReply::Refused { reason, .. }) => Some(reason),
        _ => None,
    };
    let mine = submission(&task, 1);
    let reply = bench.ask(1, &WorkerRequest::Submit(mine.clone()));
    assert_eq!(refusal(reply), Some(RefusalReason::CommitmentMissing));
    let reply = bench.ask(2, &WorkerRequest::Commit(mine.commitment));
    assert_eq!(refusal(reply), Some(RefusalReason::NotYourTask));
    bench.ask(1, &WorkerRequest::Commit(mine.commitment));
    let other = submission(&task, 9);
    let reply = bench.ask(1, &WorkerRequest::Commit(other.commitment));
    assert_eq!(refusal(reply), Some(RefusalReason::CommitmentDiffers));
    let reply = bench.ask(1, &WorkerRequest::Submit(other));
    assert_eq!(refusal(reply), Some(RefusalReason::CommitmentDiffers));
    let stale = Submission::new(TaskId(Digest::of(b"stale")), Digest::of(b"x"), vec![], testing::trail(0), 0);
    let reply = bench.ask(1, &WorkerRequest::Submit(stale));
    assert_eq!(refusal(reply), Some(RefusalReason::TaskNotOpen));
    let verdict = Signed::seal(
        &key(1),
        &Verdict {
            task: task.id(),
            worker: key(1).public(),
            payload: mine.commitment.payload,
            work: 64,
            by: None,
            turn: 0,
            outcome: Outcome::Accepted { layer: Layer::Replay, tokens: 64, norm: 1.0 },
        },
    );
    bench.requests += 1;
    let reply = bench.requests;
    bench.step(Event::Request { request: verdict, reply });
    assert_eq!(refusal(bench.answer_to(reply)), Some(RefusalReason::Signature), "another kind of message");
}

#[test]
fn every_request_can_be_repeated_without_a_second_effect() {
    let mut bench = Bench::new(2, None);
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    let before = bench.records.len();
    assert_eq!(bench.hand_in(1, &task), Some(WorkerReply::Received(task.id())));
    assert_eq!(bench.records.len(), before);
    assert_eq!(bench.jobs().len(), 1);
}

#[test]
fn rejected_work_opens_its_task_to_others_and_is_not_paid() {
    let mut bench = Bench::new(2, None);
    let (first, second) = (bench.lease(1), bench.lease(2));
    bench.hand_in(1, &first);
    bench.hand_in(2, &second);
    bench.judge(|worker| worker != key(1).public());
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 0);
    assert_eq!(bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 }), None, "not lent to the same worker");
    assert_eq!(bench.lease(3).index, 0);
    bench.hand_in(3, &first);
    bench.judge(|_| true);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 1);
    let workers = bench.rounds.state().workers();
    assert_eq!([1, 2, 3].map(|n| workers[&key(n).public()].accepted), [0, 1, 1]);
    assert_eq!(workers[&key(1).public()].rejected, 1);
}

#[test]
fn verdicts_of_strangers_or_on_other_work_change_nothing() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    let payload = submission(&task, 1).commitment.payload;
    let outcome = Outcome::Accepted { layer: Layer::Admission, tokens: 64, norm: 1.0 };
    let sound = Verdict { task: task.id(), worker: key(1).public(), payload, work: 0, by: None, turn: 0, outcome };
    let before = bench.records.len();
    let of = |signer: u8, verdict: Verdict| Signed::seal(&key(signer), &verdict);
    let (mut worker, mut work) = (sound.clone(), sound.clone());
    worker.worker = key(2).public();
    work.payload = Digest::of(b"other");
    bench.step(Event::Verdicts(vec![of(1, sound.clone()), of(VERIFIER, worker), of(VERIFIER, work)]));
    assert_eq!(bench.records.len(), before);
    bench.step(Event::Verdicts(vec![of(VERIFIER, sound)]));
    assert_eq!(bench.records.len(), before + 1);
}

#[test]
fn at_its_deadline_a_round_closes_with_a_quorum_or_goes_on_without() {
    let mut bench = Bench::new(3, None);
    let first = bench.lease(1);
    bench.hand_in(1, &first);
    bench.judge(|_| true);
    bench.now = bench.now + bench.rounds.state().spec().timing.round;
    bench.step(Event::Wake);
    bench.judge(|_| true);
    assert!(!bench.rounds.state().closed, "one of three is no quorum");
    let second = bench.lease(2);
    bench.hand_in(2, &second);
    bench.now = bench.now + bench.rounds.state().spec().timing.round;
    bench.step(Event::Wake);
    bench.judge(|_| true);
    assert!(bench.rounds.state().closed);
    bench.finish_aggregation();
    assert_eq!(bench.rounds.state().tokens(), 128);
}

#[test]
fn a_run_is_finished_when_its_last_round_is_paid_and_measured() {
    let mut bench = Bench::new(1, Some(1));
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    bench.judge(|_| true);
    bench.finish_aggregation();
    let finished = |effect: &Effect<u32>| *effect == Effect::Report(Report::Finished);
    assert_eq!(bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 }), Some(WorkerReply::Finished));
    bench.step(Event::Evaluated { round: Round(1), loss: 2.0 });
    assert_eq!(bench.count(finished), 0);
    bench.step(Event::RoundPaid { round: Round(0), pays: vec![(key(1).public(), Amount::from_hyd(5))] });
    bench.step(Event::RoundPaid { round: Round(0), pays: vec![(key(1).public(), Amount::from_hyd(5))] });
    assert_eq!(bench.count(finished), 1);
    assert_eq!(bench.rounds.state().workers()[&key(1).public()].pay, Amount::from_hyd(5));
}

#[test]
fn blobs_are_forgotten_only_when_nothing_needs_them() {
    let mut bench = Bench::new(1, None);
    let mut payloads = BTreeMap::new();
    for round in 0..5 {
        let task = bench.lease(1);
        payloads.insert(round, submission(&task, 1).commitment.payload);
        bench.hand_in(1, &task);
        bench.judge(|_| true);
        bench.finish_aggregation();
        bench.step(Event::Evaluated { round: Round(round + 1), loss: 1.0 });
    }
    let forgotten: Vec<Digest> = bench
        .effects
        .iter()
        .filter_map(|effect| if let Effect::Forget(blobs) = effect { Some(blobs.clone()) } else { None })
        .flatten()
        .collect();
    let model = |n: u32| Digest::of(format!("model {n}").as_bytes());
    assert!(payloads.values().all(|payload| forgotten.contains(payload)));
    for kept in 0..limits::MODELS_KEPT {
        assert!(!forgotten.contains(&model(5 - kept)));
    }
    assert!((0..=5 - limits::MODELS_KEPT).all(|old| forgotten.contains(&model(old))));
}

#[test]
fn a_verifier_or_ledger_that_does_not_answer_is_asked_again() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    assert_eq!(bench.jobs().len(), 1);
    bench.now = bench.now + ASK_AGAIN;
    bench.step(Event::Wake);
    bench.judge(|_| true);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 1);
    bench.now = bench.now + ASK_AGAIN;
    bench.step(Event::Wake);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 2);
    bench.step(Event::RoundPaid { round: Round(0), pays: vec![] });
    bench.now = bench.now + ASK_AGAIN;
    bench.step(Event::Wake);
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Pay { .. })), 2);
}

#[test]
fn payloads_that_could_not_be_used_are_told_of() {
    let mut bench = Bench::new(1, None);
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    bench.judge(|_| true);
    let (model, payload) = (Digest::of(b"model 0"), submission(&task, 1).commitment.payload);
    bench.effects.clear();
    bench.step(Event::Aggregated { round: Round(0), model, momentum: None, left_out: vec![payload] });
    assert_eq!(bench.effects[0], Effect::Report(Report::LeftOut { round: Round(0), payload }));
    assert_eq!(bench.lease(1).round, Round(1), "the run goes on");
    let forgotten =
        |effect: &Effect<u32>| matches!(effect, Effect::Forget(blobs) if blobs.contains(&Digest::of(b"model 0")));
    assert_eq!(bench.count(forgotten), 0, "from the same model");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Random workers, good and bad, losing replies, repeating themselves, and a coordinator that is killed at
    /// random: the run goes on from its records, and nothing is paid twice.
    #[test]
    fn a_run_survives_any_history_of_crashes_and_pays_each_task_once(
        moves in prop::collection::vec((0u8..8, 0u8..4), 1..120),
    ) {
        let mut bench = Bench::new(3, None);
        let mut pays: BTreeMap<Round, Vec<Signed>> = BTreeMap::new();
        for (action, worker) in moves {
            match action {
                0 | 1 => { bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 1 }); }
                2 | 3 => {
                    let held = bench.rounds.state().slots.iter().find(|slot| {
                        slot.stage == Stage::Open && slot.leases.contains_key(&key(worker).public())
                    });
                    if let Some(task) = held.map(|slot| slot.task.clone()) {
                        bench.hand_in(worker, &task);
                    }
                }
                4 => bench.judge(|judged| judged != key(0).public()),
                5 => {
                    if bench.rounds.state().closed {
                        bench.finish_aggregation();
                    }
                }
                6 => {
                    bench.now = bench.now + Duration::from_secs(90);
                    bench.step(Event::Wake);
                }
                _ => bench = bench.crash(),
            }
            let asked: Vec<_> = bench.effects.iter().filter_map(|effect| match effect {
                Effect::Pay { round, verdicts } => Some((*round, verdicts.clone())),
                _ => None,
            }).collect();
            for (round, verdicts) in asked {
                let first = pays.entry(round).or_insert_with(|| verdicts.clone());
                prop_assert_eq!(&*first, &verdicts, "a round was paid in two ways");
                let workers = [0].map(|bad| key(bad).public());
                for verdict in &verdicts {
                    let (_, verdict) = verdict.open::<Verdict>().unwrap();
                    prop_assert!(!workers.contains(&verdict.worker), "rejected work was paid");
                }
                bench.step(Event::RoundPaid { round, pays: vec![] });
            }
        }
        // Whatever happened, honest workers who stay bring the round to its end.
        bench = bench.crash();
        let round = bench.rounds.state().round();
        for patience in 0..20u64 {
            bench.now = bench.now + Duration::from_secs(100 * (patience + 1));
            bench.step(Event::Wake);
            for worker in 1..4 {
                if let Some(WorkerReply::Leased(lease)) =
                    bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 1 })
                {
                    bench.hand_in(worker, &lease.task);
                }
            }
            bench.judge(|judged| judged != key(0).public());
            if bench.rounds.state().closed {
                bench.finish_aggregation();
            }
        }
        prop_assert!(bench.rounds.state().round() > round, "the run is stuck in round {}", round.0);
    }
}
