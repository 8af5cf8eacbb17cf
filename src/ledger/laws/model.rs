//! What a ledger must do, written down a second time, as simply as possible: people by number, plain integers, every sum
//! computed anew.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::testing::{NOW, accepted, key, micro, order_until, pay_round, rejected};
use super::super::{Action, Answer, Request, TransferId};
use crate::protocol::{Digest, PublicKey, Time};

/// People in a history.
pub const PEOPLE: u8 = 4;
/// Rewards until one vests, in a history's economy.
pub const VESTING: usize = 2;
/// How long a stake takes to come out.
pub const UNSTAKE_MS: u64 = 5_000;

/// Something that happens.
#[derive(Debug, Clone)]
pub enum Op {
    /// A round with tasks by workers; tokens, or `None` where the work was rejected.
    Round(Vec<(u8, Option<u64>)>),
    /// A replay finds some earlier work false.
    Forfeit(Index),
    Send(u8, u8, i64),
    Stake(u8, i64),
    Unstake(u8, i64),
    Offer(u8, i64, Option<u8>, u64),
    Accept(u8, Index),
    Release(u8, Index),
    Cancel(u8, Index),
    Hold(u8, i64, u64),
    Settle(Index, i64, Vec<(u8, u64)>),
    /// So many milliseconds pass, and what is due is done.
    Later(u64),
    /// An earlier request comes once more.
    Again(Index),
    /// The ledger is opened again.
    Reopen,
}

/// Histories in which most things can happen: people have earned something before they spend.
pub fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let who = || 0..PEOPLE;
    let amount = || prop_oneof![1 => Just(0i64), 12 => 1..300i64, 3 => 300..3_000i64];
    let which = any::<Index>;
    let wait = || prop_oneof![3 => 1..2_000u64, 2 => 2_000..20_000u64];
    let work = (who(), prop_oneof![1 => Just(None), 5 => (1..1_000u64).prop_map(Some)]);
    let op = prop_oneof![
        6 => prop::collection::vec(work, 0..5).prop_map(Op::Round),
        2 => which().prop_map(Op::Forfeit),
        4 => (who(), who(), amount()).prop_map(|(a, b, amount)| Op::Send(a, b, amount)),
        3 => (who(), amount()).prop_map(|(who, amount)| Op::Stake(who, amount)),
        2 => (who(), amount()).prop_map(|(who, amount)| Op::Unstake(who, amount)),
        4 => (who(), amount(), prop::option::of(who()), wait()).prop_map(|(a, amount, b, t)| Op::Offer(a, amount, b, t)),
        4 => (who(), which()).prop_map(|(who, which)| Op::Accept(who, which)),
        3 => (who(), which()).prop_map(|(who, which)| Op::Release(who, which)),
        2 => (who(), which()).prop_map(|(who, which)| Op::Cancel(who, which)),
        4 => (who(), amount(), wait()).prop_map(|(who, amount, t)| Op::Hold(who, amount, t)),
        4 => (which(), amount(), prop::collection::vec((who(), 0..50u64), 0..4))
            .prop_map(|(which, cost, shares)| Op::Settle(which, cost, shares)),
        4 => wait().prop_map(Op::Later),
        5 => which().prop_map(Op::Again),
        1 => Just(Op::Reopen),
    ];
    let rich = (0..8).map(|n| Op::Round(vec![(n % PEOPLE, Some(3)), ((n + 1) % PEOPLE, Some(2))])).collect::<Vec<_>>();
    prop::collection::vec(op, 1..most).prop_map(move |ops| rich.iter().cloned().chain(ops).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    maker: u8,
    amount: i64,
    taker: Option<u8>,
    expires: u64,
    accepted: Option<u8>,
}

/// The model.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub now: u64,
    round: u32,
    next: u64,
    pub wallets: [i128; PEOPLE as usize],
    pub stakes: [i128; PEOPLE as usize],
    pub treasury: i128,
    pub burned: i128,
    pub vested: i128,
    /// What has not vested, with the round that it was paid with.
    pub unvested: [Vec<(u32, i64)>; PEOPLE as usize],
    /// Rounds that were paid.
    paid: u32,
    ever: [bool; PEOPLE as usize],
    holds: BTreeMap<TransferId, (u8, i64, u64)>,
    offers: BTreeMap<TransferId, Offer>,
    unstaking: Vec<(u8, i64, u64)>,
    /// Tasks that were judged, and whose they were.
    work: Vec<(u32, u8)>,
    found: BTreeSet<(u32, u8)>,
    /// What was asked, what it means, and whether it was done or refused for good.
    asked: Vec<(Request, Meaning, Option<bool>)>,
    offer_ids: Vec<TransferId>,
    hold_ids: Vec<TransferId>,
}

