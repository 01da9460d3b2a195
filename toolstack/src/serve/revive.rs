//! Bringing dead stubs back, each with the number that it had: their guests notice no more than a slow access.
//!
//! A guest's pcifront asks for two seconds, and what it has open towards its stub (the grant, the event channel, the
//! watch) holds for any domain of the same number. So a new domain gets the number, and finds in xenstore what the
//! old one left: states 5, 6 and 7 of the first hop are never written on the way.
//!
//! Where that cannot be had, the guest sees an orderly hot unplug ([`unplug`]). If it was only the number that could not
//! be had, its devices come back with a stub of another number; if the stub dies again and again, they do not.

use super::stub_domain::{Condition, ReviveError, condition, create, settle, settle_in};
use super::unplug;
use crate::host::domains;
use crate::host::launcher::{LaunchError, Launcher, Order, Ticket};
use crate::host::store::{Store, StoreError};
use crate::host::{Host, Runner};
use crate::nodes::hops::first_hop;
use crate::records::failed::Failed;
use crate::records::stub_backup;
use crate::records::{Attachment, RecordError};
use crate::serve::backoff::{Decision, Lives};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::{Duration, Instant};
use xen::xenctrl::DomId;

/// How long the creation of a stub may keep others from taking its devices back.
const CREATION: Duration = Duration::from_secs(30);
/// How long a guest may take to let go of its devices when nobody answers: some dozen accesses of two seconds.
const UNPLUG_PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks whether it has.
const UNPLUG_LOOK: Duration = Duration::from_millis(250);

/// How far the return of a stub has come.
enum Stage {
    /// It lives, as far as is known.
    Lives,
    /// It was shut down on purpose, and stays so until it is destroyed.
    Off,
    /// It is dead, and waited for.
    Due(Instant),
    /// It is being created, since then.
    Creating(Ticket, Instant),
    /// Its creation takes too long, and goes on.
    Overdue(Ticket),
    /// It was created, or not.
    Created(Result<(), LaunchError>),
    /// What there is of it is destroyed, because it could not be brought back.
    Clearing {
        /// The order.
        ticket: Ticket,
        /// True if it is not tried again.
        is_final: bool,
    },
    /// It is destroyed.
    Cleared {
        /// True if it is not tried again.
        is_final: bool,
    },
    /// It does not come back, and the guest is to let go of its devices.
    Unplugging(Unplugging),
    /// The guest has not.
    Stuck,
}

/// A guest that is to let go of its devices.
#[derive(Clone, Copy, Debug)]
struct Unplugging {
    /// When it is looked at next.
    look: Instant,
    /// When it should have let go.
    deadline: Instant,
    /// What comes then.
    afterwards: Afterwards,
}

/// What comes after an orderly unplug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// A stub with another number.
    Replug,
    /// Nothing: stubs of this guest die too often.
    Nothing,
}

impl Stage {
    /// When the next step is to be taken; `None` if an event brings it.
    fn due(&self, now: Instant) -> Option<Instant> {
        match *self {
            Self::Due(due) | Self::Unplugging(Unplugging { look: due, .. }) => Some(due),
            // Its devices can be taken back from then on, which somebody may wait for.
            Self::Creating(_, since) => Some(since + CREATION),
            Self::Created(_) | Self::Cleared { .. } => Some(now),
            Self::Lives | Self::Off | Self::Overdue(_) | Self::Clearing { .. } | Self::Stuck => None,
        }
    }

    /// Where to begin again after a step that failed. A domain that has been created is found as it is.
    fn at_rest(&self) -> Self {
        match *self {
            Self::Off => Self::Off,
            Self::Due(due) => Self::Due(due),
            Self::Creating(ticket, since) => Self::Creating(ticket, since),
            Self::Overdue(ticket) => Self::Overdue(ticket),
            Self::Clearing { ticket, is_final } => Self::Clearing { ticket, is_final },
            Self::Cleared { is_final } => Self::Cleared { is_final },
            Self::Unplugging(unplugging) => Self::Unplugging(unplugging),
            Self::Stuck => Self::Stuck,
            Self::Lives | Self::Created(_) => Self::Lives,
        }
    }
}

