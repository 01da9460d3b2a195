//! A stub that was taken over by its guest: it does everything that its domain can do to dom0 and to other domains.
//!
//! It begins as a genuine stub ([`drivers::stub`]) with devices assigned to its guest. `tests/scenarios/hostile-stub.sh`
//! asks it to shut down, by `control/shutdown`. From then on the stub is hostile. dom0 gives it orders by a node:
//!
//! | `data/order` | what it does |
//! |---|---|
//! | `attack N SEED` | attack number N of [`HostileStub::ATTACKS`] |
//! | `random SEED COUNT` | COUNT actions of all kinds, in a random order from SEED |
//! | `flood SECONDS` | everything at once that makes dom0 look at the stub; the scenario checks meanwhile what dom0 can still do |
//! | `death N` | prepares a bad moment, and ends the stub in it: [`HostileStub::DEATHS`] |
//!
//! After an order `data/done` holds the same text. The console has a line `did: NAME: KIND=COUNT KIND=COUNT …` for each
//! order. After an attack the stub offers dom0's service a new page and port, as a restarted stub does. The service may
//! refuse to answer after an attack. The stub then ends its domain, and the next stub is a genuine one again.
//!
//! | module | attacks by |
//! |---|---|
//! | [`page`] | the second hop's page: requests, flags, counters, the handover block |
//! | [`nodes`] | its nodes in xenstore: states, page and port, nodes for its guest |
//! | [`store`] | requests to xenstored: transactions, watches, quotas |
//! | [`machine`] | hypercalls, frames, grants, event channels |
//! | [`deaths`] | the end of its domain |
//! | [`chance`] | all of these, at random |
//!
//! All of these use [`stub`], the stub itself, and [`misuse`], its machine. [`raw`] sends requests to xenstored, and
//! [`second_hop`] connects to dom0's service.

pub mod chance;
pub mod deaths;
pub mod machine;
pub mod misuse;
pub mod nodes;
pub mod page;
pub mod raw;
pub mod second_hop;
pub mod store;
pub mod stub;
pub mod tally;

use crate::frontend::Failure;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;
use fastrand::Rng;
use misuse::Misuse;
use stub::{Deed, Function, HostileStub, LISTEN};
use tally::Tally;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::{Device, Numbered, key};

/// The node for dom0's orders, and the node for the last order that was carried out.
const ORDER: &str = "data/order";
const DONE: &str = "data/done";
/// Limit of functions that are used.
const MOST_DEVICES: u32 = 32;

impl<'a, P: Misuse, T: Transport> HostileStub<'a, P, T> {
    /// All attacks, in order.
    pub const ATTACKS: [Deed<Self>; 24] = [
        (
            "requests of every operation, with fields that are none",
            Self::garbage_requests,
        ),
        ("requests for devices of others", Self::foreign_devices),
        ("writes to every register", Self::every_register),
        (
            "requests that change while they are read",
            Self::changing_requests,
        ),
        ("messages on and off in every order", Self::message_orders),
        ("flags flipped, and verdicts nobody asked for", Self::flags),
        ("answers that are never taken", Self::untaken_answers),
        ("a flood of events", Self::event_flood),
        ("garbage in the counters", Self::counters),
        ("garbage in the handover block", Self::handover),
        ("ports that are closed, taken twice, and used up", Self::ports),
        ("grants that are not what they should be", Self::grants),
        ("values that are no UTF-8", Self::no_text),
        ("values that are long", Self::long_values),
        ("nodes that are missing", Self::missing_nodes),
        ("particulars of others, and nonsense", Self::particulars),
        ("hundreds of published nodes", Self::published),
        ("words for the administrator's terminal", Self::words),
        ("a state rewritten without a pause", Self::state_flood),
        ("particulars rewritten without a pause", Self::particulars_flood),
        ("transactions without an end", Self::transactions),
        ("watches and nodes up to the quota", Self::quotas),
        ("hypercalls, frames and pages of others", Self::machine),
        ("every state, in every order", Self::every_state),
    ];

