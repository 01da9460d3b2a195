//! The subcommands of `bulkhead`, one public file for each, and what they share.

pub mod attach;
pub mod check;
mod create;
pub mod destroy;
pub mod detach;
mod hotplug;
pub mod irq;
mod prepare;
pub mod release;
mod return_devices;
pub mod run;
pub mod seize;
mod select;
pub mod shutdown;
mod turn;
mod undo;
mod waiting;

pub use create::Ended;
