//! MSI and MSI-X of one function: when a guest may turn them on, and how they are turned off.
//!
//! The state follows dom0's answers. Where an answer is lost, the state is unknown, and the next request starts by turning
//! off whatever may be on. A request whose answer is lost may still be carried out, after the connection or the run that
//! sent it. So a device whose registers say that nothing is on is asked about too: dom0 carries requests out in their
//! order, and an answer to one says that all earlier ones are over.

use super::config::VirtualConfig;
use super::dom0::Dom0;
use crate::error::{MessageKind, MessageRefusal, RequestError};
use crate::platform::ConfigSpace;
use alloc::vec::Vec;
use pci::bdf::Bdf;
use pci::registers::{command, msi, msix, power, register};
use xenbus::pciif::{MsixEntry, TooManyVectors};

/// Which interrupts the device sends, as far as the stub knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its INTx line, or nothing, by dom0's answer.
    Intx,
    /// The same by its registers. A request of an earlier connection or run may still be under way in dom0.
    Unconfirmed,
    /// MSI or MSI-X, and the guest has its pirqs.
    On(MessageKind),
    /// This kind may be on or off, and the guest does not know of its pirqs: no answer came to a request to turn it on, or
    /// the guest wanted it off and dom0 has not said that it is.
    Unknown(MessageKind),
}

/// The message-signalled interrupts of one function.
#[derive(Debug)]
pub struct MsiState {
    mode: Mode,
    /// The function's real address, by which dom0 knows it.
    bdf: Bdf,
    /// The toolstack lets the guest have MSI and MSI-X.
    offered: bool,
    /// An SR-IOV virtual function: its memory decode is that of its physical function, which only dom0 sees.
    virtual_function: bool,
    /// Offset of the register that holds the power state.
    power: Option<u16>,
    /// Offset of the MSI capability.
    msi: Option<u16>,
    /// Offset of the MSI-X capability.
    msix: Option<u16>,
}

impl MsiState {
    /// Reads from the device which kind is on, so that a stub that was restarted goes on where it was.
    ///
    /// There is no xenstore node for it: a node could be out of date when the stub dies.
    pub fn new(config: &VirtualConfig, ecam: &impl ConfigSpace) -> Self {
        let msi = config.message_capability(MessageKind::Msi);
        let msix = config.message_capability(MessageKind::Msix);
        let is_on = |kind, capability: Option<u16>, enable| match message_control(ecam, capability?) {
            Ok(control) if control & enable == 0 => None,
            Ok(_) => Some(Mode::On(kind)),
            // All-ones: the device does not answer now. It may send messages again when it does.
            Err(_) => Some(Mode::Unknown(kind)),
        };
        // dom0 turns on one kind at most, so a device that claims both lies. Either choice is right: dom0 turns off the
        // kind that is on by its own record, whichever is asked for.
        let mode = is_on(MessageKind::Msix, msix, msix::ENABLE)
            .or_else(|| is_on(MessageKind::Msi, msi, msi::ENABLE))
            .unwrap_or(Mode::Unconfirmed);
        Self {
            mode,
            bdf: config.resources().bdf,
            offered: config.resources().msi,
            virtual_function: config.resources().virtual_function,
            power: config.power_capability().map(|at| at + power::CONTROL),
            msi,
            msix,
        }
    }

    /// Which interrupts the device sends.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes note that the guest may not know of the pirqs of what is on, or does not use them any more. `asked` is the kind
    /// that it has asked for: if the other kind is on, that was refused, and nothing has changed.
    pub fn mark_unknown(&mut self, asked: Option<MessageKind>) {
        if let Mode::On(on) = self.mode
            && asked.is_none_or(|kind| kind == on)
        {
            self.mode = Mode::Unknown(on);
        }
    }

    /// Turns MSI on; returns the guest's pirq.
    ///
    /// # Errors
    /// [`RequestError::Message`], or what dom0's service answers.
    pub fn enable_msi(&mut self, ecam: &impl ConfigSpace, dom0: &mut impl Dom0) -> Result<u32, RequestError> {
        const KIND: MessageKind = MessageKind::Msi;
        let refuse = |refusal| Err(RequestError::Message(KIND, refusal));
        // Before anything is sent to dom0, which would refuse it too.
        if !self.offered {
            return refuse(MessageRefusal::SwitchedOff);
        }
        self.resolve_unknown(dom0, KIND)?;
        match self.mode {
            Mode::On(KIND) => return refuse(MessageRefusal::AlreadyOn),
            Mode::On(_) => return refuse(MessageRefusal::OtherKindOn),
            // Only the first: the others are resolved, or have failed above.
            Mode::Intx | Mode::Unconfirmed | Mode::Unknown(_) => {}
        }
        let Some(base) = self.msi else {
            return refuse(MessageRefusal::NoCapability);
        };
        // Not for its value: nothing is begun with a device that does not answer.
        message_control(ecam, base)?;
        if !self.is_awake(ecam)? {
            return refuse(MessageRefusal::Asleep);
        }
        self.mode = Mode::Unknown(KIND);
        let pirq = dom0.enable_msi(self.bdf)?;
        // Linux takes pirq 0 for a failure.
        if pirq == 0 {
            return Err(RequestError::ServiceNonsense);
        }
        self.mode = Mode::On(KIND);
        Ok(pirq)
    }

