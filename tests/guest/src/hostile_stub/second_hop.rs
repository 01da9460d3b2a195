//! The connection to dom0's service, offered anew after each attack.

use super::misuse::Misuse;
use super::stub::{HostileStub, LISTEN};
use crate::frontend::{Failure, Frontend};
use crate::op::Op;
use alloc::string::ToString;
use core::time::Duration;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::{Device, key};
use xenbus::pciif::MAGIC;
use xenbus::state::XenbusState;

/// How long dom0's service may take to map a new page. Under attack it reads our nodes ten times a second only.
const TAKE_UP: Duration = Duration::from_secs(20);

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// Publishes a new page and port, as a restarted stub does.
    pub(super) fn offer(
        platform: &mut P,
        client: &mut Client<T>,
        second: Device,
    ) -> Result<Frontend<P>, Failure> {
        let dom0 = second.backend();
        let (page, grant) = platform.share_page(dom0).map_err(Failure::Xen)?;
        let port = platform.alloc_unbound(dom0).map_err(Failure::Xen)?;
        client.write(&second.frontend_node(key::PCI_OP_REF), &grant.to_string())?;
        client.write(&second.frontend_node(key::EVENT_CHANNEL), &port.to_string())?;
        client.write(&second.frontend_node(key::MAGIC), MAGIC)?;
        client.write(
            &second.frontend_node(key::STATE),
            XenbusState::Initialised.as_str(),
        )?;
        Ok(Frontend { page, grant, port })
    }

    /// Restores our nodes, and offers a new page and port, which dom0's service must accept.
    pub(super) fn reconnect(&mut self) -> Result<(), Failure> {
        self.restore_nodes()?;
        let new = Self::offer(self.platform, self.client, self.second)?;
        core::mem::replace(&mut self.hop, new).disconnect(self.platform);
        self.check_answers()
    }

    /// Checks that dom0's service answers a request. Any answer will do.
    pub(super) fn check_answers(&mut self) -> Result<(), Failure> {
        self.hop.send(self.platform, &Op::read(0, 0, 4).encode());
        let end = self.platform.now().saturating_add(TAKE_UP);
        while self.hop.is_active() {
            if self.platform.now() >= end {
                return Err(Failure::Silent("an answer of dom0's service"));
            }
            // The service may have mapped the page only after our event, so it needs another one.
            self.platform.notify(self.hop.port);
            self.pause(LISTEN);
        }
        Ok(())
    }
}
