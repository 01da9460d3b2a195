//! The table of differences that are meant, for the documentation.

use super::subject::Subject;
use crate::markdown::table;

/// The table in Markdown.
pub fn render<S: Subject>() -> String {
    let headings: Vec<&str> = S::COLUMNS
        .iter()
        .copied()
        .chain(["xen-pciback", "Bulkhead", "Why"])
        .collect();
    let rows = S::table().iter().map(|known| {
        let mut row = S::cells(&known.at);
        row.extend([
            S::behaviour(known.pciback),
            S::behaviour(known.bulkhead),
            known.reason.to_owned(),
        ]);
        row
    });
    table(&headings, rows)
}

/// For tests: docs/parity.md holds what a program prints, `text`, or the test fails and names the `program`.
#[cfg(test)]
pub fn assert_in_parity(text: &str, program: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/parity.md");
    let document = std::fs::read_to_string(path).unwrap();
    assert!(
        document.contains(text),
        "docs/parity.md says something else: put in what `cargo run -p bulkhead-tests --bin {program}` prints"
    );
}
