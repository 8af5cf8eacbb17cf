use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;
use rand::rngs::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::protocol::{
    Digest, RefusalReason, Seed, Submission, Task, TaskId, Time, WorkerReply, WorkerRequest, limits,
};
use crate::training::Trained;

/// How long to wait for the answer to a request that is answered at once, before sending it again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The same for a request for work, which a coordinator may hold open for a while.
const WORK_WITHIN: Duration = Duration::from_secs(30);
/// Times that a lease is renewed: what hangs, or is paused, is left to others in the end.
const BEATS_MAX: u32 = 20;
const _: () = assert!(BEATS_MAX.div_ceil(3) < limits::LEASES_HELD_MAX, "the last renewals would be refused");
/// The shortest time between two heartbeats.
const BEAT_MIN: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_mins(2);

/// What happens to a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It has started.
    Started,
    /// It has started, and this result of an earlier process has not been acknowledged yet.
    StartedWith(Box<Finished>),
    /// The coordinator answers.
    Reply(WorkerReply),
    /// The task is done.
    Trained {
        /// Which.
        task: TaskId,
        /// What came out.
        result: Trained,
    },
    /// The task could not be done.
    TrainingFailed {
        /// Which.
        task: TaskId,
    },
    /// The payload is in the blob store.
    Uploaded(Digest),
    /// It could not be put there.
    UploadFailed,
    /// The owner wants the machine back.
    Stop,
    /// A time that was asked for has come.
    Wake,
}

/// A result that is to be handed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// All but the payload.
    pub submission: Submission,
    /// The encoded pseudo-gradient.
    pub payload: Vec<u8>,
}

/// What a worker wants done, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Sign this and send it to the coordinator.
    Send(WorkerRequest),
    /// Do this task.
    Train(Box<Task>),
    /// Keep this until it is to be let go: hours of work may be in it.
    Keep(Finished),
    /// Let go of what was kept: it is handed in, or nobody wants it.
    LetGo,
    /// Tell the coordinator that this task is still being worked on, if it is.
    Heartbeat(TaskId),
    /// Put this payload into the blob store.
    Upload(Vec<u8>),
    /// Stop training as soon as possible.
    Cancel,
    /// Send [`Event::Wake`] at this time, and not at one that was asked for before.
    WakeAt(Time),
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Asking,
    /// Nothing to do until a time.
    Resting,
    Training(TaskId),
    Committing {
        submission: Submission,
        payload: Vec<u8>,
    },
    Uploading {
        submission: Submission,
        payload: Vec<u8>,
    },
    Submitting(Submission),
    Finished,
}

/// The worker's core: one task at a time, from asking for it to handing it in. Every request is sent again until it is
/// answered, so nothing depends on a message arriving.
#[derive(Debug)]
pub struct Labour {
    stage: Stage,
    tokens_per_second: u32,
    /// When the task under way began, and how many tokens it has.
    training_since: Option<(Time, u64)>,
    /// Tasks in a row that could not be done.
    failures: u32,
    /// When the lease under way is to be renewed, and how often.
    beat: (Time, Duration),
    /// Times that it may still be renewed.
    beats: u32,
    /// When to try again, and how often that was.
    retry: Option<(Time, u32)>,
    /// Results that were found false, and that others were asked to judge again.
    appealed: BTreeSet<TaskId>,
    jitter: ChaCha8Rng,
}

impl Labour {
    /// A worker that has done nothing yet. `seed` spreads its retries.
    #[must_use]
    pub fn new(seed: &Seed) -> Self {
        Self {
            stage: Stage::Resting,
            tokens_per_second: 0,
            training_since: None,
            beat: (Time(0), BEAT_MIN),
            beats: 0,
            failures: 0,
            retry: None,
            appealed: BTreeSet::new(),
            jitter: seed.derive("retry jitter", 0).rng(),
        }
    }

