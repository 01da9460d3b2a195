//! Many times of one thing, in figures.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// How long something took: half of all took no longer than `p50`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The shortest.
    pub min: Duration,
    /// Half of them.
    pub p50: Duration,
    /// Nine of ten.
    pub p90: Duration,
    /// The longest.
    pub max: Duration,
}

impl Spread {
    /// That of `times`; `None` if there are none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        Some(Self {
            min: times[0],
            p50: times[last / 2],
            p90: times[last * 9 / 10],
            max: times[last],
        })
    }
}

/// Nanoseconds: `min p50 p90 max`.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [min, p50, p90, max] = [self.min, self.p50, self.p90, self.max].map(|time| time.as_nanos());
        write!(f, "{min} {p50} {p90} {max}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_spread_is_that_of_the_times_in_order() {
        let times = (1..=101).rev().map(Duration::from_nanos).collect();
        let spread = Spread::of(times).unwrap();
        assert_eq!(spread.to_string(), "1 51 91 101");
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
