//! Finds out the status, from the records, xenstore and sysfs.

use super::model::{
    CarriedGuest, DeclaredGuest, DeviceStatus, DomainStatus, GONE, Mapped, NetworkStatus, Quarantined, Seen,
    ServiceStatus, Status, StatusError, StubStatus,
};
use crate::handover::reset::Plan;
use crate::handover::shared_intx::LineStatus;
use crate::host::domains::Domain;
use crate::host::domains::{are_alive, created};
use crate::host::guest_config::StubOrigin;
use crate::host::store::{Store, StoreError};
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::nodes::hops::first_hop;
use crate::records::claims::Claims;
use crate::records::failed::Failed;
use crate::records::interrupt_mode::{Mode, Recorded};
use crate::records::{self, Attachment, Carried, Device, GuestStart, Stage, stub_backup};
use bulkhead_config::declaration::{DIRECTORY, DeclarationError, DeclarationFile, Declarations};
use std::collections::BTreeMap;
use std::path::Path;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::client::Store as _;
use xenbus::path::{Device as Hop, home, key};
use xenbus::state::XenbusState;

/// Finds out the status. `seen` has what the service has seen, by stub. Without `xen` the records alone tell which guests are
/// held.
pub fn collect(
    store: &mut Store,
    xen: Option<&dyn Hypervisor>,
    sysfs: &Sysfs,
    service_running: bool,
    mut seen: BTreeMap<DomId, Seen>,
) -> Result<Status, StatusError> {
    // A damaged record is a problem to tell, and does not hide the others.
    let (attachments, damaged) = Attachment::all(store)?;
    let mut status = Status {
        service: ServiceStatus {
            running: service_running,
            process: None,
            history: None,
        },
        problems: damaged.iter().map(ToString::to_string).collect(),
        ..Status::default()
    };
    let stubs: Vec<&Domain> = attachments.iter().map(|attachment| &attachment.stub).collect();
    let guests: Vec<&Domain> = attachments.iter().map(|attachment| &attachment.guest).collect();
    let domids: Vec<DomId> = stubs.iter().map(|stub| stub.domid).collect();
    let stub_state =
        |attachment: &Attachment| Hop::second_hop(attachment.stub.domid).frontend_node(key::STATE);
    let guest_state = |attachment: &Attachment| first_hop(attachment).frontend_node(key::STATE);
    // In few round trips, however many there are.
    let stub_states = domain_statuses(store, &stubs, attachments.iter().map(stub_state).collect())?;
    let guest_states = domain_statuses(store, &guests, attachments.iter().map(guest_state).collect())?;
    let created = created(store, &stubs)?;
    let networks = network_statuses(store, &domids)?;
    let of_each = stub_states
        .into_iter()
        .zip(guest_states)
        .zip(created)
        .zip(networks);
    for (attachment, (((domain, guest), created), network)) in attachments.iter().zip(of_each) {
        let stub = attachment.stub.domid;
        let devices: Vec<_> = attachment.devices_and_modes().collect();
        for (_, recorded) in &devices {
            if let Recorded::Unknown(cause) = recorded {
                status.problems.push(cause.clone());
            }
        }
        let Seen { served, remark } = seen.remove(&stub).unwrap_or_default();
        status.stubs.push(StubStatus {
            domain,
            guest,
            slots: attachment.slots,
            created,
            network,
            devices: devices
                .into_iter()
                .map(|(device, recorded)| {
                    // As sysfs has it now: the administrator can change the methods.
                    let reset = Plan::of(device.bdf, sysfs).used();
                    let line = device.gsi.filter(|_| device.line_offered);
                    DeviceStatus {
                        corrected_errors: sysfs.correctable_errors(device.bdf),
                        reset: reset.map(|method| method.to_string()),
                        line: line.and_then(|gsi| LineStatus::of(device.bdf, gsi, sysfs)),
                        ..device_status(device, &recorded.mode())
                    }
                })
                .collect(),
            served,
            remark,
        });
    }
    status.problems.extend(gone(&status.stubs, sysfs));
    for (bdf, reason) in records::quarantined(store)? {
        let bdf = bdf.to_string();
        status.quarantined.push(Quarantined { bdf, reason });
    }
    status.failed = Failed::all(store)?;
    for start in GuestStart::all(store)? {
        if matches!(start.stage, Stage::Given { .. }) {
            continue;
        }
        let state = xen.map(|xen| xen.run_state(start.guest.domid)).transpose();
        status.starts.push(match state {
            Ok(None) => start,
            Ok(Some(state)) => start.seen(state),
            Err(error) => {
                let guest = &start.guest.name;
                let problem = format!("cannot ask Xen whether guest {guest} is paused: {error}");
                status.problems.push(problem);
                start
            }
        });
    }
    status.carried = Carried::all(store)?.into_iter().map(carried).collect();
    match Declarations::read(Path::new(DIRECTORY)) {
        Ok(files) => {
            for file in files.0 {
                match declared(file) {
                    Ok(declared) => status.declared.push(declared),
                    Err(broken) => status.problems.push(broken.to_string()),
                }
            }
        }
        Err(error) => status.problems.push(format!(
            "cannot read the directory of declarations {DIRECTORY}: {error}"
        )),
    }
    (status.held, status.mapped) = held(store, sysfs);
    Ok(status)
}

