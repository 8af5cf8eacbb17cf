use super::*;
use crate::coordinator::audits::{Next, Opinion, Peer};
use crate::coordinator::{DrawnResult, RecheckError, recheck};

#[test]
fn a_result_that_verifiers_find_false_twice_costs_its_worker_everything_once_the_time_to_appeal_is_over() {
    let mut bench = Bench::audited(2, 3);
    bench.work(1);
    let jobs = bench.replays();
    let mine = jobs.iter().find(|job| job.worker == key(1).public()).unwrap().clone();
    bench.opine(100, &mine, false);
    assert!(!bench.rounds.state().workers()[&key(1).public()].banned, "one opinion is no proof");
    let second = bench.replays();
    assert_eq!(second.iter().map(|job| job.not.clone()).collect::<Vec<_>>(), [[key(100).public()]]);
    bench.opine(100, &mine, false);
    assert_eq!(bench.records_of(|record| matches!(record, Record::Opinion { .. })), 1, "it has spoken before");
    let task = bench.lease(1);
    bench.opine(101, &mine, false);
    assert!(bench.rounds.state().workers()[&key(1).public()].banned);
    let refused = |task| Some(WorkerReply::Refused { task: Some(task), reason: RefusalReason::Banned });
    assert_eq!(bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 }), refused(mine.task.id()));
    assert_eq!(bench.hand_in(1, &task), refused(task.id()));
    assert_eq!(bench.lease(3).id(), task.id(), "its work goes to others at once");
    assert_eq!(bench.count(|effect| matches!(effect, Effect::Forfeit { .. })), 0);
    bench = bench.crash();
    bench.now = bench.now + bench.rounds.state().spec().timing.appeal;
    bench.step(Event::Wake);
    assert_eq!(bench.ending_of(&mine), Some(Ending::False));
    let forfeits: Vec<Signed> = bench
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Forfeit { verdict } => Some(verdict.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(forfeits, [opinion(101, &mine, false)]);
    let (_, verdict) = forfeits[0].open::<Verdict>().unwrap();
    let worker = key(1).public();
    bench.step(Event::Forfeited { finding: verdict.finding(), worker, lost: Amount::from_hyd(3) });
    assert!(bench.rounds.state().forfeits.is_empty() && bench.rounds.state().workers()[&worker].banned);
}

/// The result of worker 1 in round 0, found false by verifiers 100 and 101 of `verifiers`, with its appeal.
fn appealed(verifiers: u8) -> (Bench, ReplayJob) {
    let mut bench = Bench::audited(1, verifiers);
    bench.work(1);
    let job = bench.replays().remove(0);
    let task = job.task.id();
    let refusal = |reason| Some(WorkerReply::Refused { task: Some(task), reason });
    assert_eq!(bench.ask(1, &WorkerRequest::Appeal(task)), refusal(RefusalReason::NothingToAppeal));
    bench.opine(100, &job, false);
    bench.opine(101, &job, false);
    bench.effects.clear();
    assert_eq!(bench.ask(2, &WorkerRequest::Appeal(task)), refusal(RefusalReason::NothingToAppeal), "not its own");
    assert_eq!(bench.ask(1, &WorkerRequest::Appeal(task)), Some(WorkerReply::Received(task)));
    assert_eq!(bench.replays()[0].not, [key(100).public(), key(101).public()]);
    bench.now = bench.now + bench.rounds.state().spec().timing.appeal;
    bench = bench.crash();
    assert_eq!(bench.ending_of(&job), None, "an appeal is waited for");
    (bench, job)
}

#[test]
fn an_appeal_goes_to_verifiers_that_have_not_judged_and_takes_as_many_as_convicted() {
    for (words, ending, faults) in [
        (vec![false], Ending::False, [0, 0, 0, 0]),
        (vec![true, true], Ending::Clean, [1, 1, 0, 0]),
        (vec![true, false], Ending::False, [0, 0, 1, 0]),
    ] {
        let (mut bench, job) = appealed(4);
        for (verifier, word) in (102..).zip(&words) {
            assert_eq!(bench.ending_of(&job), None);
            bench.opine(verifier, &job, *word);
        }
        assert_eq!(bench.ending_of(&job), Some(ending));
        assert_eq!(bench.rounds.state().workers()[&key(1).public()].banned, ending == Ending::False);
        let verifiers = bench.rounds.state().verifiers();
        let found = [100, 101, 102, 103].map(|n| verifiers.get(&key(n).public()).map_or(0, |record| record.faults));
        assert_eq!(found, faults, "{words:?}");
    }
}

