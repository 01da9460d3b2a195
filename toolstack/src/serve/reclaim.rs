//! Devices that are taken back from a guest: what the jobs do, and which clients wait for that.

use super::clients::Client;
use super::link::{Handle, Link};
use super::links::current;
use crate::handover::reclaim::{Released, release, take_back};
use crate::host::Host;
use crate::records::Attachment;
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use xen::xenctrl::DomId;

/// Takes the devices of an attachment back.
pub fn reclaim_all(host: &mut Host, link: Option<Link>, attachment: &Attachment) -> Released {
    // The last request is done when this returns, and nothing changes the record any more.
    drop(link);
    let current = current(&mut host.store, attachment);
    logged(release(host, &current))
}

/// Takes some devices of an attachment back.
pub fn reclaim_some(
    host: &mut Host,
    link: Option<Handle>,
    attachment: &Attachment,
    bdfs: &[Bdf],
) -> Released {
    if let Some(link) = link {
        link.drop_devices(bdfs);
    }
    let current = current(&mut host.store, attachment);
    logged(take_back(host, &current, bdfs))
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
    /// Devices are taken back from now on: all of the attachment's, or some. `client` waits for that.
    pub fn begin(&mut self, stub: DomId, all: bool, client: Option<Client>) {
        let clients = client.into_iter().collect();
        self.0.insert(stub, Reclaimed { all, clients });
    }

    /// The clients that wait until all devices are taken back, if that is under way.
    pub fn for_all(&mut self, stub: DomId) -> Option<&mut Vec<Client>> {
        let reclaimed = self.0.get_mut(&stub).filter(|reclaimed| reclaimed.all);
        reclaimed.map(|reclaimed| &mut reclaimed.clients)
    }

    /// The devices are taken back: the clients that have waited.
    pub fn end(&mut self, stub: DomId) -> Vec<Client> {
        let reclaimed = self.0.remove(&stub);
        reclaimed.map_or_else(Vec::new, |reclaimed| reclaimed.clients)
    }
}
