//! Whether a device's DMA can reach other devices without passing the IOMMU: Access Control Services (PCI Express Base
//! 3.0, section 6.12).
//!
//! A switch, or a device with several functions, may pass memory accesses from one function to another by itself. ACS
//! is what forbids that. Xen does not look at it when it tells IOMMU groups.

use crate::config_space::bytes::u16_at;
use crate::config_space::capabilities::{Capabilities, port};
use crate::host::sysfs::Sysfs;
use pci::bdf::Bdf;

/// Offsets in the capability (section 7.16).
const ACS_CAPABILITY: usize = 4;
const ACS_CONTROL: usize = 6;
/// Source validation, redirection of requests and of completions, forwarding upstream. A bit that the capability lacks
/// stands for what cannot happen in this function.
const REDIRECTION: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;

/// The functions that may pass the DMA of a device on to others by themselves: ports above it, and the device itself
/// where it has other functions beside it. Empty if the IOMMU sees all of it.
pub fn without_acs(bdf: Bdf, sysfs: &Sysfs) -> Vec<Bdf> {
    let mut found = Vec::new();
    if may_pass_on(bdf, sysfs) {
        found.push(bdf);
    }
    // Any port on the way to the root may turn the access around.
    let above = sysfs.bridges_above(bdf).unwrap_or_default();
    found.extend(above.into_iter().filter(|&bridge| may_pass_on(bridge, sysfs)));
    found
}

/// True for a port that leads to several buses, or a function among several, without ACS. What is behind a bridge to
/// conventional PCI is one IOMMU group anyway.
fn may_pass_on(bdf: Bdf, sysfs: &Sysfs) -> bool {
    let config = sysfs.config_bytes(bdf).unwrap_or_default();
    let capabilities = Capabilities::find(&config);
    let has_peers = match capabilities.express_kind(&config) {
        Some(port::ROOT | port::DOWNSTREAM) => true,
        // An upstream port has one way in. Its only peers are functions in its slot.
        Some(port::UPSTREAM) => !sysfs.slot_of(bdf).is_empty(),
        _ if crate::config_space::header::is_bridge(&config) => false,
        _ => !sysfs.slot_of(bdf).is_empty(),
    };
    has_peers && !redirects(&config, capabilities.acs)
}

/// True if ACS is on as far as there is something to turn on.
fn redirects(config: &[u8], acs: Option<u16>) -> bool {
    let Some(acs) = acs.map(usize::from) else {
        return false;
    };
    let word = |at: usize| u16_at(config, at);
    let needed = word(acs + ACS_CAPABILITY).map(|capability| capability & REDIRECTION);
    let on = word(acs + ACS_CONTROL);
    needed.zip(on).is_some_and(|(needed, on)| on & needed == needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::capabilities::tests::space;
    use crate::host::sysfs::tests::Tree;

    const ROOT_PORT: &str = "0000:00:1c.0";
    const UPSTREAM: &str = "0000:01:00.0";
    const DOWNSTREAM: &str = "0000:02:00.0";
    const DEVICE: &str = "0000:03:00.0";

    /// A PCI Express function of this kind, and its ACS: capability and control.
    fn express(kind: u8, acs: Option<(u16, u16)>) -> Vec<u8> {
        let mut config = space(&[(0x50, 0x10)]);
        config[0x52] = kind << 4 | 2;
        config[0x0e] = u8::from((4..=8).contains(&kind));
        config.resize(4096, 0);
        if let Some((capability, control)) = acs {
            config[0x100..0x104].copy_from_slice(&0x0001_000d_u32.to_le_bytes());
            config[0x104..0x106].copy_from_slice(&capability.to_le_bytes());
            config[0x106..0x108].copy_from_slice(&control.to_le_bytes());
        }
        config
    }

    fn found(tree: &Tree, name: &str) -> Vec<String> {
        let found = without_acs(name.parse().unwrap(), &tree.sysfs());
        found.iter().map(Bdf::to_string).collect()
    }

    fn behind_a_switch(root: Option<(u16, u16)>, downstream: Option<(u16, u16)>) -> Tree {
        let tree = Tree::new();
        tree.add(ROOT_PORT, &[("config", &express(4, root))]);
        tree.add_below(ROOT_PORT, UPSTREAM, &[("config", &express(5, None))]);
        tree.add_below(UPSTREAM, DOWNSTREAM, &[("config", &express(6, downstream))]);
        tree.add_below(DOWNSTREAM, DEVICE, &[("config", &express(0, None))]);
        tree
    }

    #[test]
    fn a_port_above_without_acs_is_named() {
        let on = Some((0x5f, 0x1d));
        for (root, downstream, expected) in [
            (on, on, vec![]),
            (on, None, vec![DOWNSTREAM]),
            (None, on, vec![ROOT_PORT]),
            (None, None, vec![DOWNSTREAM, ROOT_PORT]),
            // Off, or on in part.
            (on, Some((0x5f, 0)), vec![DOWNSTREAM]),
            // Source validation, redirection of requests and of completions, forwarding upstream: each is needed.
            (on, Some((0x5f, 0x1c)), vec![DOWNSTREAM]),
            (on, Some((0x5f, 0x19)), vec![DOWNSTREAM]),
            (on, Some((0x5f, 0x15)), vec![DOWNSTREAM]),
            (on, Some((0x5f, 0x0d)), vec![DOWNSTREAM]),
            // What cannot be controlled cannot happen.
            (on, Some((0x01, 0x01)), vec![]),
        ] {
            let tree = behind_a_switch(root, downstream);
            assert_eq!(found(&tree, DEVICE), expected, "{root:?} {downstream:?}");
        }
    }

    #[test]
    fn a_function_among_several_needs_acs_of_its_own_and_one_alone_does_not() {
        let tree = behind_a_switch(Some((0x5f, 0x1d)), Some((0x5f, 0x1d)));
        tree.add_below(DOWNSTREAM, "0000:03:00.1", &[("config", &express(0, None))]);
        assert_eq!(found(&tree, DEVICE), [DEVICE]);
        tree.add(DEVICE, &[("config", &express(0, Some((0x5c, 0x5c))))]);
        assert_eq!(found(&tree, DEVICE), [""; 0]);
        assert_eq!(found(&tree, "0000:03:00.1"), ["0000:03:00.1"]);
        // Of conventional PCI, and an upstream port with a second function beside it.
        tree.add("0000:00:07.0", &[("config", &space(&[]))]);
        assert_eq!(found(&tree, "0000:00:07.0"), [""; 0]);
        tree.add("0000:00:07.1", &[("config", &space(&[]))]);
        assert_eq!(found(&tree, "0000:00:07.0"), ["0000:00:07.0"]);
        tree.add_below(ROOT_PORT, "0000:01:00.1", &[("config", &express(0, None))]);
        assert_eq!(found(&tree, DEVICE), [UPSTREAM]);
    }

    #[test]
    fn a_bridge_to_conventional_pci_is_a_matter_of_the_iommu_group() {
        let tree = Tree::new();
        tree.add(ROOT_PORT, &[("config", &express(7, None))]);
        tree.add_below(ROOT_PORT, DEVICE, &[("config", &space(&[]))]);
        assert_eq!(found(&tree, DEVICE), [""; 0]);
    }
}
