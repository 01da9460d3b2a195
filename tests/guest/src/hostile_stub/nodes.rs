//! Attacks by our own nodes: the states of both hops, page and port of the second hop, and the nodes for the guest.

use super::misuse::Misuse;
use super::stub::{FLOOD, HostileStub, LISTEN};
use super::{raw, tally::Kind};
use crate::frontend::Failure;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use xenbus::client::{Store, Transport};
use xenbus::path::{Numbered, key};
use xenbus::state::XenbusState;

/// Keys of the second hop that dom0 reads.
const READ: [&str; 4] = [key::STATE, key::PCI_OP_REF, key::EVENT_CHANNEL, key::MAGIC];
/// Values that are no text: a lone byte, a cut sequence, NUL, all kinds of control characters.
pub const NO_TEXT: [&[u8]; 6] = [
    b"\xff",
    b"\xe2\x82",
    b"\0",
    b"4\xff4",
    b"\x1b[2J\x1b]0;owned\x07",
    b"\xed\xa0\x80",
];
/// Numbers that are no grant or port, or that belong to another domain.
pub const NUMBERS: [&str; 10] = [
    "0",
    "1",
    "8",
    "9",
    "100",
    "4294967295",
    "4294967296",
    "-1",
    "",
    "18446744073709551616",
];
const NUMBERED: [Numbered; 6] = [
    Numbered::Key,
    Numbered::Device,
    Numbered::State,
    Numbered::VirtualDevice,
    Numbered::Error,
    Numbered::Root,
];
/// Limit of numbers that dom0 copies: the functions of a bus.
const PUBLISHED: usize = 150;
/// States that do not end the second hop.
const HARMLESS: [&str; 3] = ["3", "4", "2"];

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    pub(super) fn write_state(&mut self, value: &[u8]) -> Result<(), Failure> {
        self.tally.count(Kind::State);
        raw::write(self.client, &self.second.frontend_node(key::STATE), value)
    }

    /// Restores the nodes that we had when we were taken over, and removes all others.
    pub(super) fn restore_nodes(&mut self) -> Result<(), Failure> {
        for directory in [self.first.backend_dir(), self.second.frontend_dir()] {
            for key in self.client.directory(&directory).unwrap_or_default() {
                let path = format!("{directory}/{key}");
                if !self.nodes.iter().any(|(node, _)| *node == path) {
                    self.client.remove(&path)?;
                }
            }
        }
        for (path, value) in self.nodes.clone() {
            // The next offer sets the states of the second hop.
            if !READ.iter().any(|key| self.second.frontend_node(key) == path) {
                self.client.write(&path, &value)?;
            }
        }
        Ok(())
    }

    /// Waits until dom0 has had time to look twice.
    fn let_look(&mut self) {
        self.pause(LISTEN * 15);
    }

    pub(super) fn no_text(&mut self) -> Result<(), Failure> {
        for value in NO_TEXT {
            for key in READ {
                self.tally.count(Kind::Value);
                raw::write(self.client, &self.second.frontend_node(key), value)?;
            }
            for key in [key::STATE, "vdev-0", "state-0", "num_devs", "error-0", "domain"] {
                self.tally.count(Kind::Published);
                raw::write(self.client, &self.first.backend_node(key), value)?;
            }
            self.let_look();
        }
        Ok(())
    }

    pub(super) fn long_values(&mut self) -> Result<(), Failure> {
        for size in [64, 257, 800] {
            for fill in [b"9", b"\xff", b" "] {
                let value = vec![fill[0]; size];
                for key in READ {
                    self.tally.count(Kind::Value);
                    raw::write(self.client, &self.second.frontend_node(key), &value)?;
                }
                for key in [key::STATE, "vdev-0", "state-0", "num_devs", "root-0", "error-0"] {
                    self.tally.count(Kind::Published);
                    raw::write(self.client, &self.first.backend_node(key), &value)?;
                }
                self.let_look();
            }
        }
        Ok(())
    }

    /// Removes each node by itself, with time for dom0 to look; then whole directories.
    pub(super) fn missing_nodes(&mut self) -> Result<(), Failure> {
        for (path, value) in self.nodes.clone() {
            self.tally.count(Kind::Removal);
            let _ = self.client.remove(&path);
            self.let_look();
            self.client.write(&path, &value)?;
        }
        for directory in [
            self.first.backend_dir(),
            self.second.frontend_dir(),
            "device".to_string(),
            "backend".to_string(),
        ] {
            self.tally.count(Kind::Removal);
            let _ = self.client.remove(&directory);
            self.let_look();
            for (path, value) in self.nodes.clone() {
                // If dom0 has created the directory, we cannot create it again.
                let _ = self.client.write(&path, &value);
            }
            self.let_look();
        }
        Ok(())
    }

    pub(super) fn particulars(&mut self) -> Result<(), Failure> {
        for grant in NUMBERS {
            for port in NUMBERS {
                self.publish_particulars(grant, port)?;
                self.write_state(b"3")?;
                self.pause(LISTEN);
            }
        }
        Ok(())
    }

    pub(super) fn publish_particulars(&mut self, grant: &str, port: &str) -> Result<(), Failure> {
        self.tally.count(Kind::Particulars);
        let second = self.second;
        raw::write(
            self.client,
            &second.frontend_node(key::PCI_OP_REF),
            grant.as_bytes(),
        )?;
        raw::write(
            self.client,
            &second.frontend_node(key::EVENT_CHANNEL),
            port.as_bytes(),
        )
    }

    /// Nodes for every function that a bus can have, and for more than dom0 has room for.
    pub(super) fn published(&mut self) -> Result<(), Failure> {
        let mut there = 0;
        for number in 0..PUBLISHED {
            for numbered in NUMBERED {
                self.tally.count(Kind::Published);
                let path = self.first.backend_node(&numbered.at(number));
                there += usize::from(self.client.write(&path, &"x".repeat(100)).is_ok());
            }
        }
        log::info!("{there} nodes were published");
        // Writes all of them again and again: a copy of them is out of date at once.
        let end = self.platform.now().saturating_add(FLOOD);
        let mut number = 0;
        while self.platform.now() < end {
            number = (number + 1) % PUBLISHED;
            self.tally.count(Kind::Published);
            let path = self.first.backend_node(&Numbered::Root.at(number));
            let _ = self.client.write(&path, &number.to_string());
        }
        Ok(())
    }

    /// Error texts that dom0 shows to people, with control sequences of terminals.
    pub(super) fn words(&mut self) -> Result<(), Failure> {
        let words: [&[u8]; 4] = [
            b"\x1b[2J\x1b[31mowned\x1b]0;owned\x07",
            b"line\nline\r\nbulkhead: all is well",
            b"\xff\xfe\xfd",
            &[b'x'; 700],
        ];
        let home = xenbus::path::home(self.first.backend());
        for value in words {
            for path in [
                format!("{home}/error"),
                format!("{home}/error/device/bulkhead/0/error"),
                format!("{home}/error/backend/pci/{}/0/error", self.guest),
                self.first.backend_node("error-0"),
                self.first.backend_node("domain"),
                self.second.frontend_node("error"),
            ] {
                self.tally.count(Kind::Value);
                raw::write(self.client, &path, value)?;
            }
            self.let_look();
        }
        Ok(())
    }

    pub(super) fn state_flood(&mut self) -> Result<(), Failure> {
        self.flood_state()?;
        // Also in the first hop's nodes: dom0 keeps a copy of these.
        let end = self.platform.now().saturating_add(FLOOD);
        while self.platform.now() < end {
            for state in ["7", "4", "8"] {
                self.tally.count(Kind::State);
                self.client.write(&self.first.backend_node(key::STATE), state)?;
            }
        }
        Ok(())
    }

    pub(super) fn flood_state(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(FLOOD);
        while self.platform.now() < end {
            for state in HARMLESS {
                self.write_state(state.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Writes all three nodes without a pause, so that dom0 cannot read them at one moment.
    pub(super) fn particulars_flood(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(FLOOD);
        let own = (self.hop.grant.to_string(), self.hop.port.to_string());
        while self.platform.now() < end {
            self.publish_particulars("9", "4294967295")?;
            self.publish_particulars(&own.0, &own.1)?;
            self.write_state(b"3")?;
        }
        Ok(())
    }

    /// One round of everything that makes dom0 look: states, page and port, nodes for the guest, a request.
    pub(super) fn flood_once(&mut self, own: &(String, String)) -> Result<(), Failure> {
        for state in HARMLESS {
            self.write_state(state.as_bytes())?;
        }
        self.publish_particulars("9", "4294967295")?;
        self.publish_particulars(&own.0, &own.1)?;
        self.tally.count(Kind::Published);
        let number = self.random.usize(..PUBLISHED);
        let path = self.first.backend_node(&Numbered::VirtualDevice.at(number));
        raw::write(self.client, &path, b"\xff")?;
        let op = self.random_request();
        self.tally.count(Kind::Request);
        self.hop.send(self.platform, &op.encode());
        Ok(())
    }

    /// All states, values that are no state, and a missing node: each one after each one, with time for dom0 to look.
    pub(super) fn every_state(&mut self) -> Result<(), Failure> {
        let states: Vec<Option<String>> = [None]
            .into_iter()
            .chain((0..=9).map(|state: u8| Some(state.to_string())))
            .collect();
        for first in &states {
            for second in &states {
                for state in [first, second] {
                    match state {
                        Some(state) => self.write_state(state.as_bytes())?,
                        None => {
                            self.tally.count(Kind::Removal);
                            let _ = self.client.remove(&self.second.frontend_node(key::STATE));
                        }
                    }
                    self.pause(LISTEN);
                }
            }
        }
        self.write_state(XenbusState::Closed.as_str().as_bytes())?;
        self.let_look();
        Ok(())
    }
}
