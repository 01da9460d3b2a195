//! A PCI function in memory, and the guard that dom0's service keeps over it.

use drivers::error::{MessageKind, RequestError};
use drivers::platform::ConfigSpace;
use drivers::policy::config::Access;
use drivers::policy::config::bar::Bars;
use drivers::policy::dom0::Dom0;
use drivers::policy::resources::Resources;
use pci::bdf::Bdf;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use xenbus::device;
use xenbus::pciif::MsixEntry;

pub const VPD: u16 = 0x40;
pub const MSIX: u16 = 0xa0;
pub const PM: u16 = 0xc8;
pub const MSI: u16 = 0xd0;
pub const PCIE: u16 = 0xe0;
/// Entries in the MSI-X table.
pub const TABLE: u16 = 5;
/// GSI of the INTx line.
pub const IRQ: u32 = 22;

/// `bars-N` of the function, as the toolstack writes it.
pub const BARS: &str =
    "feb80000,20000,0;feba0000,20000,0;c040,20,1;febe0000,4000,0;0,0,0;0,0,0;feb00000,40000,0";

/// A network card: e1000e's header and capabilities. Clones are the same card.
#[derive(Clone, Debug)]
pub struct Device(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    /// What the service was asked to write: offset, width, value.
    writes: Vec<(u16, u8, u32)>,
    mode: Option<MessageKind>,
    next_pirq: u16,
    /// What the service answers to the next requests instead of doing them.
    answer: Option<RequestError>,
    /// The service does its work, and its answers come too late.
    late: bool,
    /// Registers besides the policy's that the service lets through: a user's quirks, or all of them.
    let_through: Vec<(u16, u8)>,
    permissive: bool,
    /// It decodes whatever its COMMAND says.
    decodes: bool,
}

impl Device {
    fn blank() -> Self {
        Self(Rc::new(RefCell::new(State {
            bytes: vec![0; 4096],
            writes: Vec::new(),
            mode: None,
            next_pirq: 55,
            answer: None,
            late: false,
            let_through: Vec::new(),
            permissive: false,
            decodes: false,
        })))
    }

    /// A bridge from its bus to buses 2 and 3, with a BAR and MSI.
    pub fn bridge() -> Self {
        let device = Self::blank();
        for (offset, width, value) in [
            (0x00, 4, 0x0001_1b36),
            (0x04, 4, 0x0010_0003),
            (0x08, 4, 0x0604_0000),
            (0x0e, 1, 0x01),
            (0x10, 4, 0xfeb8_0000),
            (0x18, 4, 0x0003_0200),
            (0x1c, 2, 0xc1c1),
            (0x20, 4, 0xfe90_fe80),
            (0x34, 1, u32::from(MSI)),
            (0x38, 4, 0xfeb0_0000),
            (0x3c, 2, 0x010b),
            (MSI, 4, 0x0080_0005),
        ] {
            device.poke(offset, width, value);
        }
        device
    }

    /// It is a virtual function, and its physical one decodes.
    pub fn decode_by_another(&self) {
        self.0.borrow_mut().decodes = true;
    }

    /// The service lets writes of this register through, or of all that no rule is about.
    pub fn let_through(&self, register: Option<(u16, u8)>) {
        let mut state = self.0.borrow_mut();
        state.permissive |= register.is_none();
        state.let_through.extend(register);
    }

    pub fn e1000e() -> Self {
        let device = Self::blank();
        for (offset, width, value) in [
            (0x00, 4, 0x10d3_8086),
            (0x04, 4, 0x0010_0003),
            (0x08, 4, 0x0200_0001),
            (0x10, 4, 0xfeb8_0000),
            (0x14, 4, 0xfeba_0000),
            (0x18, 4, 0xc041),
            (0x1c, 4, 0xfebe_0000),
            (0x2c, 4, 0x0000_8086),
            (0x30, 4, 0xfeb0_0000),
            (0x34, 1, u32::from(PM)),
            (0x3c, 2, 0x010b),
            (PM, 4, 0xc823_d001),
            (MSI, 4, 0x0080_e005),
            (PCIE, 4, 0x0001_a010),
            (MSIX, 4, 0x0004_4011),
            (MSIX + 4, 4, 0x3),
            (MSIX + 8, 4, 0x2003),
            (VPD, 4, 0x8000_0003),
            (0x100, 4, 0x1402_0001),
        ] {
            device.poke(offset, width, value);
        }
        device
    }

