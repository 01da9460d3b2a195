//! The record of the stub's failures, which outlives a restart in place.
//!
//! A failure of the stub's own (a panic, a fault, a hang) ends a run. The next run starts as the first did and reads
//! everything else from xenstore, Xen and the devices. Nothing in this record is needed to serve: it says which requests
//! must not be tried again, and when restarting no longer helps.

use core::fmt;
use core::time::Duration;
pub use xenbus::handover_block::Op;
use xenbus::handover_block::{self, HandoverBlock};
use xenbus::pciif::layout::OP_HEAD_SIZE;

/// Failures over one and the same request before it is refused.
const STRIKES: u32 = 2;
/// How long a poison request is refused at first. The time doubles each time that it brings the stub down again. So an
/// innocent request (a host in trouble, failures with other causes) is served again soon, and a guilty one costs a restart
/// a minute at first, and fewer and fewer (decision 42).
const REFUSAL: Duration = Duration::from_secs(60);
/// The refusal is doubled so often at most: to 17 hours.
const DOUBLINGS_MAX: u32 = 10;
/// Requests that can be refused at the same time. Of more, the one whose refusal ends first is forgotten.
const POISONED_MAX: usize = handover_block::REFUSED_MAX;
/// Restarts within this time of the last one count as a burst.
const BURST: Duration = Duration::from_secs(10);
/// The pause before a restart, in milliseconds, by the number of others in the burst. The first few restarts are at once,
/// for the guest, which waits two seconds for an answer; the later pauses spare the host (decision 44).
const PAUSES_MS: [u16; RECENT] = [0, 0, 0, 0, 0, 0, 50, 400];
/// Restarts whose times are kept.
const RECENT: usize = 8;
/// Restarts of a burst without an answered request in between, after which the stub gives up.
const BARREN_MAX: u32 = 8;

/// What ended a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A panic: a broken assertion, or memory that ran out.
    Panic,
    /// An exception, by its vector.
    Fault(u8),
    /// The stub ran for too long between two waits.
    Deadline,
}

impl Cause {
    const fn raw(self) -> u32 {
        match self {
            Self::Panic => 0,
            Self::Deadline => 1,
            Self::Fault(vector) => 0x100 | vector as u32,
        }
    }

    const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Panic,
            1 => Self::Deadline,
            fault => Self::Fault(fault as u8),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic => f.write_str("a panic"),
            Self::Fault(vector) => write!(f, "fault {vector}"),
            Self::Deadline => f.write_str("a hang"),
        }
    }
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A restart in place, after this pause.
    Restart(Duration),
    /// The end of the domain: the stub fails again and again and serves nobody.
    GiveUp,
}

/// What to do with a request, by earlier failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Serve it: nothing is known of it.
    Serve,
    /// Serve it again: it was under way when the last run ended, and may be done, half done, or not done.
    ServeAgain,
    /// Refuse it: it brought the stub down twice in a row, or again after a refusal.
    Refuse,
}

/// The record. It consists of integers without padding, so that any bytes are a valid value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CrashLog {
    /// Times of the latest restarts in microseconds since boot; the newest is first.
    recent: [u64; RECENT],
    /// Until when each of `poisoned` is refused, in microseconds since boot.
    refused_until: [u64; POISONED_MAX],
    /// How often each of them brought the stub down again after its refusal.
    relapses: [u32; POISONED_MAX],
    restarts: u32,
    /// Restarts of the burst since a request was answered.
    barren: u32,
    cause: u32,
    /// Failures in a row over `suspect`.
    strikes: u32,
    /// 1: `suspect` was under way when the last run ended, and has not been served since.
    again: u32,
    /// Entries of `poisoned` in use.
    poisoned_count: u32,
    /// 1: the last run ended over a request.
    over_request: u16,
    /// 1: the handover block of the stub domain before this one has been read, or concerns nobody any more.
    inherited: u16,
    suspect: Op,
    poisoned: [Op; POISONED_MAX],
    /// The failures that dom0 has ordered.
    #[cfg(feature = "inject")]
    pub(crate) order: crate::failure::Order,
}

