//! What `config-latency` measures in a guest.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Times of three kinds of configuration accesses.
#[derive(Serialize, Deserialize)]
pub struct Latency {
    /// Reads of 4 bytes.
    pub read4: Percentiles,
    /// Writes of 1 byte that change the register.
    pub write1: Percentiles,
    /// Writes of 1 byte that change nothing.
    pub write1_same: Percentiles,
}

/// How long accesses took, in microseconds.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of them took no longer.
    pub p50: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// How many accesses there were.
    pub rounds: usize,
}

impl Percentiles {
    /// Those of `times`; `None` if there are none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        let at = |share: f64| times[(last as f64 * share).round() as usize].as_secs_f64() * 1e6;
        Some(Self {
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
            rounds: times.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_times_in_order() {
        let times = (0..=100).rev().map(Duration::from_micros);
        let percentiles = Percentiles::of(times.collect()).unwrap();
        let microseconds = [percentiles.p50, percentiles.p99, percentiles.max].map(f64::round);
        assert_eq!((microseconds, percentiles.rounds), ([50.0, 99.0, 100.0], 101));
        assert_eq!(Percentiles::of(Vec::new()), None);
    }
}
