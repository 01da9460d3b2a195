//! The policy as a table to read: `docs/config-space.md` is this text.

use super::capability::POLICIES;
use super::header::TYPE_0;
use super::register::Register;
use alloc::string::String;
use core::fmt::Write;

/// Renders all tables as markdown.
pub fn render() -> String {
    let mut text = String::from(
        "# Config space: what a guest reads, and what its writes do\n\n\
         Printed from the tables in `drivers/src/pciback/config/`; a test keeps the two equal. To print it\n\
         anew: `cargo run -p bulkhead-drivers --example config-table > docs/config-space.md`.\n\n\
         A *forwarded* write goes to the device by way of dom0's service, and only if it changes something\n\
         there. A *dropped* write succeeds, changes nothing, and is counted. A *denied* one is answered with\n\
         `XEN_PCI_ERR_access_denied`. **What no table names reads what the device says, and writes to it are\n\
         dropped**: that holds for MSI addresses and masks, PCI Express, and all of extended space.\n\n\
         An access must be 1, 2 or 4 bytes, aligned, and below 4096; others are answered with\n\
         `XEN_PCI_ERR_invalid_offset`. One that covers several registers is split over them, byte by byte.\n\n\
         Functions with a header type other than 0 are refused.\n",
    );
    section(&mut text, "Header type 0", "Offset", &TYPE_0);
    for policy in &POLICIES {
        let mut title = String::from(policy.name);
        push(&mut title, format_args!(" (capability {:#04x})", policy.id));
        section(&mut text, &title, "From its start", policy.registers);
    }
    text
}

fn section(text: &mut String, title: &str, offset: &str, registers: &[Register]) {
    push(
        text,
        format_args!(
            "\n## {title}\n\n| {offset} | Bytes | Register | A guest reads | A guest's write is |\n|---|---|---|---|---|\n"
        ),
    );
    for register in registers {
        push(
            text,
            format_args!(
                "| {:#04x} | {} | {} | {} | {} |\n",
                register.offset, register.width, register.name, register.read, register.write
            ),
        );
    }
}

fn push(text: &mut String, more: core::fmt::Arguments<'_>) {
    // A `String` takes all that it is given.
    let _ = text.write_fmt(more);
}
