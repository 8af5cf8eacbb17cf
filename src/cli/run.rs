//! What every command that runs a coordinator shares: the options of a run, opening or making it, watching it, and the
//! report at its end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Addr, Recipient, System, SystemRunner};
use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::sync::mpsc;

use super::device::fits;
use super::model::{self, Found};
use super::progress::{Progress, stuck};
use super::remote::RemoteLedger;
use super::report::{Books, Summary, thousands};
use super::{Failure, cores, device, state_dir};
use crate::compute::Compute;
use crate::coordinator::{self, Coordinator, Record, State};
use crate::data;
use crate::http::Bucket;
use crate::ledger::{Ask, Economy, EconomyConfig, EconomyError, Ledger, LedgerConfig};
use crate::model::{BurnEngine, DeviceChoice, Preset, Recipe};
use crate::protocol::{
    Aggregation, AuditPolicy, Auditors, Audits, Codec, Digest, Emission, InnerOptimizer, Keypair, ModelSpec,
    OuterOptimizer, PublicKey, Round, RunSpec, Schedule, SecretChain, Seed, ShortTasks, Timing, limits,
};
use crate::runtime::{Clock, Executor, Note, Stopwatch, SystemClock, Watch};
use crate::store::{Blobs, Database, FolderBlobs, Goal, GroupCommit, LedgerStore, RunStore, StateDir};
use crate::swarm::{LedgerPlace, Swarm};
use crate::training::Params;

/// Windows of the validation split that each base model is measured on: 16 384 tokens at the nano preset, which takes
/// a few per cent of a round and tells losses apart to about 0.02 nats.
const VALIDATION_WINDOWS: u32 = 256;

