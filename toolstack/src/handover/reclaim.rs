//! Takes devices back from a guest: all that the attachment's record names, whether it was given wholly or in part.
//!
//! It can be run after any failure and more than once; what is not there any more is passed over.
//! Every step is tried, because a device that is left half quiesced is the worst outcome. A device with which any
//! step failed goes into quarantine, and to nobody.

use crate::handover::idle_intx;
use crate::host::Host;
use crate::host::domains::{self, present};
use crate::nodes::device_list;
use crate::nodes::hops::{error_directory, first_hop};
use crate::records::{self, Attachment, Device};
use inject::Point;
use pci::bdf::Bdf;
use xen::xenctrl::Hypervisor;
use xenbus::client::Store as _;
use xenbus::path::DeviceType;

mod device;
#[cfg(test)]
mod fixture;
mod outcome;
mod revoke;

use device::{Owner, Share, reclaim_held, reclaim_lost};
pub use outcome::Released;
use revoke::line_stays;
pub use revoke::revoke_removed;
/// Limit for the recorded reasons of a quarantine, in characters: a node of xenstore has 4 KiB at most.
const REASON_LENGTH: usize = 1000;

/// Takes everything back and destroys the stub. The guest may be dead, or must have let go.
pub fn reclaim_all<X: Hypervisor>(host: &mut Host<X>, attachment: &Attachment) -> Released {
    let mut released = Released::default();
    let guest = attachment.guest.domid;
    let guest_lives = reclaim_each(host, attachment, &|_| true, &mut released);

    let destroyed = domains::destroy(host, &attachment.stub);
    released.check(
        format_args!("cannot destroy stub {}", attachment.stub.name),
        destroyed,
    );
    // Directories that hold nothing else are removed too, so that nothing piles up from guest to guest.
    let mut nodes = vec![format!(
        "{}/{}",
        DeviceType::Bulkhead.backends(0),
        attachment.stub.domid
    )];
    nodes.push(error_directory(attachment.stub.domid));
    if guest_lives {
        // These go one by one: Linux does not notice a device whose directory vanishes with the one above, and would
        // take the next one for the same.
        nodes.push(first_hop(attachment).frontend_dir());
        nodes.push(DeviceType::Pci.frontends(guest));
    }
    for path in nodes {
        let removed = remove_if_there(host, &path);
        released.check(format_args!("cannot remove {path}"), removed);
    }
    // The homes may hold nodes that were written at the moment when the domain ended.
    for domid in [attachment.stub.domid, guest] {
        let cleared = domains::clear_home(&mut host.store, domid);
        released.check(
            format_args!("cannot remove what dead domain {domid} has left in xenstore"),
            cleared,
        );
    }
    let forgotten = records::forget_dead_mappings(&mut host.store);
    released.check(
        format_args!("cannot forget what dead guests had mapped"),
        forgotten,
    );
    // The record goes last: if this process dies before, the next one finds it and does all of this again.
    inject::point(Point::Released);
    released.check(
        format_args!("cannot remove the record"),
        attachment.remove(&mut host.store),
    );
    restore_idle_intx(host, &mut released);
    released
}

/// Takes some devices back from a guest that keeps the others. It must have let go of them, and so must the stub.
///
/// The record goes last: as long as a device is in it, this can be tried again.
pub fn reclaim_devices<X: Hypervisor>(host: &mut Host<X>, attachment: &Attachment, bdfs: &[Bdf]) -> Released {
    let mut released = Released::default();
    let leaving = |device: &Device| bdfs.contains(&device.bdf);
    reclaim_each(host, attachment, &leaving, &mut released);
    let kept = attachment.without(bdfs);
    let struck = device_list::strike(&mut host.store, &kept);
    released.check(
        format_args!("cannot take the devices off the lists in xenstore"),
        struck,
    );
    inject::point(Point::Released);
    released.check(
        format_args!("cannot change the record"),
        Attachment::remove_devices(&mut host.store, attachment.stub.domid, bdfs),
    );
    restore_idle_intx(host, &mut released);
    released
}

/// Gives INTx back to functions that nobody drives, where no guest has their line any more.
fn restore_idle_intx<X>(host: &mut Host<X>, released: &mut Released) {
    released.check(
        format_args!("cannot enable INTx again where it was disabled for the sake of a line"),
        idle_intx::restore(&mut host.store, &host.sysfs),
    );
}

