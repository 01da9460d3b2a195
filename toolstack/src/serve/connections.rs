//! Connections for the threads of a worker beside its main thread. A worker's filter of system calls has neither `socket`
//! nor `connect`, so the launcher opens them and passes them on.

use crate::host::store;
use crate::host::sysfs::Sysfs;
use crate::host::{Host, HostError, Runner};
use crate::serve::error::ServeError;
use std::os::fd::OwnedFd;
use xen::xenctrl::Xenctrl;

/// A connection to xenstore for another thread.
pub fn open_store(host: &mut Host) -> Result<OwnedFd, ServeError> {
    match &mut host.runner {
        Runner::Launcher(launcher) => Ok(launcher.open_store()?),
        Runner::Itself => Ok(store::connect().map_err(HostError::from)?),
        #[cfg(test)]
        Runner::Model(_) => Ok(store::connect().map_err(HostError::from)?),
    }
}

/// What a job works with. The job's thread makes it, by the function that is returned.
pub fn open_host(host: &mut Host, xen: &Xenctrl) -> Result<impl FnOnce() -> Host + Send + use<>, ServeError> {
    let store = open_store(host)?;
    let runner = match &mut host.runner {
        // One of its own: a job waits for the end of its orders, and the main thread's answers come over another one.
        Runner::Launcher(launcher) => Runner::Launcher(launcher.connect()?),
        Runner::Itself => Runner::Itself,
        #[cfg(test)]
        Runner::Model(_) => Runner::Model(Vec::new()),
    };
    // The rest is made in the job's thread: a connection to xenstore is not shared between threads.
    let xen = xen.clone();
    Ok(|| Host {
        store: store::over(store),
        xen,
        sysfs: Sysfs::host(),
        runner,
    })
}
