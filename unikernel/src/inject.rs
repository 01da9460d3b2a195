//! The stub domain's image that fails on demand: see `drivers::inject`.
#![no_std]
#![no_main]

unikernel::main!(unikernel::run::run);