/// Stops and resets those devices of an attachment that are `leaving`, and takes them from the guest if it lives;
/// true if it does.
fn reclaim_each<X: Hypervisor>(
    host: &mut Host<X>,
    attachment: &Attachment,
    leaving: &dyn Fn(&Device) -> bool,
    released: &mut Released,
) -> bool {
    // One that libxl keeps under another name has all that it had.
    let guest = present(host, &attachment.guest);
    for (index, (device, recorded)) in attachment.devices_and_modes().enumerate() {
        if !leaving(device) {
            continue;
        }
        let bdf = device.bdf;
        let mut taken = Released::default();
        let living = match &guest {
            Ok(guest) => guest.as_ref(),
            // Its number may be another domain's by now, so nothing is taken from it. The device goes into quarantine.
            Err(error) => {
                let guest = &attachment.guest.name;
                let problem = format!("{bdf}: cannot see whether its guest {guest} lives: {error}");
                taken.problems.push(problem);
                None
            }
        };
        // This is recorded before anything is revoked: a process that dies in between must not leave the device free
        // for others.
        if let Some(guest) = living {
            let recorded = records::record_mapped(&mut host.store, bdf, guest);
            taken.check(
                format_args!("{bdf}: cannot note that its guest may have it mapped"),
                recorded,
            );
        }
        let share = Share {
            guest: living.map(|guest| guest.domid),
            stub: attachment.stub.domid,
            line_stays: line_stays(&attachment.devices, index, leaving),
        };
        let outcome = match Owner::of(device, &host.sysfs) {
            Owner::Pciback => reclaim_held(host, device, &recorded, &share, &mut taken),
            lost => reclaim_lost(host, device, &lost, &share, &mut taken),
        };
        let reasons: Vec<&str> = taken
            .problems
            .iter()
            .chain(outcome.as_ref().err())
            .map(String::as_str)
            .collect();
        let line = if reasons.is_empty() {
            outcome.unwrap_or_default()
        } else {
            // The quarantine begins while the attachment is still recorded, so that the device is free at no time.
            let reason: String = reasons.join("; ").chars().take(REASON_LENGTH).collect();
            let recorded = records::quarantine(&mut host.store, bdf, &reason);
            taken.check(format_args!("{bdf}: cannot note its quarantine"), recorded);
            format!("{bdf} is kept in quarantine: {reason}; `bulkhead release {bdf}` tries its reset again")
        };
        released.devices.push(line);
        released.problems.append(&mut taken.problems);
    }
    guest.is_ok_and(|guest| guest.is_some())
}

