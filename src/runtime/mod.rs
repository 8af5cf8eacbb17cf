//! What actors need from the machine: the time, threads to compute on, somebody to tell.
//!
//! Everything here has a real and a simulated form; actors see only the traits.

mod clock;
mod entropy;
mod executor;
mod machine;
mod watch;

pub use clock::{Clock, Stopwatch, SystemClock};
pub use entropy::entropy;
pub use executor::{Delivery, Executor, Threads, Work, WorkKind};
pub use machine::{free_disk, raise_open_files};
pub use watch::{Note, Watch};

use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Message, Recipient, prelude::SendError};

/// How long to wait before trying again to put a message into a full mailbox.
const FULL_MAILBOX_PAUSE: Duration = Duration::from_millis(10);

/// Sends `message`; when the mailbox is full, again a little later. For messages that must not be lost and that few
/// enough are under way of. The receiver's death ends the process elsewhere, so it is no case here.
pub fn send<A, M>(ctx: &mut Context<A>, to: &Recipient<M>, message: M)
where
    A: Actor<Context = Context<A>>,
    M: Message<Result = ()> + Send + 'static,
{
    if let Err(SendError::Full(message)) = to.try_send(message) {
        let to = to.clone();
        ctx.run_later(FULL_MAILBOX_PAUSE, move |_, ctx| send(ctx, &to, message));
    }
}
