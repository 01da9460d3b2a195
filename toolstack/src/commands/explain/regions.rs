//! The bytes of a configuration space in parts that are alike: registers, and runs of bytes that no table names.

use super::model::{ByteModel, JudgementModel, WriteAnswer};
use super::names;
use crate::terms::Terms;
use drivers::policy::config::access::CONFIG_SIZE;
use drivers::policy::config::register::{Read, Register, Write};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use xenbus::device::Quirk;

/// A part of a configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Region {
    /// Its first byte.
    pub offset: u16,
    /// Number of its bytes.
    pub bytes: u16,
    /// Name of the register, if a table names it.
    pub register: Option<&'static str>,
    /// The capability that it lies in, or behind.
    pub capability: Option<&'static str>,
    /// True if the capability begins here.
    #[serde(skip)]
    pub begins_capability: bool,
    /// Whose it is.
    pub owner: ByteOwner,
    /// What a guest reads, in words.
    pub reads: String,
    /// What becomes of a guest's write, in words.
    pub writes: String,
    /// Why.
    pub why: String,
    /// Its bits, if it has four bytes at most.
    pub bits: Option<Bits>,
    /// Writes to it that the stub dropped and counted.
    pub dropped: u64,
    /// Writes to it that dom0 refused.
    pub refused: u64,
}

/// Whose bytes they are, in the sense of who decides what a guest's write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ByteOwner {
    /// Reads and writes go to the device.
    Device,
    /// A quirk gives bits of it to the guest.
    Quirk,
    /// Writes go to the device because it is permissive.
    Permissive,
    /// Some bits or values of a write go to the device.
    Filtered,
    /// The stub answers in the device's place.
    Virtual,
    /// Reads come from the device. A write that changes anything fails.
    Denied,
    /// Reads come from the device. Writes are dropped and counted, whatever the terms are: dom0 or Xen needs it.
    Kept,
    /// Reads come from the device. Writes are dropped and counted, unless the terms say otherwise.
    Dropped,
}

/// The bits of a register, each mask over all its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bits {
    /// What the device has.
    pub device: u32,
    /// What the guest reads.
    pub guest: u32,
    /// The bits that the guest reads from the device.
    pub from_device: u32,
    /// The bits that the guest can set in the device.
    pub can_set: u32,
    /// The bits that the guest can clear in the device.
    pub can_clear: u32,
    /// The bits that the guest can change in what it reads, but not in the device.
    pub kept_by_stub: u32,
    /// The bits that the guest could change in the device if it took the stub over: dom0 judges writes once more.
    pub stub_could: u32,
}

/// All kinds, in the order of a legend: kind, sign, and what it means.
pub const OWNERS: [(ByteOwner, &str, &str); 8] = [
    (ByteOwner::Device, "D", "reads and writes go to the device"),
    (ByteOwner::Quirk, "Q", "a quirk gives bits of it to the guest"),
    (
        ByteOwner::Permissive,
        "P",
        "writes go to the device because it is permissive",
    ),
    (
        ByteOwner::Filtered,
        "F",
        "some bits or values of a write go to the device",
    ),
    (ByteOwner::Virtual, "V", "the stub answers in the device's place"),
    (
        ByteOwner::Denied,
        "X",
        "reads come from the device; a write that changes anything fails",
    ),
    (
        ByteOwner::Kept,
        "K",
        "reads come from the device; writes are dropped and counted, whatever the terms are",
    ),
    (
        ByteOwner::Dropped,
        "·",
        "reads come from the device; writes are dropped and counted; terms can open it",
    ),
];

impl fmt::Display for ByteOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Device => "device",
            Self::Quirk => "quirk",
            Self::Permissive => "permissive",
            Self::Filtered => "filtered",
            Self::Virtual => "virtual",
            Self::Denied => "denied",
            Self::Kept => "kept",
            Self::Dropped => "dropped",
        })
    }
}

impl Region {
    /// The byte after the last one.
    pub fn end(&self) -> u16 {
        self.offset + self.bytes
    }

    /// Its name: that of its register, or else where it lies. How long most capabilities are is not known.
    pub fn name(&self) -> Cow<'static, str> {
        match (self.register, self.capability) {
            (Some(register), _) => register.into(),
            (None, Some(capability)) => format!("in or after {capability}").into(),
            (None, None) => "outside of capabilities".into(),
        }
    }

    /// The offsets, such as `0x004-0x005`.
    pub fn range(&self) -> String {
        match self.bytes {
            1 => format!("0x{:03x}", self.offset),
            _ => format!("0x{:03x}-0x{:03x}", self.offset, self.end() - 1),
        }
    }
}

