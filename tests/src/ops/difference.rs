//! Where two recordings differ.

use std::fmt;
use test_guest::op::Op;
use test_guest::shape::Shape;

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InAnswer {
    /// Number of the request.
    pub index: usize,
    /// What its case is about.
    pub case: &'static str,
    /// The function that the case is about, if it is about one.
    pub shape: Option<Shape>,
    /// The request.
    pub op: Op,
}

impl fmt::Display for InAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}, {}", self.index, self.op)
    }
}
