//! What `bulkhead status` shows: stubs, guests, devices, interrupt modes, counters.

mod collect;
mod model;
pub mod process;
mod text;

pub use collect::collect;
pub use model::{
    Bucket, CarriedGuest, DeclaredGuest, DeviceErrors, DeviceStatus, DomainStatus, DroppedWrites, Latency,
    Mapped, PoisonousRequest, Quarantined, RefusedWrite, Seen, Served, ServiceStatus, Status, StatusError,
    StubStatus,
};

#[cfg(test)]
pub(crate) use model::tests;
