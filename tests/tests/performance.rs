//! docs/performance.md is printed from its figures, and no figure is beyond its bound.

use bulkhead_tests::figure::{Figure, decode};
use bulkhead_tests::measure::{beyond, document, wanted};

const DOCUMENT: &str = include_str!("../../docs/performance.md");
const FIGURES: &str = include_str!("../../docs/performance.jsonl");

fn figures() -> Vec<Figure> {
    decode(FIGURES).unwrap()
}

#[test]
fn the_document_is_printed_from_its_figures() {
    assert!(
        document::render(&figures()) == DOCUMENT,
        "print it anew: cargo measure --take"
    );
}

#[test]
fn every_count_keeps_its_bound() {
    assert_eq!(beyond(&figures()), Vec::<String>::new());
}

#[test]
fn no_figure_is_without_a_row() {
    assert_eq!(wanted(&figures()), figures());
}
