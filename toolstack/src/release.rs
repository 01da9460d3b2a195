//! Taking devices back: whatever an attachment's record says was given, wholly or in part.
//!
//! It can be run after any failure and more than once; what is not there any more is passed over.
//! Every step is tried, because a device that is left half quiesced is the worst outcome.

use crate::acking;
use crate::attach::permit;
use crate::domains::{self, is_alive};
use crate::host::Host;
use crate::idle_intx;
use crate::inject::{self, Point};
use crate::list;
use crate::mode::Mode;
use crate::nodes::first_hop;
use crate::originals;
use crate::record::{self, Attachment, Device};
use crate::reset::{self, quiesce};
use crate::resources::resources;
use crate::serve;
use crate::xenctrl::{DomId, Hypervisor};
use rustix::io::Errno;
use std::io;
use xenbus::bdf::Bdf;
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

/// Takes everything back and destroys the stub. The guest may be dead, or must have let go.
pub fn release(host: &mut Host, attachment: &Attachment) -> Released {
    let mut released = Released::default();
    let guest_alive = alive(host, &attachment.guest, &mut released);
    let guest = attachment.guest.domid;
    take_devices(host, attachment, &|_| true, guest_alive, &mut released);

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
    nodes.push(serve::error_directory(attachment.stub.domid));
    if guest_alive {
        // One by one: Linux does not see a device go whose directory vanishes with the one above, and would take the
        // next one for the same.
        nodes.push(first_hop(attachment).frontend_dir());
        nodes.push(DeviceType::Pci.frontends(guest));
    }
    for path in nodes {
        let removed = remove_if_there(host, &path);
        released.note(format_args!("cannot remove {path}"), removed);
    }
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
pub fn take_back(host: &mut Host, attachment: &Attachment, bdfs: &[Bdf]) -> Released {
    let mut released = Released::default();
    let guest_alive = alive(host, &attachment.guest, &mut released);
    let leaving = |device: &Device| bdfs.contains(&device.bdf);
    take_devices(host, attachment, &leaving, guest_alive, &mut released);
    let stub = attachment.stub.domid;
    for device in attachment.devices.iter().filter(|device| leaving(device)) {
        released.note(
            format_args!(
                "{}: cannot revoke its configuration page from the stub",
                device.bdf
            ),
            host.xen.allow_frames(stub, device.ecam, 1, false),
        );
    }
    let kept = attachment.without(bdfs);
    let struck = list::strike(&mut host.store, &kept);
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
fn restore_idle_intx(host: &mut Host, released: &mut Released) {
    released.note(
        format_args!("cannot enable INTx again where it was disabled for the sake of a line"),
        idle_intx::restore(&mut host.store, &host.sysfs),
    );
}

/// Stops and resets those devices of an attachment that are `leaving`, and takes them from the guest if it lives.
fn take_devices(
    host: &mut Host,
    attachment: &Attachment,
    leaving: &dyn Fn(&Device) -> bool,
    guest_alive: bool,
    released: &mut Released,
) {
    let guest = attachment.guest.domid;
    for (index, (device, mode)) in attachment.devices_and_modes().enumerate() {
        if !leaving(device) {
            continue;
        }
        let bdf = device.bdf;
        if !host.sysfs.exists(bdf) {
            // Dom0 has removed it, and Xen took its interrupts and its DMA when it was told.
            if guest_alive {
                revoke_ranges(&host.xen, guest, device, released);
            }
            released
                .devices
                .push(format!("{bdf} is gone: dom0 removed it while the guest had it"));
            continue;
        }
        let quiesced = host
            .sysfs
            .open_config(bdf)
            .map_err(io::Error::other)
            .and_then(|config| quiesce(&config));
        released.note(format_args!("{bdf}: cannot stop it"), quiesced);
        if guest_alive {
            let line_stays = line_stays(&attachment.devices, index, leaving);
            take(&host.xen, guest, device, mode, line_stays, released);
        }
        let stopped = acking::stop(host, bdf);
        released.note(
            format_args!("{bdf}: dom0 still answers for its line, and will not give it back"),
            stopped,
        );
        reset(host, device, released);
        if guest_alive {
            let deassigned = unless_gone(host.xen.deassign(guest, bdf));
            released.note(
                format_args!("{bdf}: cannot deassign it from domain {guest}"),
                deassigned,
            );
        }
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

fn alive(host: &mut Host, domain: &record::Domain, released: &mut Released) -> bool {
    is_alive(&mut host.store, domain).unwrap_or_else(|error| {
        released.problems.push(format!(
            "cannot see whether domain {} lives: {error}",
            domain.name
        ));
        false
    })
}

fn remove_if_there(host: &mut Host, path: &str) -> Result<(), crate::store::StoreError> {
    match host.store.remove(path) {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

/// Takes interrupts and address ranges from a guest that lives on. The line stays with it if another device of
/// its own uses that too.
fn take(
    xen: &impl Hypervisor,
    guest: DomId,
    device: &Device,
    mode: &Mode,
    line_stays: bool,
    released: &mut Released,
) {
    let bdf = device.bdf;
    for pirq in mode.pirqs() {
        released.note(
            format_args!("{bdf}: cannot unmap pirq {pirq}"),
            unless_gone(xen.unmap_pirq(guest, pirq.into())),
        );
    }
    if let Some(gsi) = device.gsi.filter(|_| device.line_offered && !line_stays) {
        released.note(
            format_args!("{bdf}: cannot revoke GSI {gsi}"),
            xen.allow_pirq(guest, gsi, false),
        );
        released.note(
            format_args!("{bdf}: cannot unmap GSI {gsi}"),
            unless_gone(xen.unmap_pirq(guest, gsi)),
        );
    }
    revoke_ranges(xen, guest, device, released);
}

/// What an earlier attempt has taken already, one that was cut short, Xen does not know any more: a pirq (`EINVAL`),
/// a device of that guest's (`ENODEV`).
fn unless_gone(taken: io::Result<()>) -> io::Result<()> {
    match taken {
        Err(error)
            if [Errno::INVAL, Errno::NODEV]
                .map(Errno::raw_os_error)
                .map(Some)
                .contains(&error.raw_os_error()) =>
        {
            Ok(())
        }
        taken => taken,
    }
}

fn revoke_ranges(xen: &impl Hypervisor, guest: DomId, device: &Device, released: &mut Released) {
    for resource in resources(&device.bars) {
        let revoked = permit(xen, guest, &resource, false);
        released.note(
            format_args!("{}: cannot revoke {resource:x?}", device.bdf),
            revoked,
        );
    }
}

/// Resets the device and puts its header back. One that does not come back from that goes into quarantine.
fn reset(host: &mut Host, device: &Device, released: &mut Released) {
    let bdf = device.bdf;
    let line = match reset::reset(&host.sysfs, bdf, device.ids, &device.header) {
        Ok(method) => {
            let put_back = originals::put_back(device, &host.sysfs);
            released.note(
                format_args!("{bdf}: cannot put back the registers that the guest could write by its terms"),
                put_back,
            );
            match method {
                Some(method) => format!("{bdf} was stopped and reset by {method}, and answers"),
                None => format!(
                    "{bdf} was stopped, and answers; no reset method: what the guest left in its registers stays there"
                ),
            }
        }
        Err(error) => {
            let reason = error.to_string();
            let noted = record::quarantine(&mut host.store, bdf, &reason);
            released.note(format_args!("{bdf}: cannot note its quarantine"), noted);
            format!("{bdf} is kept in quarantine: {reason}; `bulkhead release {bdf}` tries its reset again")
        }
    };
    released.devices.push(line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::device;
    use crate::xenctrl::tests::Xen;

    #[test]
    fn a_living_guest_loses_its_interrupts_and_ranges() {
        let xen = Xen::default();
        let mut released = Released::default();
        let mode = Mode::Msix(vec![(0, 55), (1, 54)]);
        take(&xen, 3, &device("00:05.0"), &mode, false, &mut released);
        assert_eq!(
            xen.calls(),
            [
                "unmap 3 55",
                "unmap 3 54",
                "pirq 3 20 false",
                "unmap 3 20",
                "frames 3 febc0+20 false",
                "frames 3 febe0+20 false",
                "ports 3 c000+20 false",
                "frames 3 febd4+4 false",
                "frames 3 feb80+40 false",
            ]
        );
        assert_eq!(released, Released::default());
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
        take(&xen, 3, &devices[2], &Mode::Line, true, &mut released);
        assert!(
            xen.calls()
                .iter()
                .all(|call| !call.starts_with("pirq") && !call.starts_with("unmap"))
        );
    }

    #[test]
    fn what_an_attempt_that_was_cut_short_has_taken_is_no_problem_for_the_next() {
        let refusal = |errno: Errno| unless_gone(Err(errno.into())).is_err();
        assert!(!refusal(Errno::INVAL) && !refusal(Errno::NODEV));
        assert!(refusal(Errno::PERM) && refusal(Errno::BUSY));
    }

    #[test]
    fn a_failed_step_is_told_with_its_causes() {
        let mut released = Released::default();
        let bdf: xenbus::bdf::Bdf = "00:05.0".parse().unwrap();
        let missing = crate::sysfs::Sysfs::at("/nonexistent").open_config(bdf);
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
