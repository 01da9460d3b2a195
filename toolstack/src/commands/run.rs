//! `bulkhead run`: creates a guest with devices.

use super::create::{
    Ended, NewDomain, attach_admitted, check_stub_plan, create_stub, stub_name, wait_for_guest,
};
use super::dry_run::{DryRun, service_runs};
use super::give::{Named, let_run};
use super::prepare::{self, Admitted};
use super::turn::Turn;
use super::undo::Undo;
use super::waiting::{Interrupt, TimedOut};
use crate::admission::declared::Declared;
use crate::admission::network::StubPlan;
use crate::control;
use crate::host::Host;
use crate::host::domains::{self, Domain, DomainError};
use crate::host::guest_config::{GuestConfig, GuestRefusal, PASSTHROUGH};
use crate::host::xl;
use crate::nodes::progress::awaits_guest;
use crate::records::{Attachment, forget_carried};
use crate::say::{notice, say};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::xenctrl::Hypervisor as _;

/// Arguments of `run`.
#[derive(Clone, Debug)]
pub struct Run {
    /// The guest's configuration file.
    pub config: PathBuf,
    /// The devices that it gets.
    pub named: Named,
    /// Time limit for the guest to boot and connect.
    pub wait: Duration,
}

/// What the checks have found out, before anything is changed.
struct Checked {
    guest: NewDomain,
    stub: String,
    plan: StubPlan,
    wanted: Declared,
    admitted: Admitted,
}

/// Makes all checks.
fn check(host: &mut Host, request: &Run) -> Result<Checked> {
    let file = &request.config;
    ensure!(
        file.is_file(),
        "there is no file {}: name the guest's configuration file",
        file.display()
    );
    let config = GuestConfig::from_json(&xl::parse_config(file)?)?;
    // It has no number yet.
    let to_be = Domain {
        domid: 0,
        name: config.name.clone(),
        uuid: config.uuid.clone().unwrap_or_default(),
    };
    let wanted = request.named.wanted(&mut host.store, &to_be)?;
    let plan = check_stub_plan(host, &wanted, &to_be)?;
    let overrides = lacking_lines(&config)?;
    let guest = NewDomain::guest(config, overrides)?;
    let stub = stub_name(&guest.name);
    // xl would refuse the guest's name too, but only after the devices are taken.
    for name in [&guest.name, &stub] {
        match domains::find(&mut host.store, name) {
            Err(DomainError::NotFound { .. }) => {}
            Ok(domain) => bail!(
                "domain {name} exists already (number {}): `bulkhead destroy {1}` ends it if an earlier `bulkhead run` \
                 has left it, or give the guest another name",
                domain.domid,
                guest.name
            ),
            Err(error) => return Err(error.into()),
        }
    }
    let admitted = prepare::admit(host, &wanted.devices, &wanted.choices, None, &[], wanted.slots)?;
    Ok(Checked {
        guest,
        stub,
        plan,
        wanted,
        admitted,
    })
}

/// What [`run`] would do. Nothing is changed.
pub fn plan(request: &Run) -> Result<DryRun> {
    let checked = check(&mut Host::open()?, request)?;
    let (devices, notes) = checked.admitted.plan()?;
    Ok(DryRun {
        command: "run",
        service_runs: service_runs(),
        guest: checked.guest.name,
        config: Some(request.config.display().to_string()),
        stub: checked.stub,
        image: Some(checked.plan.kernel.display().to_string()),
        network: checked.plan.network.map(Into::into),
        slots: checked.wanted.slots.to_string(),
        devices,
        notes,
    })
}

/// Creates a guest with devices, and waits until it has them. A failure undoes all steps. A guest that is slow is no failure.
pub fn run(request: &Run) -> Result<Ended> {
    let mut host = Host::open()?;
    // Before anything is checked: what is true now must be true when the devices are taken.
    let mut turn = Turn::take()?;
    // After the lock: until then Ctrl-C may end the command at once.
    let interrupt = Interrupt::catch()?;
    let checked = check(&mut host, request)?;
    // The last step that changes nothing: the guest's writes need the service.
    control::ensure_running()?;

    let mut undo = Undo::new()?;
    let made = run_admitted(
        &mut host,
        &mut turn,
        &request.config,
        &checked,
        &interrupt,
        &mut undo,
    );
    let result = made.and_then(|attachment| {
        // Other commands may work while the guest boots.
        turn.suspend();
        let ended = wait_for_guest(&mut host, &attachment, request.wait, &interrupt)
            .or_else(|error| still_boots(&mut host, &attachment, error))?;
        let_run(&mut host, &attachment.guest)?;
        Ok(ended)
    });
    match result {
        Ok(Ended::Done) => {
            say!(
                "guest {} has its devices through stub {}: `bulkhead status` shows them",
                checked.guest.name,
                checked.stub
            );
            Ok(Ended::Done)
        }
        Ok(Ended::GuestStillBoots) => Ok(Ended::GuestStillBoots),
        Err(error) => {
            undo.undo(&mut host, &mut turn);
            // If the guest ended by itself, the service has recorded what it had.
            if let Err(error) = forget_carried(&mut host.store, checked.guest.uuid()) {
                notice!(
                    "cannot remove the record of what guest {} had: {error}",
                    checked.guest.name
                );
            }
            Err(error)
        }
    }
}

