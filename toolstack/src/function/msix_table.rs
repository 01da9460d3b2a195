//! What has to be true before entries of an MSI-X table can be mapped.

use crate::config_space::access::ConfigAccess;
use crate::function::failure::Failure;
use pci::registers::{command, msix, power, register};
use std::collections::BTreeSet;
use std::io;
use xenbus::device::Bars;
use xenbus::pciif::{MAX_VECTORS, OpError};

/// The function that decodes memory for another: itself, or the physical one of a virtual one.
#[derive(Debug)]
pub struct Decoder<'a, C> {
    /// Its configuration space.
    pub config: &'a C,
    /// Where the power management of the physical one lies, if it has it.
    pub power: Option<u16>,
}

/// The MSI-X table of a function that is ready for it.
pub(super) struct MsixTable {
    /// The control word of the capability.
    pub control: u16,
    /// The highest number of an entry.
    pub last_entry: u16,
}

impl MsixTable {
    /// The table behind the MSI-X capability at `capability`, if Xen can write to it now. `power` is where the power
    /// management of the function itself lies.
    pub fn find<C: ConfigAccess>(
        config: &impl ConfigAccess,
        decoder: Decoder<'_, C>,
        capability: u16,
        power: Option<u16>,
    ) -> Result<Self, Failure> {
        let command = decoder.config.read_sound(register::COMMAND);
        // Xen writes to the table when it maps an entry, so the BAR must be decoded (XSA-157).
        if command.map_err(Failure::config)? & command::MEMORY == 0 {
            return Err(Failure::new(OpError::ENXIO, "the device does not decode memory"));
        }
        let control = config
            .read_sound(capability + msix::CONTROL)
            .map_err(Failure::config)?;
        let awake = is_awake(decoder.config, decoder.power)
            .and_then(|decoder| Ok(decoder && is_awake(config, power)?));
        if !awake.map_err(Failure::config)? {
            return Err(Failure::asleep(OpError::EINVAL));
        }
        Ok(Self {
            control,
            last_entry: control & msix::LAST_ENTRY,
        })
    }

    /// Refuses entries that are none, too many, beyond the table, or not distinct.
    pub fn check_entries(&self, entries: &[u16]) -> Result<(), Failure> {
        let refuse = |cause: String| Err(Failure::new(OpError::EINVAL, cause));
        if entries.is_empty() || entries.len() > MAX_VECTORS {
            return refuse(format!(
                "{} vectors: 1 to {MAX_VECTORS} can be asked for",
                entries.len()
            ));
        }
        let last = self.last_entry;
        if let Some(beyond) = entries.iter().find(|&&entry| entry > last) {
            return refuse(format!("entry {beyond}: the table ends with {last}"));
        }
        // Xen would map an entry a second time, and nobody would ever unmap the first pirq.
        let mut seen = BTreeSet::new();
        match entries.iter().find(|&&entry| !seen.insert(entry)) {
            Some(twice) => refuse(format!("entry {twice} is asked for twice")),
            None => Ok(()),
        }
    }
}

/// Where the range begins that holds the MSI-X table.
pub(super) fn msix_bar(config: &impl ConfigAccess, capability: Option<u16>, bars: &Bars) -> io::Result<u64> {
    let no_table = || io::Error::other("the MSI-X table lies behind a base address that is not there");
    let table = config.read(capability.ok_or_else(no_table)? + msix::TABLE, 4)?;
    let bar = bars.0.get((table & msix::TABLE_BAR) as usize);
    // The seventh range is the ROM, which holds no table.
    let bar = bar.filter(|bar| bar.size != 0 && table & msix::TABLE_BAR < 6);
    bar.map(|bar| bar.start).ok_or_else(no_table)
}

/// True if a function with its power management at `power` is in D0. In any other state it answers no memory access,
/// although its COMMAND says that it decodes; Xen looks at that alone, and would write to its table.
pub(super) fn is_awake(config: &impl ConfigAccess, power: Option<u16>) -> io::Result<bool> {
    match power {
        Some(power) => Ok(config.read_sound(power + power::CONTROL)? & power::STATE == 0),
        None => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use crate::config_space::access::tests::Model;
    use crate::function::interrupts::tests::{COMMAND, GUEST, MSIX, function, own};
    use pci::registers::command;
    use xen::model::Xen;
    use xenbus::pciif::OpError;

    #[test]
    fn what_cannot_be_asked_for_is_refused_before_anything_is_mapped() {
        let many: Vec<u16> = (0..129).collect();
        for (entries, cause) in [
            (&[][..], "0 vectors: 1 to 128 can be asked for"),
            (&many[..], "129 vectors: 1 to 128 can be asked for"),
            (&[0, 5][..], "entry 5: the table ends with 4"),
            (&[1, 0, 1][..], "entry 1 is asked for twice"),
        ] {
            let (config, mut interrupts) = function();
            let xen = Xen::default();
            let failure = interrupts
                .enable_msix(&config, own(&config), &xen, GUEST, entries, |_| {})
                .unwrap_err();
            assert_eq!((failure.error, failure.cause.as_str()), (OpError::EINVAL, cause));
            assert!(xen.calls().is_empty());
        }
    }

    #[test]
    fn the_last_entry_of_the_largest_table_can_be_asked_for() {
        let (config, mut interrupts) = function();
        let xen = Xen::default();
        config.set16(MSIX + 2, 0x07ff);
        let entries: Vec<u16> = (1920..2048).collect();
        let pirqs = interrupts.enable_msix(&config, own(&config), &xen, GUEST, &entries[112..], |_| {});
        assert_eq!(pirqs.unwrap().len(), 16);
    }

    #[test]
    fn msix_of_a_virtual_function_needs_the_decode_bit_of_its_physical_one() {
        let (config, mut interrupts) = function();
        config.set16(COMMAND, 0);
        let physical = Model::new(vec![0; 64]);
        let xen = Xen::default();
        let mut enable = || interrupts.enable_msix(&config, own(&physical), &xen, GUEST, &[0], |_| {});
        assert_eq!(enable().unwrap_err().error, OpError::ENXIO);
        assert!(xen.calls().is_empty());
        physical.set16(COMMAND, command::MEMORY);
        assert_eq!(enable().unwrap(), [55]);
        assert!(physical.writes.borrow().is_empty());
    }
}
