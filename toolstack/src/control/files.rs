//! Names of the files by which commands and service find each other.

pub const SOCKET: &str = "/run/bulkhead/serve.sock";
pub const SERVICE_LOCK: &str = "/run/bulkhead/serve.lock";
pub const LOG_DIRECTORY: &str = "/var/log/bulkhead";