#[test]
fn one_verifier_against_two_lets_a_worker_go_and_harms_no_other_verifier() {
    let (mut bench, job) = appealed(3);
    bench.opine(102, &job, true);
    assert_eq!(bench.ending_of(&job), Some(Ending::Unfinished));
    assert!(!bench.rounds.state().workers()[&key(1).public()].banned);
    assert!(bench.rounds.state().verifiers().values().all(|record| record.faults == 0));
}

#[test]
fn where_verifiers_disagree_the_third_decides_and_without_one_the_worker_keeps_its_pay() {
    let mut bench = Bench::audited(1, 3);
    bench.work(1);
    let job = bench.replays().remove(0);
    bench.opine(100, &job, false);
    bench.opine(101, &job, true);
    bench.opine(102, &job, true);
    assert_eq!(bench.ending_of(&job), Some(Ending::Clean));

    let mut bench = Bench::audited(1, 2);
    bench.work(1);
    let job = bench.replays().remove(0);
    bench.opine(100, &job, false);
    bench.opine(101, &job, true);
    bench.now = bench.now + limits::AUDIT_WITHIN;
    bench = bench.crash();
    bench.step(Event::Wake);
    assert_eq!(bench.ending_of(&job), Some(Ending::Unfinished));
    assert_eq!(bench.rounds.state().workers()[&key(1).public()].owed, 0);
}

#[test]
fn an_audit_that_nobody_takes_up_ends_in_the_workers_favour() {
    let mut bench = Bench::audited(2, 1);
    bench.work(1);
    let jobs = bench.replays();
    bench.now = bench.now + limits::AUDIT_WITHIN;
    bench.step(Event::Wake);
    assert!(jobs.iter().all(|job| bench.ending_of(job) == Some(Ending::Unfinished)));
}

#[test]
fn a_worker_with_many_audits_owed_gets_no_more_work_until_some_are_done() {
    let mut bench = Bench::audited(1, 1);
    bench.work(limits::AUDITS_OWED_MAX);
    assert_eq!(bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 }), None);
    let waiting = bench.requests;
    let job = bench.replays().remove(0);
    bench.opine(VERIFIER, &job, true);
    assert!(matches!(bench.answer_to(waiting), Some(WorkerReply::Leased(_))));
}

#[test]
fn a_new_key_is_lent_no_more_of_a_round_than_audits_may_be_owed_unless_nobody_is_at_the_rest() {
    let most = limits::AUDITS_OWED_MAX;
    let mut bench = Bench::with_probation(1, Auditors::Verifiers, 3 * most, 1);
    let flood = |bench: &mut Bench, worker: u8| {
        for done in 0.. {
            match bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 0 }) {
                Some(WorkerReply::Leased(lease)) => bench.hand_in(worker, &lease.task),
                _ => return done,
            };
            bench.judge_cheap();
        }
        unreachable!("a round is finite")
    };
    let other = bench.lease(2);
    assert_eq!(flood(&mut bench, 1), most);
    bench.now = bench.now + STUCK_AFTER;
    bench.step(Event::Wake);
    assert_eq!(flood(&mut bench, 1), 0, "somebody is at it");
    bench.hand_in(2, &other);
    assert_eq!(flood(&mut bench, 2), most - 1);
    bench.ask(1, &WorkerRequest::Lease { tokens_per_second: 0 });
    assert!(bench.rounds.wake_at.is_some_and(|at| at <= bench.now + STUCK_AFTER));
    // Two new keys alone must be able to end a round all the same.
    for _ in 0..most {
        bench.now = bench.now + STUCK_AFTER;
        bench.step(Event::Wake);
        let lent = |effect: &Effect<u32>| matches!(effect, Effect::Reply { body: WorkerReply::Leased(_), .. });
        assert!(bench.count(lent) > 0 || bench.rounds.state().closed);
        flood(&mut bench, 1);
        flood(&mut bench, 2);
    }
    assert!(bench.rounds.state().closed);
}

