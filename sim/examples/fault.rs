//! A source of faults of one's own: power cuts that take half of the workers, each longer than the one before.
//!
//! `cargo run --example fault`

use hydra_sim::{Scenario, Simulation, Strike, Trouble, Victim};

fn main() -> anyhow::Result<()> {
    let scenario = Scenario::parse("fault.toml".as_ref(), include_str!("fault.toml"))?;
    let mut lengths = [5.0, 10.0, 20.0, 40.0].into_iter();
    let power_cuts = move |rng: &mut rand::rngs::ChaCha8Rng| {
        let for_seconds = lengths.next()?;
        // All chance comes from this generator, so that the run is the same every time.
        let after_seconds = 20.0 + hydra::protocol::below(rng, 20) as f64;
        let (what, who) = (Trouble::Crash, Victim::Workers);
        Some(Strike { after_seconds, what, who, group: None, share: 0.5, for_seconds })
    };
    let outcome = Simulation::new(&scenario).faults(power_cuts).run(scenario.seed, 2)?;
    for strike in &outcome.strikes {
        println!(
            "{:5.0} s: {} workers without power for {:.0} s",
            strike.at_seconds,
            strike.hit,
            strike.until_seconds - strike.at_seconds
        );
    }
    println!("{} rounds in {:.0} s", outcome.rounds.len(), outcome.virtual_seconds);
    anyhow::ensure!(outcome.passed, "{:#?}", outcome.failures);
    Ok(())
}
