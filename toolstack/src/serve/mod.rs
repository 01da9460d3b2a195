//! The service: dom0's end of every stub's second hop. Its [workers], of which one serves at a time, do the work that is
//! here.
//!
//! One thread, the [`service`], watches xenstore, and starts a `link` with a thread of its own for each stub that is ready.
//! It also hears of [`errors`] of devices from the kernel, and brings dead stubs back ([`mod@revive`]). What it knows it
//! reads from the records and the xenbus states, so a service that is started again takes up where the last one ended.
//!
//! What a stub or a guest writes can make a look at it fail, and can bring looks about without end. Each turn of the loop
//! looks at one stub only ([`agenda`]), and a look that fails comes again later: it costs nobody else. Only the loss of
//! xenstored or of the launcher ends the service.

mod abandoned;
mod agenda;

mod clients;
pub mod confine;
mod connections;
mod crew;
mod error;
mod errors;
mod jobs;
mod link;
mod links;
pub mod log_limit;
mod reclaim;
mod report;
mod revive;
mod service;

pub mod throttle;

mod wake;
mod worker;
pub mod workers;

pub use error::ServeError;
pub use worker::work;
