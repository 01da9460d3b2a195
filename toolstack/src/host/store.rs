//! The connection of a command to xenstored.

pub use xenstore::{NoStore, Store, StoreError, Stream, connect, open, over};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    /// Dom0's connection to a model.
    pub fn dom0(daemon: &Xenstored) -> Store {
        connect(daemon, 0)
    }

    /// A domain's connection to a model.
    pub fn connect(daemon: &Xenstored, domid: u16) -> Store {
        xenstore::over_model(daemon.connect(domid))
    }

    /// Makes a domain as xl does.
    pub fn introduce(daemon: &Xenstored, domid: u16, name: &str) {
        daemon.introduce(domid);
        let mut store = dom0(daemon);
        let vm = format!("/vm/00000000-0000-0000-0000-{domid:012}");
        store.write(&format!("/local/domain/{domid}/name"), name).unwrap();
        store.write(&format!("/local/domain/{domid}/vm"), &vm).unwrap();
    }
}
