//! How two listings differ, and where.

use std::fmt;

/// When a listing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No driver has taken the function yet.
    Bare,
    /// Its driver is at work, if it has one.
    Driven,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::Driven => "driven",
        })
    }
}

/// One difference between two listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The name of the line.
    pub line: String,
    /// What it says through xen-pciback: a word, or all of it if the two have not the same number of words.
    pub pciback: String,
    /// What it says through Bulkhead; empty if there is no such line.
    pub bulkhead: String,
}

/// A difference, and where it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// In the listings of which function.
    pub function: String,
    /// In which of them.
    pub state: State,
    /// What differs.
    pub difference: Difference,
}