#[test]
fn an_opinion_that_is_sent_again_is_no_second_one_where_there_is_one_verifier_only() {
    let mut bench = Bench::audited(1, 1);
    bench.work(1);
    let job = bench.replays().remove(0);
    bench.opine(VERIFIER, &job, false);
    let again = bench.replays().remove(0);
    bench.opine(VERIFIER, &job, false);
    assert_eq!(bench.records_of(|record| matches!(record, Record::Opinion { .. })), 1);
    assert!(!bench.rounds.state().workers()[&key(1).public()].banned);
    bench = bench.crash();
    bench.opine(VERIFIER, &again, false);
    assert!(bench.rounds.state().workers()[&key(1).public()].banned, "asked twice, it says so twice");
}

#[test]
fn as_many_replays_are_paid_with_a_round_as_fit_into_one_chain_and_the_rest_with_the_next() {
    let mut bench = Bench::audited(1, 1);
    bench.work(1);
    let job = bench.replays().remove(0);
    let verdict = opinion(VERIFIER, &job, true);
    let waiting = limits::REPLAYS_PAID_MAX + 5;
    let close = |mut state: State, replays: Vec<Signed>| {
        state.replays = replays;
        state.apply(&Record::RoundClosed { at: Time(9), secret: None, test: false });
        let round = state.round;
        (state.unpaid[&round].len(), state.replays.len())
    };
    let state = bench.rounds.state().clone();
    assert_eq!(close(state.clone(), vec![verdict.clone(); waiting]), (limits::REPLAYS_PAID_MAX, 5));
    assert_eq!(close(state, vec![verdict; 5]), (5, 0));
}

#[test]
fn a_verifier_that_lets_planted_cheats_pass_is_struck_off_and_what_it_said_is_forgotten() {
    let mut bench = Bench::audited(6, 2);
    let mut planted = None;
    for _ in 0..20 {
        bench.work(1);
        for job in bench.replays() {
            // Nobody but the coordinator can tell: here the payload gives it away.
            let worker = (1..=6).find(|n| submission(&job.task, *n).commitment.payload == job.payload);
            if worker.is_none() {
                planted = Some(job);
            } else {
                bench.opine(100, &job, true);
            }
        }
        if planted.is_some() {
            break;
        }
    }
    let planted = planted.unwrap();
    assert_eq!(planted.trail, submission(&planted.task, 1).trail(), "it shows the way of honest work");
    let faithful = key(100).public();
    assert_eq!(bench.rounds.state().verifiers()[&faithful].faults, 0);
    bench.opine(101, &planted, true);
    assert_eq!(bench.ending_of(&planted), Some(Ending::TestFailed));
    assert!(bench.rounds.state().verifiers()[&key(101).public()].struck_off);
    assert_eq!(bench.rounds.believed(), [faithful].into());
    bench.work(1);
    let job = bench.replays().remove(0);
    bench.opine(101, &job, true);
    assert_eq!(bench.ending_of(&job), None, "nobody listens to it");
}

