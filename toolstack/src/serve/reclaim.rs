//! Devices that are taken back from a guest: the work of the jobs, and the clients that wait for it.

use super::clients::Client;
use super::link::{Handle, Link};
use crate::handover::reclaim::{self, Released};
use crate::host::Host;
use crate::host::store::Store;
use crate::records::Attachment;
use crate::service_log;
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use xen::xenctrl::DomId;

/// Takes the devices of an attachment back.
pub fn reclaim_all(host: &mut Host, link: Option<Link>, attachment: &Attachment) -> Released {
    let _about = service_log::about(&attachment.guest.name, &attachment.stub.name);
    // The link's thread ends with its last request. From then on no interrupt mode is recorded.
    drop(link);
    let current = current(&mut host.store, attachment);
    // Logged here, for there may be no client: a guest has died.
    logged(reclaim::reclaim_all(host, &current))
}

/// Takes some devices of an attachment back.
pub fn reclaim_some(
    host: &mut Host,
    link: Option<Handle>,
    attachment: &Attachment,
    bdfs: &[Bdf],
) -> Released {
    let _about = service_log::about(&attachment.guest.name, &attachment.stub.name);
    // The stub stays served for its other devices. Those that leave answer no request any more.
    if let Some(link) = link {
        link.drop_devices(bdfs);
    }
    let current = current(&mut host.store, attachment);
    logged(reclaim::reclaim_devices(host, &current, bdfs))
}

/// The attachment as its record is now, for its interrupt modes: a link records them without an event. A record that cannot be
/// read must not keep the devices from being taken back.
fn current(store: &mut Store, attachment: &Attachment) -> Attachment {
    let current = Attachment::read(store, attachment.stub.domid);
    current.ok().flatten().unwrap_or_else(|| attachment.clone())
}

fn logged(released: Released) -> Released {
    for line in &released.devices {
        log::info!("{line}");
    }
    for problem in &released.problems {
        log::error!("{problem}");
    }
    released
}

/// The clients that wait until devices are taken back, by the stub that serves them.
#[derive(Default)]
pub struct Waiters(BTreeMap<DomId, Reclaimed>);

struct Reclaimed {
    /// True if all devices of the attachment are taken back.
    all: bool,
    clients: Vec<Client>,
}

impl Waiters {
    /// A job begins that takes back all devices of the attachment, or some. `client` waits for its end.
    pub fn begin(&mut self, stub: DomId, all: bool, client: Option<Client>) {
        let clients = client.into_iter().collect();
        self.0.insert(stub, Reclaimed { all, clients });
    }

    /// The clients that wait for a job that takes back all devices; `None` if there is no such job.
    pub fn for_all(&mut self, stub: DomId) -> Option<&mut Vec<Client>> {
        let reclaimed = self.0.get_mut(&stub).filter(|reclaimed| reclaimed.all);
        reclaimed.map(|reclaimed| &mut reclaimed.clients)
    }

    /// The job has ended. Returns the clients that have waited for it.
    pub fn end(&mut self, stub: DomId) -> Vec<Client> {
        let reclaimed = self.0.remove(&stub);
        reclaimed.map_or_else(Vec::new, |reclaimed| reclaimed.clients)
    }
}
