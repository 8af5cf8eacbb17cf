//! What a round emits, and how an amount is shared. Whole µHYD throughout.

use crate::protocol::{Amount, Balance, Emission, Round};

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

    proptest! {
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