    /// Takes over from a genuine stub, and connects the second hop anew.
    ///
    /// # Errors
    /// A node of the stub's is missing, or dom0's service does not answer.
    pub fn take_over(platform: &'a mut P, client: &'a mut Client<T>) -> Result<Self, Failure> {
        raw::forget_watches(client)?;
        let own = number(client, "domid")?;
        let second = Device::second_hop(own);
        let guest = number(client, &second.backend_node(key::GUEST))?;
        let first = Device::first_hop(own, guest);
        let count: u32 = number(client, &second.backend_node(key::NUM_DEVS))?;
        let mut devices = Vec::new();
        for index in 0..count.min(MOST_DEVICES) as usize {
            let bdf = number(client, &second.backend_node(&Numbered::Device.at(index)))?;
            let ecam = client.read(&second.backend_node(&Numbered::Ecam.at(index)))?;
            let ecam = u64::from_str_radix(&ecam, 16).map_err(|_| Failure::Node(ecam))?;
            devices.push(Function { bdf, ecam });
        }
        let mut nodes = Vec::new();
        for directory in [first.backend_dir(), second.frontend_dir()] {
            for key in client.directory(&directory).unwrap_or_default() {
                let path = format!("{directory}/{key}");
                if let Some(value) = client.read_optional(&path)? {
                    nodes.push((path, value));
                }
            }
        }
        let hop = Self::offer(platform, client, second)?;
        let mut stub = Self {
            platform,
            client,
            hop,
            first,
            second,
            guest,
            devices,
            nodes,
            random: Rng::with_seed(1),
            other_ends: Vec::new(),
            tally: Tally::default(),
        };
        stub.check_answers()?;
        log::info!("taken over: {} devices of domain {guest}", stub.devices.len());
        Ok(stub)
    }

    /// Carries out dom0's orders, for ever.
    pub fn obey(&mut self) -> ! {
        self.say_done("ready");
        loop {
            self.pause(LISTEN);
            let order = match self.client.read_optional(ORDER) {
                Ok(Some(order)) if !order.is_empty() => order,
                Ok(_) => continue,
                Err(error) => panic!("orders cannot be read: {error}"),
            };
            // The node keeps its value, and must not be carried out twice.
            let _ = self.client.write(ORDER, "");
            self.tally = Tally::default();
            match self.carry_out(&order) {
                Ok(name) => log::info!("did: {name}: {}", self.tally),
                Err(failure) => log::error!("failed: {order}: {failure}"),
            }
            if let Err(failure) = self.reconnect() {
                self.die(&format!("dom0's service has had enough ({failure})"));
            }
            self.say_done(&order);
        }
    }

    /// Returns the name of the action.
    fn carry_out(&mut self, order: &str) -> Result<&'static str, Failure> {
        let mut words = order.split_ascii_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut argument = || {
            let word = words.next().unwrap_or_default();
            word.parse::<u64>().map_err(|_| Failure::Node(order.to_string()))
        };
        match kind {
            "attack" => {
                let number = argument()?;
                self.random = Rng::with_seed(argument()?);
                let (name, attack) = Self::ATTACKS
                    .get(number as usize)
                    .ok_or_else(|| Failure::Node(order.to_string()))?;
                log::info!("attack: {name}");
                attack(self)?;
                Ok(name)
            }
            "random" => {
                self.random = Rng::with_seed(argument()?);
                self.at_random(argument()?)?;
                Ok(chance::NAME)
            }
            "flood" => {
                self.flood(Duration::from_secs(argument()?))?;
                Ok("a flood of all at once")
            }
            "death" => {
                let number = argument()?;
                let (name, death) = Self::DEATHS
                    .get(number as usize)
                    .ok_or_else(|| Failure::Node(order.to_string()))?;
                self.grow_old();
                log::info!("death: {name}");
                death(self)?;
                Err(Failure::Unsound("a death that is survived"))
            }
            _ => Err(Failure::Node(order.to_string())),
        }
    }

    fn say_done(&mut self, order: &str) {
        if let Err(error) = self.client.write(DONE, order) {
            log::error!("cannot say that it is done: {error}");
        }
    }

    fn flood(&mut self, length: Duration) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(length);
        let own = (self.hop.grant.to_string(), self.hop.port.to_string());
        while self.platform.now() < end {
            self.flood_once(&own)?;
        }
        Ok(())
    }
}

/// Reads a node that holds a number, or an address.
fn number<T: Transport, N: core::str::FromStr>(client: &mut Client<T>, path: &str) -> Result<N, Failure> {
    let text = client.read(path)?;
    text.parse().map_err(|_| Failure::Node(path.to_string()))
}
