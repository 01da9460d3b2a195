//! The stub domain's image.
#![no_std]
#![no_main]

unikernel::main!(unikernel::run::run);
