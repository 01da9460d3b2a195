//! A model of what stands around the frontend: Xen, xenstored, the toolstack, and a backend.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod host;
pub mod machine;
pub mod netback;
