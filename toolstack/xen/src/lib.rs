//! The hypervisor and its libraries, as dom0's programs use them. All of dom0's `unsafe` is here: [`xenctrl`] and
//! [`xenlight`] call the host's libraries, [`xendev`] maps shared pages and binds event channels.

#[cfg(feature = "model")]
pub mod model;
pub mod xenctrl;
pub mod xendev;
pub mod xenlight;
