//! `bulkhead destroy`: ends a guest and its stub.

use super::return_devices::{rebind_drivers, reclaim_attachment};
use super::select::{SelectError, attachments, select};
use super::waiting::{GUEST_TIMEOUT, POLL};
use crate::control;
use crate::host::Host;
use crate::host::domains::{self, DomainError, is_alive};
use crate::records;
use crate::records::unfinished;
use crate::say::say;
use anyhow::{Result, ensure};
use pci::bdf::Bdf;
use std::thread;
use std::time::Instant;

/// Ends a guest and its stub, and gives its devices back to dom0.
pub fn destroy(who: &str) -> Result<()> {
    let mut host = Host::open()?;
    let _lock = control::lock_commands()?;
    let attachments = attachments(&mut host)?;
    let attachment = match select(&mut host.store, &host.sysfs, &attachments, &[who.to_owned()]) {
        Err(SelectError::Guest { .. }) if destroy_unfinished(&mut host, who)? => return Ok(()),
        selected => selected?.attachment,
    };
    // Its present devices, and those that it had and may still have mapped.
    let mut bdfs: Vec<Bdf> = attachment.bdfs().collect();
    let mapped = records::mapped(&mut host.store)?.into_iter();
    let mapped = mapped.filter(|(bdf, guest)| *guest == attachment.guest && !bdfs.contains(bdf));
    let mapped: Vec<Bdf> = mapped.map(|(bdf, _)| bdf).collect();
    bdfs.extend(mapped);
    // The guest before the stub: a stub that goes first looks like one that has died, and is brought back.
    domains::destroy(&mut host, &attachment.guest)?;
    say!("guest {} is destroyed", attachment.guest.name);
    // Its devices and memory stay assigned to it until Xen has destroyed it.
    let deadline = Instant::now() + GUEST_TIMEOUT;
    while is_alive(&mut host.store, &attachment.guest)? {
        ensure!(
            Instant::now() < deadline,
            "guest {} does not die: `xl list` shows its state; try again when it is gone",
            attachment.guest.name
        );
        thread::sleep(POLL);
    }
    let released = reclaim_attachment(&mut host, attachment)?;
    rebind_drivers(&mut host, &bdfs, released, false)
}

/// Ends what a killed command of Bulkhead's has left: a guest that never ran, a stub without a guest. Returns true if there was
/// anything. Devices that were taken for it stay held.
fn destroy_unfinished(host: &mut Host, who: &str) -> Result<bool> {
    let found = match domains::find(&mut host.store, who) {
        Ok(domain) => Some(domain),
        Err(DomainError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let left = unfinished::left_of(&mut host.store, who, found.as_ref())?;
    // The record of each goes after the domain. If this is cut short it can be done again.
    for domain in &left {
        domains::destroy(host, domain)?;
        unfinished::forget(&mut host.store, &domain.uuid)?;
        say!(
            "{} is destroyed: a command of Bulkhead had created it and was killed before it was done",
            domain.name
        );
    }
    Ok(!left.is_empty())
}
