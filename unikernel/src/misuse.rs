//! What a domain without privileges must not get away with: the hostile guest and the hostile stub of the tests try it.
//!
//! Each hypercall here is one that Xen keeps for dom0, or aims at a domain that is not ours. On a sound host all of them
//! are refused, so that none has an effect that Rust code could notice.

use crate::hypercall;
use crate::memory::{Mapping, Window};
use drivers::platform::{DomId, Errno};

/// Room for the largest structure of these calls.
const BUFFER: usize = 512;

/// An argument of a hypercall.
enum Argument {
    Value(u64),
    /// The address of the structure.
    Structure,
    /// The number of the domain that is attacked.
    Victim,
}

/// A field of the structure, at its offset. All others are 0.
enum Field {
    Word(u32),
    Long(u64),
    /// The number of the domain that is attacked, 16 bits.
    Victim,
    /// The address of the structure itself, where memory is asked for.
    Pointer,
}

/// One call that must be refused.
struct Call {
    name: &'static str,
    number: u32,
    arguments: [Argument; 4],
    fields: &'static [(usize, Field)],
    /// It returns how much it did; 0 is its refusal.
    counts: bool,
}

/// A call whose first argument is a sub-operation, and whose second is a structure.
const fn operation(
    name: &'static str,
    number: u32,
    operation: u64,
    fields: &'static [(usize, Field)],
) -> Call {
    use Argument::{Structure, Value};
    Call {
        name,
        number,
        arguments: [Value(operation), Structure, Value(1), Value(0)],
        fields,
        counts: false,
    }
}

/// A call whose only argument is a structure that begins with a command and the version of the interface.
const fn command(name: &'static str, number: u32, fields: &'static [(usize, Field)]) -> Call {
    use Argument::{Structure, Value};
    Call {
        name,
        number,
        arguments: [Structure, Value(0), Value(0), Value(0)],
        fields,
        counts: false,
    }
}

