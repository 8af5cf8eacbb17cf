mod check;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hydra::protocol::{
    self, Aggregation, Amount, AuditPolicy, Auditors, Codec, Digest, Emission, InnerOptimizer, ModelSpec,
    OuterOptimizer, Ppm, RunSpec, Schedule, SecretChain, Seed, ShortTasks, SpecError, Timing,
};
use rand::rngs::ChaCha8Rng;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use crate::chance::log_uniform;
use crate::{Availability, Behaviour, Fault, Queries, VerifierBehaviour};

/// A story about a swarm, and what must come of it. Read from TOML; a key that is not listed here is an error.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
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
    /// What goes wrong besides.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What pay is like.
    #[serde(default)]
    pub economy: Economy,
    /// Who asks the model, and pays for it.
    #[serde(default)]
    pub queries: Vec<Queries>,
    /// What must hold at the end.
    #[serde(default)]
    pub expect: Expectations,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Rounds.
    pub rounds: u32,
    /// Tasks in a round; as many as there are workers where this is silent.
    pub tasks_per_round: Option<u32>,
    /// Inner steps of a task.
    pub inner_steps: u32,
    /// So many tasks of a round have a quarter of the inner steps, for slow workers.
    pub short_tasks: Option<u32>,
    /// Workers that need longer than this for a whole task get short ones, virtual seconds.
    #[serde(default = "default_target")]
    pub target_seconds: u64,
    /// Sequences in a step.
    pub batch: u32,
    /// What is minimised.
    #[serde(default)]
    pub objective: Objective,
    /// The network.
    #[schemars(with = "ModelShape")]
    pub model: ModelSpec,
    /// Peak learning rate.
    #[serde(default = "default_rate")]
    pub learning_rate: f32,
    /// How updates travel.
    #[serde(default = "default_codec")]
    #[schemars(with = "CodecName")]
    pub codec: Codec,
    /// How the updates of a round become one.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub aggregation: Aggregation,
    /// Files and folders to train on, relative to the scenario file; made-up text that never changes where none are
    /// named.
    #[serde(default)]
    pub data: Vec<PathBuf>,
    /// How long a worker may keep a task, virtual seconds.
    #[serde(default = "default_lease")]
    pub lease_seconds: u64,
    /// When a round closes with a quorum, virtual seconds.
    #[serde(default = "default_round")]
    pub round_seconds: u64,
    /// Where coordinator and ledger keep what must survive.
    #[serde(default)]
    pub store: Store,
}

/// Where coordinator and ledger keep what must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Store {
    /// In memory, in the form that it has in a database.
    #[default]
    Memory,
    /// In SQLite, as in production: slower, and what a crash leaves of a write is what SQLite makes of it.
    Sqlite,
}

/// What pay is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Economy {
    /// Emitted by each round, HYD.
    pub hyd_per_round: u32,
    /// Rounds between two halvings of that.
    pub halving_rounds: u32,
    /// How many rewards come after one before it vests.
    pub vesting_rewards: u32,
}

impl Default for Economy {
    fn default() -> Self {
        Self { hyd_per_round: 100, halving_rounds: 105_000, vesting_rewards: 32 }
    }
}

/// Workers of one kind.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// How faults and reports call them.
    pub name: Option<String>,
    /// How many.
    pub count: u32,
    /// Training speed: of each, or of the slowest and the fastest.
    pub tokens_per_second: Speed,
    /// What they do.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// What they compute with.
    #[serde(default)]
    pub device: Device,
    /// When they are there.
    #[serde(default)]
    pub availability: Availability,
    /// How fast payloads leave them, kilobits a second; at once, where this is missing.
    pub upload_kbps: Option<u64>,
    /// How fast models reach them, kilobits a second; at once, where this is missing.
    pub download_kbps: Option<u64>,
    /// How far their clocks may be off, seconds either way: each by its own, at most two minutes, beyond which a
    /// coordinator would refuse their calls.
    #[serde(default)]
    pub clock_skew_seconds: u64,
}

/// Training speed, tokens a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Of the slowest.
    pub least: u64,
    /// Of the fastest. Between the two, every doubling is equally likely.
    pub most: u64,
}

