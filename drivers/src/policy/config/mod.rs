//! Configuration space as a guest sees it: a rule for each register.
//!
//! The rules are data: [`header::TYPE_0`], [`header::TYPE_1`] and [`capability::POLICIES`]. Bytes that no table names read
//! what the device says. Writes to them are dropped and counted, unless the toolstack calls the device permissive or has a
//! quirk for them. [`VirtualConfig::read`] and [`VirtualConfig::write`] split accesses of any width over the registers.
//!
//! Nothing that the device says is trusted. A read costs nothing, a write to the device a round trip to dom0: a write
//! that would change nothing is answered here.

pub mod access;
pub mod bar;
pub mod capability;
pub mod command;
pub mod header;
pub mod register;
mod render;

pub use access::Access;
pub use render::render;

use super::dom0::Dom0;
use super::resources::Resources;
use crate::error::{MessageKind, RequestError, SetupError};
use crate::platform::ConfigSpace;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bar::BarWrite;
use capability::CapabilityKind;
use core::ops::Range;
use pci::bdf::Bdf;
use pci::registers::{header_type, power, register as at};
use register::{Read, Register, Write};
use xenbus::device::{Ids, Quirk};

/// PMCSR: PME status, which a written 1 clears.
const PME_STATUS: u16 = 0x8000;
/// PMCSR: what the data register shows.
const DATA_SELECT: u16 = 0x1e00;
/// PMC: there is a state D1, a state D2.
const POWER_STATES: [(u16, u16); 2] = [(1, 0x0200), (2, 0x0400)];
/// BIST: start.
const BIST_START: u32 = 0x40;

/// What became of a write.
///
/// Of a write over several registers, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// The rule does not let it through.
    Dropped,
    /// The stub took it in; the device did not have to change.
    Absorbed,
    /// The device has it.
    Forwarded,
}

/// A register, with where it lies in this function.
#[derive(Clone, Copy, Debug)]
struct PlacedRegister {
    span: Access,
    register: &'static Register,
}

/// One function's config space as a guest sees it.
#[derive(Debug)]
pub struct VirtualConfig {
    /// By offset, without overlap.
    registers: Vec<PlacedRegister>,
    /// Ranges of capabilities that no guest writes: neither a permissive one nor by a quirk.
    kept: Vec<Range<u16>>,
    resources: Resources,
    /// It is a bridge to other buses.
    bridge: bool,
    /// COMMAND as the guest last wrote it.
    command: u16,
    /// Which bits of the device's COMMAND follow the guest's.
    command_mask: command::CommandMask,
    /// Offsets of the capabilities.
    pm: Option<u16>,
    power: Option<u16>,
    msi: Option<u16>,
    msix: Option<u16>,
}

