//! A device's way from dom0 to a guest, and back.

pub mod acking;
pub mod attach;
pub mod idle_intx;
pub mod lines;
pub mod originals;
pub mod release;
pub mod reset;
pub mod seize;
