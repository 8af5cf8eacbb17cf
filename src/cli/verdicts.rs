use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use super::Failure;
use crate::coordinator::{DrawnResult, Ending, RoundDraw, State, recheck};
use crate::http::Client;
use crate::http::api::{RoundAudits, Status, path};
use crate::protocol::{Keypair, Outcome, Round, Verdict, limits};
use crate::runtime::{Clock, SystemClock, entropy};
use crate::store::{Database, RunStore, StateDir};

/// Show whose work was computed again, and what came of it
#[derive(Debug, Args)]
pub(super) struct VerdictsArgs {
    #[command(flatten)]
    source: Source,
    /// This round only
    #[arg(long, value_name = "N")]
    round: Option<u32>,
    /// Print JSON, one object a result
    #[arg(long)]
    json: bool,
}

/// Where audits are read.
#[derive(Debug, Args)]
struct Source {
    /// Ask this coordinator: http://host:port or https://host:port [default: read the state directory]
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE", requires = "coordinator")]
    tls_ca: Option<PathBuf>,
    /// Where the run lives [default: the platform's data directory]
    #[arg(long, value_name = "DIR", conflicts_with = "coordinator")]
    state_dir: Option<PathBuf>,
}

/// Commands of a verifier that do not verify.
#[derive(Debug, Subcommand)]
pub(super) enum VerifierCommand {
    /// Check that a round's audits were drawn by the secret that was fixed when the run was made, and ended as their
    /// signed verdicts say
    Recheck(RecheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct RecheckArgs {
    /// The round
    round: u32,
    #[command(flatten)]
    source: Source,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Source {
    /// The audits of `rounds`, or of all that are known; and the number of rounds that are done.
    fn read(&self, round: Option<u32>) -> Result<Vec<RoundAudits>, Failure> {
        match &self.coordinator {
            Some(address) => self.ask(address, round),
            None => self.look(round),
        }
    }

    fn look(&self, round: Option<u32>) -> Result<Vec<RoundAudits>, Failure> {
        let folder = super::state_dir(self.state_dir.as_deref())?;
        let database = StateDir::database(&folder);
        if !database.exists() {
            return Err(anyhow::anyhow!(
                "there is no run in {}; name another --state-dir, or a --coordinator",
                folder.display()
            )
            .into());
        }
        let (spec, records) =
            RunStore::new(Database::open_read_only(&database)?).load()?.context("there is no run yet")?;
        let state = State::replay(spec, records);
        Ok(newest(round, state.round()).map(|round| RoundAudits::of(&state, round)).collect())
    }

    fn ask(&self, address: &str, round: Option<u32>) -> Result<Vec<RoundAudits>, Failure> {
        // What is read is public; nobody learns who asks.
        let mut secret = [0; 32];
        entropy(&mut secret).context("the operating system gives no random numbers")?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let client: Arc<Client> =
            super::client(address, Keypair::from_secret(&secret), &clock, self.tls_ca.as_deref())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let done = client.get::<Status>(path::STATUS).await?.round;
            let mut all = Vec::new();
            for round in newest(round, done) {
                all.push(client.get(&format!("{}?round={}", path::AUDITS, round.0)).await?);
            }
            Ok(all)
        })
    }
}

/// The round asked for, or the newest of which audits are kept, oldest first.
fn newest(round: Option<u32>, done: Round) -> impl Iterator<Item = Round> {
    let first = done.0.saturating_sub(u32::try_from(limits::DRAWS_KEPT).unwrap_or(u32::MAX));
    round.map_or(first..=done.0, |round| round..=round).map(Round)
}

pub(super) fn run(args: &VerdictsArgs) -> Result<(), Failure> {
    let rounds = args.source.read(args.round)?;
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["round", "task", "worker", "clean before", "verdicts", "audit"]);
    for RoundAudits { round, draw, .. } in &rounds {
        for result in draw.iter().flat_map(|draw| &draw.results) {
            if args.json {
                println!("{}", result_json(*round, result));
            } else if !result.verdicts.is_empty() || result.ending.is_some() {
                table.add_row([
                    round.0.to_string(),
                    result.task.0.short(),
                    result.worker.short(),
                    result.clean.to_string(),
                    result.verdicts.iter().map(verdict_text).collect::<Vec<_>>().join("\n"),
                    ending_text(result.ending).to_owned(),
                ]);
            }
        }
    }
    if args.json {
        return Ok(());
    }
    let drawn: Vec<&RoundDraw> = rounds.iter().filter_map(|round| round.draw.as_ref()).collect();
    let results: usize = drawn.iter().map(|draw| draw.results.len()).sum();
    if table.row_count() > 0 {
        println!("{table}");
    }
    println!("{} of {results} results of {} rounds were computed again", table.row_count(), drawn.len());
    if let Some(RoundAudits { verifiers, .. }) = rounds.last() {
        for (key, record) in verifiers {
            let struck = if record.struck_off { ", not believed any more" } else { "" };
            println!(
                "verifier {}: {} replays, {} planted cheats found, {} times found otherwise by others{struck}",
                key.short(),
                record.replays,
                record.tests,
                record.faults
            );
        }
    }
    Ok(())
}

