//! `bulkhead destroy`: ends a guest and its stub.

use super::give::destroy_built;
use super::return_devices::{left_of, rebind_drivers, reclaim_attachment};
use super::select::{SelectError, attachments, select};
use super::turn::Turn;
use super::waiting::{GUEST_TIMEOUT, Interrupt, POLL};
use crate::handover::reclaim::Released;
use crate::host::Host;
use crate::host::domains::{self, DomainError, present};
use crate::records::{self, Carried, GuestStart, forget_carried, unfinished};
use crate::say::say;
use anyhow::{Result, ensure};
use pci::bdf::Bdf;
use std::thread;
use std::time::Instant;

/// Ends a guest and its stub, and gives its devices back to dom0. A guest that has ended does not get its devices again.
pub fn destroy(who: &str) -> Result<()> {
    let mut host = Host::open()?;
    let turn = Turn::take()?;
    let attachments = attachments(&mut host)?;
    let attachment = match select(&mut host.store, &host.sysfs, &attachments, &[who.to_owned()]) {
        Err(SelectError::Guest { .. }) if destroy_rest(&mut host, who)? => return Ok(()),
        selected => selected?.attachment,
    };
    let guest = &attachment.guest;
    // Its present devices, and those that it had and may still have mapped.
    let mut bdfs: Vec<Bdf> = attachment.bdfs().collect();
    let mapped = records::mapped(&mut host.store)?.into_iter();
    bdfs.extend(mapped.filter_map(|(bdf, by)| (by.uuid == guest.uuid).then_some(bdf)));
    // A signal after the kill would leave the devices held, and no record by which to find them.
    let _signals = Interrupt::catch()?;
    // Other commands for this guest are not waited for: one that waits for the guest ends with it.
    drop(turn);
    // The guest before the stub: a stub that goes first looks like one that has died, and is brought back.
    if let Some(guest) = present(&mut host, guest)? {
        domains::destroy(&mut host, &guest)?;
    }
    say!("guest {} is destroyed", guest.name);
    // Its devices and memory stay assigned to it until Xen has destroyed it.
    let deadline = Instant::now() + GUEST_TIMEOUT;
    while present(&mut host, guest)?.is_some() {
        ensure!(
            Instant::now() < deadline,
            "guest {} does not die: `xl list` shows its state; try again when it is gone",
            guest.name
        );
        thread::sleep(POLL);
    }
    // By now it may have another stub, or other devices.
    let (mut turn, left) = Turn::take_for(|| {
        let left = left_of(&mut host, guest)?;
        Ok((Some(guest.clone()), left))
    })?;
    let mut released = Released::default();
    if let Some(left) = left {
        bdfs.extend(left.bdfs());
        released = reclaim_attachment(&mut host, &mut turn, &left)?;
    }
    // The service has recorded what it would have again after a reboot.
    forget_carried(&mut host.store, &guest.uuid)?;
    bdfs.sort_unstable();
    bdfs.dedup();
    rebind_drivers(&mut host, guest, &bdfs, released, false)
}

/// Ends what there is of a guest without devices. Returns true if there was anything.
fn destroy_rest(host: &mut Host, who: &str) -> Result<bool> {
    // The guest first: a stub that goes before it may be brought back.
    let waited = destroy_waiting(host, who)?;
    Ok(destroy_unfinished(host, who)? || waited)
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

/// Ends a guest that waits, paused, for its devices, and forgets the devices that a guest which has ended was to have again.
/// Returns true if there was either.
fn destroy_waiting(host: &mut Host, who: &str) -> Result<bool> {
    let found = domains::find(&mut host.store, who).ok();
    let mut done = false;
    if let Some(guest) = &found
        && GuestStart::of(&mut host.store, guest)?.is_some_and(|start| start.is_paused())
    {
        destroy_built(host, guest)?;
        say!("guest {} is destroyed: it waited for its devices", guest.name);
        done = true;
    }
    for carried in Carried::all(&mut host.store)? {
        let guest = &carried.guest;
        let meant = match &found {
            Some(found) => found.uuid == guest.uuid,
            None => guest.name == who,
        };
        if !meant {
            continue;
        }
        // What the guest is to have again goes first: a device that cannot be given back must not come back to it.
        forget_carried(&mut host.store, &guest.uuid)?;
        say!(
            "guest {} has ended, and does not get its devices again",
            guest.name
        );
        let bdfs: Vec<Bdf> = carried.devices.iter().map(|device| device.bdf).collect();
        rebind_drivers(host, guest, &bdfs, Released::default(), false)?;
        done = true;
    }
    Ok(done)
}
