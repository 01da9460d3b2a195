//! Both judgements on one device, as a model that can be asked.
//!
//! Nothing here knows a rule. The stub's policy, the crate `drivers`, gets accesses of a guest to a copy of the configuration
//! space. What it would write to the device goes to dom0's guard, and from there into the copy. So whatever a byte does in
//! this model, it does for a guest. The service itself must not use that crate: its judgement is to hold against a stub that
//! was taken over.

use crate::config_space::capabilities::Capabilities;
use crate::function::guard::Guard;
use crate::records::Device;
use drivers::error::{MessageKind, RequestError, SetupError};
use drivers::platform::ConfigSpace;
use drivers::policy::config::access::CONFIG_SIZE;
use drivers::policy::config::bar::Bars;
use drivers::policy::config::register::Register;
use drivers::policy::config::{Access, Effect, VirtualConfig};
use drivers::policy::dom0::Dom0;
use drivers::policy::resources::Resources;
use pci::bdf::Bdf;
use std::cell::RefCell;
use thiserror::Error;
use xenbus::pciif::{MsixEntry, OpError};

/// Why there is no model of a device.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A region that no base address register can hold.
    #[error("the regions of {bdf} in sysfs do not fit base address registers: a stub would refuse it")]
    Regions {
        /// The device.
        bdf: Bdf,
    },
    /// The stub would refuse the device.
    #[error("a stub would refuse the device: {0}")]
    Refused(Box<SetupError>),
}

/// What may become of one byte of configuration space. Each mask has a bit for each bit of the byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteModel {
    /// What the device has.
    pub device: u8,
    /// What the guest reads.
    pub guest: u8,
    /// The bits that the guest reads from the device.
    pub from_device: u8,
    /// The bits that the guest can set in the device.
    pub can_set: u8,
    /// The bits that the guest can clear in the device.
    pub can_clear: u8,
    /// The bits that the guest can change in what it reads, but not in the device.
    pub kept_by_stub: u8,
    /// The bits that a stub could change which its guest has taken over: dom0's guard lets them pass.
    pub stub_could: u8,
    /// The answer to writes that change nothing.
    pub answer: WriteAnswer,
}

/// How a write is answered that changes nothing in the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteAnswer {
    /// The write succeeds, and what the guest reads may change.
    #[default]
    Taken,
    /// The write succeeds, changes nothing, and is counted.
    Dropped,
    /// The write fails.
    Denied,
}

/// A device as the stub and dom0's guard see it.
#[derive(Debug)]
pub struct JudgementModel {
    config: VirtualConfig,
    guard: Guard,
    card: Card,
}

/// A copy of a configuration space.
#[derive(Debug)]
struct Card(RefCell<Vec<u8>>);

impl Card {
    fn byte(&self, offset: u16) -> u8 {
        self.0.borrow().get(usize::from(offset)).copied().unwrap_or(0xff)
    }

    fn put(&self, offset: u16, width: u8, value: u32) {
        let bytes = value.to_le_bytes();
        let mut card = self.0.borrow_mut();
        let place = card.iter_mut().skip(offset.into()).take(width.into());
        place.zip(bytes).for_each(|(to, from)| *to = from);
    }
}

impl ConfigSpace for Card {
    fn read(&self, offset: u16, width: u8) -> u32 {
        let bytes = (0..width.into()).rev();
        bytes.fold(0, |value, byte| value << 8 | u32::from(self.byte(offset + byte)))
    }
}

/// Dom0's guard before the copy.
struct Guarded<'a> {
    guard: &'a Guard,
    card: &'a Card,
    /// What was written last: offset, width and value.
    written: Option<(u16, u8, u32)>,
}

