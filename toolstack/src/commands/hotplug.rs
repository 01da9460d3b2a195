//! Hotplug: devices are added to, or removed from, a guest whose connection stands.

use super::create::forget_at_other_guests;
use super::dry_run::{DryRun, service_runs};
use super::prepare::{self, Admitted};
use super::return_devices::{rebind_drivers, reclaim_devices};
use super::turn::Turn;
use super::undo::Undo;
use super::waiting::{GUEST_TIMEOUT, Interrupt, wait};
use crate::admission::policy::Choices;
use crate::admission::{Groups, check_leaving};
use crate::control::{self, Request};
use crate::handover::grant;
use crate::host::Host;
use crate::host::domains::is_alive;
use crate::nodes::device_list::{self, List};
use crate::nodes::progress::{Progress, change_progress, stub_says};
use crate::records::Attachment;
use crate::say::say;
use anyhow::{Context, Result, ensure};
use bulkhead_config::options::Wanted;
use inject::Point;
use pci::bdf::Bdf;
use std::time::Duration;
use xenbus::state::XenbusState;

/// Gives a guest more devices. On any failure it keeps those that it had.
pub fn grow(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    wanted: &[Wanted],
    choices: &Choices,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<()> {
    let already: Vec<Bdf> = attachment.bdfs().collect();
    let guest = Some(&attachment.guest);
    let admit = |host: &mut Host| prepare::admit(host, wanted, choices, guest, &already, attachment.slots);
    let mut admitted = admit(host)?;
    ensure_stub(host, attachment)?;
    control::ensure_running()?;
    // The list can change only while both ends are Connected. An earlier change may still be under way.
    if change_progress(&mut host.store, attachment)? != Progress::Connected {
        wait_settled(host, turn, attachment, timeout, interrupt)?;
        // The stub may have died meanwhile, and another command may have taken one of the devices.
        ensure!(attachment.is_recorded(&mut host.store)?, busy(attachment));
        ensure_stub(host, attachment)?;
        admitted = admit(host)?;
    }

    let mut undo = Undo::new()?;
    match add(host, turn, attachment, &admitted, timeout, interrupt, &mut undo) {
        Ok(()) => {
            let guest = &attachment.guest.name;
            let bdfs = admitted.bdfs().iter();
            bdfs.for_each(|bdf| say!("guest {guest} has {bdf}"));
            Ok(())
        }
        Err(error) => {
            undo.undo(host, turn);
            Err(error)
        }
    }
}

/// What [`grow`] would do. Nothing is changed.
pub fn plan_growth(
    host: &mut Host,
    attachment: &Attachment,
    wanted: &[Wanted],
    choices: &Choices,
) -> Result<DryRun> {
    let already: Vec<Bdf> = attachment.bdfs().collect();
    let guest = Some(&attachment.guest);
    let admitted = prepare::admit(host, wanted, choices, guest, &already, attachment.slots)?;
    ensure_stub(host, attachment)?;
    let (devices, notes) = admitted.plan()?;
    Ok(DryRun {
        command: "attach",
        service_runs: service_runs(),
        guest: attachment.guest.name.clone(),
        config: None,
        stub: attachment.stub.name.clone(),
        image: None,
        network: None,
        slots: attachment.slots.to_string(),
        devices,
        notes,
    })
}

/// The part of [`grow`] that changes things. `undo` has what it did.
fn add(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    admitted: &Admitted,
    timeout: Duration,
    interrupt: &Interrupt,
    undo: &mut Undo,
) -> Result<()> {
    admitted.seize(host, interrupt, undo)?;
    let devices = admitted.describe()?;
    let (attachment_of_undo, bdfs) = (attachment.with(devices.clone()), admitted.bdfs().to_vec());
    undo.push(move |host, turn| undo_add(host, turn, &attachment_of_undo, &bdfs));
    // The record, then the service, then the lists: the stub asks for a device as soon as it is in its list.
    let grown = grant::extend(host, attachment, &devices)?;
    for device in &devices {
        forget_at_other_guests(host, attachment.guest.uuid.as_str(), device.bdf)?;
    }
    let stub = attachment.stub.domid;
    // The service answers once nothing else is under way with this stub, such as a reset.
    turn.give_way(|| Ok(control::ask_again(&Request::Follow { stub })?))?;
    interrupt.check()?;
    let added = device_list::add(&mut host.store, &grown, &devices)?;
    ensure!(added, busy(attachment));
    inject::point(Point::Listed);
    wait_settled(host, turn, &grown, timeout, interrupt)?;

    let list = List::read(&mut host.store, &grown)?;
    // A bad device is refused alone. All that were asked for count here, so that the command undoes the others.
    for &bdf in admitted.bdfs() {
        let entry = list.entry(bdf);
        let exported = entry.is_some_and(|entry| entry.state == XenbusState::Initialised);
        let why = entry.and_then(|entry| entry.error.as_deref());
        ensure!(exported, "{}", stub_says(&attachment.stub.name, bdf, why));
    }
    Ok(())
}

/// Takes some of a guest's devices back, after its drivers have let go of them. On failure the guest keeps them.
pub fn shrink(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    bdfs: &[Bdf],
    trusted: bool,
    interrupt: &Interrupt,
) -> Result<()> {
    let leaving = |bdf: &Bdf| bdfs.contains(bdf);
    let (leave, stay): (Vec<_>, Vec<_>) = attachment
        .devices
        .iter()
        .cloned()
        .partition(|device| leaving(&device.bdf));
    let groups =
        Groups::among(&host.xen, bdfs, &[attachment.guest.domid]).context("cannot ask Xen for groups")?;
    // Memory is taken away by the page, and DMA by the group: some devices leave only together.
    check_leaving(&leave, &stay, &groups)?;
    ensure_stub(host, attachment)?;
    // The guest's drivers turn their devices off, and only the service writes registers.
    control::ensure_running()?;
    let_go(host, turn, attachment, bdfs, interrupt)?;
    for bdf in bdfs {
        say!("guest {} has let go of {bdf}", attachment.guest.name);
    }
    let released = reclaim_devices(host, turn, attachment, bdfs)?;
    rebind_drivers(host, &attachment.guest, bdfs, released, trusted)
}

/// Takes devices back that [`add`] has given as far as it came.
fn undo_add(host: &mut Host, turn: &mut Turn, attachment: &Attachment, bdfs: &[Bdf]) -> Result<()> {
    // Withdrawn if the guest has not looked yet; else it is asked to let go, without heed of signals.
    device_list::withdraw(&mut host.store, attachment, bdfs)?;
    let_go(host, turn, attachment, bdfs, &Interrupt::default())?;
    let problems = reclaim_devices(host, turn, attachment, bdfs)?.problems;
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

/// Asks guest and stub to let go of devices, and waits for that.
fn let_go(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    bdfs: &[Bdf],
    interrupt: &Interrupt,
) -> Result<()> {
    wait_settled(host, turn, attachment, GUEST_TIMEOUT, interrupt)?;
    let asked = device_list::ask_back(&mut host.store, attachment, bdfs)?;
    ensure!(asked, busy(attachment));
    inject::point(Point::Listed);
    if let Err(error) = wait_settled(host, turn, attachment, GUEST_TIMEOUT, interrupt) {
        turn.resume()?;
        // The request is withdrawn, or the guest would let go of the devices much later, unasked.
        let kept = device_list::withdraw(&mut host.store, attachment, bdfs)?;
        let hint = format!(
            "guest {0} {1}; `bulkhead destroy {0}` does not ask the guest",
            attachment.guest.name,
            if kept {
                "keeps the devices"
            } else {
                "may still let go of them: try again"
            }
        );
        return Err(error.context(hint));
    }
    let list = List::read(&mut host.store, attachment)?;
    ensure!(!list.has_any(bdfs), busy(attachment));
    Ok(())
}

/// Waits until no change of the devices is under way.
fn wait_settled(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<()> {
    let look = || Ok(change_progress(&mut host.store, attachment)?);
    turn.give_way(|| wait(timeout, interrupt, look))
}

/// Checks that the stub lives. Without it nobody takes part in a change of the devices.
fn ensure_stub(host: &mut Host, attachment: &Attachment) -> Result<()> {
    let guest = &attachment.guest.name;
    ensure!(
        is_alive(&mut host.store, &attachment.stub)?,
        "stub {} is dead, so the devices of guest {guest} cannot change: try again when `bulkhead status` shows that it \
         is back; `bulkhead destroy {guest}` does not wait for that",
        attachment.stub.name
    );
    Ok(())
}

/// Why the list of devices could not be changed.
fn busy(attachment: &Attachment) -> String {
    let (guest, stub) = (&attachment.guest.name, &attachment.stub.name);
    format!("guest {guest} and stub {stub} changed their connection at the same moment: try again")
}