    /// Turns MSI-X on for `entries`; returns the guest's pirqs in the same order.
    ///
    /// # Errors
    /// [`RequestError::Message`], or what dom0's service answers.
    // Not inlined, it makes the image 64 bytes longer.
    #[inline(always)]
    pub fn enable_msix(
        &mut self,
        ecam: &impl ConfigSpace,
        dom0: &mut impl Dom0,
        entries: Result<&[MsixEntry], TooManyVectors>,
    ) -> Result<Vec<u16>, RequestError> {
        const KIND: MessageKind = MessageKind::Msix;
        let refuse = |refusal| Err(RequestError::Message(KIND, refusal));
        if !self.offered {
            return refuse(MessageRefusal::SwitchedOff);
        }
        let entries = match entries {
            Ok(entries) => entries,
            Err(TooManyVectors(count)) => return refuse(MessageRefusal::TooManyVectors(count)),
        };
        self.resolve_unknown(dom0, KIND)?;
        match self.mode {
            Mode::On(KIND) => return refuse(MessageRefusal::AlreadyOn),
            Mode::On(_) => return refuse(MessageRefusal::OtherKindOn),
            Mode::Intx | Mode::Unconfirmed | Mode::Unknown(_) => {}
        }
        // From here on in the order of xen-pciback's checks, so that a guest gets the same error for the same mistake. Xen
        // writes the vector table in the device's memory: an access that nobody claims can bring the host down (XSA-157).
        if !self.virtual_function && word(ecam, register::COMMAND)? & command::MEMORY == 0 {
            return refuse(MessageRefusal::MemoryDecodeOff);
        }
        let Some(base) = self.msix else {
            return refuse(MessageRefusal::NoCapability);
        };
        // The register holds the number of entries less one.
        let table = (message_control(ecam, base)? & msix::LAST_ENTRY) + 1;
        if !self.is_awake(ecam)? {
            return refuse(MessageRefusal::Asleep);
        }
        if let Err(refusal) = check_entries(entries, table) {
            return refuse(refusal);
        }
        self.mode = Mode::Unknown(KIND);
        let pirqs = dom0.enable_msix(self.bdf, entries)?;
        // The guest takes a pirq for each entry. Fewer, or a 0, would leave it with vectors that nothing arrives at.
        if pirqs.len() != entries.len() || pirqs.contains(&0) {
            return Err(RequestError::ServiceNonsense);
        }
        self.mode = Mode::On(KIND);
        Ok(pirqs)
    }

    /// Turns off whichever kind is on; returns that kind. Where nothing is on, nothing happens.
    ///
    /// A guest's `disable_msi` and `disable_msix` both come here: Linux clears its own flag before it asks, and then asks
    /// for the wrong kind (decision 8).
    ///
    /// # Errors
    /// What dom0's service answers, or that it was not asked. Whether the kind is on is unknown then. It does not count as on:
    /// Linux ignores the error, takes the kind for off, and asks for it again later.
    pub fn disable(&mut self, dom0: &mut impl Dom0) -> Result<Option<MessageKind>, RequestError> {
        let (Mode::On(kind) | Mode::Unknown(kind)) = self.mode else {
            return Ok(None);
        };
        self.mode = Mode::Unknown(kind);
        dom0.disable(self.bdf, kind)?;
        self.mode = Mode::Intx;
        Ok(Some(kind))
    }

    /// True if the device is in D0. In another state it answers no memory access, although COMMAND says that it decodes,
    /// so its vector table cannot be written (XSA-157).
    // Not inlined, it makes the image 128 bytes longer.
    #[inline(always)]
    fn is_awake(&self, ecam: &impl ConfigSpace) -> Result<bool, RequestError> {
        match self.power {
            Some(control) => Ok(word(ecam, control)? & power::STATE == 0),
            None => Ok(true),
        }
    }

    /// Turns off what may be on without the guest's knowledge, so that turning `kind` on starts from a known state.
    fn resolve_unknown(&mut self, dom0: &mut impl Dom0, kind: MessageKind) -> Result<(), RequestError> {
        if self.mode == Mode::Unconfirmed {
            // dom0 turns off whichever is on.
            self.mode = Mode::Unknown(kind);
        }
        if matches!(self.mode, Mode::Unknown(_)) {
            self.disable(dom0)?;
        }
        Ok(())
    }
}

fn message_control(ecam: &impl ConfigSpace, base: u16) -> Result<u16, RequestError> {
    word(ecam, base + msi::CONTROL)
}

/// Reads a register that has bits that always read 0. All-ones is then a device that does not answer.
fn word(ecam: &impl ConfigSpace, offset: u16) -> Result<u16, RequestError> {
    match ecam.read(offset, 2) as u16 {
        u16::MAX => Err(RequestError::DeviceSilent),
        value => Ok(value),
    }
}

/// Checks the table entries of a request against each other and a table of `table` entries.
fn check_entries(entries: &[MsixEntry], table: u16) -> Result<(), MessageRefusal> {
    if entries.is_empty() {
        return Err(MessageRefusal::NoVectors);
    }
    let mut rest = entries;
    while let [MsixEntry { entry, .. }, later @ ..] = rest {
        if *entry >= table {
            return Err(MessageRefusal::EntryPastTable { entry: *entry, table });
        }
        // Xen maps an entry twice without complaint, and gives two pirqs.
        if later.iter().any(|later| later.entry == *entry) {
            return Err(MessageRefusal::DuplicateEntry(*entry));
        }
        rest = later;
    }
    Ok(())
}
