//! Putting the header of a configuration space back to what was recorded.

use crate::config::{Config, quiet, register};
use std::io;

/// The address registers: six base addresses and the ROM's.
const ADDRESSES: [u16; 7] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, register::ROM];

/// Writes the recorded addresses back where they were lost; true if any was.
pub fn addresses(config: &impl Config, header: &[u8]) -> io::Result<bool> {
    let mut lost = false;
    for offset in ADDRESSES {
        let at = usize::from(offset);
        let recorded = header
            .get(at..at + 4)
            .and_then(|raw| raw.try_into().ok())
            .map(u32::from_le_bytes);
        if let Some(recorded) = recorded
            && config.read(offset, 4)? != recorded
        {
            config.write(offset, 4, recorded)?;
            lost = true;
        }
    }
    Ok(lost)
}

/// Puts the whole header back, with DMA and INTx off: addresses, command, cache line, latency, interrupt line.
pub fn header(config: &impl Config, header: &[u8]) -> io::Result<()> {
    addresses(config, header)?;
    for offset in [register::CACHE_LINE, register::LATENCY, register::INTERRUPT_LINE] {
        if let Some(&recorded) = header.get(usize::from(offset))
            && config.read(offset, 1)? != u32::from(recorded)
        {
            config.write(offset, 1, recorded.into())?;
        }
    }
    let at = usize::from(register::COMMAND);
    if let Some(raw) = header.get(at..at + 2).and_then(|raw| raw.try_into().ok()) {
        config.write16(register::COMMAND, quiet(u16::from_le_bytes(raw)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::Model;

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
    fn a_header_that_was_not_recorded_restores_nothing() {
        let config = Model::new(vec![0xff; 64]);
        header(&config, &[]).unwrap();
        assert!(config.writes.borrow().is_empty());
    }
}
