//! What a round emits, how amounts are shared, when a pay is its worker's own, and how often work is audited. Whole
//! µHYD throughout.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::protocol::{Amount, AuditPolicy, Balance, Emission, Ppm, Round};

/// Every number of the token economy, as somebody wrote it down. [`EconomyConfig::check`] makes an [`Economy`] of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EconomyConfig {
    /// What rounds emit.
    pub emission: Emission,
    /// How many later rewards of the same worker it takes until a reward vests.
    pub vesting_rewards: u32,
    /// How often work is computed again.
    pub audit: AuditPolicy,
    /// Who gets what a query costs.
    pub query: QuerySplit,
    /// How long a stake that is taken out can still be slashed.
    pub unstake_delay: Duration,
}

/// Shares of what a query costs; they add up to a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuerySplit {
    /// For those who trained the model, by verified work.
    pub contributors: Ppm,
    /// For the organiser.
    pub treasury: Ppm,
    /// Gone.
    pub burn: Ppm,
}

impl Default for EconomyConfig {
    fn default() -> Self {
        Self {
            emission: Emission::default(),
            vesting_rewards: 32,
            audit: AuditPolicy::default(),
            query: QuerySplit { contributors: Ppm(800_000), treasury: Ppm(150_000), burn: Ppm(50_000) },
            unstake_delay: Duration::from_hours(7 * 24),
        }
    }
}

/// An economy that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EconomyError {
    /// A number out of its range.
    #[error("{what} is {value}, it must be {allowed}")]
    Range {
        /// The setting.
        what: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The shares of a query leave something over, or are more than all.
    #[error("contributors, treasury and burn get {0} of 1000000 parts of what a query costs, they must get all")]
    Split(u64),
    /// A worker would gain by cheating.
    #[error(
        "after {clean} clean results a worker is audited at {audit_ppm} ppm and stands to lose {forfeit} rewards: false \
         work would cost {cost_ppm} ppm of what it saves, it must cost at least {needed_ppm}. Audit more, or let pay vest \
         later",
        needed_ppm = DETERRENCE.0
    )]
    CheatingPays {
        /// Clean results before.
        clean: u32,
        /// The audit rate then.
        audit_ppm: u32,
        /// Rewards at stake, the one for the false work included.
        forfeit: u32,
        /// What it costs on average.
        cost_ppm: u64,
    },
}

/// What false work must cost on average, over what it saves: a margin of a half for what is not counted (audits that miss
/// something, rewards that grow).
const DETERRENCE: Ppm = Ppm(1_500_000);

/// An economy that was checked: everybody's numbers fit together, and cheating does not pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Economy(EconomyConfig);

impl EconomyConfig {
    /// The defaults, for a run that emits this.
    #[must_use]
    pub fn emitting(emission: Emission) -> Self {
        Self { emission, ..Self::default() }
    }

    /// Refuses numbers that do not fit together.
    pub fn check(self) -> Result<Economy, EconomyError> {
        let range = |what, value: u64, least: u64, most: u64, allowed| {
            let range = || EconomyError::Range { what, value: value.to_string(), allowed };
            (least..=most).contains(&value).then_some(()).ok_or_else(range)
        };
        let emission = self.emission;
        range("the number of rounds between halvings", emission.halving_rounds.into(), 1, u64::MAX, "1 or more")?;
        range("the number of rewards until one vests", self.vesting_rewards.into(), 1, 1024, "from 1 to 1024")?;
        let AuditPolicy { probation, decay, floor } = self.audit;
        range("the number of results on probation", probation.into(), 1, 10_000, "from 1 to 10000")?;
        range(
            "the decay of the audit rate",
            decay.into(),
            1,
            probation.into(),
            "from 1 to the length of the probation",
        )?;
        range("the lowest audit rate", floor.0.into(), 1, Ppm::ONE.0.into(), "above 0, at most 1000000 ppm")?;
        let month = 30 * 24 * 3_600;
        range("the delay before a stake is back", self.unstake_delay.as_secs(), 0, month, "at most 30 days")?;
        let QuerySplit { contributors, treasury, burn } = self.query;
        let shares = [contributors, treasury, burn].iter().map(|share| u64::from(share.0)).sum();
        if shares != u64::from(Ppm::ONE.0) {
            return Err(EconomyError::Split(shares));
        }
        let economy = Economy(self);
        // The rate only falls with `clean`, what is at stake stays the same from `vesting_rewards` on.
        let flat = self.vesting_rewards.max(decay.saturating_mul(Ppm::ONE.0) / floor.0).max(probation) + 1;
        for clean in 0..=flat {
            let (audit, forfeit) = (economy.audit_rate(clean), clean.min(self.vesting_rewards) + 1);
            let cost_ppm = u64::from(audit.0) * u64::from(forfeit);
            // Nobody on probation keeps anything for false work, so there is nothing to deter.
            if audit < Ppm::ONE && cost_ppm < u64::from(DETERRENCE.0) {
                return Err(EconomyError::CheatingPays { clean, audit_ppm: audit.0, forfeit, cost_ppm });
            }
        }
        Ok(economy)
    }
}

