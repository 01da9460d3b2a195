//! Failures that dom0 orders: in which way, and how often. The crash log keeps the order; [`inject`](crate::inject) reads
//! it and carries it out.

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
    /// The same with all upcalls masked.
    Deaf,
    /// Do nothing for a while.
    Delay,
    /// Read where nothing is mapped.
    PageFault,
    /// Read where no address is.
    ProtectionFault,
    /// Execute no instruction.
    InvalidOpcode,
    /// Have Xen refuse the next hypercall that maps memory, or seem to.
    Hypercall,
    /// End between the next mapping of a foreign page and the note of its handle.
    Handle,
}

/// What dom0 has ordered and is still to be done; kept in the crash_log.
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
