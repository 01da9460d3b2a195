//! The text of `docs/performance.md`.

use super::rows::{
    BUSY_BY_CALM, COUNTED, EVENTS, Event, Goal, PING_PONG, READ_BY_PING_PONG, REQUESTS, TIMED,
};
use crate::figure::{Figure, find};
use crate::markdown::table;
use images::Suite;

/// Cell of a figure that no run has measured.
pub const MISSING: &str = "not measured";

const INTRODUCTION: &str = "\
# Performance: what a request costs

A bare guest asks the same of xen-pciback and of Bulkhead in one boot, each request 200 times; the figures are medians.
A ratio is Bulkhead's figure in units of xen-pciback's. Where it is above its goal, the goal is not reached yet.

`cargo measure` boots the machine and prints these tables (`--json`: the figures). `cargo measure --take` writes this page
from the last runs; its figures are in `docs/performance.jsonl`. Tests keep page and figures equal.
";

const COUNTS: &str = "
QEMU counts every instruction that the machine executes for a request: of the guest, Xen, dom0 and the stub. It emulates one
processor, and the machine's clocks advance by a nanosecond for each instruction (`-icount shift=0`). So a count does not
depend on the load of the machine below: two runs of one image agree within 3 %. `cargo verify` fails if a count is above its bound.
The bounds are in `tests/src/measure/rows.rs`. A time in this table is one on that machine, 1 ms for 1,000,000 instructions,
waits included.
";

const TIMES: &str = "
Two emulated processors. Busy: two more guests take all the processor time that they get. The goal of a busy ratio is 1.5
times the calm ratio. Times depend on the load of the machine below; ratios of one boot do so less.
";

/// The document in Markdown.
pub fn render(figures: &[Figure]) -> String {
    [INTRODUCTION.to_owned(), tables(figures, &Suite::STABLE)].concat()
}

/// Its tables, for these suites.
pub fn tables(figures: &[Figure], suites: &[Suite]) -> String {
    let mut text = format!("\n## Instructions\n`cargo verify --scenario {COUNTED}`\n{COUNTS}");
    for &suite in suites {
        text += &format!("\n### {suite}\n{}", counts(figures, suite));
    }
    text += &format!("\n## Times\n`cargo verify --scenario {TIMED}`\n{TIMES}");
    for &suite in suites {
        text += &format!("\n### {suite}\n{}", times(figures, suite));
    }
    text
}

fn counts(figures: &[Figure], suite: Suite) -> String {
    let value = |name: &str| find(figures, suite, COUNTED, name).map(|figure| figure.value);
    let mut rows: Vec<[String; 6]> = REQUESTS
        .iter()
        .map(|request| {
            let [theirs, ours] = both(request.name, "", value);
            [
                request.means.to_owned(),
                cell(theirs, whole),
                cell(ours, whole),
                cell(ratio(ours, theirs), hundredths),
                format!("at most {}", request.instructions),
                format!("at most {}", whole(request.bound)),
            ]
        })
        .collect();
    rows.extend(EVENTS.iter().map(|event| event_row(event, value)));
    let event = value(PING_PONG);
    let read = value(&format!("{}-bulkhead", REQUESTS[0].name));
    rows.push([
        "a read, in units of an event to another guest and back".to_owned(),
        cell(event, |count| format!("the event: {}", whole(count))),
        cell(read, whole),
        cell(ratio(read, event), hundredths),
        format!("at most {READ_BY_PING_PONG}"),
        String::new(),
    ]);
    table(
        &["Request", "xen-pciback", "Bulkhead", "Ratio", "Goal", "Bound"],
        rows,
    )
}

fn event_row(event: &Event, value: impl Fn(&str) -> Option<f64>) -> [String; 6] {
    let [theirs, ours] = both(event.name, "", value);
    let figure = |value| format!("{} {}", whole(value), event.unit);
    let (theirs, ratio, goal) = match event.goal {
        Goal::AtMost(most) => (String::new(), String::new(), figure(most)),
        Goal::Ratio(most) => (
            cell(theirs, figure),
            cell(ratio(ours, theirs), hundredths),
            most.to_string(),
        ),
    };
    [
        event.means.to_owned(),
        theirs,
        cell(ours, figure),
        ratio,
        format!("at most {goal}"),
        event
            .bound
            .map_or_else(String::new, |bound| format!("at most {}", figure(bound))),
    ]
}

