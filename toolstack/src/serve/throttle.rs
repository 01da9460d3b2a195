//! Limits on how often a guest can have dom0 work for it.
//!
//! A guest waits for each answer, but can ask again at once, for ever. A driver has bursts, when it is bound or reads product
//! data. What goes on beyond a burst is slowed down, so that it costs dom0 next to nothing.

use std::time::{Duration, Instant};

/// A burst, and a rate for what follows.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Number that is not delayed.
    burst: u32,
    /// Shortest time for each one beyond that.
    interval: Duration,
}

impl Limit {
    /// Requests of a stub. A driver that is bound makes some hundreds.
    pub const REQUESTS: Self = Self {
        burst: 2048,
        interval: Duration::from_millis(4),
    };
    /// Turns of a stub in the service's loop. Each change of its nodes asks for one.
    pub const STUB_TURNS: Self = Self {
        burst: 40,
        interval: Duration::from_millis(100),
    };
}

/// Applies a [`Limit`]. Time is an argument.
#[derive(Clone, Debug)]
pub struct Throttle {
    limit: Limit,
    /// When the last one so far would have been done at the even rate. What lies ahead of now is the used part of the burst.
    due: Instant,
}

impl Throttle {
    /// Nothing of the burst is used up.
    pub const fn new(limit: Limit, now: Instant) -> Self {
        Self { limit, due: now }
    }

    /// Counts `times`, and returns how long the next one has to wait.
    pub fn spend(&mut self, times: u32, now: Instant) -> Duration {
        let Limit { burst, interval } = self.limit;
        // Time that was not used is not saved up beyond one burst.
        self.due = self.due.max(now) + interval * times;
        self.due.saturating_duration_since(now + interval * burst)
    }
}

/// Requests that are answered in a row, while other threads wait for the lock.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    began: Instant,
    answered: u32,
}

impl Burst {
    /// Most requests in a row.
    const MOST: u32 = 256;
    /// Time after which no further request is begun. `bulkhead status` is among those that wait. Most requests take
    /// microseconds; one that changes the interrupt mode takes milliseconds.
    const LONGEST: Duration = Duration::from_millis(20);

    /// A burst that begins now.
    pub const fn new(now: Instant) -> Self {
        Self {
            began: now,
            answered: 0,
        }
    }

    /// True if another request may be answered. The first one always may.
    pub fn goes_on(&self, now: Instant) -> bool {
        self.answered < Self::MOST && now.duration_since(self.began) < Self::LONGEST
    }

    /// One more was answered.
    pub const fn count(&mut self) {
        self.answered += 1;
    }

    /// Number of requests answered.
    pub const fn answered(&self) -> u32 {
        self.answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_by_number_or_by_time() {
        // How many requests are answered, if each takes so long.
        let answered = |each: Duration| {
            let start = Instant::now();
            let mut burst = Burst::new(start);
            loop {
                burst.count();
                if !burst.goes_on(start + each * burst.answered()) {
                    return burst.answered();
                }
            }
        };
        assert_eq!(answered(Duration::ZERO), Burst::MOST);
        assert_eq!(answered(2 * Burst::LONGEST), 1);
        assert_eq!(answered(Burst::LONGEST / 4), 4);
        assert_eq!(answered(Burst::LONGEST / 4 + Duration::from_micros(1)), 4);
        assert_eq!(answered(Burst::LONGEST / 4 - Duration::from_micros(1)), 5);
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
