use rand::Rng;
use rand::rngs::ChaCha8Rng;

use crate::protocol::{Seed, VOCABULARY_END};

/// Tokens that may be chosen: the bytes, and the end of the document. Reserved ones never are.
const USABLE: usize = VOCABULARY_END as usize + 1;

/// How tokens are chosen. The penalties come first, then the temperature, then what cuts off the unlikely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 always takes the likeliest; else tokens are drawn in proportion to `exp(logit / temperature)`.
    pub temperature: f32,
    /// Only the likeliest tokens that have this probability together; 1 for all.
    pub top_p: f32,
    /// Only so many of the likeliest tokens; 0 for all.
    pub top_k: u32,
    /// Only tokens at least this times as likely as the likeliest; 0 for all.
    pub min_p: f32,
    /// Positive logits of tokens that are in the text so far are divided by this, negative ones multiplied
    /// ([CTRL](https://arxiv.org/abs/1909.05858)); 1 for nothing.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that were chosen before.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens that were chosen before, each time.
    pub frequency_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {value}; it must be from {least} to {most}")]
pub struct SamplingError {
    /// Which.
    pub name: &'static str,
    value: f32,
    least: f32,
    most: f32,
}

impl Sampling {
    fn check(&self) -> Result<(), SamplingError> {
        let Self { temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } = *self;
        for (name, value, least, most) in [
            ("temperature", temperature, 0.0, 10.0),
            ("top_p", top_p, 0.0, 1.0),
            ("min_p", min_p, 0.0, 1.0),
            ("repetition_penalty", repetition_penalty, 0.1, 10.0),
            ("presence_penalty", presence_penalty, -2.0, 2.0),
            ("frequency_penalty", frequency_penalty, -2.0, 2.0),
        ] {
            if !(least..=most).contains(&value) {
                return Err(SamplingError { name, value, least, most });
            }
        }
        Ok(())
    }
}

/// Chooses the tokens of one text. What it chooses follows from the settings, the seed and the logits alone.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// How often each token was chosen.
    chosen: [u32; USABLE],
    /// Which tokens are in the text.
    present: [bool; USABLE],
}

impl Sampler {
    /// A sampler whose draws come from `seed`, for a text that begins with `prompt`.
    pub fn new(sampling: Sampling, seed: &Seed, prompt: &[u16]) -> Result<Self, SamplingError> {
        sampling.check()?;
        let mut present = [false; USABLE];
        for token in prompt {
            if let Some(present) = present.get_mut(usize::from(*token)) {
                *present = true;
            }
        }
        Ok(Self { sampling, rng: seed.derive("sampling", 0).rng(), chosen: [0; USABLE], present })
    }

    /// Chooses a token: a byte, or the end of the document.
    pub fn choose(&mut self, logits: &[f32]) -> u16 {
        let all = (0..).zip(&logits[..logits.len().min(USABLE)]);
        let likely = all.map(|(token, &logit)| (self.penalised(token, logit), token));
        // Of equal ones the first, whatever their order was.
        let order = |a: &(f32, u16), b: &(f32, u16)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let token = if self.sampling.temperature > 0.0 {
            let mut likely: Vec<(f32, u16)> = likely.collect();
            likely.sort_unstable_by(order);
            self.draw(&likely)
        } else {
            likely.min_by(order).map_or(0, |(_, token)| token)
        };
        if let (Some(chosen), Some(present)) =
            (self.chosen.get_mut(usize::from(token)), self.present.get_mut(usize::from(token)))
        {
            *chosen += 1;
            *present = true;
        }
        token
    }

    fn penalised(&self, token: u16, logit: f32) -> f32 {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        let (chosen, present) = (self.chosen[usize::from(token)], self.present[usize::from(token)]);
        let logit = match (present, logit > 0.0) {
            (false, _) => logit,
            (true, true) => logit / repetition_penalty,
            (true, false) => logit * repetition_penalty,
        };
        let presence = if chosen > 0 { presence_penalty } else { 0.0 };
        logit - presence - frequency_penalty * chosen as f32
    }

