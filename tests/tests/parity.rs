//! docs/parity.md names a test for what it claims: each of them exists.

mod common;

use common::tests;

const PARITY: &str = include_str!("../../docs/parity.md");
const VERDICTS: [&str; 4] = ["same", "better", "refused", "elsewhere"];
/// Letters of the sections that the rules are ordered by.
const SECTIONS: &str = "abcdefgh";

/// A row of the tables under "Rule by rule".
struct Row {
    section: char,
    rule: String,
    verdict: String,
    how: String,
    shown_by: Vec<String>,
}

fn rows() -> Vec<Row> {
    let (_, tables) = PARITY.split_once("\n## Rule by rule\n").unwrap();
    let mut section = '-';
    let mut rows = Vec::new();
    for line in tables.lines() {
        if let Some(title) = line.strip_prefix("### ") {
            section = title.chars().next().unwrap();
        }
        let Some(cells) = line.strip_prefix("| ") else {
            continue;
        };
        let cells: Vec<_> = cells.trim_end_matches('|').split('|').map(str::trim).collect();
        let [rule, verdict, how, shown_by] = cells[..] else {
            panic!("not four cells: {line}");
        };
        if rule != "Rule" {
            rows.push(Row {
                section,
                rule: rule.to_owned(),
                verdict: verdict.to_owned(),
                how: how.to_owned(),
                shown_by: shown_by
                    .split(", ")
                    .filter(|name| !name.is_empty())
                    .map(|name| name.trim_matches('`').to_owned())
                    .collect(),
            });
        }
    }
    rows
}

#[test]
fn every_section_has_rows_and_every_row_a_verdict() {
    let rows = rows();
    for section in SECTIONS.chars() {
        assert!(rows.iter().any(|row| row.section == section), "section {section}");
    }
    for row in rows {
        assert!(SECTIONS.contains(row.section), "{}", row.rule);
        assert!(VERDICTS.contains(&&*row.verdict), "{}: {}", row.rule, row.verdict);
        assert!(row.verdict == "same" || !row.how.is_empty(), "{}: how?", row.rule);
    }
}

#[test]
fn every_row_that_claims_something_is_shown_by_tests_that_exist() {
    let tests = tests();
    for row in rows() {
        let claims = matches!(&*row.verdict, "same" | "better");
        assert!(
            !claims || !row.shown_by.is_empty(),
            "{}: shown by what?",
            row.rule
        );
        for name in row.shown_by {
            assert!(tests.contains(&name), "{}: no test is called {name}", row.rule);
        }
    }
}
