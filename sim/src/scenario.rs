use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hydra::protocol::{
    self, Aggregation, AuditPolicy, Auditors, Codec, Digest, Emission, InnerOptimizer, ModelSpec, OuterOptimizer, Ppm,
    RunSpec, Schedule, SecretChain, Seed, SpecError, Timing,
};
use serde::Deserialize;

use crate::{Behaviour, VerifierBehaviour};

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
    /// How often work is computed again; never, where this is missing.
    pub audits: Option<Audits>,
    /// Who computes it again: one honest verifier where nobody is named. The first is the coordinator's own, and also
    /// compares all work.
    #[serde(default = "default_verifiers")]
    pub verifiers: Vec<VerifierGroup>,
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
    /// What they compute with.
    #[serde(default)]
    pub device: Device,
}

/// Ways to compute that give the same but for rounding, as kinds of devices do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// Whole blocks at a time, as in production.
    #[default]
    Fused,
    /// One operation at a time.
    Plain,
}

/// How often work is computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audits {
    /// Results of a new key that are all audited.
    pub probation: u32,
    /// Numerator of the rate that falls with the number of clean results.
    pub decay: u32,
    /// The lowest rate, in parts of a million.
    pub floor: u32,
    /// Who does it again.
    pub by: Auditors,
    /// How long a worker may appeal, virtual seconds.
    pub appeal_seconds: u64,
}

impl Default for Audits {
    fn default() -> Self {
        let AuditPolicy { probation, decay, floor } = AuditPolicy::default();
        Self { probation, decay, floor: floor.0, by: Auditors::Verifiers, appeal_seconds: 60 }
    }
}

/// Verifiers of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifierGroup {
    /// How many.
    pub count: u32,
    /// Training speed of each.
    pub tokens_per_second: u64,
    /// What they do when they are to compute a task again.
    #[serde(default)]
    pub behaviour: VerifierBehaviour,
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
    /// Honest workers have all their work accepted, keep all that they were paid, and none is shut out.
    pub honest_lose_nothing: bool,
    /// Dishonest workers are paid nothing.
    pub cheats_earn_nothing: bool,
    /// Dishonest workers keep nothing of what they were paid.
    pub cheats_keep_nothing: bool,
    /// At least so many results of dishonest workers were found false by computing them again.
    pub found_false_at_least: Option<u64>,
    /// So many verifiers, and no more, are not believed at the end.
    pub verifiers_struck_off: Option<u64>,
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
        if self.verifiers.first().is_none_or(|first| first.count == 0 || first.behaviour != VerifierBehaviour::Honest) {
            return contradiction("the first of [[verifiers]] is the coordinator's own: one or more, and honest");
        }
        if self.verifiers.iter().any(|group| group.tokens_per_second == 0) {
            return contradiction("a verifier with tokens_per_second = 0 never finishes");
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

    /// What decides who is audited.
    pub(crate) fn secrets(&self, seed: u64) -> SecretChain {
        SecretChain::new(&Seed::from_number(seed).derive("audits", 0), self.job.rounds)
    }

    pub(crate) fn spec(&self, seed: u64, dataset: Digest) -> RunSpec {
        let job = &self.job;
        let audits = self.audits.map(|Audits { probation, decay, floor, by, .. }| protocol::Audits {
            policy: AuditPolicy { probation, decay, floor: Ppm(floor) },
            by,
            anchor: self.secrets(seed).anchor(),
        });
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
                appeal: Duration::from_secs(self.audits.unwrap_or_default().appeal_seconds),
            },
            audits,
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

fn default_verifiers() -> Vec<VerifierGroup> {
    vec![VerifierGroup { count: 1, tokens_per_second: 10_000, behaviour: VerifierBehaviour::Honest }]
}

fn default_lease() -> u64 {
    120
}

fn default_round() -> u64 {
    600
}