fn verdict_text(verdict: &crate::protocol::Signed) -> String {
    let Ok((signer, verdict)) = verdict.open::<Verdict>() else { return "not signed as it claims".to_owned() };
    let found = match verdict.outcome {
        Outcome::Accepted { .. } => "right".to_owned(),
        Outcome::Rejected { reason, .. } => reason.to_string(),
    };
    format!("{}: {found}", signer.short())
}

fn ending_text(ending: Option<Ending>) -> &'static str {
    match ending {
        Some(Ending::Clean) => "right",
        Some(Ending::False) => "false",
        Some(Ending::Unfinished) => "not finished in time",
        Some(Ending::TestPassed | Ending::TestFailed) => "a test",
        None => "not over",
    }
}

fn result_json(round: Round, result: &DrawnResult) -> Value {
    let verdicts: Vec<Value> = result
        .verdicts
        .iter()
        .filter_map(|signed| {
            let (verifier, verdict) = signed.open::<Verdict>().ok()?;
            Some(json!({ "verifier": verifier, "outcome": verdict.outcome, "signed": signed }))
        })
        .collect();
    json!({
        "round": round,
        "task": result.task,
        "worker": result.worker,
        "payload": result.payload,
        "clean_before": result.clean,
        "verdicts": verdicts,
        "ending": result.ending,
    })
}

pub(super) fn run_recheck(args: &RecheckArgs) -> Result<(), Failure> {
    let rounds = args.source.read(Some(args.round))?;
    let RoundAudits { spec, round, draw, verifiers } = rounds.into_iter().next().context("there is no answer")?;
    let draw = draw.with_context(|| {
        format!(
            "nothing is known of audits in round {round}: it is not closed yet, is more than {} rounds ago, or the run \
             has no audits",
            limits::DRAWS_KEPT
        )
    })?;
    let believed = verifiers.iter().filter(|(_, record)| !record.struck_off).count();
    let found = recheck(&spec, round, &draw, believed)?;
    if args.json {
        println!(
            "{}",
            json!({
                "run": spec.id(), "round": round, "results": found.results, "drawn": found.drawn, "open": found.open,
                "unfinished": found.unfinished, "verdicts": found.verdicts, "located": found.located, "secret": draw.secret,
            })
        );
        return Ok(());
    }
    println!("run {}, round {round}", spec.id());
    println!("  the secret is the one that was fixed when the run was made: {}", draw.secret);
    println!("  it draws {} of {} results, and just those were computed again", found.drawn, found.results);
    println!("  {} verdicts are signed, and the audits ended as they say", found.verdicts);
    if found.located > 0 {
        println!("  {} of them say in which steps the work went wrong", found.located);
    }
    if found.open > 0 {
        println!("  {} audits are not over yet", found.open);
    }
    if found.unfinished > 0 {
        println!("  {} audits could not be finished in time", found.unfinished);
    }
    Ok(())
}
