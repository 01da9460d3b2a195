//! Failures of the stub while it served the network. After a few of them the network is given up, so that a fault in its
//! code costs the network and not the guest.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

/// So many failures ...
pub const STRIKES: usize = 3;
/// ... within this time are too many.
pub const WITHIN: Duration = Duration::from_secs(60);
/// So many are too many however far they are apart: each interrupts the guest's requests for a moment.
pub const STRIKES_EVER: u32 = 16;

/// Values that memory does not hold by accident.
const UNDER_WAY: u32 = 0x6e65_7477;
const GIVEN_UP: u32 = 0x6f66_6621;

/// What [`Strikes::open`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The network is served.
    Serve,
    /// The last run failed while it served the network. The network is served again.
    ServeAgain,
    /// It is not served any more.
    GiveUp,
}

/// The record of these failures, for kept memory. Zero memory is an empty record. A record that something has overwritten
/// costs the network at worst.
#[derive(Debug)]
pub struct Strikes {
    /// [`UNDER_WAY`] while the network is served, [`GIVEN_UP`] at the end.
    state: AtomicU32,
    /// When the last failures were found, in microseconds since boot; 0: none.
    times: [AtomicU64; STRIKES],
    /// How many failures there were.
    ever: AtomicU32,
}

impl Default for Strikes {
    fn default() -> Self {
        Self::new()
    }
}

impl Strikes {
    /// No failure.
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            times: [const { AtomicU64::new(0) }; STRIKES],
            ever: AtomicU32::new(0),
        }
    }

    /// Judges the past at the start of a run.
    pub fn open(&self, now: Duration) -> Verdict {
        match self.state.load(Ordering::Relaxed) {
            GIVEN_UP => return Verdict::GiveUp,
            UNDER_WAY => self.leave(),
            _ => return Verdict::Serve,
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // The oldest one makes place.
        for index in 1..STRIKES {
            let next = self.times[index].load(Ordering::Relaxed);
            self.times[index - 1].store(next, Ordering::Relaxed);
        }
        self.times[STRIKES - 1].store(micros(now).max(1), Ordering::Relaxed);
        let recent = self
            .times
            .iter()
            .map(|time| time.load(Ordering::Relaxed))
            .filter(|&time| time != 0 && micros(now).saturating_sub(time) <= micros(WITHIN));
        let ever = self.ever.fetch_add(1, Ordering::Relaxed) + 1;
        if recent.count() < STRIKES && ever < STRIKES_EVER {
            return Verdict::ServeAgain;
        }
        self.state.store(GIVEN_UP, Ordering::Relaxed);
        Verdict::GiveUp
    }

    /// The network is served from here on.
    pub fn enter(&self) {
        self.state.store(UNDER_WAY, Ordering::Release);
    }

    /// It is not served any more for now.
    pub fn leave(&self) {
        self.state.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fail(strikes: &Strikes, now: u64) -> Verdict {
        strikes.enter();
        strikes.open(at(now))
    }

    #[test]
    fn the_third_failure_in_a_minute_is_the_last() {
        let strikes = Strikes::new();
        assert_eq!(strikes.open(at(0)), Verdict::Serve);
        assert_eq!(fail(&strikes, 0), Verdict::ServeAgain);
        assert_eq!(fail(&strikes, 59), Verdict::ServeAgain);
        assert_eq!(fail(&strikes, 60), Verdict::GiveUp);
        assert_eq!(strikes.open(at(100_000)), Verdict::GiveUp);
    }

    #[test]
    fn failures_far_apart_are_forgiven() {
        let strikes = Strikes::new();
        for number in 1..u64::from(STRIKES_EVER) {
            assert_eq!(fail(&strikes, number * 31), Verdict::ServeAgain);
        }
        assert_eq!(fail(&strikes, 100_000), Verdict::GiveUp, "but not for ever");
    }

    #[test]
    fn a_failure_outside_of_the_network_is_none_of_its() {
        let strikes = Strikes::new();
        for second in 0..10 {
            strikes.enter();
            strikes.leave();
            assert_eq!(strikes.open(at(second)), Verdict::Serve);
        }
    }
}
