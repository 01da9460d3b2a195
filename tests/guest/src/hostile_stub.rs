//! What a stub does that was taken over by its guest: all that its domain can do to dom0 and to the others.
//!
//! It begins as a genuine stub ([`drivers::stub`]), with devices really assigned. `tests/scenarios/hostile-stub.sh` takes
//! it over: a stub that is asked to shut down, by `control/shutdown`, is the hostile one from then on. dom0 gives it
//! orders by a node:
//!
//! | `data/order` | what it does |
//! |---|---|
//! | `attack N SEED` | the attack of that number, of [`HostileStub::ATTACKS`] |
//! | `random SEED COUNT` | so many actions of all kinds, in an order drawn from the seed |
//! | `flood SECONDS` | all at once that has dom0 look at it, for that long: dom0 sees meanwhile what else it can do |
//! | `death N` | sets a bad moment up and ends its life in it: [`HostileStub::DEATHS`] |
//!
//! `data/done` repeats the order when it is carried out. What was done is on the console: a line
//! `did: NAME: KIND=COUNT KIND=COUNT …` for each order. After an attack it offers dom0's service a new page and port, as
//! a stub that has begun anew does. If the service does not answer any more, that is its right after what was done to
//! it: the stub ends its domain then, and the next one is a genuine one again.
//!
//! | module | attacks by |
//! |---|---|
//! | [`page`] | the second hop's page: requests, flags, counters, the handover block |
//! | [`nodes`] | its nodes in xenstore: states, particulars, what it publishes for its guest |
//! | [`store`] | requests to xenstored: transactions, watches, quotas |
//! | [`machine`] | hypercalls, frames, grants, event channels |
//! | [`deaths`] | its end |
//! | [`chance`] | all of that, at random |

pub mod chance;
pub mod deaths;
pub mod machine;
pub mod nodes;
pub mod page;
pub mod store;
pub mod tally;

use crate::frontend::{Failure, Frontend};
use crate::op::Op;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;
use drivers::platform::DomId;
use fastrand::Rng;
use machine::Misuse;
use tally::Tally;
use xenbus::bdf::Bdf;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::{Device, Numbered, key};
use xenbus::pciif::MAGIC;
use xenbus::state::XenbusState;

/// The node by which dom0 gives orders, and the one that tells of the last.
const ORDER: &str = "data/order";
const DONE: &str = "data/done";
/// How often dom0 is listened to.
const LISTEN: Duration = Duration::from_millis(20);
/// How long dom0's service may take to take up a new page: it looks at xenstore ten times a second under attack.
const TAKE_UP: Duration = Duration::from_secs(20);
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(4);
/// A life that ends sooner than this after its beginning counts as one of a crash loop (`toolstack/src/serve/revival.rs`).
const LONG_LIFE: Duration = Duration::from_secs(4);
/// Most functions that are looked at.
const MOST_DEVICES: u32 = 32;

/// One of our devices.
#[derive(Clone, Copy, Debug)]
struct Function {
    bdf: Bdf,
    /// The machine frame of its ECAM page.
    ecam: u64,
}

/// A stub at war.
pub struct HostileStub<'a, P: Misuse, T> {
    platform: &'a mut P,
    client: &'a mut Client<T>,
    /// Our end of the second hop.
    hop: Frontend<P>,
    first: Device,
    second: Device,
    guest: DomId,
    devices: Vec<Function>,
    /// The nodes that we had when we were taken over, with their values.
    nodes: Vec<(String, String)>,
    random: Rng,
    tally: Tally,
}

/// A thing to do: its name, and how it is done.
type Deed<A> = (&'static str, fn(&mut A) -> Result<(), Failure>);

impl<'a, P: Misuse, T: Transport> HostileStub<'a, P, T> {
    /// All attacks, in the order in which they are done.
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

    /// Goes on from a genuine stub, and connects the second hop anew.
    ///
    /// # Errors
    /// A node that a stub has is not there, or dom0's service does not answer.
    pub fn take_over(platform: &'a mut P, client: &'a mut Client<T>) -> Result<Self, Failure> {
        store::forget_watches(client)?;
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
            tally: Tally::default(),
        };
        stub.check_answers()?;
        log::info!("taken over: {} devices of domain {guest}", stub.devices.len());
        Ok(stub)
    }

    /// Carries out what dom0 orders, for ever.
    pub fn obey(&mut self) -> ! {
        self.say_done("ready");
        loop {
            self.pause(LISTEN);
            let order = match self.client.read_optional(ORDER) {
                Ok(Some(order)) if !order.is_empty() => order,
                Ok(_) => continue,
                Err(error) => panic!("orders cannot be read: {error}"),
            };
            // Else it would be carried out again.
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

    /// Returns the name of what was done.
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

    /// Waits until this life counts as a long one.
    fn grow_old(&mut self) {
        let now = self.platform.now();
        self.pause(LONG_LIFE.saturating_sub(now));
    }

    /// Ends the domain, so that dom0 makes a new one.
    fn die(&mut self, why: &str) -> ! {
        self.grow_old();
        log::warn!("dies: {why}: {}", self.tally);
        self.pause(LISTEN);
        self.platform.shut_down(deaths::CRASH)
    }

    fn flood(&mut self, length: Duration) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(length);
        let own = (self.hop.grant.to_string(), self.hop.port.to_string());
        while self.platform.now() < end {
            self.flood_once(&own)?;
        }
        Ok(())
    }

    fn pause(&mut self, length: Duration) {
        let until = self.platform.now().saturating_add(length);
        while self.platform.now() < until {
            self.platform.wait(&[], Some(until));
        }
    }

    /// Publishes a new page and port, as a stub that has begun anew.
    fn offer(platform: &mut P, client: &mut Client<T>, second: Device) -> Result<Frontend<P>, Failure> {
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

    /// Puts our nodes back as they were, and offers a new page and port, which dom0's service must take up.
    fn reconnect(&mut self) -> Result<(), Failure> {
        self.restore_nodes()?;
        let new = Self::offer(self.platform, self.client, self.second)?;
        core::mem::replace(&mut self.hop, new).disconnect(self.platform);
        self.check_answers()
    }

    /// dom0's service answers a request, with whatever.
    fn check_answers(&mut self) -> Result<(), Failure> {
        self.hop.send(self.platform, &Op::read(0, 0, 4).encode());
        let end = self.platform.now().saturating_add(TAKE_UP);
        while self.hop.is_active() {
            if self.platform.now() >= end {
                return Err(Failure::Silent("an answer of dom0's service"));
            }
            // The service may have taken the page up after the event.
            self.platform.notify(self.hop.port);
            self.pause(LISTEN);
        }
        Ok(())
    }
}

/// Reads a node that holds a number, or an address.
fn number<T: Transport, N: core::str::FromStr>(client: &mut Client<T>, path: &str) -> Result<N, Failure> {
    let text = client.read(path)?;
    text.parse().map_err(|_| Failure::Node(path.to_string()))
}
