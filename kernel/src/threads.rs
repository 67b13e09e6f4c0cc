//! A few threads for one batch of tasks. They live as long as the batch, so a forked process finds none missing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread::{available_parallelism, Builder};

pub const THREADS_MAX: usize = 64;
const THREADS_DEFAULT_MAX: usize = 4;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many threads a batch may use, the calling one among them.
pub fn count() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => available_parallelism()
            .map_or(1, |cores| cores.get())
            .min(THREADS_DEFAULT_MAX),
        set => set,
    }
}

/// From now on batches use `threads` threads; 0 stands for the default.
pub fn set_count(threads: usize) {
    THREADS.store(threads.min(THREADS_MAX), Ordering::Relaxed);
}

/// The results of `work` for every task, in the order of the tasks. `start` makes what a thread works with.
///
/// A thread that the system refuses is done without; the calling thread always works. A panic of one is a panic here.
pub fn run<T, W, R>(
    threads: usize,
    tasks: Vec<T>,
    start: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, T) -> R + Sync,
) -> Vec<R>
where
    T: Send,
    R: Send,
{
    let threads = threads.min(tasks.len());
    if threads <= 1 {
        let mut own = start();
        return tasks.into_iter().map(|task| work(&mut own, task)).collect();
    }
    let found: Mutex<Vec<Option<R>>> = Mutex::new(tasks.iter().map(|_| None).collect());
    let queue = Mutex::new(tasks.into_iter().enumerate());
    let drain = || {
        let mut own = start();
        loop {
            let next = queue.lock().unwrap().next();
            let Some((number, task)) = next else { break };
            let result = work(&mut own, task);
            found.lock().unwrap()[number] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if Builder::new().spawn_scoped(scope, drain).is_err() {
                break;
            }
        }
        drain();
    });
    let found = found.into_inner().unwrap();
    found.into_iter().map(|result| result.unwrap()).collect()
}
