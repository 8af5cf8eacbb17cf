use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::Failure;
use super::report::thousands;
use super::run::OptimizerName;
use crate::model::memory::Need;
use crate::model::{DeviceChoice, Preset, Recipe, speed};
use crate::protocol::{InnerOptimizer, ModelSpec, limits};

/// Show what this machine can train on, and how fast
#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    #[command(subcommand)]
    command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// What this machine and this build offer
    List {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    Bench(BenchArgs),
}

/// Train for some seconds on made-up text and say how fast that was
#[derive(Debug, Args)]
struct BenchArgs {
    /// What to compute on: a name from `hydra device list`
    #[arg(long, default_value = "auto")]
    device: String,
    /// Size of the network [default: nano]
    #[arg(long, value_enum, conflicts_with_all = ["layers", "width", "heads", "hidden"])]
    preset: Option<Preset>,
    /// Transformer blocks
    #[arg(long, value_name = "N", requires = "width")]
    layers: Option<u32>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", requires = "layers")]
    width: Option<u32>,
    /// Attention heads [default: one for each 64 of the width]
    #[arg(long, value_name = "N", requires = "width")]
    heads: Option<u32>,
    /// Inner width of the feed-forward networks [default: 8/3 of the width]
    #[arg(long, value_name = "N", requires = "width")]
    hidden: Option<u32>,
    /// Sequences in a step [default: the preset's; 8 without]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::BATCH_MAX)))]
    batch: Option<u32>,
    /// Tokens in a sequence [default: the preset's; 256 without]
    #[arg(long, value_name = "N")]
    context: Option<u32>,
    /// Inner optimiser
    #[arg(long, value_enum, default_value = "muon")]
    optimizer: OptimizerName,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DeviceArgs) -> Result<(), Failure> {
    match &args.command {
        DeviceCommand::List { json } => list(*json),
        DeviceCommand::Bench(args) => bench(args),
    }
}

#[derive(Serialize)]
struct Listed {
    devices: Vec<Present>,
    left_out: Vec<LeftOut>,
}

#[derive(Serialize)]
struct Present {
    device: String,
    description: &'static str,
}

#[derive(Serialize)]
struct LeftOut {
    device: &'static str,
    feature: &'static str,
}

fn list(json: bool) -> Result<(), Failure> {
    let present = |device: DeviceChoice| Present { device: device.to_string(), description: device.describe() };
    let listed = Listed {
        devices: DeviceChoice::present().into_iter().map(present).collect(),
        left_out: DeviceChoice::left_out().map(|(device, feature)| LeftOut { device, feature }).collect(),
    };
    if json {
        println!("{}", serde_json::to_string(&listed)?);
        return Ok(());
    }
    for Present { device, description } in &listed.devices {
        println!("{device:10} {description}");
    }
    for LeftOut { device, feature } in &listed.left_out {
        println!("{device:10} not in this build: build with `--features {feature}`");
    }
    Ok(())
}

/// What `hydra device bench --json` prints.
#[derive(Serialize)]
struct Measured {
    device: String,
    optimizer: OptimizerName,
    parameters: u64,
    tokens_per_step: u64,
    threads: usize,
    ms_per_step: f64,
    tokens_per_second: f64,
    tflops: f64,
    gemm_tflops: f64,
    gemm_peak_share: f64,
    /// Null where it is not known: on GPUs, and on systems other than Linux.
    peak_bytes: Option<u64>,
}

fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let device = device(&args.device)?;
    let recipe = args.recipe();
    recipe.model.validate().map_err(|error| Failure::Usage(error.into()))?;
    let optimizer = InnerOptimizer::from(args.optimizer);
    fits(&recipe, &optimizer, device, 1)?;
    let speed = speed::measure(device, &recipe, &optimizer)?;
    let round = |value: f64, to: f64| (value / to).round() * to;
    let measured = Measured {
        device: device.to_string(),
        optimizer: args.optimizer,
        parameters: recipe.model.parameters(),
        tokens_per_step: u64::from(recipe.batch) * u64::from(recipe.model.context),
        threads: rayon::current_num_threads(),
        ms_per_step: round(speed.step.as_secs_f64() * 1e3, 0.001),
        tokens_per_second: speed.tokens_per_second.round(),
        tflops: round(speed.flops / 1e12, 0.0001),
        gemm_tflops: round(speed.gemm_flops / 1e12, 0.0001),
        gemm_peak_share: round(speed.flops / speed.gemm_flops, 0.001),
        peak_bytes: speed.peak_bytes,
    };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    let memory = measured.peak_bytes.map_or_else(
        || "not known here".to_owned(),
        |bytes| {
            let each = bytes as f64 / measured.parameters as f64;
            format!("{} MiB, {each:.0} bytes a parameter", thousands(bytes >> 20))
        },
    );
    println!("  device      {} ({}), {} threads", measured.device, device.describe(), measured.threads);
    println!(
        "  step        {:.1} ms: {} parameters, {} tokens, {:?}",
        measured.ms_per_step,
        thousands(measured.parameters),
        thousands(measured.tokens_per_step),
        args.optimizer
    );
    println!("  speed       {} tokens a second", thousands(measured.tokens_per_second as u64));
    println!(
        "  arithmetic  {:.3} TFLOP/s, {:.0} % of the {:.3} TFLOP/s of large matrix products",
        measured.tflops,
        measured.gemm_peak_share * 100.0,
        measured.gemm_tflops
    );
    println!("  memory      {memory}");
    Ok(())
}

impl BenchArgs {
    fn recipe(&self) -> Recipe {
        let mut recipe = self.preset.unwrap_or(Preset::Nano).recipe();
        if let (Some(layers), Some(width)) = (self.layers, self.width) {
            let heads = if width % 64 == 0 { width / 64 } else { 1 };
            let hidden = (width.saturating_mul(8) / 3).next_multiple_of(16);
            recipe = Recipe { model: ModelSpec { layers, width, heads, hidden, context: 256 }, batch: 8 };
        }
        let model = &mut recipe.model;
        model.heads = self.heads.unwrap_or(model.heads);
        model.hidden = self.hidden.unwrap_or(model.hidden);
        model.context = self.context.unwrap_or(model.context);
        recipe.batch = self.batch.unwrap_or(recipe.batch);
        recipe
    }
}

/// Refuses what `workers` of this process cannot train at the same time for want of memory.
pub(super) fn fits(
    recipe: &Recipe,
    optimizer: &InnerOptimizer,
    device: DeviceChoice,
    workers: u32,
) -> Result<(), Failure> {
    let need = Need::of(&recipe.model, optimizer, device);
    let fits = need.check(recipe.batch.into(), recipe.model.context.into(), workers.into(), device, None);
    fits.map_err(|error| Failure::Usage(anyhow::Error::new(error).context("this machine has too little memory")))
}

/// The device that a `--device` asks for; for `auto`, the fastest.
pub(super) fn device(name: &str) -> Result<DeviceChoice, Failure> {
    let choice = name.parse().map_err(|error: crate::model::DeviceError| Failure::Usage(error.into()))?;
    Ok(if choice == DeviceChoice::Auto { fastest() } else { choice })
}

/// What was found out about the devices of a machine, kept for the next time.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    /// Of which version of Hydra; another's speeds may differ.
    version: String,
    /// The size that was measured with.
    preset: String,
    /// Tokens a second of each device; 0 for one that failed.
    tokens_per_second: BTreeMap<String, f64>,
}

/// A size that shows differences and takes a second: the smallest flatters processors, the largest GPUs.
const AUTO_PRESET: Preset = Preset::Micro;

fn fastest() -> DeviceChoice {
    let file = directories::ProjectDirs::from("", "", "hydra").map(|dirs| dirs.cache_dir().join("devices.json"));
    fastest_of(&DeviceChoice::present(), file.as_deref(), Known::measure).unwrap_or_default()
}

