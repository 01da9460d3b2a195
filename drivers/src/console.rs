//! The guest's end of the Xen console (`xen/include/public/io/console.h`).
//!
//! Nothing waits for a reader. A line that does not fit is lost whole, and a line before the next one that fits says how
//! many were lost.

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

    /// Writes `line` and a line end; true if the reader needs an event.
    pub fn write_line(&mut self, line: &[u8]) -> bool {
        let Ok(held) = CONSOLE_OUTPUT.held(&self.page) else {
            // The reader has broken the indices. Lines go on when it mends them.
            self.lost = self.lost.saturating_add(1);
            return false;
        };
        let notice;
        let lines: &[&[u8]] = if self.lost > 0 {
            notice = Line::new(format_args!("({} lines lost: the console was full)", self.lost));
            &[notice.bytes(), line]
        } else {
            &[line]
        };
        // All or nothing: half a line would run into the next one.
        let length: usize = lines.iter().map(|line| line.len() + LINE_END.len()).sum();
        if length > (CONSOLE_OUTPUT.size - held) as usize {
            self.lost = self.lost.saturating_add(1);
            return false;
        }
        self.lost = 0;
        for part in lines.iter().flat_map(|line| [*line, LINE_END]) {
            // There is room for all of it, unless the reader has just broken the indices.
            if CONSOLE_OUTPUT.push(&self.page, part).is_err() {
                return false;
            }
        }
        true
    }

    /// True if the reader has taken everything. Also true if the ring is broken: nothing will ever be taken then.
    pub fn is_drained(&self) -> bool {
        CONSOLE_OUTPUT.held(&self.page).unwrap_or(0) == 0
    }
}

const LINE_END: &[u8] = b"\r\n";

/// Most bytes of a line. Longer ones are cut.
const LINE: usize = 240;

/// A line that is being formatted, without the heap: the logger serves panics too.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; LINE],
    length: usize,
}

impl Line {
    /// Formats a line, without its end.
    // One copy of it in the image.
    #[inline(never)]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            bytes: [0; LINE],
            length: 0,
        };
        // Refused only when the line is full: then it ends there.
        let _ = line.write_fmt(text);
        line
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let place = self.bytes.get_mut(self.length).ok_or(fmt::Error)?;
            // One record, one line; and no escape sequence of a guest's reaches a terminal.
            *place = if byte.is_ascii_graphic() || byte == b' ' {
                byte
            } else {
                b'?'
            };
            self.length += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec;
    use xenbus::model::Page;

    /// What the reader takes off.
    fn read(page: &Page) -> String {
        let mut bytes = vec![0; 4096];
        let count = CONSOLE_OUTPUT.pop(page, &mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[test]
    fn lines_come_out_as_they_went_in() {
        let page = Page::new();
        let mut console = Console::new(page.clone());
        assert!(console.write_line(b"one") && console.write_line(b"two"));
        assert!(!console.is_drained());
        assert_eq!(read(&page), "one\r\ntwo\r\n");
        assert!(console.is_drained());
    }

    #[test]
    fn a_console_that_nobody_reads_loses_whole_lines_and_counts_them() {
        let page = Page::new();
        let mut console = Console::new(page.clone());
        let written = (0..100).filter(|_| console.write_line(&[b'x'; 98])).count();
        assert_eq!(written, 20, "2048 bytes hold 20 lines of 100");
        let text = read(&page);
        assert!(text.lines().all(|line| line.len() == 98));

        assert!(console.write_line(b"again"));
        assert_eq!(read(&page), "(80 lines lost: the console was full)\r\nagain\r\n");
        assert!(console.write_line(b"and on"));
        assert_eq!(read(&page), "and on\r\n");
    }

    #[test]
    fn a_line_that_can_never_fit_is_lost_and_told_of() {
        let page = Page::new();
        let mut console = Console::new(page.clone());
        assert!(!console.write_line(&[b'x'; 3000]));
        assert!(console.write_line(b"next"));
        assert!(read(&page).starts_with("(1 lines lost"));
    }

    #[test]
    fn a_reader_that_breaks_the_ring_costs_lines_and_nothing_else() {
        let page = Page::new();
        let mut console = Console::new(page.clone());
        page.store(CONSOLE_OUTPUT.consumer, 5000);
        assert!(!console.write_line(b"lost"));
        assert!(console.is_drained(), "waiting for such a reader would never end");
        page.store(CONSOLE_OUTPUT.consumer, 0);
        assert!(console.write_line(b"back"));
    }

    #[test]
    fn a_line_is_one_line_of_printable_text_and_cut_where_it_is_too_long() {
        assert_eq!(
            Line::new(format_args!("{} of {}", 1, "2\r\n\u{1b}[2J\u{e9}")).bytes(),
            b"1 of 2???[2J??"
        );
        let long = Line::new(format_args!("{:300}", "x"));
        assert_eq!((long.bytes().len(), long.bytes()[0]), (LINE, b'x'));
    }
}
