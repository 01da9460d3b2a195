//! The service: dom0's end of every stub's second hop.
//!
//! Its first process is the launcher with its [`workers`]. One [`worker`] serves at a time; everything else here is its work.
//! The main thread ([`service`]) watches xenstore, and starts a [`link`] with a thread of its own for each stub that is ready.
//! It also hears of [`errors`] of devices from the kernel, brings dead stubs back ([`mod@revive`]), and pauses guests that
//! are to have devices when they start ([`starts`]). What it knows it reads
//! from the records and the xenbus states, so a service that starts takes up where the last one ended.
//!
//! What a stub or a guest writes can make the work on that stub fail, and can cause work without end. Each turn of the loop
//! works on one stub only ([`agenda`]), and work that fails is repeated later, so that no other stub pays for it. Only the loss
//! of xenstored or of the launcher ends the service.

mod abandoned;
mod agenda;

mod clients;
pub mod confine;
mod connections;
mod crew;
mod errands;
mod error;
mod errors;
mod jobs;
mod known;
mod link;
mod links;
pub mod log_limit;
mod memory;
mod reclaim;
mod report;
mod revive;
mod service;
mod starts;
mod suspended;

pub mod throttle;

mod wake;
mod worker;
pub mod workers;

pub use error::ServeError;
pub use worker::work;
