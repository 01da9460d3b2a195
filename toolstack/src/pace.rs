//! A limit on how often a guest can have dom0 work for it.
//!
//! A guest waits for each answer, but can ask again at once, for ever. A driver has bursts, when it is bound or reads
//! product data; what goes on beyond is slowed down, so that it costs dom0 next to nothing.

use std::time::{Duration, Instant};

/// Requests that are answered as fast as they come: a driver that is bound makes some hundreds.
const BURST: u32 = 2048;
/// How long each one takes beyond that, at least.
const INTERVAL: Duration = Duration::from_millis(4);

/// The pace of one stub's requests.
#[derive(Clone, Debug)]
pub struct Pace {
    /// When the last of the requests so far would have been made at an even pace: what lies ahead of now is the part of
    /// the burst that is used up.
    due: Instant,
}

impl Pace {
    /// A full burst is left.
    pub const fn new(now: Instant) -> Self {
        Self { due: now }
    }

    /// After some requests: how long the next one has to wait.
    pub fn spend(&mut self, requests: u32, now: Instant) -> Duration {
        self.due = self.due.max(now) + INTERVAL * requests;
        self.due.saturating_duration_since(now + INTERVAL * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_waits_for_nothing_and_what_follows_for_its_turn() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
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
        let mut pace = Pace::new(start);
        for number in 0..10 * BURST {
            assert_eq!(pace.spend(1, start + INTERVAL * number), Duration::ZERO);
        }
        let later = start + INTERVAL * BURST * 100;
        assert_eq!(pace.spend(BURST, later), Duration::ZERO);
        assert_eq!(pace.spend(1, later), INTERVAL);
    }
}
