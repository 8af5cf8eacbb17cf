use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Amount, AuditPolicy, Audits, Digest, Message, Ppm, RunId, Seed, limits, wire};

/// Tokens of the vocabulary that are bytes: token `b` is byte `b`.
pub const VOCABULARY_BYTES: u32 = 256;
/// The token that ends a document. Tokens from here to [`VOCABULARY`] are reserved.
pub const VOCABULARY_END: u32 = 256;
/// All tokens: 256 bytes and 8 reserved ones (a multiple of 8 suits matrix kernels).
pub const VOCABULARY: u32 = 264;

/// Everything that determines what a run computes. Fixed when the run is made; its digest is the run's id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// The root of all random streams of the run.
    pub seed: Seed,
    /// The network.
    pub model: ModelSpec,
    /// The dataset manifest.
    pub dataset: Digest,
    /// Tasks in a round.
    pub tasks_per_round: u32,
    /// Inner steps in a task (H).
    pub inner_steps: u32,
    /// Sequences in an inner step.
    pub batch: u32,
    /// The inner optimiser.
    pub optimizer: InnerOptimizer,
    /// Its learning rate.
    pub schedule: Schedule,
    /// How pseudo-gradients travel.
    pub codec: Codec,
    /// What makes one update of them.
    pub aggregation: Aggregation,
    /// What makes the next base model of that.
    pub outer: OuterOptimizer,
    /// Random windows of the validation split that a base model is measured on.
    pub validation_windows: u32,
    /// What a round pays.
    pub emission: Emission,
    /// Deadlines.
    pub timing: Timing,
    /// Whose work is computed again; nobody's, where everybody is trusted.
    pub audits: Option<Audits>,
    /// The tasks for slow computers; none, where all tasks are alike.
    pub short: Option<ShortTasks>,
}

impl Message for RunSpec {
    const DOMAIN: &'static str = "run spec v1";
}

/// A Llama-style decoder: `RMSNorm`, rotary positions, `SwiGLU`, no biases, tied embeddings, a vocabulary of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Transformer blocks.
    pub layers: u32,
    /// Width of the residual stream.
    pub width: u32,
    /// Attention heads; each has `width / heads` dimensions, an even number.
    pub heads: u32,
    /// Inner width of the feed-forward network.
    pub hidden: u32,
    /// Tokens in a sequence.
    pub context: u32,
}

/// The inner optimiser, with its settings. Learning rates are relative to [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InnerOptimizer {
    /// Muon for the hidden matrices, `AdamW` without decay for embeddings and norms.
    Muon(Muon, AdamW),
    /// `AdamW` for everything.
    AdamW(AdamW),
}

/// [Muon](https://kellerjordan.github.io/posts/muon/): momentum, orthogonalised by five Newton–Schulz iterations
/// with the coefficients (3.4445, −4.7750, 2.0315).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Muon {
    /// Its learning rate over the scheduled one, times √max(1, out/in) for an out × in matrix.
    pub rate_factor: f32,
    /// Momentum (Nesterov).
    pub momentum: f32,
    /// Decoupled weight decay, relative to Muon's own rate.
    pub weight_decay: f32,
}

/// [AdamW](https://arxiv.org/abs/1711.05101), with bias correction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay of matrices, relative to the scheduled rate. Vectors are never decayed.
    pub weight_decay: f32,
}

impl InnerOptimizer {
    /// The default: Muon as in the original post, rates ten times `AdamW`'s.
    #[must_use]
    pub fn muon() -> Self {
        Self::Muon(
            Muon { rate_factor: 10.0, momentum: 0.95, weight_decay: 0.01 },
            AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.0 },
        )
    }

    /// Plain `AdamW` with the settings of nanoGPT's small recipes.
    #[must_use]
    pub fn adamw() -> Self {
        Self::AdamW(AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 })
    }
}

/// The inner learning rate over the steps of the run: linear warm-up, then a cosine down to a tenth at
/// `total_steps`, then that tenth. Without `total_steps` it stays at the peak.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f32,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Where the cosine ends.
    pub total_steps: Option<u64>,
}

