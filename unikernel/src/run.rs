//! One run of the stub, after its machine is set up. The first one and those after a restart are the same.

use crate::boot::Machine;
use crate::platform::Xen;
use crate::shutdown::{self, shutdown};
use crate::store::StoreRing;
use crate::trap;
use drivers::background::Background;
use drivers::log;
use drivers::platform::Errno;
use drivers::stub::{Reason, Stub};
use xenbus::client::Client;

/// Runs the drivers on a machine that is set up, until the domain ends.
pub fn run(machine: Machine) -> ! {
    run_with(machine, ())
}

/// The same, with a network beside them.
#[cfg(feature = "net")]
pub fn run_with_network(machine: Machine) -> ! {
    let environment = telemetry::network::Environment {
        lines: &crate::kept::LINES,
        strikes: &crate::kept::STRIKES,
        booted: crate::clock::booted,
        seed: crate::clock::seed(),
        command_line: machine.command_line,
    };
    run_with(machine, telemetry::network::Network::new(environment))
}

fn run_with(machine: Machine, background: impl Background<Xen, StoreRing>) -> ! {
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
    let client = Client::resume(machine.store, last_request);
    match Stub::with_background(machine.xen, client, port, background) {
        Ok(mut stub) => match stub.run() {
            Reason::Poweroff => shutdown(shutdown::Reason::Poweroff),
            Reason::Reboot => shutdown(shutdown::Reason::Reboot),
        },
        Err(error) => panic!("cannot start: {error}"),
    }
}
