use std::collections::VecDeque;

use super::sampling::{Sampler, likeliest, log_probability};

/// What a sequence is asked to be.
#[derive(Debug)]
pub struct Job {
    /// The text so far: one token at least.
    pub prompt: Vec<u16>,
    /// Tokens to add at most, one at least.
    pub most: u32,
    /// Chooses them.
    pub sampler: Sampler,
    /// Texts before which it ends.
    pub stop: Vec<Vec<u8>>,
    /// How many of the likeliest tokens to tell at each place, if probabilities are wanted.
    pub likeliest: Option<usize>,
}

/// The name of a sequence under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// What a sequence goes on with in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub id: SequenceId,
    /// Tokens that the model has not seen yet.
    pub tokens: Vec<u16>,
}

/// A byte of the text, which is a token.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The byte.
    pub byte: u8,
    /// Its probability and those of the likeliest, if they are wanted.
    pub probability: Option<Probability>,
}

/// How likely a token was, before penalties and temperature: logarithms.
#[derive(Debug, Clone, PartialEq)]
pub struct Probability {
    /// Of the token itself.
    pub log: f32,
    /// Of the likeliest, likeliest first.
    pub likeliest: Vec<(u16, f32)>,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the document, or wrote what it was to stop before.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
}

/// What a step brought a sequence.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    /// Text that is certain now: what may become a stop text is held back.
    pub written: Vec<Written>,
    /// Tokens that were chosen, held back or not: 0 while the prompt is read, else 1.
    pub chosen: u32,
    /// Set with the last.
    pub finish: Option<Finish>,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    job: Job,
    /// Tokens of the prompt that the model has been given.
    read: usize,
    /// What it is to be given next, once the prompt is read.
    last: Option<u16>,
    chosen: u32,
    /// Bytes that may be the beginning of a stop text.
    held: VecDeque<Written>,
}

/// Decides which sequences go on in each step, and ends them. Pure: it is told what the model says.
///
/// Sequences begin in the order in which they came, as soon as one of so many places is free, and share steps with those
/// under way. Prompts are read in pieces, a few sequences at a time, so that nobody waits long for a long prompt.
#[derive(Debug)]
pub struct Scheduler {
    places: usize,
    queue: usize,
    piece: usize,
    reading: usize,
    waiting: VecDeque<Sequence>,
    active: Vec<Sequence>,
    /// Room in the queue that was promised.
    reserved: usize,
    next: u64,
}

/// There is no room in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for more queries")]
pub struct Full;

impl Scheduler {
    /// For `places` sequences at a time and `queue` that wait; prompts are read in pieces of `piece` tokens, of at most
    /// `reading` sequences in a step.
    #[must_use]
    pub fn new(places: usize, queue: usize, piece: usize, reading: usize) -> Self {
        let (waiting, active) = (VecDeque::new(), Vec::new());
        Self { places, queue, piece, reading, waiting, active, reserved: 0, next: 0 }
    }

    /// Sequences under way, and those that wait.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.active.len(), self.waiting.len())
    }

    /// Promises room for so many sequences.
    pub fn reserve(&mut self, sequences: usize) -> Result<(), Full> {
        if self.active.len() + self.waiting.len() + self.reserved + sequences > self.places + self.queue {
            return Err(Full);
        }
        self.reserved += sequences;
        Ok(())
    }

    /// Gives promised room back.
    pub fn release(&mut self, sequences: usize) {
        self.reserved -= sequences;
    }

    /// Takes a sequence into room that was promised.
    ///
    /// # Panics
    /// When none was, or there is nothing to do: an empty prompt, or no token to add.
    pub fn submit(&mut self, job: Job) -> SequenceId {
        assert!(self.reserved > 0 && !job.prompt.is_empty() && job.most > 0, "room was reserved, there is work to do");
        self.reserved -= 1;
        let id = SequenceId(self.next);
        self.next += 1;
        self.waiting.push_back(Sequence { id, job, read: 0, last: None, chosen: 0, held: VecDeque::new() });
        id
    }

    /// Forgets a sequence that nobody wants any more.
    pub fn cancel(&mut self, id: SequenceId) {
        self.waiting.retain(|sequence| sequence.id != id);
        self.active.retain(|sequence| sequence.id != id);
    }

    /// Who goes on with what; nothing when there is nothing to do. Of a prompt that is to be read from its beginning, `known`
    /// says how many tokens need not be: they are left out, but for the last one.
    pub fn plan(&mut self, mut known: impl FnMut(SequenceId, &[u16]) -> usize) -> Vec<Step> {
        while self.active.len() < self.places
            && let Some(sequence) = self.waiting.pop_front()
        {
            self.active.push(sequence);
        }
        let mut reading = 0;
        let steps = self.active.iter_mut().filter_map(|sequence| {
            let prompt = &sequence.job.prompt;
            let tokens = match sequence.last {
                Some(token) => vec![token],
                None if reading == self.reading => return None,
                None => {
                    reading += 1;
                    if sequence.read == 0 {
                        sequence.read = known(sequence.id, &prompt[..prompt.len() - 1]).min(prompt.len() - 1);
                    }
                    prompt[sequence.read..prompt.len().min(sequence.read + self.piece)].to_vec()
                }
            };
            Some(Step { id: sequence.id, tokens })
        });
        steps.collect()
    }

    /// The model has taken in what a sequence went on with, and these are the logits after it. A sequence that is not
    /// there any more makes no progress.
    pub fn advance(&mut self, id: SequenceId, logits: &[f32]) -> Progress {
        let Some(place) = self.active.iter().position(|sequence| sequence.id == id) else { return Progress::default() };
        let progress = self.active[place].advance(logits, self.piece);
        if progress.finish.is_some() {
            self.active.remove(place);
        }
        progress
    }
}

