use std::fmt;
use std::sync::Arc;

use crate::coordinator;
use crate::protocol::PublicKey;

/// Something that whoever runs a world may want to see.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// From the coordinator.
    Coordinator(coordinator::Report),
    /// A worker took an inner step with this loss.
    Step {
        /// Which worker.
        worker: PublicKey,
        /// The loss before the step, nats a token.
        loss: f32,
    },
    /// A worker could not do or hand in its task.
    TaskFailed {
        /// Which worker.
        worker: PublicKey,
        /// Why.
        error: String,
    },
    /// A verifier could not do a check; it will be asked again.
    CheckFailed {
        /// Why.
        error: String,
    },
    /// The ledger elsewhere does not answer, and why; or it answers again.
    Ledger {
        /// Why not.
        trouble: Option<String>,
    },
    /// Something that no part can go on without: the run must end, and this says why.
    Fatal(String),
}

/// Where notes go. Called from any thread.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(Note) + Send + Sync>);

impl Watch {
    /// Notes go to `see`.
    pub fn new(see: impl Fn(Note) + Send + Sync + 'static) -> Self {
        Self(Arc::new(see))
    }

    /// Passes on a note.
    pub fn note(&self, note: Note) {
        (self.0)(note);
    }

    /// Says that the run cannot go on.
    pub fn fatal(&self, error: &dyn fmt::Display) {
        self.note(Note::Fatal(error.to_string()));
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}
