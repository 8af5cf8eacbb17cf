use std::path::Path;

use super::*;
use crate::{Scenario, prose};
use hydra::protocol::{Keypair, Layer, Lease, Outcome, Reason, Submission};
use hydra::store::MemoryBlobs;
use hydra::training::Params;

const SMALL: &str = "about = 'three tasks a round'\n\
    job = { rounds = 4, inner_steps = 2, batch = 2, round_seconds = 100, objective = 'surrogate', learning_rate = 0.02, \
    model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 } }\n\
    workers = [{ count = 3, tokens_per_second = 40 }]\n";

/// When a lease that matters runs out, and when the round's time is over.
const LEASE: Time = Time(10_000);
const DUE: Time = Time(100_000);

/// A run of three tasks a round, and true results of the tasks of round 0, one of each worker.
struct Run {
    spec: RunSpec,
    blobs: Arc<MemoryBlobs>,
    base: Digest,
    results: Vec<Submission>,
}

fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n; 32])
}

fn worker(n: u8) -> PublicKey {
    key(n).public()
}

const VERIFIER: u8 = 100;

impl Run {
    fn new() -> Self {
        let scenario = Scenario::parse(Path::new("laws.toml"), SMALL).unwrap();
        let blobs = Arc::new(MemoryBlobs::default());
        let manifest = prose::corpus().unwrap().store(|shard| blobs.put(shard).map(drop)).unwrap();
        let spec = scenario.spec(1, blobs.put(&manifest.encode()).unwrap());
        let compute = Compute::new(Arc::new(Surrogate), Arc::clone(&blobs) as Arc<dyn Blobs>);
        let base = compute.save(&Params::initial(&spec.model, &spec.seed)).unwrap();
        let result = |index| {
            let task = Task::of_round(&spec, Round(0), index, base);
            let trained = compute.train(&task, |_| true).unwrap();
            let payload = blobs.put(&trained.payload).unwrap();
            Submission::new(task.id(), payload, trained.losses, trained.trail, task.tokens())
        };
        let results = (0..3).map(result).collect();
        Self { spec, blobs, base, results }
    }

    fn laws(&self) -> RecordLaws {
        let trusted = BTreeSet::from([worker(VERIFIER)]);
        RecordLaws::new(self.spec.clone(), trusted, Arc::clone(&self.blobs) as Arc<dyn Blobs>)
    }

    fn result(&self, index: u32) -> Submission {
        self.results[index as usize].clone()
    }

    fn opened(&self) -> Record {
        Record::RoundOpened { round: Round(0), base: self.base, momentum: None, at: Time(0) }
    }

    /// What the results of these tasks come to.
    fn then(&self, round: u32, accepted: &[u32]) -> Record {
        let updates = accepted.iter().map(|index| self.result(*index).commitment).collect::<Vec<_>>();
        let updates = updates.iter().map(|made| (made.payload, made.tokens)).collect();
        let compute = Compute::new(Arc::new(Surrogate), Arc::clone(&self.blobs) as Arc<dyn Blobs>);
        let job = AggregateJob { base: self.base, momentum: None, updates };
        let made = compute.aggregate(&self.spec, &job).unwrap();
        Record::RoundOpened { round: Round(round), base: made.model, momentum: made.momentum, at: DUE }
    }

    fn committed(&self, index: u32, by: u8) -> Record {
        Record::Committed { index, worker: worker(by), commitment: self.result(index).commitment }
    }

    fn submitted(&self, index: u32, by: u8) -> Record {
        Record::Submitted { index, worker: worker(by), submission: self.result(index) }
    }

    /// A verdict of `judge` on the result of task `of`.
    fn verdict(&self, of: u32, by: u8, judge: u8, good: bool) -> Signed {
        let Commitment { task, payload, tokens, .. } = self.result(of).commitment;
        let layer = Layer::Statistics;
        let outcome = if good {
            Outcome::Accepted { layer, tokens, norm: 1.0 }
        } else {
            Outcome::Rejected { layer, reason: Reason::NotFinite }
        };
        let verdict = Verdict { task, worker: worker(by), payload, work: 0, by: None, turn: 0, outcome };
        Signed::seal(&key(judge), &verdict)
    }