/// `xen/include/public/`: domctl.h, sysctl.h, platform.h, physdev.h, memory.h, sched.h, event_channel.h, xen.h.
const CALLS: [Call; 24] = [
    // The version of the interface is filled in, see `forbidden`.
    command(
        "domctl: pause a domain",
        xen_sys::__HYPERVISOR_domctl,
        &[(0, Field::Word(3)), (8, Field::Victim)],
    ),
    command(
        "domctl: destroy a domain",
        xen_sys::__HYPERVISOR_domctl,
        &[(0, Field::Word(2)), (8, Field::Victim)],
    ),
    command(
        "domctl: look at a domain",
        xen_sys::__HYPERVISOR_domctl,
        &[(0, Field::Word(5)), (8, Field::Victim)],
    ),
    command(
        "domctl: have a frame for oneself",
        xen_sys::__HYPERVISOR_domctl,
        &[
            (0, Field::Word(20)),
            (8, Field::Word(0x7ff0)),
            (16, Field::Long(0xfee00)),
            (24, Field::Long(1)),
            (32, Field::Word(1)),
        ],
    ),
    command(
        "sysctl: read Xen's log",
        xen_sys::__HYPERVISOR_sysctl,
        &[(0, Field::Word(1))],
    ),
    command(
        "platform_op: look at the firmware",
        xen_sys::__HYPERVISOR_platform_op,
        &[(0, Field::Word(50)), (4, Field::Word(0x0300_0000))],
    ),
    operation(
        "physdev_op: map a message interrupt",
        xen_sys::__HYPERVISOR_physdev_op,
        13,
        &[
            (0, Field::Word(0x7ff0)),
            (4, Field::Word(0)),
            (8, Field::Word(u32::MAX)),
            (12, Field::Word(u32::MAX)),
            (20, Field::Word(0x28)),
        ],
    ),
    operation(
        "physdev_op: map an interrupt into a domain",
        xen_sys::__HYPERVISOR_physdev_op,
        13,
        &[
            (0, Field::Victim),
            (4, Field::Word(1)),
            (8, Field::Word(20)),
            (12, Field::Word(u32::MAX)),
        ],
    ),
    operation(
        "physdev_op: prepare MSI-X of a device",
        xen_sys::__HYPERVISOR_physdev_op,
        30,
        &[(4, Field::Word(0x28))],
    ),
    operation(
        "physdev_op: announce a device",
        xen_sys::__HYPERVISOR_physdev_op,
        25,
        &[(4, Field::Word(0x28))],
    ),
    operation(
        "physdev_op: write an interrupt controller",
        xen_sys::__HYPERVISOR_physdev_op,
        9,
        &[],
    ),
    Call {
        name: "memory_op: take memory for a domain",
        number: xen_sys::__HYPERVISOR_memory_op,
        arguments: [
            Argument::Value(6),
            Argument::Structure,
            Argument::Value(0),
            Argument::Value(0),
        ],
        fields: &[(0, Field::Pointer), (8, Field::Long(1)), (24, Field::Victim)],
        counts: true,
    },
    operation(
        "memory_op: put a frame into a domain",
        xen_sys::__HYPERVISOR_memory_op,
        7,
        &[(0, Field::Victim), (4, Field::Word(1))],
    ),
    operation(
        "memory_op: look at the machine's memory map",
        xen_sys::__HYPERVISOR_memory_op,
        10,
        &[(0, Field::Word(4)), (8, Field::Pointer)],
    ),
    Call {
        name: "mmu_update: a page table of a domain",
        number: xen_sys::__HYPERVISOR_mmu_update,
        arguments: [
            Argument::Structure,
            Argument::Value(1),
            Argument::Value(0),
            Argument::Victim,
        ],
        fields: &[(0, Field::Long(0x10_0000)), (8, Field::Long(7))],
        counts: false,
    },
    Call {
        name: "update_va_mapping of another domain",
        number: xen_sys::__HYPERVISOR_update_va_mapping_otherdomain,
        arguments: [
            Argument::Value(0x1000),
            Argument::Value(7),
            Argument::Value(0),
            Argument::Victim,
        ],
        fields: &[],
        counts: false,
    },
    operation(
        "event_channel_op: reset a domain's ports",
        xen_sys::__HYPERVISOR_event_channel_op,
        xen_sys::EVTCHNOP_reset as u64,
        &[(0, Field::Victim)],
    ),
    operation(
        "event_channel_op: look at a domain's port",
        xen_sys::__HYPERVISOR_event_channel_op,
        xen_sys::EVTCHNOP_status as u64,
        &[(0, Field::Victim), (4, Field::Word(1))],
    ),
    operation(
        "sched_op: shut a domain down",
        xen_sys::__HYPERVISOR_sched_op,
        xen_sys::SCHEDOP_remote_shutdown as u64,
        &[(0, Field::Victim), (4, Field::Word(xen_sys::SHUTDOWN_crash))],
    ),
    operation(
        "hvm_op: set a parameter of a domain",
        xen_sys::__HYPERVISOR_hvm_op,
        0,
        &[(0, Field::Victim), (8, Field::Long(1))],
    ),
    operation(
        "kexec_op: start another kernel",
        xen_sys::__HYPERVISOR_kexec_op,
        0,
        &[],
    ),
    operation(
        "console_io: read Xen's console",
        xen_sys::__HYPERVISOR_console_io,
        1,
        &[],
    ),
    Call {
        name: "dm_op: be a domain's device model",
        number: xen_sys::__HYPERVISOR_dm_op,
        arguments: [
            Argument::Victim,
            Argument::Value(1),
            Argument::Structure,
            Argument::Value(0),
        ],
        fields: &[(0, Field::Pointer), (8, Field::Long(64))],
        counts: false,
    },
    operation(
        "xenpmu_op: set the processor's counters up",
        xen_sys::__HYPERVISOR_xenpmu_op,
        0,
        &[(8, Field::Long(1))],
    ),
];

/// The versions of domctl's and sysctl's interface from Xen 4.14 to some that are yet to come: with a wrong one Xen refuses
/// before it looks who asks.
const VERSIONS: core::ops::RangeInclusive<u32> = 0x12..=0x1a;

