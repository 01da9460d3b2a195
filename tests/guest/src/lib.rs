//! A bare PV guest with a PCI frontend of its own: it asks for what Linux cannot, or would not.
//!
//! It stands on the stub's own library, and connects to whichever backend its nodes name: Bulkhead's stub, or
//! xen-pciback in dom0. It is for tests, and never shipped.
//!
//! - [`op`]: a request with every field free; [`answer`]: what came back, down to bytes that nobody may touch.
//! - [`shape`]: what a sequence has to know of a function; [`step`]: what it is made of; [`case`]: the cases that the
//!   rules name; [`random`]: requests from a seed; [`plan`]: all of these in one sequence, the same in the guest and
//!   where its answers are compared.
//! - [`frontend`]: the frontend's side of the connection; [`recorder`]: answers on their way to dom0;
//!   [`ask`]: what only dom0 can do; [`differential`]: a plan carried out;
//!   [`attack`]: what a hostile guest does, and [`grants`] what it needs for that; [`flood`]: work without end.
//! - [`hostile_stub`]: another program, a stub that was taken over, against dom0's service and all others.
//!
//! The sequences are pure, and know nothing of a machine: the program that compares answers uses them too.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod answer;
pub mod ask;
pub mod attack;
pub mod case;
pub mod differential;
pub mod flood;
pub mod frontend;
pub mod grants;
pub mod hostile_stub;
pub mod op;
pub mod options;
pub mod plan;
pub mod random;
pub mod recorder;
pub mod shape;
pub mod step;