impl Dom0 for Guarded<'_> {
    fn conf_write(&mut self, _: Bdf, access: Access, value: u32) -> Result<(), RequestError> {
        let (offset, width) = (access.offset(), access.width());
        let rule = self.guard.rule(offset, width);
        let judged = rule.and_then(|rule| rule.judge(value, self.card.read(offset, width)));
        judged.map_err(|_| RequestError::ServiceRefused(OpError::AccessDenied))?;
        self.card.put(offset, width, value);
        self.written = Some((offset, width, value));
        Ok(())
    }

    // Only writes are asked for here.
    fn enable_msi(&mut self, _: Bdf) -> Result<u32, RequestError> {
        Err(RequestError::ServiceAbsent)
    }

    fn enable_msix(&mut self, _: Bdf, _: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        Err(RequestError::ServiceAbsent)
    }

    fn disable(&mut self, _: Bdf, _: MessageKind) -> Result<(), RequestError> {
        Err(RequestError::ServiceAbsent)
    }
}

impl JudgementModel {
    /// A model of a device as it is recorded for a guest, with its configuration space as it is now. What lies beyond the
    /// bytes of `config` reads all-ones.
    pub fn new(device: &Device, config: &[u8]) -> Result<Self, ModelError> {
        let bdf = device.bdf;
        let virtual_function = device.physical.is_some();
        let bars = Bars::new(&device.bars).ok_or(ModelError::Regions { bdf })?;
        let resources = Resources {
            bdf,
            ids: device.ids,
            ecam: device.ecam,
            bars: if virtual_function {
                bars.of_virtual_function()
            } else {
                bars
            },
            irq: device.gsi.unwrap_or(0),
            intx: device.line_offered,
            permissive: device.terms.permissive,
            quirks: device.terms.quirks.clone(),
            msi: device.terms.msi.is_on(),
            virtual_function,
        };
        let mut bytes = config.to_vec();
        bytes.resize(CONFIG_SIZE.into(), 0xff);
        let guard = Guard::new(&device.header, &Capabilities::find(&bytes), &device.terms);
        let card = Card(RefCell::new(bytes));
        let config = VirtualConfig::new(resources, &card).map_err(ModelError::Refused)?;
        Ok(Self { config, guard, card })
    }

    /// The register at an offset, if a table of the policy names it, and the bytes that it takes.
    pub fn register_at(&self, offset: u16) -> Option<(Access, &'static Register)> {
        self.config.register_at(offset)
    }

    /// True if no terms give the byte at an offset to a guest.
    pub fn is_kept(&self, offset: u16) -> bool {
        self.config.is_kept(offset)
    }

    /// A copy of the device's bytes.
    pub fn device_bytes(&self) -> Vec<u8> {
        self.card.0.borrow().clone()
    }

    /// Finds out about all bytes, by trying.
    pub fn bytes(&mut self) -> Vec<ByteModel> {
        let mut bytes: Vec<ByteModel> = (0..CONFIG_SIZE).map(|offset| self.look_at(offset)).collect();
        self.ask_guard(&mut bytes);
        for offset in 0..CONFIG_SIZE {
            for bit in 0..8 {
                for present in [false, true] {
                    self.try_bit(&mut bytes, offset, 1 << bit, present);
                }
            }
        }
        // Some registers go by their whole value: a base address is probed by all-ones, a power state has two bits.
        for width in [2, 4] {
            for offset in (0..CONFIG_SIZE).step_by(usize::from(width)) {
                for value in [0, u32::MAX] {
                    self.try_whole(&mut bytes, offset, width, value);
                }
            }
        }
        bytes
    }

    /// What is read at an offset.
    fn look_at(&self, offset: u16) -> ByteModel {
        let device = self.card.byte(offset);
        let guest = self.read(offset);
        self.card.put(offset, 1, u32::from(!device));
        let from_device = guest ^ self.read(offset);
        self.card.put(offset, 1, device.into());
        ByteModel {
            device,
            guest,
            from_device,
            ..ByteModel::default()
        }
    }

    fn read(&self, offset: u16) -> u8 {
        let access = Access::new(offset.into(), 1);
        // Any offset below 4096 is sound for one byte.
        access.map_or(0xff, |access| self.config.read(&self.card, access) as u8)
    }

