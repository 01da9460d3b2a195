//! Errors of devices (AER): from the kernel's events to the guests that have the devices, and to the fate of a device that
//! does not recover. Devices that lost their state in a suspend of the host take the same way to their guests.
//!
//! [`Recovery`] decides; this module acts. Nothing here waits for a guest: its verdict is polled, while the thread of its link
//! answers its requests.

use super::jobs::Jobs;
use super::link::{self, Link, LinkError};
use super::links::Links;
use super::suspended::SuspendedDevices;
use crate::function::Functions;
use crate::function::aer::{Health, Input, Recovery, RecoveryStep, Told, Trigger};
use crate::handover::reclaim::revoke_removed;
use crate::handover::reset::Plan;
use crate::host::launcher::{LaunchError, Order, Ticket};
use crate::host::suspends::Suspends;
use crate::host::sysfs::Sysfs;
use crate::host::uevent::{ErrorEvent, Phase, Uevents};
use crate::host::{Host, Runner};
use crate::records::{Attachment, Due, RecordError, Suspended};
use crate::serve::log_limit::{LogLimit, log_limited};
use crate::service_log;
use crate::status::DeviceErrors;
use bulkhead_config::options::AerFate;
use pci::bdf::Bdf;
use rustix::fd::{AsFd, BorrowedFd};
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};
use xen::xenctrl::DomId;
use xenbus::pciif::aer::AerRequest;

/// Interval at which a verdict, or the end of an order, is polled.
const TICK: Duration = Duration::from_millis(20);
/// Most events taken in at once. After a storm the rest waits in the socket, or is lost there.
const MOST_EVENTS: usize = 1024;

/// What recoveries work with during one call.
pub struct Context<'a> {
    /// xenstore and sysfs.
    pub host: &'a mut Host,
    /// The links of the stubs.
    pub links: &'a Links,
    /// Where resets run.
    pub jobs: &'a mut Jobs,
}

/// The errors of all guests' devices.
pub struct Errors {
    events: Uevents,
    stubs: BTreeMap<DomId, Recovery>,
    suspended: SuspendedDevices,
    /// Orders that carry out a device's fate.
    fates: Vec<(Bdf, Ticket)>,
    limit: LogLimit,
}

impl Errors {
    /// No errors yet. They are heard of by `events`.
    pub fn new(events: Uevents) -> Self {
        Self {
            events,
            stubs: BTreeMap::new(),
            suspended: SuspendedDevices::default(),
            fates: Vec::new(),
            limit: LogLimit::new(Instant::now()),
        }
    }

    /// Time until [`Self::step`] has to be called; `None` if only an event can bring work.
    pub fn due(&self) -> Option<Duration> {
        let busy = !self.fates.is_empty() || self.stubs.values().any(Recovery::is_busy);
        busy.then_some(TICK)
    }

    /// Forgets the devices that an attachment does not have any more.
    pub fn keep(&mut self, attachment: &Attachment) {
        if let Some(recovery) = self.stubs.get_mut(&attachment.stub.domid) {
            recovery.keep(|bdf| attachment.bdfs().any(|kept| kept == bdf));
        }
    }

    /// Forgets the devices of a stub that is no more.
    pub fn forget(&mut self, stub: DomId) {
        self.stubs.remove(&stub);
        self.suspended.tell_again(stub);
    }

    /// Errors of a stub's devices, for the status.
    pub fn status(&self, stub: DomId) -> Vec<DeviceErrors> {
        let recovery = self.stubs.get(&stub);
        let tallies = recovery.into_iter().flat_map(Recovery::tallies);
        tallies
            .map(|(bdf, tally)| DeviceErrors {
                bdf: bdf.to_string(),
                errors: tally.errors,
                recovered: tally.recovered,
                last: tally.last.clone(),
            })
            .collect()
    }

