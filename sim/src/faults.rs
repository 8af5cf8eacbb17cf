use std::iter;

use rand::rngs::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Group;
use crate::chance::exponential;

/// Something that goes wrong, once, several times or at random, and is mended after a while.
#[derive(Debug, Clone, PartialEq, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub what: Trouble,
    /// With whom.
    pub who: Victim,
    /// Of the workers, only those of the group with this name.
    pub group: Option<String>,
    /// Of workers and verifiers, this share of them; drawn anew each time.
    #[serde(default = "everybody")]
    pub share: f64,
    /// At these virtual seconds.
    #[serde(default)]
    pub at_seconds: Vec<f64>,
    /// Again and again, so many virtual seconds apart on average, exponentially distributed.
    pub every_seconds: Option<f64>,
    /// Once in every round, so many virtual seconds after it opened at the latest, each moment equally likely.
    pub each_round_within_seconds: Option<f64>,
    /// Random faults begin at this virtual second.
    #[serde(default)]
    pub from_seconds: f64,
    /// From this virtual second on, no fault begins.
    pub until_seconds: Option<f64>,
    /// How long it lasts, virtual seconds.
    #[serde(default = "ten")]
    pub for_seconds: f64,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// The process is killed, and started again with what is on its disk.
    Crash,
    /// The coordinator is killed while it writes its records: before they are durable or, as often, after that and before
    /// anybody hears of it. It is started again.
    CrashWriting,
    /// The machine stands still, then goes on as if nothing had been.
    Pause,
    /// Nothing passes between it and the others.
    Cut,
    /// Nothing reaches it; what it says arrives.
    Deaf,
    /// Nothing that it says arrives; it hears all.
    Mute,
    /// Nothing can be written to the disk.
    DiskFull,
    /// Each write takes so many milliseconds.
    SlowDisk(u64),
    /// Whatever it fetches arrives with a bit turned over, which its digest tells.
    CorruptBlob,
    /// Its clock is ahead by so many seconds, or behind.
    ClockSkew(i64),
}

/// Whom it happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// The coordinator, and the ledger in its process.
    Coordinator,
    /// The ledger.
    Ledger,
    /// Verifiers.
    Verifiers,
    /// Workers.
    Workers,
}

/// One stroke of bad luck: what a source of faults of your own gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Strike {
    /// When, virtual seconds after the one before it.
    pub after_seconds: f64,
    /// What.
    pub what: Trouble,
    /// To whom.
    pub who: Victim,
    /// Of the workers, only those of the group with this name.
    pub group: Option<String>,
    /// Of workers and verifiers, this share of them.
    pub share: f64,
    /// How long it lasts, virtual seconds.
    pub for_seconds: f64,
}

/// Whether this can happen to them.
fn possible(what: Trouble, who: Victim) -> bool {
    use {Trouble as T, Victim as V};
    match what {
        T::Crash => true,
        T::CrashWriting => who == V::Coordinator,
        T::Pause | T::Cut | T::Deaf | T::Mute => matches!(who, V::Coordinator | V::Workers),
        T::DiskFull | T::SlowDisk(_) => matches!(who, V::Coordinator | V::Ledger),
        T::CorruptBlob => matches!(who, V::Verifiers | V::Workers),
        T::ClockSkew(_) => who == V::Workers,
    }
}

impl Strike {
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !possible(self.what, self.who) {
            return Err(format!("what = {:?} cannot happen to who = {:?}", self.what, self.who));
        }
        if !(0.0..=1.0).contains(&self.share) || self.share == 0.0 {
            return Err("share is above 0, at most 1".to_owned());
        }
        if !(1.0..).contains(&self.for_seconds) {
            return Err("for_seconds is at least 1".to_owned());
        }
        if !(0.0..).contains(&self.after_seconds) {
            return Err("after_seconds is at least 0".to_owned());
        }
        if matches!(self.what, Trouble::ClockSkew(seconds) if seconds.abs() > 120) {
            return Err(
                "a clock is at most 120 seconds off, beyond which a coordinator would refuse its calls".to_owned()
            );
        }
        if self.group.is_some() && self.who != Victim::Workers {
            return Err("only workers have a group".to_owned());
        }
        Ok(())
    }
}

/// Gives one strike after the other, until there are no more. All that it draws must come from the generator that it is
/// handed, which is its own and follows from the seed.
pub type Faults = Box<dyn FnMut(&mut ChaCha8Rng) -> Option<Strike>>;

fn everybody() -> f64 {
    1.0
}

fn ten() -> f64 {
    10.0
}