impl Sequence {
    fn advance(&mut self, logits: &[f32], piece: usize) -> Progress {
        if self.last.is_none() {
            self.read = self.job.prompt.len().min(self.read + piece);
            if self.read < self.job.prompt.len() {
                return Progress::default();
            }
        }
        let token = self.job.sampler.choose(logits);
        self.last = Some(token);
        self.chosen += 1;
        let mut progress = Progress { chosen: 1, ..Progress::default() };
        let Ok(byte) = u8::try_from(token) else {
            progress.written.extend(self.held.drain(..));
            progress.finish = Some(Finish::Stop);
            return progress;
        };
        let probability = self
            .job
            .likeliest
            .map(|most| Probability { log: log_probability(logits, token), likeliest: likeliest(logits, most) });
        self.held.push_back(Written { byte, probability });
        if self.stopped() {
            progress.finish = Some(Finish::Stop);
        } else if self.chosen == self.job.most {
            progress.finish = Some(Finish::Length);
        }
        let keep = if progress.finish.is_some() { 0 } else { self.undecided() };
        progress.written.extend(self.held.drain(..self.held.len() - keep));
        progress
    }

    /// Whether what is held ends with a stop text, which it then loses.
    fn stopped(&mut self) -> bool {
        let bytes: Vec<u8> = self.held.iter().map(|written| written.byte).collect();
        // The longest, so that nothing of any is told.
        let ended = self.job.stop.iter().filter(|stop| bytes.ends_with(stop)).map(Vec::len).max();
        if let Some(length) = ended {
            self.held.truncate(bytes.len() - length);
        }
        ended.is_some()
    }