impl Schedule {
    /// A warm-up over 5 % of `total_steps`; over `limits::WARMUP_STEPS_OPEN_END` steps where the run has no end.
    #[must_use]
    pub fn new(peak: f32, total_steps: Option<u64>) -> Self {
        let warmup_steps = total_steps.map_or(limits::WARMUP_STEPS_OPEN_END, |total| total / 20).max(1);
        Self { peak, warmup_steps, total_steps }
    }

    /// The rate of step `step`, counted from 0.
    #[must_use]
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a learning rate is an f32")]
    pub fn rate(&self, step: u64) -> f32 {
        if step < self.warmup_steps {
            return (f64::from(self.peak) * (step + 1) as f64 / self.warmup_steps as f64) as f32;
        }
        let Some(total) = self.total_steps else { return self.peak };
        let span = total.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        (f64::from(self.peak) * (0.1 + 0.9 * cosine)) as f32
    }
}

/// How a pseudo-gradient is encoded. All but `Fp32` round stochastically, seeded by the task, in blocks of
/// [`limits::CODEC_BLOCK`] numbers that share a scale (bf16 has no scale); vectors always travel as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// 32 bits a number, exact.
    Fp32,
    /// 16 bits.
    Bf16,
    /// 8 bits and a scale: 8.5 bits.
    Int8,
    /// 4 bits and a scale: 4.5 bits.
    Int4,
    /// −1, 0 or 1 and a scale, five to a byte: 2.1 bits.
    Ternary,
}

/// How the accepted updates of a round become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregation {
    /// Updates longer than this many times the median length are shortened to it first. `None` leaves them as they are.
    pub norm_limit: Option<f32>,
    /// What is done then.
    pub rule: Rule,
}

/// A rule of aggregation. All weigh by tokens. The coordinate-wise one needs updates with most of their numbers exact:
/// with the ternary codec it mostly trims rounding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rule {
    /// The mean.
    Mean,
    /// [Centred clipping](https://arxiv.org/abs/2012.10333): the mean where the updates agree; where some lie far from
    /// most, their pull is bounded.
    CentredClip,
    /// The point with the least sum of distances ([RFA](https://arxiv.org/abs/1912.13445)).
    GeometricMedian,
    /// Of each number, the mean without this share of the updates at each end
    /// ([Yin et al.](https://arxiv.org/abs/1803.01498)).
    TrimmedMean {
        /// From 0 to below a half.
        trim: f32,
    },
    /// The one update that is nearest to its neighbours ([Krum](https://arxiv.org/abs/1703.02757)).
    Krum {
        /// How many updates may lie.
        byzantine: u32,
    },
}

impl Default for Aggregation {
    /// No update pulls more than one of median length, and none from far away.
    fn default() -> Self {
        Self { norm_limit: Some(1.0), rule: Rule::CentredClip }
    }
}

impl Aggregation {
    /// The plain mean.
    pub const MEAN: Self = Self { norm_limit: None, rule: Rule::Mean };

    fn validate(self) -> Result<(), SpecError> {
        if let Some(limit) = self.norm_limit {
            positive("the norm limit", limit, 1000.0)?;
        }
        match self.rule {
            Rule::TrimmedMean { trim } if !(0.0..0.5).contains(&trim) => {
                Err(SpecError::new("the share to trim", trim, "from 0 to below 0.5"))
            }
            Rule::Krum { byzantine } => {
                within("the number of byzantine updates", byzantine, 0, limits::TASKS_PER_ROUND_MAX)
            }
            _ => Ok(()),
        }
    }
}

/// The outer optimiser: Nesterov momentum over the averaged pseudo-gradient
/// ([DiLoCo](https://arxiv.org/abs/2311.08105)). Rate 1 and momentum 0 is plain averaging of the workers' models.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OuterOptimizer {
    /// Outer learning rate.
    pub rate: f32,
    /// Outer momentum.
    pub momentum: f32,
}

