//! Taking devices back: whatever an attachment's record says was given, wholly or in part.
//!
//! It can be run after any failure and more than once; what is not there any more is passed over.
//! Every step is tried, because a device that is left half quiesced is the worst outcome. A device with which any
//! step failed goes into quarantine, and to nobody.

use crate::config_space::resources::resources;
use crate::handover::config_backup;
use crate::handover::grant::permit;
use crate::handover::idle_intx;
use crate::handover::reset::{self, quiesce};
use crate::handover::seize::{SeizeError, make_ready};
use crate::handover::shared_intx;
use crate::host::Host;
use crate::host::domains::{self, is_alive};
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::nodes::device_list;
use crate::nodes::hops::{error_directory, first_hop};
use crate::records::interrupt_mode::Mode;
use crate::records::{self, Attachment, Device};
use inject::Point;
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};
use xenbus::client::Store as _;
use xenbus::path::DeviceType;

/// What happened to one device, and what did not work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// One line for each device: how it was reset, or that it is in quarantine.
    pub devices: Vec<String>,
    /// Steps that failed.
    pub problems: Vec<String>,
}

/// How much of the reasons for a quarantine is kept: a node of xenstore has 4 KiB at most.
const REASON_LENGTH: usize = 1000;

/// Takes everything back and destroys the stub. The guest may be dead, or must have let go.
pub fn release<X: Hypervisor>(host: &mut Host<X>, attachment: &Attachment) -> Released {
    let mut released = Released::default();
    let guest = attachment.guest.domid;
    let guest_lives = take_devices(host, attachment, &|_| true, &mut released);

    let destroyed = domains::destroy(host, &attachment.stub);
    released.note(
        format_args!("cannot destroy stub {}", attachment.stub.name),
        destroyed,
    );
    // With the directories that hold nothing else, so that nothing piles up from guest to guest.
    let mut nodes = vec![format!(
        "{}/{}",
        DeviceType::Bulkhead.backends(0),
        attachment.stub.domid
    )];
    nodes.push(error_directory(attachment.stub.domid));
    if guest_lives {
        // One by one: Linux does not see a device go whose directory vanishes with the one above, and would take the
        // next one for the same.
        nodes.push(first_hop(attachment).frontend_dir());
        nodes.push(DeviceType::Pci.frontends(guest));
    }
    for path in nodes {
        let removed = remove_if_there(host, &path);
        released.note(format_args!("cannot remove {path}"), removed);
    }
    // What was written for one of them in the moment when it ended.
    for domid in [attachment.stub.domid, guest] {
        let cleared = domains::clear_home(&mut host.store, domid);
        released.note(
            format_args!("cannot remove what dead domain {domid} has left in xenstore"),
            cleared,
        );
    }
    let forgotten = records::forget_dead_mappings(&mut host.store);
    released.note(
        format_args!("cannot forget what dead guests had mapped"),
        forgotten,
    );
    inject::point(Point::Released);
    released.note(
        format_args!("cannot remove the record"),
        attachment.remove(&mut host.store),
    );
    restore_idle_intx(host, &mut released);
    released
}

/// Takes some devices back from a guest that keeps the others. It must have let go of them, and so must the stub.
///
/// The record goes last: as long as a device is in it, this can be tried again.
pub fn take_back<X: Hypervisor>(host: &mut Host<X>, attachment: &Attachment, bdfs: &[Bdf]) -> Released {
    let mut released = Released::default();
    let leaving = |device: &Device| bdfs.contains(&device.bdf);
    take_devices(host, attachment, &leaving, &mut released);
    let kept = attachment.without(bdfs);
    let struck = device_list::strike(&mut host.store, &kept);
    released.note(
        format_args!("cannot take the devices off the lists in xenstore"),
        struck,
    );
    inject::point(Point::Released);
    released.note(
        format_args!("cannot change the record"),
        kept.write(&mut host.store),
    );
    restore_idle_intx(host, &mut released);
    released
}

