//! Jobs that run a few at a time. The others wait, and run in the order in which they came.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

type Job = Box<dyn FnOnce() + Send>;

/// The jobs that run, and those that wait.
pub struct Queue {
    /// Limit of jobs that run at once.
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: VecDeque<Job>,
}

impl Queue {
    /// An empty queue; `limit` jobs may run at once.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
        }
    }

    /// Adds a job. It fails only if it could run at once and there is no thread for it.
    pub fn add(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.lock();
        if state.running >= self.limit {
            state.waiting.push_back(Box::new(job));
            return Ok(());
        }
        let queue = Arc::clone(self);
        thread::Builder::new().spawn(move || queue.work(Box::new(job)))?;
        state.running += 1;
        Ok(())
    }

    /// True if no job runs; then none waits either.
    pub fn is_idle(&self) -> bool {
        self.lock().running == 0
    }

    /// Runs this job, and then those that wait.
    fn work(&self, first: Job) {
        let mut next = Some(first);
        while let Some(job) = next {
            job();
            next = self.next();
        }
    }

    /// The next job for a thread that has finished one. A thread without a next one ends.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running -= 1;
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs while the lock is held, so the state is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn jobs_beyond_the_limit_wait_and_run_in_their_order() {
        let queue = Arc::new(Queue::new(1));
        let (go_on, gate) = channel::<()>();
        let (sender, done) = channel();
        queue.add(move || gate.recv().unwrap()).unwrap();
        for number in 0..100 {
            let sender = sender.clone();
            queue.add(move || sender.send(number).unwrap()).unwrap();
        }
        assert!(done.recv_timeout(SOON).is_err(), "the first job still runs");
        assert!(!queue.is_idle());
        go_on.send(()).unwrap();
        let order: Vec<i32> = (0..100).map(|_| done.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        while !queue.is_idle() {
            thread::yield_now();
        }
    }

    #[test]
    fn jobs_within_the_limit_run_side_by_side() {
        let queue = Arc::new(Queue::new(2));
        let (first, second) = (channel::<()>(), channel::<()>());
        // Each needs the other to run.
        queue
            .add(move || {
                first.0.send(()).unwrap();
                second.1.recv_timeout(LONG).unwrap();
            })
            .unwrap();
        queue
            .add(move || {
                first.1.recv_timeout(LONG).unwrap();
                second.0.send(()).unwrap();
            })
            .unwrap();
        while !queue.is_idle() {
            thread::yield_now();
        }
    }
}
