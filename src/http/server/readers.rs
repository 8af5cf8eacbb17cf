//! What anybody may have looked up on the disk.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::http::error::ApiError;

/// Something that is read on threads that may wait for the disk, and room for so many readers.
pub(super) struct Readers<T> {
    what: Arc<T>,
    room: Arc<Semaphore>,
}

impl<T: Send + Sync + 'static> Readers<T> {
    /// Room for `most` readers of `what` at a time.
    pub fn new(what: Arc<T>, most: usize) -> Self {
        Self { what, room: Arc::new(Semaphore::new(most)) }
    }

    /// What `look` finds; busy where there is no room. Who hangs up meanwhile leaves the place taken until the look is over:
    /// it goes on without them.
    pub async fn look<R: Send + 'static>(&self, look: impl FnOnce(&T) -> R + Send + 'static) -> Result<R, ApiError> {
        let place = Arc::clone(&self.room).try_acquire_owned().map_err(|_| ApiError::Busy)?;
        let what = Arc::clone(&self.what);
        let looked = tokio::task::spawn_blocking(move || {
            let found = look(&what);
            drop(place);
            found
        });
        looked.await.map_err(|error| ApiError::Internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_hangs_up_makes_no_room_for_others_before_the_look_is_over() {
        let readers = Arc::new(Readers::new(Arc::new(7), 1));
        let (began, begun) = mpsc::channel();
        let (go_on, told) = mpsc::channel();
        let asking = tokio::spawn({
            let readers = Arc::clone(&readers);
            let look = move |_: &i32| {
                began.send(()).unwrap();
                told.recv().unwrap();
            };
            async move { readers.look(look).await }
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.unwrap().unwrap();
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        assert_eq!(readers.look(|seven| *seven).await, Err(ApiError::Busy));
        go_on.send(()).unwrap();
        let room = async {
            while readers.look(|seven| *seven).await != Ok(7) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), room).await.unwrap();
    }
}
