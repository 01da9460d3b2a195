//! What the subcommands of `bulkhead` do, one file for each, and what they share.

pub mod attach;
pub mod check;
mod create;
pub mod destroy;
pub mod detach;
pub mod hold;
mod hotplug;
pub mod irq;
mod prepare;
mod reclaim;
pub mod run;
mod select;
mod undo;
mod waiting;

pub use create::Ended;
