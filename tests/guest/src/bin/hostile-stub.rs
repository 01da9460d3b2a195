//! The image of a stub that was taken over: it serves its guest as every stub does, until it is asked to shut down, which
//! it does not do. From then on it does what it is told, and dom0's service and all other guests must not notice.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use drivers::store;
use drivers::stub::{Outcome, Stub};
use test_guest::hostile_stub::stub::HostileStub;
use unikernel::boot::Machine;
use xenbus::client::Client;

unikernel::main!(main);

fn main(machine: Machine) -> ! {
    let (port, last_request) = (machine.store.port(), machine.store.last_request());
    let stub = Client::resume(machine.store, last_request)
        .map_err(store::failed)
        .and_then(|client| Stub::new(machine.xen, client, port));
    let mut stub = match stub {
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
