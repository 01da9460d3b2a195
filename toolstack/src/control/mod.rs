//! How the commands talk to the service, over a socket that only root can use; and the lock of the commands.

mod client;
mod error;
mod files;
mod listener;
mod locks;
mod protocol;

pub use client::{Asked, ServiceLock, ask, ask_again, ask_or_keep_stopped, ensure_running};
pub use error::ControlError;
pub use listener::{Listener, ServiceFiles};
pub use locks::{CommandLock, lock_commands};
pub use protocol::{Reply, Request, TIMEOUT, read_request, reply};