fn carried(carried: Carried) -> CarriedGuest {
    CarriedGuest {
        guest: carried.guest.name,
        uuid: carried.guest.uuid,
        devices: carried
            .devices
            .iter()
            .map(|device| device.bdf.to_string())
            .collect(),
    }
}

fn declared(file: DeclarationFile) -> Result<DeclaredGuest, DeclarationError> {
    let declaration = file.declaration?;
    Ok(DeclaredGuest {
        guest: declaration.guest,
        devices: declaration.devices.iter().map(ToString::to_string).collect(),
        file: file.path.display().to_string(),
    })
}

/// The devices that xen-pciback holds and no guest has: those that any guest can have, and those that a guest may still have
/// mapped. If the claims cannot be read, which the problems tell, both lists are empty.
fn held(store: &mut Store, sysfs: &Sysfs) -> (Vec<String>, Vec<Mapped>) {
    // A device counts as held only if nobody is known to have it.
    let Ok(claims) = Claims::read(store) else {
        return (Vec::new(), Vec::new());
    };
    let mut held = sysfs.functions().unwrap_or_default();
    held.retain(|&bdf| {
        sysfs.driver(bdf).as_deref() == Some(PCIBACK)
            && claims.taken.iter().all(|claim| claim.bdf != bdf)
            && claims.quarantined.iter().all(|&(other, _)| other != bdf)
    });
    let mut mapped = Vec::new();
    held.retain(|&bdf| {
        let by = claims.mapped.iter().find(|(other, _)| *other == bdf);
        mapped.extend(by.map(|(bdf, guest)| Mapped {
            bdf: bdf.to_string(),
            guest: guest.name.clone(),
        }));
        by.is_none()
    });
    (held.iter().map(ToString::to_string).collect(), mapped)
}

/// A problem for each device that dom0 has removed while a guest has it, as happens with virtual functions.
fn gone(stubs: &[StubStatus], sysfs: &Sysfs) -> Vec<String> {
    let mut problems = Vec::new();
    for stub in stubs {
        let is_gone = |name: &str| name.parse().is_ok_and(|bdf| !sysfs.exists(bdf));
        for DeviceStatus { bdf, .. } in stub.devices.iter().filter(|device| is_gone(&device.bdf)) {
            problems.push(format!(
                "{bdf} is gone: dom0 removed it while guest {0} has it. Xen may stop the host when guest {0} lets go of its \
                 interrupts: end what else runs here before you end that guest",
                stub.guest.name
            ));
        }
    }
    problems
}

/// The status of domains, each with the path of its xenbus state.
fn domain_statuses(
    store: &mut Store,
    domains: &[&Domain],
    states: Vec<String>,
) -> Result<Vec<DomainStatus>, StoreError> {
    let alive = are_alive(store, domains)?;
    let states = read_states(store, &states)?;
    let of_each = domains.iter().zip(alive).zip(states);
    let statuses = of_each.map(|((domain, is_alive), state)| DomainStatus {
        domid: domain.domid,
        name: domain.name.clone(),
        state: if is_alive { state } else { GONE.to_owned() },
    });
    Ok(statuses.collect())
}

/// The xenbus states in these nodes, as the status has them.
fn read_states(store: &mut Store, paths: &[String]) -> Result<Vec<String>, StoreError> {
    let states = store.read_many(paths)?.into_iter();
    let states = states.map(|text| text.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)));
    Ok(states.map(|state| format!("{state:?}").to_lowercase()).collect())
}

/// The networks of stubs, by the backups of their configurations.
fn network_statuses(store: &mut Store, stubs: &[DomId]) -> Result<Vec<Option<NetworkStatus>>, StoreError> {
    let configs = stub_backup::configs(store, stubs)?;
    // As `docs/misc/xenstore-paths.pandoc` of Xen has it.
    let vif = |&stub: &DomId| format!("{}/device/vif/0/{}", home(stub), key::STATE);
    let states = read_states(store, &stubs.iter().map(vif).collect::<Vec<_>>())?;
    let statuses = configs.iter().zip(states).map(|(config, state)| {
        let origin = StubOrigin::of(config.as_ref()?)?;
        Some(NetworkStatus::new(origin.network()?, state))
    });
    Ok(statuses.collect())
}

