//! A limit on log lines that a guest can cause (XSA-130).

use crate::platform::sooner;
use core::time::Duration;

/// How many lines of one kind may be logged in an interval. More are suppressed, and counted in one line afterwards.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Lines let through in an interval.
    pub lines: u32,
    /// Length of an interval.
    pub interval: Duration,
}

/// Limits `KINDS` kinds of log lines, each on its own. Time is an argument.
#[derive(Debug)]
pub struct Limiter<const KINDS: usize> {
    limit: Limit,
    kinds: [Window; KINDS],
}

/// The current interval of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// When it began; `None` before the first line.
    start: Option<Duration>,
    admitted: u32,
    suppressed: u32,
}

impl<const KINDS: usize> Limiter<KINDS> {
    /// A limiter that has seen no line yet.
    pub const fn new(limit: Limit) -> Self {
        let window = Window {
            start: None,
            admitted: 0,
            suppressed: 0,
        };
        Self {
            limit,
            kinds: [window; KINDS],
        }
    }

    /// True if a line of `kind`, less than `KINDS`, may be logged `now`.
    pub fn admit(&mut self, kind: usize, now: Duration) -> bool {
        let limit = self.limit;
        let Some(window) = self.kinds.get_mut(kind) else {
            return false;
        };
        // A window with suppressed lines stays until `flush` has told of them: what is suppressed comes before what is new.
        if window.suppressed == 0 && window.end(limit).is_none_or(|end| end <= now) {
            // The interval begins with its first line: without lines there is nothing to time.
            *window = Window {
                start: Some(now),
                ..Window::default()
            };
        }
        if window.admitted < limit.lines {
            window.admitted += 1;
            true
        } else {
            window.suppressed = window.suppressed.saturating_add(1);
            false
        }
    }

    /// Ends the intervals that are over; calls `tell` with each kind that had suppressed lines, and their number.
    pub fn flush(&mut self, now: Duration, mut tell: impl FnMut(usize, u32)) {
        for (kind, window) in self.kinds.iter_mut().enumerate() {
            if window.suppressed > 0 && window.end(self.limit).is_some_and(|end| end <= now) {
                tell(kind, window.suppressed);
                *window = Window::default();
            }
        }
    }

    /// When [`Self::flush`] is due; `None` if nothing was suppressed.
    pub fn due(&self) -> Option<Duration> {
        let suppressing = self.kinds.iter().filter(|window| window.suppressed > 0);
        suppressing.fold(None, |due, window| sooner(due, window.end(self.limit)))
    }
}

impl Window {
    fn end(&self, limit: Limit) -> Option<Duration> {
        self.start.map(|start| start.saturating_add(limit.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const LIMIT: Limit = Limit {
        lines: 3,
        interval: Duration::from_secs(10),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn flushed<const N: usize>(limiter: &mut Limiter<N>, now: Duration) -> Vec<(usize, u32)> {
        let mut told = Vec::new();
        limiter.flush(now, |kind, count| told.push((kind, count)));
        told
    }

    #[test]
    fn a_flood_gives_a_few_lines_and_one_that_counts_the_rest() {
        let mut limiter = Limiter::<2>::new(LIMIT);
        let admitted = (0..1000).filter(|_| limiter.admit(1, at(5))).count();
        assert_eq!(admitted, 3);
        assert_eq!(limiter.due(), Some(at(15)));
        assert_eq!(flushed(&mut limiter, at(14)), []);
        assert_eq!(flushed(&mut limiter, at(15)), [(1, 997)]);
        assert_eq!(limiter.due(), None);
        assert!(limiter.admit(1, at(15)));
    }

    #[test]
    fn what_was_suppressed_is_told_before_anything_new() {
        let mut limiter = Limiter::<1>::new(LIMIT);
        while limiter.admit(0, at(5)) {}
        assert!(!limiter.admit(0, at(100)));
        assert_eq!(flushed(&mut limiter, at(100)), [(0, 2)]);
        assert!(limiter.admit(0, at(100)));
    }

    #[test]
    fn a_few_lines_now_and_then_all_come_through_and_nothing_falls_due() {
        let mut limiter = Limiter::<1>::new(LIMIT);
        for second in 0..100 {
            assert!(limiter.admit(0, at(second * 4)), "{second}");
            assert_eq!(limiter.due(), None);
        }
    }

    #[test]
    fn kinds_do_not_disturb_each_other() {
        let mut limiter = Limiter::<2>::new(LIMIT);
        while limiter.admit(0, at(0)) {}
        assert!(limiter.admit(1, at(0)));
    }
}
