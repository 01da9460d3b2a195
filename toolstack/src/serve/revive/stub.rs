//! One stub from its death to its return, or to the end of its connection: a state machine, whose steps [`super`] asks for.

use super::backoff::{Backoff, Decision};
use super::stub_domain::{ReviveError, StubState, await_creations, create, provision, stub_state};
use super::unplug;
use crate::host::domains;
use crate::host::launcher::{LaunchError, Order, Ticket};
use crate::host::store::{Store, StoreError};
use crate::host::{Host, Runner};
use crate::nodes::hops::first_hop;
use crate::records::failed::Failed;
use crate::records::stub_backup::{self, Copies};
use crate::records::{Attachment, RecordError};
use std::time::{Duration, Instant};

/// After this time a creation that has not ended no longer keeps the stub's devices from being taken back.
pub const CREATION: Duration = Duration::from_secs(30);
/// How long a guest may take to let go of its devices when nobody answers: some dozen accesses of two seconds.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(300);
/// Interval at which the guest's state is polled meanwhile.
const UNPLUG_POLL: Duration = Duration::from_millis(250);

/// How far the return of a stub has come.
pub enum RevivalStage {
    /// The stub lives, as far as is known.
    Running,
    /// The stub was shut down on purpose. It stays off until it is destroyed.
    Off,
    /// The stub is dead, and is created at this time.
    Due(Instant),
    /// The launcher creates the stub, since this time.
    Creating(Ticket, Instant),
    /// The launcher still creates the stub, for longer than [`CREATION`].
    Overdue(Ticket),
    /// The launcher has created the stub, or has failed to.
    Created(Result<(), LaunchError>),
    /// The launcher destroys what a failed attempt has left.
    Clearing {
        ticket: Ticket,
        /// True if no further attempt is made.
        is_final: bool,
    },
    /// A failed attempt has left nothing.
    Cleared {
        /// True if no further attempt is made.
        is_final: bool,
    },
    /// The stub does not come back. The guest is to let go of its devices.
    Unplugging(Unplugging),
    /// The guest has not let go in time.
    Stuck,
}

/// A guest that is to let go of its devices.
#[derive(Clone, Copy, Debug)]
pub struct Unplugging {
    pub next_poll: Instant,
    /// When the guest should have let go.
    pub deadline: Instant,
    /// What comes when it has.
    pub afterwards: Afterwards,
}

/// What comes after an orderly unplug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// A stub with another number.
    Replug,
    /// Nothing. Stubs of this guest die too often.
    Nothing,
}

impl RevivalStage {
    /// When the next step is to be taken; `None` if an event brings it.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        match *self {
            Self::Due(due) | Self::Unplugging(Unplugging { next_poll: due, .. }) => Some(due),
            // From then on its devices can be taken back. A client may wait for that, so the loop has to wake up.
            Self::Creating(_, since) => Some(since + CREATION),
            Self::Created(_) | Self::Cleared { .. } => Some(now),
            Self::Running | Self::Off | Self::Overdue(_) | Self::Clearing { .. } | Self::Stuck => None,
        }
    }

    /// The stage from which a step that failed is repeated. From [`Self::Running`] the next step looks what there is of the
    /// domain.
    pub fn at_rest(&self) -> Self {
        match *self {
            Self::Off => Self::Off,
            Self::Due(due) => Self::Due(due),
            Self::Creating(ticket, since) => Self::Creating(ticket, since),
            Self::Overdue(ticket) => Self::Overdue(ticket),
            Self::Clearing { ticket, is_final } => Self::Clearing { ticket, is_final },
            Self::Cleared { is_final } => Self::Cleared { is_final },
            Self::Unplugging(unplugging) => Self::Unplugging(unplugging),
            Self::Stuck => Self::Stuck,
            Self::Running | Self::Created(_) => Self::Running,
        }
    }
}

/// Time of a step, and what else goes on for the stub.
#[derive(Clone, Copy)]
pub struct Moment {
    pub now: Instant,
    /// The same on the clock of [`Backoff`].
    pub clock: Duration,
    /// True while something else is being done for the stub.
    pub is_busy: bool,
}

