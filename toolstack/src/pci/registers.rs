//! Numbers of the configuration space's header.

/// Registers of the header that dom0's side reads or writes, as byte offsets
/// (PCI Local Bus Specification 3.0, section 6.1).
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
    /// Header type, 8 bits; bit 7 marks a device with more than one function.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// Built-in self test, 8 bits.
    pub const BIST: u16 = 0x0f;
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

/// What a 16-bit register reads where the device does not answer. The command register and the control words of
/// capabilities have bits that read 0, so in them it stands for nothing else; written back it would turn all on that
/// the device has.
pub const SILENT: u16 = u16::MAX;
