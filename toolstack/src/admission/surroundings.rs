//! What the checks read: the state of host and devices at one moment.

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

/// The state of the host that the checks read.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The devices themselves.
    pub sysfs: Sysfs,
    /// The ECAM areas.
    pub mcfg: Mcfg,
    /// Which domain has which device.
    pub claims: Claims,
    /// What dom0 mounts, swaps to and lends to guests.
    pub mounts: Mounts,
    /// The IOMMU groups.
    pub groups: Groups,
    /// Number of pirqs that Xen allows a guest besides those of INTx lines.
    pub spare_pirqs: u32,
}

/// A part of the host's state could not be read.
#[derive(Debug, Error)]
pub enum SurroundingsError {
    /// There is no ACPI table MCFG.
    #[error(
        "cannot read {}: this host maps no configuration space in memory, and the stub reads no other",
        mcfg::PATH
    )]
    NoMcfg(#[source] io::Error),
    /// The table MCFG is malformed.
    #[error("{} cannot be used", mcfg::PATH)]
    Mcfg(#[from] McfgError),
    /// The claims on devices could not be read.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The uses that dom0 makes of devices could not be read.
    #[error(transparent)]
    Mounts(#[from] MountsError),
    /// Xen did not list an IOMMU group.
    #[error("Xen does not tell the IOMMU groups of the devices")]
    Groups(#[source] io::Error),
}

impl Surroundings {
    /// Reads the state for checks of `bdfs`. `info` is what Xen says of the host.
    pub fn read(host: &mut Host, bdfs: &[Bdf], info: &HostInfo) -> Result<Self, SurroundingsError> {
        let table = fs::read(mcfg::PATH).map_err(SurroundingsError::NoMcfg)?;
        let claims = Claims::read(&mut host.store)?;
        let there: Vec<Bdf> = bdfs
            .iter()
            .copied()
            .filter(|&bdf| host.sysfs.exists(bdf))
            .collect();
        // Without an IOMMU there are no groups. `check_host` refuses such a host.
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
