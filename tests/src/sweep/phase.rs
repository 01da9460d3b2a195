//! The parts of the proof.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A part of the proof.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Every range is read.
    Reads,
    /// Every range is written with 0, all-ones and walking bits, read back, and restored.
    Writes,
    /// All power states, and COMMAND, cache line size and BARs in each.
    Power,
    /// Accesses at random.
    Random,
    /// With a driver bound and its interrupts on: every range is read, the MSI and MSI-X capabilities are written.
    Driven,
    /// After the driver has let go: every range is read.
    Released,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Power => "power",
            Self::Random => "random",
            Self::Driven => "driven",
            Self::Released => "released",
        })
    }
}