/// What rounds pay: `initial` for each of the first `halving_rounds` rounds, half of it for each of the next, and so
/// on, never more than `cap` in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emission {
    /// Emitted by each round at first.
    pub initial: Amount,
    /// Rounds between two halvings.
    pub halving_rounds: u32,
    /// The most that can ever be emitted.
    pub cap: Amount,
}

impl Default for Emission {
    /// 100 HYD a round, halved every 105 000 rounds: 21 million HYD in all.
    fn default() -> Self {
        Self { initial: Amount::from_hyd(100), halving_rounds: 105_000, cap: Amount::from_hyd(21_000_000) }
    }
}

/// The last tasks of each round have a quarter of the inner steps, for computers that need long for a whole one. Which
/// tasks there are follows from the run alone; who is lent which, from how fast they say they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortTasks {
    /// How many of the round's tasks.
    pub tasks: u32,
    /// Whoever needs longer than this for a whole task is lent a short one, as long as there are any.
    pub target: Duration,
}

impl ShortTasks {
    /// A whole task has the inner steps of so many short ones.
    pub const SHARE: u32 = 4;
}

/// Deadlines of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How long a worker may keep a task.
    pub lease: Duration,
    /// When an open round closes with a quorum instead of all its tasks.
    pub round: Duration,
    /// How long whoever was found to have handed in false work may appeal.
    pub appeal: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_mins(3), round: Duration::from_mins(30), appeal: Duration::from_hours(1) }
    }
}

/// A run that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{what} is {value}, it must be {allowed}")]
pub struct SpecError {
    /// The setting.
    pub what: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl RunSpec {
    /// The digest of the specification.
    #[must_use]
    pub fn id(&self) -> RunId {
        RunId(Digest::in_domain("hydra run v1", &wire::encode(self)))
    }

    /// The tokens that a whole task trains on.
    #[must_use]
    pub fn tokens_per_task(&self) -> u64 {
        u64::from(self.inner_steps) * u64::from(self.batch) * u64::from(self.model.context)
    }

    /// The inner steps of the `index`-th task of a round.
    #[must_use]
    pub fn steps_of(&self, index: u32) -> u32 {
        let short = self.short.map_or(0, |short| short.tasks);
        if index < self.tasks_per_round.saturating_sub(short) {
            self.inner_steps
        } else {
            self.inner_steps.div_ceil(ShortTasks::SHARE)
        }
    }

    /// Whether somebody so fast (tokens a second, 0 when not yet known) is to have short tasks: they show how fast it is.
    #[must_use]
    pub fn is_for_short_tasks(&self, tokens_per_second: u32) -> bool {
        self.short.is_some_and(|short| {
            let in_time = u128::from(tokens_per_second) * short.target.as_millis();
            in_time < u128::from(self.tokens_per_task()) * 1000
        })
    }

    /// Accepted tasks that a round needs to close at its deadline: more than half.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.tasks_per_round as usize / 2 + 1
    }

    /// Refuses what could not be trained or stored: see [`limits`].
    pub fn validate(&self) -> Result<(), SpecError> {
        self.model.validate()?;
        within("the number of tasks in a round", self.tasks_per_round, 1, limits::TASKS_PER_ROUND_MAX)?;
        within("the number of inner steps", self.inner_steps, 1, limits::INNER_STEPS_MAX)?;
        within("the batch", self.batch, 1, limits::BATCH_MAX)?;
        within("the number of validation windows", self.validation_windows, 1, limits::VALIDATION_WINDOWS_MAX)?;
        let tokens = u64::from(self.batch) * u64::from(self.model.context);
        within("the number of tokens in a step (batch × context)", tokens, 1, limits::STEP_TOKENS_MAX)?;
        if let Some(short) = self.short {
            within("the number of short tasks", short.tasks, 1, self.tasks_per_round)?;
        }
        self.timing.validate()?;
        self.aggregation.validate()?;
        positive("the learning rate", self.schedule.peak, 1.0)?;
        positive("the outer learning rate", self.outer.rate, 10.0)?;
        if !(0.0..1.0).contains(&self.outer.momentum) {
            return Err(SpecError::new("the outer momentum", self.outer.momentum, "from 0 to below 1"));
        }
        let (muon, adamw) = match self.optimizer {
            InnerOptimizer::Muon(muon, adamw) => (Some(muon), adamw),
            InnerOptimizer::AdamW(adamw) => (None, adamw),
        };
        if let Some(muon) = muon {
            positive("Muon's rate factor", muon.rate_factor, 1000.0)?;
            fraction("Muon's momentum", muon.momentum)?;
            fraction("Muon's weight decay", muon.weight_decay)?;
        }
        fraction("AdamW's beta1", adamw.beta1)?;
        fraction("AdamW's beta2", adamw.beta2)?;
        fraction("AdamW's weight decay", adamw.weight_decay)?;
        positive("AdamW's epsilon", adamw.epsilon, 1.0)?;
        if let Some(audits) = self.audits {
            audits.validate()?;
        }
        within("the number of rounds between halvings", self.emission.halving_rounds, 1, u32::MAX)
    }
}

