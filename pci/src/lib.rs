//! PCI's own numbers, each of which has its one place here: addresses of functions, registers and their bits.
//!
//! What may be done with a register is no number: the stub and dom0 judge that by rules of their own, which do not meet.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod bdf;
pub mod registers;
