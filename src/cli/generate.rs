use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{Failure, device, model, state_dir};
use crate::inference::{Sampler, Sampling, Utf8Pieces, generate};
use crate::model::Predictor;
use crate::protocol::{Seed, limits};
use crate::runtime::entropy;

/// Let the newest model, or another, continue a text
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// What to continue
    prompt: String,
    /// How many tokens (bytes) to add at most
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::GENERATE_TOKENS_MAX)))]
    tokens: u32,
    /// 0 always takes the likeliest token; 1 draws as the model believes
    #[arg(long, default_value_t = 0.8)]
    temperature: f32,
    /// The same seed, prompt and model give the same text [default: another each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Which model: a digest's first digits, or a folder (see `hydra model`) [default: the newest of the run]
    #[arg(long, value_name = "DIGEST|DIR")]
    model: Option<String>,
    /// Where the run is [default: as for `hydra up`]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// What to compute on: a name from `hydra device list`; auto takes the fastest
    #[arg(long, default_value = "auto")]
    device: String,
}

pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let device = device(&args.device)?;
    let seed = if let Some(seed) = args.seed {
        seed
    } else {
        let mut bytes = [0; 8];
        entropy(&mut bytes).context("the operating system gives no random numbers; use --seed")?;
        u64::from_le_bytes(bytes)
    };
    let sampling = Sampling { temperature: args.temperature, ..Sampling::default() };
    let mut sampler =
        Sampler::new(sampling, &Seed::from_number(seed), &[]).map_err(|error| Failure::Usage(error.into()))?;

    let found = model::find(args.model.as_deref(), &state_dir(args.state_dir.as_deref())?)?;
    let predictor = Predictor::new(device, &found.model, &found.params)?;

    let mut out = io::stdout().lock();
    let mut pieces = Utf8Pieces::default();
    write!(out, "{}", args.prompt)?;
    let result = generate(&predictor, args.prompt.as_bytes(), args.tokens, &mut sampler, |byte| {
        write!(out, "{}", pieces.push(byte))?;
        out.flush()
    });
    match result {
        // Whoever reads has seen enough, as `head` does.
        Err(crate::inference::GenerateError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(writeln!(out, "{}", pieces.finish())?),
    }
}
