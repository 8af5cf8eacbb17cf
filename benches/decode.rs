//! Claim: sharing steps pays. Sixteen streams together write at least four times as many tokens a second as one alone, at
//! `nano`. What was measured is in `docs/src/inference.md`.
//!
//! `cargo bench --profile dev --bench decode [-- preset …]`

#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::error::Error;
use std::time::{Duration, Instant};

use hydra::model::{Cache, Decoder, Preset, Turn};
use hydra::protocol::Seed;
use hydra::training::Params;

/// Streams that share steps.
const STREAMS: [usize; 4] = [1, 4, 16, 64];

/// Tokens of a prompt.
const PROMPT: usize = 32;

/// How often each number of streams has its turn.
const TURNS: usize = 5;

/// Seconds to read the prompts of so many streams, and to write one more token of each.
fn turn(decoder: &Decoder, streams: usize) -> Result<[f64; 2], Box<dyn Error>> {
    let prompt = vec![97; PROMPT];
    let mut caches: Vec<Cache> = (0..streams).map(|_| decoder.cache(decoder.context())).collect();
    let mut step = |tokens: &[u16]| -> Result<Duration, Box<dyn Error>> {
        let began = Instant::now();
        let mut turns: Vec<Turn<'_>> = caches.iter_mut().map(|cache| Turn { tokens, cache }).collect();
        decoder.step(&mut turns)?;
        Ok(began.elapsed())
    };
    let read = step(&prompt)?.as_secs_f64();
    let tokens = (decoder.context() - PROMPT).min(64);
    let mut written = Duration::ZERO;
    for _ in 0..tokens {
        written += step(&[101])?;
    }
    Ok([read, written.as_secs_f64() / tokens as f64])
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let named: Vec<Preset> = std::env::args().filter_map(|name| name.parse().ok()).collect();
    let presets = if named.is_empty() { vec![Preset::Nano] } else { named };
    println!("{} threads; medians of {TURNS} turns, the best in brackets", rayon::current_num_threads());
    for preset in presets {
        let model = preset.recipe().model;
        let decoder = Decoder::new(&model, Params::initial(&model, &Seed::from_number(1)))?;
        let mut times: Vec<Vec<[f64; 2]>> = STREAMS.iter().map(|_| Vec::new()).collect();
        for _ in 0..TURNS {
            for (streams, times) in STREAMS.iter().zip(&mut times) {
                times.push(turn(&decoder, *streams)?);
            }
        }
        for (streams, times) in STREAMS.iter().zip(&times) {
            let of = |what: usize| times.iter().map(|time| time[what]).collect::<Vec<_>>();
            let rate = |seconds: f64| *streams as f64 / seconds;
            let best = of(1).into_iter().fold(f64::INFINITY, f64::min);
            println!(
                "{preset:>6}  {streams:>3} streams  {:>8.0} tokens/s ({:.0})  prompts of {PROMPT} read in {:.2} ms",
                rate(median(of(1))),
                rate(best),
                median(of(0)) * 1e3
            );
        }
    }
    Ok(())
}
