use serde::{Deserialize, Serialize};

use crate::protocol::wire::{self, WireError};
use crate::protocol::{Digest, Message, VOCABULARY_END, limits};

/// A document's last tenth goes to the validation split.
const VALIDATION_SHARE: usize = 10;

/// The text of a run: what tasks train on, and what no task ever sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Corpus {
    /// What tasks draw from.
    pub train: Split,
    /// What base models are measured on.
    pub validation: Split,
}

/// A stream of tokens: the bytes of documents one after the other, each followed by the end-of-document token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    text: Vec<u8>,
    /// Where in `text` each document ends; never falls.
    ends: Vec<u64>,
}

/// The shards of a dataset. Its digest names the dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Shards to train on, in order.
    pub train: Vec<ShardRef>,
    /// Shards to validate on, in order.
    pub validation: Vec<ShardRef>,
}

impl Message for Manifest {
    const DOMAIN: &'static str = "dataset manifest v1";
}

/// One shard of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRef {
    /// The blob.
    pub digest: Digest,
    /// Tokens in it.
    pub tokens: u64,
}

#[derive(Serialize, Deserialize)]
struct Shard {
    text: Vec<u8>,
    ends: Vec<u32>,
}

/// Why text was not taken as a corpus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorpusError {
    /// Not enough text for even one sequence.
    #[error(
        "the {split} split has {tokens} tokens, one sequence needs {needed}; \
         give more text (about {} bytes) or a smaller context", needed * VALIDATION_SHARE as u64
    )]
    TooShort {
        /// "training" or "validation".
        split: &'static str,
        /// What it has.
        tokens: u64,
        /// What one sequence takes.
        needed: u64,
    },
    /// More text than a worker should hold in memory.
    #[error("the data has more than {} GiB; name fewer files", limits::CORPUS_BYTES_MAX >> 30)]
    TooLong,
    /// A shard or manifest that does not decode.
    #[error("a part of the dataset is damaged: {0}")]
    Wire(#[from] WireError),
    /// A shard whose document ends lie outside it, or that is not as long as the manifest says.
    #[error("a shard of the dataset contradicts itself or its manifest")]
    Shard,
}

impl Split {
    fn push(&mut self, text: &[u8]) {
        if !text.is_empty() {
            self.text.extend_from_slice(text);
            self.ends.push(self.text.len() as u64);
        }
    }

    /// Tokens in the stream: its bytes and an end for each document.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        (self.text.len() + self.ends.len()) as u64
    }

    /// Appends `count` tokens from position `at` on to `out`; fewer where the stream ends.
    pub fn read(&self, at: u64, count: usize, out: &mut Vec<u16>) {
        // Document i's end token stands at ends[i] + i in the stream.
        let mut document = {
            let (mut low, mut high) = (0, self.ends.len());
            while low < high {
                let middle = usize::midpoint(low, high);
                if self.ends[middle] + (middle as u64) < at { low = middle + 1 } else { high = middle }
            }
            low
        };
        let mut byte = usize::try_from(at).unwrap_or(usize::MAX).saturating_sub(document);
        for _ in 0..count {
            let Some(&end) = self.ends.get(document) else { return };
            if byte as u64 == end {
                out.push(VOCABULARY_END as u16);
                document += 1;
            } else {
                out.push(u16::from(self.text[byte]));
                byte += 1;
            }
        }
    }

    /// Cuts the stream into encoded shards of at most [`limits::SHARD_BYTES`] bytes of text.
    fn shards(&self) -> impl Iterator<Item = (ShardRef, Vec<u8>)> {
        let mut first_end = 0;
        self.text.chunks(limits::SHARD_BYTES).enumerate().map(move |(index, text)| {
            let start = (index * limits::SHARD_BYTES) as u64;
            let inside = self.ends[first_end..].partition_point(|&end| end <= start + text.len() as u64);
            #[expect(clippy::cast_possible_truncation, reason = "a shard is far below 4 GiB")]
            let ends = self.ends[first_end..first_end + inside].iter().map(|end| (end - start) as u32).collect();
            first_end += inside;
            let tokens = (text.len() + inside) as u64;
            let blob = wire::encode(&Shard { text: text.to_vec(), ends });
            (ShardRef { digest: Digest::of(&blob), tokens }, blob)
        })
    }

    fn append_shard(&mut self, expected: &ShardRef, blob: &[u8]) -> Result<(), CorpusError> {
        // At most five bytes for each end, and there are at most as many ends as bytes of text.
        let shard: Shard = wire::decode(blob, 8 * limits::SHARD_BYTES)?;
        let start = self.text.len() as u64;
        let sorted = shard.ends.is_sorted_by(|a, b| a < b);
        let inside = shard.ends.last().is_none_or(|&end| end as usize <= shard.text.len());
        if !sorted || !inside || expected.tokens != (shard.text.len() + shard.ends.len()) as u64 {
            return Err(CorpusError::Shard);
        }
        if start + shard.text.len() as u64 > limits::CORPUS_BYTES_MAX {
            return Err(CorpusError::TooLong);
        }
        self.text.extend_from_slice(&shard.text);
        self.ends.extend(shard.ends.iter().map(|&end| start + u64::from(end)));
        Ok(())
    }
}