impl Speed {
    /// One worker's.
    pub(crate) fn draw(self, rng: &mut ChaCha8Rng) -> u64 {
        if self.least == self.most { self.least } else { log_uniform(rng, [self.least, self.most]) }
    }
}

impl<'de> Deserialize<'de> for Speed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Speed;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("tokens a second, or [slowest, fastest]")
            }

            fn visit_i64<E: de::Error>(self, speed: i64) -> Result<Speed, E> {
                let speed = u64::try_from(speed).map_err(|_| E::custom("a speed is not negative"))?;
                Ok(Speed { least: speed, most: speed })
            }

            fn visit_u64<E: de::Error>(self, speed: u64) -> Result<Speed, E> {
                Ok(Speed { least: speed, most: speed })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut speeds: A) -> Result<Speed, A::Error> {
                let two = "two speeds: [slowest, fastest]";
                let least = speeds.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &two))?;
                let most = speeds.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &two))?;
                if speeds.next_element::<u64>()?.is_some() {
                    return Err(de::Error::invalid_length(3, &two));
                }
                if least > most {
                    return Err(de::Error::custom("tokens_per_second is [slowest, fastest]"));
                }
                Ok(Speed { least, most })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Speed {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Speed".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let speed = || serde_json::json!({ "type": "integer", "minimum": 1 });
        schemars::json_schema!({
            "description": "Training speed, tokens a second: of each, or of the slowest and the fastest",
            "oneOf": [
                speed(),
                { "type": "array", "items": speed(), "minItems": 2, "maxItems": 2 },
            ],
        })
    }
}

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// A real transformer's loss on real text.
    #[default]
    Transformer,
    /// A bowl with as many numbers as the model has, whose optimum is known: for swarms of thousands.
    Surrogate,
}

/// The network, as its keys stand in a file.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is there for the schema: the type that is read knows no schemas")]
struct ModelShape {
    /// Transformer blocks.
    layers: u32,
    /// Width of the residual stream.
    width: u32,
    /// Attention heads; each has an even number of dimensions.
    heads: u32,
    /// Inner width of the feed-forward network.
    hidden: u32,
    /// Tokens in a sequence.
    context: u32,
}

/// How updates travel, as the names stand in a file.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "it is there for the schema: the type that is read knows no schemas")]
enum CodecName {
    Fp32,
    Bf16,
    Int8,
    Int4,
    Ternary,
}

/// Who computes again, as the names stand in a file.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "it is there for the schema: the type that is read knows no schemas")]
enum AuditorsName {
    Verifiers,
    Peers,
}

/// Ways to compute that give the same but for rounding, as kinds of devices do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// Whole blocks at a time, as in production.
    #[default]
    Fused,
    /// One operation at a time.
    Plain,
}

/// How often work is computed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audits {
    /// Results of a new key that are all audited.
    pub probation: u32,
    /// Numerator of the rate that falls with the number of clean results.
    pub decay: u32,
    /// The lowest rate, in parts of a million.
    pub floor: u32,
    /// Who does it again.
    #[schemars(with = "AuditorsName")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Shortest and longest delay; every delay between is equally likely, so messages overtake each other.
    pub latency_ms: [u64; 2],
    /// The share of messages that never arrive, from 0 to below 1.
    pub loss: f64,
    /// The share of messages that arrive twice, from 0 to below 1; the second with a delay of its own.
    pub duplicates: f64,
}

/// What must hold at the end of a scenario.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
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
    /// Once faults are over, a round closes within this much virtual time, unless another fault comes first.
    pub recovers_within_seconds: Option<f64>,
    /// Honest workers get at least this share of all pay, from 0 to 1.
    pub honest_pay_share_at_least: Option<f64>,
    /// Dishonest workers keep at most this share of all pay that is kept, from 0 to 1.
    pub cheats_keep_share_at_most: Option<f64>,
    /// At most so many workers are shut out, honest or not.
    pub banned_at_most: Option<u64>,
    /// At least so many results for tasks of earlier rounds count in later ones.
    pub late_at_least: Option<u64>,
    /// At least so many times something went wrong: that the scenario shows what it is about.
    pub strikes_at_least: Option<u64>,
    /// At least so many queries are answered and paid.
    pub answered_at_least: Option<u64>,
    /// At least so many queries are refused, because the wallet has less than they may cost.
    pub refused_at_least: Option<u64>,
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
        Self { latency_ms: [20, 80], loss: 0.0, duplicates: 0.0 }
    }
}

