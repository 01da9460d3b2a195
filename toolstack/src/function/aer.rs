//! Decides what is done about an error of a device, step by step. It acts on nothing itself.
//!
//! Dom0's kernel hears of the error first, and handles it as for any device whose driver has no error handlers. When
//! it is done, or takes too long, it is the guest's turn:
//!
//! | the device | is told | verdict | then |
//! |---|---|---|---|
//! | as it was | `aer_detected`, normal | can recover | `aer_resume` |
//! | | | needs a reset | reset, `aer_slotreset`; recovered: `aer_resume` |
//! | had been reset, and was restored | `aer_detected`, frozen | can recover | `aer_resume` |
//! | | | needs a reset | `aer_slotreset`; recovered: `aer_resume` |
//! | answers no more | | | given up |
//!
//! After any other verdict, after none in time, and if errors keep coming, the device is given up. The terms of the
//! device say what that means.
//!
//! A device that lost its state in a suspend of the host takes the same course, as one that had been reset. Its terms speak
//! of errors: if it is given up, the guest keeps it. A guest that cannot be told yet is told later.
//!
//! One device is handled at a time, because a page has room for one request. Errors that come meanwhile count as one
//! for each device.

use pci::bdf::Bdf;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};
use xenbus::pciif::aer::{Channel, Notice, Verdict};

/// Limit for dom0's kernel, which may reset the bus and wait for all devices on it.
pub const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for the guest's answer to a notice. xen-pciback waits for 300 s, in dom0's kernel.
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for a guest that cannot be told of a suspend of the host.
pub const SUSPEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval at which such a guest is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// A device with more recoveries than this many in [`STORM`] is given up.
const MOST: usize = 5;
const STORM: Duration = Duration::from_secs(60);

/// State of a device after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It has kept its configuration.
    Sound,
    /// It had lost its configuration, and has it again.
    Restored,
    /// It does not answer.
    Gone,
}

/// Result of telling the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The guest has the notice.
    Yes,
    /// The guest, or its stub, has not answered an earlier notice.
    Busy,
    /// The guest handles no errors, or there is no guest.
    Nobody,
}

/// An event that the recovery takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Dom0's kernel has begun to handle an error of this device.
    Begun(Bdf),
    /// Dom0's kernel is done with this device.
    Ended(Bdf),
    /// The host was suspended. This device may have lost its state, and was restored.
    Resumed(Bdf),
    /// Result of [`RecoveryStep::Inspect`].
    Found(Health),
    /// Result of [`RecoveryStep::Tell`].
    Told(Told),
    /// The guest's answer to a notice.
    Verdict(Verdict),
    /// Result of [`RecoveryStep::Reset`]: true if the device was reset and has its configuration again.
    Reset(bool),
    /// Result of [`RecoveryStep::Reset`]: another job of the stub is under way, so the reset has to wait.
    ResetWaits,
    /// Time has passed.
    Time,
}

/// The next step, which the caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryStep {
    /// Find out the state of the device, and restore it if it was reset.
    Inspect(Bdf),
    /// Tell the guest.
    Tell(Bdf, Notice),
    /// Reset the device, and restore it.
    Reset(Bdf),
    /// Nothing: the guest goes on with the device.
    Recovered(Bdf, Trigger, Way),
    /// Give the device up. After an error its terms say what that means.
    GiveUp(Bdf, Trigger, Cause),
}

/// Why a device is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trigger {
    /// It has reported an error.
    #[default]
    Error,
    /// The host was suspended.
    Suspend,
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Suspend => "suspend of the host",
        })
    }
}

/// How a device recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its driver goes on as before.
    Resumed,
    /// It was reset, and its driver has set it up anew.
    Reset,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resumed => "recovered without a reset",
            Self::Reset => "recovered by a reset",
        })
    }
}

