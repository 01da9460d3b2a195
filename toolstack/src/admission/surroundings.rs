//! All that the checks look at, as it is at one moment.

use super::group::Groups;
use super::host::{check_host, spare_pirqs};
use super::mounts::{Mounts, MountsError};
use crate::host::Host;
use crate::host::mcfg::{self, Mcfg, McfgError};
use crate::host::sysfs::Sysfs;
use crate::host::xl::HostInfo;
use crate::records::claims::{Claims, ClaimsError};
use pci::bdf::Bdf;
use std::{fs, io};
use thiserror::Error;

/// What there is around the devices that are checked.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The devices themselves.
    pub sysfs: Sysfs,
    /// Where their configuration space is mapped.
    pub mcfg: Mcfg,
    /// Who has them.
    pub claims: Claims,
    /// What dom0 does with them.
    pub mounts: Mounts,
    /// Whose DMA cannot be told from theirs.
    pub groups: Groups,
    /// How many pirqs Xen has for a guest besides those of the lines.
    pub spare_pirqs: u32,
}

/// Something around the devices could not be looked at.
#[derive(Debug, Error)]
pub enum SurroundingsError {
    /// No table of configuration space.
    #[error(
        "cannot read {}: this host maps no configuration space in memory, and the stub reads no other",
        mcfg::PATH
    )]
    NoMcfg(#[source] io::Error),
    /// It makes no sense.
    #[error("{} cannot be used", mcfg::PATH)]
    Mcfg(#[from] McfgError),
    /// The claims.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// What dom0 uses.
    #[error(transparent)]
    Mounts(#[from] MountsError),
    /// Xen does not say.
    #[error("Xen does not tell the IOMMU groups of the devices")]
    Groups(#[source] io::Error),
}

impl Surroundings {
    /// Looks around for checks of `bdfs` on a host of which Xen says `info`.
    pub fn read(host: &mut Host, bdfs: &[Bdf], info: &HostInfo) -> Result<Self, SurroundingsError> {
        let table = fs::read(mcfg::PATH).map_err(SurroundingsError::NoMcfg)?;
        let claims = Claims::read(&mut host.store)?;
        let there: Vec<Bdf> = bdfs
            .iter()
            .copied()
            .filter(|&bdf| host.sysfs.exists(bdf))
            .collect();
        // Where Xen drives no IOMMU there are none, and that is refused elsewhere.
        let groups = match check_host(info) {
            Ok(()) => Groups::read(&host.xen, &there, &claims).map_err(SurroundingsError::Groups)?,
            Err(_) => Groups::default(),
        };
        Ok(Self {
            sysfs: host.sysfs.clone(),
            mcfg: Mcfg::parse(&table)?,
            mounts: Mounts::read(&mut host.store)?,
            groups,
            claims,
            spare_pirqs: spare_pirqs(info),
        })
    }
}
