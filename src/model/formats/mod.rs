//! Models in the formats of other programs: a folder that `transformers` loads, a file that `llama.cpp` loads. The way
//! back from such a folder too. Bytes in, bytes out: files are the caller's.

mod gguf;
mod huggingface;

use std::fmt;

use clap::ValueEnum;

use super::checkpoint::{self, CheckpointError};
use crate::protocol::{ModelSpec, SpecError};
use crate::training::Params;

pub use self::huggingface::{CONFIG, TOKENIZER, WEIGHTS, WEIGHTS_HEADER_BYTES_MAX, import, spec};

/// A format that models are exported in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A folder for Hugging Face's transformers: weights, configuration, tokenizer
    Hf,
    /// One file for llama.cpp and what is built on it, in F32
    Gguf,
    /// The weights alone, as they are kept
    Safetensors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Hf => "hf",
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
        })
    }
}

/// A file of an exported model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name in the folder.
    pub name: &'static str,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The files that a model is in some format.
pub fn export(format: Format, model: &ModelSpec, params: &Params) -> Result<Vec<File>, CheckpointError> {
    match format {
        Format::Safetensors => Ok(vec![File { name: WEIGHTS, bytes: checkpoint::encode(params)? }]),
        Format::Gguf => Ok(vec![File { name: gguf::FILE, bytes: gguf::encode(model, params) }]),
        Format::Hf => {
            let mut files = huggingface::words(model);
            files.push(File { name: WEIGHTS, bytes: checkpoint::encode(params)? });
            Ok(files)
        }
    }
}

/// Files that are no model that this transformer can be.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not JSON, or JSON of another form.
    #[error("{file} is not what it should be: {problem}")]
    Malformed {
        /// Which.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// An architecture that has something which this one has not.
    #[error("{key} is {value}; this transformer has {ours}")]
    Other {
        /// The setting.
        key: &'static str,
        /// What it is.
        value: String,
        /// What it would have to be.
        ours: String,
    },
    /// A vocabulary that is not that of bytes.
    #[error("the tokenizer is not this transformer's, in which token b is byte b and 256 ends a document: {0}")]
    Vocabulary(String),
    /// Sizes that cannot be.
    #[error(transparent)]
    Size(#[from] SpecError),
    /// The weights are not those of the architecture.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
}