/// A request in the model's words.
#[derive(Debug, Clone)]
enum Meaning {
    Round(Vec<(u8, u32, u64)>),
    Forfeit(u32, u8),
    Order(u8, Action, TransferId, u64),
    Hold(u8, i64, u64, TransferId),
    Settle(TransferId, u8, i64, Vec<(u8, u64)>),
    Tick,
}

fn person(of: PublicKey) -> u8 {
    (0..PEOPLE).find(|n| key(*n).public() == of).unwrap()
}

impl Model {
    /// The request that an operation comes to; the model must be told the answer. `None`: nothing is asked.
    pub fn request(&mut self, op: &Op) -> Option<(usize, Request)> {
        if self.now == 0 {
            self.now = NOW.0;
        }
        self.next += 1;
        let n = self.next;
        let id = TransferId::request(NOW, n);
        let until = self.now + 60_000;
        let some = |ids: &[TransferId], which: &Index| ids.get(which.index(ids.len().max(1))).copied();
        let unknown = TransferId::request(NOW, u64::MAX >> 8);
        let order =
            |who: &u8, action| (order_until(*who, n, action, Time(until)), Meaning::Order(*who, action, id, until));
        let (request, meaning) = match op {
            Op::Round(work) => {
                let first = self.round * 100;
                let tasks = || work.iter().zip(first..);
                let verdict = |((who, tokens), task): (&(u8, Option<u64>), u32)| match tokens {
                    Some(tokens) => accepted(task, *who, *tokens),
                    None => rejected(task, *who),
                };
                let request = pay_round(self.round, tasks().map(verdict).collect());
                self.work.extend(tasks().map(|((who, _), task)| (task, *who)));
                self.round += 1;
                let due = tasks().filter_map(|((who, tokens), task)| Some((*who, task, (*tokens)?)));
                (request, Meaning::Round(due.collect()))
            }
            Op::Forfeit(which) => {
                let (task, who) = *self.work.get(which.index(self.work.len().max(1)))?;
                (Request::Forfeit { verdict: rejected(task, who) }, Meaning::Forfeit(task, who))
            }
            Op::Send(who, to, amount) => order(who, Action::Send { to: key(*to).public(), amount: micro(*amount) }),
            Op::Stake(who, amount) => order(who, Action::Stake { amount: micro(*amount) }),
            Op::Unstake(who, amount) => order(who, Action::Unstake { amount: micro(*amount) }),
            Op::Offer(who, amount, taker, wait) => {
                self.offer_ids.push(id);
                let taker = taker.map(|taker| key(taker).public());
                let (amount, terms, expires) = (micro(*amount), Digest::of(b"terms"), Time(self.now + wait));
                order(who, Action::Offer { amount, taker, terms, expires })
            }
            Op::Accept(who, which) => {
                order(who, Action::Accept { offer: some(&self.offer_ids, which).unwrap_or(unknown) })
            }
            Op::Release(who, which) => {
                order(who, Action::Release { offer: some(&self.offer_ids, which).unwrap_or(unknown) })
            }
            Op::Cancel(who, which) => {
                order(who, Action::Cancel { offer: some(&self.offer_ids, which).unwrap_or(unknown) })
            }
            Op::Hold(who, amount, wait) => {
                self.hold_ids.push(id);
                let expires = self.now + wait;
                let (wallet, held) = (key(*who).public(), micro(*amount));
                let request = Request::Hold { id, wallet, amount: held, expires: Time(expires) };
                (request, Meaning::Hold(*who, *amount, expires, id))
            }
            Op::Settle(which, cost, shares) => {
                let query = some(&self.hold_ids, which).unwrap_or(unknown);
                let who = self.holds.get(&query).map_or(0, |(who, ..)| *who);
                let contributors = shares.iter().map(|(who, tokens)| (key(*who).public(), *tokens)).collect();
                let request = Request::Settle { query, wallet: key(who).public(), cost: micro(*cost), contributors };
                (request, Meaning::Settle(query, who, *cost, shares.clone()))
            }
            Op::Later(wait) => {
                self.now += wait;
                (Request::Tick, Meaning::Tick)
            }
            Op::Again(which) => {
                let index = which.index(self.asked.len().max(1));
                return self.asked.get(index).map(|(request, ..)| (index, request.clone()));
            }
            Op::Reopen => return None,
        };
        // A settlement has no number of its own, so it may turn out to be one that was done before.
        let before = self.asked.iter().position(|(asked, _, done)| *asked == request && *done == Some(true));
        let index = before.unwrap_or(self.asked.len());
        if before.is_none() {
            self.asked.push((request.clone(), meaning, None));
        }
        Some((index, request))
    }

