//! Differences against the table of those that are meant.

use super::subject::{DifferenceOf, Known, Subject};
use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;

/// How a line about a stale row of the table begins.
pub const STALE: &str = "STALE: listed, and does not show";
/// How a line about a difference begins that is not meant.
pub const UNEXPECTED: &str = "UNEXPECTED";

/// A difference, and which row of the table covers it.
struct Judged<S: Subject> {
    difference: DifferenceOf<S>,
    row: Option<usize>,
}

/// All differences between the two backends.
pub struct Comparison<S: Subject> {
    /// What was compared.
    pub subject: S,
    judged: Vec<Judged<S>>,
}

impl<S: Subject> Comparison<S> {
    /// Looks up each difference in the table.
    pub fn new(subject: S, differences: impl IntoIterator<Item = DifferenceOf<S>>) -> Self {
        let judge = |difference| Judged {
            row: S::table().iter().position(|known| S::covers(known, &difference)),
            difference,
        };
        Self {
            subject,
            judged: differences.into_iter().map(judge).collect(),
        }
    }

    /// How many of the differences that `of` selects there are, and how many of those are meant.
    pub fn count(&self, of: impl Fn(&S::Place) -> bool) -> (usize, usize) {
        let selected = self.judged.iter().filter(|judged| of(&judged.difference.place));
        selected.fold((0, 0), |(all, meant), judged| {
            (all + 1, meant + usize::from(judged.row.is_some()))
        })
    }

    /// Differences that are not meant.
    pub fn unexpected(&self) -> impl Iterator<Item = &DifferenceOf<S>> {
        self.judged
            .iter()
            .filter(|judged| judged.row.is_none())
            .map(|judged| &judged.difference)
    }

    /// Each row of the table, and how often it shows.
    pub fn known(&self) -> impl Iterator<Item = (&'static Known<S::Pattern>, usize)> {
        S::table().iter().enumerate().map(|(row, known)| {
            let shows = self.judged.iter().filter(|judged| judged.row == Some(row));
            (known, shows.count())
        })
    }

    /// Rows of the table that do not show.
    pub fn stale(&self) -> impl Iterator<Item = &'static Known<S::Pattern>> {
        let stale = self.known().filter(|(_, count)| *count == 0);
        stale.map(|(known, _)| known)
    }

    /// Whether everything that shows is meant, and everything that is meant shows.
    pub fn holds(&self) -> bool {
        self.subject.fault().is_none() && self.unexpected().next().is_none() && self.stale().next().is_none()
    }

    /// Writes a line for each row of the table, with the `name` of its pattern.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_known<Name: fmt::Display>(
        &self,
        out: &mut impl fmt::Write,
        name: impl Fn(&'static S::Pattern) -> Name,
    ) -> fmt::Result {
        self.known().try_for_each(|(known, count)| {
            let verdict = if count == 0 { STALE } else { "meant" };
            let name = name(&known.at);
            writeln!(out, "{verdict}: {name} ({count} times): {}", known.bulkhead)
        })
    }

    /// Differences that are not meant, grouped by a `key` of their places.
    pub fn unexpected_by<'a, Key: Ord>(
        &'a self,
        key: impl Fn(&'a S::Place) -> Key,
    ) -> BTreeMap<Key, Vec<&'a DifferenceOf<S>>> {
        let mut groups: BTreeMap<Key, Vec<&DifferenceOf<S>>> = BTreeMap::new();
        for difference in self.unexpected() {
            groups.entry(key(&difference.place)).or_default().push(difference);
        }
        groups
    }

    /// Prints the report; the exit code says whether the comparison holds.
    pub fn conclude(&self) -> ExitCode
    where
        Self: fmt::Display,
    {
        print!("{self}");
        if self.holds() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::Difference;
    use super::super::table::render;
    use super::*;

    /// Numbers from 0 to 9 that become others.
    struct Numbers {
        fault: bool,
    }

    static TABLE: [Known<&str>; 2] = [
        Known {
            at: "even",
            pciback: "stays",
            bulkhead: "grows",
            reason: "for a test",
        },
        Known {
            at: "any",
            pciback: "stays",
            bulkhead: "becomes 9",
            reason: "for a test",
        },
    ];

    impl Subject for Numbers {
        type Place = u8;
        type Value = u8;
        type Pattern = &'static str;

        const COLUMNS: &'static [&'static str] = &["Numbers"];

        fn table() -> &'static [Known<&'static str>] {
            &TABLE
        }

        fn covers(known: &Known<&'static str>, difference: &DifferenceOf<Self>) -> bool {
            match known.at {
                "even" => difference.place.is_multiple_of(2),
                _ => difference.bulkhead == 9,
            }
        }

        fn cells(pattern: &&'static str) -> Vec<String> {
            vec![(*pattern).to_owned()]
        }

        fn fault(&self) -> Option<String> {
            self.fault.then(|| "at fault".to_owned())
        }
    }

    fn compared(fault: bool, changed: &[(u8, u8)]) -> Comparison<Numbers> {
        let differences = changed.iter().map(|&(place, bulkhead)| Difference {
            place,
            pciback: place,
            bulkhead,
        });
        Comparison::new(Numbers { fault }, differences)
    }

    #[test]
    fn what_is_meant_has_to_show_and_nothing_else_may() {
        assert!(compared(false, &[(2, 3), (5, 9)]).holds());
        for (changed, why) in [
            (&[(2, 3)][..], "a row that does not show"),
            (&[(2, 3), (4, 9)], "the first row that fits is the one that shows"),
            (&[(2, 3), (5, 9), (7, 8)], "a difference without a row"),
            (&[], "no difference at all"),
        ] {
            assert!(!compared(false, changed).holds(), "{why}");
        }
    }

    #[test]
    fn a_fault_of_bulkheads_counts_without_a_difference() {
        assert!(!compared(true, &[(2, 3), (5, 9)]).holds());
    }

    #[test]
    fn differences_are_counted_by_place() {
        let comparison = compared(false, &[(2, 3), (5, 9), (7, 8)]);
        assert_eq!(comparison.count(|_| true), (3, 2));
        assert_eq!(comparison.count(|place| *place > 4), (2, 1));
    }

    #[test]
    fn a_report_names_what_is_meant_and_what_is_stale() {
        let mut text = String::new();
        let comparison = compared(false, &[(2, 3), (4, 5)]);
        comparison.write_known(&mut text, |pattern| *pattern).unwrap();
        let expected = "\
meant: even (2 times): grows
STALE: listed, and does not show: any (0 times): becomes 9
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_unexpected_is_grouped_in_the_order_it_was_seen() {
        let comparison = compared(false, &[(7, 8), (1, 0), (2, 3), (5, 6)]);
        let groups = comparison.unexpected_by(|place| *place > 4);
        let places = |group: &[&Difference<u8, u8>]| group.iter().map(|one| one.place).collect::<Vec<u8>>();
        assert_eq!(groups.keys().copied().collect::<Vec<bool>>(), [false, true]);
        assert_eq!(
            (places(&groups[&false]), places(&groups[&true])),
            (vec![1], vec![7, 5])
        );
    }

    #[test]
    fn a_table_has_a_row_for_each_difference_that_is_meant() {
        let expected = "\
| Numbers | xen-pciback | Bulkhead | Why |
|---|---|---|---|
| even | stays | grows | for a test |
| any | stays | becomes 9 | for a test |
";
        assert_eq!(render::<Numbers>(), expected);
    }
}
