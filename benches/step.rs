//! Claim: an inner step of `nano` takes at most 60 ms on one thread and 32 ms on two with `AdamW`, several times less
//! than with plain burn operations, and Muon adds at most 35 ms on one thread. (Two Zen 4 cores, medians: plain 291 and
//! 290 ms, fused 55 and 30 ms, with Muon 79 and 43 ms.)
//!
//! `cargo bench --profile dev --bench step [-- preset [part of a name]]`. Configurations take turns, so that a machine that slows down
//! slows all of them; medians are shown, and the best of all for machines that do other things besides.

#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::error::Error;
use std::time::Instant;

use hydra::model::{BurnEngine, DeviceChoice, Preset};
use hydra::protocol::{InnerOptimizer, Seed};
use hydra::training::{Batch, Engine, EngineError, Params};
use rayon::{ThreadPool, ThreadPoolBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let preset = arguments.next().map_or(Ok(Preset::Nano), |name| name.parse::<Preset>())?;
    let wanted = arguments.next().unwrap_or_default();
    let recipe = preset.recipe();
    let context = recipe.model.context as usize;
    let tokens = (0..recipe.batch as usize * (context + 1)).map(|at| (at * at % 251) as u16).collect();
    let batch = Batch { context, tokens };
    let base = Params::initial(&recipe.model, &Seed::from_number(1));

    let engines =
        [("plain", BurnEngine::plain(DeviceChoice::NdArray)), ("fused", BurnEngine::new(DeviceChoice::NdArray))];
    let optimizers = [("AdamW", InnerOptimizer::adamw()), ("Muon", InnerOptimizer::muon())];
    let pools = [1, 2].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build());
    let [one, two] = pools;
    let pools: [ThreadPool; 2] = [one?, two?];

    let mut rows = Vec::new();
    for (engine_name, engine) in &engines {
        for (optimizer_name, optimizer) in &optimizers {
            for pool in &pools {
                let name = format!("{engine_name}, {optimizer_name}, {} threads", pool.current_num_threads());
                if name.contains(&wanted) {
                    rows.push((name, pool, engine, optimizer, Vec::new()));
                }
            }
        }
    }
    for _ in 0..6 {
        for (_, pool, engine, optimizer, times) in &mut rows {
            let measured = pool.install(|| -> Result<Vec<f64>, EngineError> {
                let mut session = engine.train(&recipe.model, &base, optimizer)?;
                session.step(&batch, 1e-3)?;
                let timed = |_| {
                    let start = Instant::now();
                    session.step(&batch, 1e-3).map(|_| start.elapsed().as_secs_f64() * 1e3)
                };
                (0..4).map(timed).collect()
            })?;
            times.extend(measured);
        }
    }
    println!("{preset}: {} parameters, {} tokens a step", recipe.model.parameters(), batch.predicted());
    for (name, _, _, _, mut times) in rows {
        times.sort_by(f64::total_cmp);
        println!("{name:28} {:8.1} ms, at best {:.1}", times[times.len() / 2], times[0]);
    }
    Ok(())
}