    /// Takes in events of the kernel and verdicts of guests, and takes the next step of each recovery.
    pub fn step(&mut self, mut cx: Context<'_>) {
        self.reap(cx.host);
        if let Err(error) = self.take_events(&mut cx) {
            log::error!("cannot read the kernel's events about errors of devices: {error:#}");
        }
        for (stub, bdf) in self.suspended.begin_telling(|stub| cx.links.get(stub).is_some()) {
            self.stubs.entry(stub).or_default();
            self.advance(&mut cx, stub, Input::Resumed(bdf));
        }
        let stubs: Vec<DomId> = self.stubs.keys().copied().collect();
        for stub in stubs {
            let awaits = self.stubs.get(&stub).is_some_and(Recovery::awaits_verdict);
            let link = cx.links.get(stub).filter(|_| awaits);
            let verdict = link.and_then(Link::verdict).map(Input::Verdict);
            self.advance(&mut cx, stub, verdict.unwrap_or(Input::Time));
        }
    }

    /// Restores the devices of all guests if the host was suspended since this was last done. Their drivers are told of it in
    /// the next steps. What cannot be done now is done at a later call.
    pub fn restore_after_suspends(
        &mut self,
        cx: &mut Context<'_>,
        count: Suspends,
    ) -> Result<(), RecordError> {
        self.suspended.take_in(&mut cx.host.store, count)?;
        let due = self.suspended.to_restore();
        if due.is_empty() {
            return Ok(());
        }
        // A damaged record is complained of when its stub has its turn.
        let (attachments, _) = Attachment::all(&mut cx.host.store)?;
        for (bdf, Suspended { stub, due }) in due {
            let has_it = |attachment: &&Attachment| {
                attachment.stub.domid == stub && attachment.bdfs().any(|other| other == bdf)
            };
            let Some(owner) = attachments.iter().find(has_it) else {
                self.suspended.done(&mut cx.host.store, bdf)?;
                continue;
            };
            // One that is being taken back is reset anyway. The others wait for the end of that.
            if cx.jobs.is_closed(stub) {
                continue;
            }
            let _about = service_log::about(&owner.guest.name, &owner.stub.name);
            let problem = match resume(cx, owner, bdf, due == Due::Restore) {
                Ok(Health::Sound) => {
                    log::info!(DEVICE:% = bdf; "{bdf}: it has kept its state while the host was suspended");
                    self.suspended.done(&mut cx.host.store, bdf)?;
                    continue;
                }
                Ok(Health::Restored) => {
                    log::info!(DEVICE:% = bdf; "{bdf}: restored after the host was suspended");
                    self.suspended.restored(&mut cx.host.store, bdf)?;
                    continue;
                }
                Ok(Health::Gone) => "the device does not answer".to_owned(),
                Err(error) => format!("it cannot be restored: {:#}", anyhow::Error::from(error)),
            };
            let recovery = self.stubs.entry(stub).or_default();
            if recovery.set_outcome(bdf, Trigger::Suspend, problem.clone()) {
                self.log(log::Level::Error, bdf, Trigger::Suspend, &problem);
            }
        }
        Ok(())
    }

    fn take_events(&mut self, cx: &mut Context<'_>) -> anyhow::Result<()> {
        let mut events = Vec::new();
        while events.len() < MOST_EVENTS
            && let Some(event) = self.events.next()?
        {
            events.push(event);
        }
        if events.is_empty() {
            return Ok(());
        }
        // Read once for all events, and only if there are some: each reading is many requests to xenstored.
        let (attachments, _) = Attachment::all(&mut cx.host.store)?;
        for ErrorEvent { bdf, phase } in events {
            let owner = attachments
                .iter()
                .find(|attachment| attachment.bdfs().any(|other| other == bdf));
            let Some(owner) = owner else {
                continue;
            };
            let _about = service_log::about(&owner.guest.name, &owner.stub.name);
            let input = match phase {
                Phase::Removed => {
                    // Nothing is done to the guest: Xen 4.17, measured, stops the host (a BUG in
                    // `__pirq_guest_unbind`) when a guest closes an interrupt of a function that dom0 removed.
                    log::error!(
                        DEVICE:% = bdf;
                        "{bdf}: dom0 removed it while guest {} has it; Xen may stop the host when that guest lets go of \
                         its interrupts",
                        owner.guest.name
                    );
                    // The guest and the stub still have its memory and ECAM page, and Linux may place the next card there.
                    for problem in revoke_removed(&cx.host.xen, owner, bdf) {
                        log::error!(DEVICE:% = bdf; "{problem}");
                    }
                    continue;
                }
                // A device that is on its way out of its guest is not recovered.
                _ if self.fates.iter().any(|(doomed, _)| *doomed == bdf) => continue,
                Phase::Begun => Input::Begun(bdf),
                Phase::Ended => Input::Ended(bdf),
            };
            let stub = owner.stub.domid;
            self.stubs.entry(stub).or_default();
            self.advance(cx, stub, input);
        }
        Ok(())
    }

