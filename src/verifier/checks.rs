//! The checks themselves: the first two layers of verification.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::protocol::{
    DeviceKind, Digest, Lateness, Layer, Outcome, PublicKey, Reason, Seed, Submission, Task, Trail, VOCABULARY,
    Verdict, below, limits, wire,
};
use crate::training::{CodecError, Layout};

/// Numbers of an update that are compared when looking for copies. Independent updates would have to agree by chance
/// in all of them.
const SKETCH_LEN: u64 = 4096;

/// Something to check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// One submission by itself.
    Admission(Box<AdmissionJob>),
    /// The admitted submissions of a round beside each other.
    Statistics(Box<StatisticsJob>),
    /// One accepted submission, by computing it again.
    Replay(Box<ReplayJob>),
    /// One accepted submission, beside what another worker got for the same task.
    Copies(Box<CopiesJob>),
}

impl Job {
    /// The digest of its canonical encoding.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::in_domain("hydra verification job v1", &wire::encode(self))
    }
}

/// One submission, to be checked by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdmissionJob {
    /// What was to be done.
    pub task: Task,
    /// Who did it.
    pub worker: PublicKey,
    /// What they handed in.
    pub submission: Submission,
    /// The loss of the base model, nats a token, if it has been measured by now.
    pub base_loss: Option<f64>,
}

/// Admitted submissions, to be compared with each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatisticsJob {
    /// Those to judge, in the order in which they were committed.
    pub candidates: Vec<Candidate>,
    /// Those of the round that were accepted before.
    pub accepted: Vec<Candidate>,
    /// Relative norms (see [`relative_norm`]) of updates accepted in recent rounds, the median of each worker's, oldest round
    /// first.
    pub recent_norms: Vec<f32>,
    /// Where the numbers of an update are that are compared.
    pub places: Seed,
}

/// An accepted submission, to be computed again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplayJob {
    /// What was to be done.
    pub task: Task,
    /// Who did it.
    pub worker: PublicKey,
    /// What they handed in.
    pub payload: Digest,
    /// How they say that it came about.
    pub trail: Trail,
    /// Who has judged it before, and must not again.
    pub not: Vec<PublicKey>,
    /// How many opinions on it there are: where one verifier is all there is, it is asked again for another.
    pub turn: u32,
}

/// An accepted submission, to be compared with what another worker got for the same task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopiesJob {
    /// What was to be done.
    pub task: Task,
    /// Who did it.
    pub worker: PublicKey,
    /// What they handed in.
    pub payload: Digest,
    /// What they did it on.
    pub device: DeviceKind,
    /// Who did it again.
    pub peer: PublicKey,
    /// What those handed in, and what they did it on.
    pub copy: (Digest, DeviceKind),
    /// Others who did it again and got something else than was handed in, what they got, and what on.
    pub against: Vec<(PublicKey, Digest, DeviceKind)>,
}

/// An admitted submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// What was to be done.
    pub task: Task,
    /// How many rounds after its own it comes.
    pub lateness: Lateness,
    /// Who did it.
    pub worker: PublicKey,
    /// The encoded update.
    pub payload: Digest,
    /// Its L2 norm, from the admission verdict.
    pub norm: f32,
    /// Whether its worker has a name: as many results as are always audited have passed, and none was rejected since.
    pub established: bool,
}

impl Candidate {
    /// What it counts for, if it is good.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.lateness.counted(self.task.tokens())
    }
}

/// Checks one submission by itself. `payload` is what is in the blob store for it.
#[must_use]
pub fn admit(job: &AdmissionJob, payload: Option<&[u8]>) -> Verdict {
    let outcome = match admission(&job.task, &job.submission, job.base_loss, payload) {
        Ok(norm) => Outcome::Accepted { layer: Layer::Admission, tokens: job.task.tokens(), norm },
        Err(reason) => Outcome::Rejected { layer: Layer::Admission, reason },
    };
    let payload = job.submission.commitment.payload;
    Verdict { task: job.task.id(), worker: job.worker, payload, work: 0, by: None, turn: 0, outcome }
}

