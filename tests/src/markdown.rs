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
