//! What a stub tells over a network of its own: its metrics by HTTP, and its log by syslog.
//!
//! Only the image `bulkhead-stub-net` has this crate. From the top to the bottom; a module uses only those below it:
//! - [`network`]: the work between two requests of the guest.
//! - [`stack`]: smoltcp's interface and sockets; [`server`]: one connection of HTTP; [`device`]: frames for smoltcp.
//! - [`syslog`], [`http`]: the formats.
//! - [`line_ring`], [`strikes`]: what a restart in place must keep.
//! - [`settings`]: the command line; [`buffer`]: text without the heap; [`budget`]: a limit of the work for frames.
//!
//! Nothing here may cost the guest more than a bounded time, and no frame, however made, may do more than be dropped.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod budget;
pub mod buffer;
pub mod device;
pub mod http;
pub mod line_ring;
pub mod network;
pub mod server;
pub mod settings;
pub mod stack;
pub mod strikes;
pub mod syslog;
