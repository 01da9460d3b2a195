//! `bulkhead`, the dom0 command.
fn main() {}