impl VirtualConfig {
    /// Checks that the function is the one that the toolstack means, and finds its registers by its capability lists.
    ///
    /// # Errors
    /// [`SetupError::DeviceSilent`], [`SetupError::WrongIds`], [`SetupError::HeaderType`],
    /// [`SetupError::QuirkTaken`].
    pub fn new(resources: Resources, ecam: &impl ConfigSpace) -> Result<Self, Box<SetupError>> {
        let bdf = resources.bdf;
        // The ids of a virtual function read all-ones (SR-IOV 1.1, section 3.4.1): its class tells that it is there.
        let ids = ecam.read(0, 4);
        let telling = if resources.virtual_function {
            ecam.read(at::REVISION, 4)
        } else {
            ids
        };
        if telling == u32::MAX {
            return Err(SetupError::DeviceSilent(bdf).into());
        }
        let found = Ids {
            vendor: ids as u16,
            device: (ids >> 16) as u16,
        };
        let expected = resources.ids;
        if found != expected && !(resources.virtual_function && ids == u32::MAX) {
            return Err(SetupError::WrongIds { bdf, expected, found }.into());
        }
        // Whether the device has other functions does not change the layout of this one's header.
        let header = ecam.read(at::HEADER_TYPE, 1) as u8 & !header_type::MULTIFUNCTION;
        let (bridge, header_table) = match header {
            header_type::DEVICE => (false, &header::TYPE_0[..]),
            header_type::BRIDGE => (true, &header::TYPE_1[..]),
            _ => return Err(SetupError::HeaderType { bdf, header }.into()),
        };

        let capability::Lists {
            found: capabilities,
            kept,
            power,
        } = capability::walk(ecam);
        let base = |kind| {
            let of_kind = capabilities.iter().find(|found| found.policy.kind == kind);
            of_kind.map(|found| found.base)
        };
        // Sorted once, so that an access finds its registers by bisection: reads are on the way of every request.
        let tables = capabilities.iter().map(|found| (found.base, found.registers));
        let mut registers: Vec<PlacedRegister> = Vec::new();
        for (base, table) in core::iter::once((0, header_table)).chain(tables) {
            for register in table {
                let span = register.span(base);
                let behind = |placed: &PlacedRegister| placed.span.offset() <= span.offset();
                registers.insert(
                    registers.partition_point(behind),
                    PlacedRegister { span, register },
                );
            }
        }

        // A quirk opens registers with the default rule, and bits that a permissive device has anyway: otherwise a user could open MSI or the BARs by
        // mistake, and the guard in dom0 would refuse the writes later, without a word at the export.
        for quirk in resources.quirks.as_slice() {
            let span = span_of(quirk);
            let taken = |placed: &&PlacedRegister| match placed.register.write {
                Write::Default => false,
                Write::Permissive(bits) => placed.span.overlay(0, span, quirk.mask()) & !u32::from(bits) != 0,
                _ => span.covered_by(placed.span) != 0,
            };
            let placed = registers.iter().find(taken);
            let whole = keeps(&kept, span).then_some("a capability that stays dom0's");
            if let Some(register) = placed.map(|placed| placed.register.name).or(whole) {
                return Err(SetupError::QuirkTaken {
                    bdf,
                    quirk: *quirk,
                    register,
                }
                .into());
            }
        }

        Ok(Self {
            registers,
            kept,
            command_mask: command::CommandMask {
                // A bridge's windows need both, whether it has BARs or not.
                decodable: if bridge {
                    command::DECODE
                } else {
                    resources.bars.decodable()
                },
                forwarded: if resources.permissive {
                    command::FROM_HARDWARE
                } else {
                    command::FORWARDED
                },
            },
            bridge,
            command: ecam.read(at::COMMAND, 2) as u16,
            pm: base(CapabilityKind::Pm),
            power,
            msi: base(CapabilityKind::Msi),
            msix: base(CapabilityKind::Msix),
            resources,
        })
    }

    /// What the toolstack says about the function.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// True if it is a PCI bridge.
    pub fn is_bridge(&self) -> bool {
        self.bridge
    }

    /// True if it is a bridge behind which the bus of `function` lies.
    pub fn leads_to(&self, ecam: &impl ConfigSpace, function: Bdf) -> bool {
        let bus = |offset| ecam.read(offset, 1);
        let behind = || bus(at::SECONDARY_BUS)..=bus(at::SUBORDINATE_BUS);
        self.bridge
            && self.resources.bdf.segment() == function.segment()
            && self.resources.bdf.bus() < function.bus()
            && behind().contains(&function.bus().into())
    }

    /// What a guest reads.
    ///
    /// The device's value, with the bytes of registers that read otherwise laid over it.
    pub fn read(&self, ecam: &impl ConfigSpace, access: Access) -> u32 {
        let mut value = ecam.read(access.offset(), access.width());
        for placed in &self.registers[self.touched(access)] {
            // Most registers read what was just read; another read could see another value of the device.
            if placed.register.read != Read::Hardware {
                value = access.overlay(value, placed.span, self.value(placed, ecam));
            }
        }
        value
    }