/// Why a device was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The guest's driver says so.
    Verdict(Verdict),
    /// The guest has not answered in time.
    Silent,
    /// The guest has not answered to an earlier error.
    Busy,
    /// There is no stub or no guest to tell, or the guest handles no errors.
    Nobody,
    /// The device does not answer.
    Gone,
    /// The reset failed, or the device did not come back from it.
    ResetFailed,
    /// There were too many errors in a short time.
    Storm,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verdict(verdict) => return write!(f, "the guest's driver says: {verdict}"),
            Self::Silent => "the guest did not answer in time",
            Self::Busy => "the guest has not answered to an error of before",
            Self::Nobody => "the guest handles no errors",
            Self::Gone => "the device does not answer",
            Self::ResetFailed => "the reset failed",
            Self::Storm => "the errors do not end",
        })
    }
}

/// What the recovery waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecoveryStage {
    Inspecting,
    /// For the verdict on `aer_detected`. `reset`: the device has been reset already.
    Detected {
        reset: bool,
    },
    Resetting,
    /// The reset could not begin yet. Time brings the next attempt.
    ResetDue,
    SlotReset,
    Resume(Way),
}

/// The device that is handled now.
#[derive(Clone, Copy, Debug)]
struct Current {
    bdf: Bdf,
    stage: RecoveryStage,
    /// When the guest was told; `None` if no verdict is due.
    told: Option<Instant>,
}

/// An error or a suspend that is to be handled.
#[derive(Clone, Copy, Debug)]
struct Pending {
    begun: Instant,
    ended: bool,
    trigger: Trigger,
    /// Not before this time.
    after: Instant,
}

impl Pending {
    const fn new(trigger: Trigger, ended: bool, now: Instant) -> Self {
        Self {
            begun: now,
            ended,
            trigger,
            after: now,
        }
    }

    fn is_due(self, now: Instant) -> bool {
        now >= self.after && (self.ended || now >= self.begun + KERNEL_TIMEOUT)
    }
}

/// Counts and the last outcome of a device's errors, for `bulkhead status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Errors that dom0's kernel handled.
    pub errors: u64,
    /// Number of recoveries.
    pub recovered: u64,
    /// Outcome of the last errors, in words.
    pub last: String,
}

#[derive(Debug, Default)]
struct ErrorHistory {
    pending: Option<Pending>,
    /// When the last recoveries began, [`MOST`] at most.
    begun: VecDeque<Instant>,
    tally: Tally,
}

/// The recoveries of one stub's devices.
#[derive(Debug, Default)]
pub struct Recovery {
    devices: BTreeMap<Bdf, ErrorHistory>,
    current: Option<Current>,
    /// Why the current device is handled, and since when.
    handled: Option<Pending>,
}

impl Recovery {
    /// Takes in an event, and returns the next step. An event that comes at the wrong time changes nothing.
    pub fn on(&mut self, input: Input, now: Instant) -> Option<RecoveryStep> {
        match input {
            Input::Begun(bdf) => {
                let device = self.devices.entry(bdf).or_default();
                device.tally.errors = device.tally.errors.saturating_add(1);
                // An error that waits already stands for this one too, with its own time.
                device
                    .pending
                    .get_or_insert(Pending::new(Trigger::Error, false, now));
            }
            Input::Ended(bdf) => {
                // The beginning may have been missed.
                let device = self.devices.entry(bdf).or_default();
                let fresh = Pending::new(Trigger::Error, true, now);
                device.pending.get_or_insert(fresh).ended = true;
            }
            Input::Resumed(bdf) => {
                // This stands for an error that waits: the device is inspected, and its driver sets it up again.
                self.devices.entry(bdf).or_default().pending =
                    Some(Pending::new(Trigger::Suspend, true, now));
            }
            _ => {}
        }
        match self.current {
            None => self.begin(now),
            Some(current) => self.go_on(current, input, now),
        }
    }

    /// True while a verdict of the guest is due.
    pub fn awaits_verdict(&self) -> bool {
        self.current.is_some_and(|current| current.told.is_some())
    }

    /// True if time alone will bring a next step.
    pub fn is_busy(&self) -> bool {
        self.current.is_some() || self.devices.values().any(|device| device.pending.is_some())
    }

    /// The counts and outcomes, by device.
    pub fn tallies(&self) -> impl Iterator<Item = (Bdf, &Tally)> {
        self.devices.iter().map(|(&bdf, device)| (bdf, &device.tally))
    }

