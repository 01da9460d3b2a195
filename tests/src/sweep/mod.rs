//! The differential proof: the same configuration accesses through xen-pciback and through Bulkhead.
//!
//! In a stock Linux guest, [`guest`] issues a [`sequence`] of [`operation`]s to a function and keeps every answer in a
//! [`recording`]. The same is done through the other backend, in the same boot. In dom0, [`compare`] puts the two side
//! by side, with what each left in the device. [`known`] has the differences that are meant.
//!
//! Linux offers user space no access that is unaligned, of another size than 1, 2 or 4 bytes, or outside the function's
//! config space. The host tests of `drivers/` make those.

pub mod compare;
pub mod difference;
pub mod exclusion;
pub mod guest;
pub mod known;
pub mod layout;
pub mod operation;
pub mod phase;
pub mod recording;
pub mod sequence;
