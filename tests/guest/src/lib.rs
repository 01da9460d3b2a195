//! A bare PV guest with a PCI frontend of its own. It sends requests that Linux cannot or would not send.
//!
//! It uses the stub's library, and connects to the backend that its nodes name: Bulkhead's stub, or xen-pciback in dom0.
//! It is for tests, and never shipped.
//!
//! | module | holds |
//! |---|---|
//! | [`op`], [`answer`] | a request in which every field is free; its answer, with bytes that nobody may touch |
//! | [`shape`], [`step`], [`case`], [`random`] | a function's capabilities; parts of a sequence; cases for each rule; random requests |
//! | [`plan`] | all of these in one sequence: the same in the guest and in the program that compares answers |
//! | [`frontend`], [`recorder`], [`ask`] | the frontend's end of a connection; answers on their way to dom0; requests to dom0 |
//! | [`differential`] | runs a plan |
//! | [`attack`], [`grants`] | a hostile guest, and its misuse of grants |
//! | [`flood`] | work without a pause |
//! | [`measure`], [`ping_pong`], [`spread`] | how long requests take; an event between two guests; figures of many times |
//! | [`hostile_netback`] | a network backend that attacks its frontend |
//! | [`hostile_stub`] | another program: a stub that was taken over |
//!
//! The sequences need no machine: the program that compares answers uses them too.
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
pub mod hostile_netback;
pub mod hostile_stub;
pub mod measure;
pub mod op;
pub mod options;
pub mod ping_pong;
pub mod plan;
pub mod random;
pub mod recorder;
pub mod shape;
pub mod spread;
pub mod step;
