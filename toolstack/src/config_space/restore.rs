//! Restores the header of a configuration space from the record.

use crate::config_space::access::{ConfigAccess, quiet};
use crate::config_space::bytes::register_at;
use crate::config_space::header as layout;
use pci::registers::register;
use std::io;

/// Restores the recorded addresses, and a bridge's buses and windows, where they were lost. Returns true if any was.
pub fn addresses(config: &impl ConfigAccess, header: &[u8]) -> io::Result<bool> {
    let mut lost = false;
    let addresses = layout::addresses(header).iter().map(|&offset| (offset, 4));
    for (offset, width) in addresses.chain(layout::windows(header).iter().copied()) {
        if let Some(recorded) = register_at(header, offset, width)
            // Only what differs is written: each write of a BAR moves what the function answers to.
            && config.read(offset, width)? != recorded
        {
            config.write(offset, width, recorded)?;
            lost = true;
        }
    }
    Ok(lost)
}

/// Restores the whole header, with DMA and INTx off: addresses, COMMAND, cache line, latency, interrupt line.
pub fn header(config: &impl ConfigAccess, header: &[u8]) -> io::Result<()> {
    addresses(config, header)?;
    for offset in [register::CACHE_LINE, register::LATENCY, register::INTERRUPT_LINE] {
        if let Some(recorded) = register_at(header, offset, 1)
            && config.read(offset, 1)? != recorded
        {
            config.write(offset, 1, recorded)?;
        }
    }
    // COMMAND last: the function must not decode memory before its addresses are right.
    if let Some(command) = register_at(header, register::COMMAND, 2) {
        let bridge = layout::is_bridge(header);
        config.write16(register::COMMAND, quiet(command as u16, bridge))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::access::tests::Model;

    fn recorded() -> Vec<u8> {
        let mut header = vec![0; 64];
        header[0x04] = 0x07;
        header[0x0c] = 0x10;
        header[0x10..0x14].copy_from_slice(&0xfebc_0000_u32.to_le_bytes());
        header[0x30..0x34].copy_from_slice(&0xfeb8_0000_u32.to_le_bytes());
        header[0x3c] = 11;
        header
    }

    #[test]
    fn lost_addresses_come_back_and_only_they_are_written() {
        let mut now = recorded();
        now[0x10..0x14].fill(0);
        let config = Model::new(now);
        assert!(addresses(&config, &recorded()).unwrap());
        assert_eq!(*config.writes.borrow(), [(0x10, 4, 0xfebc_0000)]);
        assert!(!addresses(&config, &recorded()).unwrap());
    }

    #[test]
    fn the_header_comes_back_with_dma_and_intx_off() {
        let config = Model::new(vec![0; 64]);
        header(&config, &recorded()).unwrap();
        let mut expected = recorded();
        expected[0x04..0x06].copy_from_slice(&[0x03, 0x04]);
        assert_eq!(*config.bytes.borrow(), expected);
    }

    #[test]
    fn a_bridge_gets_its_buses_and_windows_back_and_stays_bus_master() {
        let mut recorded = layout::tests::bridge();
        recorded[0x04] = 0x17;
        recorded[0x20..0x24].copy_from_slice(&0xfe90_fe80_u32.to_le_bytes());
        let mut lost = recorded.clone();
        lost[0x04..0x06].fill(0);
        lost[0x18..0x34].fill(0);
        // Status bits that a written 1 would clear.
        lost[0x1f] = 0x20;
        lost.resize(256, 0);
        let config = Model::new(lost);
        header(&config, &recorded).unwrap();
        assert_eq!(
            *config.writes.borrow(),
            [(0x18, 4, 0x0003_0200), (0x20, 4, 0xfe90_fe80), (0x04, 2, 0x0007)]
        );
    }

    #[test]
    fn a_header_that_was_not_recorded_restores_nothing() {
        let config = Model::new(vec![0xff; 64]);
        header(&config, &[]).unwrap();
        assert!(config.writes.borrow().is_empty());
    }
}
