//! How the commands talk to the service, over a socket that only root can use.

mod client;
mod error;
mod files;
mod listener;
mod locks;
mod protocol;

pub use client::{
    RESTART, ServiceLock, ask, ask_again, ask_status, ensure_running, is_running, keep_stopped,
};
pub use error::ControlError;
pub use listener::{Listener, ServiceFiles};
pub use locks::{make_directory, open_lock};
pub use protocol::{Reply, Request, TIMEOUT, read_request, reply};
