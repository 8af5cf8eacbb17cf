use super::{CodecError, Corpus, Engine, EngineError, Params, Session, training_batch};
use crate::protocol::{Digest, Digester, Task, Trail};

/// What doing a task gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The encoded pseudo-gradient.
    pub payload: Vec<u8>,
    /// Training loss of each inner step, nats a token.
    pub losses: Vec<f32>,
    /// What it was computed on, and digests of the states on the way.
    pub trail: Trail,
}

/// Why a task was not done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TaskError {
    /// The device could not.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The result cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The task asks for what this build refuses to do.
    #[error("the task is not one that this build can do: {0}")]
    Task(String),
    /// A blob that the task names is not to be had.
    #[error("{0}")]
    Blob(String),
    /// Somebody asked to stop.
    #[error("stopped before the task was done")]
    Stopped,
}

/// Does a task: `inner_steps` steps from `base` with a fresh optimiser, then the pseudo-gradient `base − local`,
/// encoded. `on_step` is called after each step with its loss and says whether to go on.
pub fn do_task(
    engine: &dyn Engine,
    task: &Task,
    base: &Params,
    corpus: &Corpus,
    mut on_step: impl FnMut(f32) -> bool,
) -> Result<Trained, TaskError> {
    let mut session = engine.train(&task.model, base, &task.optimizer)?;
    let mut losses = Vec::with_capacity(task.inner_steps as usize);
    let mut states: Vec<Digest> = Vec::with_capacity(task.segments().len());
    let mut segments = task.segments();
    let mut end = segments.next().map(|segment| segment.end);
    for step in 0..task.inner_steps {
        let rate = task.schedule.rate(task.first_step + u64::from(step));
        let loss = session.step(&training_batch(corpus, task, step), rate)?;
        losses.push(loss);
        if !on_step(loss) {
            return Err(TaskError::Stopped);
        }
        if end == Some(step + 1) {
            let before = states.last().copied().unwrap_or(task.id().0);
            states.push(state_digest(&before, &*session)?);
            end = segments.next().map(|segment| segment.end);
        }
    }
    let mut update = session.finish()?;
    for (local, base) in update.values_mut().iter_mut().zip(base.values()) {
        *local = base - *local;
    }
    let payload = task.codec.encode(&update, &task.seed)?;
    Ok(Trained { payload, losses, trail: Trail { device: engine.kind(), states } })
}

/// The digest of the weights now and of the state digest `before`. The optimiser is not in it: it began fresh, and has seen
/// the same steps.
fn state_digest(before: &Digest, session: &dyn Session) -> Result<Digest, EngineError> {
    let mut digester = Digester::in_domain("hydra training state v1");
    digester.bytes(before.as_bytes());
    session.weights(&mut |numbers| digester.numbers(numbers))?;
    Ok(digester.finish())
}
