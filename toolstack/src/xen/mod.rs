//! The hypervisor and its libraries: all of dom0's `unsafe`.

pub mod xenctrl;
pub mod xendev;
pub mod xenlight;