    fn accepted(&self, index: u32, by: u8) -> Record {
        Record::Accepted { index, verdict: self.verdict(index, by, VERIFIER, true) }
    }

    fn rejected(&self, index: u32, by: u8) -> Record {
        Record::Rejected { index, verdict: self.verdict(index, by, VERIFIER, false) }
    }

    /// From the lease to the verdict.
    fn done(&self, index: u32, by: u8) -> Vec<Record> {
        vec![leased(index, by), self.committed(index, by), self.submitted(index, by), self.accepted(index, by)]
    }

    /// All three tasks, each by a worker of its own.
    fn whole(&self) -> Vec<Record> {
        let done = (0..3).flat_map(|index| self.done(index, index as u8));
        [self.opened()].into_iter().chain(done).collect()
    }
}

fn leased(index: u32, by: u8) -> Record {
    Record::Leased { index, worker: worker(by), deadline: LEASE }
}

fn closed(at: Time) -> Record {
    Record::RoundClosed { at, secret: None, test: false }
}

/// Reads all of them, each write at `now`; the first law that is broken, and by which record.
fn read(laws: &mut RecordLaws, records: &[Record], now: Time) -> Result<(), (usize, String)> {
    for (place, record) in records.iter().enumerate() {
        laws.begin_write(now);
        laws.read(record, now).map_err(|broken| (place, broken))?;
    }
    Ok(())
}

#[test]
fn records_of_rounds_as_they_should_be_break_no_law() {
    let run = Run::new();
    let after = |records: Vec<Record>, more: Vec<Record>| [records, more].concat();
    let begun = |more: Vec<Record>| after(vec![run.opened()], more);
    let two = || begun([run.done(0, 0), run.done(1, 1)].concat());
    for (what, records) in [
        ("all is done", after(run.whole(), vec![closed(Time(1)), run.then(1, &[0, 1, 2])])),
        ("a quorum when the time is over", after(two(), vec![closed(DUE), run.then(1, &[0, 1])])),
        (
            "nobody is left who may do the rest",
            after(
                two(),
                vec![
                    leased(2, 2),
                    run.committed(2, 2),
                    run.submitted(2, 2),
                    run.rejected(2, 2),
                    closed(Time(1)),
                    run.then(1, &[0, 1]),
                ],
            ),
        ),
        (
            "what was given back is lent to another",
            begun(vec![leased(0, 0), Record::GivenBack { index: 0, worker: worker(0) }, leased(0, 1)]),
        ),
        (
            "whoever is late goes on with it",
            after(two(), vec![leased(2, 2), closed(DUE), run.then(1, &[0, 1]), leased(3, 2)]),
        ),
        ("what is said twice is the same", begun(vec![leased(0, 0), leased(0, 0), run.committed(0, 0)])),
    ] {
        assert_eq!(read(&mut run.laws(), &records, Time(1)), Ok(()), "{what}");
    }
    // Its lease has run out meanwhile.
    let mut laws = run.laws();
    assert_eq!(read(&mut laws, &begun(vec![leased(0, 0)]), Time(1)), Ok(()));
    assert_eq!(read(&mut laws, &[leased(0, 1)], LEASE), Ok(()));
}

