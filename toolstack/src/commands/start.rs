//! `bulkhead start`: gives a guest the devices that it is to have whenever it starts, and lets it run. The service orders it
//! for each guest that it has paused for that (`serve::starts`).

use super::give::{NamedStub, destroy_built, finish_given, give_first, how_it_ends, let_run};
use super::turn::Turn;
use super::waiting::{Interrupt, wait};
use crate::admission::declared::declared;
use crate::host::Host;
use crate::host::domains::{self, Domain, has_home};
use crate::host::guest_config::GuestConfig;
use crate::host::xl;
use crate::nodes::progress::Progress;
use crate::records::{Attachment, GuestStart, Stage, forget_start};
use crate::say::{notice, say};
use anyhow::{Result, anyhow};
use bulkhead_config::declaration::{DIRECTORY, Unfit};
use std::path::Path;
use std::thread;
use std::time::Duration;
use xen::xenctrl::DomId;

/// Time limit for the toolstack to finish with a domain: its scripts for disks and networks may be slow.
const CREATION: Duration = Duration::from_secs(300);
/// Time limit for the last domain of a guest that reboots to be taken apart, and its devices to be reset.
const LAST_DOMAIN: Duration = Duration::from_secs(60);
/// Time limit for a guest that runs to take its devices: it may still boot.
const RUNNING_GUEST: Duration = Duration::from_secs(600);
/// Interval at which `xl` is asked for the configuration of a domain that is being created.
const ASK: Duration = Duration::from_millis(200);

/// Gives the guest with this number its devices, and lets it run. A guest that cannot have them meets what its declaration
/// says.
pub fn start(domid: DomId) -> Result<()> {
    let mut host = Host::open()?;
    let interrupt = Interrupt::catch()?;
    let Some(guest) = domains::all(&mut host.store)?
        .into_iter()
        .find(|guest| guest.domid == domid)
    else {
        return Ok(());
    };
    if under_way(&mut host, &guest)?.is_none() {
        return Ok(());
    }
    let given = give(&mut host, &guest, &interrupt);
    if !has_home(&mut host.store, &guest)? {
        return Ok(forget_start(&mut host.store, domid)?);
    }
    let Err((unfit, error)) = given else {
        return Ok(());
    };
    let _turn = Turn::take_for(|| Ok((Some(guest.clone()), ())))?;
    // Somebody else may have given them since.
    match under_way(&mut host, &guest)? {
        Some(start) => refuse(&mut host, &start, unfit, &error),
        None => Ok(()),
    }
}

/// The start of a guest, if it has not come to its end.
fn under_way(host: &mut Host, guest: &Domain) -> Result<Option<GuestStart>> {
    let start = GuestStart::of(&mut host.store, guest)?;
    let is_under_way =
        |start: &GuestStart| matches!(start.stage, Stage::Pausing | Stage::Paused | Stage::Running);
    Ok(start.filter(is_under_way))
}

/// Gives the devices. An error comes with what is to happen to the guest.
fn give(host: &mut Host, guest: &Domain, interrupt: &Interrupt) -> Result<(), (Unfit, anyhow::Error)> {
    let hold = |error: anyhow::Error| (Unfit::Hold, error);
    wait_for_last_domain(host, guest, interrupt).map_err(hold)?;
    wait_for_toolstack(host, guest, interrupt).map_err(hold)?;
    let (mut turn, ()) = Turn::take_for(|| Ok((Some(guest.clone()), ()))).map_err(hold)?;
    // Another command, or an earlier one of this kind whose service has died, may have given the devices meanwhile.
    if under_way(host, guest).map_err(hold)?.is_none() {
        return Ok(());
    }
    if finish_given(host, &mut turn, guest, interrupt).map_err(hold)? {
        return Ok(());
    }
    // Read in turn: `bulkhead release` or an editor may have changed it.
    let found = declared(&mut host.store, Path::new(DIRECTORY), guest);
    let Some(wanted) = found.map_err(|error| hold(error.into()))? else {
        // What it had was given away, or its declaration was removed, since it was paused.
        say!(
            "guest {} starts without devices: it is to have none any more",
            guest.name
        );
        return let_run(host, guest).map_err(hold);
    };
    let given = give_first(
        host,
        &mut turn,
        guest.clone(),
        &wanted,
        NamedStub::default(),
        RUNNING_GUEST,
        interrupt,
    );
    given.map(drop).map_err(|error| (wanted.unfit, error))
}

/// What there is to wait for if the guest has ended: nothing.
fn ended(host: &mut Host, guest: &Domain) -> Result<Option<Progress>> {
    let is_there = has_home(&mut host.store, guest)?;
    Ok((!is_there).then(|| Progress::Failed(format!("guest {} has ended", guest.name))))
}

/// Waits until libxl has finished the domain.
fn wait_for_toolstack(host: &mut Host, guest: &Domain, interrupt: &Interrupt) -> Result<()> {
    wait(CREATION, interrupt, || {
        if let Some(ended) = ended(host, guest)? {
            return Ok(ended);
        }
        // libxl stores the configuration as its last step; until then there is no name in it.
        let config = xl::config_of(&guest.domid.to_string());
        if config.is_ok_and(|config| GuestConfig::from_json(&config).is_ok()) {
            return Ok(Progress::Connected);
        }
        thread::sleep(ASK);
        Ok(Progress::Waiting(format!(
            "the toolstack has not finished creating guest {}: `xl list -l {}` tells no configuration of it",
            guest.name, guest.domid
        )))
    })
}

/// Waits until the last domain of a guest that reboots has no devices any more.
fn wait_for_last_domain(host: &mut Host, guest: &Domain, interrupt: &Interrupt) -> Result<()> {
    wait(LAST_DOMAIN, interrupt, || {
        if let Some(ended) = ended(host, guest)? {
            return Ok(ended);
        }
        let (attachments, _) = Attachment::all(&mut host.store)?;
        let is_last = |last: &Domain| last.uuid == guest.uuid && last.domid != guest.domid;
        let Some(last) = attachments.iter().find(|attachment| is_last(&attachment.guest)) else {
            return Ok(Progress::Connected);
        };
        let ends = how_it_ends(&host.xen, &last.guest, guest)?;
        Ok(Progress::Waiting(format!(
            "domain {} of the same guest still has its devices: {ends}",
            last.guest.domid
        )))
    })
}

/// Does to a guest that cannot have its devices what its declaration says.
fn refuse(host: &mut Host, before: &GuestStart, unfit: Unfit, error: &anyhow::Error) -> Result<()> {
    let guest = &before.guest;
    let reason = format!("{error:#}").replace('\n', "; ");
    let mut failed = GuestStart {
        guest: guest.clone(),
        stage: Stage::Failed {
            reason: reason.clone(),
            held: before.is_paused(),
        },
    };
    // Recorded first: if what follows fails, the guest is paused for a known reason.
    failed.write(&mut host.store)?;
    match (unfit, before.is_paused()) {
        (Unfit::Start, true) => {
            let_run(host, guest)?;
            failed.stage = Stage::Failed { reason, held: false };
            failed.write(&mut host.store)?;
        }
        (Unfit::Destroy, true) => {
            notice!(
                "guest {} is destroyed, as its declaration says, because it cannot have its devices: {reason}",
                guest.name
            );
            return destroy_built(host, guest);
        }
        // A guest that runs is left alone.
        _ => {}
    }
    Err(anyhow!("{failed}"))
}