/// Gives INTx back to functions that nobody drives, where no guest has their line any more.
fn restore_idle_intx<X>(host: &mut Host<X>, released: &mut Released) {
    released.note(
        format_args!("cannot enable INTx again where it was disabled for the sake of a line"),
        idle_intx::restore(&mut host.store, &host.sysfs),
    );
}

/// Takes from a guest that lives, and from its stub, the memory of a device that dom0 has removed: Linux may place the
/// next card there. Interrupts are left alone, because Xen 4.17 stops the host when one of a removed function is
/// unmapped. Returns what did not work.
pub fn revoke_removed(xen: &impl Hypervisor, attachment: &Attachment, bdf: Bdf) -> Vec<String> {
    let mut released = Released::default();
    for device in attachment.devices.iter().filter(|device| device.bdf == bdf) {
        revoke_ranges(xen, attachment.guest.domid, device, &mut released);
        revoke_page(xen, attachment.stub.domid, device, &mut released);
    }
    released.problems
}

/// Who has a device at the moment when it is to be taken back. Dom0 may have removed it under its guest, and found it
/// again.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    /// xen-pciback, as since it was taken from dom0's driver.
    Pciback,
    /// Dom0, which has found it again, by this driver.
    Driver(String),
    /// Nobody that drives it: it was found again, and has no driver, or xen-pciback as a function that is dom0's.
    Undriven,
    /// It is not there.
    Gone,
}

impl Holder {
    fn of(device: &Device, sysfs: &Sysfs) -> Self {
        let bdf = device.bdf;
        let anew = device.inode.is_some() && sysfs.inode(bdf) != device.inode;
        match sysfs.driver(bdf) {
            Some(driver) if driver != PCIBACK => Self::Driver(driver),
            Some(_) if !anew => Self::Pciback,
            _ if sysfs.exists(bdf) => Self::Undriven,
            _ => Self::Gone,
        }
    }
}

/// Stops and resets those devices of an attachment that are `leaving`, and takes them from the guest if it lives;
/// true if it does.
fn take_devices<X: Hypervisor>(
    host: &mut Host<X>,
    attachment: &Attachment,
    leaving: &dyn Fn(&Device) -> bool,
    released: &mut Released,
) -> bool {
    let alive = is_alive(&mut host.store, &attachment.guest);
    for (index, (device, mode)) in attachment.devices_and_modes().enumerate() {
        if !leaving(device) {
            continue;
        }
        let bdf = device.bdf;
        let mut taken = Released::default();
        let guest_lives = match &alive {
            Ok(alive) => *alive,
            // Its number may be another domain's by now, so nothing is taken from it; and the device is in doubt.
            Err(error) => {
                let guest = &attachment.guest.name;
                let problem = format!("{bdf}: cannot see whether its guest {guest} lives: {error}");
                taken.problems.push(problem);
                false
            }
        };
        if guest_lives {
            let noted = records::note_mapped(&mut host.store, bdf, &attachment.guest);
            taken.note(
                format_args!("{bdf}: cannot note that its guest may have it mapped"),
                noted,
            );
        }
        let share = Share {
            guest: guest_lives.then_some(attachment.guest.domid),
            stub: attachment.stub.domid,
            line_stays: line_stays(&attachment.devices, index, leaving),
        };
        let outcome = match Holder::of(device, &host.sysfs) {
            Holder::Pciback => take_held(host, device, mode, &share, &mut taken),
            lost => take_lost(host, device, &lost, &share, &mut taken),
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
            let reason: String = reasons.join("; ").chars().take(REASON_LENGTH).collect();
            let noted = records::quarantine(&mut host.store, bdf, &reason);
            taken.note(format_args!("{bdf}: cannot note its quarantine"), noted);
            format!("{bdf} is kept in quarantine: {reason}; `bulkhead release {bdf}` tries its reset again")
        };
        released.devices.push(line);
        released.problems.append(&mut taken.problems);
    }
    alive.unwrap_or(false)
}

/// What there is to take from whom.
struct Share {
    /// The guest, if it lives.
    guest: Option<DomId>,
    stub: DomId,
    /// True if the guest keeps the interrupt line for another device.
    line_stays: bool,
}

