//! Attacks of a hostile guest on its backend. Each is named after the advisory that describes it or something similar.
//!
//! An attack ends with a working connection: the next attack needs one, and so does the check that the backend still
//! answers. The attack may break the guest's own devices and answers meanwhile. `docs/advisories.md` says which
//! advisory each attack stands for.

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

/// Request to dom0 before the first attack, so that dom0 is ready to watch.
pub const BEGIN: &str = "begin";
/// Request to dom0 for a new connection: dom0 sets the backend's state to Initialising.
pub const ANEW: &str = "anew";
/// How long a backend may take to notice a change of the connection.
const NOTICE: Duration = Duration::from_secs(20);
/// How long to wait for an answer that need not come: a request that has changed may never get one.
const TIMEOUT: Duration = Duration::from_millis(20);

/// Repetitions of an action that takes long.
const ROUNDS: usize = 1000;

/// The hostile guest.
pub struct Attacker<'a, P: Grants, T> {
    /// The machine.
    pub platform: &'a mut P,
    /// xenstore.
    pub client: &'a mut Client<T>,
    /// The connection.
    pub frontend: Frontend<P>,
    /// The functions that we have.
    pub shapes: Vec<Shape>,
    /// Random numbers.
    pub random: Rng,
    /// Number of garbage requests.
    pub count: usize,
}

/// One attack: its name and its function.
type Attack<A> = (&'static str, fn(&mut A) -> Result<(), Failure>);

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    /// All attacks, in order.
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

    /// Runs all attacks. After each the backend must still answer.
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

    /// Checks that the backend answers a plain read with the right value.
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

    /// Withdraws a request that is not answered in time, as pcifront does.
    fn settle(&mut self) {
        let end = self.platform.now().saturating_add(TIMEOUT);
        while self.frontend.is_active() && self.platform.now() < end {
            // Clear the event before the page is checked, so that an event after the check ends the wait.
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

    /// Closes the connection in an orderly way, and waits until the backend has closed it too.
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

    /// Waits until the offer in our nodes is refused: the backend ends the connection, or dom0 tells us to begin anew,
    /// as it does if a frontend's port is closed.
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
