//! The two walls against each other: the stub's policy before dom0's guard, on devices that no one would build.
//!
//! A device is made up from a seed: capabilities at the edges of their space, over each other, in circles, more than
//! once; registers of zeros, ones and anything; a header of a device or of a bridge; any terms. Then a guest sends all
//! kinds of accesses and MSI requests. The stub must let nothing through that the guard refuses. A third implementation
//! of the same lists, written for this test alone, says which bytes no write may reach.
//!
//! A failure prints its seed. `WALLS_SEED=N` repeats that device. `WALLS_DEVICES=N` sets the number of devices.

use drivers::error::{MessageKind, RequestError};
use drivers::platform::ConfigSpace;
use drivers::policy::config::Access;
use drivers::policy::config::bar::Bars;
use drivers::policy::dom0::Dom0;
use drivers::policy::engine::Engine;
use drivers::policy::resources::Resources;
use fastrand::Rng;
use pci::bdf::Bdf;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use toolstack::config_space::access::ConfigAccess;
use toolstack::function::guard::Guard;
use toolstack::function::{Done, Functions};
use toolstack::host::domains::Domain;
use toolstack::records::interrupt_mode::Mode;
use toolstack::records::{Attachment, Device};
use toolstack::terms::Terms;
use xen::xenctrl::{DomId, Hypervisor, RunState};
use xenbus::device::{self, SlotMode};
use xenbus::model::Page;
use xenbus::pciif::backend::take;
use xenbus::pciif::frontend::post;
use xenbus::pciif::{Command, MsixEntry, OpError, Request};

const BDF: &str = "0000:00:05.0";
/// Devices of one run, and requests for each.
const DEVICES: u64 = 3_000;
const REQUESTS: usize = 60;

const BARS: &str = "feb80000,20000,0;feba0000,20000,0;c040,20,1;febe0000,4000,0;0,0,0;0,0,0;feb00000,40000,0";
const BRIDGE_BARS: &str = "feb80000,20000,0;feba0000,20000,0;0,0,0;0,0,0;0,0,0;0,0,0;feb00000,40000,0";
const ADDRESSES: [(u16, u32); 4] = [
    (0x10, 0xfeb8_0000),
    (0x14, 0xfeba_0000),
    (0x18, 0xc041),
    (0x1c, 0xfebe_0000),
];

/// Offset, width, value before, value after.
type Written = (u16, u8, u32, u32);

/// Configuration space in memory. Clones are the same device.
#[derive(Clone, Debug)]
struct Card {
    bytes: Rc<RefCell<Vec<u8>>>,
    writes: Rc<RefCell<Vec<Written>>>,
    silent: Rc<Cell<bool>>,
}

impl Card {
    fn get(&self, offset: u16, width: u8) -> u32 {
        let at = usize::from(offset);
        let bytes = self.bytes.borrow();
        let bytes = bytes[at..at + usize::from(width)].iter().rev();
        let value = bytes.fold(0, |value, &byte| value << 8 | u32::from(byte));
        if self.silent.get() {
            u32::MAX >> (32 - 8 * u32::from(width))
        } else {
            value
        }
    }

