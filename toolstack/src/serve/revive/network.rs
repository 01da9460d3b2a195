//! The network of a stub that was created again. It comes when the stub serves: the guest waits for the stub, and nobody
//! waits for the network. A bridge that is gone, a script that hangs or a backend's domain that has ended costs the network
//! alone.

use crate::handover::carry::origin_of;
use crate::host::launcher::{Order, Ticket};
use crate::host::{Host, Runner};
use crate::records::{Attachment, RecordError};
use xenbus::client::Store as _;
use xenbus::path::home;

/// Has the launcher give a stub its interface, if it was created with one and has none. `None` if there is nothing to do.
pub fn attach<X>(host: &mut Host<X>, attachment: &Attachment) -> Result<Option<Ticket>, RecordError> {
    let (stub, name) = (attachment.stub.domid, &attachment.stub.name);
    let origin = origin_of(&mut host.store, attachment)?;
    let Some(telemetry) = origin.network() else {
        return Ok(None);
    };
    // As `docs/misc/xenstore-paths.pandoc` of Xen has it.
    let frontend = format!("{}/device/vif/0", home(stub));
    if host.store.read_optional(&frontend)?.is_some() {
        return Ok(None);
    }
    let Runner::Launcher(launcher) = &mut host.runner else {
        return Ok(None);
    };
    let telemetry = telemetry.clone();
    match launcher.order(Order::Network { stub, telemetry }) {
        Ok(ticket) => Ok(Some(ticket)),
        Err(error) => {
            log::error!("stub {name} has no network: {error}");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::launcher::Launcher;
    use crate::host::store::tests::dom0;
    use crate::host::sysfs::tests::Tree;
    use crate::records::stub_backup;
    use crate::records::tests::attachment;
    use serde_json::json;
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    #[test]
    fn a_stub_gets_the_interface_that_it_was_created_with_and_lacks() {
        let (launcher, _) = Launcher::to_a_thread();
        let mut host = Host {
            store: dom0(&Xenstored::new()),
            xen: Xen::default(),
            sysfs: Tree::new().sysfs(),
            runner: Runner::Launcher(launcher),
        };
        let attachment = attachment();
        attachment.write(&mut host.store).unwrap();
        let mut is_ordered = |interfaces: &[&str], has_one: bool| {
            let interfaces: Vec<_> = interfaces
                .iter()
                .map(|bridge| json!({ "bridge": bridge, "mac": "00:16:3e:12:34:56" }))
                .collect();
            let config = json!({ "b_info": { "kernel": "/stub" }, "nics": interfaces });
            stub_backup::keep_config(&mut host.store, 4, &config).unwrap();
            let frontend = "/local/domain/4/device/vif/0";
            match has_one {
                true => host.store.write(&format!("{frontend}/state"), "1").unwrap(),
                false => drop(host.store.remove(frontend)),
            }
            attach(&mut host, &attachment).unwrap().is_some()
        };
        assert!(!is_ordered(&[], false));
        assert!(is_ordered(&["xenbr0"], false));
        assert!(!is_ordered(&["xenbr0"], true));
        // Not one of ours.
        assert!(!is_ordered(&["a name that no bridge has"], false));
    }
}
