//! What a hostile guest does to its backend, each way named after the advisory that tells of it, or of the nearest kin.
//!
//! An attack ends with the connection in service: the next one, and the question whether the backend still answers,
//! need it. What happens to the guest's own devices and answers meanwhile is the guest's affair.

use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend, node, wait_for};
use crate::op::Op;
use crate::random::Random;
use crate::shape::Shape;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;
use drivers::platform::Platform;
use fastrand::Rng;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::key;
use xenbus::pciif::layout::{FLAGS, OP, OP_SIZE, TOTAL_SIZE};
use xenbus::pciif::{ACTIVE, AER_ACTIVE, AER_HANDLER, Command, MAGIC, SharedPage};
use xenbus::state::XenbusState;

/// What dom0 is asked for before the first attack, so that it is there to see.
pub const BEGIN: &str = "begin";
/// What dom0 is asked for to get a new connection: the backend's state is set to Initialising.
pub const ANEW: &str = "anew";
/// How long a backend may take to notice what we have done to the connection.
const NOTICE: Duration = Duration::from_secs(10);
/// Time for the backend to look at a node between two writes of ours.
const MOMENT: Duration = Duration::from_millis(100);
/// How long an answer is waited for that need not come: a request that has changed may never get one.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often a thing is done that takes its time.
const ROUNDS: usize = 1000;
/// How long events are sent.
const STORM: Duration = Duration::from_secs(3);

/// A guest at war.
pub struct Attacker<'a, P: Platform, T> {
    /// The machine.
    pub platform: &'a mut P,
    /// xenstore.
    pub client: &'a mut Client<T>,
    /// The connection.
    pub frontend: Frontend<P>,
    /// The functions that we have.
    pub shapes: Vec<Shape>,
    /// Chance.
    pub random: Rng,
    /// How many requests of garbage are sent.
    pub count: usize,
}