    pub fn resources(bdf: &str) -> Resources {
        Resources {
            bdf: bdf.parse().unwrap(),
            ids: "8086:10d3".parse().unwrap(),
            ecam: 0xb0028,
            bars: Bars::new(&BARS.parse::<device::Bars>().unwrap()).unwrap(),
            irq: IRQ,
            intx: true,
            permissive: false,
            quirks: device::Quirks::default(),
            msi: true,
            virtual_function: false,
        }
    }

    /// Changes the device behind everybody's back.
    pub fn poke(&self, offset: u16, width: u8, value: u32) {
        let at = usize::from(offset);
        self.0.borrow_mut().bytes[at..at + usize::from(width)]
            .copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
    }

    pub fn fill(&self, byte: u8) {
        self.0.borrow_mut().bytes.fill(byte);
    }

    pub fn word(&self, offset: u16) -> u16 {
        self.read(offset, 2) as u16
    }

    /// What the service has been asked to write since the last call.
    pub fn take_writes(&self) -> Vec<(u16, u8, u32)> {
        std::mem::take(&mut self.0.borrow_mut().writes)
    }

    pub fn mode(&self) -> Option<MessageKind> {
        self.0.borrow().mode
    }

    /// From now on the service answers this; `None`: it does its work again.
    pub fn answer_with(&self, answer: Option<RequestError>) {
        self.0.borrow_mut().answer = answer;
    }

    /// From now on the service does its work, and its answers are lost; or they come again.
    pub fn lose_answers(&self, lose: bool) {
        self.0.borrow_mut().late = lose;
    }

    /// A write, as the service carries it out: after a check that nothing gets past the stub's policy.
    ///
    /// # Panics
    /// If the stub let through what it must not.
    pub fn guarded_write(&self, offset: u16, width: u8, value: u32) {
        let old = self.read(offset, width);
        let changed = old ^ value;
        let (let_through, permissive) = {
            let state = self.0.borrow();
            (state.let_through.contains(&(offset, width)), state.permissive)
        };
        match (offset, width) {
            _ if let_through => {}
            (0x04, 2) => {
                assert_eq!(old & 3 & !value, 0, "decode turned off: {old:#x} -> {value:#x}");
                assert_eq!(
                    changed & !0x02bf,
                    0,
                    "COMMAND beyond the mask: {old:#x} -> {value:#x}"
                );
            }
            (0x0c | 0x0f, 1) => {}
            (0x10 | 0x14 | 0x18 | 0x1c, 4) => {
                let recorded = Self::e1000e().read(offset, 4);
                assert_eq!(
                    value, recorded,
                    "BAR at {offset:#x} written with another value than its own"
                );
            }
            (at, 2) if at == PM + 4 => {
                assert_eq!(
                    changed & !0x9e03,
                    0,
                    "PMCSR beyond the mask: {old:#x} -> {value:#x}"
                );
            }
            (at, 2) if at == VPD + 2 => assert_eq!(value & 0x8000, 0, "VPD write started"),
            (at, 2) if permissive && at == PCIE + 8 => {
                assert_eq!(
                    changed & !0x7b10,
                    0,
                    "Device Control beyond the mask: {old:#x} -> {value:#x}"
                );
            }
            (at, width) if permissive => {
                let kept = [
                    0..4,
                    0x3c..0x3e,
                    MSI..MSI + 14,
                    MSIX..MSIX + 12,
                    PCIE + 8..PCIE + 10,
                    0x100..0x13c,
                ];
                let end = at + u16::from(width);
                let touched = kept.iter().find(|range| at < range.end && range.start < end);
                assert!(
                    touched.is_none(),
                    "{at:#x}: a register of Xen's or dom0's written"
                );
            }
            _ => panic!("write of {value:#x} to {offset:#x}, {width} bytes: no register for that"),
        }
        self.0.borrow_mut().writes.push((offset, width, value));
        let cleared = if offset == PM + 4 { value & old & 0x8000 } else { 0 };
        let kept = if offset == PM + 4 {
            old & 0x8000
        } else {
            value & 0x8000
        };
        self.poke(offset, width, value & !0x8000 | kept & !cleared);
    }

