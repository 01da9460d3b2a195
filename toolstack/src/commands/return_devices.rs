//! Devices that return from a guest: the service takes them back, or this process if no service runs. Then dom0's drivers get
//! them.

use super::turn::Turn;
use super::waiting::POLL;
use crate::control::{self, ControlError, Reply, Request};
use crate::handover::reclaim::{self, Released};
use crate::handover::seize::{Rebound, rebind_driver};
use crate::host::Host;
use crate::host::domains::{Domain, present};
use crate::records::claims::Claims;
use crate::records::{self, Attachment, RecordError};
use crate::say::say;
use anyhow::{Result, bail, ensure};
use pci::bdf::Bdf;
use std::thread;
use std::time::Instant;
use xen::xenctrl::Hypervisor;

/// The attachment of a guest that has ended. Its record may have followed the domain to another name and UUID. The number, or
/// the UUID after a reboot, may be those of a domain that lives by now: that one keeps its devices.
pub fn left_of<X: Hypervisor>(host: &mut Host<X>, guest: &Domain) -> Result<Option<Attachment>> {
    let (attachments, _) = Attachment::all(&mut host.store)?;
    for left in attachments {
        let is_its = left.guest.uuid == guest.uuid || left.guest.domid == guest.domid;
        if is_its && present(host, &left.guest)?.is_none() {
            return Ok(Some(left));
        }
    }
    Ok(None)
}

/// Gives devices that were taken back from `guest` to dom0's drivers. Devices in quarantine stay there. Devices that a guest
/// may still have mapped stay held, unless that is `guest` and it is `trusted`. Devices that a guest has by now stay with it.
pub fn rebind_drivers<X>(
    host: &mut Host<X>,
    guest: &Domain,
    bdfs: &[Bdf],
    released: Released,
    trusted: bool,
) -> Result<()> {
    released.devices.iter().for_each(|line| say!("{line}"));
    let mut problems = released.problems;
    // Other commands, and the service, have worked while the devices were on their way.
    match Claims::read(&mut host.store) {
        Ok(claims) => {
            for &bdf in bdfs {
                let done = rebind_one(host, guest, bdf, &claims, trusted);
                problems.extend(done.err().map(|error| format!("{error:#}")));
            }
        }
        Err(error) => problems.push(format!("{:#}", anyhow::Error::from(error))),
    }
    ensure!(
        problems.is_empty(),
        "not everything worked:\n{}",
        problems.join("\n")
    );
    Ok(())
}