/// Divides the space of a device that a guest has, or would have, on these terms.
pub fn divide(model: &mut JudgementModel, terms: &Terms) -> Vec<Region> {
    let bytes = model.bytes();
    let capabilities = names::capabilities(&model.device_bytes());
    let mut regions = Vec::new();
    let mut offset = 0;
    while offset < CONFIG_SIZE {
        let part = Part::at(offset, model, terms);
        let end = part.end(model, terms, &capabilities);
        let part_bytes = bytes
            .get(usize::from(offset)..usize::from(end))
            .unwrap_or_default();
        regions.push(part.describe(end, part_bytes, model, &capabilities));
        offset = end;
    }
    regions
}

/// What decides about the bytes from an offset on. Quirks come before registers.
struct Part {
    offset: u16,
    quirk: Option<Quirk>,
    /// The register's row of its table, and the byte after its last one.
    register: Option<(&'static Register, u16)>,
}

fn quirk_at(offset: u16, terms: &Terms) -> Option<Quirk> {
    let mut quirks = terms.quirks.as_slice().iter().copied();
    quirks.find(|quirk| (quirk.offset()..quirk.offset() + u16::from(quirk.width())).contains(&offset))
}

impl Part {
    fn at(offset: u16, model: &JudgementModel, terms: &Terms) -> Self {
        Self {
            offset,
            quirk: quirk_at(offset, terms),
            register: model
                .register_at(offset)
                .map(|(span, register)| (register, span.end())),
        }
    }

    /// The byte after the last one that is alike.
    fn end(&self, model: &JudgementModel, terms: &Terms, capabilities: &BTreeMap<u16, &'static str>) -> u16 {
        if let Some(quirk) = self.quirk {
            return quirk.offset() + u16::from(quirk.width());
        }
        let end = self.register.map_or(CONFIG_SIZE, |(_, end)| end);
        let differs = |&at: &u16| {
            quirk_at(at, terms).is_some()
                || self.register.is_none()
                    && (model.register_at(at).is_some()
                        || capabilities.contains_key(&at)
                        || model.is_kept(at) != model.is_kept(self.offset))
        };
        (self.offset + 1..end).find(differs).unwrap_or(end)
    }

    fn describe(
        &self,
        end: u16,
        bytes: &[ByteModel],
        model: &JudgementModel,
        capabilities: &BTreeMap<u16, &'static str>,
    ) -> Region {
        let register = self.register.map(|(register, _)| register);
        let capability = capabilities.range(..=self.offset).next_back();
        // A register with a rule of its own has that rule on any terms.
        let is_kept = match register.map(|register| register.write) {
            None | Some(Write::Default | Write::Permissive(_)) => model.is_kept(self.offset),
            Some(_) => true,
        };
        let owner = self.owner(bytes, is_kept);
        Region {
            offset: self.offset,
            bytes: end - self.offset,
            register: register.map(|register| register.name),
            // Extended space begins anew.
            capability: capability
                .filter(|(start, _)| {
                    self.offset < pci::registers::EXTENDED || **start >= pci::registers::EXTENDED
                })
                .map(|(_, name)| *name),
            begins_capability: capability.is_some_and(|(start, _)| *start == self.offset),
            owner,
            reads: register.map_or_else(|| "device".into(), |register| register.read.to_string()),
            writes: self.writes(owner),
            why: self.why(owner, is_kept).into(),
            bits: (bytes.len() <= 4).then(|| Bits::of(bytes)),
            dropped: 0,
            refused: 0,
        }
    }

