//! `bulkhead detach`: takes devices back from a running guest.

use super::hotplug;
use super::return_devices::{rebind_drivers, reclaim_attachment};
use super::select::{attachments, select};
use super::turn::Turn;
use super::waiting::{GUEST_TIMEOUT, Interrupt, wait};
use crate::control;
use crate::host::Host;
use crate::host::domains::is_alive;
use crate::nodes::progress::Progress;
use crate::records::Attachment;
use crate::say::say;
use anyhow::{Result, ensure};
use pci::bdf::Bdf;
use xenbus::client::Store as _;
use xenbus::path::{Device as Hop, key};
use xenbus::state::XenbusState;

/// Takes devices back from a running guest, after its pcifront has let go of them. `who` is a guest, for all of its devices, or
/// names some of its devices. They stay held, because the guest may still have their memory mapped. If it is `trusted` not to
/// use that, they go back to dom0's drivers.
pub fn detach(who: &[String], trusted: bool) -> Result<()> {
    let mut host = Host::open()?;
    let (mut turn, (attachment, some)) = Turn::take_for(|| {
        let attachments = attachments(&mut host)?;
        let selected = select(&mut host.store, &host.sysfs, &attachments, who)?;
        let some = (!selected.is_all()).then_some(selected.bdfs);
        let attachment = selected.attachment.clone();
        Ok((Some(attachment.guest.clone()), (attachment, some)))
    })?;
    let interrupt = Interrupt::catch()?;
    match some {
        None => detach_all(&mut host, &mut turn, &attachment, trusted, &interrupt),
        Some(bdfs) => hotplug::shrink(&mut host, &mut turn, &attachment, &bdfs, trusted, &interrupt),
    }
}

/// Ends the connection, and with it the stub.
fn detach_all(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    trusted: bool,
    interrupt: &Interrupt,
) -> Result<()> {
    let guest = &attachment.guest;
    ensure!(
        is_alive(&mut host.store, &attachment.stub)?,
        "stub {} is dead, so guest {} cannot be told to let go: try again when `bulkhead status` shows that it is back; \
         `bulkhead destroy {1}` does not wait for that",
        attachment.stub.name,
        guest.name
    );
    // The guest's drivers turn their devices off, and only the service writes registers.
    control::ensure_running()?;
    let hop = Hop::first_hop(attachment.stub.domid, guest.domid);
    let closing = XenbusState::Closing.as_str();
    host.store.write(&hop.backend_node(key::ONLINE), "0")?;
    host.store.write(&hop.backend_node(key::STATE), closing)?;
    let look = || {
        // A guest that dies meanwhile has let go too.
        if !is_alive(&mut host.store, &attachment.guest)? {
            return Ok(Progress::Connected);
        }
        Ok(match host.store.read_state(&hop.frontend_node(key::STATE))? {
            // A guest whose pcifront has never connected has nothing to let go of.
            XenbusState::Closed | XenbusState::Initialising | XenbusState::Unknown => Progress::Connected,
            state => Progress::Waiting(format!(
                "guest {0} does not let go of its devices ({state:?}): does a program in it use them? \
                 `bulkhead destroy {0}` does not ask the guest",
                guest.name
            )),
        })
    };
    turn.give_way(|| wait(GUEST_TIMEOUT, interrupt, look))?;
    say!("guest {} has let go", guest.name);
    let released = reclaim_attachment(host, turn, attachment)?;
    let bdfs: Vec<Bdf> = attachment.bdfs().collect();
    rebind_drivers(host, guest, &bdfs, released, trusted)
}
