//! A device's way from dom0 to a guest, and back.

pub mod carry;
pub mod config_backup;
pub mod grant;
pub mod idle_intx;
pub mod intx_lines;
pub mod reclaim;
pub mod reset;
pub mod seize;
pub mod shared_intx;
