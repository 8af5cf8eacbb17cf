use std::collections::BTreeSet;
use std::str::FromStr;

use actix::Addr;
use actix::prelude::SendError;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use warp::reply::Response;

use super::readers::Readers;
use super::request::{Asked, json, next, parse};
use super::{Front, LedgerParts};
use crate::http::api::ledger::{
    AccountSides, Accounts, Books, Contributor, Entries, Forfeit, Heads, Hold, Holds, NewestHead, Offers, OpenOffer,
    Orders, Outcome, Outcomes, Pay, PayRound, Recorded, RoundPaid, Settle, Sides, Standing,
};
use crate::http::error::ApiError;
use crate::http::hub::Hub;
use crate::http::openapi::Endpoint;
use crate::ledger::{
    Account, Answer, CheckedOrder, Head, IsReady, LedgerActor, LedgerConfig, LedgerError, Question, Request,
    StoreError, TransferId,
};
use crate::protocol::{PublicKey, Signed, limits};
use crate::store::{Archive, Growth};

/// A ledger that is served: what changes or depends on the present goes to the ledger itself, what is written already is
/// read from its archive.
pub(super) struct LedgerSite {
    actor: Addr<LedgerActor>,
    archive: Readers<Archive>,
    config: LedgerConfig,
    key: PublicKey,
}

pub(super) async fn answer(
    front: &Front,
    ledger: &LedgerSite,
    endpoint: Endpoint,
    asked: &mut Asked,
) -> Result<Response, ApiError> {
    let answered = match endpoint {
        Endpoint::Ledger => ledger.books(front).await,
        Endpoint::Accounts => ledger.accounts(asked).await,
        Endpoint::Account => ledger.standing(asked).await,
        Endpoint::History => ledger.history(asked).await,
        Endpoint::Offers => ledger.offers(asked).await,
        Endpoint::Order => ledger.order(front, asked).await,
        Endpoint::Orders => ledger.orders(front, asked).await,
        Endpoint::Transfer => ledger.transfer(asked).await,
        Endpoint::TransferProof => ledger.proof(asked).await,
        Endpoint::Entries => ledger.entries(asked).await,
        Endpoint::Head => ledger.head().await,
        Endpoint::Heads => ledger.heads(asked).await,
        Endpoint::Growth => ledger.growth(asked).await,
        Endpoint::Holds => ledger.holds(asked).await,
        Endpoint::Hold => ledger.hold(front, asked).await,
        Endpoint::Settle => ledger.settle(front, asked).await,
        Endpoint::PayRound => ledger.pay_round(front, asked).await,
        Endpoint::Forfeit => ledger.forfeit(front, asked).await,
        _ => Err(ApiError::NoSuchRoute),
    };
    if let Err(ApiError::Ledger(error)) = &answered {
        front.hub.refused(error.code());
    }
    answered
}

/// Orders of a batch that are under way together: a part of the ledger's mailbox.
const ORDERS_AT_A_TIME: usize = limits::MAILBOX / 8;

/// Where a path names a key or a transfer, counted from 0.
const NAME: usize = 4;

/// How a path names a transfer.
enum Named {
    Id(TransferId),
    Number(u64),
}

impl FromStr for Named {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = || text.parse().ok().map(Self::Number);
        let name = text.parse().ok().map(Self::Id).or_else(number);
        name.ok_or("a transfer is named by its id (32 hexadecimal digits) or its number")
    }
}

/// How many things of a page are asked for.
fn most(asked: &Asked) -> Result<usize, ApiError> {
    asked.most(limits::LEDGER_PAGE, limits::LEDGER_PAGE_MAX)
}

/// Reads a signed call of one of `allowed`.
async fn from_one_of<T: DeserializeOwned>(
    front: &Front,
    asked: &mut Asked,
    allowed: &BTreeSet<PublicKey>,
    limit: usize,
    refusal: &'static str,
) -> Result<T, ApiError> {
    let (caller, body): (PublicKey, Bytes) = asked.signed(front, limit).await?;
    if allowed.contains(&caller) { parse(&body) } else { Err(ApiError::Forbidden(refusal)) }
}

