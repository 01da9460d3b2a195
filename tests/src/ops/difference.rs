//! How two recordings differ.

use std::fmt;
use test_guest::answer::Answer;
use test_guest::op::Op;
use test_guest::shape::Shape;

/// A request that the two answer differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Number of the request.
    pub index: usize,
    /// What its case is about.
    pub case: &'static str,
    /// The function that the case is about, if it is about one.
    pub shape: Option<Shape>,
    /// The request.
    pub op: Op,
    /// What xen-pciback answers.
    pub pciback: Answer,
    /// What Bulkhead answers.
    pub bulkhead: Answer,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "request {}, {}: {} by xen-pciback, {} by Bulkhead",
            self.index, self.op, self.pciback, self.bulkhead
        )
    }
}
