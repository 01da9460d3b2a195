//! Pages that the memory of two devices lies in: Xen gives memory away by the page.

use crate::config_space::resources::shared_frame;
use crate::host::sysfs::{Sysfs, SysfsError};
use pci::bdf::Bdf;
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
