use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use rand::rngs::ChaCha8Rng;
use serde::Deserialize;

use crate::chance::{exponential, unit};

const HOUR: f64 = 3600.0;
const DAY: f64 = 24.0 * HOUR;

/// When the workers of a group are there. A worker that leaves is killed: what it was computing is lost, what it has
/// finished and not handed in yet is kept for when it comes back.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// All the time.
    #[default]
    Always,
    /// Some hours of each day, as home computers are.
    Diurnal(Diurnal),
    /// Up and down for times that are exponentially distributed, each worker for itself.
    Churn(Churn),
    /// From the first of each pair of virtual seconds to the second, all together.
    Between(Vec<[f64; 2]>),
    /// As machines were seen to come and go: a file, relative to the scenario's, of lines `machine,from,to` (a number or a
    /// name, and virtual seconds). Each worker follows one machine; where there are more workers, several follow one.
    Trace(Trace),
}

/// Machines that were watched.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Trace {
    /// The file.
    pub file: PathBuf,
    /// When each machine was there.
    #[serde(skip)]
    machines: Vec<Vec<[f64; 2]>>,
}

/// Some hours of each day.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Diurnal {
    /// The hour of the day at which workers come, from 0 to 24; the simulation begins at midnight.
    pub from_hour: f64,
    /// How many hours they stay.
    pub hours: f64,
    /// Each worker comes up to half of this earlier or later, hours.
    #[serde(default)]
    pub spread_hours: f64,
}

/// Up and down at random.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// How long a worker stays on average, virtual seconds.
    pub up_seconds: f64,
    /// How long it is away on average, virtual seconds.
    pub down_seconds: f64,
}

impl Availability {
    /// Reads the file of a trace, which lies in `folder`.
    pub(crate) fn read_trace(&mut self, folder: &Path) -> Result<(), String> {
        let Self::Trace(trace) = self else { return Ok(()) };
        let path = folder.join(&trace.file);
        let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let mut machines: BTreeMap<&str, Vec<[f64; 2]>> = BTreeMap::new();
        for (number, line) in
            (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        {
            let parts: Vec<&str> = line.split(',').map(str::trim).collect();
            let stay = match parts[..] {
                [machine, from, to] => from.parse().ok().zip(to.parse().ok()).map(|(from, to)| (machine, [from, to])),
                _ => None,
            };
            let (machine, stay) =
                stay.ok_or_else(|| format!("{}, line {number}: write machine,from,to", path.display()))?;
            machines.entry(machine).or_default().push(stay);
        }
        trace.machines = machines.into_values().collect();
        let sound = trace.machines.iter().all(|stays| Self::Between(stays.clone()).check().is_ok());
        if sound && !trace.machines.is_empty() {
            return Ok(());
        }
        Err(format!("{}: each machine's stays are in order and apart, and there is at least one", path.display()))
    }

    /// What one of a group's workers does: of a trace, one machine.
    pub(crate) fn of(&self, place: usize) -> Self {
        match self {
            Self::Trace(Trace { machines, .. }) if !machines.is_empty() => {
                Self::Between(machines[place % machines.len()].clone())
            }
            other => other.clone(),
        }
    }

    /// What is wrong with its numbers.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let fine = match self {
            Self::Always | Self::Trace(_) => true,
            Self::Diurnal(Diurnal { from_hour, hours, spread_hours }) => {
                (0.0..=24.0).contains(from_hour) && *hours > 0.0 && *spread_hours >= 0.0 && hours + spread_hours < 24.0
            }
            Self::Churn(Churn { up_seconds, down_seconds }) => *up_seconds >= 1.0 && *down_seconds >= 1.0,
            Self::Between(windows) => {
                let ordered = windows.windows(2).all(|pair| pair[0][1] < pair[1][0]);
                ordered && !windows.is_empty() && windows.iter().all(|[from, to]| *from >= 0.0 && from < to)
            }
        };
        if fine {
            return Ok(());
        }
        Err(match self {
            Self::Diurnal(_) => {
                "availability.diurnal: from_hour is from 0 to 24, hours and spread_hours together below 24"
            }
            Self::Churn(_) => "availability.churn: up_seconds and down_seconds are at least 1",
            _ => "availability.between is a list of [from, to], in order and apart",
        })
    }

    /// When a worker comes and goes: virtual seconds from the beginning, and whether it is there from then on. In order,
    /// and possibly without end.
    pub(crate) fn changes(&self, mut rng: ChaCha8Rng) -> Box<dyn Iterator<Item = (f64, bool)>> {
        match self.clone() {
            // Of a trace, each worker has its own machine: see `of`.
            Self::Always | Self::Trace(_) => Box::new(iter::once((0.0, true))),
            Self::Diurnal(Diurnal { from_hour, hours, spread_hours }) => {
                let shift = (unit(&mut rng) - 0.5) * spread_hours * HOUR;
                // Yesterday's stay may reach into today.
                let stays = (-1..).map(move |day| {
                    let from = f64::from(day) * DAY + from_hour * HOUR + shift;
                    (from, from + hours * HOUR)
                });
                let stays = stays.filter(|(_, to)| *to > 0.0);
                Box::new(stays.flat_map(|(from, to)| [(from.max(0.0), true), (to, false)]))
            }
            Self::Churn(Churn { up_seconds, down_seconds }) => {
                // It is there at the beginning as often as at any other time.
                let mut there = unit(&mut rng) < up_seconds / (up_seconds + down_seconds);
                let mut at = 0.0;
                Box::new(iter::from_fn(move || {
                    let change = (at, there);
                    at += exponential(&mut rng, if there { up_seconds } else { down_seconds });
                    there = !there;
                    Some(change)
                }))
            }
            Self::Between(windows) => Box::new(windows.into_iter().flat_map(|[from, to]| [(from, true), (to, false)])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydra::protocol::Seed;

    /// The share of the first `days` that a worker is there.
    fn share(availability: &Availability, days: f64, worker: u64) -> f64 {
        let (mut there, mut since, mut total) = (false, 0.0, 0.0);
        for (at, now) in availability.changes(Seed::from_number(3).derive("presence", worker).rng()) {
            assert!(at >= since, "changes come in order");
            if there {
                total += at.min(days * DAY) - since.min(days * DAY);
            }
            (there, since) = (now, at);
            if at > days * DAY {
                break;
            }
        }
        total / (days * DAY)
    }

    #[test]
    fn workers_are_there_as_long_as_their_group_says() {
        let evenings = Availability::Diurnal(Diurnal { from_hour: 20.0, hours: 6.0, spread_hours: 2.0 });
        let churn = Availability::Churn(Churn { up_seconds: 3000.0, down_seconds: 1000.0 });
        let mean = |availability| (0..20).map(|worker| share(availability, 30.0, worker)).sum::<f64>() / 20.0;
        assert!((mean(&evenings) - 0.25).abs() < 0.01);
        assert!((mean(&churn) - 0.75).abs() < 0.02);
        assert!((share(&Availability::Between(vec![[0.0, DAY], [2.0 * DAY, 3.0 * DAY]]), 4.0, 0) - 0.5).abs() < 1e-9);
    }
}
