//! The places of a function's capabilities, by which a sequence is made.

use core::fmt;
use core::str::FromStr;
use pci::registers::{capability, msix, register, status};

/// One function: properties that do not change while it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Its address on the guest's bus.
    pub devfn: u8,
    /// Offset of power management; 0: none.
    pub pm: u8,
    /// Offset of MSI; 0: none.
    pub msi: u8,
    /// Offset of MSI-X; 0: none.
    pub msix: u8,
    /// Entries of the MSI-X table; 0: none.
    pub vectors: u16,
}

impl Shape {
    /// Reads the shape of the function at `devfn`. `read` gets an offset in config space and a number of bytes.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn take<E>(devfn: u8, mut read: impl FnMut(u16, u8) -> Result<u32, E>) -> Result<Self, E> {
        let mut shape = Self {
            devfn,
            ..Self::default()
        };
        if read(register::STATUS, 2)? & u32::from(status::CAPABILITIES) == 0 {
            return Ok(shape);
        }
        let mut at = read(register::CAPABILITIES, 1)? as u8 & !3;
        for _ in 0..capability::MOST {
            if at < 0x40 {
                break;
            }
            let head = read(at.into(), 2)?;
            match head as u8 {
                capability::POWER => shape.pm = at,
                capability::MSI => shape.msi = at,
                capability::MSIX => {
                    shape.msix = at;
                    shape.vectors =
                        ((read(u16::from(at) + msix::CONTROL, 2)? & u32::from(msix::LAST_ENTRY)) + 1) as u16;
                }
                _ => {}
            }
            at = (head >> 8) as u8 & !3;
        }
        Ok(shape)
    }
}

/// One word: `DEVFN,PM,MSI,MSIX,VECTORS`.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            devfn,
            pm,
            msi,
            msix,
            vectors,
        } = self;
        write!(f, "{devfn},{pm},{msi},{msix},{vectors}")
    }
}

/// A text that is no shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoShape;

impl fmt::Display for NoShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a shape: expected DEVFN,PM,MSI,MSIX,VECTORS")
    }
}

impl core::error::Error for NoShape {}

impl FromStr for Shape {
    type Err = NoShape;

    fn from_str(text: &str) -> Result<Self, NoShape> {
        fn number<'a, N: FromStr>(mut words: impl Iterator<Item = &'a str>) -> Result<N, NoShape> {
            words.next().and_then(|word| word.parse().ok()).ok_or(NoShape)
        }
        let mut words = text.split(',');
        let shape = Self {
            devfn: number(&mut words)?,
            pm: number(&mut words)?,
            msi: number(&mut words)?,
            msix: number(&mut words)?,
            vectors: number(&mut words)?,
        };
        words.next().is_none().then_some(shape).ok_or(NoShape)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::string::ToString;
    use core::convert::Infallible;

    /// A function with everything.
    pub const FULL: Shape = Shape {
        devfn: 0,
        pm: 0xc8,
        msi: 0xd0,
        msix: 0xa0,
        vectors: 5,
    };

    #[test]
    fn capabilities_are_found_in_whatever_order() {
        let mut space = [0_u8; 256];
        for (at, bytes) in [
            (0x06, &[0x10][..]),
            (0x34, &[0xc8]),
            (0xc8, &[capability::POWER, 0xd0]),
            (0xd0, &[capability::MSI, 0xe0]),
            (0xe0, &[0x10, 0xa0]),
            (0xa0, &[capability::MSIX, 0, 4, 0x80]),
        ] {
            space[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let read = |offset: u16, width: u8| {
            let at = usize::from(offset);
            let bytes = &space[at..at + usize::from(width)];
            Ok::<u32, Infallible>(
                bytes
                    .iter()
                    .rev()
                    .fold(0, |value, byte| value << 8 | u32::from(*byte)),
            )
        };
        assert_eq!(Shape::take(0, read), Ok(FULL));
    }

    #[test]
    fn a_list_that_runs_in_a_circle_ends() {
        let read = |offset: u16, _| Ok::<u32, Infallible>(if offset == 6 { 0x10 } else { 0x4040 });
        assert!(Shape::take(0, read).is_ok());
    }

    #[test]
    fn a_shape_is_written_down_and_read_back() {
        assert_eq!(FULL.to_string(), "0,200,208,160,5");
        assert_eq!(FULL.to_string().parse(), Ok(FULL));
        for text in ["", "0,1,2,3", "0,1,2,3,4,5", "0,1,2,3,x", "256,1,2,3,4"] {
            assert_eq!(text.parse::<Shape>(), Err(NoShape), "{text}");
        }
    }
}