/// When a stub is looked at, and what else goes on.
#[derive(Clone, Copy)]
struct Moment {
    now: Instant,
    /// The same on the clock of [`Lives`].
    clock: Duration,
    /// True while something else is being done for the stub.
    is_busy: bool,
}

struct Revival {
    lives: Lives,
    stage: Stage,
    /// When the stub was found dead.
    died: Instant,
    /// How.
    how: &'static str,
    /// True from the moment that it is called ready until it is looked at.
    called: bool,
    /// True once its domain has had all that it needs.
    equipped: bool,
}

/// What is to be done about a stub now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives and can be served.
    Serve,
    /// Nothing, for now.
    Leave,
    /// The guest has let go: its devices are to be taken back.
    Release(Afterwards),
}

/// The stubs that died, and those that might.
pub struct Revivals {
    stubs: BTreeMap<DomId, Revival>,
    /// Guests that get their devices back from a stub with another number.
    replugs: Vec<(Failed, Ticket)>,
    /// What the times of [`Lives`] count from.
    epoch: Instant,
}

impl Revivals {
    /// Nobody has died.
    pub fn new() -> Self {
        Self {
            stubs: BTreeMap::new(),
            replugs: Vec::new(),
            epoch: Instant::now(),
        }
    }

    /// Forgets all other stubs.
    pub fn keep(&mut self, stubs: &BTreeSet<DomId>) {
        self.stubs.retain(|stub, _| stubs.contains(stub));
    }

    /// Forgets a stub that has no record any more.
    pub fn drop_stub(&mut self, stub: DomId) {
        self.stubs.remove(&stub);
    }

    /// How often a stub was brought back.
    pub fn count(&self, stub: DomId) -> u64 {
        self.stubs
            .get(&stub)
            .map_or(0, |revival| revival.lives.revivals())
    }

    /// True while a stub is being created: what is under way cannot be stopped, and what comes of it has to be destroyed.
    /// Not if that takes too long.
    pub fn is_creating(&self, stub: DomId) -> bool {
        let stage = self.stubs.get(&stub).map(|revival| &revival.stage);
        matches!(stage, Some(Stage::Creating(..)))
    }

    /// True if the launcher's answers are to be waited for.
    pub fn expect_answers(&self) -> bool {
        let mut stages = self.stubs.values().map(|revival| &revival.stage);
        !self.replugs.is_empty()
            || stages.any(|stage| {
                matches!(
                    stage,
                    Stage::Creating(..) | Stage::Overdue(_) | Stage::Clearing { .. }
                )
            })
    }

    /// When there is something to do at the latest.
    pub fn due(&self) -> Option<Duration> {
        let now = Instant::now();
        let waiting = self.stubs.values().filter(|revival| !revival.called);
        let due = waiting.filter_map(|revival| revival.stage.due(now));
        due.min().map(|due| due.saturating_duration_since(now))
    }

    /// The stubs that have become ready for their next step, each once until it is looked at.
    pub fn ready(&mut self, runner: &mut Runner, store: &mut Store) -> Result<Vec<DomId>, LaunchError> {
        let now = Instant::now();
        let Runner::Launcher(launcher) = runner else {
            return Ok(Vec::new());
        };
        self.finish_replugs(launcher, store)?;
        let mut ready = Vec::new();
        for (&stub, revival) in &mut self.stubs {
            match revival.stage {
                Stage::Creating(ticket, _) | Stage::Overdue(ticket) => {
                    if let Some(created) = launcher.poll(ticket)? {
                        revival.stage = Stage::Created(created);
                    }
                }
                Stage::Clearing { ticket, is_final } => {
                    if let Some(destroyed) = launcher.poll(ticket)? {
                        if let Err(error) = destroyed {
                            log::error!("cannot destroy what there is of stub {stub}: {error}");
                        }
                        revival.stage = Stage::Cleared { is_final };
                    }
                }
                _ => {}
            }
            let is_ready = revival.stage.due(now).is_some_and(|due| due <= now);
            if is_ready && !mem::replace(&mut revival.called, true) {
                if let Stage::Creating(ticket, _) = revival.stage {
                    // Called once: the next call is for what becomes of it.
                    revival.stage = Stage::Overdue(ticket);
                }
                ready.push(stub);
            }
        }
        Ok(ready)
    }

