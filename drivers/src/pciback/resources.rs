//! What the toolstack says about a function.

use super::config::bar::Bars;
use xenbus::bdf::Bdf;
use xenbus::device::Ids;

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
    /// The GSI of its INTx line, which is the line's pirq in the guest; 0 if there is none.
    pub irq: u32,
    /// True if the guest may use INTx; otherwise its pin register reads 0.
    pub intx: bool,
}
