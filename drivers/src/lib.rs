//! The drivers of the stub: the PCI backend, the client of the second hop, the console.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod console;
pub mod platform;