const _: () = {
    let order = if cfg!(feature = "inject") { 16 } else { 0 };
    let fields =
        RECENT * 8 + POISONED_MAX * (8 + 4) + 6 * 4 + 2 * 2 + (1 + POISONED_MAX) * OP_HEAD_SIZE + order;
    assert!(size_of::<CrashLog>() == fields, "no padding");
};

impl Default for CrashLog {
    fn default() -> Self {
        Self::NEW
    }
}

impl CrashLog {
    /// The record of a first run.
    pub const NEW: Self = Self {
        recent: [0; RECENT],
        refused_until: [0; POISONED_MAX],
        relapses: [0; POISONED_MAX],
        restarts: 0,
        barren: 0,
        cause: 0,
        strikes: 0,
        again: 0,
        poisoned_count: 0,
        suspect: [0; OP_HEAD_SIZE],
        poisoned: [[0; OP_HEAD_SIZE]; POISONED_MAX],
        over_request: 0,
        inherited: 0,
        #[cfg(feature = "inject")]
        order: crate::failure::Order::NONE,
    };

    /// Records that a run ends `now`, with request `op` under way if there was one; returns what follows.
    pub fn fail(&mut self, cause: Cause, now: Duration, op: Option<&Op>) -> Next {
        let now = now.as_micros() as u64;
        // `recent` holds a time for each restart, and zeros behind them.
        let burst = self.recent[..(self.restarts as usize).min(RECENT)]
            .iter()
            .filter(|&&then| now.saturating_sub(then) < BURST.as_micros() as u64)
            .count();
        // A failure long after the last one says nothing about the ones before.
        self.barren = if burst == 0 {
            1
        } else {
            self.barren.saturating_add(1)
        };
        self.restarts = self.restarts.saturating_add(1);
        self.recent.copy_within(..RECENT - 1, 1);
        self.recent[0] = now;
        self.cause = cause.raw();
        self.over_request = op.is_some().into();
        if let Some(op) = op {
            self.strike(op, now);
        }
        if self.barren > BARREN_MAX {
            return Next::GiveUp;
        }
        // `recent` holds no more than the last ones: a longer burst has the longest pause.
        let pause = PAUSES_MS[burst.min(RECENT - 1)];
        Next::Restart(Duration::from_millis(pause.into()))
    }

    /// Counts a failure over `op`, at `now` in microseconds.
    fn strike(&mut self, op: &Op, now: u64) {
        // Another request in between ends the row.
        self.strikes = self.strikes(op);
        self.suspect = *op;
        self.strikes += 1;
        self.again = 1;
        // One that was refused before had its one try.
        if self.strikes >= STRIKES || self.poisoned().contains(op) {
            // From here on the refusal counts, not the row.
            self.poison(op, now);
            self.strikes = 0;
            self.again = 0;
        }
    }

    #[inline(never)]
    fn poison(&mut self, op: &Op, now: u64) {
        let (index, relapses) = match self.index(op) {
            Some(index) => (index, (self.relapses[index] + 1).min(DOUBLINGS_MAX)),
            None => (self.room(), 0),
        };
        self.poisoned[index] = *op;
        self.refused_until[index] = now.saturating_add((REFUSAL.as_micros() as u64) << relapses);
        self.relapses[index] = relapses;
    }

    /// Where `op` is among the refused requests.
    fn index(&self, op: &Op) -> Option<usize> {
        self.poisoned().iter().position(|refused| refused == op)
    }

    /// Makes room for a refused request: where none is left, the one whose refusal ends first is forgotten.
    fn room(&mut self) -> usize {
        let count = self.poisoned().len();
        if count < POISONED_MAX {
            self.poisoned_count = count as u32 + 1;
            return count;
        }
        let untils = self.refused_until.iter().enumerate();
        untils
            .min_by_key(|(_, until)| **until)
            .map_or(0, |(index, _)| index)
    }

