//! What a scenario must not say.

use hydra::protocol::Digest;

use super::{Scenario, ScenarioError};
use crate::VerifierBehaviour;
use crate::faults::Victim;

impl Scenario {
    /// Refuses what cannot be played.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let contradiction = |text: &str| Err(ScenarioError::Contradiction(text.to_owned()));
        if self.workers.iter().all(|group| group.count == 0) {
            return contradiction("there are no workers: give at least one [[workers]] group a count above 0");
        }
        if self.workers.iter().any(|group| group.tokens_per_second.least == 0) {
            return contradiction("a worker with tokens_per_second = 0 never finishes");
        }
        if self.workers.iter().any(|group| group.upload_kbps == Some(0) || group.download_kbps == Some(0)) {
            return contradiction("a worker with 0 kilobits a second never finishes");
        }
        if self.workers.iter().any(|group| group.clock_skew_seconds > 120) {
            return contradiction("clock_skew_seconds is at most 120");
        }
        for group in &self.workers {
            group.availability.check().or_else(contradiction)?;
        }
        for (place, queries) in self.queries.iter().enumerate() {
            let wrong = |why: &str| Err(ScenarioError::Contradiction(format!("[[queries]] {}: {why}", place + 1)));
            queries.check().or_else(wrong)?;
            if self.of_group(&queries.group).is_empty() {
                return wrong(&format!("no group of workers has the name {:?}, so nobody asks", queries.group));
            }
            if self.queries[..place].iter().any(|before| before.group == queries.group) {
                return wrong("the group asks already");
            }
        }
        let named = |name: &String| self.workers.iter().any(|group| group.name.as_ref() == Some(name));
        for (place, fault) in self.faults.iter().enumerate() {
            let wrong = |why: &str| Err(ScenarioError::Contradiction(format!("[[faults]] {}: {why}", place + 1)));
            fault.check().or_else(|why| wrong(&why))?;
            if let Some(name) = fault.group.as_ref().filter(|name| !named(name)) {
                return wrong(&format!("no group of workers has the name {name:?}"));
            }
            if fault.who == Victim::Verifiers && self.audits.is_none() {
                return wrong("verifiers have little to do without [audits]");
            }
        }
        self.check_expectations()?;
        if self.verifiers.first().is_none_or(|first| first.count == 0 || first.behaviour != VerifierBehaviour::Honest) {
            return contradiction("the first of [[verifiers]] is the coordinator's own: one or more, and honest");
        }
        if self.verifiers.iter().any(|group| group.tokens_per_second == 0) {
            return contradiction("a verifier with tokens_per_second = 0 never finishes");
        }
        if self.network.latency_ms[0] > self.network.latency_ms[1] {
            return contradiction("network.latency_ms is [shortest, longest]");
        }
        if !(0.0..1.0).contains(&self.network.loss) {
            return contradiction("network.loss is a share from 0 to below 1");
        }
        if !(0.0..1.0).contains(&self.network.duplicates) {
            return contradiction("network.duplicates is a share from 0 to below 1");
        }
        if self.job.rounds == 0 {
            return contradiction("job.rounds is 0: there is nothing to see");
        }
        Ok(self.spec(self.seed, Digest::of(&[])).validate()?)
    }

    /// An expectation about nothing would hold whatever happens.
    fn check_expectations(&self) -> Result<(), ScenarioError> {
        let expect = &self.expect;
        let cheats = self.workers.iter().any(|group| group.count > 0 && !group.behaviour.is_honest());
        let about_cheats = expect.cheats_earn_nothing
            || expect.cheats_keep_nothing
            || expect.rejected_at_least.is_some()
            || expect.found_false_at_least.is_some()
            || expect.cheats_keep_share_at_most.is_some();
        let about_audits = expect.found_false_at_least.is_some() || expect.verifiers_struck_off.is_some();
        let shares = [expect.honest_pay_share_at_least, expect.cheats_keep_share_at_most];
        let nothing = if about_cheats && !cheats {
            "[expect] is about cheats, but all workers are honest"
        } else if about_audits && self.audits.is_none() {
            "[expect] is about audits, but there is no [audits]"
        } else if expect.recovers_within_seconds.is_some() && self.faults.is_empty() {
            "[expect] recovers_within_seconds is about faults, but there are no [[faults]]"
        } else if (expect.answered_at_least.is_some() || expect.refused_at_least.is_some()) && self.queries.is_empty() {
            "[expect] is about queries, but there are no [[queries]]"
        } else if shares.iter().flatten().any(|share| !(0.0..=1.0).contains(share)) {
            "a share is from 0 to 1"
        } else {
            return Ok(());
        };
        Err(ScenarioError::Contradiction(nothing.to_owned()))
    }
}
