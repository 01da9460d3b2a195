//! Why a worker ended.

use crate::host::HostError;
use crate::host::domains::PresentError;
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
    /// This is no host that can be served.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A further handle to the hypervisor cannot be opened.
    #[error(transparent)]
    Xenctrl(#[from] XenctrlError),
    /// The launcher is gone.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It could outlive the launcher, or other processes could read its memory.
    #[error("cannot tie the worker to its launcher (prctl)")]
    Tie(#[source] io::Error),
    /// It would keep rights that it does not need.
    #[error("the service cannot give up what it does not need")]
    Confine(#[from] ConfineError),
    /// xenstored is gone.
    #[error("xenstore failed (if xenstored has ended: restart the service when it runs again)")]
    Store(#[from] StoreError),
    /// The records cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Nobody knows whether a guest still has its devices.
    #[error(transparent)]
    Present(#[from] PresentError),
    /// A guest starts without its devices.
    #[error("cannot pause a guest that is to have devices")]
    Pause(#[source] io::Error),
    /// Threads cannot wake the main thread.
    #[error("cannot make an event descriptor (eventfd)")]
    Wake(#[source] io::Error),
    /// No thread for a job.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// It could not be told to end.
    #[error("cannot catch SIGTERM")]
    Signal(#[source] io::Error),
    /// The kernel refuses to wait.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}