    /// Looks at a stub whose guest lives, and takes the next step if it is dead. `bury` is called at its death, and
    /// returns what it has left in its page. `is_busy` says that something else is being done for it.
    pub fn look(
        &mut self,
        host: &mut Host,
        attachment: &Attachment,
        is_busy: bool,
        bury: impl FnOnce() -> Option<String>,
    ) -> Result<Verdict, RecordError> {
        let now = Instant::now();
        let revival = self
            .stubs
            .entry(attachment.stub.domid)
            .or_insert_with(|| Revival {
                lives: Lives::default(),
                stage: Stage::Lives,
                died: now,
                how: "",
                called: false,
                equipped: false,
            });
        revival.called = false;
        let stage = mem::replace(&mut revival.stage, Stage::Lives);
        let before = stage.at_rest();
        let clock = now.duration_since(self.epoch);
        let moment = Moment { now, clock, is_busy };
        match revival.step(host, attachment, stage, moment, bury) {
            Ok((verdict, stage)) => {
                revival.stage = stage;
                Ok(verdict)
            }
            Err(error) => {
                revival.stage = before;
                Err(error)
            }
        }
    }

    /// Gives the devices of an attachment, which were taken back, to its guest by a new stub.
    pub fn replug(&mut self, host: &mut Host, attachment: &Attachment, kernel: Option<String>) {
        let failed = Failed::new(attachment, "could not be brought back with its number");
        let devices = attachment.devices.iter();
        let order = Order::Attach {
            guest: attachment.guest.domid,
            devices: devices
                .map(|device| (device.bdf.to_string(), device.terms.clone()))
                .collect(),
            slots: attachment.slots,
            kernel: kernel.unwrap_or_else(|| bulkhead_config::KERNEL.to_owned()),
        };
        let Runner::Launcher(launcher) = &mut host.runner else {
            return;
        };
        match launcher.order(order) {
            Ok(ticket) => self.replugs.push((failed, ticket)),
            Err(error) => log::error!("{failed}: {error}"),
        }
    }

    /// Takes in what has become of replugs.
    fn finish_replugs(&mut self, launcher: &mut Launcher, store: &mut Store) -> Result<(), LaunchError> {
        let mut under_way = Vec::new();
        for (failed, ticket) in self.replugs.drain(..) {
            let guest = &failed.guest.name;
            match launcher.poll(ticket)? {
                None => under_way.push((failed, ticket)),
                Some(Ok(())) => {
                    log::warn!("guest {guest} has its devices again, by a stub with another number")
                }
                Some(Err(error)) => {
                    log::error!("guest {guest} does not get its devices again: {error}");
                    if let Err(error) = failed.write(store) {
                        log::error!("cannot note that: {error}");
                    }
                }
            }
        }
        self.replugs = under_way;
        Ok(())
    }
}