impl Fault {
    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.strike(0.0).check()?;
        let times = [self.every_seconds, self.each_round_within_seconds];
        let ways = usize::from(!self.at_seconds.is_empty()) + times.iter().flatten().count();
        if ways != 1 {
            return Err("give one of at_seconds, every_seconds and each_round_within_seconds".to_owned());
        }
        if times.iter().flatten().any(|seconds| *seconds < 1.0) || self.at_seconds.iter().any(|at| *at < 0.0) {
            return Err("times are not negative, and random ones at least a second apart on average".to_owned());
        }
        if self.from_seconds < 0.0 {
            return Err("from_seconds is at least 0".to_owned());
        }
        Ok(())
    }

    /// Whether it may be about workers of this group.
    pub(crate) fn hits(&self, group: &Group) -> bool {
        self.who == Victim::Workers && self.group.as_ref().is_none_or(|name| group.name.as_ref() == Some(name))
    }

    fn strike(&self, after_seconds: f64) -> Strike {
        let Self { what, who, group, share, for_seconds, .. } = self.clone();
        Strike { after_seconds, what, who, group, share, for_seconds }
    }

    /// A strike of one that comes once in every round.
    pub(crate) fn in_round(&self, rng: &mut ChaCha8Rng, now_seconds: f64) -> Option<Strike> {
        let within = self.each_round_within_seconds?;
        let after = within * crate::chance::unit(rng);
        let late = self.until_seconds.is_some_and(|until| now_seconds + after >= until);
        (!late && now_seconds + after >= self.from_seconds).then(|| self.strike(after))
    }

    /// The strikes of one that comes at times of its own.
    pub(crate) fn source(&self) -> Faults {
        let (fault, mut now) = (self.clone(), 0.0);
        let mut times = fault.at_seconds.clone();
        times.sort_by(f64::total_cmp);
        let mut times = times.into_iter();
        let mut begun = false;
        Box::new(move |rng| {
            let after = match fault.every_seconds {
                Some(mean) => {
                    let first = if begun { 0.0 } else { fault.from_seconds };
                    begun = true;
                    first + exponential(rng, mean)
                }
                None => times.next()? - now,
            };
            now += after;
            let over = fault.until_seconds.is_some_and(|until| now >= until);
            (!over).then(|| fault.strike(after))
        })
    }
}

/// Which of `count` a strike hits: the share of them, rounded up, each as likely as another.
pub(crate) fn hit(rng: &mut ChaCha8Rng, share: f64, mut candidates: Vec<usize>) -> Vec<usize> {
    let hits = ((candidates.len() as f64 * share).ceil() as usize).min(candidates.len());
    let mut drawn: Vec<usize> = iter::repeat_with(|| {
        let place = hydra::protocol::below(rng, candidates.len() as u64) as usize;
        candidates.swap_remove(place)
    })
    .take(hits)
    .collect();
    drawn.sort_unstable();
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use hydra::protocol::Seed;

    fn fault(text: &str) -> Fault {
        toml::from_str(text).unwrap()
    }

    fn times(text: &str, count: usize) -> Vec<f64> {
        let (fault, mut rng) = (fault(text), Seed::from_number(4).derive("fault", 0).rng());
        fault.check().unwrap();
        let (mut source, mut now) = (fault.source(), 0.0);
        iter::from_fn(|| {
            now += source(&mut rng)?.after_seconds;
            Some(now)
        })
        .take(count)
        .collect()
    }

    #[test]
    fn faults_come_at_the_times_they_are_given_or_as_often_as_they_are_said_to() {
        assert_eq!(times("what = 'crash'\nwho = 'ledger'\nat_seconds = [30, 10]", 9), [10.0, 30.0]);
        let random = "what = 'pause'\nwho = 'workers'\nevery_seconds = 50\nfrom_seconds = 1000\nuntil_seconds = 101000";
        let random = times(random, usize::MAX);
        assert!(random[0] > 1000.0 && random.last().is_some_and(|last| *last < 101_000.0));
        assert!((1850..2150).contains(&random.len()), "{}", random.len());
    }

    #[test]
    fn what_cannot_happen_is_refused() {
        for text in [
            "what = 'disk-full'\nwho = 'workers'\nat_seconds = [1]",
            "what = 'crash'\nwho = 'workers'",
            "what = 'crash'\nwho = 'workers'\nat_seconds = [1]\nevery_seconds = 5",
            "what = 'crash'\nwho = 'workers'\nat_seconds = [1]\nshare = 0.0",
            "what = 'crash'\nwho = 'ledger'\nat_seconds = [1]\ngroup = 'home'",
            "what = 'crash'\nwho = 'workers'\nat_seconds = [1]\nfor_seconds = 0",
            "what = 'crash'\nwho = 'workers'\nat_seconds = [-1]",
            "what = 'crash'\nwho = 'workers'\nevery_seconds = 5\nfrom_seconds = -1",
            "what = { clock-skew = 121 }\nwho = 'workers'\nat_seconds = [1]",
        ] {
            assert!(fault(text).check().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_is_hit_no_one_twice() {
        let mut rng = Seed::from_number(4).rng();
        let drawn = hit(&mut rng, 0.3, (0..10).collect());
        assert_eq!(drawn.len(), 3);
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(hit(&mut rng, 1.0, (0..4).collect()), [0, 1, 2, 3]);
        assert_eq!(hit(&mut rng, 0.5, vec![]), Vec::<usize>::new());
    }
}