/// Form: everything that can be said about a submission without looking at another. Gives the update's L2 norm.
fn admission(
    task: &Task,
    submission: &Submission,
    base_loss: Option<f64>,
    payload: Option<&[u8]>,
) -> Result<f32, Reason> {
    let commitment = &submission.commitment;
    if Submission::trace_digest(&submission.losses) != commitment.trace {
        return Err(Reason::TraceMismatch);
    }
    if submission.trail().digest() != commitment.states || submission.states.len() != task.segments().len() {
        return Err(Reason::StatesMismatch);
    }
    if commitment.tokens != task.tokens() {
        return Err(Reason::Tokens { claimed: commitment.tokens, expected: task.tokens() });
    }
    // Training does not make a model twice as bad as a uniform guess, or as it was where it was worse than that: a model that
    // somebody has broken must be left by training it. How bad it was is not known before it is measured.
    let worst = 2.0 * base_loss.unwrap_or(f64::INFINITY).max(f64::from(VOCABULARY).ln());
    let possible = |loss: &f32| loss.is_finite() && (0.0..=worst).contains(&f64::from(*loss));
    if submission.losses.len() != task.inner_steps as usize || !submission.losses.iter().all(possible) {
        return Err(Reason::TraceImpossible);
    }
    let payload = payload.ok_or(Reason::PayloadMissing)?;
    let norm = task.codec.norm(&Layout::of(&task.model), payload).map_err(|error| match error {
        CodecError::NotFinite => Reason::NotFinite,
        other => Reason::PayloadMalformed(other.to_string()),
    })? as f32;
    if norm.is_finite() { Ok(norm) } else { Err(Reason::NotFinite) }
}

/// What a comparison makes of a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it passes, but is worth a look at what it does ([`helps`](super::held_out::helps)): it agrees with the others
    /// so much less than they with each other, repeats another worker's, or comes late and cannot be compared with them.
    pub suspect: bool,
}

