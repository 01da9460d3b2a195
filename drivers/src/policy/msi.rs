//! MSI and MSI-X of one function: when a guest may turn them on, and how they are turned off.
//!
//! The state follows dom0's answers. Where an answer is lost, the state is unknown, and the next request starts by turning
//! off whatever may be on.

use super::config::VirtualConfig;
use super::dom0::Dom0;
use crate::error::{MessageKind, MessageRefusal, RequestError};
use crate::platform::ConfigSpace;
use alloc::vec::Vec;
use pci::bdf::Bdf;
use pci::registers::{command, msi, msix, power, register};
use xenbus::pciif::{MAX_VECTORS, MsixEntry, TooManyVectors};

/// Which interrupts the device sends, as far as the stub knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its INTx line, or nothing.
    Intx,
    /// MSI or MSI-X.
    On(MessageKind),
    /// No answer came to a request to turn this kind on or off: it may be either.
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
            .unwrap_or(Mode::Intx);
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

    /// Takes note that a request to turn `kind` on was under way when the stub failed, and is served again. Nobody knows
    /// what it did the first time, unless the other kind is on: then it was refused.
    pub fn mark_unknown(&mut self, kind: MessageKind) {
        if !matches!(self.mode, Mode::On(on) if on != kind) {
            self.mode = Mode::Unknown(kind);
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
        self.resolve_unknown(dom0)?;
        match self.mode {
            Mode::On(KIND) => return refuse(MessageRefusal::AlreadyOn),
            Mode::On(_) => return refuse(MessageRefusal::OtherKindOn),
            // Not unknown: that is resolved, or has failed above.
            Mode::Intx | Mode::Unknown(_) => {}
        }
        let Some(base) = self.msi else {
            return refuse(MessageRefusal::NoCapability);
        };
        // Not for its value: nothing is begun with a device that does not answer.
        message_control(ecam, base)?;
        if !self.is_awake(ecam)? {
            return refuse(MessageRefusal::Asleep);
        }
        let answer = match dom0.enable_msi(self.bdf) {
            // Linux takes pirq 0 for a failure.
            Ok(0) => Err(RequestError::ServiceNonsense),
            answer => answer,
        };
        self.update_mode(KIND, answer)
    }

    /// Turns MSI-X on for `entries`; returns the guest's pirqs in the same order.
    ///
    /// # Errors
    /// [`RequestError::Message`], or what dom0's service answers.
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
        self.resolve_unknown(dom0)?;
        match self.mode {
            Mode::On(KIND) => return refuse(MessageRefusal::AlreadyOn),
            Mode::On(_) => return refuse(MessageRefusal::OtherKindOn),
            Mode::Intx | Mode::Unknown(_) => {}
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
        let answer = match dom0.enable_msix(self.bdf, entries) {
            // The guest takes a pirq for each entry. Fewer, or a 0, would leave it with vectors that nothing arrives at.
            Ok(pirqs) if pirqs.len() != entries.len() || pirqs.contains(&0) => {
                Err(RequestError::ServiceNonsense)
            }
            answer => answer,
        };
        self.update_mode(KIND, answer)
    }

    /// Turns off whichever kind is on; returns that kind. Where nothing is on, nothing happens.
    ///
    /// A guest's `disable_msi` and `disable_msix` both come here: Linux clears its own flag before it asks, and then asks
    /// for the wrong kind (decision 8).
    ///
    /// # Errors
    /// What dom0's service answers; the kind then counts as on, or as unknown if the answer was lost.
    pub fn disable(&mut self, dom0: &mut impl Dom0) -> Result<Option<MessageKind>, RequestError> {
        let (Mode::On(kind) | Mode::Unknown(kind)) = self.mode else {
            return Ok(None);
        };
        match dom0.disable(self.bdf, kind) {
            Ok(()) => {
                self.mode = Mode::Intx;
                Ok(Some(kind))
            }
            Err(error) => {
                if error.is_outcome_unknown() {
                    self.mode = Mode::Unknown(kind);
                }
                Err(error)
            }
        }
    }

    /// True if the device is in D0. In another state it answers no memory access, although COMMAND says that it decodes,
    /// so its vector table cannot be written (XSA-157).
    fn is_awake(&self, ecam: &impl ConfigSpace) -> Result<bool, RequestError> {
        match self.power {
            Some(control) => Ok(word(ecam, control)? & power::STATE == 0),
            None => Ok(true),
        }
    }

    /// Turns off what may be on since an answer was lost, so that turning on starts from a known state.
    fn resolve_unknown(&mut self, dom0: &mut impl Dom0) -> Result<(), RequestError> {
        if matches!(self.mode, Mode::Unknown(_)) {
            self.disable(dom0)?;
        }
        Ok(())
    }

    /// Sets the mode by the answer to turning `kind` on; returns the answer.
    fn update_mode<R>(
        &mut self,
        kind: MessageKind,
        answer: Result<R, RequestError>,
    ) -> Result<R, RequestError> {
        match &answer {
            Ok(_) => self.mode = Mode::On(kind),
            Err(error) if error.is_outcome_unknown() => self.mode = Mode::Unknown(kind),
            // dom0 turns on all or nothing: a refusal leaves the mode as it was.
            Err(_) => {}
        }
        answer
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
    for (index, &MsixEntry { entry, .. }) in entries.iter().enumerate().take(MAX_VECTORS) {
        if entry >= table {
            return Err(MessageRefusal::EntryPastTable { entry, table });
        }
        // Xen maps an entry twice without complaint, and gives two pirqs.
        if entries[..index].iter().any(|earlier| earlier.entry == entry) {
            return Err(MessageRefusal::DuplicateEntry(entry));
        }
    }
    Ok(())
}
