use std::collections::VecDeque;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};

use super::api::ledger::{Forfeit, PayRound, RoundPaid, Standing, path};
use super::client::{Client, ClientError};
use super::courier::{Backoff, PAUSE_MAX, TellTrouble};
use crate::ledger::{self, Answer, Ask, Request};
use crate::protocol::{Seed, limits};
use crate::runtime;

/// Stands for the ledger in the process of a coordinator whose ledger is another one: carries its requests there and the
/// answers back.
///
/// A request is carried until it is answered, over any number of lost connections and restarts of the ledger: each may be
/// made again and then has no second effect. They are carried one after the other, so that rounds are paid in their order.
///
/// It carries what coordinators ask: pay for a round, forfeits, and how a key stands.
pub struct LedgerCourier {
    client: Arc<Client>,
    seed: Seed,
    /// The first is under way.
    waiting: VecDeque<Ask>,
    carrying: bool,
    carried: u64,
    tell: TellTrouble,
}

impl LedgerCourier {
    /// A courier that calls with `client`, whose key the ledger must know for a coordinator's; `seed` spreads its
    /// retries. `tell` hears each time that the ledger does not answer or refuses, and why, and that it answers again.
    pub fn new(client: Arc<Client>, seed: Seed, tell: impl Fn(Option<&ClientError>) + Send + Sync + 'static) -> Self {
        Self { client, seed, waiting: VecDeque::new(), carrying: false, carried: 0, tell: Arc::new(tell) }
    }

    fn carry_on(&mut self, ctx: &mut Context<Self>) {
        if self.carrying {
            return;
        }
        let Some(Ask { request, reply }) = self.waiting.front() else { return };
        let (request, reply) = (request.clone(), reply.clone());
        self.carrying = true;
        self.carried += 1;
        let backoff = Backoff::new(&self.seed.derive("ledger request", self.carried));
        let carry = carry(Arc::clone(&self.client), request, backoff, Arc::clone(&self.tell));
        ctx.spawn(carry.into_actor(self).map(move |answer, courier, ctx| {
            if let Some(answer) = answer {
                runtime::send(ctx, &reply, answer);
            }
            courier.waiting.pop_front();
            courier.carrying = false;
            courier.carry_on(ctx);
        }));
    }
}

async fn carry(client: Arc<Client>, request: Request, mut backoff: Backoff, tell: TellTrouble) -> Option<Answer> {
    loop {
        let error = match ask(&client, &request).await {
            Ok(answer) => {
                tell(None);
                return answer;
            }
            Err(error) => error,
        };
        // What is refused for good now may be taken when the ledger is started with other settings; the owner is told.
        tell(Some(&error));
        tokio::time::sleep(if error.is_passing() { backoff.next() } else { PAUSE_MAX }).await;
    }
}

/// The answer to a request; nothing where it is of a kind that no coordinator makes.
async fn ask(client: &Client, request: &Request) -> Result<Option<Answer>, ClientError> {
    Ok(Some(match request {
        Request::PayRound { run, round, verdicts } => {
            let (run, round) = (*run, *round);
            let body = PayRound { run, round, verdicts: verdicts.clone() };
            let RoundPaid { pays, head } = client.post(path::PAY, &body).await?;
            let pays = pays.into_iter().map(|pay| (pay.worker, pay.task, pay.amount)).collect();
            Answer::RoundPaid { run, round, pays, head }
        }
        Request::Forfeit { verdict } => {
            Answer::Forfeited(client.post(path::FORFEITS, &Forfeit { verdict: verdict.clone() }).await?)
        }
        Request::Wallet(key) => {
            let standing: Standing = client.get(&format!("{}/{key}", path::ACCOUNTS)).await?;
            Answer::Wallet(ledger::Standing {
                wallet: standing.wallet.into(),
                stake: standing.stake.into(),
                unvested: standing.unvested_rewards,
                clean: standing.clean_rewards,
            })
        }
        _ => return Ok(None),
    }))
}

impl Actor for LedgerCourier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl Handler<Ask> for LedgerCourier {
    type Result = ();

