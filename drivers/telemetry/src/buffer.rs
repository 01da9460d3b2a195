//! Text in memory that is there already: nothing on the path of a frame allocates.

use core::fmt;

/// Text that is written into a slice. What does not fit is refused, after as much of it as does.
#[derive(Debug)]
pub struct Buffer<'a> {
    bytes: &'a mut [u8],
    length: usize,
}

impl<'a> Buffer<'a> {
    /// Nothing yet.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, length: 0 }
    }

    /// Bytes written.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Bytes that still fit.
    pub const fn room(&self) -> usize {
        self.bytes.len() - self.length
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Not all of them fit.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> fmt::Result {
        let taken = bytes.len().min(self.room());
        self.bytes[self.length..self.length + taken].copy_from_slice(&bytes[..taken]);
        self.length += taken;
        if taken == bytes.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

impl fmt::Write for Buffer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_bytes(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::fmt::Write;

    #[test]
    fn text_that_does_not_fit_is_cut_and_refused() {
        let mut bytes = [0; 4];
        let mut buffer = Buffer::new(&mut bytes);
        assert!(buffer.write_str("abc").is_ok());
        assert!(buffer.write_str("def").is_err());
        assert_eq!((buffer.length(), buffer.room()), (4, 0));
        assert_eq!(&bytes, b"abcd");
    }
}
