//! The image of a stub with a network, with failures on demand.
#![no_std]
#![no_main]

unikernel::main!(unikernel::run::run_with_network);
