//! Text from a trained model.
//!
//! [`generate`] writes one text on any device. [`Engine`] writes many at a time on the processor, for those who ask over
//! the network: [`Scheduler`], a pure core, says which go on in each step, and [`Decoder`](crate::model::Decoder)
//! computes it. [`Sampler`] chooses the tokens of each. [`Prefixes`] keeps what was
//! computed for texts that others may begin like.

mod engine;
mod prefixes;
mod sampling;
mod scheduler;

pub use engine::{Engine, Event, Model, NoPlace, Place, Reuse, Sink};
pub use prefixes::Prefixes;
pub use sampling::{Sampler, Sampling, SamplingError, Utf8Pieces, likeliest, log_probability};
pub use scheduler::{Finish, Full, Job, Probability, Progress, Scheduler, SequenceId, Step, Written};

use crate::model::Predictor;
use crate::protocol::VOCABULARY_END;
use crate::training::EngineError;

/// Continues `prompt` by up to `tokens` tokens, handing each byte to `emit` as soon as it is chosen. Stops early when
/// the model ends the document.
pub fn generate(
    predictor: &Predictor,
    prompt: &[u8],
    tokens: u32,
    sampler: &mut Sampler,
    mut emit: impl FnMut(u8) -> std::io::Result<()>,
) -> Result<(), GenerateError> {
    // An empty prompt begins a document: that is what follows the end of another.
    let mut text: Vec<u16> = vec![u16::try_from(VOCABULARY_END).unwrap_or(0)];
    text.extend(prompt.iter().map(|&byte| u16::from(byte)));
    for _ in 0..tokens {
        let token = sampler.choose(&predictor.logits(&text)?);
        let Ok(byte) = u8::try_from(token) else { break };
        text.push(token);
        emit(byte)?;
    }
    Ok(())
}

/// Why generation ended early.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The device failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Whoever wanted the text went away.
    #[error("cannot write the text: {0}")]
    Output(#[from] std::io::Error),
}
