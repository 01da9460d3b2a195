//! What `run` and `attach` share: they create domains, and give a guest its first devices.

use super::prepare::Admitted;
use super::return_devices::{reclaim_attachment, reclaim_devices};
use super::turn::Turn;
use super::undo::{Undo, unique};
use super::waiting::{Interrupt, STUB_TIMEOUT, wait};
use crate::admission::declared::Declared;
use crate::admission::network::{NetworkFiles, StubPlan, plan_stub};
use crate::handover::grant;
use crate::handover::reclaim::Released;
use crate::host::Host;
use crate::host::domains::{self, Domain, is_alive};
use crate::host::guest_config::GuestConfig;
use crate::host::store::Store;
use crate::host::xl;
use crate::nodes::hops::{error_directory, first_hop};
use crate::nodes::progress::{Progress, is_exported, progress};
use crate::paths;
use crate::records::interrupt_mode::Mode;
use crate::records::stub_backup;
use crate::records::unfinished::{self, Unfinished};
use crate::records::{Attachment, Carried, drop_carried};
use crate::say::{notice, say};
use anyhow::{Context, Result, bail, ensure};
use bulkhead_config::StubNetwork;
use pci::bdf::Bdf;
use std::fs;
use std::path::Path;
use std::time::Duration;
use xen::xenctrl::Hypervisor;
use xenbus::client::Store as _;
use xenbus::device::SlotMode;
use xenbus::path::{Device as Hop, DeviceType};

/// How `run` ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest has its devices.
    Done,
    /// The guest runs, and has not connected in time.
    GuestStillBoots,
}

/// The name of the stub that `run` makes for a guest.
pub fn stub_name(guest: &str) -> String {
    format!("{guest}-bulkhead")
}

/// A domain that is to be created.
pub struct NewDomain {
    pub name: String,
    uuid: String,
    /// UUID and name of the guest that it is created for.
    guest: (String, String),
    /// Lines that xl takes besides those of the file.
    overrides: &'static [&'static str],
    watched: bool,
}

impl NewDomain {
    /// A guest that is to have devices.
    pub fn guest(config: GuestConfig, overrides: &'static [&'static str]) -> Result<Self> {
        let uuid = match config.uuid {
            Some(uuid) => uuid,
            None => unique()?,
        };
        Ok(Self {
            name: config.name.clone(),
            uuid: uuid.clone(),
            guest: (uuid, config.name),
            overrides,
            watched: true,
        })
    }

    /// Its UUID.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The stub of a guest.
    fn stub_of(guest: &Domain) -> Result<Self> {
        Ok(Self {
            name: stub_name(&guest.name),
            uuid: unique()?,
            guest: (guest.uuid.clone(), guest.name.clone()),
            overrides: &[],
            // All of its `on_…` settings say `preserve`. And the service may order this: a process of xl's would stay in its
            // unit, and systemd would complain on each stop.
            watched: false,
        })
    }

    /// Creates it, paused if asked to. A record is written first, so that a command that is killed from then on leaves a domain
    /// whose origin is known.
    pub fn create(&self, host: &mut Host, file: &Path, paused: bool, undo: &mut Undo) -> Result<Domain> {
        let (guest, guest_name) = self.guest.clone();
        let noted = Unfinished {
            uuid: self.uuid.clone(),
            name: self.name.clone(),
            guest,
            guest_name,
        };
        unfinished::record(&mut host.store, &noted)?;
        // The file's UUID, or one of ours: of a file without one xl would make another each time that it reads it.
        let uuid = format!("uuid=\"{}\"", self.uuid);
        let overrides: Vec<&str> = self.overrides.iter().copied().chain([uuid.as_str()]).collect();
        let created = xl::create(file, &overrides, paused, self.watched);
        // By its UUID and not by its name: somebody else's domain may have got the name meanwhile.
        let domain = domains::with_uuid(&mut host.store, &self.uuid)?;
        match (created, domain) {
            (Ok(()), Some(domain)) => {
                undo.push(undo_creation(domain.clone()));
                Ok(domain)
            }
            (Ok(()), None) => bail!("xl has created domain {}, and it is gone already", self.name),
            (Err(error), left) => {
                // A failed `xl create` may leave a domain.
                match left {
                    Some(domain) => undo.push(undo_creation(domain)),
                    None => unfinished::forget(&mut host.store, &self.uuid)?,
                }
                Err(error.into())
            }
        }
    }
}

