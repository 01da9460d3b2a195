//! How long to look for the next request before sleeping.
//!
//! Guests write configuration space in bursts, and every wake-up of a process in dom0 crosses Xen
//! several times. So after a request the service looks at the page for a while. How long is learnt:
//! as long as requests keep coming within the time, it looks; a burst that ends costs one look in
//! vain, and repeated vain looks make them rarer.

use std::time::Duration;

/// The longest look. Longer gaps than this are no burst.
pub const LONGEST: Duration = Duration::from_micros(100);
/// After how many vain looks in a row looking is given up for a while.
const PATIENCE: u32 = 4;
/// Every how many requests it is then tried again.
const RETRY: u32 = 64;

/// The rule by which one attachment spins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spin {
    vain: u32,
    skipped: u32,
}

impl Spin {
    /// How long to look after the request that was just answered.
    pub fn time(&mut self) -> Duration {
        if self.vain < PATIENCE {
            return LONGEST;
        }
        self.skipped += 1;
        if self.skipped < RETRY {
            return Duration::ZERO;
        }
        self.skipped = 0;
        LONGEST
    }

    /// Notes whether the look found a request.
    pub fn looked(&mut self, found: bool) {
        self.vain = if found { 0 } else { self.vain.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_requests_keep_coming_it_looks() {
        let mut spin = Spin::default();
        for _ in 0..100 {
            assert_eq!(spin.time(), LONGEST);
            spin.looked(true);
        }
    }

    #[test]
    fn after_some_vain_looks_it_looks_rarely() {
        let mut spin = Spin::default();
        let looks = (0..PATIENCE + 10 * RETRY).filter(|_| {
            let look = spin.time() > Duration::ZERO;
            if look {
                spin.looked(false);
            }
            look
        });
        assert_eq!(looks.count() as u32, PATIENCE + 10);
    }

    #[test]
    fn one_find_makes_it_look_again() {
        let mut spin = Spin {
            vain: 1000,
            skipped: RETRY - 1,
        };
        assert_eq!(spin.time(), LONGEST);
        spin.looked(true);
        assert_eq!(spin.time(), LONGEST);
    }
}