async fn from_payer<T: DeserializeOwned>(front: &Front, asked: &mut Asked) -> Result<T, ApiError> {
    let limit = limits::VERDICT_JSON_BYTES_MAX * limits::PAYS_PER_ROUND_MAX;
    from_one_of(front, asked, &front.config.payers, limit, "it is no coordinator whose rounds this ledger pays").await
}

async fn from_query_server<T: DeserializeOwned>(front: &Front, asked: &mut Asked) -> Result<T, ApiError> {
    let limit = limits::SETTLEMENT_JSON_BYTES_MAX;
    from_one_of(front, asked, &front.config.query_servers, limit, "it serves no queries for this ledger").await
}

fn check(order: &Signed) -> Result<CheckedOrder, ApiError> {
    CheckedOrder::check(order).map_err(|error| ApiError::Malformed(format!("the order in the body: {error}")))
}

fn unexpected(answer: &Answer) -> ApiError {
    ApiError::Internal(format!("the ledger answered something else: {answer:?}"))
}

async fn heard(answer: oneshot::Receiver<Answer>) -> Result<Answer, ApiError> {
    let answer = tokio::time::timeout(limits::HTTP_ANSWER_WITHIN, answer).await;
    match answer.map_err(|_| ApiError::Busy)?.map_err(|_| ApiError::Busy)? {
        Answer::Refused { error, .. } => Err(error.into()),
        answer => Ok(answer),
    }
}

fn recorded(answer: Answer) -> Result<Recorded, ApiError> {
    match answer {
        Answer::Done { id, sequence } => Ok(Recorded { id, sequence }),
        other => Err(unexpected(&other)),
    }
}

impl LedgerSite {
    pub fn new(parts: LedgerParts) -> Self {
        let LedgerParts { actor, archive, config, key } = parts;
        Self { actor, archive: Readers::new(archive, limits::ARCHIVE_WAITING_MAX), config, key }
    }

    /// Whether it could write when it last tried.
    pub async fn is_ready(&self) -> Result<bool, ApiError> {
        self.actor.send(IsReady).await.map_err(|_| ApiError::Internal("the ledger has stopped".into()))
    }

    /// Has its numbers known.
    pub async fn measure(&self, hub: &Hub) -> Result<(), ApiError> {
        let Answer::Totals { totals, transfers, .. } = self.ask(Request::Totals).await? else { return Ok(()) };
        let head = self.look(Archive::head).await?;
        let signed = head.and_then(|head| head.claimed_message::<Head>().ok()).map_or(0, |head| head.size);
        hub.ledger(&totals, transfers, signed);
        Ok(())
    }

    /// Asks the ledger itself. What it answers is durable.
    pub async fn ask(&self, request: Request) -> Result<Answer, ApiError> {
        heard(self.send(request)?).await
    }

    /// Puts a request into the ledger's mailbox: where the answer will be.
    fn send(&self, request: Request) -> Result<oneshot::Receiver<Answer>, ApiError> {
        let (reply, answer) = oneshot::channel();
        // Where the client has gone away meanwhile, nobody takes the answer.
        let reply = Box::new(move |answer| drop(reply.send(answer)));
        self.actor.try_send(Question { request, reply }).map_err(|error| match error {
            SendError::Full(_) => ApiError::Busy,
            SendError::Closed(_) => ApiError::Internal("the ledger has stopped".into()),
        })?;
        Ok(answer)
    }