    /// Removes `op` from the refused requests.
    fn forgive(&mut self, op: &Op) {
        if let Some(index) = self.index(op) {
            // The order means nothing: the last one takes the free place.
            let last = self.poisoned().len() - 1;
            self.poisoned[index] = self.poisoned[last];
            self.refused_until[index] = self.refused_until[last];
            self.relapses[index] = self.relapses[last];
            self.poisoned_count = last as u32;
        }
    }

    /// True if `op` is refused at `now`. After its refusal it has one try.
    fn is_refused(&self, op: &Op, now: Duration) -> bool {
        let until = self.index(op).map(|index| self.refused_until[index]);
        until.is_some_and(|until| (now.as_micros() as u64) < until)
    }

    /// Failures in a row over this request.
    pub fn strikes(&self, op: &Op) -> u32 {
        if self.suspect == *op { self.strikes } else { 0 }
    }

    /// The requests that are refused, or whose refusal is over and that have not been answered since.
    pub fn poisoned(&self) -> &[Op] {
        &self.poisoned[..(self.poisoned_count as usize).min(POISONED_MAX)]
    }

    /// False until [`Self::inherit`]: there may be a handover block that has not been read.
    pub const fn has_inherited(&self) -> bool {
        self.inherited != 0
    }

    /// Takes over the handover block of the stub domain before this one, if it left one. The end of that domain counts as a
    /// failure over the request that was under way. Requests that it refused are refused from `now` on as if for the first
    /// time: the block has no times.
    pub fn inherit(&mut self, left: Option<&HandoverBlock>, now: Duration) {
        let now = now.as_micros() as u64;
        self.inherited = 1;
        // Before the request under way: a failure over a refused one lengthens its refusal.
        for op in left.iter().flat_map(|left| left.refused()) {
            self.poison(op, now);
        }
        if let Some((op, strikes)) = left.and_then(HandoverBlock::under_way) {
            self.suspect = *op;
            // Another domain wrote it: no more than this stub could have counted.
            self.strikes = strikes.min(STRIKES);
            self.strike(op, now);
        }
    }

    /// What to do with a request at `now`.
    pub fn advise(&self, op: &Op, now: Duration) -> Advice {
        if self.is_refused(op, now) {
            Advice::Refuse
        } else if self.again != 0 && self.suspect == *op {
            Advice::ServeAgain
        } else {
            Advice::Serve
        }
    }

    /// The request that waits to be served again, and the number of failures over it before the last one.
    pub fn pending(&self) -> Option<(&Op, u32)> {
        (self.again != 0).then_some((&self.suspect, self.strikes.saturating_sub(1)))
    }

    /// True if [`Self::answered`] would change anything.
    pub const fn is_waiting(&self) -> bool {
        self.barren != 0 || self.again != 0 || self.strikes != 0 || self.poisoned_count != 0
    }

    /// Records that a request was answered, by a refusal or otherwise.
    pub fn answered(&mut self, op: &Op, now: Duration) {
        self.barren = 0;
        // pciif has one request at a time. The guest has gone on: the one of the failure will not come again by itself.
        self.again = 0;
        if self.suspect == *op {
            self.strikes = 0;
        }
        if !self.is_refused(op, now) {
            self.forgive(op);
        }
    }

    /// Forgets all requests, also those of stub domains before: their guest has gone.
    pub fn forget_requests(&mut self) {
        (self.again, self.strikes, self.poisoned_count) = (0, 0, 0);
        self.inherited = 1;
    }

    /// How often the stub has restarted.
    pub const fn restarts(&self) -> u32 {
        self.restarts
    }

    /// What ended the last run, and when; `None` in the first one.
    pub fn last(&self) -> Option<(Cause, Duration)> {
        let when = Duration::from_micros(self.recent[0]);
        (self.restarts > 0).then_some((Cause::from_raw(self.cause), when))
    }

    /// The request that was under way when the last run ended, if one was.
    pub fn over(&self) -> Option<&Op> {
        (self.over_request != 0).then_some(&self.suspect)
    }
}

