//! docs/parity.md names a test for what it claims: each of them exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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

/// Names of the functions in the Rust files below `directory`.
fn functions(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            names.extend(text.lines().filter_map(|line| {
                let (name, _) = line.trim_start().strip_prefix("fn ")?.split_once('(')?;
                Some(name.to_owned())
            }));
        }
    }
}

/// Every test function of the workspace and every scenario.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = BTreeSet::new();
    for part in ["drivers", "xenbus", "toolstack", "config", "unikernel", "tests"] {
        functions(&root.join(part), &mut names);
    }
    names.extend(fs::read_dir(root.join("tests/scenarios")).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_string_lossy().into_owned()
    }));
    names
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
