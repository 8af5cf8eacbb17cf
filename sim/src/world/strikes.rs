//! What befalls a world's nodes, and how they get over it.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use hydra::protocol::below;
use rand::rngs::ChaCha8Rng;

use super::{Node, World, seconds, virtual_now};
use crate::disk::{Health, Torn};
use crate::faults::{Faults, Strike, Trouble, Victim, hit};
use crate::network::Standing;
use crate::outcome::Struck;
use crate::simulation::virtual_seconds;

impl World {
    pub(super) async fn suffer(self: Rc<Self>, mut source: Faults, mut rng: ChaCha8Rng) {
        while let Some(strike) = source(&mut rng) {
            tokio::time::sleep(seconds(strike.after_seconds)).await;
            // Those of files were looked at when they were read.
            if let Err(why) = strike.check() {
                return self.broken(format!("a fault that cannot be: {why}"));
            }
            self.strike(&strike, &mut rng);
        }
    }

    /// Plans the faults of a round that opens.
    pub(super) fn begin_round(self: &Rc<Self>) {
        let nth = self.rounds_begun.replace(self.rounds_begun.get() + 1);
        self.round_since.set(virtual_seconds());
        let by_round =
            self.scenario.faults.iter().zip(0..).filter(|(fault, _)| fault.each_round_within_seconds.is_some());
        for (fault, index) in by_round {
            let mut rng = self.spec.seed.derive("round fault", index).derive("round", nth).rng();
            let Some(strike) = fault.in_round(&mut rng, virtual_seconds()) else { continue };
            let world = Rc::clone(self);
            actix::spawn(async move {
                tokio::time::sleep(seconds(strike.after_seconds)).await;
                world.strike(&strike, &mut rng);
            });
        }
    }

    fn strike(self: &Rc<Self>, strike: &Strike, rng: &mut ChaCha8Rng) {
        let candidates: Vec<usize> = match strike.who {
            Victim::Coordinator | Victim::Ledger => vec![0],
            Victim::Verifiers => (0..self.verifiers.len()).collect(),
            Victim::Workers => {
                let group = |node: &Node| self.scenario.workers[node.group].name.as_ref();
                let wanted =
                    |index: &usize| strike.group.is_none() || group(&self.workers[*index]) == strike.group.as_ref();
                (0..self.workers.len()).filter(wanted).collect()
            }
        };
        let single = matches!(strike.who, Victim::Coordinator | Victim::Ledger);
        let targets = if single { candidates } else { hit(rng, strike.share, candidates) };
        self.say(&format!("fault: {:?} of {:?} {targets:?} for {} s", strike.what, strike.who, strike.for_seconds));
        let torn = if below(rng, 2) == 0 { Torn::Before } else { Torn::After };
        let lasts = seconds(strike.for_seconds);
        targets.iter().for_each(|target| self.afflict(strike, *target, torn));
        let now = virtual_seconds();
        let (what, who) = (strike.what, strike.who);
        if what == Trouble::CrashWriting {
            self.tears.borrow_mut().push(self.struck.borrow().len());
        }
        self.struck.borrow_mut().push(Struck {
            at_seconds: now,
            until_seconds: now + strike.for_seconds,
            what,
            who,
            hit: targets.len(),
        });
        let world = Rc::clone(self);
        actix::spawn(async move {
            tokio::time::sleep(lasts).await;
            targets.iter().for_each(|target| world.mend(what, who, *target));
        });
    }

    fn standing(&self, who: Victim, index: usize) -> &Standing {
        if who == Victim::Workers { &self.workers[index].standing } else { &self.front.standing }
    }

    fn afflict(&self, strike: &Strike, index: usize, torn: Torn) {
        let standing = self.standing(strike.who, index);
        match strike.what {
            Trouble::Crash => self.fall(strike.who, index),
            Trouble::SlowDisk(milliseconds) => self.health(strike.who).slow_down(milliseconds),
            Trouble::CorruptBlob => self.damaged(strike.who, index, |reasons| reasons + 1),
            Trouble::ClockSkew(seconds) => self.skew(index, seconds),
            Trouble::CrashWriting => {
                self.restart.set(seconds(strike.for_seconds));
                self.records.health.torn.set(Some(torn));
            }
            Trouble::Pause => standing.pause(virtual_now() + seconds(strike.for_seconds)),
            Trouble::Cut | Trouble::Deaf | Trouble::Mute => change(standing, strike.what, |reasons| reasons + 1),
            Trouble::DiskFull => {
                let full = &self.health(strike.who).full;
                full.set(full.get() + 1);
            }
        }
    }

    fn mend(self: &Rc<Self>, what: Trouble, who: Victim, index: usize) {
        match what {
            Trouble::Crash => self.rise(who, index),
            Trouble::SlowDisk(milliseconds) => self.health(who).speed_up(milliseconds),
            Trouble::CorruptBlob => self.damaged(who, index, |reasons| reasons.saturating_sub(1)),
            Trouble::ClockSkew(seconds) => self.skew(index, -seconds),
            Trouble::CrashWriting | Trouble::Pause => {}
            Trouble::Cut | Trouble::Deaf | Trouble::Mute => {
                change(self.standing(who, index), what, |reasons| reasons.saturating_sub(1));
            }
            Trouble::DiskFull => {
                let full = &self.health(who).full;
                full.set(full.get().saturating_sub(1));
            }
        }
    }

    fn health(&self, who: Victim) -> &Health {
        if who == Victim::Ledger { &self.journal.health } else { &self.records.health }
    }

    fn damaged(&self, who: Victim, index: usize, by: impl Fn(u32) -> u32) {
        let standing = if who == Victim::Verifiers { &self.desks[index] } else { &self.workers[index].standing };
        standing.damaged.store(by(standing.damaged.load(Ordering::Relaxed)), Ordering::Relaxed);
    }

    fn skew(&self, index: usize, seconds: i64) {
        self.workers[index].skew.fetch_add(1000 * seconds, Ordering::Relaxed);
    }
}

fn change(standing: &Standing, what: Trouble, by: impl Fn(u32) -> u32) {
    if what != Trouble::Mute {
        standing.deaf.store(by(standing.deaf.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
    if what != Trouble::Deaf {
        standing.mute.store(by(standing.mute.load(Ordering::Relaxed)), Ordering::Relaxed);
    }
}