/// Beside each other: an update much larger or smaller than the others, one that repeats another of its worker's, or one
/// that points against most. `fetch` gives the payload with a digest, or `None` when it is not in the blob store. In the
/// order of the job's candidates.
pub fn compare(job: &StatisticsJob, mut fetch: impl FnMut(&Digest) -> Option<Vec<u8>>) -> Vec<Compared> {
    let all: Vec<&Candidate> = job.accepted.iter().chain(&job.candidates).collect();
    let measure = measure(&all);
    let median_norm = reference_norm(job, &measure);
    let recent_norm = median(job.recent_norms.iter().copied().map(f64::from).collect());
    // What comes late was made when updates may have been longer: it is compared with those of then too.
    let nearer_norm = |candidate: &Candidate| {
        let norm = f64::from(relative_norm(&candidate.task, candidate.norm));
        let distance = |median: &f64| (norm / median).ln().abs();
        let medians = [Some(median_norm?), recent_norm];
        medians.into_iter().flatten().min_by(|a, b| distance(a).total_cmp(&distance(b)))
    };
    let sketches: Vec<Option<Vec<f32>>> = all.iter().map(|one| sketch(one, &job.places, &mut fetch)).collect();
    let mut rejected = vec![false; all.len()];
    let mut found = Vec::new();
    for (place, candidate) in all.iter().enumerate().skip(job.accepted.len()) {
        let with = |sketch: &Vec<f32>, other: &Option<Vec<f32>>| other.as_ref().map(|other| cosine(sketch, other));
        let cosines: Option<Vec<Option<f64>>> =
            sketches[place].as_ref().map(|sketch| sketches.iter().map(|other| with(sketch, other)).collect());
        // Only updates of one base model have a direction in common: another's may lie behind it already.
        let of_base =
            |(other, cosine): (&&Candidate, &Option<f64>)| cosine.filter(|_| other.task.base == candidate.task.base);
        let agreement = cosines.as_ref().and_then(|cosines| {
            let others = all.iter().zip(cosines).enumerate().filter(|(other, _)| *other != place);
            let others = others.filter_map(|(_, (other, cosine))| Some((other.worker, of_base((other, cosine))?)));
            agreement(candidate.worker, others.filter(|(other, _)| measure.contains(other)).collect())
        });
        let alike = |other: &Candidate, cosine: Option<f64>| {
            other.payload == candidate.payload || cosine.is_some_and(|cosine| cosine > f64::from(limits::COPY_COSINE))
        };
        // One of two of different workers is false, but not always the later one: whoever does another's task in place of its
        // own may well be first.
        let repeats = cosines.as_ref().is_some_and(|cosines| {
            let mut others = all.iter().zip(cosines).filter(|(other, _)| other.worker != candidate.worker);
            others.any(|(other, cosine)| alike(other, *cosine))
        });
        let reason = match &cosines {
            None => Some(Reason::PayloadMissing),
            Some(cosines) => {
                let earlier = all.iter().zip(cosines).zip(&rejected).take(place);
                let mut own = earlier.filter(|((other, _), out)| !**out && other.worker == candidate.worker);
                let copy = own.find(|((other, cosine), _)| alike(other, **cosine));
                let copy = copy.map(|((other, _), _)| Reason::Copy { of: other.task.id() });
                let median_norm =
                    if candidate.lateness == Lateness::NONE { median_norm } else { nearer_norm(candidate) };
                norm_outlier(candidate, median_norm).or(copy).or_else(|| {
                    let against = agreement.filter(|agreement| *agreement < limits::DIRECTION_COSINE_MIN);
                    against.map(|cosine| Reason::Against { cosine: cosine as f32 })
                })
            }
        };
        rejected[place] = reason.is_some();
        // What comes late is mostly alone with its base, so that nothing is said about its direction yet.
        let untold = reason.is_none() && (repeats || candidate.lateness != Lateness::NONE);
        let agreement = agreement.filter(|_| reason.is_none());
        let outcome = match reason {
            Some(reason) => Outcome::Rejected { layer: Layer::Statistics, reason },
            None => Outcome::Accepted { layer: Layer::Statistics, tokens: candidate.tokens(), norm: candidate.norm },
        };
        let (task, worker, payload) = (candidate.task.id(), candidate.worker, candidate.payload);
        found.push((Verdict { task, worker, payload, work: 0, by: None, turn: 0, outcome }, agreement, untold));
    }
    let usual = found.iter().filter(|(verdict, ..)| measure.contains(&verdict.worker));
    let usual = usual.filter_map(|(verdict, agreement, _)| Some((verdict.worker, (*agreement)?)));
    let usual = median(one_vote_each(usual.collect(), limits::DIRECTION_OTHERS_MIN));
    let is_odd = |agreement: Option<f64>| {
        agreement.zip(usual).is_some_and(|(agreement, usual)| agreement < limits::SUSPECT_AGREEMENT * usual)
    };
    let compared = |(verdict, agreement, untold)| Compared { verdict, suspect: untold || is_odd(agreement) };
    found.into_iter().map(compared).collect()
}

/// Whose updates the others are compared with: those of established workers where there are enough of them, whose voices have
/// cost them audited work each. Otherwise everybody's: somebody must be the first.
fn measure(all: &[&Candidate]) -> BTreeSet<PublicKey> {
    let established: BTreeSet<_> = all.iter().filter(|one| one.established).map(|one| one.worker).collect();
    if established.len() < limits::ESTABLISHED_MIN { all.iter().map(|one| one.worker).collect() } else { established }
}

fn norm_outlier(candidate: &Candidate, median: Option<f64>) -> Option<Reason> {
    let ratio = relative_norm(&candidate.task, candidate.norm) / median? as f32;
    let usual = 1.0 / limits::NORM_RATIO_MAX..=limits::NORM_RATIO_MAX;
    (!usual.contains(&ratio)).then_some(Reason::NormOutlier { ratio })
}