#[test]
fn a_replay_is_paid_with_the_next_round_and_its_blobs_are_kept_until_then() {
    let mut bench = Bench::audited(1, 1);
    bench.work(limits::MODELS_KEPT + 2);
    let mut jobs = bench.replays();
    jobs.sort_by_key(|job| job.task.round);
    let needed = bench.rounds.state().blobs();
    assert!(jobs.iter().all(|job| needed.contains(&job.payload) && needed.contains(&job.task.base)));
    let verdicts: Vec<Signed> = jobs.iter().map(|job| opinion(VERIFIER, job, true)).collect();
    bench.step(Event::Verdicts(verdicts.clone()));
    let forgotten: BTreeSet<Digest> = bench
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Forget(blobs) => Some(blobs.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    assert!(jobs.iter().all(|job| forgotten.contains(&job.payload)));
    assert!(forgotten.contains(&jobs[0].task.base) && !forgotten.contains(&jobs[jobs.len() - 1].task.base));
    bench.effects.clear();
    bench.work(1);
    let paid = bench.effects.iter().find_map(|effect| match effect {
        Effect::Pay { verdicts, .. } => Some(verdicts[1..].to_vec()),
        _ => None,
    });
    assert_eq!(paid, Some(verdicts));
}

#[test]
fn peers_do_drawn_tasks_again_without_knowing_and_a_majority_of_them_decides() {
    let mut bench = Bench::audited_by(Auditors::Peers, 3, 1);
    bench.work(1);
    // Worker 1 cheats; nobody is lent its own task again, and each copy only once at a time.
    for _ in 0..6 {
        for worker in 1..=3 {
            let Some(WorkerReply::Leased(lease)) = bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 0 })
            else {
                continue;
            };
            if lease.task.round == Round(0) {
                assert_ne!(submission(&lease.task, worker).commitment.payload, {
                    let state = bench.rounds.state();
                    state.cases.values().find(|case| case.task == lease.task).unwrap().payload
                });
            }
            bench.hand_in(worker, &lease.task);
            bench.hand_in(worker, &lease.task);
            bench = bench.crash();
        }
        bench.compare_copies(|worker, peer| (worker == key(1).public()) == (peer == key(1).public()));
    }
    let state = bench.rounds.state();
    assert!(state.workers()[&key(1).public()].banned);
    let banned = |n: u8| state.workers()[&key(n).public()].banned;
    assert!(!banned(2) && !banned(3), "the copies of a cheat convict nobody alone");
    assert_eq!(state.workers()[&key(1).public()].audited, 0);
}

#[test]
fn peers_who_all_get_something_else_convict_nobody_and_one_that_gets_the_same_is_enough() {
    let mut bench = Bench::audited_by(Auditors::Peers, 1, 1);
    bench.work(1);
    let honest = [key(1).public(), key(5).public()];
    for worker in 2..=5 {
        assert!(bench.rounds.state().cases.values().next().is_some_and(|case| case.convicted.is_none()));
        let Some(WorkerReply::Leased(copy)) = bench.ask(worker, &WorkerRequest::Lease { tokens_per_second: 0 }) else {
            panic!("nothing to do")
        };
        assert_eq!(copy.task.round, Round(0), "copies come first");
        bench.hand_in(worker, &copy.task);
        bench.compare_copies(|one, other| honest.contains(&one) && honest.contains(&other));
        bench = bench.crash();
    }
    let ended = |record: &Record| matches!(record, Record::AuditEnded { ending: Ending::Clean, .. });
    assert_eq!(bench.records_of(ended), 1);
}

#[test]
fn an_established_worker_is_convicted_by_three_peers_the_last_of_which_is_established_too() {
    for (probation, takes) in [(0, limits::PEERS_AGAINST), (1000, 2)] {
        let mut bench = Bench::with_probation(probation, Auditors::Peers, 1, 1);
        bench.work(1);
        let (spec, now) = (bench.rounds.state().spec().clone(), bench.now);
        let spec = RunSpec { audits: spec.audits.map(|audits| Audits { policy: POLICY, ..audits }), ..spec };
        let mut case = bench.rounds.state().cases.values().next().unwrap().clone();
        for peer in 2..6u8 {
            let spoken = case.opinions.len();
            let convicted = case.next(&spec, &BTreeSet::new(), now) == Next::Convict;
            assert_eq!(convicted, spoken >= takes, "{spoken} of {takes}");
            let may = |clean| case.may_take(&spec, &key(peer).public(), clean, now);
            assert_eq!(may(POLICY.probation), !convicted);
            assert_eq!(may(POLICY.probation - 1), !convicted && spoken < 2, "the first two may be new");
            case.peers
                .insert(key(peer).public(), Peer { since: now, deadline: now, commitment: None, handed_in: true });
            let (verifier, with) = (key(peer).public(), (peer > 2).then(|| key(2).public()));
            let verdict = Signed::seal(&key(VERIFIER), &WorkerRequest::GiveBack(case.task.id()));
            case.opinions.push(Opinion { verifier, turn: 0, clean: false, with, verdict });
        }
    }
}

