//! Files and directories of dom0 that more than one part of Bulkhead uses.

/// Directory of what exists only while the host runs.
pub const RUN: &str = "/run/bulkhead";
/// Where a service that was started by a command logs to.
pub const LOG: &str = "/var/log/bulkhead/serve.log";
