//! The hypervisor and its libraries, as dom0 uses them: all of dom0's `unsafe`.

#[cfg(feature = "model")]
pub mod model;
pub mod xenctrl;
pub mod xendev;
pub mod xenlight;
