//! The registers of a function's interrupts: what they say, and how to turn interrupts on and off.

use crate::config_space::access::ConfigAccess;
use crate::config_space::bytes::u16_at;
use crate::config_space::capabilities::Capabilities;
use pci::registers::{SILENT, command, msi, msix, register};
use std::io;

/// Number of a function's MSI-X entries; 0 without MSI-X.
pub fn msix_entries(config: &[u8]) -> u16 {
    let control = control(config, Capabilities::find(config).msix, msix::CONTROL);
    control.map_or(0, |control| (control & msix::LAST_ENTRY) + 1)
}

/// True if MSI or MSI-X is on, so that the function raises no INTx.
pub fn sends_msi(config: &[u8]) -> bool {
    let Capabilities { msi, msix, .. } = Capabilities::find(config);
    let on = |at, offset, bit| control(config, at, offset).is_some_and(|control| control & bit != 0);
    on(msi, msi::CONTROL, msi::ENABLE) || on(msix, msix::CONTROL, msix::ENABLE)
}

/// The control word of a capability.
fn control(config: &[u8], capability: Option<u16>, offset: u16) -> Option<u16> {
    u16_at(config, usize::from(capability? + offset))
}

/// Number of vectors of a function's MSI capability, 1 to 32; 0 without MSI.
pub fn msi_vectors(config: &[u8]) -> u32 {
    let control = control(config, Capabilities::find(config).msi, msi::CONTROL);
    // Bits 1 to 3 hold the logarithm; 6 and 7 are reserved.
    control.map_or(0, |control| 1 << (control >> 1 & 7).min(5))
}

/// Turns MSI and MSI-X off in the device.
pub fn turn_off(config: &impl ConfigAccess, capabilities: &Capabilities) -> io::Result<()> {
    let msi = capabilities.msi.map(|at| (at + msi::CONTROL, msi::ENABLE));
    let msix = capabilities.msix.map(|at| (at + msix::CONTROL, msix::ENABLE));
    for (control, enable) in msi.into_iter().chain(msix) {
        clear(config, control, enable)?;
    }
    Ok(())
}

/// Clears the bit `enable` of the control word at `control`, where it is set. Returns the word as it is then.
pub fn clear(config: &impl ConfigAccess, control: u16, enable: u16) -> io::Result<u16> {
    let value = config.read16(control)?;
    if value == SILENT || value & enable == 0 {
        return Ok(value);
    }
    config.write16(control, value & !enable)?;
    Ok(value & !enable)
}

/// Disables INTx of the function. Returns COMMAND as it is then.
pub fn disable_intx(config: &impl ConfigAccess) -> io::Result<u16> {
    let value = config.read16(register::COMMAND)?;
    if value & command::INTX_DISABLE == 0 {
        config.write16(register::COMMAND, value | command::INTX_DISABLE)?;
    }
    Ok(value | command::INTX_DISABLE)
}

/// Enables INTx of the function again. Returns COMMAND as it is then.
pub fn enable_intx(config: &impl ConfigAccess) -> io::Result<u16> {
    clear(config, register::COMMAND, command::INTX_DISABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::capabilities::tests::space;

    #[test]
    fn the_messages_of_msi_are_counted_by_the_power_of_two() {
        let mut config = space(&[(0x50, 5)]);
        for (control, messages) in [(0x80, 1), (0x8a, 32), (0x8e, 32)] {
            config[0x52] = control;
            assert_eq!(msi_vectors(&config), messages);
        }
        assert_eq!(msi_vectors(&[0; 256]), 0);
    }

    #[test]
    fn the_size_of_the_table_is_read_from_the_capability() {
        let mut config = space(&[(0x70, 0x11)]);
        config[0x72] = 4;
        assert_eq!(msix_entries(&config), 5);
        config[0x72..0x74].copy_from_slice(&0x07ff_u16.to_le_bytes());
        assert_eq!(msix_entries(&config), 2048);
        assert_eq!(msix_entries(&[0; 256]), 0);
        assert_eq!(msix_entries(&[]), 0);
    }
}
