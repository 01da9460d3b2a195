//! The guest's end of the Xen console (`xen/include/public/io/console.h`).
//!
//! Nothing waits for a reader: a line that does not fit is lost whole, and the next one that fits is preceded by a
//! line that says how many were.

use core::fmt::{self, Write};
use xenbus::pciif::SharedPage;
use xenbus::ring::CONSOLE_OUTPUT;

/// A console ring that lines are written to.
#[derive(Debug)]
pub struct Console<P> {
    page: P,
    lost: u32,
}

impl<P: SharedPage> Console<P> {
    /// Wraps the console's page.
    pub const fn new(page: P) -> Self {
        Self { page, lost: 0 }
    }

    /// Writes `line` and a line end; true if the reader is to be told by an event.
    pub fn write_line(&mut self, line: &[u8]) -> bool {
        let Ok(held) = CONSOLE_OUTPUT.held(&self.page) else {
            self.lost = self.lost.saturating_add(1);
            return false;
        };
        let notice = (self.lost > 0).then(|| Notice::new(self.lost));
        let notice = notice.as_ref().map_or(&[][..], Notice::bytes);
        if notice.len() + line.len() + LINE_END.len() > (CONSOLE_OUTPUT.size - held) as usize {
            self.lost = self.lost.saturating_add(1);
            return false;
        }
        self.lost = 0;
        for part in [notice, line, LINE_END] {
            // There is room for all of it, unless the reader has just broken the indices.
            if CONSOLE_OUTPUT.push(&self.page, part).is_err() {
                return false;
            }
        }
        true
    }

    /// Whether the reader has taken all; also true when the ring is broken and nothing will ever be taken.
    pub fn is_drained(&self) -> bool {
        CONSOLE_OUTPUT.held(&self.page).unwrap_or(0) == 0
    }
}

const LINE_END: &[u8] = b"\r\n";

/// The line that tells of lost ones.
struct Notice {
    bytes: [u8; 64],
    length: usize,
}

impl Notice {
    fn new(lost: u32) -> Self {
        let mut notice = Self {
            bytes: [0; 64],
            length: 0,
        };
        // Fits: 46 bytes at most.
        let _ = write!(notice, "({lost} lines lost: the console was full)\r\n");
        notice
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Notice {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self
            .bytes
            .get_mut(self.length..self.length + text.len())
            .ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}