    fn set(&self, offset: u16, width: u8, value: u32) {
        let at = usize::from(offset);
        let width = usize::from(width);
        self.bytes.borrow_mut()[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

impl ConfigSpace for Card {
    fn read(&self, offset: u16, width: u8) -> u32 {
        self.get(offset, width)
    }
}

impl ConfigAccess for Card {
    fn read(&self, offset: u16, width: u8) -> io::Result<u32> {
        if usize::from(offset) + usize::from(width) > 4096 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.get(offset, width))
    }

    fn read_space(&self, length: usize) -> io::Result<Vec<u8>> {
        let dwords = (0..length as u16)
            .step_by(4)
            .map(|at| self.get(at, 4).to_le_bytes());
        Ok(dwords.flatten().collect())
    }

    fn write(&self, offset: u16, width: u8, value: u32) -> io::Result<()> {
        let old = self.get(offset, width);
        self.writes.borrow_mut().push((offset, width, old, value));
        if !self.silent.get() {
            self.set(offset, width, value);
        }
        Ok(())
    }
}

/// A Xen that refuses nothing.
struct Xen(Cell<u16>);

impl Hypervisor for Xen {
    fn uuid(&self, _: DomId) -> io::Result<Option<String>> {
        Ok(None)
    }

    fn allow_frames(&self, _: DomId, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn allow_ports(&self, _: DomId, _: u32, _: u32, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn allow_pirq(&self, _: DomId, _: u32, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn map_gsi(&self, _: DomId, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn map_msi(&self, _: DomId, _: Bdf, _: Option<(u16, u64)>) -> io::Result<u16> {
        self.0.set(self.0.get() % 1000 + 1);
        Ok(self.0.get())
    }

    fn unmap_pirq(&self, _: DomId, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn restore_msi(&self, _: Bdf) -> io::Result<()> {
        Ok(())
    }

    fn assign(&self, _: DomId, _: Bdf) -> io::Result<()> {
        Ok(())
    }

    fn deassign(&self, _: DomId, _: Bdf) -> io::Result<()> {
        Ok(())
    }

    fn group(&self, _: DomId, _: Bdf) -> io::Result<Vec<Bdf>> {
        Ok(Vec::new())
    }

    fn pause(&self, _: DomId) -> io::Result<()> {
        Ok(())
    }

    fn unpause(&self, _: DomId) -> io::Result<()> {
        Ok(())
    }

    fn run_state(&self, _: DomId) -> io::Result<Option<RunState>> {
        Ok(None)
    }
}

/// The guard behind the stub's trait, and what it refused.
struct Behind {
    functions: Functions<Card>,
    xen: Xen,
    card: Card,
    never: Never,
    refused: Vec<String>,
    /// Whether dom0 itself writes message control now.
    messages: bool,
}

impl Behind {
    fn ask(&mut self, request: &Request, entries: &[MsixEntry]) -> Result<Done, RequestError> {
        let page = Page::new();
        assert!(post(&page, request, entries).is_ok());
        let taken = take(&page).unwrap();
        self.card.writes.borrow_mut().clear();
        let answer = self.functions.answer(&taken, &self.xen, |_, _, _| {});
        for &(offset, width, old, new) in self.card.writes.borrow().iter() {
            if let Some(what) = self.never.is_reached(offset, width, old, new, self.messages) {
                panic!(
                    "{what} was reached by {request:?}: {old:#x} to {new:#x} at {offset:#x}, {width} bytes"
                );
            }
        }
        answer.map_err(|failure| {
            // Which base address a table lies behind is for dom0 to see.
            if !failure.cause.contains("behind a base address that is not there") {
                self.refused.push(format!("{request:?}: {}", failure.cause));
            }
            RequestError::ServiceRefused(failure.error)
        })
    }

    fn message(&mut self, command: Command, entries: &[MsixEntry]) -> Result<Done, RequestError> {
        self.messages = true;
        let answer = self.ask(&Request::new(command, BDF.parse().unwrap()), entries);
        self.messages = false;
        answer
    }
}

impl Dom0 for Behind {
    fn conf_write(&mut self, function: Bdf, access: Access, value: u32) -> Result<(), RequestError> {
        let (offset, width) = (access.offset(), access.width());
        self.ask(&Request::conf_write(function, offset, width, value), &[])
            .map(|_| ())
    }

    fn enable_msi(&mut self, _: Bdf) -> Result<u32, RequestError> {
        match self.message(Command::EnableMsi, &[])? {
            Done::Value(pirq) => Ok(pirq),
            Done::Vectors(_) => Err(RequestError::ServiceNonsense),
        }
    }

    fn enable_msix(&mut self, _: Bdf, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        match self.message(Command::EnableMsix, entries)? {
            Done::Vectors(pirqs) => Ok(pirqs),
            Done::Value(_) => Err(RequestError::ServiceNonsense),
        }
    }

    fn disable(&mut self, _: Bdf, kind: MessageKind) -> Result<(), RequestError> {
        let command = match kind {
            MessageKind::Msi => Command::DisableMsi,
            MessageKind::Msix => Command::DisableMsix,
        };
        self.message(command, &[]).map(|_| ())
    }
}

/// Bytes that no write of a guest may reach, by the third implementation.
#[derive(Debug)]
struct Never {
    messages: Vec<Range<u16>>,
    kept: Vec<Range<u16>>,
    /// Words with rules of their own. They may lie in a protected capability.
    ruled: Vec<u16>,
    power: Option<u16>,
    express: Option<u16>,
    bridge: bool,
}

impl Never {
    fn of(card: &Card, bridge: bool) -> Self {
        let mut never = Self {
            messages: Vec::new(),
            kept: vec![0x00..0x04, 0x0d..0x0e, 0x3c..0x3e],
            ruled: Vec::new(),
            power: None,
            express: None,
            bridge,
        };
        if bridge {
            never.kept.extend([0x18..0x1e, 0x20..0x34, 0x3e..0x40]);
        }
        let (mut at, mut seen) = (card.get(0x34, 1) as u16 & !3, Vec::new());
        while card.get(0x06, 2) & 0x10 != 0 && at >= 0x40 && !seen.contains(&at) {
            seen.push(at);
            let length = |bytes: u16| at..at + bytes;
            match card.get(at, 1) {
                0xff => break,
                0x01 => _ = never.power.get_or_insert(at + 4),
                0x03 => never.ruled.push(at + 2),
                0x05 => never.messages.push(length(match card.get(at + 2, 2) & 0x180 {
                    0 => 10,
                    0x80 => 14,
                    0x100 => 20,
                    _ => 24,
                })),
                0x11 => never.messages.push(length(12)),
                0x10 => _ = never.express.get_or_insert(at + 8),
                0x13 => never.kept.push(length(6)),
                0x14 => never.kept.push(length(4)),
                _ => {}
            }
            at = card.get(at + 1, 1) as u16 & !3;
        }
        let (mut at, mut seen) = (0x100, Vec::new());
        while at >= 0x100 && !seen.contains(&at) && card.get(at, 4) != u32::MAX {
            seen.push(at);
            let length = match card.get(at, 2) {
                0x0001 => 0x38,
                0x000d | 0x000e | 0x000f | 0x0018 | 0x001b => 8,
                0x0013 | 0x001d | 0x001e => 0x10,
                0x0010 => 0x40,
                0x0012 => 0x30,
                0x0015 | 0x0024 => 0x34,
                _ => 0,
            };
            if length > 0 {
                never.kept.push(at..at + length);
            }
            at = (card.get(at, 4) >> 20) as u16 & !3;
        }
        never.ruled.extend(never.power);
        // Device Control, and that of version 2.
        let express = never.express.into_iter();
        never.ruled.extend(express.flat_map(|at| [at, at + 0x20]));
        never
    }

    fn is_reached(&self, offset: u16, width: u8, old: u32, new: u32, messages: bool) -> Option<&'static str> {
        let written = offset..offset + u16::from(width);
        let overlaps = |range: &Range<u16>| range.start < written.end && written.start < range.end;
        let changed = old ^ new;
        if overlaps(&(0x04..0x06)) {
            let bits = if messages { 0x0400 } else { 0x02bc | new & 3 };
            return (width != 2 || changed & !bits != 0).then_some("COMMAND");
        }
        if messages {
            return (!self.messages.iter().any(overlaps)).then_some("more than messages");
        }
        if self.messages.iter().any(overlaps) {
            return Some("a register of messages");
        }
        let last = if self.bridge { 0x18 } else { 0x28 };
        if overlaps(&(0x10..last)) {
            let recorded = ADDRESSES.iter().find(|&&(at, _)| at == offset);
            let recorded = recorded.map_or(0, |&(_, value)| value);
            return (width != 4 || new != recorded).then_some("a base address");
        }
        if Some(offset) == self.power && width == 2 {
            return (changed & !0x9e03 != 0).then_some("PMCSR");
        }
        if let Some(express) = self.express
            && overlaps(&(express..express + 2))
            && (new & !old) << (8 * (offset.saturating_sub(express))) >> (8 * express.saturating_sub(offset))
                & 0x8000
                != 0
        {
            return Some("a function level reset");
        }
        let is_ruled = self.ruled.contains(&offset) && width == 2;
        (!is_ruled && self.kept.iter().any(overlaps)).then_some("what is kept")
    }
}

/// A device, its terms, and requests for it, from one seed.
struct Case {
    random: Rng,
    card: Card,
    bridge: bool,
    /// Where capabilities begin.
    starts: Vec<u16>,
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut bytes = vec![0; 4096];
        match random.u8(..4) {
            0 => bytes.fill(0xff),
            1 => random.fill(&mut bytes),
            _ => {}
        }
        let mut case = Self {
            bridge: random.u8(..4) == 0,
            card: Card {
                bytes: Rc::new(RefCell::new(bytes)),
                writes: Rc::default(),
                silent: Rc::default(),
            },
            starts: Vec::new(),
            random,
        };
        case.header();
        case.usual();
        case.extended();
        case
    }

    fn header(&mut self) {
        let kind = u32::from(self.bridge);
        let list = if self.random.u8(..8) == 0 { 0 } else { 0x0010 };
        let command = self.random.u32(..0x0400);
        for (offset, width, value) in [
            (0x00, 4, 0x10d3_8086),
            (0x04, 2, command),
            (0x06, 2, list),
            (0x08, 4, 0x0200_0001),
            (0x0c, 4, kind << 16),
            (0x30, 4, 0xfeb0_0000),
            (0x3c, 4, 0x010b),
        ] {
            self.card.set(offset, width, value);
        }
        let addresses = if self.bridge { 2 } else { 4 };
        for (offset, value) in &ADDRESSES[..addresses] {
            self.card.set(*offset, 4, *value);
        }
        if self.bridge {
            self.card.set(0x18, 4, 0x0003_0200);
            self.card.set(0x38, 4, 0xfeb0_0000);
        } else {
            self.card.set(0x20, 4, 0);
            self.card.set(0x24, 4, 0);
        }
    }

    fn usual(&mut self) {
        const IDS: [u8; 13] = [1, 1, 3, 5, 5, 0x11, 0x11, 0x10, 0x13, 0x14, 0x15, 8, 9];
        let mut link = 0x34;
        for _ in 0..self.random.usize(..9) {
            let at = match self.random.u8(..8) {
                0 => self.random.u16(0x3d..0x40) << 2 | self.random.u16(..4),
                // Close to the last one, so that they overlap at times.
                1 if link > 0x40 => (link & !3) + 4 * self.random.u16(1..7),
                2 => self.random.u16(..0x100),
                _ => self.random.u16(0x10..0x40) << 2,
            } & 0xff;
            let id = match self.random.u8(..16) {
                0 => self.random.u8(..),
                1 => 0xff,
                _ => IDS[self.random.usize(..IDS.len())],
            };
            self.card.set(link, 1, at.into());
            let at = at & !3;
            if at < 0x40 {
                continue;
            }
            self.card.set(at, 1, id.into());
            if self.random.bool() {
                let control = [0, 1, 2, 4, 0x80, 0x100, 0x180, 0x7ff][self.random.usize(..8)];
                self.card.set(at + 2, 2, control);
            }
            if id == 1 {
                let state = [0, 0, 0, 3, self.random.u16(..)][self.random.usize(..5)];
                self.card.set((at + 4) & 0xffe, 2, state.into());
            }
            self.starts.push(at);
            link = at + 1;
        }
        let end = match self.random.u8(..6) {
            0 => self.starts.first().copied().unwrap_or_default(),
            1 => self.random.u16(..0x100),
            _ => 0,
        };
        self.card.set(link, 1, end.into());
    }

    fn extended(&mut self) {
        const IDS: [u16; 16] = [
            1, 0xd, 0xe, 0xf, 0x10, 0x12, 0x13, 0x15, 0x18, 0x1b, 0x1d, 0x1e, 0x24, 0xb, 2, 0x19,
        ];
        let mut at = 0x100;
        for _ in 0..self.random.usize(..7) {
            let next = match self.random.u8(..8) {
                0 => self.random.u16(0x3f8..0x400) << 2,
                1 => at + 4,
                2 => self.random.u16(..0x1000),
                3 => 0,
                _ => self.random.u16(0x40..0x400) << 2,
            } & 0xfff;
            let id = IDS[self.random.usize(..IDS.len())];
            self.card
                .set(at, 4, u32::from(next) << 20 | 1 << 16 | u32::from(id));
            self.starts.push(at);
            at = next & !3;
            if at < 0x100 {
                return;
            }
        }
    }

    fn terms(&mut self) -> Terms {
        let mut quirks = Vec::new();
        for _ in 0..[0, 0, 1, 3][self.random.usize(..4)] {
            let (offset, width) = self.place();
            let bits = u32::MAX >> (32 - 8 * u32::from(width));
            let mask = (self.random.u32(..) & bits).max(1);
            quirks.push(format!("{offset:x}:{width}:{mask:x}"));
        }
        Terms {
            permissive: self.random.bool(),
            // Quirks that overlap do not parse: then the device has none.
            quirks: quirks.join(";").parse().unwrap_or_default(),
            ..Terms::default()
        }
    }

    /// A register, mostly at a capability.
    fn place(&mut self) -> (u16, u8) {
        let width = [1, 2, 4][self.random.usize(..3)];
        let offset = match self.random.u8(..8) {
            0 | 1 => self.random.u16(..0x40),
            2 => self.random.u16(..0x1000),
            _ => {
                let start = self.random.choice(&self.starts).copied().unwrap_or(0x40);
                (start + self.random.u16(..0x44)).saturating_sub(4) & 0xfff
            }
        };
        (offset / width * width, width as u8)
    }

    fn request(&mut self) -> (Request, Vec<MsixEntry>) {
        let here = Bdf::from_devfn(0, 0, 0);
        let command = match self.random.u8(..16) {
            0 => Command::EnableMsi,
            1 => Command::EnableMsix,
            2 => Command::DisableMsi,
            _ => {
                let (offset, width) = self.place();
                let old = self.card.get(offset, width);
                let value = match self.random.u8(..6) {
                    0 => 0,
                    1 => u32::MAX,
                    2 | 3 => old ^ 1 << self.random.u8(..32),
                    4 => old,
                    _ => self.random.u32(..),
                };
                return (Request::conf_write(here, offset, width, value), Vec::new());
            }
        };
        let count = self.random.u16(1..4);
        let entry = |entry| MsixEntry { vector: 0, entry };
        let entries = (0..count).map(entry).collect();
        (Request::new(command, here), entries)
    }

    fn record(&self, terms: &Terms) -> Attachment {
        let domain = |domid, name: &str| Domain {
            domid,
            name: name.into(),
            uuid: String::new(),
        };
        let bars = if self.bridge { BRIDGE_BARS } else { BARS };
        Attachment {
            guest: domain(3, "web"),
            stub: domain(4, "web-bulkhead"),
            slots: SlotMode::Passthrough,
            devices: vec![Device {
                bdf: BDF.parse().unwrap(),
                ids: "8086:10d3".parse().unwrap(),
                bars: bars.parse().unwrap(),
                ecam: 0xb0028,
                gsi: Some(20),
                line_offered: true,
                header: self.card.bytes.borrow()[..64].to_vec(),
                terms: terms.clone(),
                physical: None,
                inode: None,
            }],
            modes: vec![Mode::Intx.into()],
        }
    }

    fn resources(&self, terms: &Terms) -> Resources {
        let bars = if self.bridge { BRIDGE_BARS } else { BARS };
        Resources {
            bdf: BDF.parse().unwrap(),
            ids: "8086:10d3".parse().unwrap(),
            ecam: 0xb0028,
            bars: Bars::new(&bars.parse::<device::Bars>().unwrap()).unwrap(),
            irq: 20,
            intx: true,
            permissive: terms.permissive,
            quirks: terms.quirks.clone(),
            msi: true,
            virtual_function: false,
        }
    }

    /// Runs the case. Returns how many requests came to the guard.
    fn run(mut self) -> usize {
        let terms = self.terms();
        let mut engine = Engine::default();
        engine.begin(SlotMode::Passthrough);
        let place = match engine.add(self.resources(&terms), self.card.clone(), None) {
            Ok(place) => place,
            Err((error, _)) => {
                assert!(error.to_string().contains("quirk"), "{error}");
                return 0;
            }
        };
        let bytes = self.card.bytes.borrow().clone();
        let capabilities = toolstack::config_space::capabilities::Capabilities::find(&bytes);
        let guard = Guard::new(&bytes[..64], &capabilities, &terms);
        assert_eq!(
            guard.unfit_quirks(),
            [],
            "the stub takes a quirk that the guard does not"
        );
        let open = |_| Ok::<_, io::Error>(self.card.clone());
        let mut behind = Behind {
            functions: Functions::new(&self.record(&terms), open).unwrap(),
            xen: Xen(Cell::new(0)),
            never: Never::of(&self.card, self.bridge),
            card: self.card.clone(),
            refused: Vec::new(),
            messages: false,
        };
        let mut reached = 0;
        for _ in 0..REQUESTS {
            let (mut request, entries) = self.request();
            (request.bus, request.devfn) = (place.bus().into(), place.devfn().into());
            // Sometimes the device does not answer.
            self.card.silent.set(self.random.u8(..16) == 0);
            let before = self.card.writes.borrow().len();
            let answer = engine.serve(&request, Ok(&entries), &mut behind, Duration::ZERO);
            assert_eq!(
                behind.refused, [""; 0],
                "let through by the stub, refused by the guard"
            );
            if self.card.silent.get() {
                let told = answer.map_err(|error| error.answer());
                assert!(told.is_ok() || told != Err(OpError::DeviceNotFound));
            }
            reached += usize::from(self.card.writes.borrow().len() != before);
        }
        reached
    }
}

#[test]
fn the_stub_lets_nothing_through_that_the_guard_refuses() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: Option<u64> = number("WALLS_SEED");
    let first = seed.unwrap_or_else(|| fastrand::u64(..1 << 48));
    let devices = number("WALLS_DEVICES").unwrap_or(if seed.is_some() { 1 } else { DEVICES });
    let mut reached = 0;
    for seed in first..first + devices {
        let ran = std::panic::catch_unwind(|| Case::new(seed).run());
        reached += ran.unwrap_or_else(|_| panic!("WALLS_SEED={seed} repeats this"));
    }
    assert!(
        seed.is_some() || reached as u64 > devices,
        "{reached} requests of {devices} devices reached one: too few to say anything"
    );
}
