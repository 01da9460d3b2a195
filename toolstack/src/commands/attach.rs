//! `bulkhead attach`: gives devices to a guest that exists.

use super::create::{attach_admitted, check_kernel, create_stub, stub_name, wait_for_guest, wait_for_stub};
use super::hotplug;
use super::prepare;
use super::select::attachments;
use super::turn::Turn;
use super::undo::Undo;
use super::waiting::Interrupt;
use crate::admission::policy::Choices;
use crate::control;
use crate::host::Host;
use crate::host::domains::{self, Domain, DomainError};
use crate::host::guest_config::{GuestConfig, check_stub};
use crate::host::xl;
use crate::records::Attachment;
use crate::say::say;
use anyhow::{Context, Result, ensure};
use bulkhead_config::options::Wanted;
use std::path::PathBuf;
use std::time::Duration;
use xen::xenctrl::DomainState;
use xenbus::client::Store as _;
use xenbus::device::SlotMode;
use xenbus::path::Device as Hop;

/// Arguments of `attach`.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The guest, by name or number.
    pub guest: String,
    /// The stub, by name or number.
    pub stub: Option<String>,
    /// The devices that the guest gets.
    pub devices: Vec<Wanted>,
    /// Choices for all of them.
    pub choices: Choices,
    /// How the guest addresses them; `None`: as the devices that it has.
    pub slots: Option<SlotMode>,
    /// The image of a stub that is created.
    pub kernel: PathBuf,
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
    ensure!(
        guest.domid != 0,
        "{} is dom0, which has the devices: name a guest",
        request.guest
    );
    let attachments = attachments(&mut host)?;
    match attachments
        .iter()
        .find(|attachment| attachment.guest.domid == guest.domid)
    {
        // A guest has one backend, so further devices come through the stub that it has.
        Some(attachment) => {
            let stub = &attachment.stub;
            let named = request.stub.as_deref();
            ensure!(
                named.is_none_or(|name| name == stub.name || name == stub.domid.to_string()),
                "guest {} has devices already, through stub {}: it can have one stub only, so leave --stub out",
                guest.name,
                stub.name
            );
            ensure!(
                request.slots.is_none_or(|slots| slots == attachment.slots),
                "guest {} addresses its devices by --slots {}, all of them: leave --slots out",
                guest.name,
                attachment.slots
            );
            hotplug::grow(
                &mut host,
                &mut turn,
                attachment,
                &request.devices,
                &request.choices,
                request.wait,
                &interrupt,
            )
        }
        None => attach_first(&mut host, &mut turn, request, guest, &attachments, &interrupt),
    }
}

/// Gives a guest its first devices. Its stub is created if there is none.
fn attach_first(
    host: &mut Host,
    turn: &mut Turn,
    request: &Attach,
    guest: Domain,
    attachments: &[Attachment],
    interrupt: &Interrupt,
) -> Result<()> {
    let domid = guest.domid.to_string();
    GuestConfig::from_json(&xl::config_of(&domid)?)?.check()?;
    check_kernel(&request.kernel)?;
    let stub = find_stub(host, &guest, request, attachments)?;
    // Devices by xl and by Bulkhead at once would be two backends.
    check_no_frontend(host, &guest)?;
    let slots = request.slots.unwrap_or_default();
    let admitted = prepare::admit(host, &request.devices, &request.choices, Some(&guest), &[], slots)?;
    control::ensure_running()?;

    let mut undo = Undo::new()?;
    let steps = || {
        admitted.seize(host, interrupt, &mut undo)?;
        let (stub, is_ours) = match stub {
            Some(stub) => (stub, false),
            None => (create_stub(host, &guest, &request.kernel, &mut undo)?, true),
        };
        interrupt.check()?;
        let attachment = attach_admitted(host, guest, stub, slots, &admitted, is_ours, &mut undo)?;
        // A paused guest cannot connect: then the stub's part is all there is to wait for.
        let paused = xl::is_paused(&domid)?;
        turn.suspend();
        if paused {
            wait_for_stub(host, &attachment, interrupt)?;
        } else {
            wait_for_guest(host, &attachment, request.wait, interrupt)?;
        }
        Ok((attachment, paused))
    };
    match steps() {
        Ok((attachment, paused)) => {
            let (guest, stub) = (&attachment.guest.name, &attachment.stub.name);
            if paused {
                say!(
                    "stub {stub} offers the devices to guest {guest}, which is paused: `xl unpause {guest}`"
                );
            } else {
                say!("guest {guest} has its devices through stub {stub}: `bulkhead status` shows them");
            }
            Ok(())
        }
        Err(error) => {
            undo.undo(host, turn);
            Err(error)
        }
    }
}