    /// Serves a guest's write.
    ///
    /// Each register that the write covers is served on its own; the first refusal is the answer. `dropped` is called
    /// with the offset of each register whose write is dropped.
    ///
    /// # Errors
    /// [`RequestError::Denied`], [`RequestError::MessageControl`] and [`RequestError::PowerState`] by a rule,
    /// [`RequestError::DeviceSilent`], or what dom0 answers.
    pub fn write(
        &mut self,
        ecam: &impl ConfigSpace,
        dom0: &mut impl Dom0,
        access: Access,
        value: u32,
        mut dropped: impl FnMut(u16),
    ) -> Result<Effect, RequestError> {
        let mut effect = Effect::Dropped;
        let mut refusal = None;
        let mut combine = |result: Result<Effect, RequestError>| match result {
            Ok(one) => effect = effect.max(one),
            Err(error) => refusal = refusal.or(Some(error)),
        };
        // The bits that no quirk and no rule has served yet. A quirk comes before a rule.
        let mut left = access.mask();
        for quirk in self.resources.quirks.as_slice() {
            let covered = access.covered_by(span_of(quirk));
            if covered != 0 {
                left &= !covered;
                combine(self.write_masked(ecam, dom0, quirk, access, value, &mut dropped));
            }
        }
        let mut unnamed = left;
        for index in self.touched(access) {
            let placed = self.registers[index];
            let covered = access.covered_by(placed.span);
            unnamed &= !covered;
            if placed.register.write != Write::Default {
                let free = placed.span.overlay(0, access, left);
                left &= !covered;
                // A quirk has served all that this access covers of the register.
                if free == 0 {
                    continue;
                }
                let result = self.write_register(&placed, ecam, dom0, access, value, free);
                if result == Ok(Effect::Dropped) {
                    dropped(placed.span.offset());
                }
                combine(result);
            } else if left & covered != 0 && !self.resources.permissive {
                dropped(placed.span.offset());
            }
        }
        if self.resources.permissive {
            for piece in access.pieces(left) {
                if keeps(&self.kept, piece) {
                    dropped(piece.offset());
                    continue;
                }
                // Also if it changes nothing: nobody knows what a write to an unknown register does.
                let result = dom0.conf_write(self.resources.bdf, piece, access.part(piece, value));
                combine(result.map(|()| Effect::Forwarded));
            }
        } else if unnamed != 0 {
            dropped(access.offset());
        }
        refusal.map_or(Ok(effect), Err)
    }

    /// What the guest has written and the device does not hold, as one word: COMMAND in the lower half, and in the upper
    /// half which BARs it probes.
    pub fn shadow(&self) -> u32 {
        u32::from(self.command) | u32::from(self.resources.bars.probes()) << 16
    }

    /// Restores what [`Self::shadow`] returned.
    pub fn set_shadow(&mut self, shadow: u32) {
        self.command = shadow as u16;
        self.resources.bars.set_probes((shadow >> 16) as u8);
    }

    /// Offset of the power management capability, also where the guest may not write it: the function may sleep all the
    /// same.
    pub fn power_capability(&self) -> Option<u16> {
        self.power
    }

    /// Offset of a MSI or MSI-X capability.
    pub fn message_capability(&self, kind: MessageKind) -> Option<u16> {
        match kind {
            MessageKind::Msi => self.msi,
            MessageKind::Msix => self.msix,
        }
    }