/// Checks that the stub's image exists.
fn check_kernel(kernel: &Path) -> Result<()> {
    ensure!(
        kernel.is_file(),
        "the stub's image {} is not there: install it, or name another with --kernel",
        kernel.display()
    );
    Ok(())
}

/// What the stub of a guest is created from, if it can be.
pub fn check_stub_plan<X: Hypervisor>(
    host: &mut Host<X>,
    wanted: &Declared,
    guest: &Domain,
) -> Result<StubPlan> {
    let files = NetworkFiles::default();
    let plan = plan_stub(wanted, guest, &files)?;
    plan.check_network(&mut host.store, &host.xen, &files)?;
    check_kernel(&plan.kernel)?;
    Ok(plan)
}

/// Creates the stub of a guest.
pub fn create_stub(host: &mut Host, guest: &Domain, plan: &StubPlan, undo: &mut Undo) -> Result<Domain> {
    let kernel = plan
        .kernel
        .to_str()
        .context("the path of the stub's image is not UTF-8")?;
    let stub = NewDomain::stub_of(guest)?;
    let config = bulkhead_config::stubdom(&stub.name, kernel, plan.network.as_ref())?;
    // Not named after the guest, whose name may contain a slash. One file is enough, for commands take turns.
    let file = Path::new(paths::RUN).join("stub.cfg");
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let created = stub.create(host, &file, false, undo);
    let _ = fs::remove_file(&file);
    let stub = created.with_context(|| format!("cannot create stub {}", stub.name))?;
    say!("created stub {} (domain {})", stub.name, stub.domid);
    if let Some(StubNetwork { telemetry, mac, .. }) = &plan.network {
        say!("stub {} is on bridge {} as {mac}", stub.name, telemetry.bridge);
    }
    Ok(stub)
}

/// Connects guest and stub: writes the record and the nodes of both hops. `stub_is_ours`: this command has created the stub.
pub fn attach_admitted(
    host: &mut Host,
    guest: Domain,
    stub: Domain,
    slots: SlotMode,
    admitted: &Admitted,
    stub_is_ours: bool,
    undo: &mut Undo,
) -> Result<Attachment> {
    let devices = admitted.describe()?;
    let attachment = Attachment {
        guest,
        stub,
        slots,
        modes: vec![Mode::Intx.into(); devices.len()],
        devices,
    };
    // Before the step: it may fail halfway.
    let attached = attachment.clone();
    undo.push(move |host, turn| undo_attach(host, turn, &attached, stub_is_ours));
    grant::attach(host, &attachment)?;
    for device in attachment.bdfs() {
        forget_at_other_guests(host, attachment.guest.uuid.as_str(), device)?;
    }
    // The attachment's record tells from now on where they come from.
    for domain in [&attachment.guest, &attachment.stub] {
        unfinished::forget(&mut host.store, &domain.uuid)?;
    }
    // No reason to fail: the guest has its devices all the same.
    if let Err(error) = keep_config(host, &attachment.stub) {
        notice!(
            "if stub {} dies, the service cannot bring it back: {error:#}",
            attachment.stub.name
        );
    }
    Ok(attachment)
}

/// A device that a guest has is carried over for no other one.
pub fn forget_at_other_guests(host: &mut Host, guest: &str, device: Bdf) -> Result<()> {
    for carried in Carried::all(&mut host.store)? {
        let has_it = carried.devices.iter().any(|carried| carried.bdf == device);
        if has_it && carried.guest.uuid != guest {
            drop_carried(&mut host.store, device)?;
            notice!(
                "{device} was to go to guest {} at its next start: it does not any more",
                carried.guest.name
            );
        }
    }
    Ok(())
}