    /// Sets how the last recovery of a device ended. Returns false if that is what is known already.
    pub fn set_outcome(&mut self, bdf: Bdf, trigger: Trigger, outcome: String) -> bool {
        let outcome = match trigger {
            Trigger::Error => outcome,
            Trigger::Suspend => format!("{trigger}: {outcome}"),
        };
        let last = &mut self.devices.entry(bdf).or_default().tally.last;
        let is_new = *last != outcome;
        *last = outcome;
        is_new
    }

    /// Forgets all devices but these.
    pub fn keep(&mut self, kept: impl Fn(Bdf) -> bool) {
        self.devices.retain(|&bdf, _| kept(bdf));
        self.current = self.current.filter(|current| kept(current.bdf));
    }

    fn begin(&mut self, now: Instant) -> Option<RecoveryStep> {
        let is_due = |device: &ErrorHistory| device.pending.is_some_and(|pending| pending.is_due(now));
        let (&bdf, device) = self.devices.iter_mut().find(|(_, device)| is_due(device))?;
        self.handled = device.pending.take();
        if self
            .handled
            .is_some_and(|handled| handled.trigger == Trigger::Error)
        {
            // Recoveries count from their beginning: one that never ends counts too.
            if device.begun.len() == MOST {
                if device.begun.front().is_some_and(|&first| now < first + STORM) {
                    return Some(RecoveryStep::GiveUp(bdf, Trigger::Error, Cause::Storm));
                }
                // No more times are kept than the limit compares.
                device.begun.pop_front();
            }
            device.begun.push_back(now);
        }
        self.current = Some(Current {
            bdf,
            stage: RecoveryStage::Inspecting,
            told: None,
        });
        Some(RecoveryStep::Inspect(bdf))
    }

    fn go_on(&mut self, current: Current, input: Input, now: Instant) -> Option<RecoveryStep> {
        let bdf = current.bdf;
        match (current.stage, input) {
            (RecoveryStage::Inspecting, Input::Found(Health::Gone)) => Some(self.give_up(bdf, Cause::Gone)),
            (RecoveryStage::Inspecting, Input::Found(health)) => {
                let reset = health == Health::Restored || self.trigger() == Trigger::Suspend;
                // Frozen tells the driver that the device has lost its state.
                let channel = if reset { Channel::Frozen } else { Channel::Normal };
                Some(self.tell(bdf, RecoveryStage::Detected { reset }, Notice::Detected(channel)))
            }
            (RecoveryStage::Resetting, Input::Reset(true)) => {
                Some(self.tell(bdf, RecoveryStage::SlotReset, Notice::SlotReset))
            }
            (RecoveryStage::Resetting, Input::Reset(false)) => Some(self.give_up(bdf, Cause::ResetFailed)),
            // The device is not given up: nothing is wrong with it.
            (RecoveryStage::Resetting, Input::ResetWaits) => {
                self.current = Some(Current {
                    stage: RecoveryStage::ResetDue,
                    ..current
                });
                None
            }
            (RecoveryStage::ResetDue, Input::Time) => Some(self.reset(bdf)),
            (_, Input::Told(told)) => match told {
                // The guest's time begins now, not when the notice was decided on.
                Told::Yes => {
                    self.current = Some(Current {
                        told: Some(now),
                        ..current
                    });
                    None
                }
                Told::Busy => self.not_told(current, Cause::Busy, now),
                Told::Nobody => self.not_told(current, Cause::Nobody, now),
            },
            (stage, Input::Verdict(verdict)) if current.told.is_some() => {
                Some(self.judge(bdf, stage, verdict))
            }
            // The limit is checked with every input, so that a flood of events cannot extend it.
            _ if current.told.is_some_and(|told| now >= told + GUEST_TIMEOUT) => {
                Some(self.give_up(bdf, Cause::Silent))
            }
            _ => None,
        }
    }

