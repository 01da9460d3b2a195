//! Failures on demand: the kinds, and the order that dom0 has given. The crash log keeps the order over restarts;
//! [`inject`](crate::inject) reads it and carries it out.

/// How to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Panic.
    Panic,
    /// Run out of memory.
    Allocation,
    /// Run out of stack.
    Stack,
    /// Loop for ever.
    Hang,
    /// Loop for ever with all upcalls masked: only Xen's watchdog ends that.
    Deaf,
    /// Wait for a while.
    Delay,
    /// Read where nothing is mapped.
    PageFault,
    /// Read where no address is.
    ProtectionFault,
    /// Execute an invalid instruction.
    InvalidOpcode,
    /// Fail at the next hypercall that maps memory, as if Xen refused it.
    Hypercall,
    /// Panic between the next mapping of a foreign page and the record of its handle.
    Handle,
}

/// What dom0 has ordered, as far as it is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Order {
    /// Index of the point in `inject`'s table.
    pub(crate) point: u32,
    /// Index of the kind in `inject`'s table.
    pub(crate) kind: u32,
    /// How often it is still to be done.
    pub(crate) left: u32,
    pub(crate) serial: u32,
}

impl Order {
    /// Nothing.
    pub const NONE: Self = Self {
        point: 0,
        kind: 0,
        left: 0,
        serial: 0,
    };
}
