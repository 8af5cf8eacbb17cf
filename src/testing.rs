//! What the tests of several modules share.

use std::time::Duration;

use crate::protocol::{
    Aggregation, Codec, DeviceKind, Digest, Emission, InnerOptimizer, Keypair, ModelSpec, OuterOptimizer, RunSpec,
    Schedule, Seed, Timing, Trail,
};

/// A run of a very small model with `tasks` tasks in a round.
pub fn spec(tasks: u32) -> RunSpec {
    RunSpec {
        seed: Seed::from_number(1),
        model: ModelSpec { layers: 1, width: 8, heads: 2, hidden: 12, context: 8 },
        dataset: Digest::of(b"dataset"),
        tasks_per_round: tasks,
        inner_steps: 4,
        batch: 2,
        optimizer: InnerOptimizer::muon(),
        schedule: Schedule::new(3e-3, None),
        codec: Codec::Ternary,
        aggregation: Aggregation::default(),
        outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
        validation_windows: 8,
        emission: Emission::default(),
        timing: Timing {
            lease: Duration::from_mins(1),
            round: Duration::from_mins(5),
            appeal: Duration::from_mins(10),
        },
        audits: None,
        short: None,
    }
}

/// The `n`-th of some key pairs.
pub fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n; 32])
}

/// A way to a result, of so many states.
pub fn trail(states: usize) -> Trail {
    Trail { device: DeviceKind::Ndarray, states: vec![Digest::of(b"state"); states] }
}
