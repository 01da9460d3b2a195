//! How long a request that needs dom0 waits after a restart.
//!
//! dom0's service needs some time until it has the new page. The guest waits meanwhile, perhaps since before the failure,
//! and Linux's pcifront gives up after 2 s. Until then it can still be told an error.

use crate::crash_log::{Cause, CrashLog};
use crate::hops::second::{ANSWER_TIME, TIMEOUT};
use crate::platform::WORK_LIMIT;
use core::time::Duration;

/// The waiting of requests after a restart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hold {
    /// Until when requests that need dom0 wait for its service. Without it they fail at once where there is no service.
    until: Option<Duration>,
    /// When a request that has waited is to be answered.
    answer_by: Duration,
    /// A request of the guest has waited, perhaps since before the failure.
    pub waited: bool,
}

impl Hold {
    /// A connection comes into service. `waits`: the guest's request is there already.
    pub fn begin(crash_log: &CrashLog, waits: bool) -> Self {
        let Some((cause, failed)) = crash_log.last() else {
            return Self::default();
        };
        // What has hung has run for so long before the failure.
        let before = if cause == Cause::Deadline {
            WORK_LIMIT
        } else {
            Duration::ZERO
        };
        Self {
            until: None,
            answer_by: failed.saturating_add(TIMEOUT + ANSWER_TIME - before),
            waited: waits,
        }
    }

    /// What needs dom0 waits for its service from here on, as long as there is time.
    pub fn start(&mut self) {
        self.until = Some(self.answer_by.saturating_sub(ANSWER_TIME));
    }

    /// xenstore is followed.
    pub fn end(&mut self) {
        self.until = None;
    }

    /// Until when what needs dom0 waits; `None` if it does not, or not any more.
    pub fn until(&self, now: Duration) -> Option<Duration> {
        self.until.filter(|&until| now < until)
    }

    /// When the request that waits is to be looked at again; `None` if there is none.
    pub fn due(&self) -> Option<Duration> {
        self.waited.then(|| self.until.unwrap_or_default())
    }

    /// When the request that is taken `now` is to be answered.
    pub fn deadline(&self, now: Duration) -> Duration {
        // From when the request was taken, not from when it is posted: the guest waits since then.
        let deadline = now.saturating_add(TIMEOUT);
        // Later than that the guest has given up: the request is another one.
        match self.waited && now < self.answer_by {
            true => deadline.min(self.answer_by),
            false => deadline,
        }
    }
}
