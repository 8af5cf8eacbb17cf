use rand::Rng;
use rand::rngs::ChaCha8Rng;

use crate::protocol::{Seed, VOCABULARY_END};

/// Chooses tokens: the most likely at temperature 0, else by chance, in proportion to `exp(logit / temperature)`.
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    rng: ChaCha8Rng,
}

/// A temperature that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the temperature is {0}; it must be from 0 (always the likeliest token) to 10")]
pub struct SamplingError(f32);

impl Sampler {
    /// A sampler whose draws come from `seed`.
    pub fn new(temperature: f32, seed: &Seed) -> Result<Self, SamplingError> {
        if (0.0..=10.0).contains(&temperature) {
            Ok(Self { temperature, rng: seed.derive("sampling", 0).rng() })
        } else {
            Err(SamplingError(temperature))
        }
    }

    /// Chooses a token: a byte, or the end of the document. Reserved tokens are never chosen.
    pub fn choose(&mut self, logits: &[f32]) -> u16 {
        let usable = &logits[..logits.len().min(VOCABULARY_END as usize + 1)];
        let (likeliest, most) = usable
            .iter()
            .enumerate()
            .fold((0, f32::NEG_INFINITY), |best, (token, &logit)| if logit > best.1 { (token, logit) } else { best });
        let mut chosen = likeliest;
        if self.temperature > 0.0 {
            let weight = |logit: f32| f64::from((logit - most) / self.temperature).exp();
            let total: f64 = usable.iter().map(|&logit| weight(logit)).sum();
            let mut left = f64::from(self.rng.next_u32()) / (f64::from(u32::MAX) + 1.0) * total;
            for (token, &logit) in usable.iter().enumerate() {
                left -= weight(logit);
                if left < 0.0 {
                    chosen = token;
                    break;
                }
            }
        }
        u16::try_from(chosen).unwrap_or(0)
    }
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

    #[test]
    fn temperature_zero_takes_the_likeliest_and_reserved_tokens_are_never_chosen() {
        let mut logits = vec![0.0; 264];
        logits[97] = 5.0;
        logits[260] = 50.0;
        let mut greedy = Sampler::new(0.0, &Seed::from_number(1)).unwrap();
        assert_eq!(greedy.choose(&logits), 97);
        let mut hot = Sampler::new(5.0, &Seed::from_number(1)).unwrap();
        assert!((0..2000).all(|_| hot.choose(&logits) <= 256));
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let mut logits = vec![f32::NEG_INFINITY; 264];
        (logits[1], logits[2]) = (0.0, 3f32.ln());
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, &Seed::from_number(seed)).unwrap();
            (0..4000).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        let twos = draw(1).iter().filter(|token| **token == 2).count();
        assert!((2850..3150).contains(&twos), "{twos} of 4000, expected about 3000");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn silly_temperatures_are_refused() {
        for temperature in [-1.0, 11.0, f32::NAN, f32::INFINITY] {
            assert!(Sampler::new(temperature, &Seed::from_number(1)).is_err());
        }
    }

    #[test]
    fn characters_are_held_back_until_they_are_whole() {
        let mut pieces = Utf8Pieces::default();
        let texts: Vec<String> = "aä".bytes().chain([0xff, b'b', 0xe2, 0x82]).map(|byte| pieces.push(byte)).collect();
        assert_eq!(texts, ["a", "", "ä", "\u{fffd}", "b", "", ""]);
        assert_eq!(pieces.finish(), "\u{fffd}");
    }
}
