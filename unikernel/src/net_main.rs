//! The image of a stub with a network of its own.
#![no_std]
#![no_main]

unikernel::main!(unikernel::run::run_with_network);