#[test]
fn every_law_of_the_records_can_be_broken_by_the_last_of_them() {
    let run = Run::new();
    let begun = |more: Vec<Record>| [vec![run.opened()], more].concat();
    let whole = |more: Vec<Record>| [run.whole(), more].concat();
    let one = || begun(run.done(0, 0));
    let two = || begun([run.done(0, 0), run.done(1, 1)].concat());
    let with = |mut records: Vec<Record>, more: Vec<Record>| {
        records.extend(more);
        records
    };
    let verdict = |verdict| Record::Accepted { index: 0, verdict };
    let in_hand = || begun(vec![leased(0, 0), run.committed(0, 0), run.submitted(0, 0)]);
    let mut other = run.result(0).commitment;
    other.payload = Digest::of(b"another result");
    let no_verdict = Signed::seal(&key(VERIFIER), &WorkerRequest::Appeal(other.task));
    for (said, records) in [
        ("which was not closed", whole(vec![run.then(1, &[0, 1, 2])])),
        ("opened after round 0", whole(vec![closed(Time(1)), run.then(2, &[0, 1, 2])])),
        ("not what the results of round 0 come to", whole(vec![closed(Time(1)), run.then(1, &[0, 1])])),
        ("closed with 2 of 3 tasks", with(two(), vec![closed(Time(1))])),
        ("closed with 1 of 3 tasks", with(one(), vec![closed(DUE)])),
        ("about task 3, which there is not", begun(vec![leased(3, 0)])),
        ("lent to two workers at a time", begun(vec![leased(0, 0), leased(0, 1)])),
        ("lent to two workers at a time", with(in_hand(), vec![leased(0, 0)])),
        ("which it was not lent", begun(vec![leased(0, 0), run.committed(0, 1)])),
        (
            "committed to two results",
            begun(vec![
                leased(0, 0),
                run.committed(0, 0),
                Record::Committed { index: 0, worker: worker(0), commitment: other },
            ]),
        ),
        ("what it had not committed to", begun(vec![leased(0, 0), run.submitted(0, 0)])),
        ("task 0 was handed in twice", with(in_hand(), vec![run.submitted(0, 0)])),
        ("is about something else", with(in_hand(), vec![verdict(run.verdict(1, 0, VERIFIER, true))])),
        ("is about something else", with(in_hand(), vec![verdict(run.verdict(0, 1, VERIFIER, true))])),
        ("whom nobody trusts", with(in_hand(), vec![verdict(run.verdict(0, 0, 0, true))])),
        ("whom nobody trusts", begun(vec![Record::Opinion { verdict: run.verdict(0, 0, 0, true) }])),
        ("cannot be read", with(in_hand(), vec![verdict(no_verdict)])),
        (
            "lent to somebody new after its round",
            with(two(), vec![leased(2, 2), closed(DUE), run.then(1, &[0, 1]), leased(3, 0)]),
        ),
    ] {
        let broken = read(&mut run.laws(), &records, Time(1));
        let (place, why) = broken.expect_err(said);
        assert!(place == records.len() - 1 && why.contains(said), "{said}: {place} of {}: {why}", records.len());
    }
}

#[test]
fn nobody_is_told_of_what_is_not_on_record() {
    let run = Run::new();
    let task = Task::of_round(&run.spec, Round(0), 0, run.base);
    let (id, now, mut laws) = (task.id(), Time(1), run.laws());
    let replies = [
        (None, WorkerReply::Leased(Box::new(Lease { task, deadline: LEASE })), leased(0, 0), "a lease"),
        (None, WorkerReply::Committed(id), run.committed(0, 0), "a commitment"),
        (Some(WorkerRequest::Submit(run.result(0))), WorkerReply::Received(id), run.submitted(0, 0), "a submission"),
    ];
    read(&mut laws, &[run.opened()], now).unwrap();
    for (asked, reply, record, what) in replies {
        let answer = |laws: &RecordLaws, to: u8| laws.answer(&worker(to), asked.as_ref(), &reply, now);
        assert!(answer(&laws, 0).unwrap_err().contains(what));
        read(&mut laws, &[record], now).unwrap();
        assert_eq!(answer(&laws, 0), Ok(()));
        assert!(answer(&laws, 1).is_err(), "{what} of another");
    }
}

#[test]
fn a_worker_may_hear_that_a_task_is_not_its_own_at_the_moment_that_it_is_lent_it_and_not_later() {
    let run = Run::new();
    let mut laws = run.laws();
    let refused =
        WorkerReply::Refused { task: Some(run.result(0).commitment.task), reason: RefusalReason::NotYourTask };
    let told = |laws: &RecordLaws, now| laws.answer(&worker(0), None, &refused, now);
    read(&mut laws, &[run.opened()], Time(1)).unwrap();
    assert_eq!(told(&laws, Time(2)), Ok(()), "it is not");
    read(&mut laws, &[leased(0, 0)], Time(5)).unwrap();
    assert_eq!(told(&laws, Time(5)), Ok(()));
    assert!(told(&laws, Time(6)).unwrap_err().contains("which it was lent"), "nothing was written since");
    read(&mut laws, &[leased(1, 1)], Time(5)).unwrap();
    assert!(told(&laws, Time(5)).is_err(), "another write came after it");
}
