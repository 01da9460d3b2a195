//! docs/containment.md is printed from its figures, and the figures keep their limits.

use bulkhead_tests::containment::rows::{MISSED, ROWS};
use bulkhead_tests::containment::{broken, document, wanted};
use bulkhead_tests::figure::{Figure, decode};

const DOCUMENT: &str = include_str!("../../docs/containment.md");
const FIGURES: &str = include_str!("../../docs/containment.jsonl");

fn figures() -> Vec<Figure> {
    decode(FIGURES).unwrap()
}

#[test]
fn the_document_is_printed_from_its_figures() {
    assert!(
        document::render(&figures()) == DOCUMENT,
        "print it anew: cargo containment > docs/containment.md"
    );
}

#[test]
fn every_row_is_in_the_document() {
    for row in ROWS {
        let (_, section) = DOCUMENT.split_once(&format!("\n## {}\n", row.what)).unwrap();
        let section = section.split("\n## ").next().unwrap();
        for measure in row.measures {
            assert!(
                section.contains(&format!("| {} |", measure.means)),
                "{}: {}",
                row.what,
                measure.means
            );
        }
    }
}

#[test]
fn all_limits_hold_but_those_that_the_document_explains() {
    let broken = broken(&figures());
    for what in &broken {
        assert!(MISSED.iter().any(|(name, _)| what.starts_with(name)), "{what}");
    }
    for (name, _) in MISSED {
        assert!(broken.iter().any(|what| what.starts_with(name)), "{name} holds");
    }
}

#[test]
fn no_figure_is_without_a_row() {
    assert_eq!(wanted(&figures()), figures());
}