    /// Takes steps until the next input has to come from the guest, from a job or with time.
    fn advance(&mut self, cx: &mut Context<'_>, stub: DomId, input: Input) {
        // Taken out, because a step needs all of `self`.
        let Some(mut recovery) = self.stubs.remove(&stub) else {
            return;
        };
        let _about = cx.links.get(stub).map(Link::about);
        let mut next = Some(input);
        // A step may bring the next input at once, such as a reset that is not needed.
        while let Some(input) = next {
            let step = recovery.on(input, Instant::now());
            next = step.and_then(|step| self.perform(cx, stub, &mut recovery, step));
        }
        self.stubs.insert(stub, recovery);
    }

    /// Takes one step. Returns the input that it brings at once.
    fn perform(
        &mut self,
        cx: &mut Context<'_>,
        stub: DomId,
        recovery: &mut Recovery,
        step: RecoveryStep,
    ) -> Option<Input> {
        let link = cx.links.get(stub);
        match step {
            RecoveryStep::Inspect(bdf) => {
                let inspected = link.map_or(Ok(Health::Sound), |link| link.inspect(bdf, cx.links.xen()));
                Some(Input::Found(inspected.unwrap_or_else(|error| {
                    let outcome = format!("it cannot be restored after a reset: {error}");
                    self.log(log::Level::Error, bdf, Trigger::Error, &outcome);
                    Health::Gone
                })))
            }
            RecoveryStep::Tell(bdf, notice) => {
                let request = AerRequest::new(bdf, notice);
                Some(Input::Told(link.map_or(Told::Nobody, |link| link.tell(&request))))
            }
            RecoveryStep::Reset(bdf) => match begin_reset(cx.jobs, &cx.host.sysfs, stub, bdf) {
                Attempt::Waits => Some(Input::ResetWaits),
                Attempt::Begun => None,
                Attempt::Over(reset) => Some(self.renew(cx, stub, bdf, reset)),
            },
            RecoveryStep::Recovered(bdf, trigger, way) => {
                let outcome = way.to_string();
                self.log(log::Level::Info, bdf, trigger, &outcome);
                recovery.set_outcome(bdf, trigger, outcome);
                self.was_told(cx.host, bdf, trigger);
                None
            }
            RecoveryStep::GiveUp(bdf, trigger, cause) => {
                let (fate, consequence) = match trigger {
                    Trigger::Error => {
                        let fate = fate(cx.host, stub, bdf);
                        (fate, consequence(fate))
                    }
                    // Nothing is wrong with the device, and a guest without a driver for it says the same.
                    Trigger::Suspend => (
                        AerFate::Leave,
                        "if the guest has a driver for it, unbind it there and bind it again",
                    ),
                };
                let outcome = format!("{cause}: {consequence}");
                self.log(log::Level::Warn, bdf, trigger, &outcome);
                recovery.set_outcome(bdf, trigger, outcome);
                self.was_told(cx.host, bdf, trigger);
                self.carry_out(cx.host, bdf, fate);
                None
            }
        }
    }

    /// A device has been dealt with. After a suspend that was the last step for it.
    fn was_told(&mut self, host: &mut Host, bdf: Bdf, trigger: Trigger) {
        if trigger == Trigger::Suspend
            && let Err(error) = self.suspended.done(&mut host.store, bdf)
        {
            log::error!(DEVICE:% = bdf; "{bdf}: the next service tells its guest of the suspend again: {error}");
        }
    }

