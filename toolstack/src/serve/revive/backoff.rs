//! Whether and when a dead stub is brought back. Time is an argument.

use std::time::Duration;

/// A stub that dies sooner than this after its return has died early. On a slow host, one that dies sooner than its return
/// took.
pub const EARLY_DEATH: Duration = Duration::from_secs(3);
/// Delay before the next return, by the number of early deaths in a row. When these are used up, the stub stays dead.
///
/// pcifront waits two seconds for an answer. The first delays are short enough that an access succeeds all the same.
const DELAYS: [Duration; 5] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// What to do about a stub that has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Bring the stub back, after this long.
    After(Duration),
    /// Leave it dead. It would only die again.
    GiveUp,
}

/// Returns and deaths of one stub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// When it returned, on a clock of the caller's; `None` if it was not brought back since its last death.
    since: Option<Duration>,
    /// How long that return took.
    took: Duration,
    /// Early deaths in a row, failed attempts to bring it back included.
    early_deaths: usize,
    /// Number of returns.
    revivals: u64,
}

impl Backoff {
    /// It was brought back, which took this long.
    pub fn returned(&mut self, now: Duration, took: Duration) {
        self.since = Some(now);
        self.took = took;
        self.revivals += 1;
    }

    /// It has died. Without a return before, that is no early death.
    pub fn died(&mut self, now: Duration) -> Decision {
        let since = self.since.take();
        // A death long after the return says that returning helps: the count starts again.
        let short = since.is_some_and(|since| now.saturating_sub(since) < EARLY_DEATH.max(self.took));
        self.early_deaths = if short { self.early_deaths + 1 } else { 0 };
        self.decide()
    }

    /// An attempt to bring it back has failed.
    pub fn failed(&mut self) -> Decision {
        self.early_deaths += 1;
        self.decide()
    }

    fn decide(&self) -> Decision {
        match DELAYS.get(self.early_deaths) {
            Some(&delay) => Decision::After(delay),
            None => Decision::GiveUp,
        }
    }

    /// Early deaths in a row.
    pub fn early_deaths(&self) -> usize {
        self.early_deaths
    }

    /// Number of returns.
    pub fn revivals(&self) -> u64 {
        self.revivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_stub_that_is_killed_now_and_then_comes_back_at_once_each_time() {
        let mut backoff = Backoff::default();
        for round in 0..1000 {
            let now = seconds(f64::from(round) * 4.0);
            assert_eq!(backoff.died(now), Decision::After(Duration::ZERO));
            backoff.returned(now + seconds(0.5), seconds(0.5));
        }
        assert_eq!(backoff.revivals(), 1000);
    }

    #[test]
    fn one_that_dies_again_and_again_is_waited_for_longer_each_time_and_given_up_in_the_end() {
        let mut backoff = Backoff::default();
        let mut now = Duration::ZERO;
        let mut waited = Vec::new();
        while let Decision::After(delay) = backoff.died(now) {
            waited.push(delay);
            backoff.returned(now + delay, delay);
            now += delay + seconds(1.0);
        }
        assert_eq!(waited, DELAYS);
        assert_eq!(backoff.revivals(), 5);
    }

    #[test]
    fn on_a_slow_host_a_life_is_short_if_the_return_took_longer() {
        let mut backoff = Backoff::default();
        let mut now = Duration::ZERO;
        while let Decision::After(_) = backoff.died(now) {
            backoff.returned(now + seconds(5.0), seconds(5.0));
            now += seconds(5.0 + 4.9);
            assert!(backoff.revivals() <= 5);
        }
        backoff.returned(now, seconds(5.0));
        assert_eq!(backoff.died(now + seconds(5.0)), Decision::After(Duration::ZERO));
    }

    #[test]
    fn one_that_cannot_be_created_is_given_up_as_well() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.died(Duration::ZERO), Decision::After(Duration::ZERO));
        let decisions: Vec<_> = DELAYS.iter().map(|_| backoff.failed()).collect();
        let (last, before) = decisions.split_last().unwrap();
        assert_eq!(*last, Decision::GiveUp);
        assert!(!before.contains(&Decision::GiveUp));
        assert_eq!(backoff.revivals(), 0);
    }

    #[test]
    fn a_life_that_lasted_makes_the_short_ones_before_it_forgotten() {
        let mut backoff = Backoff::default();
        backoff.died(Duration::ZERO);
        for _ in 0..4 {
            backoff.returned(Duration::ZERO, Duration::ZERO);
            backoff.died(seconds(1.0));
        }
        assert_eq!(backoff.early_deaths(), 4);
        backoff.returned(seconds(2.0), seconds(1.0));
        assert_eq!(backoff.died(seconds(5.0)), Decision::After(Duration::ZERO));
        assert_eq!(backoff.early_deaths(), 0);
    }
}
