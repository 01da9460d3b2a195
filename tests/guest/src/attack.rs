//! What a hostile guest does to its backend, each way named after the advisory that tells of it, or of the nearest kin.
//!
//! An attack ends with the connection in service: the next one, and the question whether the backend still answers,
//! need it. What happens to the guest's own devices and answers meanwhile is the guest's affair. `docs/advisories.md`
//! says which advisory each attack stands for.

mod connections;
mod race;
mod registers;
mod requests;
mod rings;
mod store;

use crate::ask::ask_dom0;
use crate::frontend::{Failure, Frontend, node, wait_for};
use crate::grants::Grants;
use crate::op::Op;
use crate::shape::Shape;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use fastrand::Rng;
use xenbus::client::{Client, Store, Transport};
use xenbus::path::key;
use xenbus::pciif::layout::FLAGS;
use xenbus::pciif::{ACTIVE, AER_ACTIVE, AER_HANDLER, Command, SharedPage};
use xenbus::state::XenbusState;

/// What dom0 is asked for before the first attack, so that it is there to see.
pub const BEGIN: &str = "begin";
/// What dom0 is asked for to get a new connection: the backend's state is set to Initialising.
pub const ANEW: &str = "anew";
/// How long a backend may take to notice what we have done to the connection.
const NOTICE: Duration = Duration::from_secs(20);
/// How long an answer is waited for that need not come: a request that has changed may never get one.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often a thing is done that takes its time.
const ROUNDS: usize = 1000;

/// A guest at war.
pub struct Attacker<'a, P: Grants, T> {
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

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    /// All attacks, in the order in which they are done.
    const ATTACKS: [Attack<Self>; 15] = [
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
        ("XSA-157: MSI-X without memory decode", Self::without_decode),
        ("garbage in the page", Self::garbage),
        ("error recovery that nobody asked for", Self::recovery_bits),
        ("XSA-332: events without a request", Self::events),
        ("XSA-349: nodes rewritten all the time", Self::nodes),
        ("XSA-326: nodes, watches and values up to the quota", Self::quotas),
        ("a second ring", Self::second_ring),
        ("grants withdrawn, replaced, and of others' memory", Self::grants),
        ("particulars that are wrong", Self::particulars),
        ("states out of order", Self::states),
        ("closed and opened in every state", Self::every_change_of_state),
    ];

    /// Does all of them; after each the backend must still answer.
    ///
    /// # Errors
    /// [`Failure::Silent`] or [`Failure::Unsound`] if it does not; or as the attack itself.
    pub fn attack(&mut self) -> Result<(), Failure> {
        ask_dom0(self.platform, self.client, BEGIN)?;
        for (name, attack) in Self::ATTACKS {
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
            if shape.pm != 0 {
                let awake = Op::write(shape.devfn.into(), i32::from(shape.pm) + 4, 2, 0);
                self.frontend.ask(self.platform, &awake)?;
            }
            for command in [Command::DisableMsix, Command::DisableMsi] {
                self.frontend
                    .ask(self.platform, &Op::new(command, shape.devfn.into()))?;
            }
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

    fn pause(&mut self, length: Duration) {
        let until = self.platform.now().saturating_add(length);
        self.platform.wait(&[], Some(until));
    }

    fn backend_state(client: &mut Client<T>) -> Result<XenbusState, Failure> {
        let backend: String = client.read(&node(key::BACKEND))?;
        Ok(client.read_state(&[&backend, "/", key::STATE].concat())?)
    }

    /// Until the offer in our nodes is turned down: the backend ends the connection, or dom0 has us begin anew, as it
    /// does with a frontend that has let go of its port.
    fn wait_for_refusal(&mut self) -> Result<(), Failure> {
        wait_for(self.platform, NOTICE, "our offer to be turned down", || {
            let ended = matches!(
                Self::backend_state(self.client)?,
                XenbusState::Closing | XenbusState::Closed
            );
            let own = self.client.read_optional(&node(key::STATE))?;
            let anew = own.as_deref() == Some(XenbusState::Initialising.as_str());
            Ok((ended || anew).then_some(()))
        })
    }

    fn wait_for_end(&mut self) -> Result<(), Failure> {
        wait_for(self.platform, NOTICE, "the backend to end the connection", || {
            let state = Self::backend_state(self.client)?;
            let ended = matches!(state, XenbusState::Closing | XenbusState::Closed);
            Ok(ended.then_some(()))
        })
    }
}