    /// A guest tries to change one bit that is `present` in the device.
    fn try_bit(&mut self, bytes: &mut [ByteModel], offset: u16, bit: u8, present: bool) {
        let device = self.card.byte(offset);
        let with = |on: bool, byte: u8| if on { byte | bit } else { byte & !bit };
        self.card.put(offset, 1, with(present, device).into());
        let read = self.read(offset);
        self.attempt(bytes, offset, 1, with(!present, read).into(), bit.into());
        if present {
            self.attempt(bytes, offset, 1, with(true, read).into(), bit.into());
        }
        self.card.put(offset, 1, device.into());
    }

    /// A guest writes a value to some bytes at once.
    fn try_whole(&mut self, bytes: &mut [ByteModel], offset: u16, width: u8, value: u32) {
        self.attempt(bytes, offset, width, value, u32::MAX);
    }

    /// Writes as a guest does, notes what became of `bits`, and undoes it.
    fn attempt(&mut self, bytes: &mut [ByteModel], offset: u16, width: u8, wanted: u32, bits: u32) {
        let Ok(access) = Access::new(offset.into(), width.into()) else {
            return;
        };
        let (shadow, device) = (self.config.shadow(), self.card.0.borrow().clone());
        let before = self.config.read(&self.card, access);
        let mut guarded = Guarded {
            guard: &self.guard,
            card: &self.card,
            written: None,
        };
        let result = self
            .config
            .write(&self.card, &mut guarded, access, wanted, |_| {});
        let written = guarded.written;
        let after = self.config.read(&self.card, access);
        let answer = match result {
            Err(_) => WriteAnswer::Denied,
            Ok(Effect::Dropped) => WriteAnswer::Dropped,
            Ok(Effect::Absorbed | Effect::Forwarded) => WriteAnswer::Taken,
        };
        for (index, at) in (offset..offset + u16::from(width)).enumerate() {
            let part = |value: u32| (value >> (8 * index)) as u8;
            let (old, new) = (
                device.get(usize::from(at)).copied().unwrap_or(0xff),
                self.card.byte(at),
            );
            let Some(byte) = bytes.get_mut(usize::from(at)) else {
                continue;
            };
            byte.can_set |= new & !old & part(bits);
            byte.can_clear |= old & !new & part(bits);
            if let Some((start, wide, value)) = written.filter(|_| wanted == before)
                && (start..start + u16::from(wide)).contains(&at)
            {
                // The model has no bits that a written 1 clears. One that goes to the device though it changes nothing is
                // written for that; what is not for a guest is written back as it was.
                let same = (value >> (8 * (at - start))) as u8 & old & new;
                byte.can_clear |= same & part(bits) & byte.stub_could;
            }
            if old == new {
                byte.kept_by_stub |= part(before ^ after) & part(bits);
                // A write over several registers has one answer, which need not be this one's.
                if width == 1 {
                    byte.answer = byte.answer.max(answer);
                }
            }
        }
        *self.card.0.borrow_mut() = device;
        self.config.set_shadow(shadow);
    }

    /// Asks dom0's guard alone, in each width.
    fn ask_guard(&self, bytes: &mut [ByteModel]) {
        for width in [1_u8, 2, 4] {
            for offset in (0..CONFIG_SIZE).step_by(width.into()) {
                let Ok(rule) = self.guard.rule(offset, width) else {
                    continue;
                };
                let present = self.card.read(offset, width);
                for bit in 0..8 * u32::from(width) {
                    let flipped = 1 << bit;
                    // Either way: some bits may be set and never cleared.
                    let passes = [(present, present ^ flipped), (present ^ flipped, present)]
                        .into_iter()
                        .any(|(old, new)| rule.judge(new, old).is_ok());
                    let at = usize::from(offset) + bit as usize / 8;
                    if let Some(byte) = bytes.get_mut(at).filter(|_| passes) {
                        byte.stub_could |= 1 << (bit % 8);
                    }
                }
            }
        }
    }
}