    /// Whether it will do nothing more.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.stage == Stage::Finished
    }

    /// Takes an event; gives what is to be done about it, in order.
    pub fn step(&mut self, now: Time, event: Event) -> Vec<Effect> {
        match (event, std::mem::replace(&mut self.stage, Stage::Finished)) {
            (_, Stage::Finished) => vec![],
            (Event::Stop, stage) => {
                if matches!(stage, Stage::Training(_)) {
                    vec![Effect::Cancel]
                } else {
                    vec![]
                }
            }
            (Event::Started, _) => self.enter(now, Stage::Asking),
            (Event::StartedWith(finished), _) => {
                let Finished { submission, payload } = *finished;
                self.enter(now, Stage::Committing { submission, payload })
            }
            (Event::Wake, stage) => self.wake(now, stage),
            (Event::Reply(reply), stage) => self.reply(now, reply, stage),
            (Event::Trained { task, result }, Stage::Training(mine)) if task == mine => self.trained(now, task, result),
            (Event::TrainingFailed { task }, Stage::Training(mine)) if task == mine => {
                let mut effects = vec![Effect::Send(WorkerRequest::GiveBack(task))];
                // The tasks of a run are alike: if this machine cannot do one, it hardly can another.
                let pause = ANSWER_WITHIN * 2u32.saturating_pow(self.failures.min(16));
                self.failures += 1;
                effects.extend(self.rest(now, pause.min(PAUSE_MAX)));
                effects
            }
            (Event::Uploaded(digest), Stage::Uploading { submission, .. })
                if digest == submission.commitment.payload =>
            {
                self.enter(now, Stage::Submitting(submission))
            }
            (Event::UploadFailed, stage @ Stage::Uploading { .. }) => {
                self.stage = stage;
                self.plan_retry(now, ANSWER_WITHIN)
            }
            // Late news of something that is over.
            (_, stage) => {
                self.stage = stage;
                vec![]
            }
        }
    }

    fn reply(&mut self, now: Time, reply: WorkerReply, stage: Stage) -> Vec<Effect> {
        match (reply, stage) {
            (WorkerReply::Finished, Stage::Asking) => vec![],
            (WorkerReply::Leased(lease), Stage::Asking) => {
                self.training_since = Some((now, lease.task.tokens()));
                self.retry = None;
                self.stage = Stage::Training(lease.task.id());
                // Two may get lost.
                let every = (lease.deadline.since(now) / 3).max(BEAT_MIN);
                self.beat = (now + every, every);
                self.beats = BEATS_MAX;
                vec![Effect::Train(Box::new(lease.task)), Effect::WakeAt(self.beat.0)]
            }
            // It was held open long enough.
            (WorkerReply::Wait, Stage::Asking) => self.enter(now, Stage::Asking),
            (WorkerReply::Refused { task, reason }, Stage::Asking) => {
                let mut effects = Vec::new();
                if let (Some(task), RefusalReason::Banned) = (task, reason)
                    && self.appealed.insert(task)
                {
                    effects.push(Effect::Send(WorkerRequest::Appeal(task)));
                }
                effects.extend(self.rest(now, WORK_WITHIN));
                effects
            }
            (WorkerReply::Committed(task), Stage::Committing { submission, payload })
                if task == submission.commitment.task =>
            {
                self.enter(now, Stage::Uploading { submission, payload })
            }
            (WorkerReply::Refused { task: Some(task), .. }, Stage::Training(mine)) if task == mine => {
                // Somebody was faster, or the round is over: what is left of the work would be for nothing.
                let mut effects = vec![Effect::Cancel];
                effects.extend(self.enter(now, Stage::Asking));
                effects
            }
            (WorkerReply::Received(task), Stage::Submitting(submission)) if task == submission.commitment.task => {
                let mut effects = vec![Effect::LetGo];
                effects.extend(self.enter(now, Stage::Asking));
                effects
            }
            (
                WorkerReply::Refused { task: Some(task), .. },
                Stage::Committing { submission, .. } | Stage::Submitting(submission),
            ) if task == submission.commitment.task => {
                // Somebody was faster, or the round is over: the work is lost, and there is other work.
                let mut effects = vec![Effect::Send(WorkerRequest::GiveBack(task)), Effect::LetGo];
                effects.extend(self.enter(now, Stage::Asking));
                effects
            }
            (_, stage) => {
                self.stage = stage;
                vec![]
            }
        }
    }

    fn trained(&mut self, now: Time, task: TaskId, result: Trained) -> Vec<Effect> {
        self.failures = 0;
        let tokens = self.training_since.take().map_or(0, |(since, tokens)| {
            let milliseconds = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX).max(1);
            self.tokens_per_second = u32::try_from(tokens.saturating_mul(1000) / milliseconds).unwrap_or(u32::MAX);
            tokens
        });
        let submission = Submission::new(task, Digest::of(&result.payload), result.losses, result.trail, tokens);
        let finished = Finished { submission, payload: result.payload };
        let mut effects = vec![Effect::Keep(finished.clone())];
        let Finished { submission, payload } = finished;
        effects.extend(self.enter(now, Stage::Committing { submission, payload }));
        effects
    }

    fn wake(&mut self, now: Time, stage: Stage) -> Vec<Effect> {
        match (stage, self.retry) {
            (Stage::Training(task), _) => {
                self.stage = Stage::Training(task);
                let (at, every) = self.beat;
                if self.beats == 0 {
                    return vec![];
                }
                if now < at {
                    // The clock was put back: what was planned by it may be far ahead.
                    self.beat.0 = at.min(now + every);
                    return vec![Effect::WakeAt(self.beat.0)];
                }
                self.beat.0 = now + every;
                self.beats -= 1;
                vec![Effect::Heartbeat(task), Effect::WakeAt(self.beat.0)]
            }
            (Stage::Resting, Some((at, _))) if now >= at => self.enter(now, Stage::Asking),
            (stage, Some((at, tries))) if now >= at => {
                self.stage = stage;
                self.try_again(now, tries + 1)
            }
            (stage, retry) => {
                self.stage = stage;
                // A wake for something that is over, or the clock was put back.
                self.retry = retry.map(|(at, tries)| (at.min(now + PAUSE_MAX * 3 / 2), tries));
                self.retry.map_or(vec![], |(at, _)| vec![Effect::WakeAt(at)])
            }
        }
    }

    fn enter(&mut self, now: Time, stage: Stage) -> Vec<Effect> {
        self.stage = stage;
        self.try_again(now, 0)
    }

    fn rest(&mut self, now: Time, pause: Duration) -> Vec<Effect> {
        self.stage = Stage::Resting;
        self.retry = None;
        self.plan_retry(now, pause)
    }

    /// Asks for what the stage waits for, and plans to ask again.
    fn try_again(&mut self, now: Time, tries: u32) -> Vec<Effect> {
        let (effect, within) = match &self.stage {
            Stage::Asking => {
                let tokens_per_second = self.tokens_per_second;
                (Effect::Send(WorkerRequest::Lease { tokens_per_second }), WORK_WITHIN)
            }
            Stage::Committing { submission, .. } => {
                (Effect::Send(WorkerRequest::Commit(submission.commitment)), ANSWER_WITHIN)
            }
            // An upload says itself when it fails.
            Stage::Uploading { payload, .. } => {
                self.retry = None;
                return vec![Effect::Upload(payload.clone())];
            }
            Stage::Submitting(submission) => (Effect::Send(WorkerRequest::Submit(submission.clone())), ANSWER_WITHIN),
            Stage::Resting | Stage::Training(_) | Stage::Finished => return vec![],
        };
        self.retry = Some((now, tries));
        let mut effects = vec![effect];
        effects.extend(self.plan_retry(now, within));
        effects
    }

    /// Twice as long after each try, up to a bound, and up to half as long again by chance, so that workers which lost
    /// the coordinator together do not all come back together.
    fn plan_retry(&mut self, now: Time, first: Duration) -> Vec<Effect> {
        let tries = self.retry.map_or(0, |(_, tries)| tries);
        let pause = (first * 2u32.saturating_pow(tries.min(16))).min(PAUSE_MAX.max(first));
        let spread = f64::from(self.jitter.next_u32()) / f64::from(u32::MAX) / 2.0;
        let at = now + pause.mul_f64(1.0 + spread);
        self.retry = Some((at, tries));
        vec![Effect::WakeAt(at)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Lease, Round};
    use crate::testing;

    fn worker() -> Labour {
        Labour::new(&Seed::from_number(1))
    }

    fn task() -> Task {
        Task::of_round(&testing::spec(2), Round(0), 1, Digest::of(b"base"))
    }

    fn leased(labour: &mut Labour, now: Time) -> TaskId {
        labour.step(now, Event::Started);
        let lease = Lease { task: task(), deadline: Time(99) };
        let effects = labour.step(now, Event::Reply(WorkerReply::Leased(Box::new(lease))));
        assert_eq!(effects[0], Effect::Train(Box::new(task())));
        task().id()
    }

    fn result() -> Trained {
        Trained { payload: b"payload".to_vec(), losses: vec![1.0; 4], trail: testing::trail(4) }
    }

    fn sent(effects: &[Effect]) -> Option<&WorkerRequest> {
        effects.iter().find_map(|effect| if let Effect::Send(request) = effect { Some(request) } else { None })
    }

    #[test]
    fn a_worker_that_fails_again_and_again_asks_less_and_less_often() {
        let mut labour = worker();
        labour.step(Time(0), Event::Started);
        let mut now = Time(0);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let lease = Lease { task: task(), deadline: Time(99) };
            labour.step(now, Event::Reply(WorkerReply::Leased(Box::new(lease))));
            let effects = labour.step(now, Event::TrainingFailed { task: task().id() });
            assert_eq!(sent(&effects), Some(&WorkerRequest::GiveBack(task().id())));
            let Some(Effect::WakeAt(at)) = effects.last() else { panic!("{effects:?}") };
            pauses.push(at.since(now));
            now = *at;
            labour.step(now, Event::Wake);
        }
        assert!(pauses[0] < ANSWER_WITHIN * 2 && pauses[11] >= PAUSE_MAX, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX * 3 / 2), "{pauses:?}");
        let lease = Lease { task: task(), deadline: Time(99) };
        labour.step(now, Event::Reply(WorkerReply::Leased(Box::new(lease))));
        labour.step(now, Event::Trained { task: task().id(), result: result() });
        assert_eq!(labour.failures, 0, "what works again is forgotten");
    }

    #[test]
    fn a_task_goes_from_lease_to_submission_and_the_next_is_asked_for_with_the_measured_speed() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(1000));
        let effects = labour.step(Time(3000), Event::Trained { task: id, result: result() });
        let Some(WorkerRequest::Commit(commitment)) = sent(&effects) else { panic!("{effects:?}") };
        assert_eq!((commitment.task, commitment.tokens), (id, 64));
        let effects = labour.step(Time(3000), Event::Reply(WorkerReply::Committed(id)));
        assert_eq!(effects, [Effect::Upload(b"payload".to_vec())]);
        let effects = labour.step(Time(3000), Event::Uploaded(Digest::of(b"payload")));
        assert!(matches!(sent(&effects), Some(WorkerRequest::Submit(_))));
        let effects = labour.step(Time(3000), Event::Reply(WorkerReply::Received(id)));
        assert_eq!(sent(&effects), Some(&WorkerRequest::Lease { tokens_per_second: 32 }));
    }

    #[test]
    fn an_unanswered_request_is_sent_again_later_and_later() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        let first = labour.step(Time(0), Event::Trained { task: id, result: result() });
        let mut pauses = Vec::new();
        let (mut now, mut effects) = (Time(0), first);
        for _ in 0..8 {
            let Some(Effect::WakeAt(at)) = effects.last().cloned() else { panic!("{effects:?}") };
            pauses.push(at.since(now));
            assert!(labour.step(Time(at.0 - 1), Event::Wake).iter().all(|effect| !matches!(effect, Effect::Send(_))));
            now = at;
            effects = labour.step(now, Event::Wake);
            assert!(matches!(sent(&effects), Some(WorkerRequest::Commit(_))), "{effects:?}");
        }
        assert!(pauses[0] >= ANSWER_WITHIN && pauses[0] <= ANSWER_WITHIN * 3 / 2);
        assert!(pauses[5] > pauses[0] * 10 && pauses.iter().all(|pause| *pause <= PAUSE_MAX * 3 / 2));
    }

    #[test]
    fn a_lease_is_renewed_while_the_task_is_being_done_and_one_that_is_over_is_let_go() {
        let mut labour = worker();
        labour.step(Time(0), Event::Started);
        let lease = Lease { task: task(), deadline: Time(60_000) };
        let effects = labour.step(Time(0), Event::Reply(WorkerReply::Leased(Box::new(lease))));
        assert_eq!(effects[1], Effect::WakeAt(Time(20_000)));
        assert_eq!(labour.step(Time(5_000), Event::Wake), [Effect::WakeAt(Time(20_000))], "too early");
        let beat = [Effect::Heartbeat(task().id()), Effect::WakeAt(Time(40_000))];
        assert_eq!(labour.step(Time(20_000), Event::Wake), beat);
        assert_eq!(labour.step(Time(20_001), Event::Reply(WorkerReply::Received(task().id()))), []);
        let refusal = WorkerReply::Refused { task: Some(task().id()), reason: RefusalReason::TaskNotOpen };
        let effects = labour.step(Time(20_002), Event::Reply(refusal));
        assert_eq!(effects[0], Effect::Cancel);
        assert!(matches!(sent(&effects), Some(WorkerRequest::Lease { .. })));
    }

    #[test]
    fn a_clock_that_is_put_back_ends_no_heartbeats_and_delays_no_retry() {
        let mut labour = worker();
        let hour = 3_600_000;
        labour.step(Time(hour), Event::Started);
        let lease = Lease { task: task(), deadline: Time(hour + 60_000) };
        labour.step(Time(hour), Event::Reply(WorkerReply::Leased(Box::new(lease))));
        // The alarm rings when it should, and the clock says that it is long before.
        assert_eq!(labour.step(Time(0), Event::Wake), [Effect::WakeAt(Time(20_000))]);
        assert_eq!(labour.step(Time(20_000), Event::Wake)[0], Effect::Heartbeat(task().id()));
        labour.step(Time(hour), Event::Trained { task: task().id(), result: result() });
        let effects = labour.step(Time(0), Event::Wake);
        let [Effect::WakeAt(at)] = effects[..] else { panic!("{effects:?}") };
        assert!(at <= Time(0) + PAUSE_MAX * 3 / 2, "{at:?}");
        assert!(sent(&labour.step(at, Event::Wake)).is_some());
    }

    #[test]
    fn whoever_is_told_that_there_is_nothing_to_do_asks_again_at_once() {
        let mut labour = worker();
        labour.step(Time(0), Event::Started);
        let effects = labour.step(Time(9), Event::Reply(WorkerReply::Wait));
        assert!(matches!(sent(&effects), Some(WorkerRequest::Lease { .. })), "{effects:?}");
    }

    #[test]
    fn a_refused_result_is_dropped_and_the_worker_goes_on() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        labour.step(Time(0), Event::Trained { task: id, result: result() });
        let refusal = WorkerReply::Refused { task: Some(id), reason: RefusalReason::TaskNotOpen };
        let effects = labour.step(Time(0), Event::Reply(refusal));
        assert_eq!(effects[0], Effect::Send(WorkerRequest::GiveBack(id)));
        assert_eq!(effects[1], Effect::LetGo);
        assert_eq!(effects[2], Effect::Send(WorkerRequest::Lease { tokens_per_second: 64_000 }));
    }

    #[test]
    fn a_result_that_comes_between_two_rounds_is_kept_and_handed_in_again() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        labour.step(Time(0), Event::Trained { task: id, result: result() });
        let wait = Event::Reply(WorkerReply::Wait);
        assert_eq!(labour.step(Time(0), wait.clone()), []);
        let again = |labour: &mut Labour| {
            let effects = labour.step(Time(10_000), Event::Wake);
            sent(&effects).cloned()
        };
        assert!(matches!(again(&mut labour), Some(WorkerRequest::Commit(commitment)) if commitment.task == id));
        labour.step(Time(10_000), Event::Reply(WorkerReply::Committed(id)));
        labour.step(Time(10_000), Event::Uploaded(Digest::of(b"payload")));
        assert_eq!(labour.step(Time(10_000), wait), []);
        let effects = labour.step(Time(20_000), Event::Wake);
        assert!(matches!(sent(&effects), Some(WorkerRequest::Submit(_))), "{effects:?}");
    }

    #[test]
    fn a_result_is_kept_until_it_is_acknowledged_and_handed_in_by_the_next_process() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        let effects = labour.step(Time(0), Event::Trained { task: id, result: result() });
        let Some(Effect::Keep(kept)) = effects.first().cloned() else { panic!("{effects:?}") };

        let mut labour = worker();
        let effects = labour.step(Time(9), Event::StartedWith(Box::new(kept)));
        assert!(matches!(sent(&effects), Some(WorkerRequest::Commit(commitment)) if commitment.task == id));
        labour.step(Time(9), Event::Reply(WorkerReply::Committed(id)));
        labour.step(Time(9), Event::Uploaded(Digest::of(b"payload")));
        let effects = labour.step(Time(9), Event::Reply(WorkerReply::Received(id)));
        assert_eq!(effects[0], Effect::LetGo);
    }

    #[test]
    fn stray_and_repeated_messages_change_nothing() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        let strays = [
            Event::Reply(WorkerReply::Received(id)),
            Event::Reply(WorkerReply::Committed(id)),
            Event::Reply(WorkerReply::Finished),
            Event::Reply(WorkerReply::Leased(Box::new(Lease { task: task(), deadline: Time(5) }))),
            Event::Uploaded(Digest::of(b"payload")),
            Event::UploadFailed,
            Event::Trained { task: TaskId(Digest::of(b"other")), result: result() },
        ];
        for stray in strays {
            assert_eq!(labour.step(Time(1), stray.clone()), [], "{stray:?}");
        }
        assert!(!labour.step(Time(1), Event::Trained { task: id, result: result() }).is_empty());
    }

    #[test]
    fn stopping_cancels_the_training_and_is_final() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        assert_eq!(labour.step(Time(1), Event::Stop), [Effect::Cancel]);
        assert!(labour.is_finished());
        assert_eq!(labour.step(Time(2), Event::Trained { task: id, result: result() }), []);
    }

    #[test]
    fn whoever_is_said_to_have_done_false_work_appeals_once() {
        let mut labour = worker();
        labour.step(Time(0), Event::Started);
        let banned = |task| Event::Reply(WorkerReply::Refused { task, reason: RefusalReason::Banned });
        let effects = labour.step(Time(1), banned(Some(task().id())));
        assert_eq!(sent(&effects), Some(&WorkerRequest::Appeal(task().id())));
        let Some(Effect::WakeAt(at)) = effects.last().cloned() else { panic!("{effects:?}") };
        labour.step(at, Event::Wake);
        assert_eq!(sent(&labour.step(at, banned(Some(task().id())))), None);
    }

    #[test]
    fn a_task_that_cannot_be_done_is_given_back() {
        let mut labour = worker();
        let id = leased(&mut labour, Time(0));
        let effects = labour.step(Time(1), Event::TrainingFailed { task: id });
        assert_eq!(sent(&effects), Some(&WorkerRequest::GiveBack(id)));
        let Some(Effect::WakeAt(at)) = effects.last() else { panic!("{effects:?}") };
        assert!(matches!(sent(&labour.step(*at, Event::Wake)), Some(WorkerRequest::Lease { .. })));
    }
}