impl Scenario {
    /// Reads and checks a scenario file.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        Self::read_with(path, &[])
    }

    /// The same, with changes: `key=value` with dotted keys (`job.rounds=3`, `workers.0.count=50`) and TOML values.
    pub fn read_with(path: &Path, changes: &[String]) -> Result<Self, ScenarioError> {
        Self::parse(path, &Self::text_with(path, changes)?)
    }

    /// The text of a scenario file with changes made to it.
    pub fn text_with(path: &Path, changes: &[String]) -> Result<String, ScenarioError> {
        let unreadable = |error| ScenarioError::Unreadable { path: path.to_owned(), error };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        if changes.is_empty() { Ok(text) } else { set(path, &text, changes) }
    }

    /// The scenario that `text` is, as if it stood in a file at `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ScenarioError> {
        let malformed = |error| ScenarioError::Malformed { path: path.to_owned(), error: Box::new(error) };
        let mut scenario: Self = toml::from_str(text).map_err(malformed)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        scenario.job.data.iter_mut().for_each(|data| *data = folder.join(&*data));
        for group in &mut scenario.workers {
            group.availability.read_trace(folder).map_err(ScenarioError::Contradiction)?;
        }
        scenario.check()?;
        Ok(scenario)
    }

    /// The JSON Schema of scenario files.
    #[must_use]
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// The workers of the group with this name, counted over all groups.
    pub(crate) fn of_group(&self, name: &str) -> Vec<usize> {
        let groups = self.workers.iter().flat_map(|group| (0..group.count).map(|_| group.name.as_deref()));
        groups.enumerate().filter(|(_, of)| *of == Some(name)).map(|(index, _)| index).collect()
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
            emission: Emission {
                initial: Amount::from_hyd(self.economy.hyd_per_round),
                halving_rounds: self.economy.halving_rounds,
                ..Emission::default()
            },
            timing: Timing {
                lease: Duration::from_secs(job.lease_seconds),
                round: Duration::from_secs(job.round_seconds),
                appeal: Duration::from_secs(self.audits.unwrap_or_default().appeal_seconds),
            },
            audits,
            short: job
                .short_tasks
                .filter(|tasks| *tasks > 0)
                .map(|tasks| ShortTasks { tasks, target: Duration::from_secs(job.target_seconds) }),
        }
    }
}

/// The text with these changes made to it.
fn set(path: &Path, text: &str, changes: &[String]) -> Result<String, ScenarioError> {
    let malformed = |error| ScenarioError::Malformed { path: path.to_owned(), error: Box::new(error) };
    let mut root = toml::Value::Table(toml::from_str(text).map_err(malformed)?);
    for change in changes {
        let wrong = |why: &str| ScenarioError::Contradiction(format!("--set {change}: {why}"));
        let (key, value) = change.split_once('=').ok_or_else(|| wrong("write key=value"))?;
        // What is no TOML value is a text without its quotes.
        let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
        let value =
            parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let mut place = &mut root;
        for part in key.trim().split('.') {
            place = match place {
                toml::Value::Array(items) => {
                    let index = part.parse::<usize>().map_err(|_| wrong("a list is indexed by numbers from 0"))?;
                    items.get_mut(index).ok_or_else(|| wrong("the list is not that long"))?
                }
                toml::Value::Table(table) => {
                    table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()))
                }
                _ => return Err(wrong("there is a value on the way, which has no keys")),
            };
        }
        *place = value;
    }
    toml::to_string(&root).map_err(|error| ScenarioError::Contradiction(error.to_string()))
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

fn default_target() -> u64 {
    60
}

fn default_lease() -> u64 {
    120
}

fn default_round() -> u64 {
    600
}
