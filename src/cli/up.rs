use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::Context;
use clap::Args;

use super::Failure;
use super::progress::Progress;
use super::run::{self, OnStop, RunOptions};
use crate::coordinator::Inspect;
use crate::protocol::{Auditors, Keypair, limits};
use crate::runtime::{Executor, Threads};
use crate::swarm::Member;
use crate::worker;

/// Run all of Hydra in this process: coordinator, ledger, verifier and workers
///
/// Trains until the rounds asked for are done, or until Ctrl-C, which finishes the round first. Run it again on the
/// same state directory and it goes on where it stopped.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    #[command(flatten)]
    options: RunOptions,
    /// How many workers train side by side [default: one a core, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::LOCAL_WORKERS_MAX)))]
    workers: Option<u32>,
    /// Compute part of the work again, as where workers are not trusted [default: they are, they are this process]
    #[arg(long)]
    audits: bool,
}

pub(super) fn run(args: &UpArgs) -> Result<(), Failure> {
    let options = &args.options;
    let wanted = args.workers.unwrap_or_else(default_workers);
    let run = options.open(wanted, wanted, args.audits.then_some(Auditors::Verifiers))?;
    if args.audits && run.state.spec().audits.is_none() {
        return Err(run::conflict("--audits", "no audits"));
    }
    let workers = args.workers.unwrap_or_else(|| default_workers().min(run.state.spec().tasks_per_round));
    let keys: Vec<Keypair> =
        (1..=workers).map(|number| run.folder.key(&format!("worker-{number}"))).collect::<Result<_, _>>()?;
    let executor: Rc<dyn Executor> = Rc::new(Threads::new(super::cores(), keys.len())?);
    let compute = run.compute.clone();

    run::describe(&run, &format!("{workers} workers"));
    let mut progress = Progress::new(run.state.spec(), run.end);
    progress.header();
    let (watch, mut heard) = run::listen(|_| ());
    let (swarm, began) = run.into_swarm(Rc::clone(&executor), watch, BTreeSet::new(), None)?;
    let system = run::system();
    let result: Result<_, Failure> = system.block_on(async {
        let member = |key| Member { key, compute: compute.clone(), executor: Rc::clone(&executor) };
        let running = swarm.start(keys.into_iter().map(member).collect(), |_, coordinator| coordinator)?;
        run::watch_until_done(&running.coordinator, &mut heard, &mut progress, OnStop::FinishRound).await?;
        for worker in &running.workers {
            worker.do_send(worker::Event::Stop);
        }
        Ok(running.coordinator.send(Inspect).await.context("the coordinator stopped")?)
    });
    progress.finish();
    // The threads end with the last of their users; nothing that they still do is waited for by anybody.
    drop(system);
    run::report(options, &began, &*result?, None)
}

fn default_workers() -> u32 {
    u32::try_from(super::cores()).unwrap_or(1).clamp(1, 4)
}