    fn judge(&mut self, bdf: Bdf, stage: RecoveryStage, verdict: Verdict) -> RecoveryStep {
        match (stage, verdict) {
            (RecoveryStage::Detected { .. }, Verdict::CanRecover | Verdict::Recovered) => {
                // No `aer_mmio` comes in between: Linux before 6.12 may crash on it (decision 35).
                self.tell(bdf, RecoveryStage::Resume(Way::Resumed), Notice::Resume)
            }
            (RecoveryStage::Detected { reset: true }, Verdict::NeedReset) => {
                self.tell(bdf, RecoveryStage::SlotReset, Notice::SlotReset)
            }
            (RecoveryStage::Detected { reset: false }, Verdict::NeedReset) => self.reset(bdf),
            (RecoveryStage::SlotReset, Verdict::Recovered) => {
                self.tell(bdf, RecoveryStage::Resume(Way::Reset), Notice::Resume)
            }
            // The verdict on this notice means nothing: Linux always says "none".
            (RecoveryStage::Resume(way), _) => {
                self.current = None;
                if self.trigger() == Trigger::Error {
                    let tally = &mut self.devices.entry(bdf).or_default().tally;
                    tally.recovered = tally.recovered.saturating_add(1);
                }
                RecoveryStep::Recovered(bdf, self.trigger(), way)
            }
            _ => self.give_up(bdf, Cause::Verdict(verdict)),
        }
    }

    fn trigger(&self) -> Trigger {
        self.handled.map(|handled| handled.trigger).unwrap_or_default()
    }

    /// The guest could not be told. After a suspend a stub may still be on its way back, and the guest may be slow with other
    /// devices.
    fn not_told(&mut self, current: Current, cause: Cause, now: Instant) -> Option<RecoveryStep> {
        let first = matches!(current.stage, RecoveryStage::Detected { .. });
        let again = self.handled.filter(|handled| {
            first && handled.trigger == Trigger::Suspend && now < handled.begun + SUSPEND_TIMEOUT
        });
        let Some(again) = again else {
            return Some(self.give_up(current.bdf, cause));
        };
        self.current = None;
        // An error that came meanwhile is dealt with in the same way.
        self.devices.entry(current.bdf).or_default().pending = Some(Pending {
            after: now + AGAIN,
            ..again
        });
        None
    }

    fn reset(&mut self, bdf: Bdf) -> RecoveryStep {
        self.current = Some(Current {
            bdf,
            stage: RecoveryStage::Resetting,
            told: None,
        });
        RecoveryStep::Reset(bdf)
    }

    fn tell(&mut self, bdf: Bdf, stage: RecoveryStage, notice: Notice) -> RecoveryStep {
        self.current = Some(Current {
            bdf,
            stage,
            told: None,
        });
        RecoveryStep::Tell(bdf, notice)
    }