/// What is to be trained, and where it is kept.
#[derive(Debug, Args)]
pub(super) struct RunOptions {
    /// Files and folders to train on: text, code, any bytes [default: Hydra's own code and documentation]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// How many rounds to train; a run that was killed finishes the rounds it was asked for [default: until Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::ROUNDS_MAX)))]
    pub rounds: Option<u32>,
    /// Training steps of each task (H) [default: 30]
    #[arg(long, value_name = "H")]
    inner_steps: Option<u32>,
    /// Size of the network [default: nano]
    #[arg(long, value_enum)]
    preset: Option<Preset>,
    /// Begin with this model instead of random weights: a digest's first digits, or a folder (see `hydra model`)
    #[arg(long, value_name = "DIGEST|DIR", conflicts_with = "preset")]
    init: Option<String>,
    /// Sequences in a training step [default: the preset's]
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Tokens in a sequence [default: the preset's]
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Peak learning rate [default: 0.003 with Muon, 0.001 with AdamW]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    lr: Option<f32>,
    /// Inner optimiser [default: muon]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
    /// How updates travel [default: ternary]
    #[arg(long, value_enum)]
    codec: Option<CodecName>,
    /// The same seed, data and settings give the same model [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Where the run lives [default: the platform's data directory]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where models and payloads are kept besides the state directory: `s3://bucket/prefix` [default: nowhere else]
    #[arg(long, value_name = "URL")]
    blobs: Option<String>,
    /// What to compute on: a name from `hydra device list`; auto takes the fastest
    #[arg(long, default_value = "auto")]
    device: String,
    /// Begin a new run; an earlier one in the state directory is moved aside into a subfolder, keys are kept
    #[arg(long)]
    fresh: bool,
    /// Print one JSON object at the end instead of the table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OptimizerName {
    Muon,
    Adamw,
}

impl From<OptimizerName> for InnerOptimizer {
    fn from(name: OptimizerName) -> Self {
        match name {
            OptimizerName::Muon => Self::muon(),
            OptimizerName::Adamw => Self::adamw(),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CodecName {
    Fp32,
    Bf16,
    Int8,
    Int4,
    Ternary,
}

impl From<CodecName> for Codec {
    fn from(name: CodecName) -> Self {
        match name {
            CodecName::Fp32 => Self::Fp32,
            CodecName::Bf16 => Self::Bf16,
            CodecName::Int8 => Self::Int8,
            CodecName::Int4 => Self::Int4,
            CodecName::Ternary => Self::Ternary,
        }
    }
}

/// A run that is ready to go on.
pub(super) struct OpenRun {
    pub folder: StateDir,
    pub store: RunStore,
    pub blobs: Arc<FolderBlobs>,
    pub compute: Arc<Compute>,
    pub state: State,
    pub verifier: Keypair,
    /// What decides who is audited, where anybody is.
    pub secrets: Option<SecretChain>,
    /// The first round that is not to be trained, if any.
    pub end: Option<Round>,
}

/// What a new run is, besides what its options say.
#[derive(Debug)]
pub(super) struct NewRun {
    /// Tasks in a round.
    pub tasks: u32,
    /// Those of them that are shorter.
    pub short: Option<ShortTasks>,
    pub timing: Timing,
    /// Who computes part of the work again, if anybody does.
    pub auditors: Option<Auditors>,
}

/// Where a run stood when this command began with it.
pub(super) struct Began {
    folder: StateDir,
    blobs: Arc<FolderBlobs>,
    verifiers: BTreeSet<PublicKey>,
    tokens: u64,
    watch: Stopwatch,
}

impl OpenRun {
    /// The world of this run, in which `others` may verify too, and what is needed for the report at its end.
    pub fn into_swarm(
        self,
        executor: Rc<dyn Executor>,
        watch: Watch,
        others: BTreeSet<PublicKey>,
        elsewhere: Option<Recipient<Ask>>,
    ) -> Result<(Swarm, Began), Failure> {
        let Self { folder, store, blobs, compute, state, verifier, secrets, end } = self;
        let database = StateDir::database(folder.path());
        let journal = LedgerStore::new(Database::open(&database)?)?;
        let paid_here = journal.head_until(u64::MAX)?.is_some();
        let ledger = match elsewhere {
            Some(payer) => LedgerPlace::Elsewhere(payer),
            None if !paid_here && state.workers().values().any(|worker| !worker.pay.is_zero()) => {
                return Err(anyhow!("this run is paid by a ledger elsewhere; say where it is with --ledger").into());
            }
            None => {
                let reader = LedgerStore::read_only(&database)?;
                LedgerPlace::Here(Box::new(GroupCommit::start(journal, reader, folder.key("ledger")?)?))
            }
        };
        let economy = economy(state.spec())?;
        let mut verifiers = others.clone();
        verifiers.insert(verifier.public());
        let began = Began { folder, blobs, verifiers, tokens: state.tokens(), watch: Stopwatch::start() };
        let swarm = Swarm {
            state,
            end,
            secrets,
            verifier,
            others,
            judge: None,
            records: Box::new(store),
            economy,
            ledger,
            clock: Arc::new(SystemClock),
            compute,
            executor,
            watch,
        };
        Ok((swarm, began))
    }
}

impl RunOptions {
    /// Opens the run in the state directory, or makes a new one like this. Refuses one of which so many `workers` in this
    /// process have no room.
    pub fn open(&self, new: &NewRun, workers: u32) -> Result<OpenRun, Failure> {
        let device = device(&self.device)?;
        let engine = BurnEngine::new(device);
        let place = state_dir(self.state_dir.as_deref())?;
        let init = self.init.as_deref().map(|name| model::find(Some(name), &place)).transpose()?;
        let mut draft = self.spec(new.tasks, Digest::of(&[]), init.as_ref().map(|init| init.model));
        (draft.short, draft.timing) = (new.short, new.timing);
        draft.validate().map_err(|error| Failure::Usage(error.into()))?;
        let given = if self.data.is_empty() { None } else { Some(data::read(&self.data)?) };

        let folder = StateDir::open(&place)?;
        if self.fresh {
            if let Some(data) = &given {
                data.corpus.check(draft.model.context)?;
            }
            if let Some(aside) = folder.set_aside()? {
                eprintln!("The earlier run is now in {}", aside.display());
            }
        }
        let database = StateDir::database(folder.path());
        let mut store = RunStore::new(Database::open(&database)?);
        let blobs = FolderBlobs::open(&StateDir::blobs(folder.path()))?;
        let blobs = Arc::new(match &self.blobs {
            Some(url) => blobs.before(Box::new(Bucket::open(url)?)),
            None => blobs,
        });
        let compute = Arc::new(Compute::new(Arc::new(engine), Arc::clone(&blobs) as Arc<dyn Blobs>));

        let (spec, records) = match store.load()? {
            Some((spec, records)) => {
                let first = records.iter().find_map(|record| match record {
                    Record::RoundOpened { round: Round(0), base, .. } => Some(*base),
                    _ => None,
                });
                self.check_against(&spec, first)?;
                if init.is_some_and(|init| Some(init.digest) != first) {
                    return Err(conflict("--init", "another first model"));
                }
                check_memory(&spec, device, workers)?;
                if let Some(data) = &given {
                    let manifest = data.corpus.store(|_| Ok::<_, Failure>(()))?;
                    if Digest::of(&manifest.encode()) != spec.dataset {
                        return Err(conflict("--data", "other text"));
                    }
                }
                (spec, records)
            }
            None => {
                check_memory(&draft, device, workers)?;
                if let Some(by) = new.auditors {
                    let anchor = SecretChain::whole(&folder.make_audit_seed()?).anchor();
                    draft.audits = Some(Audits { policy: AuditPolicy::default(), by, anchor });
                }
                self.create(draft, given, init, &mut store, &compute)?
            }
        };
        let state = State::replay(spec, records);
        // Found now, a damaged model costs nobody any work.
        let newest = state.lineage().last().context("the run has no first model; begin anew with --fresh")?.digest;
        compute.load(&newest, &state.spec().model).with_context(|| {
            format!(
                "cannot go on from the newest model ({}). Restore the state directory from a copy, or begin anew with \
                 --fresh (which keeps the old run aside)",
                blobs.file(&newest).display()
            )
        })?;
        let mut needed = state.blobs();
        needed.extend(compute.dataset_blobs(&state.spec().dataset)?);
        blobs.retain(&needed)?;
        let verifier = folder.key("verifier")?;
        let secrets = match state.spec().audits {
            Some(audits) => {
                let secrets = folder.audit_seed()?.map(|seed| SecretChain::whole(&seed));
                Some(secrets.filter(|secrets| secrets.anchor() == audits.anchor).context(
                    "the secret of the run's audits (audits.secret in the state directory) is not there, or not that of \
                     this run. Restore it from a copy, or begin anew with --fresh (which keeps the old run aside)",
                )?)
            }
            None => None,
        };
        let end = plan(self.rounds, &mut store, state.round())?;
        Ok(OpenRun { folder, store, blobs, compute, state, verifier, secrets, end })
    }

    /// Makes a new run: the dataset and the initial weights as blobs, then one transaction that says they are there.
    fn create(
        &self,
        mut spec: RunSpec,
        given: Option<data::Data>,
        init: Option<Found>,
        store: &mut RunStore,
        compute: &Compute,
    ) -> Result<(RunSpec, Vec<Record>), Failure> {
        let data = match given {
            Some(data) => data,
            None => data::read(&self.data)?,
        };
        data.corpus.check(spec.model.context)?;
        eprintln!("  data        {} bytes in {} documents from {}", thousands(data.bytes), data.documents, data.source);
        let manifest = data.corpus.store(|shard| compute.blobs().put(shard).map(drop))?;
        spec.dataset = compute.blobs().put(&manifest.encode())?;
        let base = match init {
            Some(init) => {
                let base = compute.save(&init.params)?;
                spec.seed = spec.seed.beginning_with(&base);
                base
            }
            None => compute.save(&Params::initial(&spec.model, &spec.seed))?,
        };
        let records = vec![Record::RoundOpened { round: Round(0), base, momentum: None, at: SystemClock.now() }];
        store.create(&spec, &records)?;
        Ok((spec, records))
    }

    /// The run that the flags ask for, with defaults where they are silent; of a model of these sizes, if it begins with
    /// one.
    fn spec(&self, tasks_per_round: u32, dataset: Digest, init: Option<ModelSpec>) -> RunSpec {
        let recipe = init.map_or_else(|| self.preset.unwrap_or(Preset::Nano).recipe(), recipe_of);
        let mut model = recipe.model;
        model.context = self.context.unwrap_or(model.context);
        let inner_steps = self.inner_steps.unwrap_or(30);
        let optimizer = InnerOptimizer::from(self.optimizer.unwrap_or(OptimizerName::Muon));
        let rate = match optimizer {
            InnerOptimizer::Muon(..) => 3e-3,
            InnerOptimizer::AdamW(_) => 1e-3,
        };
        let total_steps = self.rounds.map(|rounds| u64::from(rounds) * u64::from(inner_steps));
        RunSpec {
            seed: Seed::from_number(self.seed.unwrap_or(1)),
            model,
            dataset,
            tasks_per_round,
            inner_steps,
            batch: self.batch.unwrap_or(recipe.batch),
            optimizer,
            schedule: Schedule::new(self.lr.unwrap_or(rate), total_steps),
            codec: self.codec.unwrap_or(CodecName::Ternary).into(),
            aggregation: Aggregation::default(),
            outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
            validation_windows: VALIDATION_WINDOWS,
            emission: Emission::default(),
            timing: Timing::default(),
            audits: None,
            short: None,
        }
    }

    /// Refuses flags that ask for something else than the run that is there, which began with the model `first`: it cannot
    /// change any more.
    fn check_against(&self, there: &RunSpec, first: Option<Digest>) -> Result<(), Failure> {
        let wanted = self.spec(there.tasks_per_round, there.dataset, None);
        let given = first.map(|first| wanted.seed.beginning_with(&first));
        let seed_differs = wanted.seed != there.seed && given != Some(there.seed);
        let model_differs = self.preset.is_some() && {
            let context = there.model.context;
            ModelSpec { context, ..wanted.model } != there.model
        };
        let differing = [
            ("--preset", model_differs, describe_model(there)),
            (
                "--context",
                self.context.is_some_and(|context| context != there.model.context),
                there.model.context.to_string(),
            ),
            ("--batch", self.batch.is_some_and(|batch| batch != there.batch), there.batch.to_string()),
            (
                "--inner-steps",
                self.inner_steps.is_some_and(|steps| steps != there.inner_steps),
                there.inner_steps.to_string(),
            ),
            (
                "--lr",
                self.lr.is_some_and(|rate| rate.to_bits() != there.schedule.peak.to_bits()),
                there.schedule.peak.to_string(),
            ),
            (
                "--optimizer",
                self.optimizer.is_some() && wanted.optimizer != there.optimizer,
                describe_optimizer(there).to_owned(),
            ),
            (
                "--codec",
                self.codec.is_some() && wanted.codec != there.codec,
                format!("{:?}", there.codec).to_lowercase(),
            ),
            ("--seed", self.seed.is_some() && seed_differs, "another seed".to_owned()),
        ];
        match differing.into_iter().find(|(_, differs, _)| *differs) {
            Some((flag, _, is)) => Err(conflict(flag, &is)),
            None => Ok(()),
        }
    }
}

/// Refuses a run whose workers, as many as compute at the same time, have no room.
fn check_memory(spec: &RunSpec, device: DeviceChoice, workers: u32) -> Result<(), Failure> {
    let recipe = Recipe { model: spec.model, batch: spec.batch };
    fits(&recipe, &spec.optimizer, device, workers.min(u32::try_from(cores()).unwrap_or(u32::MAX)))
}

pub(super) fn conflict(flag: &str, is: &str) -> Failure {
    Failure::Other(anyhow!(
        "the state directory holds a run with {is}, which {flag} does not match. Leave {flag} out to go on with that \
         run, choose another --state-dir, or begin anew with --fresh (which keeps the old run aside)"
    ))
}

/// The preset of these sizes, whatever its context.
fn preset_of(model: ModelSpec) -> Option<Preset> {
    Preset::ALL.into_iter().find(|preset| ModelSpec { context: model.context, ..preset.recipe().model } == model)
}

/// What a model is trained with that is not one of a preset: batches of the largest.
fn recipe_of(model: ModelSpec) -> Recipe {
    Recipe { model, batch: preset_of(model).unwrap_or(Preset::Small).recipe().batch }
}

fn describe_model(spec: &RunSpec) -> String {
    preset_of(spec.model).map_or_else(|| "another model".to_owned(), |preset| format!("the preset {preset}"))
}

fn describe_optimizer(spec: &RunSpec) -> &'static str {
    match spec.optimizer {
        InnerOptimizer::Muon(..) => "muon",
        InnerOptimizer::AdamW(_) => "adamw",
    }
}

/// The round to stop before. A run that was killed finishes what it was asked for; otherwise `rounds` means that many
/// more.
fn plan(rounds: Option<u32>, store: &mut RunStore, done: Round) -> Result<Option<Round>, Failure> {
    let Some(rounds) = rounds else {
        store.set_goal(None)?;
        return Ok(None);
    };
    let unfinished = store.goal()?.filter(|goal| goal.rounds == rounds && goal.end() > done);
    let goal = unfinished.unwrap_or(Goal { from: done, rounds });
    if goal.end().0 > limits::ROUNDS_MAX {
        return Err(Failure::Usage(anyhow!("a run has at most {} rounds", limits::ROUNDS_MAX)));
    }
    store.set_goal(Some(goal))?;
    Ok(Some(goal.end()))
}

/// A watch that passes notes on to `see`, and the notes to be heard by the command.
pub(super) fn listen(see: impl Fn(&Note) + Send + Sync + 'static) -> (Watch, mpsc::UnboundedReceiver<Note>) {
    let (notes, heard) = mpsc::unbounded_channel();
    let watch = Watch::new(move |note| {
        see(&note);
        // Nobody hears notes any more when the command is over.
        let _ = notes.send(note);
    });
    (watch, heard)
}

/// An actix system on one thread.
pub(super) fn system() -> SystemRunner {
    System::with_tokio_rt(|| {
        #[expect(clippy::expect_used, reason = "actix takes no error here; without a runtime there is nothing to do")]
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system has no event queue")
    })
}

/// What Ctrl-C or SIGTERM means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnStop {
    /// The first finishes the round, the second stops at once.
    FinishRound,
    /// Stop at once: others do the work, and will find us again.
    StopAtOnce,
}

/// Why a run is not watched any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Every round asked for is done.
    Finished,
    /// Somebody stopped it.
    Stopped,
}

/// Shows what happens until the run is finished or stopped. What is acknowledged is on disk either way.
pub(super) async fn watch_until_done(
    coordinator: &Addr<Coordinator>,
    heard: &mut mpsc::UnboundedReceiver<Note>,
    progress: &mut Progress,
    on_stop: OnStop,
) -> Result<Ended, Failure> {
    let mut stops = stop_signals()?;
    let mut asked = false;
    loop {
        let note = tokio::select! {
            biased;
            note = heard.recv() => note,
            stop = stops.recv() => {
                if stop.is_none() || asked || on_stop == OnStop::StopAtOnce {
                    return Ok(Ended::Stopped);
                }
                asked = true;
                progress.say("  finishing the round; once more Ctrl-C stops at once");
                coordinator.do_send(coordinator::Event::FinishRound);
                continue;
            }
        };
        let Some(note) = note else { return Ok(Ended::Stopped) };
        // Where all workers are in this process, nobody else will come who may.
        if let Note::Coordinator(coordinator::Report::Stuck { round, tasks, reason }) = &note
            && on_stop == OnStop::FinishRound
        {
            return Err(anyhow!("round {round}: {}", stuck(*tasks, reason.as_ref())).into());
        }
        progress.see(&note);
        match note {
            Note::Coordinator(coordinator::Report::Finished) => return Ok(Ended::Finished),
            Note::Fatal(error) => return Err(anyhow!(error).into()),
            Note::TaskFailed { error, .. } if progress.is_hopeless() => {
                return Err(anyhow!("no worker can do its task: {error}").into());
            }
            _ => {}
        }
    }
}

/// Ctrl-C and, on Unix, SIGTERM.
pub(super) fn stop_signals() -> std::io::Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(2);
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    actix::spawn(async move {
        loop {
            #[cfg(unix)]
            tokio::select! {
                biased;
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            #[cfg(not(unix))]
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Tells what is about to be trained; `who` says by whom.
pub(super) fn describe(run: &OpenRun, who: &str) {
    let (spec, done) = (run.state.spec(), run.state.round());
    let parameters = spec.model.parameters() as f64 / 1e6;
    let model = spec.model;
    eprintln!(
        "  model       {parameters:.1} M parameters ({} layers, {} wide, context {}), {}, {:?} updates",
        model.layers,
        model.width,
        model.context,
        describe_optimizer(spec),
        spec.codec
    );
    eprintln!(
        "  swarm       {who}, {} tasks a round of {} steps × {} sequences",
        spec.tasks_per_round, spec.inner_steps, spec.batch
    );
    eprintln!("  state       {}", run.folder.path().display());
    let until = run.end.map_or("until Ctrl-C".to_owned(), |end| format!("to round {}", end.0));
    if done.0 > 0 {
        eprintln!("  going on    from round {} {until}\n", done.0);
    } else {
        eprintln!("  training    {until}\n");
    }
}

/// The final word: everything is read back from disk, the ledger's whole journal included, where the ledger is not
/// elsewhere.
pub(super) fn report(
    options: &RunOptions,
    began: &Began,
    state: &State,
    elsewhere: Option<&RemoteLedger>,
) -> Result<(), Failure> {
    let Began { folder, blobs, verifiers, tokens, watch } = began;
    let time = watch.elapsed();
    let database = StateDir::database(folder.path());
    // What was asked for is done, or was stopped on purpose: the next `up --rounds` begins anew from here.
    RunStore::new(Database::open(&database)?).set_goal(None)?;
    let books = match elsewhere {
        Some(ledger) => match Books::fetch(ledger) {
            // Somebody has stopped the run while the ledger was away. The table would be of the ledger's sums.
            Err(error) if error.is_passing() && !options.json => {
                eprintln!("  {error}; what it owes this run is paid when the run goes on");
                return Ok(());
            }
            books => books?,
        },
        None => {
            let config = LedgerConfig { economy: economy(state.spec())?, verifiers: verifiers.clone() };
            Books::of(&Ledger::open(config, &mut LedgerStore::snapshot(&database)?)?)
        }
    };
    let summary = Summary::new(state, &books, time, *tokens).context("the run has no model")?;
    if options.json {
        println!("{}", serde_json::to_string(&summary)?);
        return Ok(());
    }
    let model_file = blobs.file(&summary.model_digest);
    print!("\n{}", summary.to_text(folder.path(), &model_file));
    let place = options.state_dir.as_ref().map_or(String::new(), |dir| format!(" --state-dir {}", dir.display()));
    println!("\nNext: hydra generate \"The \"{place}   (with cargo: cargo run -- generate \"The \"{place})");
    Ok(())
}

/// The economy of a run: it says what rounds emit, the rest are defaults.
pub(super) fn economy(spec: &RunSpec) -> Result<Economy, EconomyError> {
    let audit = spec.audits.map(|audits| audits.policy).unwrap_or_default();
    EconomyConfig { audit, ..EconomyConfig::emitting(spec.emission) }.check()
}
