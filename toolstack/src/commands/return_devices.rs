//! Devices that return from a guest: the service takes them back, or this process if no service runs. Then dom0's drivers get
//! them.

use crate::control::{self, Asked, Reply, Request};
use crate::handover::reclaim::{self, Released};
use crate::handover::seize::{Rebound, rebind_driver};
use crate::host::Host;
use crate::host::domains::Domain;
use crate::records::{self, Attachment};
use crate::say::say;
use anyhow::{Result, bail, ensure};
use pci::bdf::Bdf;
use xen::xenctrl::DomId;

/// Gives devices that were taken back to dom0's drivers. Devices in quarantine stay there. Devices that a guest may still have
/// mapped stay held, unless it is `trusted`.
pub fn rebind_drivers<X>(host: &mut Host<X>, bdfs: &[Bdf], released: Released, trusted: bool) -> Result<()> {
    released.devices.iter().for_each(|line| say!("{line}"));
    let mut problems = released.problems;
    for &bdf in bdfs {
        // `rebind_driver` keeps a device that a guest may have mapped.
        if trusted {
            records::forget_mapped(&mut host.store, bdf)?;
        }
        match rebind_driver(host, bdf) {
            Ok(Rebound::Driver(driver)) => say!("gave {bdf} back to {driver}"),
            Ok(Rebound::MappedBy(guest)) => say!("{}", why_held(bdf, &guest)),
            Ok(Rebound::Undriven | Rebound::Stays) => {}
            Err(error) => problems.push(format!("{:#}", anyhow::Error::from(error))),
        }
    }
    ensure!(
        problems.is_empty(),
        "not everything worked:\n{}",
        problems.join("\n")
    );
    Ok(())
}

/// Why a device stays held whose last guest lives on.
pub fn why_held(bdf: Bdf, guest: &Domain) -> String {
    format!(
        "{bdf} stays held: guest {} runs and may still have its memory mapped. `bulkhead release {bdf}` gives it to dom0 \
         when the guest has ended, with --trusted-guest at once",
        guest.name
    )
}

/// Has all devices of an attachment taken back, unless that has happened already.
pub fn reclaim_attachment(host: &mut Host, attachment: &Attachment) -> Result<Released> {
    let stub = attachment.stub.domid;
    ask_service(host, stub, Request::Release { stub }, reclaim::reclaim_all)
}

/// Has devices taken back by the service, as `request` says, or by `ourselves` if no service runs.
fn ask_service(
    host: &mut Host,
    stub: DomId,
    request: Request,
    ourselves: impl FnOnce(&mut Host, &Attachment) -> Released,
) -> Result<Released> {
    let answered = control::ask_or_keep_stopped(&request);
    if let Ok(Asked::Answered(reply)) = answered {
        return match *reply {
            Reply::Released { devices, problems } => Ok(Released { devices, problems }),
            _ => bail!("the service's answer does not fit the request: restart the service"),
        };
    }
    let Some(left) = Attachment::read(&mut host.store, stub)? else {
        // The service saw the guest die and has done it, or no record was written.
        return Ok(Released::default());
    };
    // Held until the end: a service that starts in between would begin with the same work.
    let _stopped = answered?;
    Ok(ourselves(host, &left))
}

/// Has some devices taken back from a guest that has let go of them.
pub fn reclaim_devices(host: &mut Host, attachment: &Attachment, bdfs: &[Bdf]) -> Result<Released> {
    let stub = attachment.stub.domid;
    let devices = bdfs.to_vec();
    ask_service(host, stub, Request::TakeBack { stub, devices }, |host, left| {
        reclaim::reclaim_devices(host, left, bdfs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::Seizure;
    use crate::records::tests::domain;
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    #[test]
    fn a_device_that_a_guest_may_have_mapped_is_handed_back_if_that_is_trusted() {
        let (name, daemon, tree) = ("0000:00:07.0", Xenstored::new(), Tree::new());
        introduce(&daemon, 3, "web");
        tree.add(name, &[]);
        // Dom0 has it by now, so that only the notes are left to go.
        tree.bind(name, "e1000e");
        let bdf = name.parse().unwrap();
        for trusted in [false, true] {
            let mut host = Host {
                store: dom0(&daemon),
                xen: Xen::default(),
                sysfs: tree.sysfs(),
                runner: Runner::Model(Vec::new()),
            };
            let store = &mut host.store;
            records::record_seized(store, Seizure::ForGuest, bdf, "e1000e", "test").unwrap();
            records::record_mapped(store, bdf, &domain(3, "web")).unwrap();
            rebind_drivers(&mut host, &[bdf], Released::default(), trusted).unwrap();
            let store = &mut host.store;
            let is_held = records::seized_from(store, Seizure::ForGuest, bdf)
                .unwrap()
                .is_some();
            let is_mapped = !records::mapped(store).unwrap().is_empty();
            assert_eq!((is_held, is_mapped), (!trusted, !trusted));
        }
    }

    #[test]
    fn what_did_not_work_fails_the_command_in_words() {
        let mut host = Host {
            store: dom0(&Xenstored::new()),
            xen: Xen::default(),
            sysfs: Tree::new().sysfs(),
            runner: Runner::Model(Vec::new()),
        };
        let released = Released {
            problems: vec!["it is mute".into()],
            ..Released::default()
        };
        let error = rebind_drivers(&mut host, &[], released, false).unwrap_err();
        assert!(error.to_string().ends_with("it is mute"), "{error}");
    }
}