fn remove_if_there<X>(host: &mut Host<X>, path: &str) -> Result<(), crate::host::store::StoreError> {
    match host.store.remove(path) {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{BDF, Fixture, TAKEN};
    use super::*;
    use crate::host::Runner;
    use crate::host::domains::tests::preserve;
    use crate::records::tests::{device, domain};
    use rustix::io::Errno;

    #[test]
    fn a_guest_that_lives_loses_interrupts_ranges_and_dma_and_is_recorded() {
        for part in [false, true] {
            let mut fixture = Fixture::new();
            let released = if part {
                fixture.reclaim_devices()
            } else {
                fixture.reclaim_all()
            };
            assert_eq!(released.problems, [""; 0]);
            assert_eq!(fixture.host.xen.calls(), TAKEN);
            let mapped = records::mapped(&mut fixture.host.store).unwrap();
            assert_eq!(mapped, [(fixture.bdf(), domain(3, "web"))]);
        }
    }

    #[test]
    fn a_guest_that_libxl_keeps_under_another_name_loses_all_as_one_that_lives() {
        let mut fixture = Fixture::new();
        fixture.host.xen.set_uuid(3, &domain(3, "web").uuid);
        let kept = preserve(&fixture.daemon, 3, "web-20261130T0733Z");
        assert_eq!(fixture.reclaim_all().problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), TAKEN);
        let mapped = records::mapped(&mut fixture.host.store).unwrap();
        assert_eq!(mapped, [(fixture.bdf(), kept)]);
    }

    #[test]
    fn of_a_guest_that_is_dead_xen_has_taken_all_and_nothing_is_mapped_any_more() {
        let mut fixture = Fixture::new();
        let store = &mut fixture.host.store;
        records::record_mapped(store, "00:09.0".parse().unwrap(), &domain(3, "web")).unwrap();
        fixture.daemon.release(3);
        assert_eq!(fixture.reclaim_all().problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), ["frames 4 b0028+1 false"]);
        assert!(!fixture.exists("/local/domain/0/bulkhead/mapped/0000-00-09-0"));
        assert!(!fixture.exists("/local/domain/0/bulkhead/mapped/0000-00-05-0"));
    }

    #[test]
    fn with_the_last_device_go_the_stub_its_nodes_and_the_record() {
        let mut fixture = Fixture::new();
        fixture.reclaim_all();
        let Runner::Model(destroyed) = &fixture.host.runner else {
            panic!("the runner is a model");
        };
        assert_eq!(*destroyed, [4]);
        for path in [
            "/local/domain/0/backend/bulkhead/4",
            "/local/domain/0/error/backend/bulkhead/4",
            "/local/domain/3/device/pci",
            "/local/domain/0/bulkhead/attachment/4",
        ] {
            assert!(!fixture.exists(path), "{path}");
        }
        assert!(fixture.exists("/local/domain/3"));
    }

    #[test]
    fn what_dom0_wrote_for_a_domain_that_xl_had_removed_goes_too() {
        let mut fixture = Fixture::new();
        let homes = ["/local/domain/3", "/local/domain/4"];
        for (domid, home) in [3, 4].into_iter().zip(homes) {
            fixture.daemon.release(domid);
            fixture.host.store.remove(home).unwrap();
            let late = format!("{home}/backend/pci/3/0/state");
            fixture.host.store.write(&late, "5").unwrap();
        }
        assert_eq!(fixture.reclaim_all().problems, [""; 0]);
        assert_eq!(homes.map(|home| fixture.exists(home)), [false; 2]);
    }

    #[test]
    fn the_nodes_of_a_dead_guest_are_left_to_xl() {
        let mut fixture = Fixture::new();
        fixture.daemon.release(3);
        fixture.reclaim_all();
        assert!(fixture.exists("/local/domain/3/device/pci"));
    }

    #[test]
    fn a_device_that_leaves_goes_off_the_record_and_the_others_and_the_stub_stay() {
        let mut fixture = Fixture::new();
        let stays = Device {
            gsi: None,
            line_offered: false,
            ..device("00:06.0")
        };
        fixture.attachment = fixture.attachment.with(vec![stays]);
        fixture.attachment.write(&mut fixture.host.store).unwrap();
        let hop = first_hop(&fixture.attachment);
        for (key, value) in [("num_devs", "2"), ("dev-0", BDF), ("dev-1", "0000:00:06.0")] {
            fixture.host.store.write(&hop.backend_node(key), value).unwrap();
        }
        assert_eq!(fixture.reclaim_devices().problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), TAKEN);
        let left = Attachment::read(&mut fixture.host.store, 4).unwrap().unwrap();
        let left: Vec<_> = left.bdfs().map(|bdf| bdf.to_string()).collect();
        assert_eq!(left, ["0000:00:06.0"]);
        assert_eq!(
            fixture.host.store.read(&hop.backend_node("num_devs")).unwrap(),
            "1"
        );
        assert!(matches!(&fixture.host.runner, Runner::Model(destroyed) if destroyed.is_empty()));
        assert!(fixture.exists("/local/domain/3/device/pci"));
    }

    #[test]
    fn whatever_xen_does_not_take_puts_the_device_in_quarantine_and_the_rest_is_done_all_the_same() {
        for call in TAKEN {
            for part in [false, true] {
                let mut fixture = Fixture::new();
                fixture.host.xen.refuse(call, Errno::PERM);
                let released = if part {
                    fixture.reclaim_devices()
                } else {
                    fixture.reclaim_all()
                };
                assert_eq!(released.problems.len(), 1, "{call}: {released:?}");
                assert_eq!(fixture.host.xen.calls(), TAKEN, "{call}");
                assert_eq!(fixture.reset_written(), "1", "{call}");
                let reason = fixture.quarantine().unwrap();
                assert!(reason.starts_with("0000:00:05.0: cannot "), "{call}: {reason}");
                assert_eq!(
                    released.devices,
                    [format!(
                        "0000:00:05.0 is kept in quarantine: {reason}; `bulkhead release 0000:00:05.0` tries its reset \
                         again"
                    )]
                );
            }
        }
    }

    #[test]
    fn the_last_guest_of_a_line_gives_intx_back_to_the_function_that_nobody_drives() {
        for part in [false, true] {
            let mut fixture = Fixture::new();
            let idle = "0000:00:0a.0";
            let mut config = vec![0; 256];
            config[4..6].copy_from_slice(&0x0407_u16.to_le_bytes());
            config[0x3d] = 1;
            fixture
                .tree
                .add(idle, &[("config", &config), ("irq", b"11\n"), ("enable", b"0\n")]);
            let bdf = idle.parse().unwrap();
            records::record_intx_disabled(&mut fixture.host.store, bdf).unwrap();
            let released = if part {
                fixture.reclaim_devices()
            } else {
                fixture.reclaim_all()
            };
            assert_eq!(released.problems, [""; 0]);
            let config = fixture.host.sysfs.config_bytes(bdf).unwrap();
            assert_eq!(config[4..6], [0x07, 0x00], "COMMAND");
        }
    }
}
