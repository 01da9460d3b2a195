//! IOMMU groups: functions whose DMA the IOMMU cannot tell apart.
//!
//! Xen is asked for them: it drives the IOMMU, so dom0's sysfs shows no groups.

use crate::records::claims::Claims;
use pci::bdf::Bdf;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use xen::xenctrl::{DomId, Hypervisor};

/// The group of each function asked about: the others in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(BTreeMap<Bdf, Vec<Bdf>>);

impl Groups {
    /// Asks Xen about `bdfs`. It tells the members of a group by their owner, so it is asked about dom0 and about
    /// every domain that has a device by the `claims`.
    pub fn read(xen: &impl Hypervisor, bdfs: &[Bdf], claims: &Claims) -> io::Result<Self> {
        let mut owners = vec![0];
        owners.extend(claims.taken.iter().filter_map(|claim| claim.domain));
        owners.sort_unstable();
        owners.dedup();
        Self::among(xen, bdfs, &owners)
    }

    /// Asks Xen about `bdfs`, and about the members of their groups that these domains have.
    pub fn among(xen: &impl Hypervisor, bdfs: &[Bdf], owners: &[DomId]) -> io::Result<Self> {
        let mut groups = BTreeMap::new();
        for &bdf in bdfs {
            let mut others = Vec::new();
            for &owner in owners {
                // Xen lists only those members of the group that this domain owns.
                match xen.group(owner, bdf) {
                    Ok(group) => others.extend(group),
                    // A domain that has died meanwhile has no devices any more.
                    Err(error) if owner != 0 && error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                    Err(error) => return Err(error),
                }
            }
            others.sort_unstable();
            others.dedup();
            groups.insert(bdf, others);
        }
        Ok(Self(groups))
    }

    /// The others in a function's group.
    pub fn others(&self, bdf: Bdf) -> &[Bdf] {
        self.0.get(&bdf).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::claims::xl_claim;
    use xen::model::Xen;

    #[test]
    fn a_group_has_members_with_every_owner() {
        let bdf = |text: &str| text.parse::<Bdf>().unwrap();
        let xen = Xen::default();
        xen.put_in_group(0, bdf("02:01.0"));
        xen.put_in_group(7, bdf("02:02.0"));
        let claims = Claims {
            taken: vec![xl_claim(bdf("02:02.0"), "7")],
            ..Claims::default()
        };
        let groups = Groups::read(&xen, &[bdf("02:03.0")], &claims).unwrap();
        assert_eq!(groups.others(bdf("02:03.0")), [bdf("02:01.0"), bdf("02:02.0")]);
        assert_eq!(groups.others(bdf("00:05.0")), []);
    }
}
