//! The two connections of a stub: to its guest's pcifront, and to dom0's service.

pub mod aer;
pub mod device_list;
pub mod first;
pub mod second;