impl Revival {
    /// What is to be done, and the next stage.
    fn step(
        &mut self,
        host: &mut Host,
        attachment: &Attachment,
        stage: Stage,
        Moment { now, clock, is_busy }: Moment,
        bury: impl FnOnce() -> Option<String>,
    ) -> Result<(Verdict, Stage), RecordError> {
        let name = &attachment.stub.name;
        let stay = |stage| Ok((Verdict::Leave, stage));
        let error = match stage {
            Stage::Creating(..) | Stage::Overdue(_) | Stage::Clearing { .. } | Stage::Stuck => {
                return stay(stage);
            }
            Stage::Cleared { is_final } => {
                return match self.lives.fail() {
                    Decision::After(delay) if !is_final => stay(Stage::Due(now + delay)),
                    _ => self.unplug(host, attachment, Afterwards::Replug, now),
                };
            }
            Stage::Due(due) if due > now => return stay(stage),
            Stage::Unplugging(unplugging) => {
                return unplugging.look(&mut host.store, attachment, is_busy, now);
            }
            Stage::Lives | Stage::Off => match self.condition(host, attachment)? {
                Condition::Alive => return Ok((Verdict::Serve, Stage::Lives)),
                Condition::Dying => return stay(stage),
                Condition::Off => {
                    if matches!(stage, Stage::Lives) {
                        keep(host, attachment, bury());
                        log::warn!(
                            "stub {name} was shut down, and stays so: guest {} cannot configure its devices until \
                             `xl destroy {name}` has a new one come",
                            attachment.guest.name
                        );
                    }
                    return stay(Stage::Off);
                }
                Condition::Dead(how) => {
                    keep(host, attachment, bury());
                    (self.died, self.how) = (now, how);
                    log::error!("stub {name} {how}");
                    if Failed::of(&mut host.store, attachment.guest.domid)?.is_some() {
                        // A service before this one has given it up.
                        return self.unplug(host, attachment, Afterwards::Nothing, now);
                    }
                    return match self.lives.end(clock) {
                        Decision::After(delay) => stay(Stage::Due(now + delay)),
                        Decision::GiveUp => self.unplug(host, attachment, Afterwards::Nothing, now),
                    };
                }
                // Whoever creates it may be at it still, a launcher whose service was killed.
                Condition::Naked => match settle(host) {
                    Ok(ticket) => return stay(Stage::Creating(ticket, now)),
                    Err(error) => error,
                },
            },
            // The launcher of a service that was killed may have finished what that one had begun.
            Stage::Due(_) => match self.condition(host, attachment)? {
                Condition::Alive => return Ok((Verdict::Serve, Stage::Lives)),
                Condition::Naked => match settle(host) {
                    Ok(ticket) => return stay(Stage::Creating(ticket, now)),
                    Err(error) => error,
                },
                Condition::Dying | Condition::Off | Condition::Dead(_) => match create(host, attachment) {
                    Ok(ticket) => return stay(Stage::Creating(ticket, now)),
                    Err(error) => error,
                },
            },
            Stage::Created(created) => {
                let created = created.map_err(ReviveError::from);
                match created.and_then(|()| settle_in(host, attachment)) {
                    Ok(()) => {
                        self.equipped = true;
                        if self.how.is_empty() {
                            log::warn!(
                                "stub {name} was half made by a service before this one, and serves now"
                            );
                            return Ok((Verdict::Serve, Stage::Lives));
                        }
                        self.lives.begin(clock);
                        log::warn!(
                            "stub {name} is back after {} ms, for the {}. time",
                            self.died.elapsed().as_millis(),
                            self.lives.revivals()
                        );
                        return Ok((Verdict::Serve, Stage::Lives));
                    }
                    Err(error) => error,
                }
            }
        };
        let is_final = error.is_final();
        log::error!(
            "stub {name} is not brought back: {:#}",
            anyhow::Error::from(error)
        );
        // One that was created and could not be given what it needs; else there is nothing to destroy.
        if domains::is_alive(&mut host.store, &attachment.stub)?
            && let Runner::Launcher(launcher) = &mut host.runner
        {
            let domid = attachment.stub.domid;
            match launcher.order(Order::DestroyDomain { domid }) {
                Ok(ticket) => return stay(Stage::Clearing { ticket, is_final }),
                Err(error) => log::error!("cannot destroy what there is of stub {name}: {error}"),
            }
        }
        stay(Stage::Cleared { is_final })
    }

