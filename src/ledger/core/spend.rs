use super::draft::Draft;
use super::{Answer, Decided, Ledger, LedgerError, Offer};
use crate::ledger::order::{Action, CheckedOrder, Order, OrderError};
use crate::ledger::refusals::Refusal;
use crate::ledger::{Account, Content, Kind, Purpose, Transfer, TransferId, economy};
use crate::protocol::{Amount, Digest, PublicKey, Time, limits, wire};

impl Ledger {
    /// What an order comes to.
    pub(super) fn decide_order(&self, now: Time, checked: &CheckedOrder) -> Result<Decided, LedgerError> {
        let Order { id, valid_until, .. } = *checked.order();
        let ask = Ask {
            wallet: checked.signer(),
            id,
            content: Content::of(checked.digest()),
            until: valid_until,
            latest: now + limits::ORDER_LIFETIME_MAX,
        };
        self.once(now, &ask, |draft| self.draft_order(now, checked, draft))
    }

    /// What a query's hold comes to.
    pub(super) fn decide_hold(
        &self,
        now: Time,
        id: TransferId,
        wallet: PublicKey,
        amount: Amount,
        expires: Time,
    ) -> Result<Decided, LedgerError> {
        let kind = Kind::Pending { expires: Some(expires) };
        let (debit, credit) = (Account::Wallet(wallet), Account::Escrow);
        let transfer = Transfer { id, kind, debit, credit, amount, purpose: Purpose::Query };
        let latest = now + limits::QUERY_LIFETIME_MAX;
        let ask = Ask { wallet, id, content: transfer.content(), until: expires, latest };
        self.once(now, &ask, |draft| {
            draft.push(transfer);
            Ok(())
        })
    }

    /// Does what `fill` drafts, unless it was done or refused before.
    fn once(
        &self,
        now: Time,
        ask: &Ask,
        fill: impl FnOnce(&mut Draft) -> Result<(), OrderError>,
    ) -> Result<Decided, LedgerError> {
        let &Ask { wallet, id, content, until, latest } = ask;
        if !id.is_request() {
            return Err(OrderError::IdKind { id }.into());
        }
        if let Some(known) = self.book.known(id) {
            return if known.content == content {
                Ok(self.unchanged(Answer::Done { id, sequence: known.sequence }))
            } else {
                Err(OrderError::IdReused { id }.into())
            };
        }
        if let Some(refusal) = self.refusals.get(wallet, id) {
            let error = if refusal.content == content { refusal.error.clone() } else { OrderError::IdReused { id } };
            return Err(error.into());
        }
        if until < now {
            return Err(OrderError::Lapsed { valid_until: until, now }.into());
        }
        if until > latest {
            return Err(OrderError::TooFar { time: until, latest }.into());
        }
        if let Some(after) = self.refusals.floor(wallet).filter(|floor| until <= *floor) {
            return Err(OrderError::Stale { after }.into());
        }
        let mut draft = Draft::new(self, now);
        let result = fill(&mut draft).and_then(|()| Ok(draft.done(id)?));
        result.or_else(|error| {
            // A wallet that never held anything is nobody yet: see `Refusals`.
            if error.lasts() || self.book.posts(Account::Wallet(wallet)).credits == 0 {
                return Err(error.into());
            }
            let refused = Answer::Refused { round: None, error: error.clone().into() };
            Ok(Decided { refusal: Some(Refusal { wallet, id, content, until, error }), ..self.unchanged(refused) })
        })
    }

    fn draft_order(&self, now: Time, checked: &CheckedOrder, draft: &mut Draft) -> Result<(), OrderError> {
        let (me, order) = (checked.signer(), checked.digest());
        let Order { id, valid_until, action } = *checked.order();
        let (wallet, stake) = (Account::Wallet(me), Account::Stake(me));
        let (kind, debit, credit, amount, purpose) = match action {
            Action::Send { to, amount } => (Kind::Single, wallet, Account::Wallet(to), amount, Purpose::Sent { order }),
            Action::Stake { amount } => (Kind::Single, wallet, stake, amount, Purpose::Staked { order }),
            Action::Unstake { amount } => {
                if self.index.workers.get(&me).is_some_and(|me| me.unstaking.len() >= limits::UNSTAKING_MAX) {
                    return Err(OrderError::Unstaking);
                }
                let matures = valid_until + self.config.economy.config().unstake_delay;
                let kind = Kind::Pending { expires: None };
                (kind, stake, wallet, amount, Purpose::Unstaking { order, matures })
            }
            Action::Offer { amount, taker, terms, expires } => {
                let latest = now + limits::OFFER_LIFETIME_MAX;
                if expires > latest {
                    return Err(OrderError::TooFar { time: expires, latest });
                }
                let kind = Kind::Pending { expires: Some(expires) };
                (kind, wallet, Account::Escrow, amount, Purpose::Offered { order, taker, terms })
            }
            Action::Accept { offer: offer_id } => return self.draft_accept(draft, id, me, order, offer_id),
            Action::Release { offer: offer_id } => {
                let offer = self.offer(offer_id)?;
                let Some((taker, pending)) = offer.accepted.filter(|_| offer.maker == me) else {
                    return Err(OrderError::OfferNotYours { offer: offer_id });
                };
                let purpose = Purpose::Traded { order, offer: offer_id };
                (Kind::Post { pending }, wallet, Account::Wallet(taker), offer.amount, purpose)
            }
            Action::Cancel { offer: offer_id } => {
                let offer = self.offer(offer_id)?;
                let (whose, pending, credit) = match offer.accepted {
                    None => (offer.maker, offer_id, Account::Escrow),
                    Some((taker, pending)) => (taker, pending, Account::Wallet(taker)),
                };
                if whose != me {
                    return Err(OrderError::OfferNotYours { offer: offer_id });
                }
                let purpose = Purpose::Withdrawn { order, offer: offer_id };
                (Kind::Void { pending }, Account::Wallet(offer.maker), credit, offer.amount, purpose)
            }
        };
        draft.push(Transfer { id, kind, debit, credit, amount, purpose });
        Ok(())
    }

