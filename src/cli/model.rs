use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::json;

use super::report::thousands;
use super::{Failure, state_dir};
use crate::coordinator::State;
use crate::model::checkpoint;
use crate::model::formats::{self, CONFIG, Format, TOKENIZER, WEIGHTS, WEIGHTS_HEADER_BYTES_MAX};
use crate::protocol::{Digest, ModelSpec, VOCABULARY, limits};
use crate::store::{BlobError, Blobs, Database, FolderBlobs, RunStore, StateDir};
use crate::training::Params;

/// Digits of a digest that are enough to name a model.
const DIGITS_MIN: usize = 4;

/// Export, import and compare models
#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
    /// Where the run lives [default: the platform's data directory]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Write a model into a folder, for other programs
    Export {
        /// The folder: a new one, or empty
        folder: PathBuf,
        /// For which programs
        #[arg(long, value_enum)]
        format: Format,
        /// Which model: a digest's first digits, or a folder [default: the newest of the run]
        #[arg(long, value_name = "DIGEST|DIR")]
        model: Option<String>,
    },
    /// Take in a folder of Hugging Face's transformers: a Llama of bytes, such as export writes
    Import {
        /// The folder
        folder: PathBuf,
    },
    /// List the models of the run, and those that were imported
    List {
        /// Print one JSON object a model
        #[arg(long)]
        json: bool,
    },
    /// Show what a model is
    Show {
        /// Which: a digest's first digits, or a folder [default: the newest of the run]
        #[arg(value_name = "DIGEST|DIR")]
        model: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show how far two models are apart, part by part
    Diff {
        /// From this: a digest's first digits, or a folder
        #[arg(value_name = "DIGEST|DIR")]
        from: String,
        /// To this
        #[arg(value_name = "DIGEST|DIR")]
        to: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A model that was found.
pub(super) struct Found {
    /// Of its weights as they are kept.
    pub digest: Digest,
    pub model: ModelSpec,
    pub params: Params,
}

/// A model that there is, or was.
struct Listed {
    digest: Digest,
    model: ModelSpec,
    /// The round that starts from it, and the tokens and the loss of the lineage; nothing where it was imported.
    place: Option<(u32, u64, Option<f64>)>,
    /// Where its weights are.
    file: PathBuf,
}

pub(super) fn run(args: &ModelArgs) -> Result<(), Failure> {
    let state = state_dir(args.state_dir.as_deref())?;
    match &args.command {
        ModelCommand::Export { folder, format, model } => export(&find(model.as_deref(), &state)?, *format, folder),
        ModelCommand::Import { folder } => import(folder, &state),
        ModelCommand::List { json } => list(&state, *json),
        ModelCommand::Show { model, json } => show(model.as_deref(), &state, *json),
        ModelCommand::Diff { from, to, json } => diff(&find(Some(from), &state)?, &find(Some(to), &state)?, *json),
    }
}

/// The model that `name` says: a folder, the first digits of a digest, or by default the newest of the run in `state`.
pub(super) fn find(name: Option<&str>, state: &Path) -> Result<Found, Failure> {
    if let Some(name) = name
        && Path::new(name).is_dir()
    {
        return read_folder(Path::new(name));
    }
    let listed = locate(name, state)?;
    if listed.place.is_none() {
        let folder = imported(state).join(listed.digest.to_string());
        let found = read_folder(&folder)?;
        if found.digest != listed.digest {
            return Err(anyhow!("{} is damaged: its content does not match its name", folder.display()).into());
        }
        return Ok(found);
    }
    let bytes = match FolderBlobs::read_only(&StateDir::blobs(state)).get(&listed.digest) {
        Err(BlobError::Missing(digest)) => {
            let kept = limits::MODELS_KEPT;
            return Err(anyhow!("the weights of {} are gone: a run keeps the newest {kept}", digest.short()).into());
        }
        bytes => bytes?,
    };
    let params = checkpoint::decode(&bytes, &listed.model)
        .with_context(|| format!("the model {} is damaged", listed.digest.short()))?;
    Ok(Found { digest: listed.digest, model: listed.model, params })
}

fn locate(name: Option<&str>, state: &Path) -> Result<Listed, Failure> {
    let mut all = models(state)?;
    let Some(name) = name else {
        let newest = all.into_iter().rfind(|model| model.place.is_some());
        let none = || format!("there is no trained model in {}; train one with `hydra up`", state.display());
        return Ok(newest.with_context(none)?);
    };
    let digits = name.len() >= DIGITS_MIN && name.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    if !digits {
        return Err(Failure::Usage(anyhow!(
            "`{name}` is neither a folder nor {DIGITS_MIN} or more of the first digits of a model's digest"
        )));
    }
    all.retain(|model| model.digest.to_string().starts_with(name));
    all.sort_by_key(|model| model.digest);
    all.dedup_by_key(|model| model.digest);
    match all.len() {
        0 => Err(anyhow!("no model begins with {name}; `hydra model list` shows those in {}", state.display()).into()),
        1 => Ok(all.remove(0)),
        more => Err(Failure::Usage(anyhow!("{more} models begin with {name}; give more digits"))),
    }
}

/// Every model: those that were imported, then those of the run from its first on.
fn models(state: &Path) -> Result<Vec<Listed>, Failure> {
    let mut all = Vec::new();
    if let Ok(folders) = fs::read_dir(imported(state)) {
        for folder in folders {
            let path = folder?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            if let Some(digest) = name {
                let model = formats::spec(&read(&path.join(CONFIG), limits::MODEL_WORDS_BYTES_MAX)?)
                    .with_context(|| format!("{} is damaged", path.display()))?;
                all.push(Listed { digest, model, place: None, file: path.join(WEIGHTS) });
            }
        }
        all.sort_by_key(|model| model.digest);
    }
    let database = StateDir::database(state);
    if database.exists()
        && let Some((spec, records)) = RunStore::new(Database::open_read_only(&database)?).load()?
    {
        let blobs = FolderBlobs::read_only(&StateDir::blobs(state));
        let run = State::replay(spec, records);
        let listed = run.lineage().iter().zip(0u32..).map(|(base, round)| Listed {
            digest: base.digest,
            model: run.spec().model,
            place: Some((round, base.tokens, base.loss)),
            file: blobs.file(&base.digest),
        });
        all.extend(listed);
    }
    Ok(all)
}

/// Where imported models are: each in a folder named by the digest of its weights.
fn imported(state: &Path) -> PathBuf {
    state.join("models")
}

/// Reads a file of at most so many bytes.
fn read(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let cannot = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).with_context(cannot)?.take(most + 1).read_to_end(&mut bytes).with_context(cannot)?;
    if bytes.len() as u64 > most {
        return Err(anyhow!("{} is larger than {most} bytes: that is none that could be read", path.display()).into());
    }
    Ok(bytes)
}

/// The model in a folder of Hugging Face's.
fn read_folder(folder: &Path) -> Result<Found, Failure> {
    let wrong = || format!("{} holds no model that could be used", folder.display());
    let config = read(&folder.join(CONFIG), limits::MODEL_WORDS_BYTES_MAX)?;
    // Its sizes say how much there is to read.
    let model = formats::spec(&config).with_context(wrong)?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() {
        let others = "weights in several files, or in other formats than safetensors, are not read";
        return Err(anyhow!("there is no {WEIGHTS} in {}: {others}", folder.display()).into());
    }
    let tokenizer = read(&folder.join(TOKENIZER), limits::MODEL_WORDS_BYTES_MAX)?;
    let head = u64::from(VOCABULARY) * u64::from(model.width);
    let most = (model.parameters() + head) * size_of::<f32>() as u64 + WEIGHTS_HEADER_BYTES_MAX;
    let (model, params) = formats::import(&config, &tokenizer, &read(&weights, most)?).with_context(wrong)?;
    Ok(Found { digest: Digest::of(&checkpoint::encode(&params)?), model, params })
}

/// Writes a model into a new or empty folder.
fn write(found: &Found, format: Format, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let cannot = || format!("cannot write to {}", folder.display());
    fs::create_dir_all(folder).with_context(cannot)?;
    if fs::read_dir(folder).with_context(cannot)?.next().is_some() {
        return Err(anyhow!("{} is not empty; name another folder", folder.display()).into());
    }
    let mut paths = Vec::new();
    for file in formats::export(format, &found.model, &found.params)? {
        let path = folder.join(file.name);
        fs::write(&path, file.bytes).with_context(|| format!("cannot write {}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}

fn export(found: &Found, format: Format, folder: &Path) -> Result<(), Failure> {
    for path in write(found, format, folder)? {
        println!("{}", path.display());
    }
    Ok(())
}

fn import(folder: &Path, state: &Path) -> Result<(), Failure> {
    let found = read_folder(folder)?;
    let place = imported(state).join(found.digest.to_string());
    if !place.exists() {
        // Whole or not at all: a folder under the name of its digest is complete.
        let part = imported(state).join("part");
        match fs::remove_dir_all(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(anyhow!("cannot use {}: {error}", part.display()).into());
            }
            _ => {}
        }
        write(&found, Format::Hf, &part)?;
        fs::rename(&part, &place).with_context(|| format!("cannot write {}", place.display()))?;
    }
    println!("{}", found.digest);
    Ok(())
}

fn list(state: &Path, json: bool) -> Result<(), Failure> {
    let all = models(state)?;
    if json {
        for model in &all {
            println!("{}", model.json());
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["model", "from", "tokens", "loss", "weights"]);
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for model in &all {
        let (from, tokens, loss) = match model.place {
            Some((0, tokens, loss)) => ("the beginning".to_owned(), thousands(tokens), loss),
            Some((round, tokens, loss)) => (format!("round {}", round - 1), thousands(tokens), loss),
            None => ("imported".to_owned(), String::new(), None),
        };
        let loss = loss.map_or(String::new(), |loss| format!("{loss:.4}"));
        let kept = if model.file.exists() { "kept" } else { "gone" };
        table.add_row([model.digest.short(), from, tokens, loss, kept.to_owned()]);
    }
    println!("{table}");
    Ok(())
}

impl Listed {
    fn json(&self) -> serde_json::Value {
        let (round, tokens, loss) = self.place.map_or((None, None, None), |(r, t, l)| (Some(r), Some(t), l));
        json!({
            "digest": self.digest, "base_of_round": round, "tokens": tokens, "loss": loss,
            "imported": self.place.is_none(), "parameters": self.model.parameters(), "model": self.model,
            "file": self.file, "kept": self.file.exists(),
        })
    }
}

fn show(name: Option<&str>, state: &Path, json: bool) -> Result<(), Failure> {
    let listed = match name.map(Path::new).filter(|path| path.is_dir()) {
        Some(folder) => {
            let found = read_folder(folder)?;
            Listed { digest: found.digest, model: found.model, place: None, file: folder.join(WEIGHTS) }
        }
        None => locate(name, state)?,
    };
    if json {
        println!("{}", listed.json());
        return Ok(());
    }
    let ModelSpec { layers, width, heads, hidden, context } = listed.model;
    println!("model       {}", listed.digest);
    println!("sizes       {layers} layers, {width} wide, {heads} heads, {hidden} hidden, context {context}");
    println!("parameters  {}", thousands(listed.model.parameters()));
    match listed.place {
        Some((round, tokens, loss)) => {
            println!("from        the run in {}: round {round} starts from it", state.display());
            println!("tokens      {}", thousands(tokens));
            if let Some(loss) = loss {
                println!("loss        {loss:.4} nats a token on the validation split");
            }
        }
        None => println!("from        outside"),
    }
    let gone = if listed.file.exists() { "" } else { " (gone)" };
    println!("weights     {}{gone}", listed.file.display());
    Ok(())
}

/// How far a part of one model is from that of another.
struct Distance {
    part: String,
    /// Sums of squares: of the first, of the difference.
    first: f64,
    difference: f64,
    largest: f32,
}

fn diff(from: &Found, to: &Found, json: bool) -> Result<(), Failure> {
    if from.params.layout() != to.params.layout() {
        return Err(anyhow!("the models are of different sizes: {:?} and {:?}", from.model, to.model).into());
    }
    let mut parts: Vec<Distance> = Vec::new();
    for tensor in from.params.layout().tensors() {
        let part = part_of(&tensor.name);
        if parts.last().is_none_or(|last| last.part != part) {
            parts.push(Distance { part, first: 0.0, difference: 0.0, largest: 0.0 });
        }
        let Some(sums) = parts.last_mut() else { continue };
        for (&a, &b) in from.params.tensor(tensor).iter().zip(to.params.tensor(tensor)) {
            sums.first += f64::from(a).powi(2);
            sums.difference += (f64::from(b) - f64::from(a)).powi(2);
            sums.largest = sums.largest.max((b - a).abs());
        }
    }
    let all = Distance {
        part: "all".to_owned(),
        first: parts.iter().map(|part| part.first).sum(),
        difference: parts.iter().map(|part| part.difference).sum(),
        largest: parts.iter().map(|part| part.largest).fold(0.0, f32::max),
    };
    parts.push(all);
    let relative = |part: &Distance| (part.difference / part.first.max(f64::MIN_POSITIVE)).sqrt();
    if json {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| json!({ "part": part.part, "relative": relative(part), "largest": part.largest }))
            .collect();
        println!("{}", json!({ "from": from.digest, "to": to.digest, "parts": parts }));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["part", "distance", "largest change"]);
    for part in &parts {
        table.add_row([part.part.clone(), format!("{:.3} %", 100.0 * relative(part)), format!("{:.2e}", part.largest)]);
    }
    println!("{table}");
    println!("distance: L2 norm of the difference over that of {}", from.digest.short());
    Ok(())
}

/// The part of a model that a tensor belongs to.
fn part_of(tensor: &str) -> String {
    match tensor.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, _)) => format!("layer {layer}"),
        None if tensor.contains("embed") => "embedding".to_owned(),
        None => "final norm".to_owned(),
    }
}