/// Takes back a device that xen-pciback holds: stops it, takes it from the guest, resets it. Returns how it is now, or
/// why it must go to nobody.
fn take_held<X: Hypervisor>(
    host: &mut Host<X>,
    device: &Device,
    mode: &Mode,
    share: &Share,
    taken: &mut Released,
) -> Result<String, String> {
    let bdf = device.bdf;
    let quiesced = host
        .sysfs
        .open_config(bdf)
        .map_err(io::Error::other)
        .and_then(|config| quiesce(&config));
    taken.note(format_args!("{bdf}: cannot stop it"), quiesced);
    if let Some(guest) = share.guest {
        for pirq in mode.pirqs() {
            taken.note(
                format_args!("{bdf}: cannot unmap pirq {pirq}"),
                unless_gone(host.xen.unmap_pirq(guest, pirq.into())),
            );
        }
        revoke_line(&host.xen, guest, device, share.line_stays, taken);
        revoke_ranges(&host.xen, guest, device, taken);
    }
    revoke_page(&host.xen, share.stub, device, taken);
    let stopped = shared_intx::stop(host, bdf);
    taken.note(
        format_args!("{bdf}: dom0 still answers for its line, and will not give it back"),
        stopped,
    );
    let outcome = reset(&host.sysfs, device, taken);
    if let Some(guest) = share.guest {
        deassign(&host.xen, guest, bdf, taken);
    }
    outcome
}