    /// Takes the answer to a request (`None`: it was refused). Says whether it should have been refused.
    pub fn answered(&mut self, index: usize, answer: Option<&Answer>) -> bool {
        let (_, meaning, before) = self.asked[index].clone();
        if let Some(done) = before {
            return done;
        }
        let good = self.take(&meaning, answer);
        let remembered = match &meaning {
            // What is not done can be asked for again later, but for the requests of those who ever had something.
            Meaning::Order(who, ..) | Meaning::Hold(who, ..) => good || self.ever[usize::from(*who)],
            Meaning::Tick => false,
            _ => good,
        };
        if remembered {
            self.asked[index].2 = Some(good);
        }
        good
    }

    fn available(&self, who: u8) -> i128 {
        let held = self.holds.values().filter(|(payer, ..)| *payer == who).map(|(_, amount, _)| i128::from(*amount));
        let offered = self.offers.values().filter(|offer| offer.maker == who).map(|offer| i128::from(offer.amount));
        self.wallets[usize::from(who)] - held.sum::<i128>() - offered.sum::<i128>()
    }

    fn put(&mut self, who: u8, amount: i64) {
        self.wallets[usize::from(who)] += i128::from(amount);
        self.ever[usize::from(who)] |= amount > 0;
    }

    fn staked(&self, who: u8) -> i128 {
        let out = self.unstaking.iter().filter(|(of, ..)| *of == who).map(|(_, amount, _)| i128::from(*amount));
        self.stakes[usize::from(who)] - out.sum::<i128>()
    }

    /// Does it, if it may be done.
    fn take(&mut self, meaning: &Meaning, answer: Option<&Answer>) -> bool {
        match meaning {
            Meaning::Round(due) => self.round(due, answer),
            Meaning::Forfeit(task, who) => {
                let at = usize::from(*who);
                let Some(Answer::Forfeited(forfeited)) = answer else { return true };
                if self.found.insert((*task, *who)) {
                    let unvested: i64 = self.unvested[at].drain(..).map(|(_, amount)| amount).sum();
                    assert_eq!(i128::from(forfeited.stake.micro()), self.stakes[at], "the whole stake is burned");
                    assert_eq!(forfeited.unvested.micro(), unvested, "and nothing unvested is kept");
                    self.unstaking.retain(|(of, ..)| of != who);
                    self.burned += std::mem::take(&mut self.stakes[at]);
                }
                true
            }
            Meaning::Order(who, action, id, until) => *until >= self.now && self.order(*who, action, *id),
            Meaning::Hold(who, amount, expires, id) => {
                let good = *amount > 0 && *expires > self.now && self.available(*who) >= i128::from(*amount);
                if good {
                    self.holds.insert(*id, (*who, *amount, *expires));
                }
                good
            }
            Meaning::Settle(query, who, cost, shares) => {
                let good = self
                    .holds
                    .get(query)
                    .is_some_and(|(payer, amount, expires)| payer == who && cost <= amount && self.now < *expires);
                if good {
                    self.holds.remove(query);
                    self.wallets[usize::from(*who)] -= i128::from(*cost);
                    self.share(*cost, shares);
                }
                good
            }
            Meaning::Tick => {
                let now = self.now;
                self.holds.retain(|_, (_, _, expires)| *expires > now);
                self.offers.retain(|_, offer| offer.expires > now);
                for (who, amount, matures) in std::mem::take(&mut self.unstaking) {
                    if matures <= now {
                        self.stakes[usize::from(who)] -= i128::from(amount);
                        self.put(who, amount);
                    } else {
                        self.unstaking.push((who, amount, matures));
                    }
                }
                true
            }
        }
    }

    /// Whom a round pays what is the ledger's word: how it is split has laws of its own.
    fn round(&mut self, due: &[(u8, u32, u64)], answer: Option<&Answer>) -> bool {
        let Some(Answer::RoundPaid { pays, .. }) = answer else { return true };
        self.paid += 1;
        for (worker, task, amount) in pays {
            let who = person(*worker);
            let known = |(by, number, _): &&(u8, u32, u64)| *by == who && super::super::testing::task(*number) == *task;
            let (_, number, _) = due.iter().find(known).expect("only accepted work is paid");
            assert!(!self.found.contains(&(*number, who)), "work that was found false is paid");
            self.unvested[usize::from(who)].push((self.paid, amount.micro()));
        }
        for who in (0..PEOPLE).filter(|who| pays.iter().any(|(worker, ..)| person(*worker) == *who)) {
            // Each has so many of later rounds after it, or stays.
            let all = std::mem::take(&mut self.unvested[usize::from(who)]);
            let later = |place: usize, of: u32| all[place..].iter().filter(|(round, _)| *round != of).count();
            for (place, (round, amount)) in all.iter().enumerate() {
                if later(place, *round) >= VESTING {
                    self.vested += i128::from(*amount);
                    self.put(who, *amount);
                } else {
                    self.unvested[usize::from(who)].push((*round, *amount));
                }
            }
        }
        true
    }

