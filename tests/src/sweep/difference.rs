//! Where two recordings differ.

use super::layout::Register;
use super::operation::Operation;
use super::phase::Phase;
use std::fmt;

/// In what a difference shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Seen {
    /// In what the guest reads before the first access.
    AtTheStart,
    /// In the value of a read.
    Read,
    /// In the error, or lack of one, that an access is answered with.
    Error,
    /// In what dom0 finds in the device's config space after the last access.
    LeftBehind,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtTheStart => "before the first access",
            Self::Read => "reads",
            Self::Error => "errors",
            Self::LeftBehind => "left in the device",
        })
    }
}

/// Bits of one register that differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InRegister {
    /// The device, as the name of its files begins.
    pub device: String,
    /// In which part of the proof.
    pub phase: Phase,
    /// In what the difference shows.
    pub seen: Seen,
    /// The register; of an access that touches several and differs in its error, the first that has a name.
    pub register: Register,
    /// The register's bits that differ; 0 for errors.
    pub bits: u32,
    /// Number and kind of the access.
    pub access: Option<(usize, Operation)>,
}

impl fmt::Display for InRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.access {
            Some((index, operation)) => write!(f, "access {index}, {operation}"),
            None => write!(f, "{}", self.seen),
        }
    }
}