    fn handle(&mut self, ask: Ask, ctx: &mut Self::Context) {
        // Whoever waits for an answer asks again every so often; once is enough while the ledger is away.
        if !self.waiting.iter().any(|waiting| waiting.request == ask.request && waiting.reply == ask.reply) {
            self.waiting.push_back(ask);
        }
        self.carry_on(ctx);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use actix::System;
    use tokio::sync::mpsc;

    use super::*;
    use crate::http::{Hub, LedgerParts, Server, ServerConfig};
    use crate::ledger::testing::{accepted, config, key, ledger_key, pay_round, pays, rejected, task};
    use crate::ledger::{Desk, Direct, LedgerActor};
    use crate::protocol::{PublicKey, TaskId};
    use crate::runtime::{Clock, SystemClock};
    use crate::store::{Archive, Database, LedgerStore};

    /// Passes on what it is answered.
    struct Inbox(mpsc::UnboundedSender<Answer>);

    impl Actor for Inbox {
        type Context = Context<Self>;
    }
    impl Handler<Answer> for Inbox {
        type Result = ();
        fn handle(&mut self, answer: Answer, _: &mut Context<Self>) {
            self.0.send(answer).unwrap();
        }
    }

    fn serve(path: &std::path::Path, listener: TcpListener) -> Server {
        let store = LedgerStore::new(Database::open(path).unwrap()).unwrap();
        let desk = Desk::open(config(), Box::new(Direct::new(store, ledger_key()))).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let parts = LedgerParts {
            actor: LedgerActor::new(desk, Arc::clone(&clock)).start(),
            archive: Arc::new(Archive::open(LedgerStore::read_only(path).unwrap()).unwrap()),
            config: config(),
            key: ledger_key().public(),
        };
        let config = ServerConfig { payers: [key(7).public()].into(), ..ServerConfig::default() };
        Server::start_ledger(listener, parts, clock, Arc::new(Hub::default()), config).unwrap()
    }

    #[test]
    fn what_is_asked_while_the_ledger_is_away_is_answered_once_and_in_order_when_it_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hydra.db");
        System::new().block_on(async {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let client = Client::new(&format!("http://{address}"), key(7), Arc::new(SystemClock), None).unwrap();
            let troubles = Arc::new(AtomicUsize::new(0));
            let courier = LedgerCourier::new(Arc::new(client), Seed::from_number(1), {
                let troubles = Arc::clone(&troubles);
                move |error| {
                    troubles.fetch_add(usize::from(error.is_some()), Ordering::Relaxed);
                }
            });
            let courier = courier.start();
            let (answers, mut answered) = mpsc::unbounded_channel();
            let inbox = Inbox(answers).start();
            let ask = async |request: Request| {
                courier.send(Ask { request, reply: inbox.clone().recipient() }).await.unwrap();
            };
            for _ in 0..3 {
                ask(pay_round(0, vec![accepted(1, 1, 100)])).await;
                ask(pay_round(1, vec![accepted(2, 2, 100)])).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(troubles.load(Ordering::Relaxed) > 0);
            let server = serve(&path, TcpListener::bind(address).unwrap());
            let first = answered.recv().await.unwrap();
            assert_eq!(pays(&first), pays_of(1));
            assert_eq!(pays(&answered.recv().await.unwrap()), pays_of(2));
            ask(pay_round(0, vec![accepted(1, 1, 100)])).await;
            assert_eq!(answered.recv().await.unwrap(), first, "and the same when it is asked for again");
            ask(Request::Wallet(key(1).public())).await;
            let Some(Answer::Wallet(standing)) = answered.recv().await else { panic!() };
            assert_eq!((standing.wallet.credits_pending, standing.unvested, standing.clean), (1_000, 1, 1));
            ask(Request::Forfeit { verdict: rejected(1, 1) }).await;
            let Some(Answer::Forfeited(forfeited)) = answered.recv().await else { panic!() };
            assert_eq!((forfeited.worker, forfeited.unvested.micro()), (key(1).public(), 1_000));
            assert!(answered.try_recv().is_err(), "nothing was answered twice");
            server.stop().await;
        });
    }

    /// What the tests' rounds pay for task and worker `n`.
    fn pays_of(n: u8) -> Vec<(PublicKey, TaskId, i64)> {
        vec![(key(n).public(), task(n.into()), 1_000)]
    }
}
