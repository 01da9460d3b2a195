//! The parts of cases and plans: requests, and actions of dom0 in between.

use crate::op::Op;
use core::fmt;

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A request to the backend.
    Op(Op),
    /// An action that only dom0 can take.
    Ask(Ask),
}

/// An action of dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Turn off the memory decode of the function at this devfn, in the device.
    DecodeOff(u8),
    /// Turn it on.
    DecodeOn(u8),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DecodeOff(devfn) => write!(f, "decode-off {devfn}"),
            Self::DecodeOn(devfn) => write!(f, "decode-on {devfn}"),
        }
    }
}