    /// The open offer is given up for one that can only go to `me`, in one chain: at no time can the maker spend it.
    fn draft_accept(
        &self,
        draft: &mut Draft,
        id: TransferId,
        me: PublicKey,
        order: Digest,
        offer_id: TransferId,
    ) -> Result<(), OrderError> {
        let offer = self.offer(offer_id)?;
        if offer.accepted.is_some() || offer.maker == me || offer.taker.is_some_and(|taker| taker != me) {
            return Err(OrderError::OfferClosed { offer: offer_id });
        }
        let (maker, purpose) = (Account::Wallet(offer.maker), Purpose::Accepted { order, offer: offer_id });
        let kind = Kind::Void { pending: offer_id };
        draft.push(Transfer { id, kind, debit: maker, credit: Account::Escrow, amount: offer.amount, purpose });
        let kind = Kind::Pending { expires: Some(offer.expires) };
        draft.add(kind, maker, Account::Wallet(me), offer.amount, purpose);
        Ok(())
    }

    fn offer(&self, id: TransferId) -> Result<&Offer, OrderError> {
        self.index.offers.get(&id).ok_or(OrderError::OfferUnknown { offer: id })
    }

    /// What settling a query comes to: its cost goes through escrow to those who share in it, the rest of the hold back.
    pub(super) fn decide_settle(
        &self,
        now: Time,
        query: TransferId,
        wallet: PublicKey,
        cost: Amount,
        contributors: &[(PublicKey, u64)],
    ) -> Result<Decided, LedgerError> {
        if contributors.len() > limits::CONTRIBUTORS_MAX {
            return Err(LedgerError::Contributors { contributors: contributors.len() });
        }
        let id = query.resolution();
        let what = wire::encode(&(query, wallet, cost, contributors));
        let request = Digest::in_domain("hydra settlement v1", &what);
        if let Some(known) = self.book.known(id) {
            return if known.content == Content::of(request) {
                Ok(self.unchanged(Answer::Done { id, sequence: known.sequence }))
            } else {
                Err(OrderError::IdReused { id }.into())
            };
        }
        let mut draft = Draft::new(self, now);
        let (debit, credit) = (Account::Wallet(wallet), Account::Escrow);
        if cost.is_zero() {
            let amount = self.book.hold(query).map_or(Amount::ZERO, |hold| hold.amount);
            let kind = Kind::Void { pending: query };
            draft.push(Transfer { id, kind, debit, credit, amount, purpose: Purpose::Released { request } });
            return Ok(draft.done(id)?);
        }
        let kind = Kind::Post { pending: query };
        draft.push(Transfer { id, kind, debit, credit, amount: cost, purpose: Purpose::Settled { request } });
        let (for_contributors, treasury, burn) = self.config.economy.query_shares(cost);
        let weights: Vec<u64> = contributors.iter().map(|(_, tokens)| *tokens).collect();
        let shares = economy::split(for_contributors, &weights);
        let shared = weights.iter().any(|weight| *weight > 0);
        let unshared = if shared { Amount::ZERO } else { for_contributors };
        // Parts of the cost: their sum is an amount.
        let treasury = treasury.checked_add(unshared).unwrap_or(treasury);
        let wallets = contributors.iter().map(|(key, _)| Account::Wallet(*key)).zip(shares);
        for (account, amount) in wallets.chain([(Account::Treasury, treasury), (Account::Burn, burn)]) {
            if !amount.is_zero() {
                draft.add(Kind::Single, Account::Escrow, account, amount, Purpose::Share { of: query });
            }
        }
        Ok(draft.done(id)?)
    }

    /// What the clock ends: holds and offers that expire, stakes that are out. As much as is done at a time.
    pub(super) fn decide_tick(&self, now: Time) -> Result<Decided, LedgerError> {
        let mut draft = Draft::new(self, now);
        let due = self.index.due.iter().take_while(|(time, _)| *time <= now).take(limits::DUE_AT_A_TIME);
        for &(_, pending) in due {
            let Some(hold) = self.book.hold(pending) else { continue };
            let (kind, purpose) = match hold.expires {
                Some(_) => (Kind::Expire { pending }, Purpose::Expired),
                None => (Kind::Post { pending }, Purpose::Unstaked),
            };
            draft.add(kind, hold.debit, hold.credit, hold.amount, purpose);
        }
        if draft.is_empty() {
            return Ok(self.unchanged(Answer::Ticked(0)));
        }
        let ended = draft.len();
        Ok(draft.decide(|_, _| Answer::Ticked(ended))?)
    }
}

/// A request that is done or refused once.
struct Ask {
    wallet: PublicKey,
    id: TransferId,
    content: Content,
    until: Time,
    latest: Time,
}
