//! Text for people within a number of columns.

use rustix::termios::tcgetwinsize;
use std::env;
use std::fmt::{self, Write as _};
use std::io;
use textwrap::{Options, WordSplitter};

/// Columns of a terminal that does not tell its width, and of files and pipes.
pub const COLUMNS: usize = 80;
/// A line longer than this is hard to read, however wide the terminal is.
const WIDEST: u16 = 100;

/// Columns that the output may take: those that the variable `COLUMNS` says; or those of the terminal, 100 at most; or 80.
pub fn columns() -> usize {
    let said = env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    said.filter(|&columns| columns > 0).unwrap_or_else(|| {
        let size = tcgetwinsize(io::stdout()).ok();
        let terminal = size.map(|size| size.ws_col).filter(|&columns| columns > 0);
        terminal.map_or(COLUMNS, |columns| columns.min(WIDEST).into())
    })
}

/// Rows of the terminal that the output goes to; without limit if that is none.
pub fn rows() -> usize {
    let size = tcgetwinsize(io::stdout()).ok();
    let rows = size.map(|size| size.ws_row).filter(|&rows| rows > 0);
    rows.map_or(usize::MAX, usize::from)
}

/// What can be told within a number of columns.
pub trait Render {
    /// The text, with a line break at its end.
    fn render(&self, columns: usize) -> String;
}

/// Lines of text. Words are wrapped, and never broken: a long address or command can be copied.
#[derive(Debug)]
pub struct Lines {
    text: String,
    columns: usize,
}

impl Lines {
    /// No lines yet.
    pub fn new(columns: usize) -> Self {
        Self {
            text: String::new(),
            columns,
        }
    }

    /// Adds a paragraph. Its first line begins with `first`, and the others are indented so far.
    pub fn hanging(&mut self, first: &str, indent: usize, paragraph: impl fmt::Display) {
        let indent = " ".repeat(indent);
        let options = Options::new(self.columns)
            .initial_indent(first)
            .subsequent_indent(&indent)
            .break_words(false)
            .word_splitter(WordSplitter::NoHyphenation);
        for line in textwrap::wrap(&paragraph.to_string(), options) {
            self.text.push_str(line.trim_end());
            self.text.push('\n');
        }
    }

    /// Adds a paragraph. Its lines after the first are indented by two columns.
    pub fn line(&mut self, paragraph: impl fmt::Display) {
        self.hanging("", 2, paragraph);
    }

    /// Adds a row: a title, and what is to say about it in a column of its own.
    pub fn row(&mut self, indent: usize, title: &str, wide: usize, what: impl fmt::Display) {
        let mut first = String::new();
        // A `String` takes all that it is given.
        let _ = write!(first, "{:indent$}{title:<wide$} ", "");
        self.hanging(&first, indent + wide + 1, what);
    }

    /// All lines.
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_below_where_the_text_begins_and_never_broken() {
        let mut lines = Lines::new(20);
        lines.line("one two three four five six");
        lines.row(2, "who", 4, "0123456789abcdef0123 and more");
        lines.row(2, "", 4, "");
        assert_eq!(
            lines.into_text(),
            "one two three four\n  five six\n  who  0123456789abcdef0123\n       and more\n\n"
        );
    }
}
