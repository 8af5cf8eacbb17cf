use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::{Actor, AsyncContext, Context, Handler, Message, Recipient, SpawnHandle};

use super::ResultStore;
use super::core::{Effect, Event, Finished, Labour};
use crate::compute::{Compute, ComputeError};
use crate::coordinator::{self, ReplyTo};
use crate::protocol::{Keypair, Signed, Task, WorkerRequest, limits};
use crate::runtime::{Clock, Delivery, Executor, Note, Watch, Work, WorkKind};
use crate::training::TaskError;

impl Message for Event {
    type Result = ();
}

/// Trains: the actor around [`Labour`].
pub struct Worker {
    core: Labour,
    key: Keypair,
    ports: WorkerPorts,
    /// Stops the training under way.
    stop: Arc<AtomicBool>,
    left: Option<Finished>,
    /// The one wake that is planned: an earlier plan is given up, or their number would only ever grow.
    alarm: Option<SpawnHandle>,
}

/// Everything a worker reaches beyond itself.
pub struct WorkerPorts {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Training, and the blob store.
    pub compute: Arc<Compute>,
    /// Threads to train on.
    pub executor: Rc<dyn Executor>,
    /// Whom to ask for work.
    pub coordinator: Recipient<coordinator::Event<ReplyTo>>,
    /// Where results are kept until they are acknowledged.
    pub results: Box<dyn ResultStore>,
    /// Hears what happens.
    pub watch: Watch,
}

impl Worker {
    /// A worker that signs with `key`.
    #[must_use]
    pub fn new(core: Labour, key: Keypair, ports: WorkerPorts) -> Self {
        Self { core, key, ports, stop: Arc::default(), left: None, alarm: None }
    }

    /// Hands this in first: an earlier process finished it and heard no acknowledgement.
    #[must_use]
    pub fn with_left(mut self, left: Option<Finished>) -> Self {
        self.left = left;
        self
    }

    fn take(&mut self, event: Event, ctx: &mut Context<Self>) {
        for effect in self.core.step(self.ports.clock.now(), event) {
            match effect {
                Effect::Send(request) => self.send(&request, ctx),
                Effect::Train(task) => self.train(*task, ctx),
                Effect::Keep(finished) => {
                    let kept = self.ports.results.keep(&finished);
                    self.note(kept);
                }
                Effect::LetGo => {
                    let gone = self.ports.results.let_go();
                    self.note(gone);
                }
                Effect::Heartbeat(task) => self.send(&WorkerRequest::Heartbeat(task), ctx),
                Effect::Upload(payload) => self.upload(payload, ctx),
                Effect::Cancel => self.stop.store(true, Ordering::Relaxed),
                Effect::WakeAt(at) => {
                    let alarm = ctx.notify_later(Event::Wake, at.since(self.ports.clock.now()));
                    if let Some(earlier) = self.alarm.replace(alarm) {
                        ctx.cancel_future(earlier);
                    }
                }
            }
        }
    }

    /// A result that cannot be kept on disk can still be handed in from memory.
    fn note(&self, kept: Result<(), String>) {
        if let Err(error) = kept {
            self.ports.watch.note(Note::TaskFailed { worker: self.key.public(), error });
        }
    }

    fn send(&self, request: &WorkerRequest, ctx: &Context<Self>) {
        let request = Signed::seal(&self.key, request);
        let to = ctx.address();
        // A reply that finds the mailbox full is lost, as on any network: the core asks again.
        let reply: ReplyTo = Box::new(move |reply| drop(to.try_send(Event::Reply(reply))));
        drop(self.ports.coordinator.try_send(coordinator::Event::Request { request, reply }));
    }

    fn train(&mut self, task: Task, ctx: &Context<Self>) {
        self.stop = Arc::default();
        let (compute, watch) = (Arc::clone(&self.ports.compute), self.ports.watch.clone());
        let stop = Arc::clone(&self.stop);
        let (to, worker) = (ctx.address(), self.key.public());
        let kind = WorkKind::Train { tokens: task.tokens() };
        let job = Box::new(move || {
            let result = compute.train(&task, |loss| {
                watch.note(Note::Step { worker, loss });
                !stop.load(Ordering::Relaxed)
            });
            let task = task.id();
            Box::new(move || match result {
                Ok(result) => to.do_send(Event::Trained { task, result }),
                Err(ComputeError::Task(TaskError::Stopped)) => {}
                Err(error) => {
                    watch.note(Note::TaskFailed { worker, error: error.to_string() });
                    to.do_send(Event::TrainingFailed { task });
                }
            }) as Delivery
        });
        self.ports.executor.run(Work { kind, job });
    }

    fn upload(&self, payload: Vec<u8>, ctx: &Context<Self>) {
        let (compute, watch, to) = (Arc::clone(&self.ports.compute), self.ports.watch.clone(), ctx.address());
        let worker = self.key.public();
        let job = Box::new(move || {
            let event = match compute.blobs().put(&payload) {
                Ok(digest) => Event::Uploaded(digest),
                Err(error) => {
                    watch.note(Note::TaskFailed { worker, error: error.to_string() });
                    Event::UploadFailed
                }
            };
            Box::new(move || to.do_send(event)) as Delivery
        });
        self.ports.executor.run(Work { kind: WorkKind::Service, job });
    }
}

impl Actor for Worker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(limits::MAILBOX);
        let event = self.left.take().map_or(Event::Started, |left| Event::StartedWith(Box::new(left)));
        self.take(event, ctx);
    }
}

impl Handler<Event> for Worker {
    type Result = ();

    fn handle(&mut self, event: Event, ctx: &mut Self::Context) {
        self.take(event, ctx);
    }
}