    /// The job of a reset has ended in this way.
    pub fn reset(&mut self, mut cx: Context<'_>, stub: DomId, bdf: Bdf, reset: Result<(), String>) {
        let input = self.renew(&cx, stub, bdf, reset);
        self.advance(&mut cx, stub, input);
    }

    /// Restores a device that was reset.
    fn renew(&mut self, cx: &Context<'_>, stub: DomId, bdf: Bdf, reset: Result<(), String>) -> Input {
        let link = cx.links.get(stub);
        let _about = link.map(Link::about);
        let renewed = reset.and_then(|()| {
            link.map_or(Ok(()), |link| link.renew(bdf, cx.links.xen()))
                .map_err(|error| error.to_string())
        });
        if let Err(error) = &renewed {
            self.log(log::Level::Error, bdf, Trigger::Error, error);
        }
        Input::Reset(renewed.is_ok())
    }

    /// Has another process carry out a device's fate. That takes the guest's help or its end, and the service has to answer
    /// the guest's requests meanwhile.
    fn carry_out(&mut self, host: &mut Host, bdf: Bdf, fate: AerFate) {
        let order = match fate {
            AerFate::Leave => return,
            AerFate::Detach => Order::Detach { bdf },
            AerFate::Destroy => Order::DestroyGuest { bdf },
        };
        let Runner::Launcher(launcher) = &mut host.runner else {
            return;
        };
        match launcher.order(order) {
            Ok(ticket) => self.fates.push((bdf, ticket)),
            Err(error) => log::error!(DEVICE:% = bdf; "{bdf}: cannot carry out what its terms say: {error}"),
        }
    }

    /// Takes in the ends of orders that carry out fates.
    fn reap(&mut self, host: &mut Host) {
        let Runner::Launcher(launcher) = &mut host.runner else {
            return;
        };
        let mut ended = |ticket| {
            launcher
                .poll(ticket)
                .map(Option::transpose)
                .and_then(|ended| ended)
        };
        self.fates.retain(|&(bdf, ticket)| match ended(ticket) {
            Ok(None) => true,
            Ok(Some(())) => false,
            // The command has failed, such as when the guest does not let go.
            Err(error @ LaunchError::Failed(_)) => {
                log::error!(DEVICE:% = bdf; "{bdf}: {error}: its guest keeps it");
                false
            }
            Err(error) => {
                log::error!(DEVICE:% = bdf; "{bdf}: cannot see whether its fate was carried out: {error}");
                false
            }
        });
    }

    fn log(&mut self, level: log::Level, bdf: Bdf, trigger: Trigger, outcome: &str) {
        log_limited!(self.limit, level, DEVICE = bdf; "{bdf}: {trigger}: {outcome}");
    }
}

impl AsFd for Errors {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Restores a device after the host was suspended. Its stub may have no link: it may be dead, or the service may have just begun.
fn resume(cx: &Context<'_>, attachment: &Attachment, bdf: Bdf, in_doubt: bool) -> Result<Health, LinkError> {
    let xen = cx.links.xen();
    if let Some(link) = cx.links.get(attachment.stub.domid) {
        return Ok(link.resume(bdf, xen, in_doubt)?);
    }
    // Alone: one that cannot be opened keeps no other.
    let others: Vec<Bdf> = attachment.bdfs().filter(|&other| other != bdf).collect();
    let alone = attachment.without(&others);
    let mut functions = Functions::none(attachment.guest.domid);
    // One that dom0 has removed and found again is dom0's, and gets nothing of the guest's.
    link::follow(&mut functions, &alone, &cx.host.sysfs)?;
    let function = functions
        .get(bdf)
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok(function.resume(xen, in_doubt)?)
}

/// How far a reset has come when it was begun.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// Something else is being done for the stub.
    Waits,
    /// A job resets the device, and [`Errors::reset`] hears how that ends.
    Begun,
    /// It has ended already.
    Over(Result<(), String>),
}

