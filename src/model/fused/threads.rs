use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// Runs `task` on every item, on the threads of the current rayon pool. Items write to places of their own and are cut
/// without regard to the number of threads, so results do not depend on it.
pub(super) fn for_each<T: Send>(items: Vec<T>, task: impl Fn(T) + Send + Sync) {
    if rayon::current_num_threads() == 1 {
        items.into_iter().for_each(task);
    } else {
        items.into_par_iter().with_max_len(1).for_each(task);
    }
}
