//! Why a request failed.

use std::io;
use xenbus::pciif::OpError;

/// A request that failed: the answer to the stub, and the cause for the log.
#[derive(Debug)]
pub struct Failure {
    /// The answer.
    pub error: OpError,
    /// The cause.
    pub cause: String,
}

impl Failure {
    pub(super) fn new(error: OpError, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { error, cause }
    }

    pub(super) fn asleep(error: OpError) -> Self {
        Self::new(
            error,
            "the device is not in D0, and answers no memory access: the guest must set its power state first",
        )
    }

    pub(super) fn config(error: io::Error) -> Self {
        Self::new(
            OpError::OpFailed,
            format!("the configuration space cannot be accessed: {error}"),
        )
    }
}