/// Takes from the domains what they have of a device that is dom0's again, or not there: dom0 has removed it under its
/// guest. Xen took its interrupts and its DMA when it was told of that. The device itself is its driver's. Returns as
/// [`take_held`] does.
fn take_lost<X: Hypervisor>(
    host: &mut Host<X>,
    device: &Device,
    holder: &Holder,
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
    taken.note(
        format_args!("{bdf}: cannot forget that dom0 answered for its line"),
        forgotten,
    );
    let forgotten = config_backup::forget(bdf);
    taken.note(format_args!("{bdf}: cannot forget its registers"), forgotten);
    if let Some(guest) = share.guest.filter(|_| *holder != Holder::Gone) {
        deassign(&host.xen, guest, bdf, taken);
    }
    match holder {
        Holder::Driver(driver) => Ok(format!(
            "{bdf} was left alone: dom0 removed it while the guest had it, and its driver {driver} has it now"
        )),
        Holder::Gone | Holder::Pciback => {
            Ok(format!("{bdf} is gone: dom0 removed it while the guest had it"))
        }
        // Its DMA may still be on, as the guest set it up, and reaches dom0's memory now.
        Holder::Undriven => match make_ready(host, bdf) {
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

/// True if the guest has another device with the interrupt line of device number `index`: one that is not leaving,
/// or one whose turn has not come.
fn line_stays(devices: &[Device], index: usize, leaving: &dyn Fn(&Device) -> bool) -> bool {
    let mut others = devices
        .iter()
        .enumerate()
        .filter(|&(number, other)| number > index || number < index && !leaving(other));
    others.any(|(_, other)| other.line_offered && other.gsi == devices[index].gsi)
}

impl Released {
    fn note<T, E: std::error::Error>(&mut self, what: std::fmt::Arguments<'_>, result: Result<T, E>) {
        if let Err(error) = result {
            let mut problem = format!("{what}: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                problem.push_str(&format!(": {error}"));
                cause = error.source();
            }
            self.problems.push(problem);
        }
    }
}

fn remove_if_there<X>(host: &mut Host<X>, path: &str) -> Result<(), crate::host::store::StoreError> {
    match host.store.remove(path) {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

/// Takes the interrupt line from a guest that lives on, unless another device of its own uses that too.
fn revoke_line(
    xen: &impl Hypervisor,
    guest: DomId,
    device: &Device,
    line_stays: bool,
    released: &mut Released,
) {
    let bdf = device.bdf;
    if let Some(gsi) = device.gsi.filter(|_| device.line_offered && !line_stays) {
        released.note(
            format_args!("{bdf}: cannot revoke GSI {gsi}"),
            unless_dead(xen.allow_pirq(guest, gsi, false)),
        );
        released.note(
            format_args!("{bdf}: cannot unmap GSI {gsi}"),
            unless_gone(xen.unmap_pirq(guest, gsi)),
        );
    }
}

/// Takes the address ranges from the guest. The page tables that it has Xen leaves alone.
fn revoke_ranges(xen: &impl Hypervisor, guest: DomId, device: &Device, released: &mut Released) {
    for resource in resources(&device.bars) {
        let revoked = permit(xen, guest, &resource, false);
        released.note(
            format_args!("{}: cannot revoke {resource:x?}", device.bdf),
            unless_dead(revoked),
        );
    }
}

/// Takes the configuration page from the stub, which may be dead.
fn revoke_page(xen: &impl Hypervisor, stub: DomId, device: &Device, released: &mut Released) {
    released.note(
        format_args!(
            "{}: cannot revoke its configuration page from the stub",
            device.bdf
        ),
        unless_dead(xen.allow_frames(stub, device.ecam, 1, false)),
    );
}

fn deassign(xen: &impl Hypervisor, guest: DomId, bdf: Bdf, released: &mut Released) {
    released.note(
        format_args!("{bdf}: cannot deassign it from domain {guest}"),
        unless_gone(xen.deassign(guest, bdf)),
    );
}

/// What an earlier attempt has taken already, one that was cut short, Xen does not know any more: a pirq (`EINVAL`),
/// a device of that guest's (`ENODEV`).
fn unless_gone(taken: io::Result<()>) -> io::Result<()> {
    unless(&[Errno::INVAL, Errno::NODEV, Errno::SRCH], taken)
}

/// Of a domain that has died meanwhile there is nothing to take.
fn unless_dead(taken: io::Result<()>) -> io::Result<()> {
    unless(&[Errno::SRCH], taken)
}

fn unless(harmless: &[Errno], taken: io::Result<()>) -> io::Result<()> {
    taken.or_else(|error| match Errno::from_io_error(&error) {
        Some(errno) if harmless.contains(&errno) => Ok(()),
        _ => Err(error),
    })
}

/// Resets the device and puts its header back. Returns how it is now, or why it must go to nobody.
fn reset(sysfs: &Sysfs, device: &Device, released: &mut Released) -> Result<String, String> {
    let bdf = device.bdf;
    let method = reset::reset(sysfs, bdf, device.ids, &device.header).map_err(|error| error.to_string())?;
    let put_back = config_backup::put_back(device, sysfs);
    released.note(
        format_args!("{bdf}: cannot put back the registers that the guest could write by its terms"),
        put_back,
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
    use super::*;
    use crate::config_space::capabilities::tests::space;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::{device, domain};
    use xen::model::Xen;
    use xenbus::device::SlotMode;
    use xenbus::model::Xenstored;

    const BDF: &str = "0000:00:05.0";
    const PMCSR: usize = 0x54;
    const MSI: usize = 0x60;

    /// A host whose guest 3 has the device 00:05.0, and whose stub is 4.
    struct Fixture {
        daemon: Xenstored,
        tree: Tree,
        host: Host<Xen>,
        attachment: Attachment,
    }

    impl Fixture {
        /// The guest has changed all that it can: the device sleeps, does DMA, sends messages, and forgot its address.
        fn new() -> Self {
            let mut original = space(&[(0x50, 0x01), (0x60, 0x05)]);
            original[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
            original[4] = 0x02;
            original[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
            original[0x3c] = 11;
            let mut left = original.clone();
            left[4] = 0x06;
            left[0x10..0x14].copy_from_slice(&[0; 4]);
            left[0x3c] = 99;
            left[PMCSR] = 3;
            left[MSI + 2] = 1;

            let tree = Tree::new();
            tree.add(
                BDF,
                &[
                    ("config", &left),
                    ("vendor", b"0x8086\n"),
                    ("device", b"0x10d3\n"),
                    ("reset", b""),
                    ("reset_method", b"flr\n"),
                ],
            );
            tree.bind(BDF, PCIBACK);
            let daemon = Xenstored::new();
            introduce(&daemon, 3, "web");
            introduce(&daemon, 4, "web-bulkhead");
            let mut host = Host {
                store: dom0(&daemon),
                xen: Xen::default(),
                sysfs: tree.sysfs(),
                runner: Runner::Noting(Vec::new()),
            };
            let attachment = Attachment {
                guest: domain(3, "web"),
                stub: domain(4, "web-bulkhead"),
                slots: SlotMode::Vpci,
                devices: vec![Device {
                    header: original[..64].to_vec(),
                    ..device(BDF)
                }],
                modes: vec![Mode::Msix(vec![(0, 55), (1, 54)])],
            };
            attachment.write(&mut host.store).unwrap();
            let hop = first_hop(&attachment);
            for node in [
                format!("{}/state", hop.frontend_dir()),
                format!("{}/x", error_directory(4)),
                "/local/domain/0/backend/bulkhead/4/0/state".to_owned(),
            ] {
                host.store.write(&node, "1").unwrap();
            }
            Self {
                daemon,
                tree,
                host,
                attachment,
            }
        }

        fn bdf(&self) -> Bdf {
            self.attachment.devices[0].bdf
        }

        fn release(&mut self) -> Released {
            release(&mut self.host, &self.attachment)
        }

        fn take_back(&mut self) -> Released {
            let bdfs = [self.bdf()];
            take_back(&mut self.host, &self.attachment, &bdfs)
        }

        fn config(&self) -> Vec<u8> {
            self.host.sysfs.config_bytes(self.bdf()).unwrap()
        }

        fn reset_written(&self) -> String {
            std::fs::read_to_string(self.tree.device(BDF).join("reset")).unwrap()
        }

        fn rebind(&self, driver: Option<&str>) {
            std::fs::remove_file(self.tree.device(BDF).join("driver")).unwrap();
            if let Some(driver) = driver {
                self.tree.bind(BDF, driver);
            }
        }

        fn quarantine(&mut self) -> Option<String> {
            let bdf = self.bdf();
            records::quarantine_reason(&mut self.host.store, bdf).unwrap()
        }

        fn exists(&mut self, path: &str) -> bool {
            self.host.store.directory(path).is_ok()
        }
    }

    /// All that Xen is asked when a guest that lives loses the device with its line.
    const TAKEN: [&str; 11] = [
        "unmap 3 55",
        "unmap 3 54",
        "pirq 3 20 false",
        "unmap 3 20",
        "frames 3 febc0+20 false",
        "frames 3 febe0+20 false",
        "ports 3 c000+20 false",
        "frames 3 febd4+4 false",
        "frames 3 feb80+40 false",
        "frames 4 b0028+1 false",
        "deassign 3 0000:00:05.0",
    ];

    #[test]
    fn a_device_that_comes_back_is_awake_and_quiet_and_reset_with_its_header() {
        let mut fixture = Fixture::new();
        let released = fixture.release();
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
    fn a_guest_that_lives_loses_interrupts_ranges_and_dma_and_is_noted() {
        for part in [false, true] {
            let mut fixture = Fixture::new();
            let released = if part {
                fixture.take_back()
            } else {
                fixture.release()
            };
            assert_eq!(released.problems, [""; 0]);
            assert_eq!(fixture.host.xen.calls(), TAKEN);
            let mapped = records::mapped(&mut fixture.host.store).unwrap();
            assert_eq!(mapped, [(fixture.bdf(), domain(3, "web"))]);
        }
    }

    #[test]
    fn of_a_guest_that_is_dead_xen_has_taken_all_and_nothing_is_mapped_any_more() {
        let mut fixture = Fixture::new();
        let store = &mut fixture.host.store;
        records::note_mapped(store, "00:09.0".parse().unwrap(), &domain(3, "web")).unwrap();
        fixture.daemon.release(3);
        assert_eq!(fixture.release().problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), ["frames 4 b0028+1 false"]);
        assert!(!fixture.exists("/local/domain/0/bulkhead/mapped/0000-00-09-0"));
        assert!(!fixture.exists("/local/domain/0/bulkhead/mapped/0000-00-05-0"));
    }

    #[test]
    fn with_the_last_device_go_the_stub_its_nodes_and_the_record() {
        let mut fixture = Fixture::new();
        fixture.release();
        let Runner::Noting(destroyed) = &fixture.host.runner else {
            panic!("the runner is a note");
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
        assert_eq!(fixture.release().problems, [""; 0]);
        assert_eq!(homes.map(|home| fixture.exists(home)), [false; 2]);
    }

    #[test]
    fn the_nodes_of_a_dead_guest_are_left_to_xl() {
        let mut fixture = Fixture::new();
        fixture.daemon.release(3);
        fixture.release();
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
        assert_eq!(fixture.take_back().problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), TAKEN);
        let left = Attachment::read(&mut fixture.host.store, 4).unwrap().unwrap();
        let left: Vec<_> = left.bdfs().map(|bdf| bdf.to_string()).collect();
        assert_eq!(left, ["0000:00:06.0"]);
        assert_eq!(
            fixture.host.store.read(&hop.backend_node("num_devs")).unwrap(),
            "1"
        );
        assert!(matches!(&fixture.host.runner, Runner::Noting(destroyed) if destroyed.is_empty()));
        assert!(fixture.exists("/local/domain/3/device/pci"));
    }

    #[test]
    fn whatever_xen_does_not_take_puts_the_device_in_quarantine_and_the_rest_is_done_all_the_same() {
        for call in TAKEN {
            for part in [false, true] {
                let mut fixture = Fixture::new();
                fixture.host.xen.refuse(call, Errno::PERM);
                let released = if part {
                    fixture.take_back()
                } else {
                    fixture.release()
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
    fn what_died_meanwhile_or_was_taken_before_is_no_problem() {
        for (call, error) in [
            ("unmap", Errno::INVAL),
            ("deassign", Errno::NODEV),
            ("frames", Errno::SRCH),
            ("ports", Errno::SRCH),
            ("pirq", Errno::SRCH),
            ("unmap", Errno::SRCH),
        ] {
            let mut fixture = Fixture::new();
            fixture.host.xen.refuse(call, error);
            assert_eq!(fixture.release().problems, [""; 0], "{call} {error}");
            assert_eq!(fixture.quarantine(), None);
        }
        let mut fixture = Fixture::new();
        fixture.host.xen.refuse("frames", Errno::INVAL);
        assert_eq!(fixture.release().problems.len(), 5);
    }

    #[test]
    fn a_device_that_cannot_be_stopped_or_reset_is_in_quarantine() {
        let mut fixture = Fixture::new();
        std::fs::remove_file(fixture.tree.device(BDF).join("config")).unwrap();
        assert_eq!(fixture.release().problems.len(), 1);
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
        assert_eq!(fixture.release().problems, [""; 0]);
        let reason = fixture.quarantine().unwrap();
        assert!(reason.starts_with("its reset by FLR failed"), "{reason}");
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
        let released = fixture.release();
        assert!(
            released.devices[0].contains("is kept in quarantine: its reset by FLR failed"),
            "{released:?}"
        );
        let reason = fixture.quarantine().unwrap();
        assert!(reason.starts_with("its reset by FLR failed"), "{reason}");
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
            records::note_intx_disabled(&mut fixture.host.store, bdf).unwrap();
            let released = if part {
                fixture.take_back()
            } else {
                fixture.release()
            };
            assert_eq!(released.problems, [""; 0]);
            let config = fixture.host.sysfs.config_bytes(bdf).unwrap();
            assert_eq!(config[4..6], [0x07, 0x00], "COMMAND");
        }
    }

    #[test]
    fn what_a_guest_could_write_by_its_terms_is_put_back_or_forgotten() {
        for lost in [false, true] {
            let mut fixture = Fixture::new();
            let home = fixture.tree.directory.path().join("kept");
            config_backup::tests::HOME.with(|directory| *directory.borrow_mut() = Some(home.clone()));
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
            assert_eq!(fixture.release().problems, [""; 0]);
            assert_eq!(fixture.config()[0x80], if lost { 0x5a } else { 0 });
            assert!(!home.join(format!("{BDF}.config")).exists());
        }
    }

    #[test]
    fn a_line_that_dom0_does_not_give_back_keeps_the_device_in_quarantine() {
        let node = "/local/domain/0/bulkhead/ack/0000-00-05-0/state";
        let mut fixture = Fixture::new();
        fixture.host.store.write(node, "4").unwrap();
        assert_eq!(fixture.release().problems.len(), 1);
        let reason = fixture.quarantine().unwrap();
        assert!(reason.contains("dom0 still answers for its line"), "{reason}");
        // The handler of a device that xen-pciback has lost went with it.
        let mut fixture = Fixture::new();
        fixture.host.store.write(node, "4").unwrap();
        fixture.rebind(Some("e1000e"));
        assert_eq!(fixture.release().problems, [""; 0]);
        assert!(!fixture.exists(node));
    }

    #[test]
    fn a_device_that_another_driver_has_by_now_is_left_alone_and_xen_forgets_the_guest() {
        let mut fixture = Fixture::new();
        fixture.rebind(Some("e1000e"));
        let before = fixture.config();
        let released = fixture.release();
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
            let released = fixture.release();
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
        fixture.release();
        assert_eq!(fixture.host.xen.calls(), TAKEN);
    }

    #[test]
    fn of_a_device_that_is_gone_only_what_the_domains_have_is_taken() {
        let mut fixture = Fixture::new();
        std::fs::remove_dir_all(fixture.tree.device(BDF)).unwrap();
        let released = fixture.take_back();
        assert_eq!(
            released.devices,
            ["0000:00:05.0 is gone: dom0 removed it while the guest had it"]
        );
        assert_eq!(released.problems, [""; 0]);
        assert_eq!(fixture.host.xen.calls(), TAKEN[2..10]);
    }

    #[test]
    fn at_a_surprise_removal_guest_and_stub_lose_the_memory_at_once_and_no_interrupts() {
        let fixture = Fixture::new();
        let xen = Xen::default();
        assert_eq!(revoke_removed(&xen, &fixture.attachment, fixture.bdf()), [""; 0]);
        assert_eq!(xen.calls(), TAKEN[4..10]);
        let xen = Xen::default();
        xen.refuse("ports", Errno::PERM);
        assert_eq!(revoke_removed(&xen, &fixture.attachment, fixture.bdf()).len(), 1);
        let other = "00:06.0".parse().unwrap();
        assert_eq!(revoke_removed(&xen, &fixture.attachment, other), [""; 0]);
    }

    #[test]
    fn a_line_goes_with_the_last_device_that_uses_it() {
        let other_line = Device {
            gsi: Some(21),
            ..device("00:06.0")
        };
        let devices = [device("00:05.0"), other_line, device("00:09.0")];
        let all: &dyn Fn(&Device) -> bool = &|_| true;
        let stays = |index, leaving| line_stays(&devices, index, leaving);
        assert_eq!([0, 1, 2].map(|index| stays(index, all)), [true, false, false]);
        let last: &dyn Fn(&Device) -> bool = &|device| device.bdf == devices[2].bdf;
        assert!(stays(2, last));

        let xen = Xen::default();
        let mut released = Released::default();
        revoke_line(&xen, 3, &devices[2], true, &mut released);
        assert_eq!(xen.calls(), [""; 0]);
        let withheld = Device {
            line_offered: false,
            ..device("00:05.0")
        };
        revoke_line(&xen, 3, &withheld, false, &mut released);
        assert_eq!(xen.calls(), [""; 0]);
    }

    #[test]
    fn a_failed_step_is_told_with_its_causes() {
        let mut released = Released::default();
        let bdf: pci::bdf::Bdf = "00:05.0".parse().unwrap();
        let missing = crate::host::sysfs::Sysfs::at("/nonexistent").open_config(bdf);
        released.note(format_args!("{bdf}: cannot stop it"), missing);
        let problem = &released.problems[0];
        assert!(
            problem.starts_with("0000:00:05.0: cannot stop it: cannot open the configuration space"),
            "{problem}"
        );
        assert!(
            problem.ends_with("No such file or directory (os error 2)"),
            "{problem}"
        );
    }
}
