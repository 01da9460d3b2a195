//! Files and directories of dom0 that more than one part of Bulkhead uses.

use std::path::PathBuf;

/// Directory of what exists only while the host runs.
pub const RUN: &str = "/run/bulkhead";
/// Where a service that was started by a command logs to.
pub const LOG: &str = "/var/log/bulkhead/serve.log";

/// The directory of the files that are kept about single devices. Each test has its own.
pub fn run() -> PathBuf {
    #[cfg(test)]
    return tests::HOME
        .with(|home| home.borrow().clone())
        .unwrap_or_else(|| "/nonexistent".into());
    #[cfg(not(test))]
    RUN.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    thread_local! {
        /// What [`run`](super::run) is in this thread.
        pub static HOME: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
    }
}