fn times(figures: &[Figure], suite: Suite) -> String {
    let value = |name: &str| find(figures, suite, TIMED, name).map(|figure| figure.value);
    table(
        &[
            "Request",
            "xen-pciback",
            "Bulkhead",
            "Ratio",
            "Goal",
            "xen-pciback, busy",
            "Bulkhead, busy",
            "Ratio, busy",
            "Goal, busy",
        ],
        REQUESTS.iter().map(|request| {
            let [theirs, ours] = both(request.name, "-calm", value);
            let [theirs_busy, ours_busy] = both(request.name, "-busy", value);
            let calm = ratio(ours, theirs);
            [
                request.means.to_owned(),
                cell(theirs, microseconds),
                cell(ours, microseconds),
                cell(calm, hundredths),
                format!("at most {}", request.times),
                cell(theirs_busy, microseconds),
                cell(ours_busy, microseconds),
                cell(ratio(ours_busy, theirs_busy), hundredths),
                cell(calm, |calm| {
                    format!("at most {}", hundredths(calm * BUSY_BY_CALM))
                }),
            ]
        }),
    )
}

/// The figures of this name by xen-pciback and by Bulkhead.
fn both(name: &str, round: &str, value: impl Fn(&str) -> Option<f64>) -> [Option<f64>; 2] {
    ["pciback", "bulkhead"].map(|backend| value(&format!("{name}{round}-{backend}")))
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    Some(ours? / theirs?)
}

fn cell(value: Option<f64>, text: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| MISSING.to_owned(), text)
}

/// A whole number with a comma between thousands.
fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn hundredths(value: f64) -> String {
    format!("{value:.2}")
}

fn microseconds(nanoseconds: f64) -> String {
    format!("{} us", whole(nanoseconds / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(scenario: &str, name: &str, value: f64) -> Figure {
        Figure {
            suite: "trixie".into(),
            scenario: scenario.into(),
            name: name.into(),
            value,
            unit: String::new(),
            command: String::new(),
        }
    }

    /// The cells of the line that begins so, in the tables of trixie.
    fn line(figures: &[Figure], begin: &str, nth: usize) -> Vec<String> {
        let text = tables(figures, &[Suite::Trixie]);
        let mut lines = text
            .lines()
            .filter(|line| line.starts_with(&format!("| {begin}")));
        let cells = lines.nth(nth).unwrap().trim_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    }

    #[test]
    fn a_count_stands_beside_xen_pcibacks_with_ratio_goal_and_bound() {
        let read = REQUESTS[0];
        let figures = [
            figure(COUNTED, "read-pciback", 20_000.0),
            figure(COUNTED, "read-bulkhead", 15_000.4),
            figure(COUNTED, PING_PONG, 10_000.0),
        ];
        let bound = format!("at most {}", whole(read.bound));
        let goal = format!("at most {}", read.instructions);
        assert_eq!(
            line(&figures, read.means, 0),
            [read.means, "20,000", "15,000", "0.75", &goal, &bound]
        );
        assert_eq!(
            line(&figures, "a read, in", 0)[1..5],
            ["the event: 10,000", "15,000", "1.50", "at most 1.5"]
        );
    }

    #[test]
    fn the_goal_of_a_busy_ratio_follows_the_calm_one() {
        let figures = [
            figure(TIMED, "read-calm-pciback", 100_000.0),
            figure(TIMED, "read-calm-bulkhead", 40_000.0),
            figure(TIMED, "read-busy-pciback", 200_000.0),
            figure(TIMED, "read-busy-bulkhead", 100_000.0),
        ];
        assert_eq!(
            line(&figures, REQUESTS[0].means, 1)[1..],
            [
                "100 us",
                "40 us",
                "0.40",
                "at most 0.45",
                "200 us",
                "100 us",
                "0.50",
                "at most 0.60"
            ]
        );
    }

    #[test]
    fn an_event_has_a_goal_of_its_own_or_one_by_xen_pciback() {
        let figures = [
            figure(COUNTED, "restart-bulkhead", 30_000_000.0),
            figure(COUNTED, "create-bulkhead", 900.0),
            figure(COUNTED, "create-pciback", 600.0),
        ];
        assert_eq!(
            line(&figures, EVENTS[0].means, 0)[1..5],
            [
                "",
                "30,000,000 instructions",
                "",
                "at most 20,000,000 instructions"
            ]
        );
        assert_eq!(
            line(&figures, EVENTS[1].means, 0)[1..5],
            ["600 ms", "900 ms", "1.50", "at most 1.5"]
        );
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        assert_eq!(line(&[], REQUESTS[0].means, 0)[1..4], [MISSING; 3]);
    }

    #[test]
    fn a_number_has_a_comma_between_thousands() {
        let numbers = [0.0, 999.6, 12_345.0, 1_234_567.0].map(whole);
        assert_eq!(numbers, ["0", "1,000", "12,345", "1,234,567"]);
    }
}
