//! The stub domain: set up, then one loop.
#![no_std]
#![no_main]

use unikernel::boot::Machine;
use unikernel::shutdown::{Reason, shutdown};

unikernel::main!(main);

fn main(machine: Machine) -> ! {
    let (major, minor) = machine.xen_version;
    log::info!(
        "Bulkhead stub {} on Xen {major}.{minor}, {} KiB",
        env!("CARGO_PKG_VERSION"),
        machine.pages * 4
    );
    shutdown(Reason::Poweroff)
}