    fn condition(&mut self, host: &mut Host, attachment: &Attachment) -> Result<Condition, StoreError> {
        let (condition, equipped) = equipped(condition(host, attachment)?, self.equipped);
        self.equipped = equipped;
        Ok(condition)
    }

    /// Has the guest let go of its devices.
    fn unplug(
        &self,
        host: &mut Host,
        attachment: &Attachment,
        afterwards: Afterwards,
        now: Instant,
    ) -> Result<(Verdict, Stage), RecordError> {
        let guest = &attachment.guest.name;
        if afterwards == Afterwards::Nothing {
            let reason = format!("{}, {} times in a row", self.how, self.lives.short() + 1);
            Failed::new(attachment, &reason).write(&mut host.store)?;
            log::error!("stub {} is given up: it {reason}", attachment.stub.name);
        }
        log::warn!("the devices of guest {guest} are unplugged");
        unplug::begin(&mut host.store, attachment)?;
        let stage = Stage::Unplugging(Unplugging {
            look: now + UNPLUG_LOOK,
            deadline: now + UNPLUG_PATIENCE,
            afterwards,
        });
        Ok((Verdict::Leave, stage))
    }
}

impl Unplugging {
    /// Sees whether the guest has let go. While the stub `is_busy`, because something else is being done for it, its
    /// devices cannot be taken back: that comes later.
    fn look(
        self,
        store: &mut Store,
        attachment: &Attachment,
        is_busy: bool,
        now: Instant,
    ) -> Result<(Verdict, Stage), RecordError> {
        let guest = &attachment.guest.name;
        let again = Stage::Unplugging(Self {
            look: now + UNPLUG_LOOK,
            ..self
        });
        if unplug::is_over(store, attachment)? {
            if is_busy {
                return Ok((Verdict::Leave, again));
            }
            unplug::clear(store, attachment)?;
            log::warn!("guest {guest} has let go of its devices");
            // Until its devices are taken back.
            return Ok((Verdict::Release(self.afterwards), again));
        }
        if now < self.deadline {
            return Ok((Verdict::Leave, again));
        }
        log::error!("guest {guest} does not let go of its devices: `bulkhead destroy {guest}` frees them");
        Ok((Verdict::Leave, Stage::Stuck))
    }
}

/// What a domain is like of which it is known whether it has had all that it needs; and whether it has by now. One that
/// has is not half made, whatever it has removed of its nodes since.
fn equipped(found: Condition, before: bool) -> (Condition, bool) {
    match found {
        Condition::Naked if before => (Condition::Alive, true),
        Condition::Alive => (found, true),
        Condition::Dead(_) => (found, false),
        _ => (found, before),
    }
}

