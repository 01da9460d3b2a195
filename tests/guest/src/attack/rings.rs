//! Attacks by pages and ports: a second ring, and grants that change.

use super::{Attacker, NOTICE, TIMEOUT};
use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend, node, wait_for};
use crate::grants::Grants;
use crate::op::Op;
use alloc::string::{String, ToString};
use core::time::Duration;
use drivers::platform::DomId;
use xenbus::client::{Store, Transport};
use xenbus::path::key;
use xenbus::pciif::MAGIC;
use xenbus::state::XenbusState;

/// Requests to dom0: create the nodes of a second device of ours with the same backend, and remove them.
const SECOND: &str = "second";
const SECOND_GONE: &str = "second-gone";
/// Path of these nodes.
const SECOND_DIRECTORY: &str = "device/pci/1";
/// Time for the backend to see a second ring.
const LOOK: Duration = Duration::from_millis(500);
/// A domain that is not the backend's.
const DOM0: DomId = 0;

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    fn backend_domain(&mut self) -> Result<DomId, Failure> {
        let id = node(key::BACKEND_ID);
        self.client.read(&id)?.parse().map_err(|_| Failure::Node(id))
    }

    /// Another page and port, for the backend's domain.
    fn another(&mut self) -> Result<Frontend<P>, Failure> {
        let domain = self.backend_domain()?;
        let (page, grant) = self.platform.share_page(domain).map_err(Failure::Xen)?;
        let port = self.platform.alloc_unbound(domain).map_err(Failure::Xen)?;
        Ok(Frontend { page, grant, port })
    }

    /// Checks that a request in an unused ring gets no answer, and a request in the ring in use gets one.
    fn is_not_served(&mut self, ring: &mut Frontend<P>) -> Result<(), Failure> {
        ring.send(self.platform, &Op::read(0, 0, 4).encode());
        self.pause(TIMEOUT);
        if !ring.is_active() {
            return Err(Failure::Unsound("it has answered in a second ring"));
        }
        self.check_answers()
    }

    /// Another page and port while connected: in the nodes of the connection, and in those of a second device.
    ///
    /// A frontend that offers another ring starts anew: the backend must leave the old ring for the new one, and never
    /// serve both.
    pub(super) fn second_ring(&mut self) -> Result<(), Failure> {
        let second = self.another()?;
        self.publish(&second.grant.to_string(), &second.port.to_string(), MAGIC)?;
        self.set_state(XenbusState::Initialised)?;
        self.pause(LOOK);
        wait_for(
            self.platform,
            NOTICE,
            "the backend to connect to the new ring",
            || Ok((Self::backend_state(self.client)? == XenbusState::Connected).then_some(())),
        )?;
        let mut first = core::mem::replace(&mut self.frontend, second);
        self.set_state(XenbusState::Connected)?;
        self.is_not_served(&mut first)?;
        first.disconnect(self.platform);

        let mut second = self.another()?;
        ask_dom0(self.platform, self.client, SECOND)?;
        let at = |key: &str| [SECOND_DIRECTORY, "/", key].concat();
        self.client
            .write(&at(key::PCI_OP_REF), &second.grant.to_string())?;
        self.client
            .write(&at(key::EVENT_CHANNEL), &second.port.to_string())?;
        self.client.write(&at(key::MAGIC), MAGIC)?;
        self.client
            .write(&at(key::STATE), XenbusState::Initialised.as_str())?;
        let backend: String = self.client.read(&at(key::BACKEND))?;
        let state = [&backend, "/", key::STATE].concat();
        wait_for(
            self.platform,
            NOTICE,
            "the backend to refuse a second device",
            || {
                let is_closing = self.client.read_state(&state)? == XenbusState::Closing;
                Ok(is_closing.then_some(()))
            },
        )?;
        self.is_not_served(&mut second)?;
        ask_dom0(self.platform, self.client, SECOND_GONE)?;
        second.disconnect(self.platform);
        Ok(())
    }

    /// Grants that end while the backend uses them, grants that change between two states, grants of memory that is not
    /// ours, and grants for another domain.
    pub(super) fn grants(&mut self) -> Result<(), Failure> {
        // A grant in use: the backend's mapping stays, so the backend must go on.
        self.platform.withdraw(self.frontend.grant);
        self.check_answers()?;
        self.close()?;
        self.reconnect()?;
        self.check_answers()?;

        // Grants that cannot be mapped: each connection is refused.
        let port = self.frontend.port.to_string();
        let withdrawn = self.another()?;
        self.platform.withdraw(withdrawn.grant);
        let domain = self.backend_domain()?;
        let not_ours = self.platform.grant_what_is_not_ours(domain);
        let (foreign, for_others) = self.platform.share_page(DOM0).map_err(Failure::Xen)?;
        for grant in [withdrawn.grant, not_ours, for_others] {
            self.close()?;
            self.publish(&grant.to_string(), &port, MAGIC)?;
            self.start_anew()?;
            self.set_state(XenbusState::Initialised)?;
            self.wait_for_end()?;
        }
        self.platform.unshare_page(foreign, for_others);
        withdrawn.disconnect(self.platform);

        // Another page at the moment when the backend may map the first one: it takes one of them, or neither.
        let other = self.another()?;
        self.close()?;
        self.publish(&self.frontend.grant.to_string(), &port, MAGIC)?;
        self.start_anew()?;
        self.set_state(XenbusState::Initialised)?;
        self.publish(&other.grant.to_string(), &other.port.to_string(), MAGIC)?;
        self.platform.withdraw(self.frontend.grant);
        self.set_state(XenbusState::Connected)?;
        self.pause(LOOK);
        self.close()?;
        self.reconnect()?;
        other.disconnect(self.platform);
        Ok(())
    }
}