/// The part of [`run`] that changes things. `undo` has what it did.
fn run_admitted(
    host: &mut Host,
    turn: &mut Turn,
    config: &Path,
    checked: &Checked,
    interrupt: &Interrupt,
    undo: &mut Undo,
) -> Result<Attachment> {
    let Checked {
        guest,
        plan,
        wanted,
        admitted,
        ..
    } = checked;
    admitted.seize(host, interrupt, undo)?;
    let created = guest.create(host, config, true, undo);
    let guest = created.with_context(|| format!("cannot create guest {}", guest.name))?;
    say!("created guest {} (domain {}), paused", guest.name, guest.domid);
    turn.add_guest(guest.domid)?;
    interrupt.check()?;

    // The guest stays paused until the nodes are written: it looks for its devices when it boots.
    let stub = create_stub(host, &guest, plan, undo)?;
    interrupt.check()?;

    let attachment = attach_admitted(host, guest, stub, wanted.slots, admitted, true, undo)?;
    interrupt.check()?;
    // Without a process of xl's: for a PV guest xl does no more.
    let unpaused = host.xen.unpause(attachment.guest.domid);
    unpaused.with_context(|| format!("cannot let guest {} run", attachment.guest.name))?;
    Ok(attachment)
}

/// What to make of a guest that has not connected in time. If everything waits for the guest alone, it is only slow, and keeps
/// its devices.
fn still_boots(host: &mut Host, attachment: &Attachment, error: anyhow::Error) -> Result<Ended> {
    let Some(TimedOut { what, .. }) = error.downcast_ref() else {
        return Err(error);
    };
    if !awaits_guest(&mut host.store, attachment)? {
        return Err(error);
    }
    let guest = &attachment.guest.name;
    notice!("{what}");
    notice!(
        "guest {guest} runs, and its devices wait for it: it has them as soon as its kernel looks for them, and `bulkhead \
         status` shows that. Nothing was undone; `bulkhead destroy {guest}` ends it and gives the devices back"
    );
    Ok(Ended::GuestStillBoots)
}

/// Lines that the guest's configuration lacks for passthrough and that `run` adds; a guest that lacks anything else is
/// refused. Xl is not asked to parse the file again with them: the check for passthrough comes after all others.
fn lacking_lines(config: &GuestConfig) -> Result<&'static [&'static str], GuestRefusal> {
    match config.check() {
        Ok(()) => Ok(&[]),
        Err(GuestRefusal::NoPassthrough { .. }) => Ok(&[PASSTHROUGH]),
        Err(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lacking(config: &Value) -> Result<&'static [&'static str], String> {
        let config = GuestConfig::from_json(config).unwrap();
        lacking_lines(&config).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_guest_without_passthrough_gets_the_line_and_one_that_lacks_more_is_refused() {
        let mut config = json!({
            "c_info": { "type": "pv", "name": "web", "passthrough": "enabled" },
            "b_info": { "type.pv": { "e820_host": "True" } }
        });
        assert_eq!(lacking(&config), Ok(&[][..]));
        config["c_info"]["passthrough"] = json!("disabled");
        assert_eq!(lacking(&config), Ok(&[PASSTHROUGH][..]));
        for (pointer, value, refusal) in [
            ("/b_info/type.pv", json!({}), "has no e820_host=1"),
            ("/c_info/type", json!("hvm"), "is of type hvm"),
        ] {
            let mut config = config.clone();
            *config.pointer_mut(pointer).unwrap() = value;
            let text = lacking(&config).unwrap_err();
            assert!(text.contains(refusal), "{text}");
        }
    }
}
