//! The differences in answers that are meant.

use super::difference::InAnswer;
use crate::comparison::{Difference, Known};
use test_guest::answer::Answer;
use test_guest::case::OTHER_KIND;
use xenbus::pciif::Command;

/// Requests whose answers are meant to differ.
#[derive(Debug)]
pub struct Requests {
    /// Which ones, in words.
    pub which: &'static str,
    /// Whether a difference in an answer is this one.
    pub covers: fn(&Difference<InAnswer, Answer>) -> bool,
}

/// Sizes that a config access may have, with an offset that fits them.
fn is_sound(difference: &Difference<InAnswer, Answer>) -> bool {
    let (offset, size) = (difference.place.op.offset, difference.place.op.size);
    matches!(size, 1 | 2 | 4) && offset % size == 0
}

/// Where config space names the line of INTx.
const INTERRUPT_LINE: i32 = 0x3c;

/// The bits of a config access's value by which the answers differ; `None` unless it is a read that succeeds by both.
fn differing(difference: &Difference<InAnswer, Answer>) -> Option<u32> {
    let (ours, theirs) = (difference.bulkhead, difference.pciback);
    let mask = match difference.place.op.size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    };
    let read = difference.place.op.known_command() == Command::ConfRead && ours.err == 0 && theirs.err == 0;
    let fits = ours.value() & !mask == 0 && ours.stray.is_none();
    (read && fits).then_some((ours.value() ^ theirs.value()) & mask)
}

/// All of them. Each must show in a run of the whole proof, or it is stale.
pub static KNOWN: &[Known<Requests>] = &[
    Known {
        at: Requests {
            which: "aligned config accesses of 1, 2 or 4 bytes at an offset below 0 or above 4095",
            covers: |difference| {
                let sound = is_sound(difference) && !(0..4096).contains(&difference.place.op.offset);
                sound && difference.bulkhead.err == -2
            },
        },
        pciback: "a read gives the errno value of the kernel's accessor (-22); a write is ignored and succeeds",
        bulkhead: "invalid_offset (-2)",
        reason: "nothing outside config space is accessed, and no such request succeeds",
    },
    Known {
        at: Requests {
            which: "requests with a devfn of more than 8 bits",
            covers: |difference| {
                let (ours, theirs) = (difference.bulkhead.err, difference.pciback.err);
                difference.place.op.devfn > 0xff && ours == -1 && theirs != -1
            },
        },
        pciback: "the upper bits are ignored: the function of the lower 8 bits answers",
        bulkhead: "device_not_found (-1)",
        reason: "there is no such function",
    },
    Known {
        at: Requests {
            which: "enable_msi and enable_msix after a request to turn off the mode that was not on",
            covers: |difference| difference.place.case == OTHER_KIND,
        },
        pciback: "the request has turned nothing off: EALREADY (-114), ENXIO (-6) or op_failed (-5)",
        bulkhead: "the request has turned off the mode that was on: success",
        reason: "Linux clears its own flag first and then turns off the wrong mode: through xen-pciback MSI-X is \
                 lost after one rebind of a driver",
    },
    Known {
        at: Requests {
            which: "config reads of 1 and 2 bytes",
            covers: |difference| differing(difference) == Some(0),
        },
        pciback: "the value field may hold the next bytes of config space above the bytes that were read",
        bulkhead: "the value field holds the bytes that were read, and 0 above them",
        reason: "Linux uses only the bytes that it asked for, and should get no others",
    },
    Known {
        at: Requests {
            which: "config reads of the interrupt line (0x3c) while MSI or MSI-X is on",
            covers: |difference| {
                let (offset, size) = (difference.place.op.offset, difference.place.op.size);
                let line = INTERRUPT_LINE
                    .checked_sub(offset)
                    .filter(|place| (0..size).contains(place));
                let bits = line.map(|place| 0xff << (8 * place));
                bits.is_some_and(|bits| differing(difference).is_some_and(|differing| differing & !bits == 0))
            },
        },
        pciback: "the number that dom0's kernel has given the MSI interrupt",
        bulkhead: "the INTx line, as without MSI",
        reason: "the register names the INTx line, and a guest should not see dom0's numbers",
    },
    Known {
        at: Requests {
            which: "MSI-X with more vectors than the device's table has entries, or than Xen has pirqs for the guest",
            covers: |difference| {
                let (ours, theirs) = (difference.bulkhead.err, difference.pciback.err);
                difference.place.op.known_command() == Command::EnableMsix
                    && theirs == -28
                    && matches!(ours, -22 | -5)
            },
        },
        pciback: "ENOSPC (-28)",
        bulkhead: "EINVAL (-22) for what the table cannot hold, op_failed (-5) for what Xen refuses",
        reason: "Linux treats all of these errors alike; the stub's log names the cause",
    },
    Known {
        at: Requests {
            which: "requests that are refused, and requests whose answer has no value",
            covers: |difference| {
                let valueless =
                    difference.place.op.known_command() == Command::ConfWrite || difference.bulkhead.err != 0;
                let same =
                    difference.bulkhead.err == difference.pciback.err && difference.bulkhead.stray.is_none();
                valueless && same && difference.bulkhead.value() == 0
            },
        },
        pciback: "the value field keeps the value of the request",
        bulkhead: "the value field is 0",
        reason: "no frontend reads it; an answer holds no more than it must",
    },
];

#[cfg(test)]
mod tests {
    use super::super::compare::Ops;
    use crate::comparison::{assert_in_parity, render};

    #[test]
    fn the_documentation_has_this_table() {
        assert_in_parity(&render::<Ops>(), "ops-compare known");
    }
}