    /// The name of the register at `offset`, if it has a table.
    pub fn name_of(&self, offset: u16) -> Option<&'static str> {
        self.register_at(offset).map(|(_, register)| register.name)
    }

    /// The register at `offset`, if it has a table, and the bytes that it takes.
    pub fn register_at(&self, offset: u16) -> Option<(Access, &'static Register)> {
        let [placed, ..] = &self.registers[self.touched(Access::at(offset, 1))] else {
            return None;
        };
        Some((placed.span, placed.register))
    }

    /// True if the byte at `offset` is part of what neither a permissive guest nor one with a quirk writes.
    pub fn is_kept(&self, offset: u16) -> bool {
        keeps(&self.kept, Access::at(offset, 1))
    }

    /// Indices of the registers that `access` touches.
    fn touched(&self, access: Access) -> Range<usize> {
        let first = self
            .registers
            .partition_point(|placed| placed.span.end() <= access.offset());
        let count = self.registers[first..].partition_point(|placed| placed.span.offset() < access.end());
        first..first + count
    }

    /// What a guest reads from one register.
    fn value(&self, placed: &PlacedRegister, ecam: &impl ConfigSpace) -> u32 {
        let present = || ecam.read(placed.span.offset(), placed.span.width());
        match placed.register.read {
            Read::Hardware => present(),
            Read::HardwareWithout(bits) => present() & !bits,
            Read::VendorId => u32::from(self.resources.ids.vendor),
            Read::DeviceId => u32::from(self.resources.ids.device),
            Read::Command => u32::from(command::view(present() as u16, self.command)),
            Read::Bar(index) => self.resources.bars.read(index),
            // As a PC's firmware does, whatever the width of the GSI.
            Read::InterruptLine => self.resources.irq & 0xff,
            Read::InterruptPin if self.resources.intx => present(),
            Read::InterruptPin => 0,
        }
    }

    fn write_register(
        &mut self,
        placed: &PlacedRegister,
        ecam: &impl ConfigSpace,
        dom0: &mut impl Dom0,
        access: Access,
        value: u32,
        // The bits of the register that no quirk has served.
        free: u32,
    ) -> Result<Effect, RequestError> {
        let span = placed.span;
        let denied = RequestError::Denied {
            register: placed.register.name,
        };
        if matches!(placed.register.write, Write::Drop | Write::Default) {
            return Ok(Effect::Dropped);
        }
        // Bytes of the register that this access does not cover keep the value that the guest reads there.
        let old = self.value(placed, ecam);
        check_answers(ecam, span, old)?;
        let new = span.overlay(old, access, value);
        match placed.register.write {
            Write::Permissive(bits) => {
                let bits = if self.resources.permissive {
                    free & u32::from(bits)
                } else {
                    0
                };
                // The device's own value in all other bits. A guest that wanted more than it may have is counted.
                match self.change(dom0, span, old, old & !bits | new & bits)? {
                    Effect::Absorbed if old != new => Ok(Effect::Dropped),
                    effect => Ok(effect),
                }
            }
            Write::Forward => self.change(dom0, span, old, new),
            // As xen-pciback: nothing but the start bit may change.
            Write::Bist if old & !BIST_START == new & !BIST_START || new == BIST_START => {
                self.change(dom0, span, old, new)
            }
            Write::Default | Write::Drop | Write::Bist => Ok(Effect::Dropped),
            Write::Command => self.write_command(ecam, dom0, span, new as u16),
            Write::Bar(index) => {
                // What is really there: `old` is the size while the guest probes.
                let present = ecam.read(span.offset(), span.width());
                match self.resources.bars.write(index, new, present) {
                    BarWrite::Absorbed => Ok(Effect::Absorbed),
                    BarWrite::Restore(address) => self.change(dom0, span, present, address),
                }
            }
            Write::PowerControl => {
                // A bit that this access does not cover must not be written back as a 1 that clears it.
                let written = span.covered_by(access) as u16;
                self.write_power_control(ecam, dom0, span, new as u16, written)
            }
            // It would write the device's EEPROM, for all later owners.
            Write::VpdAddress if new as u16 & capability::VPD_WRITE != 0 => Err(denied),
            // Writing the address starts a read, even if it is the same address.
            Write::VpdAddress => dom0
                .conf_write(self.resources.bdf, span, new)
                .map(|()| Effect::Forwarded),
            // Linux writes the bits that the enable ops have set, once they are set: that succeeds.
            Write::MessageControl if new != old => Err(RequestError::MessageControl {
                register: placed.register.name,
            }),
            Write::MessageControl => Ok(Effect::Absorbed),
        }
    }

    fn write_command(
        &mut self,
        ecam: &impl ConfigSpace,
        dom0: &mut impl Dom0,
        span: Access,
        written: u16,
    ) -> Result<Effect, RequestError> {
        let read = || ecam.read(span.offset(), span.width()) as u16;
        let mut present = read();
        let mut effect = Effect::Absorbed;
        let enables = |bits: u16| bits & command::DECODE != 0;
        // By what the guest sees, not by the device: its decode is never turned off there.
        let enabled_anew = enables(written) && !enables(self.command);
        if enabled_anew || enables(command::target(present, written, self.command_mask) & !present) {
            // A device in D3 answers to no address, which can bring the host down as XSA-120 does; one that was in
            // D3 may have forgotten where it is, and must not answer at address 0.
            effect = self.wake(ecam, dom0)?.max(self.restore_bars(ecam, dom0)?);
            present = read();
        }
        // All-ones is no value of this register: nothing sound could be derived from it.
        if present == u16::MAX {
            return Err(RequestError::DeviceSilent);
        }
        let target = command::target(present, written, self.command_mask);
        effect = effect.max(self.change(dom0, span, u32::from(present), u32::from(target))?);
        self.command = written;
        Ok(effect)
    }

    /// Brings the function to D0. PME status is written as 0, which leaves it: a written 1 would clear it.
    fn wake(&self, ecam: &impl ConfigSpace, dom0: &mut impl Dom0) -> Result<Effect, RequestError> {
        let Some(pm) = self.pm else {
            return Ok(Effect::Absorbed);
        };
        let control = Access::at(pm + power::CONTROL, 2);
        let present = ecam.read(control.offset(), control.width()) as u16;
        if present & power::STATE == 0 || present == u16::MAX {
            return Ok(Effect::Absorbed);
        }
        let awake = present & !(power::STATE | PME_STATUS);
        dom0.conf_write(self.resources.bdf, control, u32::from(awake))?;
        Ok(Effect::Forwarded)
    }

    /// Restores the recorded addresses of BARs that hold others.
    fn restore_bars(&self, ecam: &impl ConfigSpace, dom0: &mut impl Dom0) -> Result<Effect, RequestError> {
        let mut effect = Effect::Absorbed;
        for placed in &self.registers {
            if let Write::Bar(index) = placed.register.write
                && let Some(address) = self.resources.bars.address(index)
            {
                let present = ecam.read(placed.span.offset(), placed.span.width());
                effect = effect.max(self.change(dom0, placed.span, present, address)?);
            }
        }
        Ok(effect)
    }

    fn write_power_control(
        &self,
        ecam: &impl ConfigSpace,
        dom0: &mut impl Dom0,
        span: Access,
        new: u16,
        written: u16,
    ) -> Result<Effect, RequestError> {
        let present = ecam.read(span.offset(), span.width()) as u16;
        if present == u16::MAX {
            return Err(RequestError::DeviceSilent);
        }
        let state = new & power::STATE;
        let capabilities = span.offset() - power::CONTROL + power::CAPABILITIES;
        // D0 and D3hot every function has; D1 and D2 have a bit each.
        let supported = ecam.read(capabilities, 2) as u16;
        let absent = |&(number, bit)| state == number && supported & bit == 0;
        if state != present & power::STATE && POWER_STATES.iter().any(absent) {
            return Err(RequestError::PowerState(state as u8));
        }
        let settable = power::STATE | DATA_SELECT;
        let kept = present & !(settable | PME_STATUS);
        let target = kept | new & settable | new & written & PME_STATUS;
        // A 1 in PME status changes something only where the device has one.
        let effective = target & !(PME_STATUS & !present);
        let unchanged = present & !PME_STATUS;
        // PME enable, which is in `kept`, stays dom0's: nobody would hear the event.
        self.change(dom0, span, u32::from(unchanged), u32::from(effective))
    }

    /// Writes the bits of a quirk's mask that an access covers; the other bits of the register keep their value.
    fn write_masked(
        &self,
        ecam: &impl ConfigSpace,
        dom0: &mut impl Dom0,
        quirk: &Quirk,
        access: Access,
        value: u32,
        mut dropped: impl FnMut(u16),
    ) -> Result<Effect, RequestError> {
        let span = span_of(quirk);
        let bits = quirk.mask() & span.covered_by(access);
        if bits == 0 {
            dropped(span.offset());
            return Ok(Effect::Dropped);
        }
        let present = ecam.read(span.offset(), span.width());
        check_answers(ecam, span, present)?;
        let written = span.overlay(present, access, value);
        // Also where nothing changes: the bits may be of those that a written 1 clears.
        dom0.conf_write(self.resources.bdf, span, present & !bits | written & bits)?;
        Ok(Effect::Forwarded)
    }

    /// Writes `new` to the device, unless `old`, which is there, is the same.
    fn change(&self, dom0: &mut impl Dom0, span: Access, old: u32, new: u32) -> Result<Effect, RequestError> {
        if old == new {
            return Ok(Effect::Absorbed);
        }
        dom0.conf_write(self.resources.bdf, span, new)
            .map(|()| Effect::Forwarded)
    }
}

/// True if bytes of an access are in one of these ranges, which begin at a multiple of four.
fn keeps(kept: &[Range<u16>], access: Access) -> bool {
    kept.iter()
        .any(|range| range.start < access.end() && access.offset() < range.end)
}

/// Refuses to go on with `present`, the value of a register, if it is all-ones because the device does not answer. One
/// register may hold all-ones; the class code never does.
fn check_answers(ecam: &impl ConfigSpace, span: Access, present: u32) -> Result<(), RequestError> {
    if present == span.mask() && ecam.read(at::REVISION, 4) == u32::MAX {
        return Err(RequestError::DeviceSilent);
    }
    Ok(())
}

const fn span_of(quirk: &Quirk) -> Access {
    Access::at(quirk.offset(), quirk.width())
}
