//! docs/advisories.md names an attack or a test for each rule: each of them exists, and each attack is named.

mod common;

use common::tests;
use std::collections::BTreeSet;
use std::path::Path;

const ADVISORIES: &str = include_str!("../../docs/advisories.md");
/// The tables with the names of attacks: the hostile guest's, the hostile stub's, and the stub's deaths.
const TABLES: [(&str, &str); 3] = [
    (include_str!("../guest/src/attack.rs"), "const ATTACKS:"),
    (include_str!("../guest/src/hostile_stub.rs"), "const ATTACKS:"),
    (
        include_str!("../guest/src/hostile_stub/deaths.rs"),
        "const DEATHS:",
    ),
];

/// The last cells of the tables that have a column `shown by`, split into names.
fn claims() -> Vec<(String, Vec<String>)> {
    let (claimed, _) = ADVISORIES.split_once("\n## Not a backend's\n").unwrap();
    let rows = claimed.lines().filter(|line| line.starts_with("| "));
    rows.filter(|line| !line.ends_with("| shown by |"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            let names = names(cells.last().unwrap());
            (cells[0].to_owned(), names)
        })
        .collect()
}

/// The names in backticks or in quotes, each with its mark. A comma can be part of an attack's name.
fn names(cell: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = cell;
    while let Some(start) = rest.find(['`', '"']) {
        let mark = &rest[start..=start];
        let (name, behind) = rest[start + 1..].split_once(mark).unwrap();
        names.push(format!("{mark}{name}"));
        rest = behind;
    }
    names
}

/// The names of the attacks, as guest and stub log them.
fn attacks() -> BTreeSet<&'static str> {
    let names = TABLES.iter().flat_map(|(source, table)| {
        let (_, table) = source.split_once(table).unwrap();
        let (table, _) = table.split_once("];\n").unwrap();
        table.split('"').skip(1).step_by(2)
    });
    names.collect()
}

#[test]
fn every_rule_is_shown_by_tests_and_attacks_that_exist() {
    let (tests, attacks) = (tests(), attacks());
    for (rule, shown_by) in claims() {
        assert!(!shown_by.is_empty(), "{rule}: shown by what?");
        for name in shown_by {
            let exists = match name.strip_prefix('"') {
                Some(attack) => attacks.contains(attack),
                None => tests.contains(&name[1..]),
            };
            assert!(exists, "{rule}: there is no {name}");
        }
    }
}

#[test]
fn every_attack_stands_for_a_rule() {
    let named: BTreeSet<String> = claims().into_iter().flat_map(|(_, names)| names).collect();
    for attack in attacks() {
        assert!(named.contains(&format!("\"{attack}")), "{attack}");
    }
}

#[test]
fn every_place_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let places = ADVISORIES.split('`').skip(1).step_by(2);
    for place in places.filter(|place| place.contains('/')) {
        assert!(root.join(place).exists(), "{place}");
    }
}