    /// Draws one of some tokens, likeliest first.
    fn draw(&mut self, likely: &[(f32, u16)]) -> u16 {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let most = likely.first().map_or(0.0, |(logit, _)| *logit);
        let mut weights: Vec<f64> =
            likely.iter().map(|(logit, _)| (f64::from(logit - most) / f64::from(temperature)).exp()).collect();
        if top_k > 0 {
            weights.truncate(top_k as usize);
        }
        // The likeliest has weight 1.
        weights.truncate(weights.iter().take_while(|weight| **weight >= f64::from(min_p)).count());
        let all: f64 = weights.iter().sum();
        let (mut sum, mut kept) = (0.0, 0);
        for weight in &weights {
            (sum, kept) = (sum + weight, kept + 1);
            if sum >= f64::from(top_p) * all {
                break;
            }
        }
        let mut left = f64::from(self.rng.next_u32()) / (f64::from(u32::MAX) + 1.0) * sum;
        for ((_, token), weight) in likely.iter().zip(&weights[..kept]) {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        likely.get(kept.saturating_sub(1)).map_or(0, |(_, token)| *token)
    }
}

/// The logarithm of the probability of a token, as the model gives it: before penalties and temperature.
#[must_use]
pub fn log_probability(logits: &[f32], token: u16) -> f32 {
    logits.get(usize::from(token)).map_or(f32::NEG_INFINITY, |logit| logit - log_sum(logits))
}

/// The `most` likeliest tokens with the logarithms of their probabilities, likeliest first.
#[must_use]
pub fn likeliest(logits: &[f32], most: usize) -> Vec<(u16, f32)> {
    let sum = log_sum(logits);
    let mut all: Vec<(u16, f32)> =
        (0..).zip(&logits[..logits.len().min(USABLE)]).map(|(token, logit)| (token, logit - sum)).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(most);
    all
}

fn log_sum(logits: &[f32]) -> f32 {
    let usable = &logits[..logits.len().min(USABLE)];
    let most = usable.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = usable.iter().map(|logit| f64::from(logit - most).exp()).sum();
    #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
    let sum = sum.ln() as f32;
    most + sum
}

/// Turns bytes that come one at a time into text, holding back a character until it is whole. Bytes that can be no
/// part of UTF-8 become the replacement character.
#[derive(Debug, Default)]
pub struct Utf8Pieces {
    held: Vec<u8>,
}

impl Utf8Pieces {
    /// Takes a byte; gives the text that is complete now.
    pub fn push(&mut self, byte: u8) -> String {
        self.held.push(byte);
        let mut whole = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(text) => {
                    whole.push_str(text);
                    self.held.clear();
                    return whole;
                }
                Err(error) => {
                    let (valid, rest) = self.held.split_at(error.valid_up_to());
                    whole.push_str(&String::from_utf8_lossy(valid));
                    let Some(bad) = error.error_len() else {
                        self.held = rest.to_vec();
                        return whole;
                    };
                    whole.push(char::REPLACEMENT_CHARACTER);
                    self.held = rest[bad..].to_vec();
                }
            }
        }
    }

    /// What is left when no more bytes come: a character cut short.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(sampling: Sampling, seed: u64) -> Sampler {
        Sampler::new(sampling, &Seed::from_number(seed), &[]).unwrap()
    }

    fn at(temperature: f32, seed: u64) -> Sampler {
        sampler(Sampling { temperature, ..Sampling::default() }, seed)
    }

    /// Tokens 1 to 4 with the probabilities 0.4, 0.3, 0.2, 0.1.
    fn four() -> Vec<f32> {
        let mut logits = vec![f32::NEG_INFINITY; 264];
        for (token, probability) in [(1, 0.4f32), (2, 0.3), (3, 0.2), (4, 0.1)] {
            logits[token] = probability.ln();
        }
        logits
    }

    fn drawn(sampling: Sampling) -> Vec<u16> {
        let mut tokens: Vec<u16> = (0..400).map(|seed| sampler(sampling, seed).choose(&four())).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_reserved_tokens_are_never_chosen() {
        let mut logits = vec![0.0; 264];
        logits[97] = 5.0;
        logits[260] = 50.0;
        assert_eq!(at(0.0, 1).choose(&logits), 97);
        let mut hot = at(5.0, 1);
        assert!((0..2000).all(|_| hot.choose(&logits) <= 256));
        assert!(likeliest(&logits, 264).iter().all(|(token, _)| *token <= 256));
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let mut logits = vec![f32::NEG_INFINITY; 264];
        (logits[1], logits[2]) = (0.0, 3f32.ln());
        let draw = |seed| {
            let mut sampler = at(1.0, seed);
            (0..4000).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        let twos = draw(1).iter().filter(|token| **token == 2).count();
        assert!((2850..3150).contains(&twos), "{twos} of 4000, expected about 3000");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_unlikely_are_cut_off() {
        let all = Sampling::default();
        assert_eq!(drawn(all), [1, 2, 3, 4]);
        assert_eq!(drawn(Sampling { top_k: 2, ..all }), [1, 2]);
        assert_eq!(drawn(Sampling { top_p: 0.65, ..all }), [1, 2]);
        assert_eq!(drawn(Sampling { top_p: 0.0, ..all }), [1]);
        assert_eq!(drawn(Sampling { min_p: 0.4, ..all }), [1, 2, 3]);
        assert_eq!(drawn(Sampling { top_k: 3, top_p: 0.7, min_p: 0.3, ..all }), [1, 2]);
    }

    #[test]
    fn penalties_make_what_was_there_less_likely() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let choose = |sampling, prompt: &[u16]| {
            let mut sampler = Sampler::new(sampling, &Seed::from_number(1), prompt).unwrap();
            (0..3).map(|_| sampler.choose(&four())).collect::<Vec<_>>()
        };
        assert_eq!(choose(greedy, &[]), [1, 1, 1]);
        assert_eq!(choose(Sampling { presence_penalty: 0.5, ..greedy }, &[]), [1, 2, 1]);
        assert_eq!(choose(Sampling { frequency_penalty: 2.0, ..greedy }, &[]), [1, 2, 3]);
        // Logits below zero grow; what is in the prompt counts too.
        assert_eq!(choose(Sampling { repetition_penalty: 2.0, ..greedy }, &[1]), [2, 3, 1]);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let all = Sampling::default();
        for (name, sampling) in [
            ("temperature", Sampling { temperature: -1.0, ..all }),
            ("temperature", Sampling { temperature: f32::NAN, ..all }),
            ("temperature", Sampling { temperature: f32::INFINITY, ..all }),
            ("top_p", Sampling { top_p: 1.1, ..all }),
            ("min_p", Sampling { min_p: -0.1, ..all }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..all }),
            ("presence_penalty", Sampling { presence_penalty: 3.0, ..all }),
            ("frequency_penalty", Sampling { frequency_penalty: -3.0, ..all }),
        ] {
            assert_eq!(Sampler::new(sampling, &Seed::from_number(1), &[]).unwrap_err().name, name);
        }
    }

    #[test]
    fn log_probabilities_are_the_models() {
        assert!((log_probability(&four(), 2) - 0.3f32.ln()).abs() < 1e-6);
        let likely = likeliest(&four(), 2);
        assert_eq!([likely[0].0, likely[1].0], [1, 2]);
        assert!((likely[0].1 - 0.4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn characters_are_held_back_until_they_are_whole() {
        let mut pieces = Utf8Pieces::default();
        let texts: Vec<String> = "aä".bytes().chain([0xff, b'b', 0xe2, 0x82]).map(|byte| pieces.push(byte)).collect();
        assert_eq!(texts, ["a", "", "ä", "\u{fffd}", "b", "", ""]);
        assert_eq!(pieces.finish(), "\u{fffd}");
    }
}
