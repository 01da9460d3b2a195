//! The policy table of a type 0 header (PCI Local Bus 3.0, section 6.1).

use super::bar::ROM;
use super::register::{Read, Register, Write};

/// Offset of the COMMAND register.
pub const COMMAND: u16 = 0x04;
/// Offset of the STATUS register.
pub const STATUS: u16 = 0x06;
/// Offset of the revision id and the class code.
pub const CLASS: u16 = 0x08;
/// Offset of the header type.
pub const HEADER_TYPE: u16 = 0x0e;
/// Offset of the pointer to the first capability.
pub const CAPABILITIES: u16 = 0x34;

/// STATUS: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 0x0010;
/// Header type: the bit that says "multifunction".
pub const MULTIFUNCTION: u8 = 0x80;

const fn plain(offset: u16, width: u8, name: &'static str) -> Register {
    Register::new(offset, width, name, Read::Hardware, Write::Drop)
}

const fn bar(offset: u16, name: &'static str, index: u8) -> Register {
    Register::new(offset, 4, name, Read::Bar(index), Write::Bar(index))
}

/// Every byte of the first 64: no write to the header is left to the default.
pub static TYPE_0: [Register; 25] = [
    Register::new(0x00, 2, "Vendor ID", Read::VendorId, Write::Drop),
    Register::new(0x02, 2, "Device ID", Read::DeviceId, Write::Drop),
    Register::new(COMMAND, 2, "Command", Read::Command, Write::Command),
    plain(STATUS, 2, "Status"),
    plain(CLASS, 4, "Revision ID, Class Code"),
    Register::new(0x0c, 1, "Cache Line Size", Read::Hardware, Write::Forward),
    plain(0x0d, 1, "Latency Timer"),
    plain(HEADER_TYPE, 1, "Header Type"),
    Register::new(0x0f, 1, "BIST", Read::Hardware, Write::Bist),
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
    Register::new(0x3c, 1, "Interrupt Line", Read::InterruptLine, Write::Drop),
    Register::new(0x3d, 1, "Interrupt Pin", Read::InterruptPin, Write::Drop),
    plain(0x3e, 1, "Min_Gnt"),
    plain(0x3f, 1, "Max_Lat"),
];
