use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, Recipient, SpawnHandle, WrapFuture};
use rand::Rng;
use rand::rngs::ChaCha8Rng;

use super::api::{Done, LentJob, Verdicts, path};
use super::client::{Client, ClientError};
use crate::coordinator::{self, ReplyTo};
use crate::protocol::{Digest, Seed, Signed, WorkerReply, WorkerRequest, limits};
use crate::runtime;
use crate::verifier;

/// The pause after a first failure, and the longest after many.
const PAUSE: Duration = Duration::from_millis(200);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Pauses that grow, and differ by chance, so that those who lost a server together do not come back together.
pub(super) struct Backoff {
    tries: u32,
    jitter: ChaCha8Rng,
}

impl Backoff {
    pub fn new(seed: &Seed) -> Self {
        Self { tries: 0, jitter: seed.derive("backoff", 0).rng() }
    }

    pub fn next(&mut self) -> Duration {
        let pause = (PAUSE * 2u32.saturating_pow(self.tries.min(16))).min(PAUSE_MAX);
        self.tries += 1;
        pause.mul_f64(0.5 + f64::from(self.jitter.next_u32()) / f64::from(u32::MAX) / 2.0)
    }
}

/// What a courier tells of, and asks.
#[derive(Debug)]
pub enum News<'a> {
    /// A task is about to be asked for: whether it may be. Asked again until it may.
    MayAsk,
    /// The coordinator has answered.
    Answer(&'a WorkerReply),
    /// It has not, or it refused; it will be asked again.
    Trouble(&'a ClientError),
}

/// Where news go. Called on the actors' thread. What it gives back matters for [`News::MayAsk`] only.
type Tell = Arc<dyn Fn(News<'_>) -> bool + Send + Sync>;

/// Stands for the coordinator in a worker's process: carries its requests there and the replies back.
///
/// A request is carried until it is answered or the worker asks something else, over any number of lost connections
/// and restarts of the coordinator.
pub struct Courier {
    client: Arc<Client>,
    seed: Seed,
    carried: u64,
    under_way: Option<SpawnHandle>,
    tell: Tell,
}

impl Courier {
    /// A courier that calls with `client`; `seed` spreads its retries.
    pub fn new(client: Arc<Client>, seed: Seed, tell: impl Fn(News<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self { client, seed, carried: 0, under_way: None, tell: Arc::new(tell) }
    }
}

impl Actor for Courier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
    }
}

impl Handler<coordinator::Event<ReplyTo>> for Courier {
    type Result = ();

    fn handle(&mut self, event: coordinator::Event<ReplyTo>, ctx: &mut Self::Context) {
        let coordinator::Event::Request { request, reply } = event else { return };
        let Ok(content) = request.claimed_message::<WorkerRequest>() else { return };
        let path = match content {
            WorkerRequest::Lease { .. } => path::LEASE,
            WorkerRequest::Commit(_) => path::COMMIT,
            WorkerRequest::Submit(_) => path::SUBMIT,
            WorkerRequest::GiveBack(_) => path::GIVE_BACK,
            WorkerRequest::Heartbeat(_) => path::HEARTBEAT,
            WorkerRequest::Appeal(_) => path::APPEAL,
        };
        self.carried += 1;
        let backoff = Backoff::new(&self.seed.derive("request", self.carried));
        if let WorkerRequest::Heartbeat(_) = content {
            // One that does not get through is too late the next time; another follows.
            let client = Arc::clone(&self.client);
            let beat = async move {
                if let Ok(answer) = client.ask(path, &request).await {
                    reply(answer);
                }
            };
            ctx.spawn(beat.into_actor(self));
            return;
        }
        let carry = carry(Arc::clone(&self.client), path, request, backoff, Arc::clone(&self.tell));
        let carry = async move { reply(carry.await) };
        if matches!(content, WorkerRequest::GiveBack(_) | WorkerRequest::Appeal(_)) {
            // Nobody waits for the answer, and the next request comes at once.
            ctx.spawn(carry.into_actor(self));
        } else {
            if let Some(older) = self.under_way.take() {
                ctx.cancel_future(older);
            }
            self.under_way = Some(ctx.spawn(carry.into_actor(self)));
        }
    }
}

async fn carry(
    client: Arc<Client>,
    path: &'static str,
    request: Signed,
    mut backoff: Backoff,
    tell: Tell,
) -> WorkerReply {
    while path == path::LEASE && !tell(News::MayAsk) {
        tokio::time::sleep(PAUSE).await;
    }
    loop {
        match client.ask(path, &request).await {
            Ok(reply) => {
                tell(News::Answer(&reply));
                return reply;
            }
            Err(error) => {
                // What the coordinator refuses now (a clock that is off, a key that is not yet admitted) it may take
                // later; the owner is told.
                tell(News::Trouble(&error));
                let pause = if error.is_passing() { backoff.next() } else { PAUSE_MAX };
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Stands for the coordinator in a verifier's process: brings jobs, one at a time, and takes the verdicts back.
pub struct JobCourier {
    client: Arc<Client>,
    /// Where jobs of its kind are.
    path: &'static str,
    seed: Seed,
    verifier: Recipient<verifier::Event>,
    /// The job that the verifier is at.
    job: Option<Digest>,
    fetched: u64,
    tell: TellTrouble,
}

/// Where troubles go, and that they are over.
pub(super) type TellTrouble = Arc<dyn Fn(Option<&ClientError>) + Send + Sync>;

struct Got(LentJob);

impl Message for Got {
    type Result = ();
}

/// The verifier cannot do its job: somebody else may, or it may itself when it is lent it again.
pub struct GiveUpJob;

impl Message for GiveUpJob {
    type Result = ();
}

impl JobCourier {
    /// A courier that calls with `client` and brings jobs from `path` to `verifier`; `seed` spreads its retries.
    pub fn new(
        client: Arc<Client>,
        path: &'static str,
        seed: Seed,
        verifier: Recipient<verifier::Event>,
        tell: impl Fn(Option<&ClientError>) + Send + Sync + 'static,
    ) -> Self {
        Self { client, path, seed, verifier, job: None, fetched: 0, tell: Arc::new(tell) }
    }

    fn backoff(&mut self) -> Backoff {
        self.fetched += 1;
        Backoff::new(&self.seed.derive("job", self.fetched))
    }

    fn fetch(&mut self, ctx: &mut Context<Self>) {
        self.job = None;
        let (client, path, me, tell, mut backoff) =
            (Arc::clone(&self.client), self.path, ctx.address(), Arc::clone(&self.tell), self.backoff());
        let fetch = async move {
            loop {
                let error = match client.poll::<LentJob>(path).await {
                    Ok(Some(job)) => {
                        tell(None);
                        return me.do_send(Got(job));
                    }
                    Ok(None) => {
                        tell(None);
                        continue;
                    }
                    Err(error) => error,
                };
                tell(Some(&error));
                tokio::time::sleep(if error.is_passing() { backoff.next() } else { PAUSE_MAX }).await;
            }
        };
        ctx.spawn(fetch.into_actor(self));
    }
}

impl Actor for JobCourier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.fetch(ctx);
    }
}

impl Handler<Got> for JobCourier {
    type Result = ();

    fn handle(&mut self, Got(job): Got, ctx: &mut Self::Context) {
        self.job = Some(job.id);
        runtime::send(ctx, &self.verifier, verifier::Event::Judge(job.job));
    }
}

impl Handler<GiveUpJob> for JobCourier {
    type Result = ();

    fn handle(&mut self, _: GiveUpJob, ctx: &mut Self::Context) {
        self.fetch(ctx);
    }
}

impl Handler<coordinator::Event<ReplyTo>> for JobCourier {
    type Result = ();

    fn handle(&mut self, event: coordinator::Event<ReplyTo>, ctx: &mut Self::Context) {
        let (coordinator::Event::Verdicts(verdicts), Some(id)) = (event, self.job) else { return };
        let body = Verdicts { id, verdicts };
        let (client, tell, mut backoff) = (Arc::clone(&self.client), Arc::clone(&self.tell), self.backoff());
        let hand_in = async move {
            while let Err(error) = client.post::<_, Done>(path::VERDICTS, &body).await {
                tell(Some(&error));
                if !error.is_passing() {
                    // It will not be taken later either; the next job may be.
                    return;
                }
                tokio::time::sleep(backoff.next()).await;
            }
        };
        ctx.spawn(hand_in.into_actor(self).map(|(), courier, ctx| courier.fetch(ctx)));
    }
}