impl Economy {
    /// The numbers.
    #[must_use]
    pub fn config(&self) -> &EconomyConfig {
        &self.0
    }

    /// What `round` may emit when `already_emitted` was emitted before it.
    #[must_use]
    pub fn emission(&self, round: Round, already_emitted: Balance) -> Amount {
        emission(&self.0.emission, round, already_emitted)
    }

    /// How probably the next result of a worker with `clean` clean results since its last failure is audited. Twice
    /// `decay` / `clean` is about the chance that somebody who cheats from now on is found out before `clean` doubles; the
    /// floor holds it up for good.
    #[must_use]
    pub fn audit_rate(&self, clean: u32) -> Ppm {
        self.0.audit.rate(clean)
    }

    /// What a query's cost comes to for (contributors, treasury, burn).
    #[must_use]
    pub fn query_shares(&self, cost: Amount) -> (Amount, Amount, Amount) {
        let QuerySplit { contributors, treasury, burn } = self.0.query;
        match split(cost, &[contributors, treasury, burn].map(|share| share.0.into()))[..] {
            [contributors, treasury, burn] => (contributors, treasury, burn),
            _ => unreachable!("three weights have three shares"),
        }
    }
}

/// What `round` may emit when `already_emitted` was emitted before it: the scheduled amount, halved every
/// `halving_rounds` rounds, or what the cap leaves.
#[must_use]
pub fn emission(emission: &Emission, round: Round, already_emitted: Balance) -> Amount {
    // No halving where the schedule has no period; a validated specification always has one.
    let halvings = round.0.checked_div(emission.halving_rounds).unwrap_or(0);
    let left = i128::from(emission.cap.micro()) - already_emitted.0;
    emission.initial.halved(halvings).min(Amount::try_from(left).unwrap_or(Amount::ZERO))
}

