//! The table of all metrics, as docs/metrics.md has it.

use metrics::families::{ALL, Source};
use metrics::{Family, Kind};
use std::fmt::Write as _;

/// The head of the table.
const HEAD: &str = "| metric | kind | labels | from | meaning |\n|---|---|---|---|---|\n";

/// The table as Markdown.
pub fn table() -> String {
    let mut table = String::from(HEAD);
    for family in ALL {
        let Family { name, kind, help, .. } = family;
        let mut labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        if *kind == Kind::Histogram {
            labels.push("`le`".into());
        }
        let from = match family.source {
            Source::Both => "dom0, stub",
            Source::Dom0 => "dom0",
            Source::Stub => "stub",
        };
        let (suffix, kind, labels) = (kind.suffix(), kind.name(), labels.join(", "));
        // A string takes all.
        let _ = writeln!(
            table,
            "| `{name}{suffix}` | {kind} | {labels} | {from} | {help} |"
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// To take in a change that was reviewed: run this test with UPDATE_METRICS=1.
    #[test]
    fn the_document_has_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let document = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = document.split_once(HEAD).unwrap_or((&document, ""));
        let rows = rest
            .split_inclusive('\n')
            .take_while(|line| line.starts_with('|'));
        let after: String = rest.split_inclusive('\n').skip(rows.count()).collect();
        let expected = format!("{before}{}{after}", table());
        if std::env::var_os("UPDATE_METRICS").is_some() {
            std::fs::write(&path, expected).unwrap();
        } else {
            assert!(
                document == expected,
                "run this test with UPDATE_METRICS=1, and look at what changes"
            );
        }
    }
}
