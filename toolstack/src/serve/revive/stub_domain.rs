//! The domain of a stub: its state, and how it is created again.

use crate::host::domains::is_alive;
use crate::host::launcher::{LaunchError, Order, Ticket};
use crate::host::recreate::NewStub;
use crate::host::store::{Store, StoreError};
use crate::host::{Host, Runner};
use crate::nodes::hops::{HopNodes, first_hop};
use crate::records::Attachment;
use crate::records::stub_backup;
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::io;
use thiserror::Error;
use xen::xenctrl::{DomainState, Hypervisor as _};
use xenbus::client::Store as _;
use xenbus::path::{Device as Second, key};

/// Why a stub was not brought back.
#[derive(Debug, Error)]
pub enum ReviveError {
    /// There is nothing to create it from.
    #[error("its configuration was not kept")]
    NoConfig,
    /// There is another domain with its number.
    #[error("another domain has its number by now")]
    Taken,
    /// Nobody to create it.
    #[error("this process runs no other programs")]
    NoLauncher,
    /// It cannot be created.
    #[error("cannot create it")]
    Create(#[from] LaunchError),
    /// It cannot read its device.
    #[error("Xen refused it the configuration page of {bdf}")]
    Page {
        bdf: Bdf,
        #[source]
        source: io::Error,
    },
    /// It cannot run.
    #[error("Xen does not let it run")]
    Unpause(#[source] io::Error),
    /// xenstore failed.
    #[error("cannot write its nodes in xenstore")]
    Store(#[from] StoreError),
}

impl ReviveError {
    /// True if no further attempt can succeed either.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::NoConfig | Self::NoLauncher)
    }
}

/// State of a stub's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StubState {
    /// It runs.
    Alive,
    /// Xen is destroying it.
    Dying,
    /// It is dead. The text says how.
    Dead(&'static str),
    /// It was shut down on purpose.
    Off,
    /// It was created again, and the service that did so died before it had written all nodes.
    Unprovisioned,
}

/// Asks Xen and xenstore about a stub's domain.
pub fn stub_state(host: &mut Host, attachment: &Attachment) -> Result<StubState, StoreError> {
    let stub = &attachment.stub;
    let state = host.xen.domain_state(stub.domid).unwrap_or_else(|error| {
        log::error!("cannot ask Xen about stub {}: {error}", stub.name);
        // A stub is not taken for dead because a question has failed.
        DomainState::Alive
    });
    judge(&mut host.store, state, attachment)
}

fn judge(store: &mut Store, state: DomainState, attachment: &Attachment) -> Result<StubState, StoreError> {
    let stub = &attachment.stub;
    if !is_alive(store, stub)? {
        return Ok(StubState::Dead("was destroyed"));
    }
    match state {
        DomainState::ShutDown(reason) => {
            return Ok(why_shut_down(reason).map_or(StubState::Off, StubState::Dead));
        }
        DomainState::Dying | DomainState::Absent => return Ok(StubState::Dying),
        DomainState::Alive => {}
    }
    let node = first_hop(attachment).backend_node(key::STATE);
    let home = xenbus::path::home(stub.domid);
    // `provision` writes the first hop last.
    let unprovisioned = store.read_optional(&node)?.is_none()
        // A domain without a home is being destroyed.
        && store.read_optional(&home)?.is_some()
        && !stub_backup::published(store, stub.domid)?.is_empty();
    Ok(if unprovisioned {
        StubState::Unprovisioned
    } else {
        StubState::Alive
    })
}

/// What went wrong, by `SHUTDOWN_*` of `xen/include/public/sched.h`; `None` if it was asked to power off or to restart.
fn why_shut_down(reason: u8) -> Option<&'static str> {
    match reason {
        0 | 1 => None,
        3 => Some("crashed"),
        4 => Some("hung, and Xen's watchdog ended it"),
        _ => Some("shut itself down"),
    }
}

/// Has the launcher create the domain again, with the same number.
pub fn create(host: &mut Host, attachment: &Attachment) -> Result<Ticket, ReviveError> {
    let domid = attachment.stub.domid;
    // A domain has the number, and xenstored says that it is not the stub.
    if matches!(host.xen.domain_state(domid), Ok(DomainState::Alive))
        && !is_alive(&mut host.store, &attachment.stub)?
    {
        return Err(ReviveError::Taken);
    }
    let config = stub_backup::config(&mut host.store, domid)?.ok_or(ReviveError::NoConfig)?;
    let Runner::Launcher(launcher) = &mut host.runner else {
        return Err(ReviveError::NoLauncher);
    };
    Ok(launcher.order(Order::Recreate(NewStub { domid, config }))?)
}

/// Has the launcher answer when it creates no stub any more. A domain that was found without its nodes is complete by then,
/// or never will be.
pub fn await_creations(host: &mut Host) -> Result<Ticket, ReviveError> {
    let Runner::Launcher(launcher) = &mut host.runner else {
        return Err(ReviveError::NoLauncher);
    };
    Ok(launcher.order(Order::AwaitCreations)?)
}

/// Gives a stub that was created again all that the last one had, and lets it run.
pub fn provision(host: &mut Host, attachment: &Attachment) -> Result<(), ReviveError> {
    let stub = attachment.stub.domid;
    // Rights over memory belong to a domain, and went with the dead one.
    for device in &attachment.devices {
        let bdf = device.bdf;
        let allowed = host.xen.allow_frames(stub, device.ecam, 1, true);
        allowed.map_err(|source| ReviveError::Page { bdf, source })?;
    }
    let published = stub_backup::published(&mut host.store, stub)?;
    // The second hop comes first, for the stub needs it before it can answer the guest. The first hop comes last, for its
    // state tells a service that starts in between that all is done.
    HopNodes::second(attachment).write(&mut host.store)?;
    if let Some(handover_block) = stub_backup::handover_block(&mut host.store, stub)? {
        let node = Second::second_hop(stub).backend_node(key::HANDOVER_BLOCK);
        host.store.write(&node, &handover_block)?;
    }
    match host.xen.unpause(stub) {
        // It runs already: an earlier service got as far as this.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
        unpaused => unpaused.map_err(ReviveError::Unpause)?,
    }
    Ok(HopNodes::write_again(&mut host.store, attachment, &published)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0, introduce};
    use crate::records::tests::attachment;
    use xenbus::model::Xenstored;

    #[test]
    fn a_stub_is_dead_off_or_on_its_way_by_what_xen_says() {
        let daemon = Xenstored::new();
        introduce(&daemon, 4, "web-bulkhead");
        let mut store = dom0(&daemon);
        for (state, expected) in [
            (DomainState::ShutDown(0), StubState::Off),
            (DomainState::ShutDown(1), StubState::Off),
            (DomainState::ShutDown(2), StubState::Dead("shut itself down")),
            (DomainState::ShutDown(3), StubState::Dead("crashed")),
            (
                DomainState::ShutDown(4),
                StubState::Dead("hung, and Xen's watchdog ended it"),
            ),
            (DomainState::Dying, StubState::Dying),
            (DomainState::Absent, StubState::Dying),
            (DomainState::Alive, StubState::Alive),
        ] {
            assert_eq!(
                judge(&mut store, state, &attachment()).unwrap(),
                expected,
                "{state:?}"
            );
        }
        daemon.release(4);
        for state in [DomainState::Alive, DomainState::Absent] {
            let dead = judge(&mut store, state, &attachment()).unwrap();
            assert_eq!(dead, StubState::Dead("was destroyed"));
        }
    }

    #[test]
    fn a_stub_without_what_the_last_one_had_was_created_anew() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        introduce(&daemon, 4, "web-bulkhead");
        let mut store = dom0(&daemon);
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        let look = |daemon: &Xenstored| judge(&mut dom0(daemon), DomainState::Alive, &attachment).unwrap();
        assert_eq!(
            look(&daemon),
            StubState::Alive,
            "its first hop is not written yet"
        );
        HopNodes::first(&attachment).write(&mut store).unwrap();
        stub_backup::Copies::default()
            .keep(&mut store, first_hop(&attachment))
            .unwrap();
        assert_eq!(look(&daemon), StubState::Alive);
        // Bytes that mean nothing are a state all the same.
        let state = first_hop(&attachment).backend_node(key::STATE);
        connect(&daemon, 4).write_bytes(&state, b"\xff").unwrap();
        assert_eq!(look(&daemon), StubState::Alive);
        store.remove(&first_hop(&attachment).backend_dir()).unwrap();
        assert_eq!(look(&daemon), StubState::Unprovisioned);
        store.remove(&xenbus::path::home(4)).unwrap();
        assert_eq!(look(&daemon), StubState::Alive, "it is being destroyed");
    }
}