impl Corpus {
    /// Adds a document: its first nine tenths to the training split, the rest to the validation split. A single
    /// document is thus cut as is the custom, and of many each is represented in both.
    pub fn push(&mut self, document: &[u8]) -> Result<(), CorpusError> {
        let held = (self.train.text.len() + self.validation.text.len()) as u64;
        if held + document.len() as u64 > limits::CORPUS_BYTES_MAX {
            return Err(CorpusError::TooLong);
        }
        let (train, validation) = document.split_at(document.len() - document.len() / VALIDATION_SHARE);
        self.train.push(train);
        self.validation.push(validation);
        Ok(())
    }

    /// Refuses a corpus without a single sequence of `context` tokens (and the token after it) in each split.
    pub fn check(&self, context: u32) -> Result<(), CorpusError> {
        let needed = u64::from(context) + 1;
        for (split, tokens) in [("training", self.train.tokens()), ("validation", self.validation.tokens())] {
            if tokens < needed {
                return Err(CorpusError::TooShort { split, tokens, needed });
            }
        }
        Ok(())
    }

    /// Hands every shard to `store`, and gives the manifest.
    pub fn store<E>(&self, mut store: impl FnMut(&[u8]) -> Result<(), E>) -> Result<Manifest, E> {
        let mut keep = |split: &Split| {
            let mut refs = Vec::new();
            for (shard, blob) in split.shards() {
                store(&blob)?;
                refs.push(shard);
            }
            Ok(refs)
        };
        Ok(Manifest { train: keep(&self.train)?, validation: keep(&self.validation)? })
    }

    /// Reads a corpus back through `fetch`, which must give blobs that match their digest.
    pub fn load<E: From<CorpusError>>(
        manifest: &Manifest,
        mut fetch: impl FnMut(&Digest) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let mut corpus = Self::default();
        for (split, shards) in [(&mut corpus.train, &manifest.train), (&mut corpus.validation, &manifest.validation)] {
            for shard in shards {
                split.append_shard(shard, &fetch(&shard.digest)?)?;
            }
        }
        Ok(corpus)
    }
}

impl Manifest {
    /// The manifest in a blob that nobody vouches for.
    pub fn decode(blob: &[u8]) -> Result<Self, CorpusError> {
        Ok(wire::decode(blob, limits::MANIFEST_BYTES_MAX)?)
    }

    /// Its blob.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// The blobs of all shards.
    pub fn shards(&self) -> impl Iterator<Item = Digest> {
        self.train.iter().chain(&self.validation).map(|shard| shard.digest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn corpus(documents: &[Vec<u8>]) -> Corpus {
        let mut corpus = Corpus::default();
        for document in documents {
            corpus.push(document).unwrap();
        }
        corpus
    }

    fn read(split: &Split, at: u64, count: usize) -> Vec<u16> {
        let mut out = Vec::new();
        split.read(at, count, &mut out);
        out
    }

    proptest! {
        #[test]
        fn every_window_is_a_piece_of_the_whole_stream(
            documents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..12),
            at in 0u64..400, count in 0usize..40,
        ) {
            let train = corpus(&documents).train;
            let mut stream = Vec::new();
            for document in documents.iter().filter(|document| !document.is_empty()) {
                stream.extend(document[..document.len() - document.len() / 10].iter().map(|&byte| u16::from(byte)));
                stream.push(256);
            }
            prop_assert_eq!(train.tokens(), stream.len() as u64);
            let expected: Vec<u16> = stream.iter().copied().skip(at as usize).take(count).collect();
            prop_assert_eq!(read(&train, at, count), expected);
        }
    }

    #[test]
    fn a_corpus_survives_being_cut_into_shards() {
        let long: Vec<u8> = (0..5 * limits::SHARD_BYTES / 2).map(|i| (i % 251) as u8).collect();
        let original = corpus(&[long.clone(), b"short, but more than ten bytes".to_vec(), long]);
        let mut blobs = BTreeMap::new();
        let manifest = original
            .store::<CorpusError>(|blob| {
                blobs.insert(Digest::of(blob), blob.to_vec());
                Ok(())
            })
            .unwrap();
        assert!(manifest.train.len() > 4, "several shards, or this test shows nothing");
        let manifest = Manifest::decode(&manifest.encode()).unwrap();
        assert_eq!(Corpus::load::<CorpusError>(&manifest, |digest| Ok(blobs[digest].clone())).unwrap(), original);
        let truncated = Corpus::load::<CorpusError>(&manifest, |digest| Ok(blobs[digest][..99].to_vec()));
        assert!(matches!(truncated, Err(CorpusError::Wire(_))), "{truncated:?}");
        let swapped = Corpus::load::<CorpusError>(&manifest, |_| Ok(blobs[&manifest.validation[0].digest].clone()));
        assert_eq!(swapped, Err(CorpusError::Shard));
    }

    #[test]
    fn a_single_document_is_split_nine_to_one_and_never_overlaps() {
        let one = corpus(&[(0..=99).collect()]);
        assert_eq!(read(&one.train, 0, 200), (0..90).chain([256]).collect::<Vec<u16>>());
        assert_eq!(read(&one.validation, 0, 200), (90..100).chain([256]).collect::<Vec<u16>>());
    }

    #[test]
    fn a_corpus_shorter_than_a_sequence_is_refused_with_its_remedy() {
        let error = corpus(&[vec![b'a'; 100]]).check(64).unwrap_err();
        assert_eq!(error, CorpusError::TooShort { split: "validation", tokens: 11, needed: 65 });
        assert!(error.to_string().contains("about 650 bytes"), "{error}");
        assert_eq!(corpus(&[vec![b'a'; 700]]).check(64), Ok(()));
    }
}
