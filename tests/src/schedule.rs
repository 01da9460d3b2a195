//! In which order scenarios run, and how long.

use crate::scenario::Scenario;
use images::Suite;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// How long after the limit scenarios that failed may still be started a second time.
const GRACE: Duration = Duration::from_secs(5 * 60);

/// A moment after which no scenario is started.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimit(Option<Instant>);

impl TimeLimit {
    /// So many minutes after `start`; without minutes there is no limit.
    pub fn after(start: Instant, minutes: Option<u64>) -> Self {
        Self(minutes.map(|minutes| start + Duration::from_secs(minutes * 60)))
    }

    /// No scenario is to be started at `now`.
    pub fn is_over(self, now: Instant) -> bool {
        self.0.is_some_and(|end| now >= end)
    }

    /// The limit on second runs.
    #[must_use]
    pub fn for_second_runs(self) -> Self {
        Self(self.0.map(|end| end + GRACE))
    }

    /// Whether there is a limit at all.
    pub fn exists(self) -> bool {
        self.0.is_some()
    }
}

/// The scenarios that run side by side, one kind after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// With `#: first`.
    first: bool,
    /// For several processors: one runs alone, so that it gets them.
    wide: bool,
}

impl Batch {
    /// All batches, in the order in which they run.
    pub const ALL: [Batch; 4] = [
        Batch::new(true, true),
        Batch::new(true, false),
        Batch::new(false, true),
        Batch::new(false, false),
    ];

    const fn new(first: bool, wide: bool) -> Self {
        Self { first, wide }
    }

    /// The batch of a scenario.
    pub fn of(scenario: &Scenario) -> Self {
        Self::new(scenario.first, scenario.cpus > 1)
    }

    /// How many of its scenarios run at once, on so many processors.
    pub fn width(self, processors: usize) -> usize {
        if self.wide { 1 } else { processors }
    }
}

/// The place of a scenario in its batch: the lowest runs first.
///
/// Without a time limit the longest comes first, so that no long one runs alone in the end. With one, those that there may
/// be no time for come in an order that each `commit` draws anew: what one run leaves out, another has.
pub fn place(scenario: &Scenario, suite: Suite, limit: TimeLimit, commit: &str) -> u64 {
    if scenario.first || !limit.exists() {
        return u64::MAX - scenario.timeout.as_secs();
    }
    let mut hasher = DefaultHasher::new();
    (commit, suite.name(), &scenario.name).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    #[test]
    fn a_limit_ends_the_starts_and_a_little_later_the_second_ones() {
        let start = Instant::now();
        let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let limit = TimeLimit::after(start, Some(60));
        assert!(!limit.is_over(minutes(59)) && limit.is_over(minutes(60)));
        let second = limit.for_second_runs();
        assert!(!second.is_over(minutes(64)) && second.is_over(minutes(65)));
        assert!(!TimeLimit::after(start, None).is_over(minutes(10_000)));
    }

    #[test]
    fn every_scenario_is_in_one_batch_and_some_are_in_the_first() {
        let scenarios = scenario::all().unwrap();
        for scenario in &scenarios {
            let batches = Batch::ALL.iter().filter(|batch| **batch == Batch::of(scenario));
            assert_eq!(batches.count(), 1, "{}", scenario.name);
        }
        assert!(scenarios.iter().any(|scenario| scenario.first));
        assert!(!scenarios.iter().any(|scenario| scenario.first && scenario.costly));
    }

    #[test]
    fn another_commit_draws_another_order_and_the_same_one_the_same() {
        let scenarios = scenario::all().unwrap();
        let limit = TimeLimit::after(Instant::now(), Some(60));
        let order = |commit| {
            let mut names: Vec<&str> = scenarios
                .iter()
                .filter(|scenario| !scenario.first)
                .map(|scenario| scenario.name.as_str())
                .collect();
            let scenario = |name: &str| scenarios.iter().find(|scenario| scenario.name == name).unwrap();
            names.sort_by_key(|name| place(scenario(name), Suite::Trixie, limit, commit));
            names
        };
        assert_eq!(order("one"), order("one"));
        assert_ne!(order("one"), order("two"));
    }
}
