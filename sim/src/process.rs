//! Processes that can be killed and started again, and the machines that they run on.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context};
use hydra::protocol::Digest;
use hydra::runtime::{Delivery, Executor, Threads, Work, WorkKind};
use hydra::store::{BlobError, Blobs, MemoryBlobs};
use tokio::sync::oneshot;

use crate::network::Standing;

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

/// Something that runs, is killed and comes back.
pub(crate) struct Process<A: Actor<Context = Context<A>>> {
    /// Reasons for which it must not run.
    pub down: Cell<u32>,
    starts: Cell<u64>,
    living: RefCell<Option<Living<A>>>,
}

struct Living<A: Actor<Context = Context<A>>> {
    address: Addr<A>,
    alive: Arc<AtomicBool>,
    kill: oneshot::Sender<()>,
}

impl<A: Actor<Context = Context<A>>> Default for Process<A> {
    fn default() -> Self {
        Self { down: Cell::new(0), starts: Cell::new(0), living: RefCell::new(None) }
    }
}

impl<A: Actor<Context = Context<A>>> Process<A> {
    /// Starts the actor that `make` makes. Whatever it reaches beyond itself must look at the flag that `make` is handed:
    /// it says whether this process still lives.
    pub fn start(&self, make: impl FnOnce(&mut Context<A>, &Arc<AtomicBool>) -> A) -> Addr<A> {
        self.start_with(Arc::new(AtomicBool::new(true)), make)
    }

    /// The same, with a flag that somebody has already.
    pub fn start_with(
        &self,
        alive: Arc<AtomicBool>,
        make: impl FnOnce(&mut Context<A>, &Arc<AtomicBool>) -> A,
    ) -> Addr<A> {
        let (kill, killed) = oneshot::channel();
        let address = A::create(|ctx| {
            let killed = actix::fut::wrap_future::<_, A>(killed);
            // Not `terminate`: with that, an actor that has cancelled a timer in the same moment is polled for ever. Neither
            // hears anything more.
            ctx.spawn(killed.map(|_, _, ctx: &mut Context<A>| ctx.stop()));
            make(ctx, &alive)
        });
        self.starts.set(self.starts.get() + 1);
        self.living.replace(Some(Living { address: address.clone(), alive, kill }));
        address
    }

    /// How often it was started.
    pub fn starts(&self) -> u64 {
        self.starts.get()
    }

    /// One more reason not to run: kills it.
    pub fn fall(&self) {
        self.down.set(self.down.get() + 1);
        if let Some(Living { alive, kill, .. }) = self.living.take() {
            alive.store(false, Ordering::Relaxed);
            // It may have ended by itself.
            let _ = kill.send(());
        }
    }

    /// One reason less. Whether it is to be started now.
    pub fn rise(&self) -> bool {
        self.down.set(self.down.get().saturating_sub(1));
        self.down.get() == 0 && !self.lives()
    }

    pub fn lives(&self) -> bool {
        self.living.borrow().is_some()
    }

    /// Whether it runs if it should.
    pub fn is_well(&self) -> bool {
        self.living.borrow().as_ref().is_none_or(|living| living.address.connected())
    }

    pub fn address(&self) -> Option<Addr<A>> {
        self.living.borrow().as_ref().map(|living| living.address.clone())
    }
}

/// Work that runs on real threads.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    count: Mutex<usize>,
    less: Condvar,
}

/// Counts a piece of work until it is dropped.
struct Counted(Arc<UnderWay>);

impl Counted {
    fn new(work: &Arc<UnderWay>) -> Self {
        *work.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(Arc::clone(work))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.less.notify_all();
    }
}

impl UnderWay {
    fn wait(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self.less.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The blobs of a world. One is removed only when all work that runs on real threads is done: work that had begun before,
/// in virtual time, finds it there, however busy the threads are.
#[derive(Default)]
pub(crate) struct WorldBlobs {
    kept: MemoryBlobs,
    pub work: Arc<UnderWay>,
}

thread_local! {
    /// Whether what the work on this thread fetches arrives damaged.
    static DAMAGED: Cell<bool> = const { Cell::new(false) };
}

impl Blobs for WorldBlobs {
    fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        self.kept.put(bytes)
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
        let mut bytes = self.kept.get(digest)?;
        if DAMAGED.get() {
            let middle = bytes.len() / 2;
            bytes.get_mut(middle).into_iter().for_each(|byte| *byte ^= 1);
            if Digest::of(&bytes) != *digest {
                let problem = "what arrived is not what its name says".to_owned();
                return Err(BlobError::Remote { digest: *digest, problem });
            }
        }
        Ok(bytes)
    }

    fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
        self.work.wait();
        self.kept.remove(digest)
    }
}

