//! Text to train on where a scenario names none. It never changes, so that what a scenario promises of losses does not
//! depend on what was last written in some file.

use hydra::training::{Corpus, CorpusError};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;

use crate::chance::{log_uniform, unit};

/// Bytes, about: more than any shipped scenario reads in a round.
const LENGTH: usize = 1 << 19;

/// Bytes in a document, about.
const DOCUMENT: usize = 4096;

const WORDS: u64 = 500;

/// How many words are likely to follow a given one.
const FOLLOWERS: usize = 6;

/// The text as a corpus, of which no task sees the validation split.
pub(crate) fn corpus() -> Result<Corpus, CorpusError> {
    let mut corpus = Corpus::default();
    documents().iter().try_for_each(|document| corpus.push(document.as_bytes()))?;
    Ok(corpus)
}

/// Documents of made-up words, as frequent as words are by Zipf's law, each with others that often follow it: there is
/// spelling to learn first, then which words go together.
fn documents() -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let words: Vec<String> = (0..WORDS).map(|rank| word(&mut rng, rank)).collect();
    let pick = |rng: &mut ChaCha8Rng| (log_uniform(rng, [1, WORDS]) - 1) as usize;
    let followers: Vec<Vec<usize>> = words.iter().map(|_| (0..FOLLOWERS).map(|_| pick(&mut rng)).collect()).collect();
    let mut documents = Vec::new();
    let mut at = 0;
    while documents.len() * DOCUMENT < LENGTH {
        let mut text = String::new();
        while text.len() < DOCUMENT {
            for place in 0..log_uniform(&mut rng, [4, 16]) {
                let usual = followers[at].choose(&mut rng).copied().filter(|_| unit(&mut rng) < 0.7);
                at = usual.unwrap_or_else(|| pick(&mut rng));
                text.push_str(if place == 0 { "" } else { " " });
                text.push_str(&words[at]);
            }
            text.push_str(if unit(&mut rng) < 0.2 { ".\n" } else { ". " });
        }
        documents.push(text);
    }
    documents
}

/// The more frequent, the shorter.
fn word(rng: &mut ChaCha8Rng, rank: u64) -> String {
    let syllables = 1 + u64::from(rank > 20) + u64::from(rank > 150);
    let letter = |from: &[u8], rng: &mut ChaCha8Rng| from.choose(rng).map_or('a', |letter| char::from(*letter));
    (0..syllables)
        .flat_map(|_| [letter(b"bdfghklmnprstvw", rng), letter(b"aeiou", rng), letter(b"nrst", rng)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydra::protocol::Digest;

    #[test]
    fn the_text_never_changes() {
        let text = documents().concat();
        assert!(text.len() >= LENGTH);
        assert_eq!(
            Digest::of(text.as_bytes()).to_string(),
            "64957523feeda34db3ffe66c59483529f29832d53af1ed3c4051f5846eee0289"
        );
    }
}