/// The median of what the other workers' updates have in common with one of `worker`'s, and not the mean, so that a minority
/// that agrees with itself cannot make the rest look odd: of two others, both must be against it. Where there are fewer,
/// each update counts, also the worker's own. Nothing where they are too few to tell.
fn agreement(worker: PublicKey, all: Vec<(PublicKey, f64)>) -> Option<f64> {
    let voices = voices(all.iter().filter(|(other, _)| *other != worker).copied());
    if voices.len() >= limits::DIRECTION_WORKERS_MIN {
        return median(voices);
    }
    let all: Vec<f64> = all.into_iter().map(|(_, cosine)| cosine).collect();
    if all.len() < limits::DIRECTION_OTHERS_MIN { None } else { median(all) }
}

/// The median of what each worker brought: whoever did most of a round's tasks is one worker still, and must not become the
/// measure of the others.
pub(crate) fn voices(values: impl Iterator<Item = (PublicKey, f64)>) -> Vec<f64> {
    let mut of_worker: BTreeMap<PublicKey, Vec<f64>> = BTreeMap::new();
    for (worker, value) in values {
        of_worker.entry(worker).or_default().push(value);
    }
    of_worker.into_values().filter_map(median).collect()
}

/// A voice for each worker where there are at least so many of them, otherwise everything.
fn one_vote_each(values: Vec<(PublicKey, f64)>, workers_min: usize) -> Vec<f64> {
    let voices = voices(values.iter().copied());
    if voices.len() < workers_min { values.into_iter().map(|(_, value)| value).collect() } else { voices }
}

/// The upper one of two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// An update's norm over the sum of its learning rates: a step of Muon or Adam has about the length of its rate, so
/// this hardly changes while the schedule moves, and rounds can be compared.
#[must_use]
pub fn relative_norm(task: &Task, norm: f32) -> f32 {
    let steps = task.first_step..task.first_step + u64::from(task.inner_steps);
    norm / steps.map(|step| task.schedule.rate(step)).sum::<f32>().max(f32::MIN_POSITIVE)
}

/// The median relative norm of the round; of recent rounds too where the round alone is too few to tell.
fn reference_norm(job: &StatisticsJob, measure: &BTreeSet<PublicKey>) -> Option<f64> {
    let of_round = job.candidates.iter().chain(&job.accepted).filter(|one| measure.contains(&one.worker));
    let of_round = of_round.map(|one| (one.worker, relative_norm(&one.task, one.norm).into()));
    let mut norms = one_vote_each(of_round.collect(), limits::NORM_REFERENCE_MIN);
    if norms.len() < limits::NORM_REFERENCE_MIN {
        norms.extend(job.recent_norms.iter().copied().map(f64::from));
    }
    if norms.len() < limits::NORM_REFERENCE_MIN {
        return None;
    }
    median(norms).filter(|median| *median > 0.0)
}