/// What is known of one stub.
pub struct Revival {
    pub backoff: Backoff,
    pub stage: RevivalStage,
    /// When the stub was found dead.
    died: Instant,
    /// How it died, in words; empty while it was not seen to die.
    how: &'static str,
    /// True from the moment that the stub is called ready until its next step.
    pub called: bool,
    /// True once its present domain has had its nodes and its pages.
    is_provisioned: bool,
    /// True once its present domain has been looked at for its network.
    pub is_networked: bool,
}

/// What the service has to do about a stub now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StubAction {
    /// Serve it.
    Serve,
    /// Nothing for now.
    Leave,
    /// Take its devices back, for the guest has let go of them.
    Reclaim(Afterwards),
}

impl Revival {
    /// A stub of which nothing is known but that it has a record.
    pub fn new(now: Instant) -> Self {
        Self {
            backoff: Backoff::default(),
            stage: RevivalStage::Running,
            died: now,
            how: "",
            called: false,
            is_provisioned: false,
            is_networked: false,
        }
    }

    /// Takes the step that is due in `stage`. Returns what the service has to do, and the next stage. `on_death` is called
    /// when the stub is found dead or shut down, and returns its handover block as text.
    pub fn step(
        &mut self,
        host: &mut Host,
        attachment: &Attachment,
        stage: RevivalStage,
        Moment { now, clock, is_busy }: Moment,
        on_death: impl FnOnce() -> Option<String>,
    ) -> Result<(StubAction, RevivalStage), RecordError> {
        let name = &attachment.stub.name;
        let stay = |stage| Ok((StubAction::Leave, stage));
        let error = match stage {
            // The launcher's answer, or the guest's end, brings the next step.
            RevivalStage::Creating(..)
            | RevivalStage::Overdue(_)
            | RevivalStage::Clearing { .. }
            | RevivalStage::Stuck => {
                return stay(stage);
            }
            // An attempt has failed. If no further one can help, a stub of another number may.
            RevivalStage::Cleared { is_final } => {
                return match self.backoff.failed() {
                    Decision::After(delay) if !is_final => stay(RevivalStage::Due(now + delay)),
                    _ => self.unplug(host, attachment, Afterwards::Replug, now),
                };
            }
            RevivalStage::Due(due) if due > now => return stay(stage),
            RevivalStage::Unplugging(unplugging) => {
                return unplugging.poll(&mut host.store, attachment, is_busy, now);
            }
            RevivalStage::Running | RevivalStage::Off => match self.state(host, attachment)? {
                StubState::Alive => return Ok((StubAction::Serve, RevivalStage::Running)),
                // Its number is free when Xen has finished: xenstored's event tells.
                StubState::Dying => return stay(stage),
                StubState::Off => {
                    // Backed up once, when it is first seen off.
                    if matches!(stage, RevivalStage::Running) {
                        keep(host, attachment, on_death());
                        log::warn!(
                            "stub {name} was shut down, and stays so: guest {} cannot configure its devices until \
                             `xl destroy {name}` brings a new one",
                            attachment.guest.name
                        );
                    }
                    return stay(RevivalStage::Off);
                }
                StubState::Dead(how) => {
                    keep(host, attachment, on_death());
                    (self.died, self.how) = (now, how);
                    self.is_networked = false;
                    log::error!("stub {name} {how}");
                    if Failed::of(&mut host.store, attachment.guest.domid)?.is_some() {
                        // An earlier service has given it up. The count of early deaths is lost with that service.
                        return self.unplug(host, attachment, Afterwards::Nothing, now);
                    }
                    return match self.backoff.died(clock) {
                        Decision::After(delay) => stay(RevivalStage::Due(now + delay)),
                        Decision::GiveUp => self.unplug(host, attachment, Afterwards::Nothing, now),
                    };
                }
                // The launcher of a service that was killed may still be creating it.
                StubState::Unprovisioned => match await_creations(host) {
                    Ok(ticket) => return stay(RevivalStage::Creating(ticket, now)),
                    Err(error) => error,
                },
            },
            // Asked once more: the launcher of a service that was killed may have finished what that service had ordered.
            RevivalStage::Due(_) => match self.state(host, attachment)? {
                StubState::Alive => return Ok((StubAction::Serve, RevivalStage::Running)),
                StubState::Unprovisioned => match await_creations(host) {
                    Ok(ticket) => return stay(RevivalStage::Creating(ticket, now)),
                    Err(error) => error,
                },
                StubState::Dying | StubState::Off | StubState::Dead(_) => match create(host, attachment) {
                    Ok(ticket) => return stay(RevivalStage::Creating(ticket, now)),
                    Err(error) => error,
                },
            },
            RevivalStage::Created(created) => {
                let created = created.map_err(ReviveError::from);
                match created.and_then(|()| provision(host, attachment)) {
                    Ok(()) => {
                        self.is_provisioned = true;
                        // This service did not see it die, so that it does not count as a return.
                        if self.how.is_empty() {
                            log::warn!(
                                "stub {name} was left unfinished by an earlier service, and serves now"
                            );
                            return Ok((StubAction::Serve, RevivalStage::Running));
                        }
                        // What was done in this step took time, too.
                        let took = self.died.elapsed();
                        self.backoff.returned(clock + now.elapsed(), took);
                        log::warn!(
                            "stub {name} is back after {} ms, for the {}. time",
                            took.as_millis(),
                            self.backoff.revivals()
                        );
                        return Ok((StubAction::Serve, RevivalStage::Running));
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
        // A domain that was created but could not be given its nodes or pages goes; the next attempt needs its number.
        if domains::is_alive(&mut host.store, &attachment.stub)?
            && let Runner::Launcher(launcher) = &mut host.runner
        {
            let domid = attachment.stub.domid;
            match launcher.order(Order::DestroyDomain { domid }) {
                Ok(ticket) => return stay(RevivalStage::Clearing { ticket, is_final }),
                Err(error) => log::error!("cannot destroy what was created of stub {name}: {error}"),
            }
        }
        stay(RevivalStage::Cleared { is_final })
    }

    /// State of the domain, by what Xen and xenstore say and by what is known of it.
    fn state(&mut self, host: &mut Host, attachment: &Attachment) -> Result<StubState, StoreError> {
        let (state, is_provisioned) = provisioned(stub_state(host, attachment)?, self.is_provisioned);
        self.is_provisioned = is_provisioned;
        Ok(state)
    }

    /// Begins an orderly unplug. If nothing is to come afterwards, the failure is recorded first: a service that starts in
    /// between must not create the stub again.
    fn unplug(
        &self,
        host: &mut Host,
        attachment: &Attachment,
        afterwards: Afterwards,
        now: Instant,
    ) -> Result<(StubAction, RevivalStage), RecordError> {
        let guest = &attachment.guest.name;
        if afterwards == Afterwards::Nothing {
            let reason = format!("{}, {} times in a row", self.how, self.backoff.early_deaths() + 1);
            Failed::new(attachment, &reason).write(&mut host.store)?;
            log::error!("stub {} is given up: it {reason}", attachment.stub.name);
        }
        log::warn!("the devices of guest {guest} are unplugged");
        unplug::begin(&mut host.store, attachment)?;
        let stage = RevivalStage::Unplugging(Unplugging {
            next_poll: now + UNPLUG_POLL,
            deadline: now + UNPLUG_TIMEOUT,
            afterwards,
        });
        Ok((StubAction::Leave, stage))
    }
}

impl Unplugging {
    /// Checks whether the guest has let go. While something else is being done for the stub (`is_busy`), its devices cannot
    /// be taken back, so that the check is repeated.
    fn poll(
        self,
        store: &mut Store,
        attachment: &Attachment,
        is_busy: bool,
        now: Instant,
    ) -> Result<(StubAction, RevivalStage), RecordError> {
        let guest = &attachment.guest.name;
        let again = RevivalStage::Unplugging(Self {
            next_poll: now + UNPLUG_POLL,
            ..self
        });
        if unplug::is_over(store, attachment)? {
            if is_busy {
                return Ok((StubAction::Leave, again));
            }
            unplug::clear(store, attachment)?;
            log::warn!("guest {guest} has let go of its devices");
            // The stage stays, in case the devices cannot be taken back at once.
            return Ok((StubAction::Reclaim(self.afterwards), again));
        }
        if now < self.deadline {
            return Ok((StubAction::Leave, again));
        }
        log::error!("guest {guest} does not let go of its devices: `bulkhead destroy {guest}` frees them");
        Ok((StubAction::Leave, RevivalStage::Stuck))
    }
}

/// State of a domain, and whether it has been provisioned. `before` says whether it had been when it was last asked. A
/// provisioned stub stays so, even if it removes nodes of its own.
fn provisioned(found: StubState, before: bool) -> (StubState, bool) {
    match found {
        StubState::Unprovisioned if before => (StubState::Alive, true),
        StubState::Alive => (found, true),
        // The next domain has to be provisioned again.
        StubState::Dead(_) => (found, false),
        _ => (found, before),
    }
}

/// Backs up what a dead stub has left: the nodes in its home, if it still has one, and its handover block. A failure does not
/// stop the return: the next stub reads from the devices what it can.
fn keep(host: &mut Host, attachment: &Attachment, handover_block: Option<String>) {
    // After `xl destroy` the home is gone. Then the copy that was made while the stub lived stays as it is.
    let published = Copies::default().keep(&mut host.store, first_hop(attachment));
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
pub mod tests {
    use super::*;
    use crate::host::launcher::Launcher;
    use crate::host::store::tests::{connect, dom0};
    use crate::records::tests::attachment;
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;
    use xenbus::path::key;
    use xenbus::state::XenbusState;

    pub const AGES: Duration = Duration::from_secs(3600);

    /// As begun, looked at again at `next_poll`.
    pub fn unplugging(next_poll: Instant) -> RevivalStage {
        RevivalStage::Unplugging(Unplugging {
            next_poll,
            deadline: next_poll + AGES,
            afterwards: Afterwards::Replug,
        })
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
            next_poll: now,
            deadline: now + AGES,
            afterwards: Afterwards::Replug,
        };
        let mut poll = |state: XenbusState, is_busy, now| {
            connect(&daemon, 3).write(&frontend, state.as_str()).unwrap();
            unplugging.poll(&mut store, &attachment, is_busy, now).unwrap()
        };
        let comes_again = |stage: &RevivalStage, now: Instant| {
            matches!(stage, RevivalStage::Unplugging(Unplugging { next_poll, afterwards: Afterwards::Replug, .. })
                if *next_poll == now + UNPLUG_POLL)
        };
        let (verdict, stage) = poll(XenbusState::Closing, false, now);
        assert!(verdict == StubAction::Leave && comes_again(&stage, now));
        // As when a device is reset after an error, which may take longer than the guest has.
        let late = now + AGES;
        let (verdict, stage) = poll(XenbusState::Closed, true, late);
        assert!(verdict == StubAction::Leave && comes_again(&stage, late));
        let (verdict, stage) = poll(XenbusState::Closed, false, late);
        assert!(verdict == StubAction::Reclaim(Afterwards::Replug) && comes_again(&stage, late));
        let (verdict, stage) = poll(XenbusState::Closing, false, late);
        assert!(verdict == StubAction::Leave && matches!(stage, RevivalStage::Stuck));
    }

    #[test]
    fn a_step_that_failed_begins_again_where_it_was() {
        let now = Instant::now();
        assert!(matches!(RevivalStage::Due(now).at_rest(), RevivalStage::Due(due) if due == now));
        assert!(
            matches!(unplugging(now).at_rest(), RevivalStage::Unplugging(Unplugging { next_poll, .. }) if next_poll == now)
        );
        assert!(matches!(RevivalStage::Off.at_rest(), RevivalStage::Off));
        let ticket = Launcher::to_a_thread().0.order(Order::AwaitCreations).unwrap();
        assert!(
            matches!(RevivalStage::Overdue(ticket).at_rest(), RevivalStage::Overdue(same) if same == ticket)
        );
        // What there is of it by now is seen by a look at its domain.
        assert!(matches!(
            RevivalStage::Created(Ok(())).at_rest(),
            RevivalStage::Running
        ));
    }

    #[test]
    fn a_stub_that_has_had_all_does_not_pass_for_half_made() {
        let (alive, unprovisioned, dead) = (
            StubState::Alive,
            StubState::Unprovisioned,
            StubState::Dead("crashed"),
        );
        // Created by a service that was killed: it is, once.
        assert_eq!(provisioned(unprovisioned, false), (unprovisioned, false));
        assert_eq!(provisioned(unprovisioned, true), (alive, true));
        assert_eq!(provisioned(alive, false), (alive, true));
        // Its next domain.
        assert_eq!(provisioned(dead, true), (dead, false));
        for state in [StubState::Dying, StubState::Off] {
            assert_eq!(provisioned(state, true), (state, true));
        }
    }
}
