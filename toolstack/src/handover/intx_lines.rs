//! INTx lines: which one a function has, and who in dom0 uses it.

use crate::config_space::interrupts::sends_msi;
use crate::host::sysfs::{PCIBACK, Sysfs};
use pci::bdf::Bdf;
use pci::registers::register;
use std::fmt;
use std::io;

/// The base class of network controllers (PCI Code and ID Assignment, 1.3).
pub const NETWORK: u8 = 0x02;

/// The users of an INTx line: they have a handler on it, or are about to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharers {
    /// Functions with a driver in dom0.
    pub dom0: Vec<Bdf>,
    /// Handlers of dom0 that belong to no PCI function, such as `acpi`.
    pub handlers: Vec<String>,
    /// Functions of other guests.
    pub guests: Vec<Bdf>,
}

impl Sharers {
    /// True if nobody shares the line.
    pub fn is_empty(&self) -> bool {
        !self.include_dom0() && self.guests.is_empty()
    }

    /// True if dom0 hears the interrupts too, so that its kernel needs an answer to those of the guest.
    pub fn include_dom0(&self) -> bool {
        !self.dom0.is_empty() || !self.handlers.is_empty()
    }
}

/// The sharers, separated by commas.
impl fmt::Display for Sharers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self.dom0.iter().chain(&self.guests).map(Bdf::to_string);
        let handlers = self.handlers.iter().map(|name| format!("dom0's {name}"));
        f.write_str(&functions.chain(handlers).collect::<Vec<_>>().join(", "))
    }
}

/// The users of an INTx line in dom0. The functions `together` do not count.
///
/// Only a function with a driver counts: one that firmware or an earlier owner left enabled has no handler. Nor has
/// one whose driver turned MSI on. A network driver requests its interrupt when its interface goes up, so its function
/// counts before that; other drivers do when they bind.
pub fn dom0_sharers(gsi: u32, together: &[Bdf], sysfs: &Sysfs) -> io::Result<Sharers> {
    let mut handlers = sysfs.line_users(gsi);
    let driven = |bdf: Bdf| sysfs.driver(bdf).is_some_and(|driver| driver != PCIBACK);
    let uses_line = |bdf: Bdf| {
        let Ok(config) = sysfs.config_bytes(bdf) else {
            return false;
        };
        // A network driver requests its interrupt only when its interface goes up, so its function counts before
        // (decision 12).
        let is_network = config.get(usize::from(register::BASE_CLASS)) == Some(&NETWORK);
        sysfs.is_enabled(bdf) && !sends_msi(&config) && (is_network || !handlers.is_empty())
    };
    let on_line = sysfs.functions()?.into_iter();
    let (own, others): (Vec<Bdf>, Vec<Bdf>) = on_line
        .filter(|&bdf| line(bdf, sysfs) == Some(gsi) && driven(bdf))
        .partition(|bdf| together.contains(bdf));
    let dom0: Vec<Bdf> = others.into_iter().filter(|&bdf| uses_line(bdf)).collect();
    // sysfs names handlers by their drivers' words, not by function. They count as those of the functions found.
    if !dom0.is_empty() || !own.is_empty() {
        handlers.clear();
    }
    Ok(Sharers {
        dom0,
        handlers,
        guests: Vec::new(),
    })
}

/// The interrupt line of a device, if it has a pin.
pub fn line(bdf: Bdf, sysfs: &Sysfs) -> Option<u32> {
    let config = sysfs.config_bytes(bdf).ok()?;
    let pin = config.get(usize::from(register::INTERRUPT_PIN)).copied()?;
    // A function without a pin raises no INTx, whatever its `irq` says.
    if pin == 0 { None } else { sysfs.irq(bdf) }
}

/// False as long as dom0 has not turned the device on: what sysfs says until then is the firmware's guess.
pub fn line_is_known(bdf: Bdf, sysfs: &Sysfs) -> bool {
    sysfs.is_enabled(bdf) || sysfs.driver(bdf).is_some()
}