    /// How many of the last bytes may be the beginning of a stop text.
    fn undecided(&self) -> usize {
        let bytes: Vec<u8> = self.held.iter().map(|written| written.byte).collect();
        let begins = |length: &usize| self.job.stop.iter().any(|stop| stop.starts_with(&bytes[bytes.len() - length..]));
        (1..=bytes.len()).rev().find(begins).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inference::Sampling;
    use crate::protocol::Seed;

    fn job(prompt: usize, most: u32, stop: &[&str]) -> Job {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        Job {
            prompt: vec![7; prompt],
            most,
            sampler: Sampler::new(greedy, &Seed::from_number(1), &[]).unwrap(),
            stop: stop.iter().map(|stop| stop.as_bytes().to_vec()).collect(),
            likeliest: None,
        }
    }

    fn scheduler() -> Scheduler {
        Scheduler::new(2, 3, 4, 1)
    }

    fn submit(scheduler: &mut Scheduler, job: Job) -> SequenceId {
        scheduler.reserve(1).unwrap();
        scheduler.submit(job)
    }

    /// Logits that make `token` the likeliest.
    fn say(token: u16) -> Vec<f32> {
        (0..264).map(|other| if other == token { 1.0 } else { 0.0 }).collect()
    }

    /// What a sequence writes when the model says this, piece by piece, and why it ended.
    fn written(text: &str, stop: &[&str], most: u32) -> (Vec<String>, Option<Finish>) {
        let mut scheduler = scheduler();
        let id = submit(&mut scheduler, job(1, most, stop));
        let (mut pieces, mut finish) = (Vec::new(), None);
        for token in text.bytes().map(u16::from).chain([256]) {
            if finish.is_none() {
                scheduler.plan(|_, _| 0);
                let progress = scheduler.advance(id, &say(token));
                pieces.push(progress.written.iter().map(|written| char::from(written.byte)).collect());
                finish = progress.finish;
            }
        }
        (pieces, finish)
    }

    #[test]
    fn a_text_ends_before_its_stop_text_and_none_of_it_is_told() {
        assert_eq!(written("abcd", &["cd"], 9).0.concat(), "ab");
        assert_eq!(written("abcd", &["cd"], 9).1, Some(Finish::Stop));
        // What only looked like the beginning of one is told as soon as it is clear.
        assert_eq!(written("aXbXY", &["XY"], 9).0, ["a", "", "Xb", "", ""]);
        assert_eq!(written("ab", &["bc"], 9).0, ["a", "", "b"]);
        assert_eq!(written("ab", &["bc"], 2), (vec!["a".to_owned(), "b".to_owned()], Some(Finish::Length)));
        assert_eq!(written("xaab", &["aab", "zzz"], 9).0.concat(), "x");
        assert_eq!(written("xabc", &["c", "abc"], 9).0.concat(), "x");
        assert_eq!(
            written("hello", &[], 9),
            ("hello".chars().map(String::from).chain([String::new()]).collect(), Some(Finish::Stop))
        );
    }

    #[test]
    fn long_prompts_are_read_in_pieces_while_others_go_on() {
        let mut scheduler = scheduler();
        let short = submit(&mut scheduler, job(1, 9, &[]));
        assert_eq!(scheduler.plan(|_, _| 0), [Step { id: short, tokens: vec![7] }]);
        assert_eq!(scheduler.advance(short, &say(65)).chosen, 1);
        let long = submit(&mut scheduler, job(6, 9, &[]));
        let steps = scheduler.plan(|_, _| 0);
        assert_eq!(steps, [Step { id: short, tokens: vec![65] }, Step { id: long, tokens: vec![7; 4] }]);
        scheduler.advance(short, &say(66));
        assert_eq!(scheduler.advance(long, &say(99)), Progress::default());
        let steps = scheduler.plan(|_, _| 0);
        assert_eq!(steps, [Step { id: short, tokens: vec![66] }, Step { id: long, tokens: vec![7; 2] }]);
        assert_eq!(scheduler.advance(long, &say(67)).written[0].byte, 67);
    }

    #[test]
    fn what_is_known_of_a_prompt_is_not_read_but_for_its_last_token() {
        let mut scheduler = scheduler();
        let id = submit(&mut scheduler, job(9, 9, &[]));
        let seen = std::cell::Cell::new(0);
        let steps = scheduler.plan(|_, prompt| {
            seen.set(prompt.len());
            3
        });
        assert_eq!((steps, seen.get()), (vec![Step { id, tokens: vec![7; 4] }], 8));
        assert_eq!(scheduler.advance(id, &say(65)), Progress::default());
        let steps = scheduler.plan(|_, _| unreachable!("it has begun"));
        assert_eq!(steps, [Step { id, tokens: vec![7; 2] }]);
        assert_eq!(scheduler.advance(id, &say(65)).chosen, 1);
        let id = submit(&mut scheduler, job(9, 9, &[]));
        assert_eq!(scheduler.plan(|_, _| 99)[1], Step { id, tokens: vec![7] });
        assert_eq!(scheduler.advance(id, &say(65)).chosen, 1);
    }

    #[test]
    fn the_queue_is_bounded_and_what_is_cancelled_makes_room() {
        let mut scheduler = scheduler();
        let ids: Vec<_> = (0..5).map(|_| submit(&mut scheduler, job(1, 9, &[]))).collect();
        assert_eq!(scheduler.reserve(1), Err(Full));
        assert_eq!((scheduler.plan(|_, _| 0).len(), scheduler.load()), (1, (2, 3)), "one prompt is read at a time");
        scheduler.cancel(ids[0]);
        scheduler.cancel(ids[4]);
        assert_eq!(scheduler.advance(ids[0], &say(65)), Progress::default());
        assert_eq!(scheduler.reserve(3), Err(Full));
        scheduler.reserve(2).unwrap();
        scheduler.release(2);
        scheduler.reserve(2).unwrap();
        assert_eq!(scheduler.plan(|_, _| 0)[0].id, ids[1]);
    }

    proptest! {
        /// Whatever comes and goes, what was asked for is done, in bounds.
        #[test]
        fn every_sequence_ends_and_never_has_more_tokens_than_it_asked_for(
            wanted in prop::collection::vec((1usize..12, 1u32..9), 1..20),
            seed in any::<u64>(),
        ) {
            let mut scheduler = scheduler();
            let mut rng = Seed::from_number(seed).derive("model", 0).rng();
            let mut left: VecDeque<_> = wanted.clone().into();
            let mut counts = std::collections::BTreeMap::new();
            let mut ended = 0;
            for _ in 0..10_000 {
                while let Some(&(prompt, most)) = left.front() && scheduler.reserve(1).is_ok() {
                    let id = scheduler.submit(job(prompt, most, &["A"]));
                    counts.insert(id, (0, most));
                    left.pop_front();
                }
                let steps = scheduler.plan(|_, _| 0);
                prop_assert!(steps.len() <= 2);
                if steps.is_empty() {
                    break;
                }
                for step in steps {
                    let token = crate::protocol::below(&mut rng, 3) as u16 * 32 + 33;
                    let progress = scheduler.advance(step.id, &say(token));
                    let (count, most) = counts.get_mut(&step.id).unwrap();
                    *count += progress.chosen;
                    prop_assert!(*count <= *most);
                    prop_assert!(progress.finish != Some(Finish::Length) || *count == *most);
                    ended += usize::from(progress.finish.is_some());
                }
            }
            prop_assert_eq!(ended, wanted.len());
            prop_assert_eq!(scheduler.load(), (0, 0));
        }
    }
}
