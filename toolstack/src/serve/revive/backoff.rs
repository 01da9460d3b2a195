//! Whether, and when, a dead stub is brought back. Pure: the time comes in.

use std::time::Duration;

/// A life that ends sooner than this after its beginning counts as short.
pub const SHORT_LIFE: Duration = Duration::from_secs(3);
/// What is waited after so many short lives in a row, counted from the first one. When these are used up, the stub
/// stays dead.
///
/// The guest's access waits two seconds in all, so the first delays let it succeed all the same.
const DELAYS: [Duration; 5] = [
    Duration::ZERO,
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Bring the stub back, after this long.
    After(Duration),
    /// Do not: it would only die again.
    GiveUp,
}

/// The lives of a stub, as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lives {
    /// When the last one began, on a clock of the caller's; `None` for one that was not seen to begin.
    begun: Option<Duration>,
    /// Short lives in a row.
    short: usize,
    /// How often it was brought back.
    revivals: u64,
}

impl Lives {
    /// A life begins at `now`.
    pub fn begin(&mut self, now: Duration) {
        self.begun = Some(now);
        self.revivals += 1;
    }

    /// It has ended. One whose beginning nobody saw was long.
    pub fn end(&mut self, now: Duration) -> Decision {
        let begun = self.begun.take();
        let short = begun.is_some_and(|begun| now.saturating_sub(begun) < SHORT_LIFE);
        self.short = if short { self.short + 1 } else { 0 };
        self.decide()
    }

    /// It could not begin.
    pub fn fail(&mut self) -> Decision {
        self.short += 1;
        self.decide()
    }

    fn decide(&self) -> Decision {
        match DELAYS.get(self.short) {
            Some(&delay) => Decision::After(delay),
            None => Decision::GiveUp,
        }
    }

    /// Short lives in a row.
    pub fn short(&self) -> usize {
        self.short
    }

    /// How often it was brought back.
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
        let mut lives = Lives::default();
        for round in 0..1000 {
            let now = seconds(f64::from(round) * 4.0);
            assert_eq!(lives.end(now), Decision::After(Duration::ZERO));
            lives.begin(now + seconds(0.5));
        }
        assert_eq!(lives.revivals(), 1000);
    }

    #[test]
    fn one_that_dies_again_and_again_is_waited_for_longer_each_time_and_given_up_in_the_end() {
        let mut lives = Lives::default();
        let mut now = Duration::ZERO;
        let mut waited = Vec::new();
        while let Decision::After(delay) = lives.end(now) {
            waited.push(delay);
            lives.begin(now + delay);
            now += delay + seconds(1.0);
        }
        assert_eq!(waited, DELAYS);
        assert_eq!(lives.revivals(), 5);
    }

    #[test]
    fn one_that_cannot_be_created_is_given_up_as_well() {
        let mut lives = Lives::default();
        assert_eq!(lives.end(Duration::ZERO), Decision::After(Duration::ZERO));
        let decisions: Vec<_> = DELAYS.iter().map(|_| lives.fail()).collect();
        let (last, before) = decisions.split_last().unwrap();
        assert_eq!(*last, Decision::GiveUp);
        assert!(!before.contains(&Decision::GiveUp));
        assert_eq!(lives.revivals(), 0);
    }

    #[test]
    fn a_life_that_lasted_makes_the_short_ones_before_it_forgotten() {
        let mut lives = Lives::default();
        lives.end(Duration::ZERO);
        for _ in 0..4 {
            lives.begin(Duration::ZERO);
            lives.end(seconds(1.0));
        }
        assert_eq!(lives.short(), 4);
        lives.begin(seconds(2.0));
        assert_eq!(lives.end(seconds(5.0)), Decision::After(Duration::ZERO));
        assert_eq!(lives.short(), 0);
    }
}
