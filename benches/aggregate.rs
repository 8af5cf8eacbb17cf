//! Claim: the mean of a round's updates is made at half the speed of copying them in memory, or more, where they travel as
//! plain numbers; robust aggregation costs a bounded multiple of the mean. What was measured is in
//! `docs/src/verification.md`.
//!
//! `cargo bench --profile dev --bench aggregate [-- updates …]`
//!
//! One thread does everything, so that the numbers are per core. Every rule and the copy take turns.

#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use hydra::model::Preset;
use hydra::protocol::{Aggregation, Codec, Rule, Seed};
use hydra::training::{Layout, Params, Update};

const TURNS: usize = 3;

/// Updates that differ from each other by half of what they have in common, a different payload each.
fn payloads(codec: Codec, count: usize) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let model = Preset::Nano.recipe().model;
    let shared = Params::initial(&model, &Seed::from_number(0));
    let mut all = Vec::new();
    for index in 1..=count as u64 {
        let mut update = Params::initial(&model, &Seed::from_number(index % 16 + 1));
        update.values_mut().iter_mut().zip(shared.values()).for_each(|(own, shared)| *own = 0.5 * *own + shared);
        all.push(codec.encode(&update, &Seed::from_number(index))?);
    }
    Ok(all)
}

fn main() -> Result<(), Box<dyn Error>> {
    let counts: Vec<usize> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .map(|n| n.parse())
        .collect::<Result<_, _>>()?;
    let counts = if counts.is_empty() { vec![8, 64, 512] } else { counts };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let layout = Layout::of(&Preset::Nano.recipe().model);
    println!("{:8} {:>8} {:16} {:>10} {:>12} {:>12}", "codec", "updates", "rule", "GB/s", "of a copy", "× the mean");
    for codec in [Codec::Fp32, Codec::Ternary] {
        for &count in &counts {
            let payloads = payloads(codec, count)?;
            let updates: Vec<Update<'_>> = payloads.iter().map(|payload| Update { payload, tokens: 1 }).collect();
            let bytes: usize = payloads.iter().map(Vec::len).sum();
            let krum = Rule::Krum { byzantine: u32::try_from(count / 4)? };
            let rules = [
                ("mean", Aggregation::MEAN),
                ("centred clip", Aggregation::default()),
                ("geometric median", Aggregation { rule: Rule::GeometricMedian, ..Aggregation::default() }),
                ("trimmed mean", Aggregation { rule: Rule::TrimmedMean { trim: 0.2 }, ..Aggregation::default() }),
                ("Krum", Aggregation { rule: krum, ..Aggregation::default() }),
            ];
            let mut times = vec![f64::INFINITY; rules.len() + 1];
            let mut copy = vec![0u8; bytes];
            for _ in 0..TURNS {
                let start = Instant::now();
                let mut rest = &mut copy[..];
                for payload in &payloads {
                    let (here, after) = rest.split_at_mut(payload.len());
                    here.copy_from_slice(payload);
                    rest = after;
                }
                black_box(&copy);
                times[rules.len()] = times[rules.len()].min(start.elapsed().as_secs_f64());
                for ((_, rule), time) in rules.iter().zip(&mut times) {
                    let start = Instant::now();
                    black_box(one.install(|| rule.apply(codec, &layout, &updates))?);
                    *time = time.min(start.elapsed().as_secs_f64());
                }
            }
            for ((name, _), time) in rules.iter().zip(&times) {
                let name_of = format!("{codec:?}").to_lowercase();
                println!(
                    "{name_of:8} {count:8} {name:16} {:10.2} {:12.2} {:12.1}",
                    bytes as f64 / time / 1e9,
                    times[rules.len()] / time,
                    time / times[0]
                );
            }
        }
    }
    Ok(())
}