fn rebind_one<X>(host: &mut Host<X>, guest: &Domain, bdf: Bdf, claims: &Claims, trusted: bool) -> Result<()> {
    if let Some(claim) = claims.taken.iter().find(|claim| claim.bdf == bdf) {
        let is_others = claim.domain.is_some_and(|domid| domid != guest.domid);
        ensure!(is_others, "{bdf} is still used {}: {}", claim.by, claim.next);
        say!("{bdf} is used {} by now", claim.by);
        return Ok(());
    }
    if trusted
        && let Some(by) = records::mapped_by(&mut host.store, bdf)?
        && (by.uuid == guest.uuid || by.uuid.is_empty())
    {
        // `rebind_driver` keeps a device that a guest may have mapped. A record without a guest is damaged.
        records::forget_mapped(&mut host.store, bdf)?;
    }
    match rebind_driver(host, bdf)? {
        Rebound::Driver(driver) => say!("gave {bdf} back to {driver}"),
        Rebound::MappedBy(guest) => say!("{}", why_held(bdf, &guest)),
        Rebound::Undriven | Rebound::Stays => {}
    }
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
pub fn reclaim_attachment(host: &mut Host, turn: &mut Turn, attachment: &Attachment) -> Result<Released> {
    let stub = attachment.stub.domid;
    ask_service(
        host,
        turn,
        attachment,
        Request::Release { stub },
        reclaim::reclaim_all,
    )
}

/// Has some devices taken back from a guest that has let go of them.
pub fn reclaim_devices(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    bdfs: &[Bdf],
) -> Result<Released> {
    let request = Request::TakeBack {
        stub: attachment.stub.domid,
        devices: bdfs.to_vec(),
    };
    ask_service(host, turn, attachment, request, |host, left| {
        reclaim::reclaim_devices(host, left, bdfs)
    })
}

/// Has devices taken back by the service, as `request` says, or by `ourselves` if no service runs.
fn ask_service(
    host: &mut Host,
    turn: &mut Turn,
    attachment: &Attachment,
    request: Request,
    ourselves: impl FnOnce(&mut Host, &Attachment) -> Released,
) -> Result<Released> {
    let stub = attachment.stub.domid;
    if is_of_another(Attachment::read(&mut host.store, stub), attachment) {
        return Ok(Released::default());
    }
    let mut deadline = None;
    let stopped = loop {
        // A device may take long to be reset.
        let asked = match turn.give_way(|| Ok(control::ask_again(&request)))? {
            Ok(Reply::Released { devices, problems }) => return Ok(Released { devices, problems }),
            Ok(_) => bail!("the service's answer does not fit the request: restart the service"),
            Err(error) => error,
        };
        // It may also have failed to start because a command like this one keeps it stopped.
        if let ControlError::NotRunning(_) | ControlError::NoStart(_) = asked {
            if let Some(lock) = control::keep_stopped()? {
                break Ok(lock);
            }
            if Instant::now() < *deadline.get_or_insert_with(|| Instant::now() + control::RESTART) {
                // A service is about to start.
                thread::sleep(POLL);
                continue;
            }
        }
        break Err(asked);
    };
    let Some(left) = Attachment::read(&mut host.store, stub)? else {
        // The service saw the guest die and has done it, or no record was written.
        return Ok(Released::default());
    };
    // Held until the end: a service that starts in between would begin with the same work.
    let _stopped = stopped?;
    if left.guest.uuid != attachment.guest.uuid {
        return Ok(Released::default());
    }
    Ok(ourselves(host, &left))
}

/// True if the attachment has ended, and a stub of another guest has got the number of its stub.
fn is_of_another(recorded: Result<Option<Attachment>, RecordError>, attachment: &Attachment) -> bool {
    // The service tells of a damaged record.
    matches!(recorded, Ok(Some(recorded)) if recorded.guest.uuid != attachment.guest.uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::Seizure;
    use crate::records::tests::{attachment, domain};
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    #[test]
    fn what_a_guest_has_left_is_found_and_nothing_of_a_domain_that_lives() {
        let (daemon, tree) = (Xenstored::new(), Tree::new());
        let mut host = Host {
            store: dom0(&daemon),
            xen: Xen::default(),
            sysfs: tree.sysfs(),
            runner: Runner::Model(Vec::new()),
        };
        let (web, record) = (domain(3, "web"), attachment());
        let kept = domain(3, "web-20261130T0733Z");
        let rebooted = Domain {
            domid: 9,
            ..web.clone()
        };
        for (recorded, is_its) in [
            (&web, true),
            (&kept, true),
            (&rebooted, true),
            (&domain(7, "mail"), false),
        ] {
            let left = Attachment {
                guest: recorded.clone(),
                ..record.clone()
            };
            left.write(&mut host.store).unwrap();
            let found = left_of(&mut host, &web).unwrap();
            assert_eq!(found.is_some(), is_its, "{recorded:?} has ended");
            host.xen.set_uuid(recorded.domid, &recorded.uuid);
            introduce(&daemon, recorded.domid, &recorded.name);
            assert_eq!(left_of(&mut host, &web).unwrap(), None, "{recorded:?} lives");
            daemon.release(recorded.domid);
            left.remove(&mut host.store).unwrap();
        }
    }

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
            rebind_drivers(&mut host, &domain(3, "web"), &[bdf], Released::default(), trusted).unwrap();
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
        let error = rebind_drivers(&mut host, &domain(3, "web"), &[], released, false).unwrap_err();
        assert!(error.to_string().ends_with("it is mute"), "{error}");
    }
}
