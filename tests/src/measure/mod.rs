//! `docs/performance.md` and `docs/size.md`: how fast a guest's requests are answered, from figures of real runs, and what the
//! image is made of.
//!
//! [`rows`] has the requests, their bounds and their goals. [`document`] prints the first page, [`size`] the second.

pub mod document;
pub mod rows;
pub mod size;

use crate::figure::Figure;
use rows::{COUNTED, EVENTS, REQUESTS, TIMED};

/// The figures that the page shows.
pub fn wanted(figures: &[Figure]) -> Vec<Figure> {
    let is_wanted = |figure: &&Figure| [COUNTED, TIMED].contains(&figure.scenario.as_str());
    figures.iter().filter(is_wanted).cloned().collect()
}

/// Every count beyond its bound, as text.
pub fn beyond(figures: &[Figure]) -> Vec<String> {
    let counts = figures.iter().filter(|figure| figure.scenario == COUNTED);
    counts
        .filter_map(|figure| {
            let name = figure.name.strip_suffix("-bulkhead")?;
            let (_, means, bound) = bounds().find(|(known, ..)| *known == name)?;
            let Figure {
                suite, value, unit, ..
            } = figure;
            (*value > bound).then(|| format!("{suite}: {means}: {value} {unit}, more than {bound}"))
        })
        .collect()
}

/// Name, meaning and bound of each count.
fn bounds() -> impl Iterator<Item = (&'static str, &'static str, f64)> {
    let requests = REQUESTS
        .iter()
        .map(|request| (request.name, request.means, request.bound));
    let events = EVENTS
        .iter()
        .filter_map(|event| Some((event.name, event.means, event.bound?)));
    requests.chain(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(scenario: &str, name: &str, value: f64) -> Figure {
        Figure {
            suite: "sid".into(),
            scenario: scenario.into(),
            name: name.into(),
            value,
            unit: "instructions".into(),
            command: String::new(),
        }
    }

    #[test]
    fn a_count_above_its_bound_is_told() {
        for (name, means, bound) in bounds() {
            let name = format!("{name}-bulkhead");
            assert!(beyond(&[count(COUNTED, &name, bound)]).is_empty());
            let told = beyond(&[count(COUNTED, &name, bound + 1.0)]);
            assert!(
                told.len() == 1 && told[0].starts_with(&format!("sid: {means}")),
                "{told:?}"
            );
        }
    }

    #[test]
    fn xen_pciback_and_times_have_no_bound() {
        let figures = [
            count(COUNTED, "read-pciback", 1e9),
            count(COUNTED, "ping-pong", 1e9),
            count(TIMED, "read-bulkhead", 1e9),
        ];
        assert_eq!(beyond(&figures), Vec::<String>::new());
    }

    #[test]
    fn figures_of_other_scenarios_are_not_kept() {
        let figures = [count(COUNTED, "a", 1.0), count("nic", "a", 1.0)];
        assert_eq!(wanted(&figures), figures[..1]);
    }
}