/// One attack: its name, and how it is done.
type Attack<A> = (&'static str, fn(&mut A) -> Result<(), Failure>);

impl<P: Platform, T: Transport> Attacker<'_, P, T> {
    /// All attacks, in the order in which they are done.
    const fn attacks() -> [Attack<Self>; 10] {
        [
            ("XSA-120: decode and error bits of COMMAND", Self::command_bits),
            (
                "XSA-128, 129: writes over message registers",
                Self::message_registers,
            ),
            (
                "XSA-155: a request that changes while it is handled",
                Self::changing_requests,
            ),
            (
                "XSA-157: messages on and off in every order",
                Self::message_orders,
            ),
            ("garbage in the page", Self::garbage),
            ("error recovery that nobody asked for", Self::recovery_bits),
            ("XSA-332: events without a request", Self::events),
            ("XSA-349: nodes rewritten all the time", Self::nodes),
            ("particulars that are wrong", Self::particulars),
            ("states out of order", Self::states),
        ]
    }

    /// Does all of them; after each the backend must still answer.
    ///
    /// # Errors
    /// [`Failure::Silent`] or [`Failure::Unsound`] if it does not; or as the attack itself.
    pub fn attack(&mut self) -> Result<(), Failure> {
        ask_dom0(self.platform, self.client, BEGIN)?;
        for (name, attack) in Self::attacks() {
            let began = self.platform.now();
            attack(self)?;
            self.check_answers()?;
            let time = self.platform.now().saturating_sub(began);
            log::info!("survived in {} ms: {name}", time.as_millis());
        }
        Ok(())
    }

    /// The backend answers a plain read with what stands there.
    fn check_answers(&mut self) -> Result<(), Failure> {
        self.frontend.page.clear_bits(FLAGS, AER_ACTIVE | AER_HANDLER);
        for shape in self.shapes.clone() {
            let answer = self
                .frontend
                .ask(self.platform, &Op::read(shape.devfn.into(), 0, 4))?;
            if answer.err != 0 || answer.value() == u32::MAX || answer.stray.is_some() {
                return Err(Failure::Unsound("its answer to a plain read"));
            }
        }
        Ok(())
    }

    fn command_bits(&mut self) -> Result<(), Failure> {
        const COMMAND: i32 = 4;
        for shape in self.shapes.clone() {
            for value in [0, 0xffff, 0x0140, 0x0400, 0] {
                for size in [2, 4, 1] {
                    let op = Op::write(shape.devfn.into(), COMMAND, size, value);
                    self.frontend.ask(self.platform, &op)?;
                }
            }
        }
        // Left at 0: dom0 looks whether the devices still decode.
        Ok(())
    }

    /// Writes of every width at and across every register of the MSI and MSI-X capabilities, first with messages off,
    /// then on; none may change anything.
    fn message_registers(&mut self) -> Result<(), Failure> {
        for shape in self.shapes.clone() {
            let devfn = u32::from(shape.devfn);
            let kinds = [
                (
                    shape.msi,
                    0x18,
                    Op::new(Command::EnableMsi, devfn),
                    Command::DisableMsi,
                ),
                (shape.msix, 0x0c, Op::msix(devfn, [0]), Command::DisableMsix),
            ];
            for (base, length, on, off) in kinds.into_iter().filter(|(base, ..)| *base != 0) {
                for on in [None, Some(on)] {
                    if let Some(on) = &on {
                        self.frontend.ask(self.platform, on)?;
                    }
                    let before = self.dump(devfn, base, length)?;
                    for size in [1, 2, 4] {
                        let first = i32::from(base) / size * size;
                        for offset in (first..i32::from(base) + length).step_by(size as usize) {
                            for value in [0, u32::MAX, 0xfee0_0000] {
                                self.frontend
                                    .ask(self.platform, &Op::write(devfn, offset, size, value))?;
                            }
                        }
                    }
                    if self.dump(devfn, base, length)? != before {
                        return Err(Failure::Unsound("a write has changed a message register"));
                    }
                }
                self.frontend.ask(self.platform, &Op::new(off, devfn))?;
            }
        }
        Ok(())
    }

    fn dump(&mut self, devfn: u32, base: u8, length: i32) -> Result<Vec<u32>, Failure> {
        let offsets = (0..length).step_by(4).map(|at| i32::from(base) + at);
        offsets
            .map(|offset| {
                Ok(self
                    .frontend
                    .ask(self.platform, &Op::read(devfn, offset, 4))?
                    .value())
            })
            .collect()
    }

    /// Requests of all kinds, each byte of which may change at any moment until its answer is there.
    fn changing_requests(&mut self) -> Result<(), Failure> {
        let mut requests = Random::new(&self.shapes, self.random.u64(..));
        for _ in 0..ROUNDS {
            let Some(op) = requests.next() else { return Ok(()) };
            self.frontend.send(self.platform, &op.encode());
            for _ in 0..self.random.usize(1..200) {
                if !self.frontend.is_active() {
                    break;
                }
                // Mostly the few words that matter: command, function, size, number of vectors, first entries.
                let at = OP + self.random.usize(..52);
                let byte = if self.random.bool() {
                    self.random.u8(..8)
                } else {
                    self.random.u8(..)
                };
                self.frontend.page.copy_in(at, &[byte]);
                if self.random.u8(..8) == 0 {
                    self.platform.relax();
                }
            }
            self.settle();
        }
        self.quiet()
    }

    /// Takes a request back that is not answered in time, as pcifront does.
    fn settle(&mut self) {
        let end = self.platform.now().saturating_add(PATIENCE);
        while self.frontend.is_active() && self.platform.now() < end {
            // Taken before the look, so that what comes after the look ends the wait.
            self.platform.take_pending(self.frontend.port);
            if self.frontend.is_active() {
                self.platform.wait(&[self.frontend.port], Some(end));
            }
        }
        self.frontend.page.clear_bits(FLAGS, ACTIVE);
    }

    fn quiet(&mut self) -> Result<(), Failure> {
        for shape in self.shapes.clone() {
            for command in [Command::DisableMsix, Command::DisableMsi] {
                self.frontend
                    .ask(self.platform, &Op::new(command, shape.devfn.into()))?;
            }
        }
        Ok(())
    }

    fn message_orders(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS {
            let Some(shape) = self.random.choice(self.shapes.clone()) else {
                return Ok(());
            };
            let devfn = u32::from(shape.devfn);
            let count = self.random.u32(..5);
            let entries: Vec<u16> = (0..count).map(|_| self.random.u16(..7)).collect();
            let op = match self.random.u8(..7) {
                0 => Op::new(Command::EnableMsi, devfn),
                1 => Op::new(Command::DisableMsi, devfn),
                2 => Op::new(Command::DisableMsix, devfn),
                3 => Op::write(devfn, 4, 2, self.random.u32(..)),
                4 => Op {
                    value: self.random.u32(..),
                    ..Op::msix(devfn, entries)
                },
                _ => Op::msix(devfn, entries),
            };
            self.frontend.ask(self.platform, &op)?;
        }
        self.quiet()
    }

    fn garbage(&mut self) -> Result<(), Failure> {
        for _ in 0..self.count {
            let mut bytes = [0; OP_SIZE];
            self.random.fill(&mut bytes);
            // Where all of it is garbage, nothing gets past the first check.
            bytes[1..4].fill(0);
            bytes[0] = self.random.u8(..12);
            if self.random.u8(..4) != 0 {
                bytes[8..20].fill(0);
                bytes[16] = self
                    .random
                    .choice(self.shapes.iter().map(|shape| shape.devfn))
                    .unwrap_or(0);
            }
            if self.random.bool() {
                bytes[20..32].fill(0);
                let space: [u8; 2] = self.random.u16(..0x1000).to_le_bytes();
                bytes[20..22].copy_from_slice(&space);
                bytes[24] = [1, 2, 4][self.random.usize(..3)];
                bytes[28] = self.random.u8(..);
            }
            // The power state is left alone: its changes take their time, and say nothing of the backend.
            if bytes[0] == 1 {
                bytes[28] &= !3;
            }
            self.frontend.send(self.platform, &bytes);
            self.settle();
        }
        self.quiet()
    }

    /// The flags of error recovery, set by the wrong side; and all other bits that mean nothing.
    fn recovery_bits(&mut self) -> Result<(), Failure> {
        for round in 0..ROUNDS {
            let mut recovery = [0; TOTAL_SIZE - OP - OP_SIZE];
            self.random.fill(&mut recovery);
            self.frontend.page.copy_in(OP + OP_SIZE, &recovery);
            self.frontend.page.set_bits(FLAGS, self.random.u32(..) & !ACTIVE);
            self.platform.notify(self.frontend.port);
            if round % 16 == 0 {
                self.check_answers()?;
            }
            self.frontend
                .page
                .clear_bits(FLAGS, self.random.u32(..) & !ACTIVE);
        }
        self.frontend.page.clear_bits(FLAGS, !ACTIVE);
        Ok(())
    }

    fn events(&mut self) -> Result<(), Failure> {
        let end = self.platform.now().saturating_add(STORM);
        while self.platform.now() < end {
            self.platform.notify(self.frontend.port);
        }
        Ok(())
    }

    fn nodes(&mut self) -> Result<(), Failure> {
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

    /// Connections that cannot be: each must be refused, and none cost more than itself.
    fn particulars(&mut self) -> Result<(), Failure> {
        let grant = self.frontend.grant.to_string();
        let port = self.frontend.port.to_string();
        // Never granted; xenstored's page, granted to dom0; past any table; negative; none. A port of ours that is for
        // another domain; one that is none; garbage. Other versions of the protocol.
        let wrong: [(&str, &str, &str); 12] = [
            ("100", &port, MAGIC),
            ("1", &port, MAGIC),
            ("4294967295", &port, MAGIC),
            ("-1", &port, MAGIC),
            ("", &port, MAGIC),
            (&grant, "1", MAGIC),
            (&grant, "0", MAGIC),
            (&grant, "4294967295", MAGIC),
            (&grant, "garbage", MAGIC),
            (&grant, &port, "6"),
            (&grant, &port, "77777777777777777777777777777777"),
            (&grant, &port, ""),
        ];
        for (grant, port, magic) in wrong {
            self.close()?;
            self.client.write(&node(key::PCI_OP_REF), grant)?;
            self.client.write(&node(key::EVENT_CHANNEL), port)?;
            self.client.write(&node(key::MAGIC), magic)?;
            self.start_anew()?;
            self.set_state(XenbusState::Initialised)?;
            self.wait_for_end()?;
        }
        self.reconnect()
    }

    /// Every state out of service, with messages being turned on at that very moment; then all states in a row.
    fn states(&mut self) -> Result<(), Failure> {
        for state in ["0", "1", "2", "3", "5", "6", "7", "8", "9", "", "garbage"] {
            self.frontend.send(self.platform, &Op::msix(0, [0]).encode());
            self.client.write(&node(key::STATE), state)?;
            self.pause();
            // An answer need not come any more.
            self.frontend.send(self.platform, &Op::read(0, 0, 4).encode());
            self.settle();
            for state in ["4", "3", "6", "1", "5", "4"] {
                self.client.write(&node(key::STATE), state)?;
            }
            self.close()?;
            self.reconnect()?;
            self.check_answers()?;
        }
        Ok(())
    }

    /// Goes down, in order, and waits until the backend has followed.
    fn close(&mut self) -> Result<(), Failure> {
        self.set_state(XenbusState::Closing)?;
        self.set_state(XenbusState::Closed)?;
        self.wait_for_end()
    }

    fn start_anew(&mut self) -> Result<(), Failure> {
        self.set_state(XenbusState::Initialising)?;
        ask_dom0(self.platform, self.client, ANEW)
    }

    fn reconnect(&mut self) -> Result<(), Failure> {
        self.start_anew()?;
        let new = Frontend::connect(self.platform, self.client)?;
        core::mem::replace(&mut self.frontend, new).disconnect(self.platform);
        Ok(())
    }

    fn set_state(&mut self, state: XenbusState) -> Result<(), Failure> {
        Ok(self.client.write(&node(key::STATE), state.as_str())?)
    }

    fn pause(&mut self) {
        let until = self.platform.now().saturating_add(MOMENT);
        self.platform.wait(&[], Some(until));
    }

    fn wait_for_end(&mut self) -> Result<(), Failure> {
        let backend: String = self.client.read(&node(key::BACKEND))?;
        let state = [&backend, "/", key::STATE].concat();
        wait_for(self.platform, NOTICE, "the backend to end the connection", || {
            let state = self.client.read_optional(&state)?;
            let state = state.as_deref().map_or(XenbusState::Unknown, XenbusState::parse);
            let ended = matches!(state, XenbusState::Closing | XenbusState::Closed);
            Ok(ended.then_some(()))
        })
    }
}
