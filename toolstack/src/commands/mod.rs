//! The subcommands of `bulkhead`, one public file for each, and what they share.

pub mod attach;
pub mod check;
mod create;
pub mod declare;
pub mod destroy;
pub mod detach;
pub mod doctor;
mod dry_run;
pub mod explain;
mod give;
mod hotplug;
pub mod irq;
pub mod metrics;
mod prepare;
pub mod release;
mod return_devices;
pub mod run;
#[cfg(test)]
mod schemas;
pub mod seize;
mod select;
pub mod shutdown;
pub mod start;
pub mod status;
mod turn;
mod undo;
mod waiting;

pub use create::Ended;
pub use dry_run::{DryRun, PlannedDevice, PlannedNetwork};
pub use give::Named;