fn begin_reset(jobs: &mut Jobs, sysfs: &Sysfs, stub: DomId, bdf: Bdf) -> Attempt {
    // Such as devices that are taken back, this one perhaps among them.
    if jobs.is_busy(stub) {
        return Attempt::Waits;
    }
    // A device without a reset method: Linux too leaves it at what the driver does then.
    if Plan::of(bdf, sysfs).used().is_none() {
        return Attempt::Over(Ok(()));
    }
    match jobs.reset(stub, bdf) {
        Ok(()) => Attempt::Begun,
        Err(error) => Attempt::Over(Err(format!("cannot reset it: {error}"))),
    }
}

/// Fate of a device by its recorded terms; [`AerFate::Leave`] if the record has none.
fn fate(host: &mut Host, stub: DomId, bdf: Bdf) -> AerFate {
    let attachment = Attachment::read(&mut host.store, stub).ok().flatten();
    let device = attachment.and_then(|attachment| {
        let mut devices = attachment.devices.into_iter();
        devices.find(|device| device.bdf == bdf)
    });
    device.map_or(AerFate::Leave, |device| device.terms.aer)
}

fn consequence(fate: AerFate) -> &'static str {
    match fate {
        AerFate::Leave => "it is left as it is",
        AerFate::Detach => "it is taken from its guest",
        AerFate::Destroy => "its guest is destroyed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::reclaim::Released;
    use crate::host::sysfs::tests::Tree;
    use crate::serve::jobs::Outcome;
    use crate::serve::wake::Wake;
    use std::sync::mpsc::channel;
    use std::thread;
    use xenbus::pciif::aer::Verdict;

    /// A function that no host has.
    const NAME: &str = "fffe:ff:1f.7";
    const STUB: DomId = 4;

    fn ended(jobs: &mut Jobs) -> Outcome {
        loop {
            match jobs.ended() {
                Some((_, outcome)) => return outcome,
                None => thread::yield_now(),
            }
        }
    }

    #[test]
    fn a_reset_waits_for_the_end_of_what_is_done_for_the_stub_and_goes_on_then() {
        let (tree, bdf) = (Tree::new(), NAME.parse().unwrap());
        tree.add(NAME, &[("reset", b""), ("reset_method", b"flr\n")]);
        let mut jobs = Jobs::new(Wake::new().unwrap());
        let (go_on, gate) = channel::<()>();
        let other_leaves = move || {
            gate.recv().unwrap();
            Released::default()
        };
        jobs.reclaim(STUB, other_leaves).unwrap();

        let now = Instant::now();
        let mut recovery = Recovery::default();
        for input in [
            Input::Ended(bdf),
            Input::Found(Health::Sound),
            Input::Told(Told::Yes),
        ] {
            recovery.on(input, now);
        }
        let mut step = recovery.on(Input::Verdict(Verdict::NeedReset), now);
        for _ in 0..3 {
            assert_eq!(step, Some(RecoveryStep::Reset(bdf)));
            let attempt = begin_reset(&mut jobs, &tree.sysfs(), STUB, bdf);
            assert_eq!(attempt, Attempt::Waits);
            assert_eq!(recovery.on(Input::ResetWaits, now), None, "no fate");
            step = recovery.on(Input::Time, now);
        }
        go_on.send(()).unwrap();
        assert!(matches!(ended(&mut jobs), Outcome::Reclaimed(_)));
        assert_eq!(step, Some(RecoveryStep::Reset(bdf)));
        let attempt = begin_reset(&mut jobs, &tree.sysfs(), STUB, bdf);
        assert_eq!(attempt, Attempt::Begun);
        assert!(matches!(ended(&mut jobs), Outcome::Reset(at, _) if at == bdf));
    }

    #[test]
    fn a_device_without_a_reset_waits_too_and_is_left_to_its_driver_then() {
        let (tree, bdf) = (Tree::new(), NAME.parse().unwrap());
        tree.add(NAME, &[]);
        let mut jobs = Jobs::new(Wake::new().unwrap());
        jobs.reclaim(STUB, Released::default).unwrap();
        assert_eq!(begin_reset(&mut jobs, &tree.sysfs(), STUB, bdf), Attempt::Waits);
        ended(&mut jobs);
        assert_eq!(
            begin_reset(&mut jobs, &tree.sysfs(), STUB, bdf),
            Attempt::Over(Ok(()))
        );
    }
}
