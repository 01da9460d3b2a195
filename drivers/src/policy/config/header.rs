//! The policy tables of the headers: type 0 (PCI Local Bus 3.0, section 6.1) and type 1, a bridge's (PCI-to-PCI
//! Bridge 1.2, section 3.2).

use super::bar::ROM;
use super::register::{Read, Register, Write};
use pci::registers::register::{CAPABILITIES, COMMAND, HEADER_TYPE, REVISION, STATUS};

const fn plain(offset: u16, width: u8, name: &'static str) -> Register {
    Register::new(offset, width, name, Read::Hardware, Write::Default)
}

const fn kept(offset: u16, width: u8, name: &'static str) -> Register {
    Register::new(offset, width, name, Read::Hardware, Write::Drop)
}

const fn bar(offset: u16, name: &'static str, index: u8) -> Register {
    Register::new(offset, 4, name, Read::Bar(index), Write::Bar(index))
}

const VENDOR_ID: Register = Register::new(0x00, 2, "Vendor ID", Read::VendorId, Write::Drop);
const DEVICE_ID: Register = Register::new(0x02, 2, "Device ID", Read::DeviceId, Write::Drop);
const COMMAND_REGISTER: Register = Register::new(COMMAND, 2, "Command", Read::Command, Write::Command);
const CACHE_LINE: Register = Register::new(0x0c, 1, "Cache Line Size", Read::Hardware, Write::Forward);
const LATENCY: Register = Register::new(0x0d, 1, "Latency Timer", Read::Hardware, Write::Drop);
const BIST: Register = Register::new(0x0f, 1, "BIST", Read::Hardware, Write::Bist);
const INTERRUPT_LINE: Register = Register::new(0x3c, 1, "Interrupt Line", Read::InterruptLine, Write::Drop);
const INTERRUPT_PIN: Register = Register::new(0x3d, 1, "Interrupt Pin", Read::InterruptPin, Write::Drop);

/// Type 0. Every byte of the first 64 has a register, so that no write there is without a rule.
pub static TYPE_0: [Register; 25] = [
    VENDOR_ID,
    DEVICE_ID,
    COMMAND_REGISTER,
    plain(STATUS, 2, "Status"),
    plain(REVISION, 4, "Revision ID, Class Code"),
    CACHE_LINE,
    LATENCY,
    plain(HEADER_TYPE, 1, "Header Type"),
    BIST,
    bar(0x10, "BAR 0", 0),
    bar(0x14, "BAR 1", 1),
    bar(0x18, "BAR 2", 2),
    bar(0x1c, "BAR 3", 3),
    bar(0x20, "BAR 4", 4),
    bar(0x24, "BAR 5", 5),
    plain(0x28, 4, "CardBus CIS Pointer"),
    plain(0x2c, 2, "Subsystem Vendor ID"),
    plain(0x2e, 2, "Subsystem ID"),
    bar(0x30, "Expansion ROM", ROM),
    plain(CAPABILITIES, 4, "Capabilities Pointer"),
    plain(0x38, 4, "Reserved"),
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    plain(0x3e, 1, "Min_Gnt"),
    plain(0x3f, 1, "Max_Lat"),
];

/// Type 1. The bus numbers and the windows are dom0's, also if the device is permissive: with them a guest could lay claim
/// to the addresses of other devices (decision 26).
pub static TYPE_1: [Register; 24] = [
    VENDOR_ID,
    DEVICE_ID,
    COMMAND_REGISTER,
    plain(STATUS, 2, "Status"),
    plain(REVISION, 4, "Revision ID, Class Code"),
    CACHE_LINE,
    LATENCY,
    plain(HEADER_TYPE, 1, "Header Type"),
    BIST,
    bar(0x10, "BAR 0", 0),
    bar(0x14, "BAR 1", 1),
    kept(0x18, 4, "Bus Numbers, Secondary Latency Timer"),
    kept(0x1c, 2, "I/O Base, Limit"),
    plain(0x1e, 2, "Secondary Status"),
    kept(0x20, 4, "Memory Base, Limit"),
    kept(0x24, 4, "Prefetchable Memory Base, Limit"),
    kept(0x28, 4, "Prefetchable Base, upper half"),
    kept(0x2c, 4, "Prefetchable Limit, upper half"),
    kept(0x30, 4, "I/O Base, Limit, upper halves"),
    plain(CAPABILITIES, 4, "Capabilities Pointer"),
    bar(0x38, "Expansion ROM", ROM),
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    kept(0x3e, 2, "Bridge Control"),
];
