use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hydra::protocol::{
    Aggregation, Codec, Digest, Emission, InnerOptimizer, ModelSpec, OuterOptimizer, RunSpec, Schedule, Seed,
    SpecError, Timing,
};
use serde::Deserialize;

use crate::Behaviour;

/// A story about a swarm, and what must come of it. Read from TOML; a key that is not listed here is an error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in a sentence.
    pub about: String,
    /// The seed of everything random, where the command line gives none.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// What is trained.
    pub job: Job,
    /// Who trains.
    pub workers: Vec<Group>,
    /// What lies between them and the coordinator.
    #[serde(default)]
    pub network: Network,
    /// What must hold at the end.
    #[serde(default)]
    pub expect: Expectations,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Rounds.
    pub rounds: u32,
    /// Tasks in a round; as many as there are workers where this is silent.
    pub tasks_per_round: Option<u32>,
    /// Inner steps of a task.
    pub inner_steps: u32,
    /// Sequences in a step.
    pub batch: u32,
    /// The network.
    pub model: ModelSpec,
    /// Peak learning rate.
    #[serde(default = "default_rate")]
    pub learning_rate: f32,
    /// How updates travel.
    #[serde(default = "default_codec")]
    pub codec: Codec,
    /// How the updates of a round become one.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Files and folders to train on, relative to the scenario file; Hydra's own code and documentation where none are
    /// named.
    #[serde(default)]
    pub data: Vec<PathBuf>,
    /// How long a worker may keep a task, virtual seconds.
    #[serde(default = "default_lease")]
    pub lease_seconds: u64,
    /// When a round closes with a quorum, virtual seconds.
    #[serde(default = "default_round")]
    pub round_seconds: u64,
}

/// Workers of one kind.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// How many.
    pub count: u32,
    /// Training speed of each.
    pub tokens_per_second: u64,
    /// What they do.
    #[serde(default)]
    pub behaviour: Behaviour,
}

/// What every message goes through, each way.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Shortest and longest delay; every delay between is equally likely, so messages overtake each other.
    pub latency_ms: [u64; 2],
    /// The share of messages that never arrive, from 0 to below 1.
    pub loss: f64,
}

/// What must hold at the end of a scenario.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expectations {
    /// The last validation loss is below this, nats a token.
    pub loss_below: Option<f64>,
    /// At least so many submissions of dishonest workers are rejected.
    pub rejected_at_least: Option<u64>,
    /// Honest workers have all their work accepted.
    pub honest_lose_nothing: bool,
    /// Dishonest workers are paid nothing.
    pub cheats_earn_nothing: bool,
    /// All rounds are done within this much virtual time.
    pub within_seconds: Option<u64>,
}

/// Why a scenario cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Not TOML, or a key that does not belong.
    #[error("{}: {error}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Where, and what.
        error: Box<toml::de::Error>,
    },
    /// The job cannot be trained.
    #[error("in [job]: {0}")]
    Job(#[from] SpecError),
    /// Numbers that contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

impl Default for Network {
    fn default() -> Self {
        Self { latency_ms: [20, 80], loss: 0.0 }
    }
}

impl Scenario {
    /// Reads and checks a scenario file.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let unreadable = |error| ScenarioError::Unreadable { path: path.to_owned(), error };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let malformed = |error| ScenarioError::Malformed { path: path.to_owned(), error: Box::new(error) };
        let mut scenario: Self = toml::from_str(&text).map_err(malformed)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        scenario.job.data.iter_mut().for_each(|data| *data = folder.join(&*data));
        scenario.check()?;
        Ok(scenario)
    }

    /// Refuses what cannot be played.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let contradiction = |text: &str| Err(ScenarioError::Contradiction(text.to_owned()));
        if self.workers.iter().all(|group| group.count == 0) {
            return contradiction("there are no workers: give at least one [[workers]] group a count above 0");
        }
        if self.workers.iter().any(|group| group.tokens_per_second == 0) {
            return contradiction("a worker with tokens_per_second = 0 never finishes");
        }
        if self.network.latency_ms[0] > self.network.latency_ms[1] {
            return contradiction("network.latency_ms is [shortest, longest]");
        }
        if !(0.0..1.0).contains(&self.network.loss) {
            return contradiction("network.loss is a share from 0 to below 1");
        }
        if self.job.rounds == 0 {
            return contradiction("job.rounds is 0: there is nothing to see");
        }
        Ok(self.spec(self.seed, Digest::of(&[])).validate()?)
    }

    pub(crate) fn spec(&self, seed: u64, dataset: Digest) -> RunSpec {
        let job = &self.job;
        let workers = self.workers.iter().map(|group| group.count).sum();
        let steps = u64::from(job.rounds) * u64::from(job.inner_steps);
        RunSpec {
            seed: Seed::from_number(seed),
            model: job.model,
            dataset,
            tasks_per_round: job.tasks_per_round.unwrap_or(workers),
            inner_steps: job.inner_steps,
            batch: job.batch,
            optimizer: InnerOptimizer::muon(),
            schedule: Schedule::new(job.learning_rate, Some(steps)),
            codec: job.codec,
            aggregation: job.aggregation,
            outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
            validation_windows: 64,
            emission: Emission::default(),
            timing: Timing {
                lease: Duration::from_secs(job.lease_seconds),
                round: Duration::from_secs(job.round_seconds),
            },
        }
    }
}

fn default_seed() -> u64 {
    1
}

fn default_rate() -> f32 {
    3e-3
}

fn default_codec() -> Codec {
    Codec::Ternary
}

fn default_lease() -> u64 {
    120
}

fn default_round() -> u64 {
    600
}