    fn order(&mut self, who: u8, action: &Action, id: TransferId) -> bool {
        let has = |amount: i64| amount > 0 && self.available(who) >= i128::from(amount);
        let open = |offer: &TransferId| self.offers.get(offer).copied().filter(|offer| offer.expires > self.now);
        match *action {
            Action::Send { to, amount } => {
                let (to, amount) = (person(to), amount.micro());
                let good = has(amount) && to != who;
                if good {
                    self.wallets[usize::from(who)] -= i128::from(amount);
                    self.put(to, amount);
                }
                good
            }
            Action::Stake { amount } => {
                let good = has(amount.micro());
                if good {
                    self.wallets[usize::from(who)] -= i128::from(amount.micro());
                    self.stakes[usize::from(who)] += i128::from(amount.micro());
                }
                good
            }
            Action::Unstake { amount } => {
                let amount = amount.micro();
                let under_way = self.unstaking.iter().filter(|(of, ..)| *of == who).count();
                let good = amount > 0 && self.staked(who) >= i128::from(amount) && under_way < 16;
                if good {
                    let Some((_, Meaning::Order(.., until), _)) = self
                        .asked
                        .iter()
                        .find(|(_, meaning, _)| matches!(meaning, Meaning::Order(_, _, own, _) if *own == id))
                    else {
                        panic!("asked for")
                    };
                    self.unstaking.push((who, amount, until + UNSTAKE_MS));
                }
                good
            }
            Action::Offer { amount, taker, expires, .. } => {
                let good = has(amount.micro()) && expires.0 > self.now;
                if good {
                    let (amount, taker, expires) = (amount.micro(), taker.map(person), expires.0);
                    self.offers.insert(id, Offer { maker: who, amount, taker, expires, accepted: None });
                }
                good
            }
            Action::Accept { offer: offer_id } => {
                let Some(mut offer) = open(&offer_id) else { return false };
                let good =
                    offer.accepted.is_none() && offer.maker != who && offer.taker.is_none_or(|taker| taker == who);
                if good {
                    offer.accepted = Some(who);
                    self.offers.insert(offer_id, offer);
                }
                good
            }
            Action::Release { offer: offer_id } => {
                let Some(Offer { maker, amount, accepted: Some(taker), .. }) = open(&offer_id) else { return false };
                if maker == who {
                    self.offers.remove(&offer_id);
                    self.wallets[usize::from(maker)] -= i128::from(amount);
                    self.put(taker, amount);
                }
                maker == who
            }
            Action::Cancel { offer: offer_id } => {
                let good = open(&offer_id).is_some_and(|offer| offer.accepted.unwrap_or(offer.maker) == who);
                if good {
                    self.offers.remove(&offer_id);
                }
                good
            }
        }
    }

    /// Shares out what a query cost: the quotas rounded down, one µHYD more for the largest remainders.
    fn share(&mut self, cost: i64, shares: &[(u8, u64)]) {
        let parts = quotas(cost, &[800_000, 150_000, 50_000]);
        let weights: Vec<u64> = shares.iter().map(|(_, tokens)| *tokens).collect();
        self.burned += i128::from(parts[2]);
        self.treasury += i128::from(parts[1]);
        if weights.iter().sum::<u64>() == 0 {
            self.treasury += i128::from(parts[0]);
            return;
        }
        for ((who, _), amount) in shares.iter().zip(quotas(parts[0], &weights)) {
            self.put(*who, amount);
        }
    }

    /// What pending transfers hold of a wallet, and what escrow holds.
    pub fn held(&self, who: u8) -> i128 {
        self.wallets[usize::from(who)] - self.available(who)
    }

    pub fn in_escrow(&self) -> i128 {
        let open = self.offers.values().filter(|offer| offer.accepted.is_none()).map(|offer| i128::from(offer.amount));
        open.sum::<i128>() + self.holds.values().map(|(_, amount, _)| i128::from(*amount)).sum::<i128>()
    }
}

/// Largest remainders, one µHYD after the other.
fn quotas(total: i64, weights: &[u64]) -> Vec<i64> {
    let (total, all) = (i128::from(total), i128::from(weights.iter().sum::<u64>()));
    let product = |at: usize| total * i128::from(weights[at]);
    let mut shares: Vec<i128> = (0..weights.len()).map(|at| product(at) / all).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|at| (-(product(*at) % all), *at));
    let left = total - shares.iter().sum::<i128>();
    for at in order.into_iter().cycle().take(usize::try_from(left).unwrap()) {
        shares[at] += 1;
    }
    shares.into_iter().map(|share| i64::try_from(share).unwrap()).collect()
}
