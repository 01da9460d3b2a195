//! Numbers of PCI: addresses of functions, registers and their bits; and how numbers are read from texts.
//!
//! Only numbers. What a guest may do with a register the stub and dom0 judge by rules of their own, which share no code.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod bdf;
pub mod digits;
pub mod registers;
