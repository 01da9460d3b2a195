//! Taking one device back: it is stopped, taken from guest and stub, and reset.

use super::outcome::Released;
use super::revoke::{deassign, revoke_line, revoke_page, revoke_ranges, unless_gone};
use crate::handover::config_backup;
use crate::handover::reset::{self, quiesce};
use crate::handover::seize::{SeizeError, make_ready};
use crate::handover::shared_intx;
use crate::host::Host;
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::records::Device;
use crate::records::interrupt_mode::Recorded;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};

/// The owner of a device at the moment when it is taken back. Dom0 may have removed it under its guest, and found it
/// again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// xen-pciback, as since it was taken from dom0's driver.
    Pciback,
    /// Dom0, which has found it again, by this driver.
    Driver(String),
    /// Dom0, which has found it again, without a driver, or held by xen-pciback as a function of dom0's.
    Undriven,
    /// Nobody: the device is gone.
    Gone,
}

impl Owner {
    pub fn of(device: &Device, sysfs: &Sysfs) -> Self {
        let bdf = device.bdf;
        // xen-pciback takes a slot again that it once held, so its driver alone does not tell (decision 78).
        let is_same = sysfs.is_same(bdf, device.inode);
        match sysfs.driver(bdf) {
            Some(driver) if driver != PCIBACK => Self::Driver(driver),
            Some(_) if is_same => Self::Pciback,
            _ if sysfs.exists(bdf) => Self::Undriven,
            _ => Self::Gone,
        }
    }
}

/// The domains that have a part of the device.
pub(super) struct Share {
    /// The guest, if it lives.
    pub guest: Option<DomId>,
    pub stub: DomId,
    /// True if the guest keeps the interrupt line for another device.
    pub line_stays: bool,
}

/// Takes back a device that xen-pciback holds: stops it, takes it from the guest, resets it. Returns how it is now, or
/// why it must go to nobody.
pub(super) fn reclaim_held<X: Hypervisor>(
    host: &mut Host<X>,
    device: &Device,
    recorded: &Recorded,
    share: &Share,
    taken: &mut Released,
) -> Result<String, String> {
    let bdf = device.bdf;
    let quiesced = host
        .sysfs
        .open_config(bdf)
        .map_err(io::Error::other)
        .and_then(|config| quiesce(&config));
    taken.check(format_args!("{bdf}: cannot stop it"), quiesced);
    // Xen has already taken all this from a dead guest.
    if let Some(guest) = share.guest {
        if let Recorded::Unknown(cause) = recorded {
            taken.problems.push(format!(
                "{bdf}: pirqs of it may still be mapped to its guest: {cause}"
            ));
        }
        for pirq in recorded.mode().pirqs() {
            taken.check(
                format_args!("{bdf}: cannot unmap pirq {pirq}"),
                unless_gone(host.xen.unmap_pirq(guest, pirq.into())),
            );
        }
        revoke_line(&host.xen, guest, device, share.line_stays, taken);
        revoke_ranges(&host.xen, guest, device, taken);
    }
    revoke_page(&host.xen, share.stub, device, taken);
    let stopped = shared_intx::stop(host, bdf);
    taken.check(
        format_args!("{bdf}: dom0 still answers for its line, and will not give it back"),
        stopped,
    );
    // The reset comes after Xen has revoked all that it can: a guest that lives could set the device up again.
    let outcome = reset(&host.sysfs, device, taken);
    if let Some(guest) = share.guest {
        deassign(&host.xen, guest, bdf, taken);
    }
    outcome
}

