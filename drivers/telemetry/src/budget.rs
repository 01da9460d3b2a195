//! A limit of the work that frames cause: a flood of them slows the network, and not the guest.

use core::time::Duration;

/// Frames that are received without a pause.
const BURST: u32 = 64;
/// After a burst, one frame in this time. Measured in `docs/telemetry.md`.
const PACE: Duration = Duration::from_micros(500);

/// A token bucket, counted in time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// When the next frame would be due if each had kept [`PACE`]. The burst is how far this may lie ahead of the clock.
    paced: Duration,
}

impl Budget {
    /// Takes up to `wanted` frames out of the budget; returns how many there are `now`.
    pub fn take(&mut self, wanted: u32, now: Duration) -> u32 {
        self.paced = self.paced.max(now);
        let room = (now + PACE * BURST).saturating_sub(self.paced);
        let granted = wanted.min((room.as_nanos() / PACE.as_nanos()) as u32);
        self.paced += PACE * granted;
        granted
    }

    /// Gives frames back that were not there.
    pub fn give_back(&mut self, frames: u32) {
        self.paced = self.paced.saturating_sub(PACE * frames);
    }

    /// When the next frame may be received; `None`: at once.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        let due = (self.paced + PACE).saturating_sub(PACE * BURST);
        (due > now).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn a_flood_gets_a_burst_and_then_the_pace() {
        let mut budget = Budget::default();
        let (mut now, mut taken) = (Duration::from_secs(9), 0);
        let end = now + Duration::from_secs(1);
        while now < end {
            taken += budget.take(8, now);
            now = budget.due(now).unwrap_or(now + at(1));
        }
        assert!((2000..=2000 + BURST).contains(&taken), "{taken}");
    }

    #[test]
    fn a_budget_that_is_used_up_says_when_to_come_back() {
        let mut budget = Budget::default();
        let now = Duration::from_secs(1);
        assert_eq!(budget.due(now), None);
        assert_eq!(budget.take(1000, now), BURST);
        assert_eq!(budget.take(1, now), 0);
        let due = budget.due(now).unwrap();
        assert_eq!(due, now + PACE);
        assert_eq!(budget.take(1, due - at(1)), 0);
        assert_eq!(budget.take(5, due), 1);
    }

    #[test]
    fn frames_that_were_not_there_cost_nothing() {
        let mut budget = Budget::default();
        let now = Duration::from_secs(1);
        for _ in 0..1000 {
            assert_eq!(budget.take(8, now), 8);
            budget.give_back(8);
        }
    }
}