#[test]
fn a_payload_that_two_hand_in_is_computed_again_for_both_however_rarely_each_is_drawn() {
    for repeats in [false, true] {
        // Who has done anything is drawn once in a million times.
        let policy = AuditPolicy { probation: 0, decay: 0, floor: Ppm(1) };
        let mut bench = Bench::with_policy(policy, Auditors::Verifiers, 4, 1);
        bench.work(1);
        for job in bench.replays() {
            bench.opine(VERIFIER, &job, true);
        }
        let tasks: Vec<Task> = (1..=4).map(|worker| bench.lease(worker)).collect();
        for (worker, task) in (1..).zip(&tasks) {
            // Worker 1 does the task of worker 2 in place of its own, and is first.
            let done = if worker == 1 && repeats { submission(&tasks[1], 2) } else { submission(task, worker) };
            let commitment = Commitment { task: task.id(), ..done.commitment };
            bench.ask(worker, &WorkerRequest::Commit(commitment));
            bench.ask(worker, &WorkerRequest::Submit(Submission { commitment, ..done }));
        }
        bench.judge_cheap();
        bench.finish_aggregation();
        let judged: BTreeSet<PublicKey> = bench.replays().iter().map(|job| job.worker).collect();
        assert_eq!(judged, if repeats { [1, 2].map(|n| key(n).public()).into() } else { BTreeSet::new() });
        let state = bench.rounds.state();
        let found = recheck(state.spec(), Round(1), state.draw_of(Round(1)).unwrap(), 1).unwrap();
        assert_eq!(found.drawn, if repeats { 2 } else { 0 }, "anybody can see why");
    }
}

#[test]
fn a_worker_has_a_name_once_its_first_results_have_passed_their_audits() {
    let mut bench = Bench::with_probation(2, Auditors::Verifiers, 1, 1);
    let has_name = |bench: &Bench| bench.rounds.is_established(&key(1).public());
    bench.work(2);
    for job in bench.replays() {
        assert!(!has_name(&bench), "nobody has looked at all of its work");
        bench.opine(VERIFIER, &job, true);
    }
    assert!(has_name(&bench));
    let task = bench.lease(1);
    bench.hand_in(1, &task);
    bench.judge(|_| false);
    assert!(!has_name(&bench));
    let mut unaudited = Bench::new(1, None);
    unaudited.work(2);
    assert!(!has_name(&unaudited));
}

/// How workers get a name.
const POLICY: AuditPolicy = AuditPolicy { probation: 10, decay: 1, floor: Ppm::ONE };

