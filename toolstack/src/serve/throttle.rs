//! A limit on how often a guest can have dom0 work for it.
//!
//! A guest waits for each answer, but can ask again at once, for ever. A driver has bursts, when it is bound or reads
//! product data; what goes on beyond is slowed down, so that it costs dom0 next to nothing.

use std::time::{Duration, Instant};

/// How often something may be done.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// So often at once.
    burst: u32,
    /// How long each time takes beyond that, at least.
    interval: Duration,
}

impl Limit {
    /// A stub's requests: a driver that is bound makes some hundreds.
    pub const REQUESTS: Self = Self {
        burst: 2048,
        interval: Duration::from_millis(4),
    };
    /// Looks at a stub, which each change of its state brings about.
    pub const STUB_TURNS: Self = Self {
        burst: 40,
        interval: Duration::from_millis(100),
    };
}

/// The pace at which something is done that a guest brings about.
#[derive(Clone, Debug)]
pub struct Throttle {
    limit: Limit,
    /// When the last time so far would have been at an even pace: what lies ahead of now is the part of
    /// the burst that is used up.
    due: Instant,
}

impl Throttle {
    /// A full burst is left.
    pub const fn new(limit: Limit, now: Instant) -> Self {
        Self { limit, due: now }
    }

    /// After some times: how long the next one has to wait.
    pub fn spend(&mut self, times: u32, now: Instant) -> Duration {
        let Limit { burst, interval } = self.limit;
        self.due = self.due.max(now) + interval * times;
        self.due.saturating_duration_since(now + interval * burst)
    }
}

/// Requests that are answered in a row, while others wait for what is shared with them.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    began: Instant,
    answered: u32,
}

impl Burst {
    /// The most requests in a row.
    const MOST: u32 = 256;
    /// The longest that others wait, and one request more: `bulkhead status` is among them. Most requests take
    /// microseconds, but one that changes the interrupt mode takes milliseconds.
    const LONGEST: Duration = Duration::from_millis(20);

    /// Begins one.
    pub const fn new(now: Instant) -> Self {
        Self {
            began: now,
            answered: 0,
        }
    }

    /// True if there may be one more. The first one always may.
    pub fn goes_on(&self, now: Instant) -> bool {
        self.answered == 0 || self.answered < Self::MOST && now.duration_since(self.began) < Self::LONGEST
    }

    /// One more was answered.
    pub const fn count(&mut self) {
        self.answered += 1;
    }

    /// How many there were.
    pub const fn answered(&self) -> u32 {
        self.answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_by_number_or_by_time_but_never_before_its_first() {
        let start = Instant::now();
        let mut quick = Burst::new(start);
        while quick.goes_on(start + Burst::LONGEST / 2) {
            quick.count();
        }
        assert_eq!(quick.answered(), Burst::MOST);

        let mut slow = Burst::new(start);
        let mut now = start + 2 * Burst::LONGEST;
        while slow.goes_on(now) {
            slow.count();
            now += Burst::LONGEST / 4;
        }
        assert_eq!(slow.answered(), 1);
        now = start;
        let mut slow = Burst::new(start);
        while slow.goes_on(now) {
            slow.count();
            now += Burst::LONGEST / 4;
        }
        assert_eq!(slow.answered(), 4);
    }

    const BURST: u32 = Limit::REQUESTS.burst;
    const INTERVAL: Duration = Limit::REQUESTS.interval;

    #[test]
    fn a_burst_waits_for_nothing_and_what_follows_for_its_turn() {
        let start = Instant::now();
        let mut pace = Throttle::new(Limit::REQUESTS, start);
        for _ in 0..BURST {
            assert_eq!(pace.spend(1, start), Duration::ZERO);
        }
        assert_eq!(pace.spend(1, start), INTERVAL);
        // It has waited: again its turn, and no more.
        assert_eq!(pace.spend(1, start + INTERVAL), INTERVAL);
        assert_eq!(pace.spend(3, start + INTERVAL * 2), INTERVAL * 3);
    }

    #[test]
    fn who_keeps_to_the_pace_never_waits_and_saves_up_one_burst_at_most() {
        let start = Instant::now();
        let mut pace = Throttle::new(Limit::REQUESTS, start);
        for number in 0..10 * BURST {
            assert_eq!(pace.spend(1, start + INTERVAL * number), Duration::ZERO);
        }
        let later = start + INTERVAL * BURST * 100;
        assert_eq!(pace.spend(BURST, later), Duration::ZERO);
        assert_eq!(pace.spend(1, later), INTERVAL);
    }
}
