//! Registers of a function's configuration space, as byte offsets, and their bits. Those of a capability count from its
//! start.

/// The header: type 0, a device's (PCI Local Bus Specification 3.0, section 6.1), and type 1, a bridge's (PCI-to-PCI
/// Bridge Architecture 1.2, section 3.2).
pub mod register {
    /// Vendor id, 16 bits.
    pub const VENDOR: u16 = 0x00;
    /// Command, 16 bits.
    pub const COMMAND: u16 = 0x04;
    /// Status, 16 bits.
    pub const STATUS: u16 = 0x06;
    /// Revision, 8 bits; the 24 bits of the class follow.
    pub const REVISION: u16 = 0x08;
    /// Sub-class and base class, 16 bits.
    pub const CLASS: u16 = 0x0a;
    /// Base class, 8 bits.
    pub const BASE_CLASS: u16 = 0x0b;
    /// Cache line size, 8 bits.
    pub const CACHE_LINE: u16 = 0x0c;
    /// Latency timer, 8 bits.
    pub const LATENCY: u16 = 0x0d;
    /// Header type, 8 bits.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// Built-in self test, 8 bits.
    pub const BIST: u16 = 0x0f;
    /// Bridge: number of the bus behind it, 8 bits.
    pub const SECONDARY_BUS: u16 = 0x19;
    /// Bridge: highest number of the buses behind it, 8 bits.
    pub const SUBORDINATE_BUS: u16 = 0x1a;
    /// Offset of the first capability, 8 bits.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line, 8 bits.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// Bytes of the header.
    pub const HEADER_LENGTH: usize = 64;
}

/// Bits of the command register.
pub mod command {
    /// The function answers to its I/O ports.
    pub const IO: u16 = 1 << 0;
    /// The function answers to its memory ranges.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may start DMA.
    pub const MASTER: u16 = 1 << 2;
    /// The function may write whole cache lines at once.
    pub const INVALIDATE: u16 = 1 << 4;
    /// The function may not raise its INTx line.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Bits of the status register.
pub mod status {
    /// The function has an interrupt pending, whether it may raise its line or not.
    pub const INTERRUPT: u16 = 1 << 3;
    /// There is a list of capabilities.
    pub const CAPABILITIES: u16 = 1 << 4;
}

/// The header type.
pub mod header_type {
    /// The bit that marks a device with more than one function.
    pub const MULTIFUNCTION: u8 = 1 << 7;
    /// The other bits.
    pub const KIND: u8 = 0x7f;
    /// A device.
    pub const DEVICE: u8 = 0;
    /// A PCI bridge.
    pub const BRIDGE: u8 = 1;
}

/// Ids of capabilities (PCI Code and ID Assignment Specification, section 2).
pub mod capability {
    /// Power management.
    pub const POWER: u8 = 0x01;
    /// Vital product data.
    pub const VPD: u8 = 0x03;
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// The same as MSI, extended.
    pub const MSIX: u8 = 0x11;
    /// The most that the 192 bytes after the header have room for: each takes four at least.
    pub const MOST: usize = 48;
}

/// Power management (PCI Bus Power Management Interface Specification 1.2, section 3.2).
pub mod power {
    /// What it can do (PMC), 16 bits.
    pub const CAPABILITIES: u16 = 2;
    /// Control and status (PMCSR), 16 bits.
    pub const CONTROL: u16 = 4;
    /// Control: the state; 0 is D0.
    pub const STATE: u16 = 0x3;
}

/// MSI (PCI Local Bus Specification 3.0, section 6.8.1).
pub mod msi {
    /// Message control, 16 bits.
    pub const CONTROL: u16 = 2;
    /// Control: turned on.
    pub const ENABLE: u16 = 1 << 0;
    /// Control: how many messages it may send, as a power of two.
    pub const SEVERAL: u16 = 0x7 << 4;
    /// Control: the address has 64 bits.
    pub const WIDE: u16 = 1 << 7;
    /// Control: each vector can be masked.
    pub const MASKING: u16 = 1 << 8;
}

/// MSI-X (PCI Local Bus Specification 3.0, section 6.8.2).
pub mod msix {
    /// Message control, 16 bits.
    pub const CONTROL: u16 = 2;
    /// Where the table lies, 32 bits.
    pub const TABLE: u16 = 4;
    /// Bytes of the capability.
    pub const LENGTH: u16 = 12;
    /// Control: turned on.
    pub const ENABLE: u16 = 1 << 15;
    /// Control: all vectors are masked.
    pub const MASK_ALL: u16 = 1 << 14;
    /// Control: number of table entries, less one.
    pub const LAST_ENTRY: u16 = 0x07ff;
    /// Table: the base address register that it lies behind. The rest is the offset.
    pub const TABLE_BAR: u32 = 0x7;
}

/// PCI Express (PCI Express Base Specification, section 7.5.3).
pub mod express {
    /// Capabilities, 16 bits.
    pub const CAPABILITIES: u16 = 2;
    /// Capabilities: the version; version 1 ends before Device Control 2.
    pub const VERSION: u16 = 0x000f;
}

/// Where the list of extended capabilities begins.
pub const EXTENDED: u16 = 0x100;

/// What a 16-bit register reads where the device does not answer. The command register and the control words of
/// capabilities have bits that read 0, so in them it stands for nothing else; written back it would turn all on that
/// the device has.
pub const SILENT: u16 = u16::MAX;
