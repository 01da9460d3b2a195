//! The policy as a table to read: `docs/config-space.md` is this text.

use super::capability::{KEPT, KEPT_EXTENDED, POLICIES};
use super::header::{TYPE_0, TYPE_1};
use super::register::Register;
use alloc::string::String;
use core::fmt::Write;

/// Renders all tables as markdown.
pub fn render() -> String {
    let mut text = String::from(
        "# Config space: what a guest reads, and what its writes do\n\n\
         Printed from the tables in `drivers/src/policy/config/`; a test keeps the two equal. To print it\n\
         anew: `cargo run -p bulkhead-drivers --example config-table > docs/config-space.md`.\n\n\
         A *forwarded* write goes to the device by way of dom0's service, if it changes something there; a\n\
         VPD address and the bits of a quirk always go. A *dropped* write succeeds, changes nothing, and is counted. A *denied* one is answered with\n\
         `XEN_PCI_ERR_access_denied`. **What no table names reads what the device says. Writes to it have the\n\
         default: dropped and counted**. That holds for PCI Express and all of extended space.\n\n\
         Two things change the default, and nothing else, for one device of one guest:\n\n\
         - A *quirk*, `REG:SIZE:MASK`: the bits of MASK are the guest's. The register is read, these bits\n\
         \u{20} replaced, and all of it written; so a SIZE is best that keeps bits out which a written 1 clears. A\n\
         \u{20} quirk for a register whose write is not the default is refused at the export, in words.\n\
         - *Permissive*: what has the default, and no quirk, is forwarded, even if it changes nothing. MSI and\n\
         \u{20} MSI-X registers stay Xen's; a bridge's buses and windows, and the capabilities of the last table,\n\
         \u{20} dom0's.\n\n\
         In dom0 the service judges both again before it writes.\n\n\
         An access must be 1, 2 or 4 bytes, aligned, and below 4096; others are answered with\n\
         `XEN_PCI_ERR_invalid_offset`. One that covers several registers is split over them, byte by byte.\n\n\
         Devices (header type 0) and PCI bridges (1) have tables. CardBus bridges (2) are refused. With MSI switched\n\
         off for a device, `enable_msi` and `enable_msix` are answered with `XEN_PCI_ERR_op_failed`.\n\n\
         Of an SR-IOV virtual function the ids are those that dom0 knows, its own read all-ones; its BARs are never\n\
         written, and its decode bits are left alone: they are its physical function's, as dom0 checks.\n",
    );
    section(&mut text, "Header type 0", "Offset", &TYPE_0);
    section(&mut text, "Header type 1", "Offset", &TYPE_1);
    for policy in &POLICIES {
        let mut title = String::from(policy.name);
        push(&mut title, format_args!(" (capability {:#04x})", policy.id));
        section(&mut text, &title, "From its start", policy.registers);
    }
    push(
        &mut text,
        format_args!(
            "\n## Capabilities that no guest writes\n\nNeither by a quirk nor if its device is permissive. Registers with a \
             table above have that\ntable's rule, also where they lie in one of these.\n\n| Id | Bytes | Capability |\n|---|---|---|\n"
        ),
    );
    for (list, digits) in [(&KEPT[..], 4), (&KEPT_EXTENDED, 6)] {
        for kept in list {
            push(
                &mut text,
                format_args!(
                    "| {:#0digits$x} | {:#04x} | {} |\n",
                    kept.id, kept.length, kept.name
                ),
            );
        }
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