impl Timing {
    fn validate(self) -> Result<(), SpecError> {
        within("the time of a lease, in seconds,", self.lease.as_secs(), 1, limits::TIMING_SECONDS_MAX)?;
        within("the time of a round, in seconds,", self.round.as_secs(), 1, limits::TIMING_SECONDS_MAX)?;
        within("the time to appeal, in seconds,", self.appeal.as_secs(), 1, limits::TIMING_SECONDS_MAX)
    }
}

impl Audits {
    fn validate(&self) -> Result<(), SpecError> {
        let AuditPolicy { probation, decay, floor } = self.policy;
        within("the number of results on probation", probation, 1, 10_000)?;
        within("the decay of the audit rate (at most the length of the probation)", decay, 1, probation)?;
        within("the lowest audit rate, in parts of a million,", floor.0, 1, Ppm::ONE.0)
    }
}

impl ModelSpec {
    /// Numbers that training changes.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        let [layers, width, hidden] = [self.layers, self.width, self.hidden].map(u64::from);
        let block = 4 * width * width + 3 * width * hidden + 2 * width;
        layers * block + u64::from(VOCABULARY) * width + width
    }

    /// Refuses an architecture that cannot be built or is larger than this build handles.
    pub fn validate(&self) -> Result<(), SpecError> {
        within("the number of layers", self.layers, 1, limits::LAYERS_MAX)?;
        within("the width", self.width, 2, limits::WIDTH_MAX)?;
        within("the hidden width", self.hidden, 1, limits::HIDDEN_MAX)?;
        within("the context", self.context, 2, limits::CONTEXT_MAX)?;
        within("the number of heads", self.heads, 1, self.width)?;
        if !self.width.is_multiple_of(self.heads) || !(self.width / self.heads).is_multiple_of(2) {
            let allowed = format!("a divisor of the width ({}) that leaves an even head size", self.width);
            return Err(SpecError::new("the number of heads", self.heads, allowed));
        }
        within("the number of parameters", self.parameters(), 1, limits::PARAMETERS_MAX)
    }
}

impl SpecError {
    fn new(what: &'static str, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self { what, value: value.to_string(), allowed: allowed.into() }
    }
}

fn within<N: Copy + PartialOrd + ToString>(what: &'static str, value: N, least: N, most: N) -> Result<(), SpecError> {
    if value < least || value > most {
        let allowed = format!("from {} to {}", least.to_string(), most.to_string());
        return Err(SpecError::new(what, value, allowed));
    }
    Ok(())
}

fn positive(what: &'static str, value: f32, most: f32) -> Result<(), SpecError> {
    if value > 0.0 && value <= most {
        Ok(())
    } else {
        Err(SpecError::new(what, value, format!("above 0, at most {most}")))
    }
}

fn fraction(what: &'static str, value: f32) -> Result<(), SpecError> {
    if (0.0..1.0).contains(&value) { Ok(()) } else { Err(SpecError::new(what, value, "from 0 to below 1")) }
}
