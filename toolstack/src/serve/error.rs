//! Why a worker ended.

use crate::host::HostError;
use crate::host::launcher::LaunchError;
use crate::host::store::StoreError;
use crate::records::RecordError;
use crate::serve::confine::ConfineError;
use std::io;
use thiserror::Error;
use xen::xenctrl::XenctrlError;

/// Why a worker ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Not on this host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No second handle to the hypervisor.
    #[error(transparent)]
    Xenctrl(#[from] XenctrlError),
    /// The launcher is gone.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It would outlive the launcher, or be open to other processes.
    #[error("cannot tie the worker to its launcher (prctl)")]
    Tie(#[source] io::Error),
    /// It would have privileges that it does not need.
    #[error("the service cannot give up what it does not need")]
    Confine(#[from] ConfineError),
    /// xenstore is gone.
    #[error("xenstore failed (if xenstored has ended: restart the service when it runs again)")]
    Store(#[from] StoreError),
    /// The records cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No way for threads to call each other.
    #[error("cannot make an event descriptor (eventfd)")]
    Wake(#[source] io::Error),
    /// No thread for what takes long.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// No way to be told to end.
    #[error("cannot catch SIGTERM")]
    Signal(#[source] io::Error),
    /// The kernel will not wait.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}
