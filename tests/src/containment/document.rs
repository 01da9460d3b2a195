//! The text of `docs/containment.md`.

use super::rows::{MISSED, Measure, ROWS};
use super::{broken, find};
use crate::figure::Figure;
use crate::markdown::table;
use images::Suite;

/// Cell of a figure that no run has measured.
pub const MISSING: &str = "not measured";

const INTRODUCTION: &str = "\
# Containment: what a fault costs

A fault in the backend stays in the stub, whoever causes it, and the guest goes on. This page has the figures of runs on
real Xen with an unmodified Linux guest, in QEMU without hardware virtualisation.

`cargo containment` prints this page from `docs/containment.jsonl`, which has the figures of the scenarios. Tests keep
the two equal, and check the limits. To measure again, run `cargo verify` or the commands below, and then
`cargo containment --take`. The scenario `kills` has a dozen rounds by default. Its full run has 500 rounds in an hour:
`cargo verify --suite bookworm --scenario kills --set ROUNDS=500 --timeout 4500`. It prints its seed. `--set SEED=…`
repeats a run.
";

/// The document in Markdown.
pub fn render(figures: &[Figure]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for row in ROWS {
        text += &format!("\n## {}\n", row.what);
        let [first, second] = Suite::STABLE;
        text += &table(
            &["Measured", "Limit", first.name(), second.name(), "Printed by"],
            row.measures.iter().map(|measure| {
                let found = Suite::STABLE.map(|suite| find(figures, suite, measure));
                let [old, new] = found.map(cell);
                let command = command(measure, found.into_iter().flatten().next());
                [measure.means.to_owned(), limit(measure), old, new, command]
            }),
        );
    }
    let broken = broken(figures);
    if !broken.is_empty() {
        text += "\n## Limits that are missed\n";
        for what in broken {
            let known = MISSED.iter().find(|(name, _)| what.starts_with(name));
            let why = known.map_or("not explained", |(_, why)| why);
            text += &format!("- {what}: {why}\n");
        }
    }
    text
}

fn limit(measure: &Measure) -> String {
    format!("{} {}", measure.limit, measure.unit).trim().to_owned()
}

fn cell(figure: Option<&Figure>) -> String {
    figure.map_or_else(
        || MISSING.to_owned(),
        |figure| format!("{} {}", figure.value, figure.unit).trim().to_owned(),
    )
}

/// Without a suite it runs on both.
fn command(measure: &Measure, figure: Option<&Figure>) -> String {
    figure.map_or_else(
        || format!("`cargo verify --scenario {}`", measure.scenario),
        |figure| {
            format!(
                "`{}`",
                figure.command.replace(&format!(" --suite {}", figure.suite), "")
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_said_to_be_so() {
        let measures = ROWS.iter().map(|row| row.measures.len()).sum::<usize>();
        assert_eq!(render(&[]).matches(MISSING).count(), 2 * measures);
    }

    #[test]
    fn a_figure_stands_in_the_column_of_its_suite() {
        let measure = ROWS[0].measures[0];
        let figure = Figure {
            suite: "trixie".into(),
            scenario: measure.scenario.into(),
            name: measure.figure.into(),
            value: 17.5,
            unit: measure.unit.into(),
            command: "cargo verify --suite trixie --scenario s --set ROUNDS=5".into(),
        };
        let text = render(&[figure]);
        let line = text.lines().find(|line| line.contains("17.5")).unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[1], measure.means);
        assert_eq!(cells[3..5], [MISSING, &*cell_of(17.5, measure.unit)]);
        assert_eq!(cells[5], "`cargo verify --scenario s --set ROUNDS=5`");
    }

    fn cell_of(value: f64, unit: &str) -> String {
        format!("{value} {unit}").trim().to_owned()
    }
}