/// Backs up the configuration of a stub, from which the service creates it again.
pub fn keep_config(host: &mut Host, stub: &Domain) -> Result<()> {
    let listed = xl::config_of(&stub.domid.to_string())?;
    let config = listed
        .pointer("/0/config")
        .context("`xl list -l` shows no configuration of it")?;
    Ok(stub_backup::keep_config(&mut host.store, stub.domid, config)?)
}

/// Waits until the stub offers all devices to its guest.
pub fn wait_for_stub(host: &mut Host, attachment: &Attachment, interrupt: &Interrupt) -> Result<()> {
    wait(STUB_TIMEOUT, interrupt, || {
        if is_exported(&mut host.store, attachment)? {
            return Ok(Progress::Connected);
        }
        Ok(progress(&mut host.store, attachment)?)
    })
}

/// Waits until the guest has connected.
pub fn wait_for_guest(
    host: &mut Host,
    attachment: &Attachment,
    timeout: Duration,
    interrupt: &Interrupt,
) -> Result<Ended> {
    wait(timeout, interrupt, || Ok(progress(&mut host.store, attachment)?))?;
    Ok(Ended::Done)
}

/// Ends a domain that the command has created, unless another command has since made it a guest with devices, or a stub.
fn undo_creation(domain: Domain) -> impl FnOnce(&mut Host, &mut Turn) -> Result<()> {
    move |host, turn| {
        ensure_unattached(&mut host.store, &domain)?;
        turn.give_way(|| Ok(domains::destroy(host, &domain)?))?;
        Ok(unfinished::forget(&mut host.store, &domain.uuid)?)
    }
}

fn ensure_unattached(store: &mut Store, domain: &Domain) -> Result<()> {
    let (attachments, _) = Attachment::all(store)?;
    for Attachment { guest, stub, .. } in &attachments {
        ensure!(
            ![&guest.uuid, &stub.uuid].contains(&&domain.uuid),
            "{} stays: guest {} has devices through stub {}, and `bulkhead destroy {1}` ends them",
            domain.name,
            guest.name,
            stub.name
        );
    }
    Ok(())
}

/// Takes all devices of an attachment back, and ends the stub if it is the command's own.
fn undo_attach(host: &mut Host, turn: &mut Turn, attachment: &Attachment, stub_is_ours: bool) -> Result<()> {
    // The service may have taken the devices back meanwhile, and another attachment may have the stub's number.
    if !attachment.is_recorded(&mut host.store)? {
        return Ok(());
    }
    let released = if stub_is_ours {
        reclaim_attachment(host, turn, attachment)?
    } else {
        leave_stub(host, turn, attachment)?
    };
    ensure!(released.problems.is_empty(), "{}", released.problems.join("; "));
    Ok(())
}

/// Takes all devices of an attachment back, and leaves the stub running, because it was there before the command.
fn leave_stub(host: &mut Host, turn: &mut Turn, attachment: &Attachment) -> Result<Released> {
    let bdfs: Vec<Bdf> = attachment.bdfs().collect();
    // Not the whole attachment, for that would end the stub.
    let released = reclaim_devices(host, turn, attachment, &bdfs)?;
    if !is_alive(&mut host.store, &attachment.stub)? {
        // It has ended with the guest meanwhile, by the service.
        return Ok(released);
    }
    remove_nodes(&mut host.store, attachment)?;
    notice!(
        "stub {0} was there before, and is left running: `xl destroy {0}` ends it",
        attachment.stub.name
    );
    Ok(released)
}

