//! The first devices of a guest that exists: what `attach` and `start` share.

use super::create::{
    attach_admitted, check_stub_plan, create_stub, stub_name, wait_for_guest, wait_for_stub,
};
use super::dry_run::{DryRun, service_runs};
use super::prepare::{self, Admitted};
use super::select::attachments;
use super::turn::Turn;
use super::undo::Undo;
use super::waiting::Interrupt;
use crate::admission::declared::{Declared, declared, has_file};
use crate::admission::network::{StubPlan, choice_of, is_met};
use crate::admission::policy::Choices;
use crate::control;
use crate::host::Host;
use crate::host::domains::{self, Domain, DomainError};
use crate::host::guest_config::{GuestConfig, StubImage, StubOrigin, check_stub};
use crate::host::store::Store;
use crate::host::xl;
use crate::records::{Attachment, GuestStart, Stage, forget_carried, forget_start};
use crate::say::{notice, say};
use anyhow::{Context, Result, ensure};
use bulkhead_config::declaration::DIRECTORY;
use bulkhead_config::options::Wanted;
use bulkhead_config::telemetry::TelemetryChoice;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xen::xenctrl::{DomainState, Hypervisor};
use xenbus::client::Store as _;
use xenbus::device::SlotMode;
use xenbus::path::Device as Hop;

/// What a command line says of a guest's devices.
#[derive(Clone, Debug)]
pub struct Named {
    /// The devices; if there are none, those that the guest is to have whenever it starts.
    pub devices: Vec<Wanted>,
    /// Choices for all of them.
    pub choices: Choices,
    /// How the guest addresses them.
    pub slots: Option<SlotMode>,
    /// The stub's image.
    pub kernel: Option<PathBuf>,
    /// Whether the stub has a network.
    pub telemetry: Option<TelemetryChoice>,
}

impl Named {
    /// The devices that are named, or else those that the guest is to have whenever it starts.
    pub fn wanted(&self, store: &mut Store, guest: &Domain) -> Result<Declared> {
        let name = &guest.name;
        if !self.devices.is_empty() {
            return Ok(Declared {
                choices: self.choices.clone(),
                slots: self.slots.unwrap_or_default(),
                kernel: self.kernel.clone(),
                telemetry: self.telemetry.clone(),
                ..Declared::named(self.devices.clone())
            });
        }
        let found = declared(store, Path::new(DIRECTORY), guest)?;
        let mut wanted = found.with_context(|| {
            format!(
                "no devices are named, and guest {name} is not declared: name devices with --device, or declare the guest \
                 once with `bulkhead declare {name} --device NAME`"
            )
        })?;
        ensure!(
            self.choices == Choices::default() && self.slots.is_none(),
            "guest {name} has its devices on the terms of its declaration: leave --slots and the options of terms out, or \
             name the devices with --device"
        );
        wanted.kernel = self.kernel.clone().or(wanted.kernel);
        wanted.telemetry = self.telemetry.clone().or(wanted.telemetry);
        Ok(wanted)
    }
}

/// A guest with its first devices.
pub struct GivenFirst {
    /// Its attachment.
    pub attachment: Attachment,
    /// What the guest does.
    pub guest: GuestDoes,
}

/// What a guest does that has got its first devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestDoes {
    /// It runs, and has connected.
    Uses,
    /// The service had paused it for this. It goes on, and finds the devices when its kernel looks for them.
    Starts,
    /// It stays paused.
    Waits,
}

/// What a command line says of the stub of a guest's first devices.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamedStub<'a> {
    /// The stub, by name or number, if it exists and is not the usual one.
    pub stub: Option<&'a str>,
    /// True if it says whether the stub has a network.
    pub telemetry: bool,
}

/// The stub of a guest's first devices.
enum FirstStub {
    /// It exists.
    Found(Domain),
    /// It is to be created.
    ToCreate(StubPlan),
}

