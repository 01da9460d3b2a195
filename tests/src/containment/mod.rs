//! `docs/containment.md`: what crashes, kills and attacks cost, from figures of real runs.
//!
//! [`rows`] says which figures the page has, and their limits. [`document`] prints the page.

pub mod document;
pub mod rows;

use crate::figure::{self, Figure};
use images::Suite;
use rows::{Measure, ROWS};

/// The figure of `measure` for a suite, if its scenario has run there.
pub fn find<'a>(figures: &'a [Figure], suite: Suite, measure: &Measure) -> Option<&'a Figure> {
    figure::find(figures, suite, measure.scenario, measure.figure)
}

/// The figures that have a row.
pub fn wanted(figures: &[Figure]) -> Vec<Figure> {
    let is_wanted = |figure: &&Figure| {
        let measures = ROWS.iter().flat_map(|row| row.measures);
        measures.clone().any(|measure| {
            (measure.scenario, measure.figure) == (figure.scenario.as_str(), figure.name.as_str())
        })
    };
    figures.iter().filter(is_wanted).cloned().collect()
}

/// Every figure that breaks its limit, as text.
pub fn broken(figures: &[Figure]) -> Vec<String> {
    let mut broken = Vec::new();
    for suite in Suite::STABLE {
        for measure in ROWS.iter().flat_map(|row| row.measures) {
            let Some(figure) = find(figures, suite, measure) else {
                continue;
            };
            let what = format!("{suite}/{}: {}", measure.scenario, measure.figure);
            let unit = figure.unit.split([' ', ',']).next().unwrap_or_default();
            if !measure.unit.is_empty() && unit != measure.unit {
                broken.push(format!(
                    "{what} is in '{}', not in '{}'",
                    figure.unit, measure.unit
                ));
                continue;
            }
            let other =
                |name: &str| figure::find(figures, suite, measure.scenario, name).map(|figure| figure.value);
            if !measure.limit.is_kept_by(figure.value, other) {
                broken.push(format!(
                    "{what} is {} {}; the limit: {}",
                    figure.value, figure.unit, measure.limit
                ));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A figure for the first measure that has a limit in a unit.
    fn figure(value: f64) -> Figure {
        let mut measures = ROWS.iter().flat_map(|row| row.measures);
        let measure = measures
            .find(|measure| measure.limit == rows::Limit::AtMost(2_000.0))
            .unwrap();
        Figure {
            suite: "trixie".into(),
            scenario: measure.scenario.into(),
            name: measure.figure.into(),
            value,
            unit: format!("{}, of many", measure.unit),
            command: String::new(),
        }
    }

    #[test]
    fn a_figure_beyond_its_limit_or_of_another_unit_is_told() {
        assert_eq!(broken(&[figure(0.0)]), Vec::<String>::new());
        let told = broken(&[figure(2_001.0)]);
        assert!(
            told.len() == 1 && told[0].contains("the limit: at most 2000"),
            "{told:?}"
        );
        let mut other = figure(0.0);
        other.unit = "apples".into();
        let told = broken(&[other]);
        assert!(told.len() == 1 && told[0].contains("'apples'"), "{told:?}");
    }

    #[test]
    fn what_has_no_row_is_not_kept() {
        let mut other = figure(0.0);
        other.name = "temperature".into();
        assert_eq!(wanted(&[figure(0.0), other]), [figure(0.0)]);
    }
}
