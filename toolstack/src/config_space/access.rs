//! Access to the configuration space of one function.

use inject::Point;
use pci::registers::{SILENT, command, header_type, register};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Bytes of the configuration space that every function has.
pub const SPACE: usize = 256;
/// Bytes of it with the extended space of PCI Express.
pub const EXTENDED_SPACE: usize = 4096;

/// Time that a function may take from D3hot to D0 (PCI Power Management 1.2, section 5.6.1).
pub const WAKE_UP: Duration = Duration::from_millis(10);

/// Reads and writes of naturally aligned registers, 1, 2 or 4 bytes wide.
pub trait ConfigAccess {
    /// Reads a register, zero-extended.
    fn read(&self, offset: u16, width: u8) -> io::Result<u32>;
    /// Writes the low `width` bytes of `value`, in one access of that width.
    fn write(&self, offset: u16, width: u8, value: u32) -> io::Result<()>;

    /// Reads the first `length` bytes of the space, by 32 bits, or fewer if it ends before that. It is an error if there
    /// are fewer than [`SPACE`].
    fn read_space(&self, length: usize) -> io::Result<Vec<u8>>;

    /// Reads a 16-bit register.
    fn read16(&self, offset: u16) -> io::Result<u16> {
        self.read(offset, 2).map(|value| value as u16)
    }

    /// Reads a 16-bit register some of whose bits always read 0. All-ones is an error: the device does not answer.
    fn read_sound(&self, offset: u16) -> io::Result<u16> {
        match self.read16(offset)? {
            SILENT => Err(io::Error::other(
                "the device answers all-ones: see whether it is there and powered",
            )),
            value => Ok(value),
        }
    }

    /// Writes a 16-bit register.
    fn write16(&self, offset: u16, value: u16) -> io::Result<()> {
        self.write(offset, 2, value.into())
    }
}

/// A value of COMMAND without DMA and INTx. A bridge keeps its bus master bit: it does no DMA of its own, and passes
/// on that of the devices behind it. Dom0 would not turn the bit on again.
pub fn quiet(command: u16, bridge: bool) -> u16 {
    if bridge {
        command & !command::INVALIDATE
    } else {
        command & !command::MASTER | command::INTX_DISABLE
    }
}

/// Turns DMA and INTx of the function off: a function that waits for its driver may hold down a line that others
/// share. Linux turns both on again for the next driver.
pub fn quieten(config: &impl ConfigAccess) -> io::Result<()> {
    let now = config.read16(register::COMMAND)?;
    // A device that does not answer has nothing to be stopped, and must not get all-ones back.
    if now == SILENT {
        return Ok(());
    }
    let kind = config.read(register::HEADER_TYPE, 1)? as u8;
    let bridge = kind & header_type::KIND == header_type::BRIDGE;
    config.write16(register::COMMAND, quiet(now, bridge))
}

/// The `config` file that Linux keeps in sysfs for each function, held open.
///
/// Linux splits a write of 1, 2 or 4 aligned bytes into no smaller accesses.
#[derive(Debug)]
pub struct ConfigFile(pub File);

