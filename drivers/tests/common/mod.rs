//! The models that the tests run against.

#![allow(dead_code, reason = "each test file uses a part")]

pub mod device;
pub mod guest;
pub mod host;
pub mod hotplug;
pub mod service;
pub mod world;