    fn give_up(&mut self, bdf: Bdf, cause: Cause) -> RecoveryStep {
        self.current = None;
        RecoveryStep::GiveUp(bdf, self.trigger(), cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Input::{Begun, Ended, Found, Reset, ResetWaits, Time, Told as WasTold, Verdict as Says};

    const A: Bdf = Bdf::from_devfn(0, 1, 0);
    const B: Bdf = Bdf::from_devfn(0, 2, 0);
    const NORMAL: Notice = Notice::Detected(Channel::Normal);
    const FROZEN: Notice = Notice::Detected(Channel::Frozen);

    /// Plays inputs, all at one moment; returns the steps that they brought.
    fn play(recovery: &mut Recovery, now: Instant, inputs: &[Input]) -> Vec<RecoveryStep> {
        inputs
            .iter()
            .filter_map(|&input| recovery.on(input, now))
            .collect()
    }

    #[test]
    fn each_course_of_a_recovery_takes_its_steps() {
        let yes = WasTold(Told::Yes);
        let sound = [Begun(A), Ended(A), Found(Health::Sound), yes];
        let lost = [Begun(A), Ended(A), Found(Health::Restored), yes];
        let told_normal = [RecoveryStep::Inspect(A), RecoveryStep::Tell(A, NORMAL)];
        let told_frozen = [RecoveryStep::Inspect(A), RecoveryStep::Tell(A, FROZEN)];
        let reset = [Says(Verdict::NeedReset), Reset(true), yes];
        let resume = [yes, Says(Verdict::None)];
        let to_resume = RecoveryStep::Tell(A, Notice::Resume);
        let to_slot_reset = RecoveryStep::Tell(A, Notice::SlotReset);
        let gives_up = |cause| RecoveryStep::GiveUp(A, Trigger::Error, cause);
        let verdict = |verdict| gives_up(Cause::Verdict(verdict));

        #[rustfmt::skip]
        let courses: [(&str, Vec<Input>, Vec<RecoveryStep>); 14] = [
            ("goes on", [&sound[..], &[Says(Verdict::CanRecover)], &resume].concat(),
                [&told_normal[..], &[to_resume, RecoveryStep::Recovered(A, Trigger::Error, Way::Resumed)]].concat()),
            ("has recovered", [&sound[..], &[Says(Verdict::Recovered)], &resume].concat(),
                [&told_normal[..], &[to_resume, RecoveryStep::Recovered(A, Trigger::Error, Way::Resumed)]].concat()),
            ("reset", [&sound[..], &reset, &[Says(Verdict::Recovered)], &resume].concat(),
                [&told_normal[..], &[RecoveryStep::Reset(A), to_slot_reset, to_resume, RecoveryStep::Recovered(A, Trigger::Error, Way::Reset)]].concat()),
            ("reset by dom0's kernel", [&lost[..], &[Says(Verdict::NeedReset), yes, Says(Verdict::Recovered)], &resume].concat(),
                [&told_frozen[..], &[to_slot_reset, to_resume, RecoveryStep::Recovered(A, Trigger::Error, Way::Reset)]].concat()),
            ("reset by dom0's kernel, goes on", [&lost[..], &[Says(Verdict::CanRecover)], &resume].concat(),
                [&told_frozen[..], &[to_resume, RecoveryStep::Recovered(A, Trigger::Error, Way::Resumed)]].concat()),
            ("no handler", [&sound[..], &[Says(Verdict::None)]].concat(),
                [&told_normal[..], &[verdict(Verdict::None)]].concat()),
            ("no driver", [&sound[..], &[Says(Verdict::NoDriver)]].concat(),
                [&told_normal[..], &[verdict(Verdict::NoDriver)]].concat()),
            ("gives up", [&lost[..], &[Says(Verdict::Disconnect)]].concat(),
                [&told_frozen[..], &[verdict(Verdict::Disconnect)]].concat()),
            ("nonsense", [&sound[..], &[Says(Verdict::Nonsense(-7))]].concat(),
                [&told_normal[..], &[verdict(Verdict::Nonsense(-7))]].concat()),
            ("no better after the reset", [&sound[..], &reset, &[Says(Verdict::NeedReset)]].concat(),
                [&told_normal[..], &[RecoveryStep::Reset(A), to_slot_reset, verdict(Verdict::NeedReset)]].concat()),
            ("the reset fails", [&sound[..], &[Says(Verdict::NeedReset), Reset(false)]].concat(),
                [&told_normal[..], &[RecoveryStep::Reset(A), gives_up(Cause::ResetFailed)]].concat()),
            ("does not answer", vec![Begun(A), Ended(A), Found(Health::Gone)],
                vec![RecoveryStep::Inspect(A), gives_up(Cause::Gone)]),
            ("nobody to tell", vec![Begun(A), Ended(A), Found(Health::Sound), WasTold(Told::Nobody)],
                [&told_normal[..], &[gives_up(Cause::Nobody)]].concat()),
            ("busy", vec![Begun(A), Ended(A), Found(Health::Sound), WasTold(Told::Busy)],
                [&told_normal[..], &[gives_up(Cause::Busy)]].concat()),
        ];
        for (name, inputs, steps) in courses {
            let mut recovery = Recovery::default();
            assert_eq!(play(&mut recovery, Instant::now(), &inputs), steps, "{name}");
            assert!(!recovery.is_busy(), "{name}");
            let recovered = matches!(steps.last(), Some(RecoveryStep::Recovered(..)));
            let (_, tally) = recovery.tallies().next().unwrap();
            assert_eq!((tally.errors, tally.recovered), (1, recovered.into()), "{name}");
        }
    }

    #[test]
    fn the_guest_is_told_when_dom0s_kernel_is_done_or_takes_too_long() {
        let start = Instant::now();
        let mut recovery = Recovery::default();
        assert_eq!(recovery.on(Begun(A), start), None);
        assert!(recovery.is_busy());
        let almost = start + KERNEL_TIMEOUT - Duration::from_millis(1);
        assert_eq!(recovery.on(Time, almost), None);
        assert_eq!(
            recovery.on(Time, start + KERNEL_TIMEOUT),
            Some(RecoveryStep::Inspect(A))
        );
        let mut recovery = Recovery::default();
        assert_eq!(
            recovery.on(Ended(A), start),
            Some(RecoveryStep::Inspect(A)),
            "its beginning was missed"
        );
    }

    #[test]
    fn a_guest_that_does_not_answer_is_given_up_at_each_notice() {
        let yes = WasTold(Told::Yes);
        let detected = [Ended(A), Found(Health::Sound), yes];
        let slot_reset = [&detected[..], &[Says(Verdict::NeedReset), Reset(true), yes]].concat();
        let resume = [&detected[..], &[Says(Verdict::CanRecover), yes]].concat();
        for inputs in [&detected[..], &slot_reset, &resume] {
            let start = Instant::now();
            let mut recovery = Recovery::default();
            play(&mut recovery, start, inputs);
            assert!(recovery.awaits_verdict());
            let end = start + GUEST_TIMEOUT;
            assert_eq!(recovery.on(Time, end - Duration::from_millis(1)), None);
            assert_eq!(
                recovery.on(Time, end),
                Some(RecoveryStep::GiveUp(A, Trigger::Error, Cause::Silent))
            );
            assert!(!recovery.awaits_verdict());
            assert_eq!(recovery.on(Says(Verdict::CanRecover), end), None, "too late");
        }
    }

    #[test]
    fn errors_that_come_meanwhile_are_folded_into_one_more() {
        let now = Instant::now();
        let mut recovery = Recovery::default();
        play(
            &mut recovery,
            now,
            &[Begun(A), Ended(A), Found(Health::Sound), WasTold(Told::Yes)],
        );
        for _ in 0..1000 {
            assert_eq!(play(&mut recovery, now, &[Begun(A), Ended(A)]), []);
        }
        let rest = [
            Says(Verdict::CanRecover),
            WasTold(Told::Yes),
            Says(Verdict::None),
            Time,
        ];
        let steps = play(&mut recovery, now, &rest);
        assert_eq!(steps.last(), Some(&RecoveryStep::Inspect(A)));
        play(&mut recovery, now, &[Found(Health::Sound), WasTold(Told::Yes)]);
        play(&mut recovery, now, &rest);
        assert!(!recovery.is_busy());
        let (_, tally) = recovery.tallies().next().unwrap();
        assert_eq!((tally.errors, tally.recovered), (1001, 2));
    }

    #[test]
    fn one_device_is_dealt_with_at_a_time() {
        let now = Instant::now();
        let mut recovery = Recovery::default();
        let steps = play(&mut recovery, now, &[Begun(A), Begun(B), Ended(B), Ended(A)]);
        assert_eq!(steps, [RecoveryStep::Inspect(B)]);
        let steps = play(&mut recovery, now, &[Found(Health::Gone), Time]);
        assert_eq!(
            steps,
            [
                RecoveryStep::GiveUp(B, Trigger::Error, Cause::Gone),
                RecoveryStep::Inspect(A)
            ]
        );
    }

    #[test]
    fn a_storm_is_given_up_and_a_device_that_is_quiet_again_gets_another_chance() {
        let start = Instant::now();
        let mut recovery = Recovery::default();
        let course = [
            Begun(A),
            Ended(A),
            Found(Health::Sound),
            WasTold(Told::Yes),
            Says(Verdict::CanRecover),
            WasTold(Told::Yes),
            Says(Verdict::None),
        ];
        for second in 0..MOST as u64 {
            let steps = play(&mut recovery, start + Duration::from_secs(second), &course);
            assert_eq!(
                steps.last(),
                Some(&RecoveryStep::Recovered(A, Trigger::Error, Way::Resumed))
            );
        }
        let soon = start + STORM - Duration::from_millis(1);
        assert_eq!(
            play(&mut recovery, soon, &[Begun(A), Ended(A)]),
            [RecoveryStep::GiveUp(A, Trigger::Error, Cause::Storm)]
        );
        let steps = play(&mut recovery, start + STORM, &course);
        assert_eq!(
            steps.last(),
            Some(&RecoveryStep::Recovered(A, Trigger::Error, Way::Resumed))
        );
    }

    #[test]
    fn a_reset_that_has_to_wait_is_tried_again_with_time_and_is_no_failure() {
        let now = Instant::now();
        let mut recovery = Recovery::default();
        let to_reset = [
            Ended(A),
            Found(Health::Sound),
            WasTold(Told::Yes),
            Says(Verdict::NeedReset),
        ];
        assert_eq!(
            play(&mut recovery, now, &to_reset).last(),
            Some(&RecoveryStep::Reset(A))
        );
        for _ in 0..1000 {
            assert_eq!(recovery.on(ResetWaits, now), None);
            assert!(recovery.is_busy(), "time brings the next attempt");
            // What else comes meanwhile does not.
            assert_eq!(play(&mut recovery, now, &[Begun(B), Reset(true)]), []);
            assert_eq!(
                recovery.on(Time, now + GUEST_TIMEOUT),
                Some(RecoveryStep::Reset(A))
            );
            assert_eq!(recovery.on(Time, now), None, "it is under way");
        }
        assert_eq!(
            recovery.on(Reset(true), now),
            Some(RecoveryStep::Tell(A, Notice::SlotReset))
        );
    }

    #[test]
    fn a_device_that_leaves_meanwhile_is_forgotten() {
        let now = Instant::now();
        let mut recovery = Recovery::default();
        play(
            &mut recovery,
            now,
            &[Ended(A), Found(Health::Sound), WasTold(Told::Yes), Ended(B)],
        );
        recovery.keep(|bdf| bdf == B);
        assert_eq!(
            recovery.on(Says(Verdict::NeedReset), now),
            Some(RecoveryStep::Inspect(B))
        );
        assert_eq!(recovery.tallies().count(), 1);
    }

    #[test]
    fn what_comes_at_the_wrong_time_changes_nothing() {
        let now = Instant::now();
        let inputs = [
            Found(Health::Sound),
            WasTold(Told::Yes),
            Says(Verdict::NeedReset),
            Reset(true),
            Time,
        ];
        let mut recovery = Recovery::default();
        assert_eq!(play(&mut recovery, now, &inputs), []);
        assert!(!recovery.is_busy());
        recovery.on(Ended(A), now);
        let early = [Says(Verdict::NeedReset), Reset(true), Time];
        assert_eq!(play(&mut recovery, now, &early), []);
        assert_eq!(
            recovery.on(Found(Health::Sound), now),
            Some(RecoveryStep::Tell(A, NORMAL))
        );
        assert_eq!(recovery.on(Says(Verdict::NeedReset), now), None, "not told yet");
    }

    #[test]
    fn after_a_suspend_the_driver_sets_the_device_up_again_and_no_terms_count() {
        let now = Instant::now();
        let yes = WasTold(Told::Yes);
        let recovered = |way| RecoveryStep::Recovered(A, Trigger::Suspend, way);
        let given_up = |cause| RecoveryStep::GiveUp(A, Trigger::Suspend, cause);
        let inspect = RecoveryStep::Inspect(A);
        let told = RecoveryStep::Tell(A, FROZEN);
        let to_slot_reset = RecoveryStep::Tell(A, Notice::SlotReset);
        let to_resume = RecoveryStep::Tell(A, Notice::Resume);
        let reset = [yes, Says(Verdict::NeedReset), yes, Says(Verdict::Recovered)];
        let courses = [
            (
                [&reset[..], &[yes, Says(Verdict::None)]].concat(),
                vec![inspect, told, to_slot_reset, to_resume, recovered(Way::Reset)],
            ),
            (
                vec![yes, Says(Verdict::CanRecover), yes, Says(Verdict::None)],
                vec![inspect, told, to_resume, recovered(Way::Resumed)],
            ),
            (
                vec![yes, Says(Verdict::None)],
                vec![inspect, told, given_up(Cause::Verdict(Verdict::None))],
            ),
        ];
        for (inputs, steps) in courses {
            let mut recovery = Recovery::default();
            // More suspends in a minute than errors that would count as a storm.
            for _ in 0..=MOST {
                for health in [Health::Sound, Health::Restored] {
                    let inputs = [&[Input::Resumed(A), Found(health)][..], &inputs].concat();
                    assert_eq!(play(&mut recovery, now, &inputs), steps);
                }
            }
            assert!(!recovery.is_busy());
            let (_, tally) = recovery.tallies().next().unwrap();
            assert_eq!((tally.errors, tally.recovered), (0, 0), "no errors");
        }
    }

    #[test]
    fn a_suspend_in_a_recovery_is_told_of_after_it_and_takes_the_place_of_errors_that_wait() {
        let now = Instant::now();
        let mut recovery = Recovery::default();
        play(
            &mut recovery,
            now,
            &[Ended(A), Found(Health::Sound), WasTold(Told::Yes), Begun(A)],
        );
        assert_eq!(recovery.on(Input::Resumed(A), now), None);
        let rest = [
            Says(Verdict::CanRecover),
            WasTold(Told::Yes),
            Says(Verdict::None),
            Time,
        ];
        let steps = play(&mut recovery, now, &rest);
        let recovered = RecoveryStep::Recovered(A, Trigger::Error, Way::Resumed);
        assert_eq!(steps[1..], [recovered, RecoveryStep::Inspect(A)]);
        let course = [Found(Health::Sound), WasTold(Told::Yes), Says(Verdict::None)];
        play(&mut recovery, now, &course);
        assert!(!recovery.is_busy());
        // What comes next is an error again.
        let next = [Ended(A), Found(Health::Gone)];
        let given_up = RecoveryStep::GiveUp(A, Trigger::Error, Cause::Gone);
        assert_eq!(play(&mut recovery, now, &next).last(), Some(&given_up));
    }

    #[test]
    fn an_error_that_comes_before_a_guest_is_told_of_a_suspend_has_the_device_restored_again() {
        let now = Instant::now();
        let mut recovery = Recovery::default();
        // B waits for A.
        play(
            &mut recovery,
            now,
            &[Input::Resumed(A), Input::Resumed(B), Begun(B), Ended(B)],
        );
        let course = [
            Found(Health::Sound),
            WasTold(Told::Yes),
            Says(Verdict::None),
            Time,
        ];
        let steps = play(&mut recovery, now, &course);
        assert_eq!(steps.last(), Some(&RecoveryStep::Inspect(B)));
    }

    #[test]
    fn a_guest_that_cannot_be_told_of_a_suspend_yet_is_told_later() {
        let start = Instant::now();
        for (told, cause) in [(Told::Nobody, Cause::Nobody), (Told::Busy, Cause::Busy)] {
            let mut recovery = Recovery::default();
            let course = [Found(Health::Restored), WasTold(told)];
            assert_eq!(
                recovery.on(Input::Resumed(A), start),
                Some(RecoveryStep::Inspect(A))
            );
            play(&mut recovery, start, &course);
            assert!(recovery.is_busy());
            assert_eq!(recovery.on(Time, start + AGAIN - Duration::from_millis(1)), None);
            let later = start + AGAIN;
            assert_eq!(recovery.on(Time, later), Some(RecoveryStep::Inspect(A)));
            play(&mut recovery, later, &course);
            let end = start + SUSPEND_TIMEOUT;
            assert_eq!(recovery.on(Time, end), Some(RecoveryStep::Inspect(A)));
            let given_up = RecoveryStep::GiveUp(A, Trigger::Suspend, cause);
            assert_eq!(play(&mut recovery, end, &course).last(), Some(&given_up));
            assert!(!recovery.is_busy());
        }
    }
}
