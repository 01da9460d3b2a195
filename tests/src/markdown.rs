//! Tables for the documentation.

/// A table with a heading for each column, and as many cells in each row.
pub fn table<Row: AsRef<[String]>>(headings: &[&str], rows: impl IntoIterator<Item = Row>) -> String {
    let mut text = format!(
        "| {} |\n|{}\n",
        headings.join(" | "),
        "---|".repeat(headings.len())
    );
    for row in rows {
        let cells = row.as_ref();
        assert_eq!(cells.len(), headings.len(), "cells of {}", headings[0]);
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

/// Several things in one cell.
pub fn list(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_headings_a_rule_and_rows() {
        let rows = [[list(&[1, 2]), "b".to_owned()]];
        assert_eq!(
            table(&["One", "Two"], rows),
            "| One | Two |\n|---|---|\n| 1, 2 | b |\n"
        );
    }
}