#[test]
fn what_is_published_of_a_rounds_audits_can_be_rechecked_and_no_part_of_it_changed() {
    let mut bench = Bench::audited(3, 2);
    bench.work(2);
    let jobs = bench.replays();
    let guilty = jobs.iter().find(|job| job.task.round == Round(1)).unwrap();
    for job in jobs.iter().filter(|job| *job != guilty) {
        bench.opine(100, job, true);
    }
    bench.opine(100, guilty, false);
    bench.opine(101, guilty, false);
    bench.now = bench.now + bench.rounds.state().spec().timing.appeal;
    bench.step(Event::Wake);
    let (spec, draw) = (bench.rounds.state().spec().clone(), bench.rounds.state().draw_of(Round(1)).unwrap().clone());
    let found = recheck(&spec, Round(1), &draw, 2).unwrap();
    assert_eq!((found.results, found.drawn, found.open, found.verdicts, found.located), (3, 3, 0, 4, 2));
    assert_eq!(recheck(&spec, Round(0), &draw, 2), Err(RecheckError::Secret));
    let place = draw.results.iter().position(|result| result.task == guilty.task.id()).unwrap();
    let altered = |change: fn(&mut DrawnResult)| {
        let mut draw = draw.clone();
        change(&mut draw.results[place]);
        recheck(&spec, Round(1), &draw, 2).unwrap_err()
    };
    assert!(matches!(altered(|result| result.ending = Some(Ending::Clean)), RecheckError::Ending { .. }));
    assert!(matches!(altered(|result| drop(result.verdicts.pop())), RecheckError::Ending { .. }));
    let twice = |result: &mut DrawnResult| result.verdicts[1] = result.verdicts[0].clone();
    assert!(matches!(altered(twice), RecheckError::Ending { .. }), "one verifier is one opinion");
    let mut asked_twice = draw.clone();
    twice(&mut asked_twice.results[place]);
    assert!(recheck(&spec, Round(1), &asked_twice, 1).is_ok(), "unless there is no other");
    assert!(matches!(altered(|result| result.worker = key(9).public()), RecheckError::Verdict(_)));
    assert!(matches!(altered(|result| result.payload = Digest::of(b"other")), RecheckError::Verdict(_)));
    let hidden = altered(|result| {
        result.verdicts.clear();
        result.ending = Some(Ending::Clean);
    });
    assert!(matches!(hidden, RecheckError::Draw { drawn: true, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Opinions of three verifiers, some lying, in any order, repeated, between crashes and appeals: each case ends at
    /// most once, never against a majority of those who spoke, and how it ends does not depend on the order in which
    /// the same opinions came.
    #[test]
    fn audits_end_once_and_never_against_the_worker_without_two_opinions(
        moves in prop::collection::vec((0u8..6, 0u8..3, any::<prop::sample::Index>(), any::<bool>()), 1..60),
    ) {
        let mut bench = Bench::audited(3, 3);
        bench.work(2);
        let jobs = bench.replays();
        for (action, verifier, which, clean) in moves {
            let job = which.get(&jobs);
            match action {
                0..=2 => bench.opine(100 + verifier, job, clean),
                3 => { bench.ask(1 + verifier, &WorkerRequest::Appeal(job.task.id())); }
                4 => {
                    bench.now = bench.now + Duration::from_mins(4);
                    bench.step(Event::Wake);
                }
                _ => bench = bench.crash(),
            }
        }
        for job in &jobs {
            let id = (job.task.id(), job.payload);
            let ends: Vec<Ending> = bench.records.iter().filter_map(|record| match record {
                Record::AuditEnded { case, ending } if *case == id => Some(*ending),
                _ => None,
            }).collect();
            prop_assert!(ends.len() <= 1, "{ends:?}");
            let mut against = BTreeSet::new();
            for record in &bench.records {
                if let Record::Opinion { verdict } = record {
                    let (verifier, verdict) = verdict.open::<Verdict>().unwrap();
                    if (verdict.task, verdict.payload) == id && matches!(verdict.outcome, Outcome::Rejected { .. }) {
                        against.insert(verifier);
                    }
                }
            }
            if ends == [Ending::False] {
                prop_assert!(against.len() >= 2, "convicted by {}", against.len());
            }
        }
    }

    /// The opinions of two verifiers on each result, in any order: the same ends.
    #[test]
    fn how_audits_end_does_not_depend_on_the_order_of_opinions(
        says in prop::collection::vec(any::<bool>(), 6), order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let end = |order: &[usize]| {
            let mut bench = Bench::audited(3, 2);
            bench.work(1);
            let jobs = bench.replays();
            for _ in 0..2 {
                for &turn in order {
                    bench.opine(100 + (turn / 3) as u8, &jobs[turn % 3], says[turn]);
                }
            }
            bench.now = bench.now + limits::AUDIT_WITHIN;
            bench.step(Event::Wake);
            jobs.iter().map(|job| bench.ending_of(job)).collect::<Vec<_>>()
        };
        // One clean opinion that comes first ends the audit; that is the only thing that order can change, and
        // always in the worker's favour.
        let (sorted, shuffled) = (end(&[0, 1, 2, 3, 4, 5]), end(&order));
        for (place, (one, other)) in sorted.iter().zip(&shuffled).enumerate() {
            let agree = says[place] == says[place + 3];
            let convicted = [one, other].contains(&&Some(Ending::False));
            let fair = if agree { one == other } else { !convicted };
            prop_assert!(fair, "{one:?}, {other:?}");
        }
    }
}
