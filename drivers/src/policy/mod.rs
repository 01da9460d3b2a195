//! What a guest may read and write, and which interrupts it gets: pure logic over [`hardware::Hardware`].

pub mod config;
pub mod engine;
pub mod hardware;
pub mod msi;
pub mod resources;
pub mod slots;