/// The stub that is named, or the one with the usual name for this guest; `None` if that has to be created. A domain that is no
/// stub is refused, because it would be given nodes that mean something else to it.
fn find_stub(
    host: &mut Host,
    guest: &Domain,
    request: &Attach,
    attachments: &[Attachment],
) -> Result<Option<Domain>> {
    let usual = stub_name(&guest.name);
    let named = request.stub.as_deref();
    let stub = match (domains::find(&mut host.store, named.unwrap_or(&usual)), named) {
        (Ok(stub), _) => stub,
        (Err(DomainError::NotFound { .. }), None) => return Ok(None),
        (Err(error), _) => {
            return Err(error).with_context(|| {
                let name = named.unwrap_or(&usual);
                format!(
                    "no stub {name}: create it with `xl create stubdom.cfg 'name=\"{name}\"'`, or leave --stub out"
                )
            });
        }
    };
    check_is_free(&stub, guest, attachments)?;
    // Stubs are preserved when they crash, so that a dead one still has its name and number.
    let state = host
        .xen
        .domain_state(stub.domid)
        .context("cannot ask Xen about the stub")?;
    ensure!(
        state == DomainState::Alive,
        "stub {0} is dead ({state:?}): `xl destroy {0}`, and try again",
        stub.name
    );
    // By dom0's own record of how the domain was created. Its name and its nodes could be anybody's.
    let config = xl::config_of(&stub.domid.to_string())?;
    check_stub(&config, &stub.name, &request.kernel).with_context(|| match named {
        Some(_) => {
            "--stub is for a domain that was created from stubdom.cfg, and --kernel for its image".to_owned()
        }
        None => format!(
            "the stub of guest {} would have that name: rename the domain, or name a stub with --stub",
            guest.name
        ),
    })?;
    Ok(Some(stub))
}

/// Checks by the records that a domain can become the stub of a guest.
fn check_is_free(stub: &Domain, guest: &Domain, attachments: &[Attachment]) -> Result<()> {
    ensure!(stub.domid != 0, "{} is dom0, and no stub", stub.name);
    ensure!(
        stub.domid != guest.domid,
        "{} cannot be guest and stub at once",
        guest.name
    );
    for attachment in attachments {
        ensure!(
            attachment.stub.domid != stub.domid,
            "{} is the stub of guest {} already: name another, or leave --stub out",
            stub.name,
            attachment.guest.name
        );
        ensure!(
            attachment.guest.domid != stub.domid,
            "{} is a guest that has devices, and no stub",
            stub.name
        );
    }
    Ok(())
}

/// Checks that the guest has no PCI frontend of xl's. pcifront has one backend only.
fn check_no_frontend(host: &mut Host, guest: &Domain) -> Result<()> {
    let frontend = Hop::first_hop(0, guest.domid).frontend_dir();
    ensure!(
        host.store.read_optional(&frontend)?.is_none(),
        "guest {} has a PCI frontend already ({frontend}): it can have one backend only",
        guest.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::{attachment, domain};

    #[test]
    fn a_stub_serves_one_guest_and_is_none_itself() {
        let attachments = [attachment()];
        let mail = domain(7, "mail");
        check_is_free(&domain(9, "mail-bulkhead"), &mail, &attachments).unwrap();
        for (stub, expected) in [
            (domain(0, "Domain-0"), "Domain-0 is dom0"),
            (mail.clone(), "mail cannot be guest and stub"),
            (domain(4, "renamed"), "renamed is the stub of guest web already"),
            (domain(3, "web"), "web is a guest that has devices"),
        ] {
            let error = check_is_free(&stub, &mail, &attachments).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
