//! The service's limit on log messages that a stub or a guest can cause (XSA-130, XSA-157).

use std::time::{Duration, Instant};

/// Messages allowed in a burst.
const BURST: u32 = 10;
/// Time after which one more is allowed.
const REFILL: Duration = Duration::from_secs(5);

/// Allows a burst of messages, then one each [`REFILL`]. Time is an argument.
#[derive(Clone, Debug)]
pub struct LogLimit {
    left: u32,
    refilled: Instant,
    suppressed: u64,
}

impl LogLimit {
    /// A limit of which nothing is used up.
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            refilled: now,
            suppressed: 0,
        }
    }

    /// If a message may be logged now, returns how many before it were not.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        let waited = now.saturating_duration_since(self.refilled);
        let due = u32::try_from(waited.as_secs() / REFILL.as_secs())
            .unwrap_or(BURST)
            .min(BURST);
        // The time since the last refill counts on until it is worth a message.
        if due > 0 {
            self.left = (self.left + due).min(BURST);
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed = self.suppressed.saturating_add(1);
                None
            }
        }
    }
}

/// Logs a message as `log::log!` does, if the limit allows it now, with the device as a field if it is about one. The message tells how many before it were not logged.
macro_rules! log_limited {
    ($limit:expr, $level:expr, DEVICE = $device:expr; $($message:tt)+) => {{
        let allowed = $limit.allow(std::time::Instant::now());
        if let Some(suppressed) = allowed {
            let more = $crate::serve::log_limit::more(suppressed);
            log::log!($level, DEVICE:% = $device; "{}{more}", format_args!($($message)+));
        }
    }};
    ($limit:expr, $level:expr, $($message:tt)+) => {{
        // A statement of its own: a lock that `$limit` takes is not held while the message is written.
        let allowed = $limit.allow(std::time::Instant::now());
        if let Some(suppressed) = allowed {
            let more = $crate::serve::log_limit::more(suppressed);
            log::log!($level, "{}{more}", format_args!($($message)+));
        }
    }};
}

pub(super) use log_limited;

/// The end of a message before which so many were not logged.
pub(super) fn more(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        suppressed => format!(" (and {suppressed} messages not shown)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_in_a_while_which_tells_of_the_rest() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        let passed = (0..1000).filter(|_| limit.allow(start) == Some(0)).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(limit.allow(start + REFILL), Some(990));
        assert_eq!(limit.allow(start + REFILL), None);
    }

    #[test]
    fn a_message_tells_how_many_before_it_were_left_out() {
        assert_eq!(more(0), "");
        assert_eq!(more(3), " (and 3 messages not shown)");
    }

    #[test]
    fn a_long_silence_allows_no_more_than_a_burst() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        let later = start + REFILL * 100_000;
        let passed = (0..1000).filter(|_| limit.allow(later).is_some()).count();
        assert_eq!(passed, BURST as usize);
    }
}
