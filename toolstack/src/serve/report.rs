//! The service's answer to `bulkhead status`. The client's thread makes it: a link may be busy for a while, and there may be
//! many stubs.

use super::link::Handle;
use crate::control::Reply;
use crate::host::launcher::ServiceHistory;
use crate::host::store;
use crate::host::sysfs::Sysfs;
use crate::status::process::ProcessStats;
use crate::status::{self, DeviceErrors, Seen, Served, Status, StubStatus};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use xen::xenctrl::{DomId, Xenctrl};

/// A stub that is served, and what is known of it besides.
pub struct Linked {
    pub stub: DomId,
    pub link: Handle,
    pub errors: Vec<DeviceErrors>,
    pub revivals: u64,
}

/// Finds out the status over this connection to xenstore and this handle. `history` is the service's, `remarks` says of stubs what is under way, or why they are not
/// served.
pub fn report(
    store: OwnedFd,
    xen: &Xenctrl,
    history: Option<ServiceHistory>,
    links: Vec<Linked>,
    remarks: BTreeMap<DomId, String>,
) -> Reply {
    let mut seen: BTreeMap<DomId, Seen> = BTreeMap::new();
    for (stub, remark) in remarks {
        seen.entry(stub).or_default().remark = Some(remark);
    }
    for Linked {
        stub,
        link,
        errors,
        revivals,
    } in links
    {
        seen.entry(stub).or_default().served = Some(Served {
            errors,
            revivals,
            ..link.served()
        });
    }
    match status::collect(&mut store::over(store), Some(xen), &Sysfs::host(), true, seen) {
        Ok(mut status) => {
            // Read here, for `/proc/self` of the command would be the command's.
            status.service.process = process_stats(&status);
            status.service.history = history;
            Reply::Status(status.into())
        }
        Err(error) => Reply::error(error),
    }
}

/// What this process holds; `None` if its kernel does not tell.
fn process_stats(status: &Status) -> Option<ProcessStats> {
    match ProcessStats::read(Path::new("/proc/self")) {
        Ok(stats) => Some(ProcessStats {
            pirqs: status.stubs.iter().map(StubStatus::msi_pirqs).sum(),
            ..stats
        }),
        Err(error) => {
            log::error!("cannot see in /proc what this process holds: {error}");
            None
        }
    }
}
