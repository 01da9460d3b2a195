//! The library below the stub: boot, hypercalls, memory, events, grants, clock, console.
#![no_std]
