//! Physical and virtual functions (SR-IOV): a virtual one can be given away while the physical one stays with its
//! driver in dom0, which makes, configures and ends it.

use super::refusal::Refusal;
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::records::claims::Claims;
use pci::bdf::Bdf;

/// Checks that a physical function goes without virtual ones, and a virtual one only while its physical one stays.
pub fn check_sriov(bdf: Bdf, claims: &Claims, sysfs: &Sysfs) -> Result<(), Refusal> {
    let claim_of = |wanted| claims.taken.iter().find(|claim| claim.bdf == wanted);
    let virtuals = sysfs.virtual_functions(bdf);
    // Its driver in dom0 makes, configures and ends the virtual functions (decision 38).
    if !virtuals.is_empty() {
        let users = virtuals.iter().filter_map(|&one| claim_of(one));
        let users: Vec<_> = users
            .map(|claim| format!("{} is in use {}", claim.bdf, claim.by))
            .collect();
        return Err(Refusal::HasVirtualFunctions { bdf, virtuals, users });
    }
    let Some(physical) = sysfs.physical_function(bdf) else {
        return Ok(());
    };
    // A virtual function works only while its physical one is with its driver in dom0.
    let by = match claim_of(physical) {
        Some(claim) => format!("is in use {}", claim.by),
        None if sysfs.driver(physical).as_deref() == Some(PCIBACK) => {
            format!("is held for passthrough (`xl pci-assignable-remove {physical}` frees it)")
        }
        None => return Ok(()),
    };
    Err(Refusal::PhysicalFunctionAway { bdf, physical, by })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sysfs::tests::Tree;
    use crate::records::claims::xl_claim;

    const PHYSICAL: &str = "0000:01:00.0";
    const VIRTUALS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    fn card() -> Tree {
        let tree = Tree::new();
        for name in [PHYSICAL, VIRTUALS[0], VIRTUALS[1]] {
            tree.add(name, &[]);
        }
        tree.sriov(PHYSICAL, &VIRTUALS);
        tree
    }

    fn refusal(tree: &Tree, name: &str, claimed: &[&str]) -> Option<String> {
        let taken = claimed.iter().map(|name| xl_claim(bdf(name), "7")).collect();
        let claims = Claims {
            taken,
            ..Claims::default()
        };
        let refusal = check_sriov(bdf(name), &claims, &tree.sysfs()).err();
        refusal.map(|refusal| refusal.to_string())
    }

    #[test]
    fn a_virtual_function_goes_while_its_physical_one_stays_with_its_driver() {
        let tree = card();
        tree.bind(PHYSICAL, "igb");
        assert_eq!(refusal(&tree, VIRTUALS[0], &[VIRTUALS[1]]), None);
        tree.add("0000:02:00.0", &[]);
        assert_eq!(
            refusal(&tree, "0000:02:00.0", &[]),
            None,
            "a function without any"
        );
    }

    #[test]
    fn a_virtual_function_does_not_go_when_its_physical_one_is_away() {
        let tree = card();
        assert_eq!(
            refusal(&tree, VIRTUALS[0], &[PHYSICAL]).unwrap(),
            "0000:01:10.0 is a virtual function of 0000:01:00.0, which is in use by domain 7 (through dom0's \
             xen-pciback): it works only while that one is with its driver in dom0"
        );
        tree.bind(PHYSICAL, PCIBACK);
        let told = refusal(&tree, VIRTUALS[0], &[]).unwrap();
        assert!(told.contains("`xl pci-assignable-remove 0000:01:00.0`"), "{told}");
    }

    #[test]
    fn a_physical_function_does_not_go_while_it_has_virtual_ones() {
        let tree = card();
        assert_eq!(
            refusal(&tree, PHYSICAL, &[]).unwrap(),
            "0000:01:00.0 has the virtual functions 0000:01:10.0, 0000:01:10.2, which need it and its driver in \
             dom0: give these away, or remove them first (`echo 0 >/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs`)"
        );
        let told = refusal(&tree, PHYSICAL, &[VIRTUALS[1]]).unwrap();
        assert!(
            told.ends_with("sriov_numvfs`); 0000:01:10.2 is in use by domain 7 (through dom0's xen-pciback)"),
            "{told}"
        );
    }
}
