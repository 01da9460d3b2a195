//! Tables for the documentation.

/// A table with a heading for each column.
pub fn table<const COLUMNS: usize>(
    headings: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&headings.map(str::to_owned));
    text += &format!("|{}\n", "---|".repeat(COLUMNS));
    text.extend(rows.into_iter().map(|row| line(&row)));
    text
}

/// Several things in one cell.
pub fn list(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_headings_a_rule_and_rows() {
        let rows = [[list(&[1, 2]), "b".to_owned()]];
        assert_eq!(
            table(["One", "Two"], rows),
            "| One | Two |\n|---|---|\n| 1, 2 | b |\n"
        );
    }
}
