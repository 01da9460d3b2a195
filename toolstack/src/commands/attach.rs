//! `bulkhead attach`: gives devices to a guest that exists.

use super::dry_run::DryRun;
use super::give::{GuestDoes, Named, give_first, plan_first};
use super::hotplug;
use super::select::attachments;
use super::turn::Turn;
use super::waiting::Interrupt;
use crate::host::Host;
use crate::host::domains::{self, Domain};
use crate::records::Attachment;
use crate::say::say;
use anyhow::{Result, ensure};
use std::time::Duration;

/// Arguments of `attach`.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The guest, by name or number.
    pub guest: String,
    /// The stub, by name or number.
    pub stub: Option<String>,
    /// The devices that the guest gets. Without `slots` it addresses them as those that it has.
    pub named: Named,
    /// Time limit for a running guest to take them.
    pub wait: Duration,
}

/// Gives devices to a guest that exists. A guest without devices gets a stub first.
pub fn attach(request: &Attach) -> Result<()> {
    let mut host = Host::open()?;
    let (mut turn, guest) = Turn::take_for(|| {
        let guest = domains::find(&mut host.store, &request.guest)?;
        Ok((Some(guest.clone()), guest))
    })?;
    let interrupt = Interrupt::catch()?;
    check_is_guest(&guest)?;
    let attachments = attachments(&mut host)?;
    match attachments
        .iter()
        .find(|attachment| attachment.guest.domid == guest.domid)
    {
        // A guest has one backend, so further devices come through the stub that it has.
        Some(attachment) => {
            check_more(request, attachment)?;
            hotplug::grow(
                &mut host,
                &mut turn,
                attachment,
                &request.named.devices,
                &request.named.choices,
                request.wait,
                &interrupt,
            )
        }
        None => {
            let wanted = request.named.wanted(&mut host.store, &guest)?;
            let stub = request.stub.as_deref();
            let given = give_first(
                &mut host,
                &mut turn,
                guest,
                &wanted,
                stub,
                request.wait,
                &interrupt,
            )?;
            let (guest, stub) = (&given.attachment.guest.name, &given.attachment.stub.name);
            match given.guest {
                GuestDoes::Uses => {
                    say!("guest {guest} has its devices through stub {stub}: `bulkhead status` shows them");
                }
                GuestDoes::Starts => say!("guest {guest} starts, with its devices through stub {stub}"),
                GuestDoes::Waits => {
                    say!(
                        "stub {stub} offers the devices to guest {guest}, which is paused: `xl unpause {guest}`"
                    );
                }
            }
            Ok(())
        }
    }
}

/// What [`attach`] would do. Nothing is changed.
pub fn plan(request: &Attach) -> Result<DryRun> {
    let mut host = Host::open()?;
    let guest = domains::find(&mut host.store, &request.guest)?;
    check_is_guest(&guest)?;
    let attachments = attachments(&mut host)?;
    let attachment = attachments
        .iter()
        .find(|attachment| attachment.guest.domid == guest.domid);
    match attachment {
        Some(attachment) => {
            check_more(request, attachment)?;
            let Named { devices, choices, .. } = &request.named;
            hotplug::plan_growth(&mut host, attachment, devices, choices)
        }
        None => {
            let wanted = request.named.wanted(&mut host.store, &guest)?;
            plan_first(&mut host, &guest, &wanted, request.stub.as_deref())
        }
    }
}

fn check_is_guest(domain: &Domain) -> Result<()> {
    ensure!(
        domain.domid != 0,
        "{} is dom0, which has the devices: name a guest",
        domain.name
    );
    Ok(())
}

/// Checks that a guest that has devices can be given more in this way.
fn check_more(request: &Attach, attachment: &Attachment) -> Result<()> {
    let stub = &attachment.stub;
    let named = request.stub.as_deref();
    ensure!(
        named.is_none_or(|name| name == stub.name || name == stub.domid.to_string()),
        "guest {} has devices already, through stub {}: it can have one stub only, so leave --stub out",
        attachment.guest.name,
        stub.name
    );
    ensure!(
        request.named.slots.is_none_or(|slots| slots == attachment.slots),
        "guest {} addresses its devices by --slots {}, all of them: leave --slots out",
        attachment.guest.name,
        attachment.slots
    );
    ensure!(
        !request.named.devices.is_empty(),
        "guest {} has devices already: name others with --device",
        attachment.guest.name
    );
    Ok(())
}
