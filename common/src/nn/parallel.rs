//! `--threads`: networks and parts of other work side by side, and large matrix products over several
//! threads.

use anyhow::Context;
use rayon::prelude::*;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

static THREADS: AtomicUsize = AtomicUsize::new(1);

thread_local! {
    /// Whether this thread is one side of a [`join`].
    static BESIDE_ANOTHER: Cell<bool> = const { Cell::new(false) };
}

/// Runs `operation` with `threads` threads for [`both`] and for matrix products.
///
/// # Errors
/// The system refuses to start a thread.
pub fn with_threads<R: Send>(threads: usize, operation: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
    if threads <= 1 {
        return Ok(operation());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(8 << 20).build();
    let pool = pool.with_context(|| format!("starting {threads} threads"))?;
    THREADS.store(threads, Ordering::Relaxed);
    // On a thread of the pool, so that work is handed over without waking anybody.
    let result = pool.install(operation);
    THREADS.store(1, Ordering::Relaxed);
    Ok(result)
}

/// Runs `a` and `b`, side by side where `--threads` allows: two networks that do not depend on each
/// other. A matrix product within them stays on its side's thread.
pub(crate) fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    if threads() == 1 {
        return (a(), b());
    }
    rayon::join(|| beside_another(a), || beside_another(b))
}

/// `operation(0)` and `operation(1)`, side by side where `--threads` allows: for twin critics, which do
/// not depend on each other.
///
/// # Errors
/// Those of `operation`.
pub fn both<T: Send>(operation: impl Fn(usize) -> anyhow::Result<T> + Sync) -> anyhow::Result<[T; 2]> {
    let (first, second) = join(|| operation(0), || operation(1));
    Ok([first?, second?])
}

/// `operation` of each of `parts`, in their order; side by side where `--threads` allows: for plans that
/// are tried, or members of an ensemble, which do not depend on each other.
///
/// # Errors
/// Those of `operation`, the first part's first.
pub fn side_by_side<P: Send, T: Send>(
    parts: Vec<P>,
    operation: impl Fn(P) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    if threads() == 1 {
        return parts.into_iter().map(operation).collect();
    }
    let operation = |part| beside_another(|| operation(part));
    let results: Vec<anyhow::Result<T>> = parts.into_par_iter().map(operation).collect();
    results.into_iter().collect()
}

fn beside_another<R>(operation: impl FnOnce() -> R) -> R {
    let before = BESIDE_ANOTHER.replace(true);
    let result = operation();
    BESIDE_ANOTHER.set(before);
    result
}

/// Threads for a matrix product that starts here.
pub(super) fn threads() -> usize {
    if BESIDE_ANOTHER.get() { 1 } else { THREADS.load(Ordering::Relaxed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because the number of threads is one for the whole process.
    #[test]
    fn what_runs_side_by_side_keeps_its_order() {
        both_give_the_same_on_one_thread_and_on_two();
        parts_keep_their_order_and_the_first_error_counts();
        both_sides_run_and_their_results_keep_their_order();
    }

    fn both_give_the_same_on_one_thread_and_on_two() {
        let operation = |i: usize| Ok(i * 10);
        assert_eq!(both(operation).unwrap(), [0, 10]);
        assert_eq!(with_threads(2, || both(operation)).unwrap().unwrap(), [0, 10]);
        let error = both(|i| if i == 1 { envs::invalid("second") } else { Ok(()) }).unwrap_err();
        assert_eq!(error.to_string(), "second");
    }

    fn parts_keep_their_order_and_the_first_error_counts() {
        for threads in [1, 2, 3] {
            let run = |operation: fn(u32) -> anyhow::Result<u32>| {
                with_threads(threads, || side_by_side((0..20).collect(), operation)).unwrap()
            };
            assert_eq!(
                run(|part| Ok(part * part)).unwrap(),
                (0..20).map(|part| part * part).collect::<Vec<_>>()
            );
            let error = run(|part| if part < 7 { Ok(part) } else { envs::invalid(part.to_string()) });
            assert_eq!(error.unwrap_err().to_string(), "7");
        }
        assert!(side_by_side(Vec::new(), |(): ()| Ok(())).unwrap().is_empty());
    }

    fn both_sides_run_and_their_results_keep_their_order() {
        for threads in [1, 2, 3] {
            let inside = || {
                assert_eq!(join(|| 1, || "two"), (1, "two"));
                join(|| join(|| 5, || 6), || 7)
            };
            assert_eq!(with_threads(threads, inside).unwrap(), ((5, 6), 7));
        }
    }
}