/// Keeps what a dead stub has left: in its home, if it still has one, and in its page. What cannot be kept is lost, and
/// the stub comes back all the same: the next one reads from the devices what it can.
fn keep(host: &mut Host, attachment: &Attachment, handover_block: Option<String>) {
    let published = stub_backup::keep_published(&mut host.store, first_hop(attachment));
    let page = handover_block.map(|handover_block| {
        stub_backup::keep_handover_block(&mut host.store, attachment.stub.domid, &handover_block)
    });
    for error in [published.err(), page.and_then(Result::err)]
        .into_iter()
        .flatten()
    {
        log::warn!("stub {}: what it has left is lost: {error}", attachment.stub.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0};
    use crate::records::tests::attachment;
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;
    use xenbus::path::key;
    use xenbus::state::XenbusState;

    const STUB: DomId = 4;
    const AGES: Duration = Duration::from_secs(3600);

    fn at(stage: Stage) -> Revivals {
        let mut revivals = Revivals::new();
        let revival = Revival {
            lives: Lives::default(),
            stage,
            died: Instant::now(),
            how: "",
            called: false,
            equipped: false,
        };
        revivals.stubs.insert(STUB, revival);
        revivals
    }

    fn unplugging(look: Instant) -> Stage {
        Stage::Unplugging(Unplugging {
            look,
            deadline: look + AGES,
            afterwards: Afterwards::Replug,
        })
    }

    #[test]
    fn a_stub_is_called_once_when_its_time_has_come() {
        let (launcher, _) = Launcher::to_a_thread();
        let (mut runner, mut store) = (Runner::Launcher(launcher), dom0(&Xenstored::new()));
        let now = Instant::now();
        for stage in [
            Stage::Due(now),
            unplugging(now),
            Stage::Cleared { is_final: false },
            Stage::Created(Ok(())),
        ] {
            let mut revivals = at(stage);
            // Nothing else need happen for it to be called.
            assert_eq!(revivals.due(), Some(Duration::ZERO));
            assert_eq!(revivals.ready(&mut runner, &mut store).unwrap(), [STUB]);
            // Until it is looked at: nobody waits with no time at all meanwhile.
            assert_eq!(revivals.ready(&mut runner, &mut store).unwrap(), [0; 0]);
            assert_eq!(revivals.due(), None);
        }
        for stage in [Stage::Lives, Stage::Off, Stage::Stuck] {
            assert_eq!(at(stage).ready(&mut runner, &mut store).unwrap(), [0; 0]);
        }
        for stage in [Stage::Due(now + AGES), unplugging(now + AGES)] {
            let mut revivals = at(stage);
            assert_eq!(revivals.ready(&mut runner, &mut store).unwrap(), [0; 0]);
            assert!(revivals.due().unwrap() > AGES / 2);
        }
    }

    #[test]
    fn the_launchers_answer_brings_the_next_stage() {
        let (mut launcher, _) = Launcher::to_a_thread();
        // There is no Xen here: both fail.
        let order = Order::DestroyDomain { domid: 32_751 };
        let tickets = [
            launcher.order(order.clone()).unwrap(),
            launcher.order(order).unwrap(),
        ];
        let (mut runner, mut store) = (Runner::Launcher(launcher), dom0(&Xenstored::new()));
        let stages = [
            Stage::Creating(tickets[0], Instant::now()),
            Stage::Clearing {
                ticket: tickets[1],
                is_final: true,
            },
        ];
        for (stage, is_creating) in stages.into_iter().zip([true, false]) {
            let mut revivals = at(stage);
            assert!(revivals.expect_answers());
            assert_eq!(revivals.is_creating(STUB), is_creating);
            while revivals.ready(&mut runner, &mut store).unwrap().is_empty() {
                std::thread::yield_now();
            }
            assert!(!revivals.expect_answers() && !revivals.is_creating(STUB));
            let stage = &revivals.stubs[&STUB].stage;
            assert!(matches!(
                stage,
                Stage::Created(Err(_)) | Stage::Cleared { is_final: true }
            ));
        }
    }

    #[test]
    fn a_creation_that_does_not_end_holds_nobody_up_for_ever() {
        let (mut launcher, _) = Launcher::to_a_thread();
        let ticket = launcher.order(Order::DestroyDomain { domid: 32_751 }).unwrap();
        // The answer is taken, so that none comes any more.
        launcher.wait(ticket).unwrap_err();
        let (mut runner, mut store) = (Runner::Launcher(launcher), dom0(&Xenstored::new()));
        let began = Instant::now();
        let mut revivals = at(Stage::Creating(ticket, began));
        assert!(revivals.due().unwrap() > CREATION / 2);
        assert_eq!(revivals.ready(&mut runner, &mut store).unwrap(), [0; 0]);
        assert!(revivals.is_creating(STUB));

        let began = began.checked_sub(CREATION).unwrap();
        let mut revivals = at(Stage::Creating(ticket, began));
        assert_eq!(
            revivals.due(),
            Some(Duration::ZERO),
            "the service wakes up for it"
        );
        assert_eq!(revivals.ready(&mut runner, &mut store).unwrap(), [STUB]);
        assert!(!revivals.is_creating(STUB));
        assert!(revivals.expect_answers(), "it may end yet");
        // It is called once, also after it has been looked at.
        revivals.stubs.get_mut(&STUB).unwrap().called = false;
        assert_eq!(revivals.due(), None);
        assert_eq!(revivals.ready(&mut runner, &mut store).unwrap(), [0; 0]);
        assert!(!at(Stage::Lives).is_creating(STUB + 1));
    }

    #[test]
    fn a_creation_that_ends_late_is_taken_in_all_the_same() {
        let (mut launcher, _) = Launcher::to_a_thread();
        let ticket = launcher.order(Order::DestroyDomain { domid: 32_751 }).unwrap();
        let (mut runner, mut store) = (Runner::Launcher(launcher), dom0(&Xenstored::new()));
        let mut revivals = at(Stage::Overdue(ticket));
        while revivals.ready(&mut runner, &mut store).unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert!(matches!(revivals.stubs[&STUB].stage, Stage::Created(Err(_))));
    }

    #[test]
    fn devices_that_a_guest_has_let_go_of_are_taken_back_once_nothing_else_is_done_for_the_stub() {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        let (mut store, attachment) = (dom0(&daemon), attachment());
        unplug::begin(&mut store, &attachment).unwrap();
        let frontend = first_hop(&attachment).frontend_node(key::STATE);
        let now = Instant::now();
        let unplugging = Unplugging {
            look: now,
            deadline: now + AGES,
            afterwards: Afterwards::Replug,
        };
        let mut look = |state: XenbusState, is_busy, now| {
            connect(&daemon, 3).write(&frontend, state.as_str()).unwrap();
            unplugging.look(&mut store, &attachment, is_busy, now).unwrap()
        };
        let comes_again = |stage: &Stage, now: Instant| {
            matches!(stage, Stage::Unplugging(Unplugging { look, afterwards: Afterwards::Replug, .. })
                if *look == now + UNPLUG_LOOK)
        };
        let (verdict, stage) = look(XenbusState::Closing, false, now);
        assert!(verdict == Verdict::Leave && comes_again(&stage, now));
        // As when a device is reset after an error, which may take longer than the guest has.
        let late = now + AGES;
        let (verdict, stage) = look(XenbusState::Closed, true, late);
        assert!(verdict == Verdict::Leave && comes_again(&stage, late));
        let (verdict, stage) = look(XenbusState::Closed, false, late);
        assert!(verdict == Verdict::Release(Afterwards::Replug) && comes_again(&stage, late));
        let (verdict, stage) = look(XenbusState::Closing, false, late);
        assert!(verdict == Verdict::Leave && matches!(stage, Stage::Stuck));
    }

    #[test]
    fn a_step_that_failed_begins_again_where_it_was() {
        let now = Instant::now();
        assert!(matches!(Stage::Due(now).at_rest(), Stage::Due(due) if due == now));
        assert!(
            matches!(unplugging(now).at_rest(), Stage::Unplugging(Unplugging { look, .. }) if look == now)
        );
        assert!(matches!(Stage::Off.at_rest(), Stage::Off));
        let ticket = Launcher::to_a_thread().0.order(Order::AwaitCreations).unwrap();
        assert!(matches!(Stage::Overdue(ticket).at_rest(), Stage::Overdue(same) if same == ticket));
        // What there is of it by now is seen by a look at its domain.
        assert!(matches!(Stage::Created(Ok(())).at_rest(), Stage::Lives));
    }

    #[test]
    fn a_stub_that_has_had_all_does_not_pass_for_half_made() {
        let (alive, naked, dead) = (Condition::Alive, Condition::Naked, Condition::Dead("crashed"));
        // Created by a service that was killed: it is, once.
        assert_eq!(equipped(naked, false), (naked, false));
        assert_eq!(equipped(naked, true), (alive, true));
        assert_eq!(equipped(alive, false), (alive, true));
        // Its next domain.
        assert_eq!(equipped(dead, true), (dead, false));
        for condition in [Condition::Dying, Condition::Off] {
            assert_eq!(equipped(condition, true), (condition, true));
        }
    }
}