/// Status of a device as far as its record tells.
pub(super) fn device_status(device: &Device, mode: &Mode) -> DeviceStatus {
    let line = device.gsi.filter(|_| device.line_offered);
    let (name, pirqs) = match mode {
        // In this mode a device whose line is withheld has no interrupt at all.
        Mode::Intx => (
            if line.is_some() { "intx" } else { "none" },
            line.into_iter().collect(),
        ),
        Mode::Msi(pirq) => ("msi", vec![u32::from(*pirq)]),
        Mode::Msix(entries) => ("msi-x", entries.iter().map(|&(_, pirq)| pirq.into()).collect()),
    };
    DeviceStatus {
        bdf: device.bdf.to_string(),
        ids: device.ids.to_string(),
        called: None,
        mode: name.into(),
        pirqs,
        gsi: device.gsi,
        line_offered: device.line_offered,
        virtual_function_of: device.physical.map(|physical| physical.to_string()),
        line: None,
        reset: None,
        terms: device.terms.clone(),
        corrected_errors: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::status;
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::ModeNode;
    use crate::records::tests::{attachment, device, domain};
    use rustix::io::Errno;
    use xen::model::{ModelDomain, Xen};
    use xenbus::model::Xenstored;

    #[test]
    fn whether_a_guest_is_held_is_asked_of_xen() {
        let (daemon, tree, xen) = (Xenstored::new(), Tree::new(), Xen::default());
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let start = GuestStart {
            guest: domain(3, "web"),
            stage: Stage::Failed {
                reason: "it is mute".into(),
                held: true,
            },
        };
        start.write(&mut store).unwrap();
        let mut look = |xen: Option<&dyn Hypervisor>| {
            let status = collect(&mut store, xen, &tree.sysfs(), true, BTreeMap::new()).unwrap();
            (status.starts[0].is_paused(), status.problems.len())
        };
        let problems = look(None).1;
        assert_eq!(look(None), (true, problems));
        let held = ModelDomain {
            pauses: 1,
            ..ModelDomain::default()
        };
        xen.set_domain(3, held);
        assert_eq!(look(Some(&xen)), (true, problems));
        xen.unpause(3).unwrap();
        assert_eq!(look(Some(&xen)), (false, problems));
        xen.refuse("state 3", Errno::PERM);
        assert_eq!(look(Some(&xen)), (true, problems + 1));
    }

    #[test]
    fn a_device_whose_interrupt_mode_is_unknown_is_a_problem() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_path_buf();
        crate::paths::tests::HOME.with(|home| *home.borrow_mut() = Some(path));
        let tree = Tree::new();
        let problems = |modes: [ModeNode; 2]| {
            let mut store = dom0(&Xenstored::new());
            let known = attachment();
            let attachment = Attachment {
                modes: modes.into(),
                ..known
            };
            attachment.write(&mut store).unwrap();
            let status = collect(&mut store, None, &tree.sysfs(), true, BTreeMap::new()).unwrap();
            let about_modes = status.problems.into_iter();
            about_modes
                .filter(|problem| problem.contains("interrupt mode"))
                .collect::<Vec<_>>()
        };
        assert_eq!(problems([Mode::Msi(55).into(), Mode::Intx.into()]), [""; 0]);
        let found = problems([ModeNode::File, Mode::Intx.into()]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("0000:00:05.0") && found[0].contains("driver is unbound and bound"),
            "{found:?}"
        );
    }

    #[test]
    fn a_device_that_dom0_has_removed_is_told() {
        let tree = Tree::new();
        let expected = "0000:00:05.0 is gone: dom0 removed it while guest web has it. Xen may stop the host when guest \
                        web lets go of its interrupts: end what else runs here before you end that guest";
        assert_eq!(gone(&status().stubs, &tree.sysfs()), [expected]);
        tree.add("0000:00:05.0", &[]);
        assert_eq!(gone(&status().stubs, &tree.sysfs()), [""; 0]);
    }

    #[test]
    fn a_withheld_line_is_no_interrupt_and_is_said() {
        let without = Device {
            line_offered: false,
            ..device("00:05.0")
        };
        let status = device_status(&without, &Mode::Intx);
        assert_eq!((status.mode.as_str(), status.pirqs.as_slice()), ("none", &[][..]));
        assert_eq!(status.interrupts(), "none, INTx withheld");
        let offered = device_status(&device("00:05.0"), &Mode::Intx);
        assert_eq!(
            (offered.mode.as_str(), offered.pirqs.as_slice()),
            ("intx", &[20][..])
        );
    }
}
