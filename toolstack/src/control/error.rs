//! Why commands and service could not talk to each other.

use super::files::SOCKET;
use crate::host::systemd::UnitError;
use crate::host::systemd::service_log;
use std::io;
use thiserror::Error;

/// Why the service did not answer, or could not be started.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("the service is not running (nobody listens on {SOCKET}): start it with `bulkhead serve`")]
    NotRunning(#[source] io::Error),
    /// The connection ended without an answer.
    #[error("the service did not answer: see {}", service_log())]
    NoAnswer(#[source] io::Error),
    /// The answer makes no sense.
    #[error("the service answered {line:?}: are service and command of one version? Restart the service")]
    Nonsense {
        /// Its answer.
        line: String,
    },
    /// The service could not do it.
    #[error("the service says: {0}")]
    Refused(String),
    /// Its unit does not start.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// It does not start.
    #[error("the service does not start: see the end of {}", service_log())]
    NoStart(#[source] io::Error),
    /// The runtime directory cannot be used.
    #[error("cannot use {path}")]
    Directory {
        /// The file or directory.
        path: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is one already.
    #[error("the service is running already: `bulkhead status` shows what it does")]
    Running,
}