    /// Looks something up in what is written.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Archive) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.archive.look(look).await?.map_err(|error| LedgerError::Store(error).into())
    }

    async fn books(&self, front: &Front) -> Result<Response, ApiError> {
        let answer = self.ask(Request::Totals).await?;
        let Answer::Totals { totals, transfers, head } = answer else { return Err(unexpected(&answer)) };
        Ok(json(&Books {
            key: self.key,
            emission: self.config.economy.config().emission,
            verifiers: self.config.verifiers.iter().copied().collect(),
            payers: front.config.payers.iter().copied().collect(),
            query_servers: front.config.query_servers.iter().copied().collect(),
            transfers,
            head,
            supply: totals.supply,
            emitted: totals.emitted,
            unvested: totals.unvested,
            burned: totals.burned,
            sides: Sides {
                debits: totals.debits,
                credits: totals.credits,
                debits_pending: totals.debits_pending,
                credits_pending: totals.credits_pending,
            },
        }))
    }

    async fn accounts(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let (after, most) = (asked.parameter::<Account>("after")?, most(asked)?);
        let page = self.look(move |archive| archive.accounts(after, most)).await?;
        let next = next(&page, most, |(account, _)| *account);
        let sides = |(account, posts)| AccountSides { account, sides: Sides::from(posts) };
        Ok(json(&Accounts { accounts: page.into_iter().map(sides).collect(), next }))
    }

    async fn standing(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let key = asked.part(NAME)?;
        let answer = self.ask(Request::Wallet(key)).await?;
        let Answer::Wallet(standing) = answer else { return Err(unexpected(&answer)) };
        Ok(json(&Standing {
            key,
            wallet: standing.wallet.into(),
            stake: standing.stake.into(),
            unvested_rewards: standing.unvested,
            clean_rewards: standing.clean,
        }))
    }

    async fn history(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let key = asked.part(NAME)?;
        let (before, most) = (asked.parameter("before")?.unwrap_or(u64::MAX), most(asked)?);
        let accounts = [Account::Wallet(key), Account::Stake(key)];
        let entries = self.look(move |archive| archive.history(&accounts, before, most)).await?;
        Ok(json(&Entries { next: next(&entries, most, |entry| entry.sequence), entries }))
    }

    async fn offers(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let (after, most) = (asked.parameter("after")?.unwrap_or(TransferId::new(0)), most(asked)?);
        let answer = self.ask(Request::Offers { after, most }).await?;
        let Answer::Offers(offers) = answer else { return Err(unexpected(&answer)) };
        let next = next(&offers, most, |(id, _)| *id);
        Ok(json(&Offers { offers: offers.into_iter().map(OpenOffer::from).collect(), next }))
    }

    async fn holds(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let (after, most) = (asked.parameter("after")?.unwrap_or(TransferId::new(0)), most(asked)?);
        let answer = self.ask(Request::Holds { after, most }).await?;
        let Answer::Holds(holds) = answer else { return Err(unexpected(&answer)) };
        let next = next(&holds, most, |id| *id);
        let entries = self.look(move |archive| archive.transfers(&holds)).await?;
        Ok(json(&Holds { entries, next }))
    }

    async fn order(&self, front: &Front, asked: &mut Asked) -> Result<Response, ApiError> {
        // Who brings an order need not be who signed it: its signature says what its owner wants, and its id that it is
        // done once.
        let (_, body) = asked.signed(front, limits::ORDER_JSON_BYTES_MAX).await?;
        let order = check(&parse(&body)?)?;
        self.record(Request::Order(order)).await
    }

    async fn record(&self, request: Request) -> Result<Response, ApiError> {
        recorded(self.ask(request).await?).map(|done| json(&done))
    }

    async fn orders(&self, front: &Front, asked: &mut Asked) -> Result<Response, ApiError> {
        let address = asked.address(front.config.behind_proxy);
        let (_, body) = asked.signed(front, limits::ORDER_JSON_BYTES_MAX * limits::ORDERS_MAX).await?;
        let Orders { orders } = parse(&body)?;
        if orders.len() > limits::ORDERS_MAX {
            return Err(ApiError::Malformed(format!("{} orders, the limit is {}", orders.len(), limits::ORDERS_MAX)));
        }
        // Each costs what a request does; one is paid for by this call.
        let now = front.clock.now();
        for _ in orders.iter().skip(1) {
            front.per_address.take(address, now).map_err(ApiError::TooManyCalls)?;
        }
        let checked = tokio::task::spawn_blocking(move || orders.iter().map(check).collect::<Vec<_>>()).await;
        let checked = checked.map_err(|error| ApiError::Internal(error.to_string()))?;
        let mut outcomes = Vec::with_capacity(checked.len());
        for some in checked.chunks(ORDERS_AT_A_TIME) {
            // Under way together, in their order, so that they share transactions.
            let sent = some.iter().map(|order| self.send(Request::Order(order.clone()?)));
            for answer in sent.collect::<Vec<_>>() {
                let outcome = match answer {
                    Ok(answer) => heard(answer).await.and_then(recorded),
                    Err(error) => Err(error),
                };
                outcomes.push(outcome.map_or_else(
                    |error| {
                        front.hub.refused(error.code());
                        Outcome::Refused { code: error.code().to_owned(), message: error.to_string() }
                    },
                    Outcome::Done,
                ));
            }
        }
        Ok(json(&Outcomes { outcomes }))
    }

    /// The number of the transfer that the path names.
    async fn named(&self, asked: &mut Asked) -> Result<u64, ApiError> {
        match asked.part(NAME)? {
            Named::Number(number) => Ok(number),
            Named::Id(id) => self.look(move |archive| archive.find(id)).await?.ok_or(ApiError::NoSuchTransfer),
        }
    }

    async fn transfer(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let before = self.named(asked).await?.checked_sub(1).ok_or(ApiError::NoSuchTransfer)?;
        let entry = self.look(move |archive| archive.entries(before, 1)).await?.pop();
        Ok(json(&entry.ok_or(ApiError::NoSuchTransfer)?))
    }

    async fn proof(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let number = self.named(asked).await?;
        let proof = self.look(move |archive| archive.inclusion(number)).await?;
        Ok(json(&proof.ok_or(ApiError::NoSuchTransfer)?))
    }

    async fn entries(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let (after, most) = (asked.parameter("after")?.unwrap_or(0), most(asked)?);
        let entries = self.look(move |archive| archive.entries(after, most)).await?;
        Ok(json(&Entries { next: next(&entries, most, |entry| entry.sequence), entries }))
    }

    async fn head(&self) -> Result<Response, ApiError> {
        Ok(json(&NewestHead { key: self.key, head: self.look(Archive::head).await? }))
    }

    async fn heads(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let (after, most) = (asked.parameter("after")?.unwrap_or(0), most(asked)?);
        let heads = self.look(move |archive| archive.heads(after, most)).await?;
        let size = |head: &Signed| head.claimed_message::<Head>().map(|head| head.size).ok();
        Ok(json(&Heads { next: next(&heads, most, size).flatten(), heads }))
    }

    async fn growth(&self, asked: &mut Asked) -> Result<Response, ApiError> {
        let size = asked.number("since")?;
        match self.look(move |archive| archive.growth(size)).await? {
            Growth::Proved(proof) => Ok(json(&proof)),
            Growth::NeverSigned { nearest } => Err(ApiError::NeverSigned { size, nearest }),
        }
    }

    async fn hold(&self, front: &Front, asked: &mut Asked) -> Result<Response, ApiError> {
        let Hold { id, wallet, amount, expires } = from_query_server(front, asked).await?;
        self.record(Request::Hold { id, wallet, amount, expires }).await
    }

    async fn settle(&self, front: &Front, asked: &mut Asked) -> Result<Response, ApiError> {
        let Settle { query, wallet, cost, contributors } = from_query_server(front, asked).await?;
        let contributors = contributors.into_iter().map(|Contributor { wallet, tokens }| (wallet, tokens)).collect();
        self.record(Request::Settle { query, wallet, cost, contributors }).await
    }

    async fn pay_round(&self, front: &Front, asked: &mut Asked) -> Result<Response, ApiError> {
        let PayRound { run, round, verdicts } = from_payer(front, asked).await?;
        let answer = self.ask(Request::PayRound { run, round, verdicts }).await?;
        let Answer::RoundPaid { pays, head, .. } = answer else { return Err(unexpected(&answer)) };
        let pays = pays.into_iter().map(|(worker, task, amount)| Pay { worker, task, amount }).collect();
        Ok(json(&RoundPaid { pays, head }))
    }

    async fn forfeit(&self, front: &Front, asked: &mut Asked) -> Result<Response, ApiError> {
        let Forfeit { verdict } = from_payer(front, asked).await?;
        let answer = self.ask(Request::Forfeit { verdict }).await?;
        let Answer::Forfeited(forfeited) = answer else { return Err(unexpected(&answer)) };
        Ok(json(&forfeited))
    }
}
