//! The image of a stub that was taken over. It serves its guest like any stub until it is asked to shut down. It does
//! not shut down then, but carries out orders of the scenario. dom0's service and all other guests must not be harmed.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use drivers::stub::{Outcome, Stub};
use test_guest::hostile_stub::stub::HostileStub;
use unikernel::boot::Machine;
use xenbus::client::Client;

unikernel::main!(main);

fn main(machine: Machine) -> ! {
    let (port, last_request) = (machine.store.port(), machine.store.last_request());
    let client = Client::resume(machine.store, last_request);
    let mut stub = match Stub::new(machine.xen, client, port) {
        Ok(stub) => stub,
        Err(error) => panic!("cannot start: {error}"),
    };
    log::info!("a new life of the hostile stub");
    while let Outcome::Wait { until } = stub.step() {
        stub.wait(until);
    }
    let (mut xen, mut client) = stub.into_parts();
    match HostileStub::take_over(&mut xen, &mut client) {
        Ok(mut hostile) => hostile.obey(),
        Err(failure) => panic!("cannot take over: {failure}"),
    }
}