    pub fn set_messages(&self, kind: MessageKind, on: bool) {
        let before = self.mode();
        assert!(!on || before.is_none(), "{kind} turned on while {before:?} is");
        assert!(
            !on || self.word(PM + 4) & 3 == 0,
            "{kind} turned on while the device sleeps"
        );
        let (base, bit) = match kind {
            MessageKind::Msi => (MSI, 0x0001),
            MessageKind::Msix => (MSIX, 0x8000),
        };
        let control = self.word(base + 2);
        let control = if on { control | bit } else { control & !bit };
        self.poke(base + 2, 2, control.into());
        self.0.borrow_mut().mode = on.then_some(kind);
    }

    pub fn next_pirq(&self) -> u16 {
        let mut state = self.0.borrow_mut();
        state.next_pirq -= 1;
        state.next_pirq + 1
    }

    pub fn map_entries(&self, entries: &[MsixEntry]) -> Vec<u16> {
        let mut seen: Vec<u16> = Vec::new();
        for entry in entries {
            assert!(entry.entry < TABLE, "entry {} past the table", entry.entry);
            assert!(!seen.contains(&entry.entry), "entry {} mapped twice", entry.entry);
            seen.push(entry.entry);
        }
        let decodes = self.word(4) & 2 != 0 || self.0.borrow().decodes;
        assert!(decodes, "MSI-X without memory decode");
        self.set_messages(MessageKind::Msix, true);
        self.0.borrow_mut().next_pirq = 55;
        entries.iter().map(|_| self.next_pirq()).collect()
    }

    /// Does a request as the service would at present.
    fn served<R>(&self, work: impl FnOnce(&Self) -> R) -> Result<R, RequestError> {
        if let Some(error) = self.0.borrow().answer {
            return Err(error);
        }
        let result = work(self);
        if self.0.borrow().late {
            return Err(RequestError::ServiceSilent(Duration::from_millis(1500)));
        }
        Ok(result)
    }
}

impl ConfigSpace for Device {
    fn read(&self, offset: u16, width: u8) -> u32 {
        assert!(
            matches!(width, 1 | 2 | 4) && offset.is_multiple_of(width.into()) && offset < 4096,
            "unsound read of {width} bytes at {offset:#x}"
        );
        let state = self.0.borrow();
        let mut value = [0; 4];
        let at = usize::from(offset);
        value[..usize::from(width)].copy_from_slice(&state.bytes[at..at + usize::from(width)]);
        u32::from_le_bytes(value)
    }
}

/// The service of a stub that has this device alone: the address is not looked at.
impl Dom0 for Device {
    fn conf_write(&mut self, _: Bdf, access: Access, value: u32) -> Result<(), RequestError> {
        self.served(|device| device.guarded_write(access.offset(), access.width(), value))
    }

    fn enable_msi(&mut self, _: Bdf) -> Result<u32, RequestError> {
        self.served(|device| {
            device.set_messages(MessageKind::Msi, true);
            55
        })
    }

    fn enable_msix(&mut self, _: Bdf, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        self.served(|device| device.map_entries(entries))
    }

    fn disable(&mut self, _: Bdf, _: MessageKind) -> Result<(), RequestError> {
        self.served(|device| {
            if let Some(kind) = device.mode() {
                device.set_messages(kind, false);
            }
        })
    }
}

/// Dom0's service, called directly.
#[derive(Debug, Default)]
pub struct DirectDom0(pub BTreeMap<Bdf, Device>);

impl DirectDom0 {
    fn device(&mut self, function: Bdf) -> &mut Device {
        self.0.get_mut(&function).expect("a device of this stub")
    }
}

impl Dom0 for DirectDom0 {
    fn conf_write(&mut self, function: Bdf, access: Access, value: u32) -> Result<(), RequestError> {
        self.device(function).conf_write(function, access, value)
    }

    fn enable_msi(&mut self, function: Bdf) -> Result<u32, RequestError> {
        self.device(function).enable_msi(function)
    }

    fn enable_msix(&mut self, function: Bdf, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        self.device(function).enable_msix(function, entries)
    }

    fn disable(&mut self, function: Bdf, kind: MessageKind) -> Result<(), RequestError> {
        self.device(function).disable(function, kind)
    }
}