/// The numbers of an update at places drawn for its round: the same places for all tasks of the round.
fn sketch(one: &Candidate, places: &Seed, fetch: &mut impl FnMut(&Digest) -> Option<Vec<u8>>) -> Option<Vec<f32>> {
    let bytes = fetch(&one.payload)?;
    let layout = Layout::of(&one.task.model);
    let update = one.task.codec.decode(&Arc::clone(&layout), &bytes).ok()?;
    let mut rng = places.rng();
    let places = (0..SKETCH_LEN).map(|_| below(&mut rng, layout.len() as u64) as usize);
    Some(places.map(|place| update.values()[place]).collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Codec, Keypair, Round};
    use crate::testing;
    use crate::training::{CODECS, Params};

    /// An honest-looking submission for task `index`, its update multiplied by `scale`.
    fn submission(index: u32, update_seed: u64, scale: f32) -> (Task, Submission, Vec<u8>) {
        hand_in(index, Params::initial(&testing::spec(8).model, &Seed::from_number(update_seed)), scale)
    }

    /// The same, where all updates have half of their direction in common.
    fn agreeing(index: u32, scale: f32) -> (Task, Submission, Vec<u8>) {
        let of = |seed: u64| Params::initial(&testing::spec(8).model, &Seed::from_number(seed));
        let mut update = of(u64::from(index));
        // Gains, which all start as one, are no part of that.
        update.values_mut().iter_mut().zip(of(1000).values()).for_each(|(own, shared)| {
            *own = if *shared == 1.0 { 0.0 } else { *own + shared };
        });
        hand_in(index, update, scale)
    }

    fn hand_in(index: u32, mut update: Params, scale: f32) -> (Task, Submission, Vec<u8>) {
        let spec = testing::spec(100);
        let task = Task::of_round(&spec, Round(3), index, Digest::of(b"base"));
        update.values_mut().iter_mut().for_each(|value| *value *= scale);
        let payload = task.codec.encode(&update, &task.seed).unwrap();
        let losses = vec![3.0; task.inner_steps as usize];
        let submission = Submission::new(task.id(), Digest::of(&payload), losses, testing::trail(4), task.tokens());
        (task, submission, payload)
    }

    fn admit(change: impl FnOnce(&mut Submission, &mut Option<Vec<u8>>)) -> Result<f32, Reason> {
        let (task, mut submission, payload) = submission(0, 1, 0.1);
        let mut payload = Some(payload);
        change(&mut submission, &mut payload);
        admission(&task, &submission, Some(5.0), payload.as_deref())
    }

    #[test]
    fn a_sound_submission_is_admitted_with_its_norm() {
        assert!(admit(|_, _| ()).unwrap() > 0.0);
    }

    #[test]
    fn every_defect_of_form_is_named() {
        assert_eq!(admit(|_, payload| *payload = None), Err(Reason::PayloadMissing));
        assert_eq!(admit(|submission, _| submission.losses[0] = 2.0), Err(Reason::TraceMismatch));
        let relosses = |submission: &mut Submission, losses: Vec<f32>| {
            submission.commitment.trace = Submission::trace_digest(&losses);
            submission.losses = losses;
        };
        for losses in [vec![3.0], vec![f32::NAN; 4], vec![99.0; 4], vec![-1.0; 4]] {
            assert_eq!(admit(|submission, _| relosses(submission, losses)), Err(Reason::TraceImpossible));
        }
        let tokens = |submission: &mut Submission| submission.commitment.tokens += 1;
        assert!(matches!(admit(|submission, _| tokens(submission)), Err(Reason::Tokens { .. })));
        let short = admit(|_, payload| *payload = Some(vec![4, 5]));
        assert!(matches!(short, Err(Reason::PayloadMalformed(_))), "{short:?}");
        let other = |submission: &mut Submission| submission.states[3] = Digest::of(b"other");
        assert_eq!(admit(|submission, _| other(submission)), Err(Reason::StatesMismatch));
        let fewer = |submission: &mut Submission| {
            submission.states.pop();
            submission.commitment.states = submission.trail().digest();
        };
        assert_eq!(admit(|submission, _| fewer(submission)), Err(Reason::StatesMismatch));
    }

    fn judge(submissions: &[(Task, Submission, Vec<u8>)], recent_norms: Vec<f32>) -> Vec<Outcome> {
        weigh(submissions, recent_norms, Lateness::NONE).into_iter().map(|one| one.verdict.outcome).collect()
    }

    /// The same, with the last of them so late.
    fn weigh(submissions: &[(Task, Submission, Vec<u8>)], recent_norms: Vec<f32>, late: Lateness) -> Vec<Compared> {
        weigh_of(submissions, &vec![1; submissions.len()], recent_norms, late)
    }

    /// The same, each the work of the worker with this number; those from [`ESTABLISHED`] on have a name.
    fn weigh_of(
        submissions: &[(Task, Submission, Vec<u8>)],
        workers: &[u8],
        recent_norms: Vec<f32>,
        late: Lateness,
    ) -> Vec<Compared> {
        let blobs: BTreeMap<Digest, Vec<u8>> =
            submissions.iter().map(|(_, submission, bytes)| (submission.commitment.payload, bytes.clone())).collect();
        let mut candidates: Vec<Candidate> = submissions
            .iter()
            .zip(workers)
            .map(|((task, submission, bytes), worker)| Candidate {
                task: task.clone(),
                lateness: Lateness::NONE,
                worker: Keypair::from_secret(&[*worker; 32]).public(),
                payload: submission.commitment.payload,
                norm: admission(task, submission, None, Some(bytes)).unwrap(),
                established: *worker >= ESTABLISHED,
            })
            .collect();
        if let Some(last) = candidates.last_mut() {
            last.lateness = late;
        }
        let job = StatisticsJob { candidates, accepted: vec![], recent_norms, places: Seed::from_number(3) };
        compare(&job, |digest| blobs.get(digest).cloned())
    }

    /// The number of the first worker that has a name.
    const ESTABLISHED: u8 = 100;

    fn accepted(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Accepted { layer: Layer::Statistics, .. })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Workers that mean well: a direction that all have in common, from a third of what each has of its own to three times
        /// as much, lengths that differ by a fifth, any codec, few or many results of few or many workers, some of whom
        /// have a name.
        #[test]
        fn honest_work_passes_admission_and_statistics_in_any_swarm(
            seed in 0u64..1 << 32,
            shared in 0.33f32..3.0,
            scales in prop::collection::vec(0.8f32..1.25, 1..14),
            workers in prop::collection::vec(ESTABLISHED - 4..ESTABLISHED + 4, 14),
            which in 0usize..5,
            length in 1e-4f32..1.0,
        ) {
            let of = |seed: u64| Params::initial(&testing::spec(8).model, &Seed::from_number(seed));
            let common = of(seed);
            let all: Vec<_> = (0..).zip(&scales).map(|(index, scale)| {
                let mut task = Task::of_round(&testing::spec(16), Round(3), index, Digest::of(b"base"));
                task.codec = CODECS[which];
                let mut update = of(seed + 1 + u64::from(index));
                for (own, common) in update.values_mut().iter_mut().zip(common.values()) {
                    // Gains, which all start as one, are no part of that.
                    *own = if *common == 1.0 { 0.0 } else { length * scale * (*own + shared * common) };
                }
                let payload = task.codec.encode(&update, &task.seed).unwrap();
                let losses = vec![3.0; task.inner_steps as usize];
                let digest = Digest::of(&payload);
                let submission = Submission::new(task.id(), digest, losses, testing::trail(4), task.tokens());
                (task, submission, payload)
            }).collect();
            let norms = all.iter().map(|(task, submission, bytes)| {
                relative_norm(task, admission(task, submission, None, Some(bytes)).unwrap())
            }).collect();
            for recent in [vec![], norms] {
                for one in weigh_of(&all, &workers, recent, Lateness::NONE) {
                    prop_assert!(accepted(&one.verdict.outcome), "{one:?}");
                }
            }
        }

        /// However many results each has, and however odd those of the minority are.
        #[test]
        fn a_minority_of_workers_gets_nobody_honest_turned_away(
            results in prop::collection::vec(1u8..=10, 2..=8),
            scale in prop::sample::select(vec![-0.1f32, -1.0, 1.0, 0.01]),
        ) {
            let cheats = (results.len() - 1) / 2;
            let workers: Vec<u8> = (0..).zip(&results).flat_map(|(worker, of)| vec![worker; (*of).into()]).collect();
            let is_cheat = |worker: u8| usize::from(worker) < cheats;
            let all: Vec<_> = (0..).zip(&workers).map(|(index, worker)| {
                agreeing(index, if is_cheat(*worker) { scale } else { 0.1 })
            }).collect();
            for (one, worker) in weigh_of(&all, &workers, vec![], Lateness::NONE).iter().zip(&workers) {
                prop_assert!(is_cheat(*worker) || accepted(&one.verdict.outcome), "{one:?}");
            }
        }
    }

    #[test]
    fn updates_that_point_against_most_others_are_turned_away_and_nobody_else() {
        let all: Vec<_> = (0..8).map(|i| agreeing(i, if i < 5 { 0.1 } else { -0.1 })).collect();
        for (index, outcome) in judge(&all, vec![]).iter().enumerate() {
            let against = matches!(outcome, Outcome::Rejected { reason: Reason::Against { .. }, .. });
            assert_eq!((against, accepted(outcome)), (index >= 5, index < 5), "{index}: {outcome:?}");
        }
        // Of two, nobody can say which one is wrong.
        assert!(judge(&all[4..6], vec![]).iter().all(accepted));
    }

    #[test]
    fn a_late_update_is_not_held_to_the_direction_of_another_base_but_looked_at() {
        let mut all: Vec<_> = (0..6).map(|i| agreeing(i, if i < 5 { 0.1 } else { -0.1 })).collect();
        all[5].0.base = Digest::of(b"the base of an earlier round");
        let late = Lateness::NONE.later().unwrap();
        let compared = weigh(&all, vec![], late);
        assert!(compared.iter().all(|one| accepted(&one.verdict.outcome)), "{compared:?}");
        let looked_at: Vec<bool> = compared.iter().map(|one| one.suspect).collect();
        assert_eq!(looked_at, [false, false, false, false, false, true]);
        let Outcome::Accepted { tokens, .. } = compared[5].verdict.outcome else { panic!("{compared:?}") };
        assert_eq!(tokens, all[5].0.tokens() / 2);
        let copy = (all[5].0.clone(), all[1].1.clone(), all[1].2.clone());
        let compared = weigh(&[&all[..5], &[copy]].concat(), vec![], late);
        assert!(matches!(compared[5].verdict.outcome, Outcome::Rejected { reason: Reason::Copy { .. }, .. }));
        assert!(!compared[5].suspect, "what is rejected stays so");
    }

    #[test]
    fn a_model_that_is_broken_can_be_trained_on() {
        let (task, good, payload) = submission(0, 1, 0.1);
        let with = |losses: [f32; 4], base_loss| {
            let submission =
                Submission::new(task.id(), good.commitment.payload, losses.to_vec(), testing::trail(4), task.tokens());
            admission(&task, &submission, base_loss, Some(&payload)).err()
        };
        let losses = [48.6, 52.0, 40.0, 30.0];
        assert_eq!(with(losses, Some(4.8)), Some(Reason::TraceImpossible));
        assert_eq!(with(losses, Some(48.6)), None);
        assert_eq!(with(losses, None), None, "nobody has measured it yet");
        assert_eq!(with([f32::INFINITY; 4], None), Some(Reason::TraceImpossible));
        assert_eq!(with([f32::INFINITY; 4], Some(f64::INFINITY)), Some(Reason::TraceImpossible));
    }

    #[test]
    fn honest_updates_pass_and_an_oversized_or_tiny_one_does_not() {
        let mut all: Vec<_> = (0..5).map(|i| submission(i, i.into(), 0.1)).collect();
        assert!(judge(&all, vec![]).iter().all(accepted));
        all[2] = submission(2, 2, -1.0);
        all[4] = submission(4, 4, 0.01);
        let outcomes = judge(&all, vec![]);
        for (index, outcome) in outcomes.iter().enumerate() {
            let outlier =
                matches!(outcome, Outcome::Rejected { reason: Reason::NormOutlier { .. }, layer: Layer::Statistics });
            assert_eq!(outlier, index == 2 || index == 4, "{index}: {outcome:?}");
        }
    }

    #[test]
    fn whoever_does_most_of_a_round_is_one_voice_in_it() {
        // Five of eight tasks are one worker's, ten times as long or turned round.
        for scale in [-1.0, -0.1] {
            let all: Vec<_> = (0..8).map(|i| agreeing(i, if i < 5 { scale } else { 0.1 })).collect();
            let workers: Vec<u8> = (0..8).map(|i: u8| i.saturating_sub(4)).collect();
            let compared = weigh_of(&all, &workers, vec![], Lateness::NONE);
            for (index, one) in compared.iter().enumerate() {
                assert_eq!(accepted(&one.verdict.outcome), index >= 5, "{scale}, {index}: {one:?}");
            }
        }
    }

    #[test]
    fn with_one_result_each_two_honest_workers_outvote_a_third_that_has_six() {
        let all: Vec<_> = (0..8).map(|i| agreeing(i, if i < 6 { -0.1 } else { 0.1 })).collect();
        let compared = weigh_of(&all, &[0, 0, 0, 0, 0, 0, 1, 2], vec![], Lateness::NONE);
        let passes: Vec<bool> = compared.iter().map(|one| accepted(&one.verdict.outcome)).collect();
        assert_eq!(passes, [false, false, false, false, false, false, true, true]);
    }

    #[test]
    fn new_keys_do_not_outvote_three_workers_that_have_a_name() {
        // Three with ten results each, and four new keys with one each, turned round or ten times as long.
        let work: Vec<(u8, f32)> = (0..34u8).map(|i| if i < 30 { (i / 10, 0.1) } else { (i, 0.0) }).collect();
        for scale in [-0.1, -1.0] {
            let scaled = |of: f32| if of == 0.0 { scale } else { of };
            let all: Vec<_> = (0..).zip(&work).map(|(i, (_, of))| agreeing(i, scaled(*of))).collect();
            let passes = |first: u8| -> Vec<bool> {
                let workers: Vec<u8> = work.iter().map(|(w, _)| if *w < 3 { first + w } else { *w }).collect();
                let compared = weigh_of(&all, &workers, vec![], Lateness::NONE);
                compared.iter().map(|one| accepted(&one.verdict.outcome)).collect()
            };
            let honest: Vec<bool> = (0..34).map(|i| i < 30).collect();
            assert_eq!(passes(ESTABLISHED), honest, "{scale}");
            assert_ne!(passes(ESTABLISHED - 3), honest, "as many voices as keys, where nobody has a name: {scale}");
            assert_ne!(passes(ESTABLISHED - 1), honest, "two with a name are too few to be the measure: {scale}");
        }
    }

    #[test]
    fn a_lone_update_is_compared_with_recent_rounds() {
        let (task, one, bytes) = submission(0, 1, 1.0);
        let norm = relative_norm(&task, admission(&task, &one, None, Some(&bytes)).unwrap());
        let alone = [(task, one, bytes)];
        assert!(accepted(&judge(&alone, vec![])[0]), "nothing to compare with");
        assert!(accepted(&judge(&alone, vec![norm; 4])[0]));
        assert!(!accepted(&judge(&alone, vec![norm / 10.0; 4])[0]));
    }

    #[test]
    fn of_two_alike_a_worker_keeps_the_first_and_two_workers_keep_both_until_somebody_looks() {
        // Exact codec: two ternary roundings of one update differ too much to be told from independent ones, and are
        // left to the replay.
        let mut all: Vec<_> = (0..4).map(|i| submission(i, i.into(), 0.1)).collect();
        let exact = |index: u32, scale: f32| {
            let (mut task, _, _) = submission(index, 1, scale);
            task.codec = Codec::Fp32;
            let mut update = Params::initial(&task.model, &Seed::from_number(1));
            update.values_mut().iter_mut().for_each(|value| *value *= scale);
            let payload = task.codec.encode(&update, &task.seed).unwrap();
            let losses = vec![3.0; task.inner_steps as usize];
            (
                task.clone(),
                Submission::new(task.id(), Digest::of(&payload), losses, testing::trail(4), task.tokens()),
                payload,
            )
        };
        all[1] = exact(1, 0.1);
        all[3] = exact(3, 0.11);
        let outcomes = judge(&all, vec![]);
        assert!(outcomes[..3].iter().all(accepted), "{outcomes:?}");
        let of = all[1].0.id();
        assert_eq!(outcomes[3], Outcome::Rejected { layer: Layer::Statistics, reason: Reason::Copy { of } });
        // Whoever was first may have done the other's task.
        let compared = weigh_of(&all, &[1, 1, 1, 2], vec![], Lateness::NONE);
        let found: Vec<_> = compared.iter().map(|one| (accepted(&one.verdict.outcome), one.suspect)).collect();
        assert_eq!(found, [(true, false), (true, true), (true, false), (true, true)]);
    }
}
