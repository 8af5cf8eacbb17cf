//! The command line: one file a subcommand, and the one place where errors become words for people.

mod api_keys;
mod config;
mod coordinator;
mod device;
mod doctor;
mod generate;
mod help;
mod ledger;
mod ledger_serve;
mod model;
mod owner;
mod page;
mod progress;
mod queries;
mod query;
mod remote;
mod report;
mod run;
mod serve;
mod teller;
mod top;
mod up;
mod verdicts;
mod verifier;
mod wallet;
mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::device::device;
use crate::http::{Client, ClientError};
use crate::protocol::{Keypair, PublicKey};
use crate::runtime::Clock;
use crate::store::{KeyFile, StateDir};

/// Trains one neural network on many computers, and pays for it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    /// Configuration of up, coordinator, worker, verifier, serve [default: hydra.toml here, or else in the state directory]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::UpArgs>),
    Coordinator(Box<coordinator::CoordinatorArgs>),
    Worker(Box<worker::WorkerArgs>),
    Verifier(Box<verifier::VerifierArgs>),
    Verdicts(verdicts::VerdictsArgs),
    Top(top::TopArgs),
    Generate(generate::GenerateArgs),
    Model(model::ModelArgs),
    Serve(Box<serve::ServeArgs>),
    Query(query::QueryArgs),
    Chat(query::ChatArgs),
    Device(device::DeviceArgs),
    Config(config::ConfigArgs),
    Doctor(doctor::DoctorArgs),
    Ledger(ledger::LedgerArgs),
    Wallet(wallet::WalletArgs),
    Completions(help::CompletionsArgs),
    Man(help::ManArgs),
}

/// What went wrong, and whose doing it is.
#[derive(Debug)]
enum Failure {
    /// The command line asks for something that cannot be: exit code 2.
    Usage(anyhow::Error),
    /// Anything else: exit code 1.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Runs the command that `arguments` ask for, the program's own name first; prints one report when it fails.
#[must_use]
pub fn run(arguments: &[OsString]) -> ExitCode {
    end_on_panic();
    let (args, settings) = match config::read(arguments, std::env::vars_os()) {
        Ok(read) => read,
        Err(code) => return ExitCode::from(code),
    };
    let result = match args.command {
        Command::Up(args) => up::run(&args),
        Command::Coordinator(args) => coordinator::run(&args),
        Command::Worker(args) => worker::run(&args),
        Command::Verifier(args) => verifier::run(&args),
        Command::Verdicts(args) => verdicts::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Chat(args) => query::chat(&args),
        Command::Device(args) => device::run(&args),
        Command::Config(args) => config::run(&args, &settings),
        Command::Doctor(args) => doctor::run(&args, &settings),
        Command::Ledger(args) => ledger::run(&args),
        Command::Wallet(args) => wallet::run(&args),
        Command::Completions(args) => help::completions(&args),
        Command::Man(args) => help::man(&args),
    };
    let (error, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (error, 2),
        Err(Failure::Other(error)) => (error, 1),
    };
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

/// A panic in any thread or actor ends the process. What would go on without the dead part only looks alive, and what
/// is acknowledged is on disk.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        eprintln!("error: this is a bug in hydra. Nothing acknowledged is lost: the same command goes on from there");
        std::process::exit(101);
    }));
}

/// The state directory: as given, or Hydra's folder in the platform's data directory.
fn state_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let platform = directories::ProjectDirs::from("", "", "hydra");
    let platform = platform.context("this system has no data directory for you; name one with --state-dir")?;
    Ok(platform.data_dir().to_owned())
}

/// The public key of `name` in a state directory, also while a process runs that has the directory to itself; made where there
/// is none.
fn public_key(folder: &Path, name: &str) -> Result<PublicKey, Failure> {
    let key = match StateDir::find_key(folder, name)? {
        Some(KeyFile::Open(key)) => key,
        _ => StateDir::open(folder)?.key(name)?,
    };
    Ok(key.public())
}

/// A client of the coordinator at `address`.
fn client(
    address: &str,
    key: Keypair,
    clock: &Arc<dyn Clock>,
    authorities: Option<&Path>,
) -> Result<Arc<Client>, Failure> {
    match Client::new(address, key, Arc::clone(clock), authorities) {
        Ok(client) => Ok(Arc::new(client)),
        Err(error @ ClientError::Address(_)) => Err(Failure::Usage(error.into())),
        Err(error) => Err(error.into()),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