/// Makes all checks for a guest's first devices.
fn check_first(
    host: &mut Host,
    guest: &Domain,
    wanted: &Declared,
    named: NamedStub<'_>,
) -> Result<(FirstStub, Admitted)> {
    let attachments = attachments(host)?;
    check_no_kept(&host.xen, guest, &attachments)?;
    GuestConfig::from_json(&xl::config_of(&guest.domid.to_string())?)?.check()?;
    let stub = match find_stub(host, guest, named.stub, wanted.kernel.as_deref(), &attachments)? {
        Some((stub, origin)) => {
            // Who names a stub knows what it has.
            if named.stub.is_none() {
                check_found_network(wanted, guest, &stub, origin.as_ref(), named.telemetry)?;
            }
            FirstStub::Found(stub)
        }
        None => FirstStub::ToCreate(check_stub_plan(host, wanted, guest)?),
    };
    // Devices by xl and by Bulkhead at once would be two backends.
    check_no_frontend(host, guest)?;
    let (choices, slots) = (&wanted.choices, wanted.slots);
    let admitted = prepare::admit(host, &wanted.devices, choices, Some(guest), &[], slots)?;
    Ok((stub, admitted))
}

/// What [`give_first`] would do. Nothing is changed.
pub fn plan_first(
    host: &mut Host,
    guest: &Domain,
    wanted: &Declared,
    named: NamedStub<'_>,
) -> Result<DryRun> {
    let (stub, admitted) = check_first(host, guest, wanted, named)?;
    let (devices, notes) = admitted.plan()?;
    let (stub, plan) = match stub {
        FirstStub::Found(stub) => (stub.name, None),
        FirstStub::ToCreate(plan) => (stub_name(&guest.name), Some(plan)),
    };
    Ok(DryRun {
        command: "attach",
        service_runs: service_runs(),
        guest: guest.name.clone(),
        config: None,
        image: plan.as_ref().map(|plan| plan.kernel.display().to_string()),
        network: plan.and_then(|plan| plan.network).map(Into::into),
        stub,
        slots: wanted.slots.to_string(),
        devices,
        notes,
    })
}

/// Gives a guest its first devices, through the stub that is named, or else a new one. If the service had paused the guest for
/// that, it runs afterwards.
pub fn give_first(
    host: &mut Host,
    turn: &mut Turn,
    guest: Domain,
    wanted: &Declared,
    named: NamedStub<'_>,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<GivenFirst> {
    let (stub, admitted) = check_first(host, &guest, wanted, named)?;
    let slots = wanted.slots;
    control::ensure_running()?;

    let mut undo = Undo::new()?;
    let steps = || {
        admitted.seize(host, interrupt, &mut undo)?;
        let (stub, is_ours) = match stub {
            FirstStub::Found(stub) => (stub, false),
            FirstStub::ToCreate(plan) => (create_stub(host, &guest, &plan, &mut undo)?, true),
        };
        interrupt.check()?;
        let attachment = attach_admitted(host, guest.clone(), stub, slots, &admitted, is_ours, &mut undo)?;
        // A paused guest cannot connect: then the stub's part is all there is to wait for.
        let paused = is_paused(host, &guest)?;
        turn.suspend();
        if paused {
            wait_for_stub(host, &attachment, interrupt)?;
        } else {
            wait_for_guest(host, &attachment, timeout, interrupt)?;
        }
        let_run(host, &attachment.guest)?;
        // Nothing may fail any more: the guest runs.
        let guest = match (paused, is_paused(host, &attachment.guest).unwrap_or(false)) {
            (_, true) => GuestDoes::Waits,
            (true, false) => GuestDoes::Starts,
            (false, false) => GuestDoes::Uses,
        };
        Ok(GivenFirst { attachment, guest })
    };
    let given = steps();
    if given.is_err() {
        undo.undo(host, turn);
    }
    given
}

fn is_paused(host: &Host, guest: &Domain) -> Result<bool> {
    let state = host.xen.run_state(guest.domid);
    let state = state.with_context(|| format!("cannot ask Xen whether guest {} is paused", guest.name))?;
    Ok(state.is_some_and(|state| state.paused))
}

/// The stub that is named, or the one with the usual name for this guest, with what it was created from; `None` if that has to
/// be created. A domain that is no stub is refused, because it would be given nodes that mean something else to it.
fn find_stub(
    host: &mut Host,
    guest: &Domain,
    named: Option<&str>,
    kernel: Option<&Path>,
    attachments: &[Attachment],
) -> Result<Option<(Domain, Option<StubOrigin>)>> {
    let usual = stub_name(&guest.name);
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
    let images = kernel.map_or_else(StubImage::installed, |kernel| vec![StubImage::at(kernel)]);
    check_stub(&config, &stub.name, &images).with_context(|| match named {
        Some(_) => {
            "--stub is for a domain that was created from stubdom.cfg, and --kernel for its image".to_owned()
        }
        None => format!(
            "the stub of guest {} would have that name: rename the domain, or name a stub with --stub",
            guest.name
        ),
    })?;
    let origin = config.pointer("/0/config").and_then(StubOrigin::of);
    Ok(Some((stub, origin)))
}

