//! Actions of all kinds, in a random order from a seed.

use super::misuse::Misuse;
use super::stub::HostileStub;
use super::{nodes, raw, tally::Kind};
use crate::frontend::Failure;
use alloc::format;
use fastrand::Rng;
use xenbus::client::{Store, Transport};
use xenbus::path::{Numbered, key};

/// Name of the random part.
pub const NAME: &str = "at random";
/// Number of actions between two progress lines.
const TELL: u64 = 2000;

/// Weight of each kind in the random choice.
const WEIGHTS: [(Kind, u32); 18] = [
    (Kind::Request, 300),
    (Kind::Change, 200),
    (Kind::Flags, 100),
    (Kind::Event, 80),
    (Kind::Counters, 20),
    (Kind::Handover, 20),
    (Kind::State, 60),
    (Kind::Value, 40),
    (Kind::Removal, 10),
    (Kind::Particulars, 30),
    (Kind::Published, 40),
    (Kind::Transaction, 10),
    (Kind::Watch, 10),
    (Kind::Port, 40),
    (Kind::Grant, 20),
    (Kind::Frame, 20),
    (Kind::Hypercall, 1),
    (Kind::Ecam, 1),
];

/// The next kind.
pub fn draw(random: &mut Rng) -> Kind {
    let sum: u32 = WEIGHTS.iter().map(|&(_, weight)| weight).sum();
    let mut drawn = random.u32(..sum);
    for (kind, weight) in WEIGHTS {
        if drawn < weight {
            return kind;
        }
        drawn -= weight;
    }
    Kind::Request
}

impl<P: Misuse, T: Transport> HostileStub<'_, P, T> {
    /// Runs this many actions.
    pub(super) fn at_random(&mut self, count: u64) -> Result<(), Failure> {
        let mut told = 0;
        while self.tally.total() < count {
            let kind = draw(&mut self.random);
            self.act(kind)?;
            if self.tally.total() / TELL > told {
                told = self.tally.total() / TELL;
                // A service that has closed the connection answers no more. A new stub can go on attacking.
                if let Err(failure) = self.reconnect() {
                    self.die(&format!("{NAME}: {failure}"));
                }
            }
        }
        Ok(())
    }

    fn act(&mut self, kind: Kind) -> Result<(), Failure> {
        match kind {
            Kind::Request => {
                let op = self.random_request();
                self.tally.count(Kind::Request);
                self.hop.send(self.platform, &op.encode());
                match self.random.u8(..16) {
                    0 => self.settle(),
                    1..4 => self.platform.relax(),
                    _ => {}
                }
            }
            Kind::Change => self.change_request(),
            Kind::Flags => self.flip_flags(),
            Kind::Event => {
                self.tally.count(Kind::Event);
                self.platform.notify(self.hop.port);
            }
            Kind::Counters => {
                let sound = self.random.bool();
                self.garble_counters(sound);
            }
            Kind::Handover => {
                let sound = self.random.bool();
                self.garble_handover(sound);
            }
            Kind::State => self.random_state()?,
            Kind::Value => {
                self.tally.count(Kind::Value);
                let (path, value) = (self.random_node(), self.random_value());
                raw::write(self.client, &path, &value)?;
            }
            Kind::Removal => {
                self.tally.count(Kind::Removal);
                let path = self.random_node();
                let _ = self.client.remove(&path);
            }
            Kind::Particulars => {
                let numbers = nodes::NUMBERS;
                let (grant, port) = (
                    numbers[self.random.usize(..numbers.len())],
                    numbers[self.random.usize(..numbers.len())],
                );
                self.publish_particulars(grant, port)?;
            }
            Kind::Published => {
                self.tally.count(Kind::Published);
                let number = self.random.usize(..300);
                let numbered = [
                    Numbered::Key,
                    Numbered::State,
                    Numbered::VirtualDevice,
                    Numbered::Root,
                    Numbered::Error,
                ][self.random.usize(..5)];
                let path = self.first.backend_node(&numbered.at(number));
                let value = self.random_value();
                raw::write(self.client, &path, &value)?;
            }
            Kind::Transaction => {
                if !self.open_transaction()? {
                    raw::forget_watches(self.client)?;
                }
            }
            Kind::Watch => {
                let (path, token) = (self.random_node(), self.random.usize(..1000));
                self.watch(&path, token)?;
            }
            Kind::Port => {
                let (domain, port) = (self.random.u16(..16), self.random.u32(..64));
                self.bind(domain, port);
            }
            Kind::Grant => {
                let (domain, grant) = (self.random.u16(..16), self.random.u32(..64));
                self.map(domain, grant);
            }
            Kind::Frame => {
                // Frames of a PC's devices, which are not ours.
                let frame = self.random.u64(0xc0000..0xff000);
                if self.devices.iter().all(|device| device.ecam != frame) {
                    self.frame(frame);
                }
            }
            Kind::Hypercall => {
                let victim = self.random.u16(..16);
                if victim != self.first.backend() {
                    self.hypercalls(victim);
                }
            }
            Kind::Ecam => self.read_ecam(),
        }
        Ok(())
    }

    /// A state of either hop. The two states that end the second hop are rare, because a new stub must follow.
    fn random_state(&mut self) -> Result<(), Failure> {
        let state = match self.random.u16(..600) {
            0 => "5",
            1 => "6",
            drawn => ["0", "1", "2", "3", "4", "7", "8", "9", "", "x"][usize::from(drawn) % 10],
        };
        if self.random.bool() {
            return self.write_state(state.as_bytes());
        }
        self.tally.count(Kind::State);
        raw::write(
            self.client,
            &self.first.backend_node(key::STATE),
            state.as_bytes(),
        )
    }

    /// The path of a node of ours.
    fn random_node(&mut self) -> alloc::string::String {
        let known = self.nodes.len();
        match self.random.u8(..4) {
            0 if known > 0 => self.nodes[self.random.usize(..known)].0.clone(),
            1 => self.first.backend_node(&format!("vdev-{}", self.random.u8(..))),
            2 => self.second.frontend_node(&format!("own-{}", self.random.u8(..))),
            _ => {
                let keys = [key::PCI_OP_REF, key::EVENT_CHANNEL, key::MAGIC, key::BACKEND];
                self.second.frontend_node(keys[self.random.usize(..4)])
            }
        }
    }

    /// Any bytes, of any length that xenstored accepts.
    fn random_value(&mut self) -> alloc::vec::Vec<u8> {
        let length = match self.random.u8(..8) {
            0 => self.random.usize(..900),
            _ => self.random.usize(..12),
        };
        if self.random.bool() {
            return nodes::NO_TEXT[self.random.usize(..nodes::NO_TEXT.len())].into();
        }
        (0..length).map(|_| self.random.u8(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn every_kind_comes_and_a_seed_stands_for_a_sequence() {
        let kinds = |seed| {
            let mut random = Rng::with_seed(seed);
            (0..20_000).map(|_| draw(&mut random)).collect::<Vec<_>>()
        };
        assert_eq!(kinds(1), kinds(1));
        assert_ne!(kinds(1), kinds(2));
        for kind in Kind::ALL {
            assert!(kinds(3).contains(&kind), "{}", kind.name());
        }
    }
}