/// What all machines of a world compute on.
#[derive(Clone)]
pub(crate) struct Real {
    pub threads: Rc<Threads>,
    /// What is under way on them.
    pub work: Arc<UnderWay>,
    /// Hears of a computation that panicked.
    pub panicked: Rc<dyn Fn(&str)>,
}

/// One machine: its work runs on real threads at once, but its result is seen after the time that the machine would
/// have taken.
pub(crate) struct Machine {
    real: Real,
    standing: Arc<Standing>,
    tokens_per_second: u64,
    /// How long work takes that is no training.
    service: Duration,
    /// How long it takes to fetch what training needs.
    fetch: Duration,
    /// Whether its training waits for all other work: for those who hand each other what they have computed.
    in_turn: bool,
}

/// A machine, as one process uses it.
pub(crate) struct Using {
    machine: Machine,
    alive: Arc<AtomicBool>,
}

impl Machine {
    pub fn new(
        real: Real,
        standing: Arc<Standing>,
        tokens_per_second: u64,
        service: Duration,
        fetch: Duration,
    ) -> Self {
        Self { real, standing, tokens_per_second, service, fetch, in_turn: false }
    }

    /// The same, but its training begins when all other work is done, so that the order in virtual time is the real one.
    pub fn in_turn(mut self, in_turn: bool) -> Self {
        self.in_turn = in_turn;
        self
    }

    /// For a process that lives while `alive` says so: what it had begun is delivered to nobody when it is dead.
    pub fn of(self, alive: &Arc<AtomicBool>) -> Using {
        Using { machine: self, alive: Arc::clone(alive) }
    }
}

impl Executor for Using {
    fn run(&self, Work { kind, job }: Work) {
        let machine = &self.machine;
        let (send, receive) = mpsc::channel();
        if machine.in_turn && matches!(kind, WorkKind::Train { .. }) {
            machine.real.work.wait();
        }
        let counted = Counted::new(&machine.real.work);
        // As it is now, in virtual time, whenever a thread comes to it.
        let damaged = machine.standing.damaged.load(Ordering::Relaxed) > 0;
        let job = Box::new(move || {
            DAMAGED.set(damaged);
            // A thread that dies would leave the others waiting for what it has begun.
            let done = catch_unwind(AssertUnwindSafe(job));
            DAMAGED.set(false);
            drop(counted);
            // Nobody receives any more when the world has ended.
            let _ = send.send(done);
            Box::new(|| ()) as Delivery
        });
        machine.real.threads.run(Work { kind, job });
        let takes = match kind {
            WorkKind::Train { tokens } => {
                machine.fetch + Duration::from_secs_f64(tokens as f64 / machine.tokens_per_second as f64)
            }
            WorkKind::Service => machine.service,
        };
        let (alive, standing) = (Arc::clone(&self.alive), Arc::clone(&machine.standing));
        let panicked = Rc::clone(&machine.real.panicked);
        actix::spawn(async move {
            tokio::time::sleep(takes).await;
            standing.awake().await;
            // Blocks the whole world until the real result is there: that is what makes it deterministic. Also for the
            // dead, so that nothing that they had begun changes anything later.
            match receive.recv() {
                Ok(Ok(deliver)) if alive.load(Ordering::Relaxed) => deliver(),
                Ok(Err(panic)) => panicked(panic_text(&*panic)),
                _ => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use actix::{AsyncContext, Handler, Message, SpawnHandle};

    use super::*;
    use crate::simulation::in_virtual_time;

    /// Plans its next alarm anew with every message, as coordinator and workers do.
    #[derive(Default)]
    struct Planner(Option<SpawnHandle>);

    struct Plan;

    impl Message for Plan {
        type Result = ();
    }

    impl Actor for Planner {
        type Context = Context<Self>;
    }

    impl Handler<Plan> for Planner {
        type Result = ();

        fn handle(&mut self, _: Plan, ctx: &mut Context<Self>) {
            let alarm = ctx.notify_later(Plan, Duration::from_secs(9));
            if let Some(earlier) = self.0.replace(alarm) {
                ctx.cancel_future(earlier);
            }
        }
    }

    #[test]
    fn a_process_dies_also_in_the_moment_in_which_it_gives_up_a_timer() {
        in_virtual_time(async {
            let process: Process<Planner> = Process::default();
            let address = process.start(|_, _| Planner::default());
            address.send(Plan).await.unwrap();
            address.do_send(Plan);
            process.fall();
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!address.connected());
        });
    }
}
