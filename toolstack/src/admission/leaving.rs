//! Devices that can only leave a guest together: because of a page, a bridge, or the IOMMU.

use super::group::Groups;
use super::refusal::Refusal;
use crate::config_space::header::{is_bridge, leads_to};
use crate::config_space::resources::shared_frame;
use crate::records::Device;

/// Checks that devices can leave a guest that keeps the devices `kept`. `groups` are those of the leaving ones.
pub fn check_leaving(leaving: &[Device], kept: &[Device], groups: &Groups) -> Result<(), Refusal> {
    for device in leaving {
        for other in kept {
            let bdf = device.bdf;
            // Linux in the guest forgets what is behind a bridge that leaves (decision 24).
            if leads_to(bdf, &device.header, other.bdf) {
                let other = other.bdf;
                return Err(Refusal::BridgeLeaves { bdf, other });
            }
            // A bridge does no DMA of its own: its address in the IOMMU stands for the devices behind it.
            let bridge = is_bridge(&device.header) || is_bridge(&other.header);
            if !bridge && groups.others(bdf).contains(&other.bdf) {
                let other = other.bdf;
                return Err(Refusal::GroupStays { bdf, other });
            }
            // Xen takes memory away by the page (decision 20).
            if let Some(frame) = shared_frame(&device.bars, &other.bars) {
                let other = other.bdf;
                return Err(Refusal::PageStays { bdf, other, frame });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::describe::describe;
    use crate::admission::fixture::{A, B, around, bdf, host};
    use crate::admission::line::Offer;
    use crate::records;
    use crate::records::claims::Claims;
    use crate::terms::Terms;
    use xen::model::Xen;
    use xenbus::device::Bars;

    #[test]
    fn devices_that_the_iommu_cannot_tell_apart_leave_together() {
        let (one, other) = ("0000:02:01.0", "0000:02:02.0");
        let xen = Xen::default();
        xen.put_in_group(7, bdf(other));
        xen.put_in_group(7, bdf("0000:00:07.0"));
        let groups = Groups::among(&xen, &[bdf(one)], &[7]).unwrap();
        let device = |name| Device {
            bars: Bars::default(),
            ..records::tests::device(name)
        };
        let refusal = check_leaving(&[device(one)], &[device(other)], &groups).unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("`bulkhead detach 0000:02:01.0 0000:02:02.0`"),
            "{refusal}"
        );
        let bridge = Device {
            header: crate::config_space::header::tests::bridge(),
            ..device("0000:00:07.0")
        };
        assert!(check_leaving(&[device(one)], &[bridge], &groups).is_ok());
    }

    #[test]
    fn a_bridge_does_not_leave_while_the_guest_keeps_a_device_behind_it() {
        let bridge = Device {
            header: crate::config_space::header::tests::bridge(),
            bars: Bars::default(),
            ..records::tests::device("0000:00:07.0")
        };
        let device = records::tests::device("0000:02:01.0");
        let refusal = check_leaving(
            std::slice::from_ref(&bridge),
            std::slice::from_ref(&device),
            &Groups::default(),
        )
        .unwrap_err();
        assert!(
            refusal
                .to_string()
                .contains("`bulkhead detach 0000:00:07.0 0000:02:01.0`"),
            "{refusal}"
        );
        assert!(check_leaving(&[device], &[bridge], &Groups::default()).is_ok());
    }

    #[test]
    fn a_device_does_not_leave_while_the_guest_keeps_one_in_the_same_page() {
        let tree = host();
        let describe = |name| {
            describe(
                bdf(name),
                &Terms::default(),
                Offer::Alone,
                &around(&tree, &Claims::default()),
            )
            .unwrap()
        };
        assert!(check_leaving(&[describe(A)], &[describe(B)], &Groups::default()).is_ok());
        tree.add(B, &[("resource", b"0xfe000800 0xfe0008ff 0x200\n")]);
        let refusal = check_leaving(&[describe(A)], &[describe(B)], &Groups::default())
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains("`bulkhead detach 0000:00:05.0 0000:00:06.0`"),
            "{refusal}"
        );
        assert!(check_leaving(&[describe(A), describe(B)], &[], &Groups::default()).is_ok());
    }
}