/// Removes what both hops have in xenstore, and the record.
fn remove_nodes(store: &mut Store, attachment: &Attachment) -> Result<()> {
    let (first, stub) = (first_hop(attachment), attachment.stub.domid);
    let second = Hop::second_hop(stub);
    // Linux does not see a device go whose directory vanishes together with the one above, so the directory goes first.
    for path in [
        first.frontend_dir(),
        DeviceType::Pci.frontends(attachment.guest.domid),
        first.backend_dir(),
        second.frontend_dir(),
        second.backend_dir(),
        error_directory(stub),
    ] {
        match store.remove(&path) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    // The record last: as long as it is there, this can be done again.
    Ok(attachment.remove(store)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::nodes::hops;
    use crate::records::children;
    use crate::records::tests::{attachment, domain};
    use xenbus::model::Xenstored;

    #[test]
    fn what_is_created_is_known_by_its_uuid_and_by_its_guest() {
        let config = serde_json::json!({ "c_info": { "name": "web", "uuid": "u" } });
        let guest = NewDomain::guest(GuestConfig::from_json(&config).unwrap(), &[]).unwrap();
        assert_eq!(
            (guest.uuid.as_str(), guest.guest),
            ("u", ("u".into(), "web".into()))
        );
        let config = serde_json::json!({ "c_info": { "name": "web" } });
        let guest = NewDomain::guest(GuestConfig::from_json(&config).unwrap(), &[]).unwrap();
        assert_eq!(guest.uuid.len(), 36);
        let stub = NewDomain::stub_of(&domain(3, "web")).unwrap();
        assert_eq!(stub.name, "web-bulkhead");
        assert_eq!(stub.guest, (domain(3, "web").uuid, "web".into()));
        assert_ne!(stub.uuid, stub.guest.0);
    }

    #[test]
    fn an_attachment_is_undone_if_it_is_this_commands_and_no_later_one_of_the_same_number() {
        let mut store = dom0(&Xenstored::new());
        let ours = attachment();
        assert!(!ours.is_recorded(&mut store).unwrap());
        ours.write(&mut store).unwrap();
        assert!(ours.is_recorded(&mut store).unwrap());
        for later in [
            Attachment {
                stub: Domain {
                    uuid: "later".into(),
                    ..ours.stub.clone()
                },
                ..ours.clone()
            },
            Attachment {
                guest: domain(9, "mail"),
                ..ours.clone()
            },
        ] {
            later.write(&mut store).unwrap();
            assert!(!ours.is_recorded(&mut store).unwrap());
        }
    }

    #[test]
    fn a_domain_that_another_command_has_attached_since_is_not_ended() {
        let mut store = dom0(&Xenstored::new());
        let attached = attachment();
        ensure_unattached(&mut store, &attached.guest).unwrap();
        attached.write(&mut store).unwrap();
        for domain in [&attached.guest, &attached.stub] {
            let error = ensure_unattached(&mut store, domain).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{} stays: guest web has devices", domain.name)),
                "{error}"
            );
        }
        ensure_unattached(&mut store, &domain(9, "mail")).unwrap();
    }

    #[test]
    fn of_an_attachment_that_is_undone_nothing_is_left_and_its_stub_can_have_another() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        for (domid, name) in [(3, "web"), (4, "hand")] {
            introduce(&daemon, domid, name);
        }
        let attachment = attachment();
        let nodes = |store: &mut Store| {
            let paths = [
                "/local/domain/3/device/pci",
                "/local/domain/4/backend/pci/3",
                "/local/domain/4/device/bulkhead/0",
                "/local/domain/0/backend/bulkhead/4",
                "/local/domain/0/bulkhead/attachment/4",
                "/libxl/pci/0000-00-05-0",
            ];
            let there = paths.map(|path| usize::from(!children(store, path).unwrap().is_empty()));
            there.into_iter().sum::<usize>()
        };
        for _ in 0..2 {
            attachment.write(&mut store).unwrap();
            hops::HopNodes::second(&attachment).write(&mut store).unwrap();
            hops::HopNodes::first(&attachment).write(&mut store).unwrap();
            assert_eq!(nodes(&mut store), 6);
            remove_nodes(&mut store, &attachment).unwrap();
            assert_eq!(nodes(&mut store), 0);
        }
        remove_nodes(&mut store, &attachment).expect("once more does no harm");
    }
}