impl ConfigAccess for ConfigFile {
    fn read(&self, offset: u16, width: u8) -> io::Result<u32> {
        let mut bytes = [0; 4];
        let part = part(&mut bytes, width)?;
        self.0.read_exact_at(part, offset.into())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read_space(&self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut read = 0;
        while read < length {
            match self.0.read_at(&mut bytes[read..], read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A function may have no extended space, and its first 256 bytes are enough.
                Err(_) if read >= SPACE => break,
                Err(error) => return Err(error),
            }
        }
        if read < SPACE {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, offset: u16, width: u8, value: u32) -> io::Result<()> {
        let mut bytes = value.to_le_bytes();
        let part = part(&mut bytes, width)?;
        inject::call(Point::Write)?;
        let written = self.0.write_at(part, offset.into())?;
        inject::point(Point::Written);
        match written {
            // A short write has changed a part of the register, or nothing.
            written if written == part.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

fn part(bytes: &mut [u8; 4], width: u8) -> io::Result<&mut [u8]> {
    match width {
        1 | 2 | 4 => Ok(&mut bytes[..usize::from(width)]),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::RefCell;

    /// A configuration space in memory, which notes every access.
    #[derive(Default)]
    pub struct Model {
        pub bytes: RefCell<Vec<u8>>,
        pub reads: RefCell<Vec<u16>>,
        pub writes: RefCell<Vec<(u16, u8, u32)>>,
        /// Bits that a write cannot change, by offset.
        pub stuck: Vec<u16>,
        /// Registers that cannot be written at all.
        pub refused: Vec<u16>,
    }

    impl Model {
        pub fn new(bytes: Vec<u8>) -> Self {
            Self {
                bytes: RefCell::new(bytes),
                ..Self::default()
            }
        }

        pub fn set16(&self, offset: u16, value: u16) {
            let at = usize::from(offset);
            self.bytes.borrow_mut()[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }

    impl ConfigAccess for Model {
        fn read(&self, offset: u16, width: u8) -> io::Result<u32> {
            self.reads.borrow_mut().push(offset);
            let mut value = [0; 4];
            let at = usize::from(offset);
            let width = usize::from(width);
            let bytes = self.bytes.borrow();
            let register = bytes.get(at..at + width).ok_or(io::ErrorKind::UnexpectedEof)?;
            value[..width].copy_from_slice(register);
            Ok(u32::from_le_bytes(value))
        }

        fn read_space(&self, length: usize) -> io::Result<Vec<u8>> {
            let bytes = self.bytes.borrow();
            if bytes.len() < SPACE {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(bytes[..length.min(bytes.len())].to_vec())
        }

        fn write(&self, offset: u16, width: u8, value: u32) -> io::Result<()> {
            if self.refused.contains(&offset) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.writes.borrow_mut().push((offset, width, value));
            if !self.stuck.contains(&offset) {
                let at = usize::from(offset);
                let width = usize::from(width);
                self.bytes.borrow_mut()[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
            }
            Ok(())
        }
    }

    #[test]
    fn a_file_is_read_and_written_in_the_width_asked_for() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0x86, 0x80, 0xd3, 0x10, 7, 4, 0x10, 0], 0)
            .unwrap();
        let config = ConfigFile(file);
        assert_eq!(config.read(0, 4).unwrap(), 0x10d3_8086);
        assert_eq!(config.read(2, 2).unwrap(), 0x10d3);
        assert_eq!(config.read(5, 1).unwrap(), 4);
        config.write(4, 2, 0xffff_0001).unwrap();
        assert_eq!(config.read(4, 4).unwrap(), 0x0010_0001);
    }

    #[test]
    fn the_space_is_read_as_far_as_there_is_one() {
        for (there, wanted, read) in [
            (0, SPACE, None),
            (64, SPACE, None),
            (256, SPACE, Some(256)),
            (256, EXTENDED_SPACE, Some(256)),
            (4096, SPACE, Some(256)),
            (4096, EXTENDED_SPACE, Some(4096)),
        ] {
            let bytes: Vec<u8> = (0..there).map(|at| (at % 251) as u8).collect();
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            let found = ConfigFile(file).read_space(wanted).ok();
            assert_eq!(
                found.as_deref(),
                read.map(|length: usize| &bytes[..length]),
                "{there}, {wanted}"
            );
        }
    }

    #[test]
    fn a_device_that_does_not_answer_is_not_written_to() {
        let config = Model::new(vec![0xff; 64]);
        quieten(&config).unwrap();
        assert!(config.writes.borrow().is_empty());
        assert!(config.read_sound(register::COMMAND).is_err());
        config.set16(register::COMMAND, 0x0007);
        assert_eq!(config.read_sound(register::COMMAND).unwrap(), 0x0007);
    }

    #[test]
    fn an_odd_width_and_a_read_past_the_end_are_errors() {
        let config = ConfigFile(tempfile::tempfile().unwrap());
        assert!(config.read(0, 3).is_err());
        assert!(config.write(0, 0, 0).is_err());
        assert!(config.read(0, 1).is_err());
    }
}
