//! Taking from guest and stub what Xen has allowed them of a device.

use super::outcome::Released;
use crate::config_space::resources::resources;
use crate::handover::grant::permit;
use crate::records::{Attachment, Device};
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};

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

/// True if the guest has another device with the interrupt line of device number `index`: one that is not leaving,
/// or one whose turn has not come.
pub(super) fn line_stays(devices: &[Device], index: usize, leaving: &dyn Fn(&Device) -> bool) -> bool {
    let mut others = devices
        .iter()
        .enumerate()
        .filter(|&(number, other)| number > index || number < index && !leaving(other));
    others.any(|(_, other)| other.line_offered && other.gsi == devices[index].gsi)
}

/// Takes the interrupt line from a guest that lives on, unless another device of its own uses that too.
pub(super) fn revoke_line(
    xen: &impl Hypervisor,
    guest: DomId,
    device: &Device,
    line_stays: bool,
    released: &mut Released,
) {
    let bdf = device.bdf;
    if let Some(gsi) = device.gsi.filter(|_| device.line_offered && !line_stays) {
        released.check(
            // The permission goes before the mapping: the guest must not be able to map the GSI again.
            format_args!("{bdf}: cannot revoke GSI {gsi}"),
            unless_dead(xen.allow_pirq(guest, gsi, false)),
        );
        released.check(
            format_args!("{bdf}: cannot unmap GSI {gsi}"),
            unless_gone(xen.unmap_pirq(guest, gsi)),
        );
    }
}

/// Takes the address ranges from the guest. The page tables that it has Xen leaves alone.
pub(super) fn revoke_ranges(xen: &impl Hypervisor, guest: DomId, device: &Device, released: &mut Released) {
    for resource in resources(&device.bars) {
        let revoked = permit(xen, guest, &resource, false);
        released.check(
            format_args!("{}: cannot revoke {resource:x?}", device.bdf),
            unless_dead(revoked),
        );
    }
}

/// Takes the configuration page from the stub, which may be dead.
pub(super) fn revoke_page(xen: &impl Hypervisor, stub: DomId, device: &Device, released: &mut Released) {
    released.check(
        format_args!(
            "{}: cannot revoke its configuration page from the stub",
            device.bdf
        ),
        unless_dead(xen.allow_frames(stub, device.ecam, 1, false)),
    );
}

pub(super) fn deassign(xen: &impl Hypervisor, guest: DomId, bdf: Bdf, released: &mut Released) {
    released.check(
        format_args!("{bdf}: cannot deassign it from domain {guest}"),
        unless_gone(xen.deassign(guest, bdf)),
    );
}

/// Passes over what an earlier attempt has taken already: Xen then knows no such pirq (`EINVAL`), or no such device
/// of the guest (`ENODEV`).
pub(super) fn unless_gone(taken: io::Result<()>) -> io::Result<()> {
    unless(&[Errno::INVAL, Errno::NODEV, Errno::SRCH], taken)
}

/// Passes over a domain that has died meanwhile: Xen has taken all from it.
fn unless_dead(taken: io::Result<()>) -> io::Result<()> {
    unless(&[Errno::SRCH], taken)
}

fn unless(harmless: &[Errno], taken: io::Result<()>) -> io::Result<()> {
    taken.or_else(|error| match Errno::from_io_error(&error) {
        Some(errno) if harmless.contains(&errno) => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::*;
    use crate::handover::reclaim::fixture::TAKEN;
    use crate::records::tests::device;
    use xen::model::Xen;

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
            assert_eq!(fixture.reclaim_all().problems, [""; 0], "{call} {error}");
            assert_eq!(fixture.quarantine(), None);
        }
        let mut fixture = Fixture::new();
        fixture.host.xen.refuse("frames", Errno::INVAL);
        assert_eq!(fixture.reclaim_all().problems.len(), 5);
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
}
