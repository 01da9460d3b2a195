//! The differences that are meant.

use super::difference::{InRegister, Seen};
use super::layout::{CACHE_LINE_SIZE, COMMAND, MSIX_CONTROL, PMCSR, Register};
use super::phase::Phase;
use crate::comparison::Known;
use crate::markdown::list;

/// Registers in which a difference is meant.
#[derive(Debug)]
pub struct Registers {
    /// Which register; of an access that touches several and differs in its error, the first that has a name.
    pub register: Register,
    /// Which of its bits.
    pub bits: u32,
    /// In what it shows.
    pub seen: &'static [Seen],
    /// In which phases.
    pub phases: &'static [Phase],
    /// With which devices; none: with any.
    pub devices: &'static [&'static str],
}

const VALUES: &[Seen] = &[Seen::AtTheStart, Seen::Read, Seen::LeftBehind];

/// All of them. Each must show in a run of the whole proof, or it is stale.
pub static KNOWN: &[Known<Registers>] = &[
    Known {
        at: Registers {
            register: MSIX_CONTROL,
            bits: 0x8000,
            seen: VALUES,
            phases: &[Phase::Released],
            devices: &["e1000e"],
        },
        pciback: "MSI-X stays on after the driver is unbound: Linux clears its own flag first, and then sends \
                  disable_msi, which does nothing",
        bulkhead: "disable_msi and disable_msix turn off whichever mode is on",
        reason: "otherwise no later driver gets MSI-X",
    },
    Known {
        at: Registers {
            register: COMMAND,
            bits: 0x0400,
            seen: &[Seen::LeftBehind],
            phases: &[Phase::Released],
            devices: &["e1000e"],
        },
        pciback: "so INTx stays disabled in the device",
        bulkhead: "INTx is enabled again when MSI-X goes off",
        reason: "a driver that wants INTx gets it",
    },
    Known {
        at: Registers {
            register: MSIX_CONTROL,
            bits: 0x8000,
            seen: &[Seen::AtTheStart, Seen::Read, Seen::LeftBehind, Seen::Error],
            phases: &[Phase::Driven],
            devices: &["nvme"],
        },
        pciback: "nvme turns MSI-X off and on again when it starts; the second time is refused for the reason above, \
                  and nvme runs on INTx",
        bulkhead: "nvme runs on MSI-X; so the register has another value, and a write of another value leaves it \
                   unchanged",
        reason: "as above",
    },
    Known {
        at: Registers {
            register: COMMAND,
            bits: 0x0400,
            seen: VALUES,
            phases: &[Phase::Driven],
            devices: &["nvme"],
        },
        pciback: "INTx is enabled: nvme runs on it",
        bulkhead: "INTx is disabled: nvme runs on MSI-X",
        reason: "as above",
    },
    Known {
        at: Registers {
            register: PMCSR,
            bits: 0x1e00,
            seen: &[Seen::Read],
            phases: &[Phase::Power],
            devices: &["e1000e"],
        },
        pciback: "a write with a power state that the device lacks is refused, but has already set the data select",
        bulkhead: "a write that is refused changes nothing",
        reason: "an error means that nothing was done",
    },
    Known {
        at: Registers {
            register: PMCSR,
            bits: 0,
            seen: &[Seen::Error],
            phases: &[Phase::Power],
            devices: &[],
        },
        pciback: "a write of 4 bytes with a power state that the device lacks is ignored and succeeds: the answer is \
                  that of the access's last register",
        bulkhead: "the write is refused, as both backends refuse such writes of 1 and 2 bytes",
        reason: "an error does not depend on the width",
    },
    Known {
        at: Registers {
            register: CACHE_LINE_SIZE,
            bits: 0xff,
            seen: VALUES,
            phases: &[Phase::Power, Phase::Random],
            devices: &[],
        },
        pciback: "if the guest turns on memory-write-and-invalidate, and its cache line size is no multiple of \
                  dom0's, then dom0's size is written",
        bulkhead: "the register holds what the guest wrote",
        reason: "Linux in the guest writes the size before it sets the bit, and a device must not use the command with a \
                 size that it does not support",
    },
];

impl Registers {
    /// Whether a difference shows here.
    pub fn have(&self, place: &InRegister) -> bool {
        self.register == place.register
            && place.bits & !self.bits == 0
            && self.seen.contains(&place.seen)
            && self.phases.contains(&place.phase)
            && (self.devices.is_empty() || self.devices.contains(&&*place.device))
    }

    /// The cells of the table that say where.
    pub fn cells(&self) -> Vec<String> {
        vec![
            self.register.to_string(),
            match self.bits {
                0 => "-".to_owned(),
                bits => format!("{bits:#06x}"),
            },
            list(self.seen),
            list(self.phases),
            match self.devices {
                [] => "any".to_owned(),
                devices => devices.join(", "),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use crate::comparison::{assert_in_parity, render};
    use crate::sweep::compare::Sweep;

    #[test]
    fn the_documentation_has_this_table() {
        assert_in_parity(&render::<Sweep>(), "config-sweep known");
    }
}