/// The fastest of the devices that are present, the first of several: measured the first time, kept in `file`, and
/// measured again when another version of Hydra runs or other devices are present.
fn fastest_of<D: Copy + Display>(present: &[D], file: Option<&Path>, measure: impl FnOnce(&[D]) -> Known) -> Option<D> {
    if let [only] = *present {
        return Some(only);
    }
    let known = file.and_then(read).filter(|known| known.is_of(present));
    let known = known.unwrap_or_else(|| {
        let known = measure(present);
        if let Some(file) = file {
            keep(file, &known);
        }
        known
    });
    let speed = |device: &D| known.tokens_per_second.get(&device.to_string()).copied().unwrap_or(0.0);
    present.iter().rev().copied().max_by(|a, b| speed(a).total_cmp(&speed(b)))
}

impl Known {
    fn new(tokens_per_second: BTreeMap<String, f64>) -> Self {
        let [version, preset] = [env!("CARGO_PKG_VERSION").to_owned(), AUTO_PRESET.to_string()];
        Self { version, preset, tokens_per_second }
    }

    fn measure(present: &[DeviceChoice]) -> Self {
        let optimizer = InnerOptimizer::muon();
        eprintln!("Measuring which device is fastest; this is kept, and --device skips it");
        let measured = present.iter().map(|&device| {
            let speed = speed::measure(device, &AUTO_PRESET.recipe(), &optimizer);
            match &speed {
                Ok(speed) => {
                    eprintln!("  {:10} {} tokens a second", device, thousands(speed.tokens_per_second as u64));
                }
                Err(error) => eprintln!("  {device:10} {error}"),
            }
            (device.to_string(), speed.map_or(0.0, |speed| speed.tokens_per_second))
        });
        Self::new(measured.collect())
    }

    fn is_of(&self, present: &[impl Display]) -> bool {
        self.version == env!("CARGO_PKG_VERSION")
            && self.preset == AUTO_PRESET.to_string()
            && self.tokens_per_second.len() == present.len()
            && present.iter().all(|device| self.tokens_per_second.contains_key(&device.to_string()))
    }
}

fn read(file: &Path) -> Option<Known> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// Writes what is known. Where that fails, it is measured again the next time.
fn keep(file: &Path, known: &Known) {
    let write = || {
        std::fs::create_dir_all(file.parent()?).ok()?;
        std::fs::write(file, serde_json::to_vec(known).ok()?).ok()
    };
    if write().is_none() {
        eprintln!("  (cannot be kept in {})", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: [&str; 4] = ["broken", "slow", "fast", "as fast"];

    /// Asks for the fastest, and says whether it was measured for that.
    fn ask<'a>(present: &[&'a str], file: &Path) -> (Option<&'a str>, bool) {
        let mut measured = false;
        let speeds = [("broken", 0.0), ("slow", 1.0), ("fast", 2.0), ("as fast", 2.0)];
        let found = fastest_of(present, Some(file), |present| {
            measured = true;
            let known = speeds.iter().filter(|(name, _)| present.contains(name));
            Known::new(known.map(|&(name, speed)| (name.to_owned(), speed)).collect())
        });
        (found, measured)
    }

    #[test]
    fn the_fastest_device_is_measured_once_for_a_version_and_the_devices_present() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache/devices.json");
        assert_eq!(ask(&["slow"], &file), (Some("slow"), false), "there is nothing to choose");
        assert_eq!(ask(&DEVICES, &file), (Some("fast"), true));
        assert_eq!(ask(&DEVICES, &file), (Some("fast"), false));
        assert_eq!(ask(&DEVICES[..2], &file), (Some("slow"), true), "a device has gone");
        let other = Known { version: "0.0.0".to_owned(), ..read(&file).unwrap() };
        keep(&file, &other);
        assert_eq!(ask(&DEVICES[..2], &file), (Some("slow"), true), "another version measured");
        std::fs::write(&file, "{").unwrap();
        assert_eq!(ask(&DEVICES[..2], &file), (Some("slow"), true), "the file is cut off");
    }

    #[test]
    fn what_cannot_be_kept_is_measured_each_time_and_with_nothing_that_works_the_first_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for _ in 0..2 {
            assert_eq!(ask(&DEVICES, &file.join("devices.json")), (Some("fast"), true));
        }
        let none = |_: &[&str]| Known::new(BTreeMap::new());
        assert_eq!(fastest_of(&["ndarray", "other"], None, none), Some("ndarray"));
    }
}