/// Checks what is said of the network of the usual stub, which exists. A command line that says something else than the stub
/// has is refused. Of other places it is only told: they count for all of the guest's stubs, and so for the next one.
fn check_found_network(
    wanted: &Declared,
    guest: &Domain,
    stub: &Domain,
    origin: Option<&StubOrigin>,
    on_command_line: bool,
) -> Result<()> {
    let Some(choice) = choice_of(wanted, guest)? else {
        return Ok(());
    };
    if is_met(&choice, origin.and_then(|origin| origin.telemetry.as_ref())) {
        return Ok(());
    }
    let stub = &stub.name;
    ensure!(
        !on_command_line,
        "stub {stub} exists, and a stub's network is set when it is created: leave --telemetry out, or `xl destroy {stub}` \
         for a stub that is created now"
    );
    notice!(
        "stub {stub} exists, and was created with another network than {choice}, which counts for the guest's next stub: \
         `xl destroy {stub}` before the guest gets its devices for a stub that is created now"
    );
    Ok(())
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

/// Checks that no domain in which the guest ran before has its devices. libxl keeps such a domain under another name if the
/// guest's configuration says `on_crash = "rename-restart"`; Xen tells whose it was.
fn check_no_kept(xen: &impl Hypervisor, guest: &Domain, attachments: &[Attachment]) -> Result<()> {
    let others = attachments.iter().map(|attachment| &attachment.guest);
    for other in others.filter(|other| other.domid != guest.domid) {
        let created_with = xen.uuid(other.domid);
        let created_with =
            created_with.with_context(|| format!("cannot ask Xen about domain {}", other.name))?;
        ensure!(
            created_with.is_none_or(|uuid| uuid.is_empty() || uuid != guest.uuid),
            "domain {1} ({0}) still has the guest's devices: {2}",
            other.name,
            other.domid,
            how_it_ends(xen, other, guest)?
        );
    }
    Ok(())
}

/// What an administrator can do about the domain `last` that has the devices of `next`, another domain of the same guest.
pub fn how_it_ends(xen: &impl Hypervisor, last: &Domain, next: &Domain) -> io::Result<String> {
    let (last, next) = (last.domid, next.domid);
    Ok(match xen.run_state(last)? {
        Some(_) => format!("it runs. If domain {next} is left of a migration, `xl destroy {next}` ends that"),
        None => format!(
            "it runs no more. `xl destroy {last}` ends it if `xl list` shows it, and `bulkhead status` shows why the \
             devices are not taken back"
        ),
    })
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

/// Goes on with a start whose command came to its end when the devices were recorded already: waits for the stub, and lets the
/// guest run. False if no devices are recorded.
pub fn finish_given(host: &mut Host, turn: &mut Turn, guest: &Domain, interrupt: &Interrupt) -> Result<bool> {
    let attachments = attachments(host)?;
    let Some(attachment) = attachments.iter().find(|attachment| attachment.guest == *guest) else {
        return Ok(false);
    };
    turn.suspend();
    wait_for_stub(host, attachment, interrupt)?;
    let_run(host, guest)?;
    Ok(true)
}

/// Destroys a guest that waits for its devices, also one that the toolstack still builds. Its record goes with its home.
pub fn destroy_built<X>(host: &mut Host<X>, guest: &Domain) -> Result<()> {
    if domains::has_home(&mut host.store, guest)? {
        // `domains::destroy` leaves one alone that is not introduced yet.
        let destroyed = host.runner.destroy(guest.domid);
        if domains::has_home(&mut host.store, guest)? {
            destroyed?;
        }
    }
    Ok(forget_start(&mut host.store, guest.domid)?)
}

/// Lets a guest run that has been given its devices, or is to have none: takes the service's pause away, and records that the
/// service has nothing more to do for it. The toolstack's own pause, and one of the administrator's, stay.
pub fn let_run(host: &mut Host, guest: &Domain) -> Result<()> {
    let start = GuestStart::of(&mut host.store, guest)?;
    let state = host
        .xen
        .run_state(guest.domid)
        .context("cannot ask Xen about the guest")?;
    if start.is_some_and(|start| start.seen(state).is_paused()) {
        if let Some(state) = state {
            say!(
                "guest {} (domain {}) goes on; it has run for {} ns so far",
                guest.name,
                guest.domid,
                state.cpu_time.as_nanos()
            );
        }
        match host.xen.unpause(guest.domid) {
            // Somebody has taken the pause away by `xl unpause`.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
            unpaused => unpaused
                .with_context(|| format!("cannot let guest {0} run: try `xl unpause {0}`", guest.name))?,
        }
    }
    let given = GuestStart {
        guest: guest.clone(),
        stage: Stage::Given {
            declared: has_file(Path::new(DIRECTORY), guest),
        },
    };
    given.write(&mut host.store)?;
    // The guest runs: no reason to undo anything.
    if let Err(error) = forget_carried(&mut host.store, &guest.uuid) {
        notice!(
            "cannot remove the record of what guest {} had before: {error}",
            guest.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::Carried;
    use crate::records::tests::{attachment, domain, origin};
    use xen::model::{ModelDomain, Xen};
    use xenbus::model::Xenstored;

    #[test]
    fn a_guest_whose_last_domain_is_kept_with_its_devices_is_refused_and_the_way_on_is_told() {
        let (xen, kept) = (Xen::default(), domain(3, "web-20261130T0733Z"));
        let attachments = [Attachment {
            guest: kept.clone(),
            ..attachment()
        }];
        let web = domain(7, "web");
        check_no_kept(&xen, &web, &attachments).unwrap();
        xen.set_uuid(3, &kept.uuid);
        check_no_kept(&xen, &web, &attachments).unwrap();
        xen.set_uuid(3, &web.uuid);
        let error = check_no_kept(&xen, &web, &attachments).unwrap_err();
        insta::assert_snapshot!(error.to_string(), @"domain 3 (web-20261130T0733Z) still has the guest's devices: it runs no more. `xl destroy 3` ends it if `xl list` shows it, and `bulkhead status` shows why the devices are not taken back");
        xen.set_domain(3, ModelDomain::default());
        let error = check_no_kept(&xen, &web, &attachments).unwrap_err();
        insta::assert_snapshot!(error.to_string(), @"domain 3 (web-20261130T0733Z) still has the guest's devices: it runs. If domain 7 is left of a migration, `xl destroy 7` ends that");
        // The same domain has them itself: that is for others to say.
        check_no_kept(&xen, &Domain { domid: 3, ..web }, &attachments).unwrap();
    }

    fn named(devices: &[&str], telemetry: Option<&str>) -> Named {
        Named {
            devices: devices.iter().map(|device| device.parse().unwrap()).collect(),
            choices: Choices::default(),
            slots: None,
            kernel: None,
            telemetry: telemetry.map(|text| text.parse().unwrap()),
        }
    }

    #[test]
    fn the_command_line_counts_before_what_the_stub_had() {
        let mut store = dom0(&Xenstored::new());
        let carried = Carried::new(&attachment(), origin());
        carried.write(&mut store).unwrap();
        let guest = &carried.guest;
        let mut telemetry = |named: Named| {
            let wanted = named.wanted(&mut store, guest).unwrap();
            wanted.telemetry.map(|choice| choice.to_string())
        };
        let own = Some("bridge=own");
        assert_eq!(telemetry(named(&[], None)).as_deref(), Some("off"));
        assert_eq!(telemetry(named(&[], own)).as_deref(), own);
        assert_eq!(telemetry(named(&["00:05.0"], own)).as_deref(), own);
        // The policy file decides.
        assert_eq!(telemetry(named(&["00:05.0"], None)), None);
    }

    #[test]
    fn a_stub_that_is_found_by_its_name_keeps_its_network() {
        let (web, stub) = (domain(3, "web"), domain(4, "web-bulkhead"));
        let check = |choice: &str, had: &str, on_command_line| {
            let wanted = Declared {
                telemetry: choice.parse().ok(),
                ..Declared::named(Vec::new())
            };
            let origin = StubOrigin {
                telemetry: had.parse().ok(),
                ..StubOrigin::default()
            };
            check_found_network(&wanted, &web, &stub, Some(&origin), on_command_line)
        };
        let (network, other) = ("bridge=xenbr0", "bridge=other");
        for (choice, had) in [(network, "off"), (network, other), ("off", network)] {
            let error = check(choice, had, true).unwrap_err().to_string();
            assert!(
                error.starts_with(
                    "stub web-bulkhead exists, and a stub's network is set when it is created: leave --telemetry out"
                ),
                "{error}"
            );
            check(choice, had, false).unwrap();
        }
        for same in [network, "off"] {
            check(same, same, true).unwrap();
        }
    }

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