/// Makes every call that Xen keeps for dom0, against domain `victim` where it needs one. Calls `tell` with each name, and
/// whether Xen refused.
pub fn forbidden(victim: DomId, mut tell: impl FnMut(&'static str, bool)) {
    for call in &CALLS {
        let versioned = [xen_sys::__HYPERVISOR_domctl, xen_sys::__HYPERVISOR_sysctl].contains(&call.number);
        if versioned {
            for version in VERSIONS {
                tell(call.name, is_refused(call, victim, Some(version)));
            }
        } else {
            tell(call.name, is_refused(call, victim, None));
        }
    }
}

fn is_refused(call: &Call, victim: DomId, version: Option<u32>) -> bool {
    let mut buffer = [0u64; BUFFER / 8];
    let address = buffer.as_mut_ptr() as u64;
    let fields = call.fields.iter().map(|(at, field)| match *field {
        Field::Word(value) => (*at, u64::from(value), 4),
        Field::Long(value) => (*at, value, 8),
        Field::Victim => (*at, u64::from(victim), 2),
        // The upper half: the structure itself lies in the lower one.
        Field::Pointer => (*at, address + BUFFER as u64 / 2, 8),
    });
    for (at, value, size) in fields.chain(version.map(|version| (4, u64::from(version), 4))) {
        let shift = at % 8 * 8;
        // No field of the table crosses a word, and all lie in the lower half.
        let mask = if size == 8 {
            u64::MAX
        } else {
            (1 << (size * 8)) - 1
        };
        buffer[at / 8] |= (value & mask) << shift;
    }
    let arguments = call.arguments.each_ref().map(|argument| match *argument {
        Argument::Value(value) => value,
        Argument::Structure => address,
        Argument::Victim => victim.into(),
    });
    // SAFETY: where a structure is asked for, it gets one that is large enough and ours alone for the length of the call;
    // the memory that some of them are to fill is its upper half. Xen refuses each of these calls, which is what the
    // tests are about: none has an effect on our memory or page tables.
    let result = unsafe { hypercall::call4(call.number, arguments) };
    match result {
        Err(Errno(_)) => true,
        Ok(count) => call.counts && count == 0,
    }
}

/// Has Xen map a machine frame writable, and unmaps it again without having looked at it.
///
/// # Errors
/// What Xen says: `EPERM` or `EINVAL` for a frame that this domain may not map.
pub fn map_frame(frame: u64) -> Result<(), Errno> {
    // SAFETY: nobody reads or writes the window: what the frame holds cannot matter.
    unsafe { Window::show(frame, Mapping::Shared) }.map(drop)
}

/// Maps a function's ECAM page writable, and writes a byte there. Xen makes the mapping read-only, so that this faults;
/// returns if it does not.
///
/// # Errors
/// As [`map_frame`].
pub fn write_ecam(frame: u64, offset: u16, value: u8) -> Result<(), Errno> {
    // SAFETY: a configuration page, no memory of ours.
    let window = unsafe { Window::show(frame, Mapping::Shared) }?;
    let address = window.address() + usize::from(offset % 4096);
    // SAFETY: in the window's page. A fault ends this run, as it is meant to.
    unsafe { (address as *mut u8).write_volatile(value) };
    Ok(())
}

/// Ends the domain for a reason of any number (`SHUTDOWN_*`), also such that no domain has.
pub fn shut_down(reason: u32) -> ! {
    let mut argument = xen_sys::sched_shutdown { reason };
    loop {
        // SAFETY: the structure of SCHEDOP_shutdown; nothing of ours runs afterwards.
        let _ = unsafe {
            hypercall::operate(
                xen_sys::__HYPERVISOR_sched_op,
                xen_sys::SCHEDOP_shutdown,
                &mut argument,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_in_the_lower_half_and_cross_no_word() {
        for call in &CALLS {
            for (at, field) in call.fields {
                let size = match field {
                    Field::Word(_) => 4,
                    Field::Long(_) | Field::Pointer => 8,
                    Field::Victim => 2,
                };
                assert!(at % size == 0 && at + size <= BUFFER / 2, "{}", call.name);
            }
        }
    }
}
