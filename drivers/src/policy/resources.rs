//! What the toolstack says about a function, in the nodes of the second hop.

use super::config::bar::Bars;
use pci::bdf::Bdf;
use xenbus::device::{Ids, Quirks};

/// What cannot be read from the function's config space, or must be checked against it.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Its real address.
    pub bdf: Bdf,
    /// What it must answer at offset 0.
    pub ids: Ids,
    /// Machine frame number of its ECAM page.
    pub ecam: u64,
    /// BAR 0 to 5 and the expansion ROM.
    pub bars: Bars,
    /// The GSI of its INTx line, which is also the pirq in the guest; 0 if it has none.
    pub irq: u32,
    /// True if the guest may use INTx; otherwise its pin register reads 0.
    pub intx: bool,
    /// True if writes to registers that no table names go to the device.
    pub permissive: bool,
    /// The registers that an administrator lets the guest write.
    pub quirks: Quirks,
    /// False if MSI and MSI-X are refused.
    pub msi: bool,
    /// True if it is an SR-IOV virtual function: its ids read all-ones, it has no INTx, and its BARs and memory decode are
    /// its physical function's, which dom0 has.
    pub virtual_function: bool,
}
