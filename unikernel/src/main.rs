//! The stub domain: the machine is set up, then the drivers have it.
#![no_std]
#![no_main]

use drivers::stub::{Reason, Stub};
use unikernel::boot::Machine;
use unikernel::shutdown::{self, shutdown};
use xenbus::client::Client;

unikernel::main!(main);

fn main(machine: Machine) -> ! {
    let (major, minor) = machine.xen_version;
    log::info!(
        "Bulkhead stub {} on Xen {major}.{minor}, {} KiB",
        env!("CARGO_PKG_VERSION"),
        machine.pages * 4
    );
    let port = machine.store.port();
    match Stub::new(machine.xen, Client::new(machine.store), port) {
        Ok(mut stub) => match stub.run() {
            Reason::Poweroff => shutdown(shutdown::Reason::Poweroff),
            Reason::Reboot => shutdown(shutdown::Reason::Reboot),
        },
        Err(error) => panic!("cannot start: {error}"),
    }
}
