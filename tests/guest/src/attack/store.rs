//! Attacks by xenstore.

use super::{Attacker, ROUNDS};
use crate::frontend::{DIRECTORY, Failure, node};
use crate::grants::Grants;
use alloc::format;
use alloc::string::ToString;
use xenbus::client::{Store, Transport};
use xenbus::path::key;
use xenbus::state::XenbusState;

/// More nodes, and more watches, than xenstored allows a guest.
const MANY_NODES: usize = 1500;
const MANY_WATCHES: usize = 200;
/// Sizes of values, up to the longest that fits the ring to xenstored in one piece.
const SIZES: [usize; 3] = [64, 256, 960];

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    pub(super) fn nodes(&mut self) -> Result<(), Failure> {
        for round in 0..ROUNDS {
            let (key, value) = match round % 4 {
                0 | 1 => (key::STATE, XenbusState::Connected.as_str()),
                2 => (key::PCI_OP_REF, "4294967295"),
                _ => (key::EVENT_CHANNEL, "garbage"),
            };
            self.client.write(&node(key), value)?;
        }
        Ok(())
    }

    /// Nodes and watches up to xenstored's quota, and values as long as xenstored accepts. Refusals are no failure: the
    /// limits are xenstored's choice. With all of these in place a connection ends and another one begins.
    pub(super) fn quotas(&mut self) -> Result<(), Failure> {
        let nodes = (0..MANY_NODES).take_while(|number| {
            let path = format!("{DIRECTORY}/flood/{number}");
            self.client.write(&path, "x").is_ok()
        });
        let nodes = nodes.count();
        let state = node(key::STATE);
        let watches =
            (0..MANY_WATCHES).take_while(|number| self.client.watch(&state, &number.to_string()).is_ok());
        let watches = watches.count();
        log::info!("{nodes} nodes and {watches} watches more were to be had");
        for size in SIZES {
            let value = "9".repeat(size);
            for key in [key::PCI_OP_REF, key::EVENT_CHANNEL, key::MAGIC, key::STATE] {
                let _ = self.client.write(&node(key), &value);
            }
        }
        self.close()?;
        self.reconnect()?;
        self.check_answers()?;
        for number in 0..watches {
            self.client.unwatch(&state, &number.to_string())?;
        }
        while self.client.next_event()?.is_some() {}
        self.client.remove(&[DIRECTORY, "/flood"].concat())?;
        Ok(())
    }

    /// Publishes this page, port and version.
    pub(super) fn publish(&mut self, grant: &str, port: &str, magic: &str) -> Result<(), Failure> {
        self.client.write(&node(key::PCI_OP_REF), grant)?;
        self.client.write(&node(key::EVENT_CHANNEL), port)?;
        Ok(self.client.write(&node(key::MAGIC), magic)?)
    }
}