/// A request's bytes in hex, for a log.
pub struct Bytes<'a>(pub &'a Op);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const READ: Op = [1; OP_HEAD_SIZE];
    const WRITE: Op = [2; OP_HEAD_SIZE];

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_request_that_was_under_way_is_served_again_and_after_two_failures_in_a_row_refused() {
        let mut crash_log = CrashLog::NEW;
        crash_log.fail(Cause::Panic, at(1), Some(&READ));
        assert_eq!(crash_log.advise(&READ, at(2)), Advice::ServeAgain);
        assert_eq!(crash_log.advise(&WRITE, at(2)), Advice::Serve);
        assert_eq!(crash_log.over(), Some(&READ));
        crash_log.fail(Cause::Panic, at(2), Some(&READ));
        assert_eq!(crash_log.advise(&READ, at(2)), Advice::Refuse);
        assert_eq!(crash_log.advise(&WRITE, at(2)), Advice::Serve);
        crash_log.forget_requests();
        assert_eq!(crash_log.advise(&READ, at(2)), Advice::Serve, "another guest's");
    }

    #[test]
    fn a_request_that_works_the_second_time_has_its_two_tries_again() {
        let mut crash_log = CrashLog::NEW;
        for round in 0..5 {
            crash_log.fail(Cause::Fault(14), at(round), Some(&READ));
            assert_eq!(
                crash_log.advise(&READ, at(2)),
                Advice::ServeAgain,
                "round {round}"
            );
            assert!(crash_log.is_waiting());
            crash_log.answered(&READ, at(2));
            assert!(!crash_log.is_waiting());
            assert_eq!(crash_log.advise(&READ, at(2)), Advice::Serve);
        }
    }

    #[test]
    fn a_request_between_two_failures_over_another_does_not_clear_that_one() {
        let mut crash_log = CrashLog::NEW;
        crash_log.fail(Cause::Panic, at(1), Some(&READ));
        crash_log.answered(&WRITE, at(2));
        assert_eq!(
            crash_log.advise(&READ, at(2)),
            Advice::Serve,
            "the guest asks anew"
        );
        crash_log.fail(Cause::Panic, at(2), Some(&READ));
        assert_eq!(crash_log.advise(&READ, at(2)), Advice::Refuse);
    }

    #[test]
    fn failures_over_nothing_are_put_down_to_no_request() {
        let mut crash_log = CrashLog::NEW;
        crash_log.fail(Cause::Panic, at(1), Some(&READ));
        crash_log.fail(Cause::Panic, at(2), None);
        assert_eq!(crash_log.over(), None);
        assert_eq!(
            crash_log.advise(&READ, at(2)),
            Advice::ServeAgain,
            "it still lies in the page"
        );
        assert_eq!(crash_log.restarts(), 2);
        assert_eq!(crash_log.last(), Some((Cause::Panic, at(2))));
    }

    #[test]
    fn the_oldest_poison_makes_room() {
        let mut crash_log = CrashLog::NEW;
        let op = |n| [n; OP_HEAD_SIZE];
        for n in 0..=POISONED_MAX as u8 {
            crash_log.fail(Cause::Panic, at(n.into()), Some(&op(n)));
            crash_log.fail(Cause::Panic, at(n.into()), Some(&op(n)));
        }
        assert_eq!(crash_log.advise(&op(0), at(10)), Advice::Serve);
        for n in 1..=POISONED_MAX as u8 {
            assert_eq!(crash_log.advise(&op(n), at(10)), Advice::Refuse, "{n}");
        }
    }

    #[test]
    fn a_refusal_ends_after_a_minute_and_one_failure_more_doubles_it() {
        let mut crash_log = CrashLog::NEW;
        crash_log.fail(Cause::Deadline, at(1), Some(&READ));
        crash_log.fail(Cause::Deadline, at(2), Some(&READ));
        let mut until = 62;
        for refusal in [120, 240, 480] {
            assert_eq!(crash_log.advise(&READ, at(until - 1)), Advice::Refuse, "{until}");
            crash_log.answered(&READ, at(until - 1));
            crash_log.answered(&WRITE, at(until));
            assert_eq!(crash_log.advise(&READ, at(until)), Advice::Serve, "{until}");
            crash_log.fail(Cause::Deadline, at(until), Some(&READ));
            until += refusal;
        }
        assert_eq!(crash_log.poisoned(), [READ]);
        for _ in 0..100 {
            crash_log.fail(Cause::Panic, at(until), Some(&READ));
        }
        let hours = 17 * 60 * 60;
        assert_eq!(crash_log.advise(&READ, at(until + hours)), Advice::Refuse);
        assert_eq!(crash_log.advise(&READ, at(until + hours + 1_000)), Advice::Serve);
    }

    #[test]
    fn a_request_that_is_answered_after_its_refusal_is_as_good_as_any() {
        let mut crash_log = CrashLog::NEW;
        for (op, when) in [(READ, 1), (WRITE, 30)] {
            crash_log.fail(Cause::Deadline, at(when), Some(&op));
            crash_log.fail(Cause::Deadline, at(when), Some(&op));
        }
        crash_log.fail(Cause::Deadline, at(95), Some(&WRITE));
        crash_log.answered(&READ, at(100));
        assert_eq!(crash_log.poisoned(), [WRITE]);
        assert!(crash_log.is_waiting(), "for an answer to the other");
        assert_eq!(
            crash_log.advise(&WRITE, at(214)),
            Advice::Refuse,
            "of its own time"
        );
        assert_eq!(crash_log.advise(&WRITE, at(215)), Advice::Serve);
        crash_log.fail(Cause::Deadline, at(215), Some(&WRITE));
        assert_eq!(crash_log.advise(&WRITE, at(454)), Advice::Refuse, "doubled again");
        crash_log.fail(Cause::Panic, at(100), Some(&READ));
        assert_eq!(crash_log.advise(&READ, at(100)), Advice::ServeAgain);
        crash_log.answered(&READ, at(500));
        crash_log.answered(&WRITE, at(500));
        assert!(!crash_log.is_waiting());
    }

    #[test]
    fn a_burst_of_restarts_slows_down_and_without_an_answer_in_between_ends() {
        let mut crash_log = CrashLog::NEW;
        let pauses = [0, 0, 0, 0, 0, 0, 50, 400];
        for pause in pauses {
            assert_eq!(
                crash_log.fail(Cause::Panic, at(3), None),
                Next::Restart(Duration::from_millis(pause))
            );
        }
        assert_eq!(crash_log.fail(Cause::Panic, at(4), None), Next::GiveUp);
    }

    #[test]
    fn restarts_with_answers_in_between_slow_down_and_never_end() {
        let mut crash_log = CrashLog::NEW;
        for _ in 0..100 {
            assert!(matches!(
                crash_log.fail(Cause::Panic, at(3), None),
                Next::Restart(_)
            ));
            crash_log.answered(&WRITE, at(2));
        }
        let next = crash_log.fail(Cause::Panic, at(3), None);
        assert_eq!(next, Next::Restart(Duration::from_millis(400)));
        assert_eq!(
            crash_log.fail(Cause::Panic, at(13), None),
            Next::Restart(Duration::ZERO)
        );
    }

    #[test]
    fn restarts_far_apart_never_end() {
        let mut crash_log = CrashLog::NEW;
        for n in 0..100 {
            let next = crash_log.fail(Cause::Panic, at(20 * n), None);
            assert_eq!(next, Next::Restart(Duration::ZERO), "{n}");
        }
    }

    #[test]
    fn causes_are_kept_as_they_were() {
        for (cause, text) in [
            (Cause::Panic, "a panic"),
            (Cause::Fault(0), "fault 0"),
            (Cause::Fault(14), "fault 14"),
            (Cause::Deadline, "a hang"),
        ] {
            let mut crash_log = CrashLog::NEW;
            crash_log.fail(cause, at(1), None);
            assert_eq!(
                crash_log.last().map(|(cause, _)| cause.to_string()).as_deref(),
                Some(text)
            );
        }
    }
}
