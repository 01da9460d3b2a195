//! Pages that the memory of two devices lies in: Xen gives memory away by the page.

use super::Refusal;
use crate::header::leads_to;
use crate::record::Device;
use crate::resources::shared_frame;
use crate::sysfs::{Sysfs, SysfsError};
use xenbus::bdf::Bdf;
use xenbus::device::Bars;

/// The first function among `others` whose memory lies in a page with that behind `bars`, and the page's frame.
pub fn page_sharer(
    bars: &Bars,
    others: impl Iterator<Item = Bdf>,
    sysfs: &Sysfs,
) -> Result<Option<(Bdf, u64)>, SysfsError> {
    for other in others {
        if let Some(frame) = shared_frame(bars, &sysfs.bars(other)?) {
            return Ok(Some((other, frame)));
        }
    }
    Ok(None)
}

/// Checks that devices can leave a guest that keeps the devices `kept`.
pub fn check_leaving(leaving: &[Device], kept: &[Device]) -> Result<(), Refusal> {
    for device in leaving {
        for other in kept {
            if leads_to(device.bdf, &device.header, other.bdf) {
                let (bdf, other) = (device.bdf, other.bdf);
                return Err(Refusal::BridgeLeaves { bdf, other });
            }
            if let Some(frame) = shared_frame(&device.bars, &other.bars) {
                let (bdf, other) = (device.bdf, other.bdf);
                return Err(Refusal::PageStays { bdf, other, frame });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::fixture::{A, B, around, bdf, host};
    use crate::checks::{Claims, describe};
    use crate::record;
    use crate::terms::Terms;

    #[test]
    fn a_bridge_does_not_leave_while_the_guest_keeps_a_device_behind_it() {
        let bridge = Device {
            header: crate::header::tests::bridge(),
            bars: Bars::default(),
            ..record::tests::device("0000:00:07.0")
        };
        let device = record::tests::device("0000:02:01.0");
        let refusal =
            check_leaving(std::slice::from_ref(&bridge), std::slice::from_ref(&device)).unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("`bulkhead detach 0000:00:07.0 0000:02:01.0`"),
            "{refusal}"
        );
        assert!(check_leaving(&[device], &[bridge]).is_ok());
    }

    #[test]
    fn a_device_does_not_leave_while_the_guest_keeps_one_in_the_same_page() {
        let tree = host();
        let describe = |name| {
            describe(
                bdf(name),
                &Terms::default(),
                &[],
                &around(&tree, &Claims::default()),
            )
            .unwrap()
        };
        assert!(check_leaving(&[describe(A)], &[describe(B)]).is_ok());
        tree.add(B, &[("resource", b"0xfe000800 0xfe0008ff 0x200\n")]);
        let refusal = check_leaving(&[describe(A)], &[describe(B)])
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains("`bulkhead detach 0000:00:05.0 0000:00:06.0`"),
            "{refusal}"
        );
        assert!(check_leaving(&[describe(A), describe(B)], &[]).is_ok());
    }
}
