//! Work on all cores, results in order, and only so many of them ahead of the one that is taken next.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex};
use std::thread;

use refit_base::{lock, wait};

use super::PackError;

/// Results for each core that may wait for an earlier one: they are frames, and held in memory.
const AHEAD_PER_CORE: usize = 4;

/// Does `work` on each of `jobs` and hands the results to `take`, in order and on the caller's thread.
///
/// `start` makes what a worker keeps from one job to the next.
///
/// # Errors
/// The first error in the order in which they happened; no more work is begun then.
pub(super) fn in_order<'j, J: Sync, S, T: Send>(
    jobs: &'j [J],
    start: impl Fn() -> Result<S, PackError> + Sync,
    work: impl Fn(&mut S, &'j J) -> Result<T, PackError> + Sync,
    mut take: impl FnMut(T) -> Result<(), PackError>,
) -> Result<(), PackError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let window = cores * AHEAD_PER_CORE;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (taken, moved) = (Mutex::new(0_usize), Condvar::new());
    let (sender, receiver) = mpsc::channel(); // bounded by the window
    thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            let sender = sender.clone();
            let (start, work, next, stop, taken, moved) = (&start, &work, &next, &stop, &taken, &moved);
            scope.spawn(move || {
                let mut state = match start() {
                    Ok(state) => state,
                    Err(error) => {
                        drop(sender.send((0, Err(error)))); // nobody listens after another failure
                        return;
                    }
                };
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else { return };
                    let mut taken = lock(taken);
                    while index >= *taken + window && !stop.load(Ordering::Acquire) {
                        taken = wait(moved, taken);
                    }
                    drop(taken);
                    if stop.load(Ordering::Acquire) || sender.send((index, work(&mut state, job))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut waiting, mut due) = (BTreeMap::new(), 0);
        let mut result = Ok(());
        'results: while due < jobs.len() {
            match receiver.recv() {
                Ok((index, Ok(done))) => drop(waiting.insert(index, done)),
                Ok((_, Err(error))) => {
                    result = Err(error);
                    break;
                }
                Err(_no_worker) => {
                    result = Err(PackError::Lost);
                    break;
                }
            }
            while let Some(done) = waiting.remove(&due) {
                if let Err(error) = take(done) {
                    result = Err(error);
                    break 'results;
                }
                due += 1;
            }
            *lock(&taken) = due;
            moved.notify_all();
        }
        // Under the lock, so that no worker misses it between its look and its wait.
        let guard = lock(&taken);
        stop.store(true, Ordering::Release);
        drop(guard);
        moved.notify_all();
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_end_it() {
        let jobs: Vec<u64> = (0..1000).collect();
        let mut taken = Vec::new();
        let result = in_order(
            &jobs,
            || Ok(()),
            |(), job| Ok(job * 2),
            |done| {
                taken.push(done);
                Ok(())
            },
        );
        result.unwrap();
        assert_eq!(taken, jobs.iter().map(|job| job * 2).collect::<Vec<_>>());

        let fails = |(): &mut (), job: &u64| if *job == 500 { Err(PackError::Lost) } else { Ok(()) };
        assert!(matches!(in_order(&jobs, || Ok(()), fails, |()| Ok(())), Err(PackError::Lost)));
        let start = || Err::<(), _>(PackError::Lost);
        assert!(matches!(in_order(&jobs, start, |(), _| Ok(()), |()| Ok(())), Err(PackError::Lost)));
        let take = |()| Err(PackError::Lost);
        assert!(matches!(in_order(&jobs, || Ok(()), |(), _| Ok(()), take), Err(PackError::Lost)));
        in_order(&[], || Ok(()), |(), _: &u64| Ok(()), |()| Err(PackError::Lost)).unwrap();
    }
}
