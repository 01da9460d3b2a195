//! Where a TOML file is wrong, and how.

use std::fmt;

/// A mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The line, from 1 on.
    pub line: usize,
    /// The column, in characters, from 1 on.
    pub column: usize,
    /// What is wrong.
    pub cause: String,
}

impl Broken {
    /// The mistake that the parser found in `text`.
    pub(crate) fn new(text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        Self::at(text, start, error.message())
    }

    /// A mistake at the byte `start` of `text`.
    pub(crate) fn at(text: &str, start: usize, cause: &str) -> Self {
        let before = text.get(..start).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or(before);
        Self {
            line: 1 + before.matches('\n').count(),
            column: 1 + line.chars().count(),
            cause: cause.trim_end_matches('.').replace('\n', " "),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.cause)
    }
}