/// Shares `total` in proportion to `weights` by largest remainder: every share is its exact quota rounded up or down,
/// equal remainders favour the earlier, and the shares add up to `total`. Without any weight there are no claims and
/// all shares are zero.
#[must_use]
pub fn split(total: Amount, weights: &[u64]) -> Vec<Amount> {
    let all: u128 = weights.iter().copied().map(u128::from).sum();
    if all == 0 {
        return vec![Amount::ZERO; weights.len()];
    }
    // total < 2⁶³ and a weight < 2⁶⁴, so the products fit easily; a quota is at most the total.
    let total = u128::from(total.micro().unsigned_abs());
    let product = |weight: &u64| total * u128::from(*weight);
    let mut shares: Vec<u128> = weights.iter().map(|weight| product(weight) / all).collect();
    let mut by_remainder: Vec<(u128, &mut u128)> =
        weights.iter().map(|weight| product(weight) % all).zip(&mut shares).collect();
    by_remainder.sort_by_key(|(remainder, _)| std::cmp::Reverse(*remainder)); // stable: the earlier stays first
    let floors: u128 = by_remainder.iter().map(|(_, share)| **share).sum();
    for ((_, share), _) in by_remainder.into_iter().zip(floors..total) {
        *share += 1;
    }
    let micro = |share: u128| i128::try_from(share).ok().and_then(|share| Amount::try_from(share).ok());
    shares.into_iter().map(|share| micro(share).unwrap_or(Amount::ZERO)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn micro(micro: i64) -> Amount {
        Amount::from_micro(micro).unwrap()
    }

    fn shares(total: i64, weights: &[u64]) -> Vec<i64> {
        split(micro(total), weights).into_iter().map(Amount::micro).collect()
    }

    #[test]
    fn the_largest_remainders_get_what_is_left_and_ties_go_to_the_earlier() {
        assert_eq!(shares(10, &[1, 1, 1]), [4, 3, 3]);
        assert_eq!(shares(11, &[1, 1, 1]), [4, 4, 3]);
        assert_eq!(shares(10, &[1, 2, 4]), [1, 3, 6]); // 1.43, 2.86, 5.71
        assert_eq!(shares(1, &[3, 5]), [0, 1]);
        assert_eq!(shares(7, &[0, 5, 0]), [0, 7, 0]);
        assert_eq!(shares(7, &[0, 0]), [0, 0]);
        assert_eq!(shares(7, &[]), [0; 0]);
        assert_eq!(shares(i64::MAX, &[u64::MAX, u64::MAX, u64::MAX]).iter().sum::<i64>(), i64::MAX);
    }

    #[test]
    fn emission_halves_on_schedule_and_stops_at_the_cap() {
        let schedule = Emission { initial: micro(100), halving_rounds: 10, cap: micro(1_500) };
        let of = |round, already| emission(&schedule, Round(round), Balance(already)).micro();
        assert_eq!(
            [of(0, 0), of(9, 0), of(10, 0), of(19, 0), of(20, 0), of(69, 0), of(70, 0)],
            [100, 100, 50, 50, 25, 1, 0]
        );
        assert_eq!([of(0, 1_399), of(0, 1_400), of(0, 1_401), of(0, 1_500), of(0, 9_999)], [100, 100, 99, 0, 0]);
        assert_eq!(of(u32::MAX, 0), 0, "more than 64 halvings leave nothing");
    }

    #[test]
    fn everything_is_audited_at_first_then_ever_less_down_to_a_floor() {
        let economy = EconomyConfig::default().check().unwrap();
        let rate = |clean| economy.audit_rate(clean).0;
        assert_eq!([rate(0), rate(1), rate(9)], [1_000_000; 3]);
        assert_eq!([rate(10), rate(16), rate(20), rate(39)], [200_000, 125_000, 100_000, 51_282]);
        assert_eq!([rate(40), rate(41), rate(1_000), rate(u32::MAX)], [50_000; 4]);
    }

    #[test]
    fn an_economy_in_which_cheating_pays_or_a_share_is_lost_is_refused() {
        let good = EconomyConfig::default();
        let audit = good.audit;
        let pays = [
            EconomyConfig { vesting_rewards: 16, ..good },
            EconomyConfig { audit: AuditPolicy { floor: Ppm(40_000), ..audit }, ..good },
            EconomyConfig { audit: AuditPolicy { decay: 1, ..audit }, ..good },
        ];
        for bad in pays {
            let error = bad.check().unwrap_err();
            assert!(matches!(error, EconomyError::CheatingPays { .. }), "{error}");
        }
        let query = QuerySplit { burn: Ppm(50_001), ..good.query };
        assert_eq!(EconomyConfig { query, ..good }.check(), Err(EconomyError::Split(1_000_001)));
        let ranges = [
            EconomyConfig { vesting_rewards: 0, ..good },
            EconomyConfig { audit: AuditPolicy { floor: Ppm(0), ..audit }, ..good },
            EconomyConfig { audit: AuditPolicy { floor: Ppm(1_000_001), ..audit }, ..good },
            EconomyConfig { audit: AuditPolicy { decay: 11, ..audit }, ..good },
            EconomyConfig { audit: AuditPolicy { probation: 0, ..audit }, ..good },
            EconomyConfig { emission: Emission { halving_rounds: 0, ..good.emission }, ..good },
            EconomyConfig { unstake_delay: Duration::MAX, ..good },
        ];
        for bad in ranges {
            assert!(matches!(bad.check(), Err(EconomyError::Range { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_querys_shares_sum_to_its_cost(cost in 0..=i64::MAX) {
            let economy = EconomyConfig::default().check().unwrap();
            let (contributors, treasury, burn) = economy.query_shares(micro(cost));
            prop_assert_eq!(contributors.micro() + treasury.micro() + burn.micro(), cost);
            prop_assert!((i128::from(contributors.micro()) * 10 - i128::from(cost) * 8).abs() < 10);
        }

        #[test]
        fn splits_sum_exactly_and_each_share_is_within_one_micro_of_proportional(
            total in prop_oneof![0..1_000i64, 0..=i64::MAX],
            weights in prop::collection::vec(prop_oneof![0..5u64, 0..1_000_000u64, any::<u64>()], 0..40),
        ) {
            let shares = shares(total, &weights);
            let all: i128 = weights.iter().map(|weight| i128::from(*weight)).sum();
            prop_assert_eq!(shares.len(), weights.len());
            let sum: i128 = shares.iter().copied().map(i128::from).sum();
            prop_assert_eq!(sum, if all == 0 { 0 } else { total.into() });
            for (share, weight) in shares.iter().zip(&weights).filter(|_| all > 0) {
                // |share − total·weight/all| < 1, in whole numbers
                let over = u128::from(share.unsigned_abs()).checked_mul(all.unsigned_abs());
                let exact = u128::from(total.unsigned_abs()) * u128::from(*weight);
                match over {
                    Some(over) => prop_assert!(over.abs_diff(exact) < all.unsigned_abs()),
                    // The product does not fit: compare the whole parts.
                    None => prop_assert!(u128::from(share.unsigned_abs()).abs_diff(exact / all.unsigned_abs()) <= 1),
                }
            }
        }

        #[test]
        fn more_weight_never_earns_less(
            total in 0..1_000_000i64, weights in prop::collection::vec(0..1_000u64, 1..20),
        ) {
            let mut both: Vec<(u64, i64)> = weights.iter().copied().zip(shares(total, &weights)).collect();
            both.sort_unstable();
            prop_assert!(both.is_sorted_by(|a, b| a.0 == b.0 || a.1 <= b.1));
        }

        #[test]
        fn emission_over_any_rounds_never_passes_the_cap(
            initial in 0..10_000i64, halving_rounds in 1..20u32, cap in 0..50_000i64,
            rounds in prop::collection::vec(0..400u32, 0..200),
        ) {
            let schedule = Emission { initial: micro(initial), halving_rounds, cap: micro(cap) };
            let mut emitted = 0;
            for round in rounds {
                let amount = emission(&schedule, Round(round), Balance(emitted)).micro();
                prop_assert!(amount <= initial >> (round / halving_rounds).min(63));
                emitted += i128::from(amount);
                prop_assert!(emitted <= i128::from(cap));
            }
        }
    }
}
