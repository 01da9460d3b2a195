//! Where two listings differ.

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

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InLine {
    /// In the listings of which function.
    pub function: String,
    /// In which of them.
    pub state: State,
    /// The name of the line.
    pub line: String,
}

impl fmt::Display for InLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {}", self.function, self.state, self.line)
    }
}