    fn owner(&self, bytes: &[ByteModel], is_kept: bool) -> ByteOwner {
        let any = |mask: fn(&ByteModel) -> u8| bytes.iter().any(|byte| mask(byte) != 0);
        let all = |mask: fn(&ByteModel) -> u8| bytes.iter().all(|byte| mask(byte) == u8::MAX);
        let reads_device = any(|byte| byte.from_device);
        let answer = bytes.iter().map(|byte| byte.answer).max().unwrap_or_default();
        let writes_device = any(|byte| byte.can_set | byte.can_clear);
        let free = any(|byte| byte.can_set & byte.can_clear);
        let is_default = self
            .register
            .is_none_or(|(register, _)| matches!(register.write, Write::Default | Write::Permissive(_)));
        match () {
            () if self.quirk.is_some() && writes_device => ByteOwner::Quirk,
            () if writes_device && is_default => ByteOwner::Permissive,
            () if reads_device && all(|byte| byte.can_set & byte.can_clear) => ByteOwner::Device,
            // What the stub may only restore is not the guest's.
            () if free || writes_device && reads_device => ByteOwner::Filtered,
            () if !reads_device => ByteOwner::Virtual,
            () if answer == WriteAnswer::Denied => ByteOwner::Denied,
            () if answer == WriteAnswer::Dropped && is_kept => ByteOwner::Kept,
            () if answer == WriteAnswer::Dropped => ByteOwner::Dropped,
            () => ByteOwner::Virtual,
        }
    }

    fn writes(&self, owner: ByteOwner) -> String {
        if let Some(quirk) = self.quirk {
            return format!(
                "bits {:#x} forwarded, the others keep the device's value",
                quirk.mask()
            );
        }
        match (self.register.map(|(register, _)| register.write), owner) {
            (None | Some(Write::Default), ByteOwner::Permissive) => {
                "forwarded, even if it changes nothing".into()
            }
            (Some(Write::Permissive(bits)), ByteOwner::Permissive) => {
                format!("forwarded, for no more than {bits:#06x}")
            }
            (None | Some(Write::Default | Write::Permissive(_)), _) => "dropped, counted".into(),
            (Some(write), _) => write.to_string(),
        }
    }

    /// The reason for the rule that decides.
    fn why(&self, owner: ByteOwner, is_kept: bool) -> &'static str {
        if self.quirk.is_some() {
            return "the terms have a quirk for it";
        }
        let Some((register, _)) = self.register else {
            return match owner {
                ByteOwner::Permissive => "no table names it, and the terms are permissive",
                _ if is_kept => "dom0 or Xen needs this capability, so no terms give it away",
                _ => {
                    "no table names it, so nobody has judged what a write does; a quirk or permissive=1 opens it"
                }
            };
        };
        match register.write {
            Write::Default if owner == ByteOwner::Permissive => "the terms are permissive",
            Write::Default => "no rule lets a write through; a quirk or permissive=1 opens it",
            Write::Permissive(_) if owner == ByteOwner::Permissive => {
                "the terms are permissive; the other bits concern the bridges above, error reporting and resets"
            }
            Write::Permissive(_) => "some bits concern the device alone: permissive=1 opens those",
            Write::Drop => match register.read {
                Read::VendorId | Read::DeviceId => "dom0 knows the device, and the stub has checked it",
                Read::InterruptLine | Read::InterruptPin => {
                    "Xen routes the line, and dom0 decides who gets it"
                }
                _ => "it is Xen's or dom0's, so no terms give it away",
            },
            Write::Forward => "it concerns the device alone",
            Write::Bist => "xen-pciback allows the start of a self-test, and drivers rely on it",
            Write::Command => {
                "a device that stops decoding can bring the host down (XSA-120); parity, SERR and INTx stay dom0's"
            }
            Write::Bar(_) => {
                "another address would be another device's memory; the size is what dom0 has recorded"
            }
            Write::PowerControl => {
                "a driver may let its device sleep; nobody would hear a power management event"
            }
            Write::VpdAddress => "product data may be read; a write of it would outlast the guest",
            Write::MessageControl => {
                "interrupts go through Xen: the requests to turn MSI or MSI-X on and off change it (XSA-128, 157)"
            }
        }
    }
}

impl Bits {
    fn of(bytes: &[ByteModel]) -> Self {
        let gather = |mask: fn(&ByteModel) -> u8| {
            let bytes = bytes.iter().rev();
            bytes.fold(0, |value: u32, byte| value << 8 | u32::from(mask(byte)))
        };
        Self {
            device: gather(|byte| byte.device),
            guest: gather(|byte| byte.guest),
            from_device: gather(|byte| byte.from_device),
            can_set: gather(|byte| byte.can_set),
            can_clear: gather(|byte| byte.can_clear),
            kept_by_stub: gather(|byte| byte.kept_by_stub),
            stub_could: gather(|byte| byte.stub_could),
        }
    }
}
