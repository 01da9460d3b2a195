//! What is tested across crates: scenarios on real Xen, and the commands `cargo demo` and `cargo verify`.
//!
//! A scenario is one shell script in `scenarios/`, run in dom0 by the rig, with its needs in its first lines and its
//! verdict on its last one.

#![forbid(unsafe_code)]

pub mod artifacts;
pub mod comparison;
pub mod containment;
pub mod figure;
pub mod imports;
pub mod latency;
pub mod lspci;
pub mod markdown;
pub mod measure;
pub mod ops;
pub mod runner;
pub mod scenario;
pub mod schedule;
pub mod sweep;
pub mod verdict;
