//! One run of the stub, after its machine is set up. The first one and those after a restart are the same.

use crate::boot::Machine;
use crate::shutdown::{self, shutdown};
use crate::trap;
use drivers::log;
use drivers::platform::Errno;
use drivers::store;
use drivers::stub::{Reason, Stub};
use xenbus::client::Client;

/// Runs the drivers on a machine that is set up, until the domain ends.
pub fn run(machine: Machine) -> ! {
    let (major, minor) = machine.xen_version;
    log::info!(
        "Bulkhead stub {} on Xen {major}.{minor}, {} KiB",
        env!("CARGO_PKG_VERSION"),
        machine.pages * 4
    );
    if let Err(Errno(errno)) = trap::limit_work() {
        panic!("cannot limit the time that work takes: errno {errno}");
    }
    let (port, last_request) = (machine.store.port(), machine.store.last_request());
    // Also in a first run, which has nothing to resume: start and restart are one path.
    let stub = Client::resume(machine.store, last_request)
        .map_err(store::failed)
        .and_then(|client| Stub::new(machine.xen, client, port));
    match stub {
        Ok(mut stub) => match stub.run() {
            Reason::Poweroff => shutdown(shutdown::Reason::Poweroff),
            Reason::Reboot => shutdown(shutdown::Reason::Reboot),
        },
        Err(error) => panic!("cannot start: {error}"),
    }
}
