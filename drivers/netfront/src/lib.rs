//! The frontend of a Xen network device (`xen/include/public/io/netif.h`). At the other end is Linux's xen-netback, in dom0
//! or in a driver domain, or any other backend: nothing that it says is believed.
//!
//! It is made for a stub's telemetry: small, slow, safe. It negotiates no option. Each frame has one slot of a ring and one
//! page; there is one queue, with one event channel for both rings.
//!
//! - [`layout`]: the numbers of the protocol.
//! - [`ring`]: one ring with its pages; every check of what the backend writes begins there.
//! - [`channel`]: both rings and the port of one connection.
//! - [`fault`]: what a backend can do wrong.
//! - [`peer`]: the nodes of the device in xenstore.
//! - [`frontend`]: the device's life, and the way in for the user.
//!
//! # How it is used
//! [`Netfront::reconcile`] follows xenstore: the user calls it once in the beginning, at each watch event with the token that
//! it gave, and while [`Netfront::wants_reconcile`] says so. On each event of [`Netfront::port`], and at any other moment:
//! [`Netfront::receive`] until there is no frame, [`Netfront::transmit`], then [`Netfront::flush`], and before it sleeps
//! [`Netfront::arm`], which tells whether there is more to do.
//!
//! A request of [`Netfront::reconcile`] to xenstore can bring a watch event along, which no port tells of: before the user
//! sleeps it asks `Client::has_events`.
//!
//! The crate never waits, and never looks for an event. When and how often to look is the user's choice, so events without
//! end cost what the user lets them cost (XSA-391). So do state changes of a backend: each call of
//! [`Netfront::reconcile`] takes one step.
//!
//! # A backend that misbehaves
//! It costs the network and nothing else. A response that the protocol does not allow is a [`Fault`]: the connection ends, its
//! grants end with it, and the network is given up until the backend begins a new connection.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod channel;
pub mod fault;
pub mod frontend;
pub mod layout;
pub mod peer;
pub mod ring;
pub mod statistics;

pub use fault::Fault;
pub use frontend::Netfront;
pub use layout::{FRAME_MAX, FRAME_MIN};
pub use statistics::Statistics;

/// Pages for frames to be received. At most so many frames are taken at a time.
pub const RX: usize = 16;
/// Pages for frames to be sent.
pub const TX: usize = 8;
/// Pages that one connection shares with the backend: those for frames, and the two rings.
pub const PAGES: usize = RX + TX + 2;
