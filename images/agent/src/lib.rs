//! How the rig's dom0 runs commands in its guests: `guest-run` in dom0 asks, `guest-agent` in the guest answers.
//!
//! Both are programs of their own, and not scripts: a process takes an emulated PV domain 50 to 100 ms.
#![forbid(unsafe_code)]

pub mod answer;
pub mod ask;
pub mod nodes;
pub mod patience;
pub mod reply;