/// Takes from the domains what they have of a device that is dom0's again, or not there: dom0 has removed it under its
/// guest. Xen took its interrupts and its DMA when it was told of that. The device itself is its driver's. Returns as
/// [`reclaim_held`] does.
pub(super) fn reclaim_lost<X: Hypervisor>(
    host: &mut Host<X>,
    device: &Device,
    owner: &Owner,
    share: &Share,
    taken: &mut Released,
) -> Result<String, String> {
    let bdf = device.bdf;
    if let Some(guest) = share.guest {
        revoke_line(&host.xen, guest, device, share.line_stays, taken);
        revoke_ranges(&host.xen, guest, device, taken);
    }
    revoke_page(&host.xen, share.stub, device, taken);
    let forgotten = shared_intx::forget(&mut host.store, bdf);
    taken.check(
        format_args!("{bdf}: cannot forget that dom0 answered for its line"),
        forgotten,
    );
    let forgotten = config_backup::forget(bdf);
    taken.check(format_args!("{bdf}: cannot forget its registers"), forgotten);
    // Xen knows no device that is gone: dom0 has told it of the removal.
    if let Some(guest) = share.guest.filter(|_| *owner != Owner::Gone) {
        deassign(&host.xen, guest, bdf, taken);
    }
    match owner {
        Owner::Driver(driver) => Ok(format!(
            "{bdf} was left alone: dom0 removed it while the guest had it, and its driver {driver} has it now"
        )),
        Owner::Gone | Owner::Pciback => Ok(format!("{bdf} is gone: dom0 removed it while the guest had it")),
        // Its DMA may still be on, as the guest set it up, and reaches dom0's memory now.
        Owner::Undriven => match make_ready(host, bdf) {
            Ok(method) => Ok(format!(
                "{bdf} was stopped, {reset}: dom0 removed it while the guest had it, and found it again",
                reset =
                    method.map_or_else(|| "without a reset".into(), |method| format!("reset by {method}"))
            )),
            Err(SeizeError::Quarantined { reason, .. }) => Err(reason),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// Resets the device and puts its header back. Returns how it is now, or why it must go to nobody.
fn reset(sysfs: &Sysfs, device: &Device, released: &mut Released) -> Result<String, String> {
    let bdf = device.bdf;
    let method = reset::reset(sysfs, bdf, device.ids, &device.header).map_err(|error| error.to_string())?;
    let restored = config_backup::restore(device, sysfs);
    released.check(
        format_args!("{bdf}: cannot put back the registers that the guest could write by its terms"),
        restored,
    );
    Ok(match method {
        Some(method) => format!("{bdf} was stopped and reset by {method}, and answers"),
        None => format!(
            "{bdf} was stopped, and answers; no reset method: what the guest left in its registers stays there"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{BDF, Fixture, MSI, PMCSR, TAKEN};
    use super::*;
    use crate::records::ModeNode;
    use xenbus::client::Store as _;

    #[test]
    fn a_device_that_comes_back_is_awake_and_quiet_and_reset_with_its_header() {
        let mut fixture = Fixture::new();
        let released = fixture.reclaim_all();
        assert_eq!(released.problems, [""; 0]);
        assert_eq!(
            released.devices,
            ["0000:00:05.0 was stopped and reset by FLR, and answers"]
        );
        let config = fixture.config();
        assert_eq!(config[PMCSR] & 3, 0, "power state");
        assert_eq!(config[MSI + 2] & 1, 0, "MSI");
        // Memory stays decoded; bus mastering off, INTx disabled.
        assert_eq!(config[4..6], [0x02, 0x04], "COMMAND");
        assert_eq!(config[0x10..0x14], 0xfebc_0000_u32.to_le_bytes(), "base address");
        assert_eq!(config[0x3c], 11, "interrupt line");
        assert_eq!(fixture.reset_written(), "1");
        assert_eq!(fixture.quarantine(), None);
    }

    #[test]
    fn a_device_that_cannot_be_stopped_or_reset_is_in_quarantine() {
        let mut fixture = Fixture::new();
        std::fs::remove_file(fixture.tree.device(BDF).join("config")).unwrap();
        assert_eq!(fixture.reclaim_all().problems.len(), 1);
        let reason = fixture.quarantine().unwrap();
        assert!(reason.starts_with("0000:00:05.0: cannot stop it"), "{reason}");
        assert!(
            reason.contains("; its configuration could not be restored"),
            "{reason}"
        );

        let mut fixture = Fixture::new();
        let file = fixture.tree.device(BDF).join("reset");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert_eq!(fixture.reclaim_all().problems, [""; 0]);
        let reason = fixture.quarantine().unwrap();
        assert!(reason.starts_with("its reset by FLR failed"), "{reason}");
    }

    /// A record that says `file`, and no file.
    fn with_a_lost_mode() -> Fixture {
        let mut fixture = Fixture::new();
        let home = fixture.tree.directory.path().join("lost");
        crate::paths::tests::HOME.with(|directory| *directory.borrow_mut() = Some(home));
        fixture.attachment.modes = vec![ModeNode::File];
        fixture
    }

    #[test]
    fn a_device_whose_interrupts_are_unknown_goes_into_quarantine_and_is_taken_as_far_as_is_known() {
        let mut fixture = with_a_lost_mode();
        let released = fixture.reclaim_devices();
        assert_eq!(released.problems.len(), 1, "{released:?}");
        assert_eq!(fixture.host.xen.calls(), TAKEN[2..]);
        assert_eq!(fixture.reset_written(), "1");
        let reason = fixture.quarantine().unwrap();
        assert!(
            reason.starts_with(
                "0000:00:05.0: pirqs of it may still be mapped to its guest: cannot read the interrupt mode"
            ),
            "{reason}"
        );
    }

    #[test]
    fn of_a_guest_that_is_dead_no_pirq_is_mapped_whatever_the_record_says() {
        let mut fixture = with_a_lost_mode();
        fixture.daemon.release(3);
        assert_eq!(fixture.reclaim_all().problems, [""; 0]);
        assert_eq!(fixture.quarantine(), None);
    }

    #[test]
    fn a_device_that_was_found_again_and_cannot_be_reset_is_in_quarantine() {
        let mut fixture = Fixture::new();
        fixture.rebind(None);
        let inode = fixture.host.sysfs.inode(fixture.bdf()).unwrap();
        fixture.attachment.devices[0].inode = Some(inode + 1);
        let file = fixture.tree.device(BDF).join("reset");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        let released = fixture.reclaim_all();
        assert!(
            released.devices[0].contains("is kept in quarantine: its reset by FLR failed"),
            "{released:?}"
        );
        let reason = fixture.quarantine().unwrap();
        assert!(reason.starts_with("its reset by FLR failed"), "{reason}");
    }

    #[test]
    fn what_a_guest_could_write_by_its_terms_is_put_back_or_forgotten() {
        for lost in [false, true] {
            let mut fixture = Fixture::new();
            let home = fixture.tree.directory.path().join("kept");
            crate::paths::tests::HOME.with(|directory| *directory.borrow_mut() = Some(home.clone()));
            let device = &mut fixture.attachment.devices[0];
            device.terms.permissive = true;
            let bdf = device.bdf;
            config_backup::keep(bdf, &device.terms, &fixture.host.sysfs).unwrap();
            let mut config = fixture.config();
            config[0x80] = 0x5a;
            fixture.tree.add(BDF, &[("config", &config)]);
            if lost {
                fixture.rebind(Some("e1000e"));
            }
            assert_eq!(fixture.reclaim_all().problems, [""; 0]);
            assert_eq!(fixture.config()[0x80], if lost { 0x5a } else { 0 });
            assert!(!home.join(format!("{BDF}.config")).exists());
        }
    }

    #[test]
    fn a_line_that_dom0_does_not_give_back_keeps_the_device_in_quarantine() {
        let node = "/local/domain/0/bulkhead/ack/0000-00-05-0/state";
        let mut fixture = Fixture::new();
        fixture.host.store.write(node, "4").unwrap();
        assert_eq!(fixture.reclaim_all().problems.len(), 1);
        let reason = fixture.quarantine().unwrap();
        assert!(reason.contains("dom0 still answers for its line"), "{reason}");
        // The handler of a device that xen-pciback has lost went with it.
        let mut fixture = Fixture::new();
        fixture.host.store.write(node, "4").unwrap();
        fixture.rebind(Some("e1000e"));
        assert_eq!(fixture.reclaim_all().problems, [""; 0]);
        assert!(!fixture.exists(node));
    }

    #[test]
    fn a_device_that_another_driver_has_by_now_is_left_alone_and_xen_forgets_the_guest() {
        let mut fixture = Fixture::new();
        fixture.rebind(Some("e1000e"));
        let before = fixture.config();
        let released = fixture.reclaim_all();
        assert_eq!(
            released.devices,
            [
                "0000:00:05.0 was left alone: dom0 removed it while the guest had it, and its driver e1000e has it now"
            ]
        );
        assert_eq!(
            (fixture.config(), fixture.reset_written()),
            (before, String::new())
        );
        // The messages went with the device; Xen 4.17 stops the host when they are unmapped then.
        assert_eq!(fixture.host.xen.calls(), TAKEN[2..]);
    }

    #[test]
    fn a_device_that_was_found_again_and_that_nobody_drives_is_stopped_where_it_is_now() {
        for driver in [None, Some(PCIBACK)] {
            let mut fixture = Fixture::new();
            fixture.rebind(driver);
            let inode = fixture.host.sysfs.inode(fixture.bdf()).unwrap();
            fixture.attachment.devices[0].inode = Some(inode + 1);
            let released = fixture.reclaim_all();
            assert_eq!(released.problems, [""; 0]);
            assert!(
                released.devices[0].contains("stopped, reset by FLR"),
                "{released:?}"
            );
            let config = fixture.config();
            assert_eq!(config[4..6], [0x02, 0x04], "COMMAND");
            assert_eq!(config[0x10..0x14], [0; 4], "the addresses are dom0's new ones");
            assert_eq!(fixture.reset_written(), "1");
            assert_eq!(fixture.host.xen.calls(), TAKEN[2..]);
        }
    }

    #[test]
    fn a_device_whose_directory_is_the_one_of_before_is_the_guests() {
        let mut fixture = Fixture::new();
        fixture.attachment.devices[0].inode = fixture.host.sysfs.inode(fixture.bdf());
        fixture.reclaim_all();
        assert_eq!(fixture.host.xen.calls(), TAKEN);
    }

    #[test]
    fn of_a_device_that_is_gone_only_what_the_domains_have_is_taken() {
        let mut fixture = Fixture::new();
        std::fs::remove_dir_all(fixture.tree.device(BDF)).unwrap();
        let released = fixture.reclaim_devices();
        assert_eq!(
            released.devices,
            ["0000:00:05.0 is gone: dom0 removed it while the guest had it"]
        );
        assert_eq!(released.problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), TAKEN[2..10]);
    }
}
