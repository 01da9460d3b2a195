//! What `lspci -vvv` tells a guest of a function, through xen-pciback and through Bulkhead, side by side.
//!
//! Listings are compared word by word. [`known`] has the differences that are meant. Words of [`known::VARYING`] are not
//! compared.

pub mod difference;
pub mod known;

use crate::comparison::{
    self, Comparison, Difference, DifferenceOf, Known, STALE, Subject, UNEXPECTED, common_names,
};
use crate::markdown::{list, table};
use anyhow::{Context as _, Result, ensure};
use difference::{InLine, State};
use known::{KNOWN, Line, VARYING};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

/// The words of each line of a function's listing. The name of a line is the text before its colon; for a capability it
/// ends with the offset. A line that is indented further has the name of its outer line before its own.
fn lines(listing: &str) -> BTreeMap<String, Vec<&str>> {
    let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut outer = "";
    for line in listing.lines().filter(|line| !line.trim().is_empty()) {
        let depth = line.chars().take_while(char::is_ascii_whitespace).count();
        let line = line.trim();
        let end = match line.strip_prefix("Capabilities: ") {
            _ if depth == 0 => None,
            Some(_) => line.find(']').map(|at| at + 1),
            None => line.find(':'),
        };
        let (name, text) = line.split_at(end.unwrap_or(0));
        let name = match depth {
            0 | 1 => {
                outer = name;
                name.to_owned()
            }
            _ => format!("{outer}, {name}"),
        };
        let words = text.trim_start_matches(':').split_whitespace();
        lines.entry(name).or_default().extend(words);
    }
    lines
}

/// The words of a line that are compared; none if it is not there.
fn compared<'a>(state: State, line: &str, lines: &BTreeMap<String, Vec<&'a str>>) -> Vec<&'a str> {
    let words = lines.get(line).cloned().unwrap_or_default();
    match VARYING.iter().find(|varying| varying.covers(state, line)) {
        Some(varying) => varying.strip(&words),
        None => words,
    }
}

/// Finds all differences between two listings of one function, except those of [`VARYING`]. The value of a difference is
/// one word, or the whole line if the numbers of words differ, or empty if there is no such line.
pub fn differences(
    function: &str,
    state: State,
    pciback: &str,
    bulkhead: &str,
) -> Vec<Difference<InLine, String>> {
    let (pciback, bulkhead) = (lines(pciback), lines(bulkhead));
    let names: BTreeSet<&String> = pciback.keys().chain(bulkhead.keys()).collect();
    let mut found = Vec::new();
    for line in names {
        let (theirs, ours) = (compared(state, line, &pciback), compared(state, line, &bulkhead));
        let mut add = |theirs: &[&str], ours: &[&str]| {
            if theirs != ours {
                found.push(Difference {
                    place: InLine {
                        function: function.to_owned(),
                        state,
                        line: line.clone(),
                    },
                    pciback: theirs.join(" "),
                    bulkhead: ours.join(" "),
                });
            }
        };
        if theirs.len() == ours.len() {
            for (theirs, ours) in theirs.iter().zip(&ours) {
                add(&[theirs], &[ours]);
            }
        } else {
            add(&theirs, &ours);
        }
    }
    found
}

/// Whether a listing's `text` begins as the table says (`how`). Empty stands for no such line, not for any beginning.
fn begins(text: &str, how: &str) -> bool {
    text.starts_with(how) && text.is_empty() == how.is_empty()
}

/// All listings of all functions.
#[derive(Debug)]
pub struct Lspci {
    /// How many pairs of listings were compared.
    pub listings: usize,
}

impl Subject for Lspci {
    type Place = InLine;
    type Value = String;
    type Pattern = Line;

    const COLUMNS: &'static [&'static str] = &["Function", "When", "Line"];

    fn table() -> &'static [Known<Line>] {
        KNOWN
    }

    fn covers(known: &Known<Line>, difference: &DifferenceOf<Self>) -> bool {
        known.at.is(&difference.place)
            && begins(&difference.pciback, known.pciback)
            && begins(&difference.bulkhead, known.bulkhead)
    }

    fn cells(line: &Line) -> Vec<String> {
        vec![
            line.function.to_owned(),
            line.state.to_string(),
            quoted(line.name),
        ]
    }

    fn behaviour(text: &'static str) -> String {
        quoted(text)
    }
}

impl Comparison<Lspci> {
    /// Reads what the two backends gave: of each function `NAME.bare` and `NAME.driven`, in both directories.
    ///
    /// # Errors
    /// A file that is missing, empty or that only one of them has.
    pub fn load(pciback: &Path, bulkhead: &Path) -> Result<Self> {
        let mut listings = 0;
        let mut found = Vec::new();
        for state in [State::Bare, State::Driven] {
            for function in common_names(pciback, bulkhead, &state.to_string())? {
                let theirs = read(pciback, &function, state)?;
                let ours = read(bulkhead, &function, state)?;
                listings += 1;
                found.extend(differences(&function, state, &theirs, &ours));
            }
        }
        Ok(Self::new(Lspci { listings }, found))
    }
}

impl fmt::Display for Comparison<Lspci> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Difference {
            place,
            pciback,
            bulkhead,
        } in self.unexpected()
        {
            writeln!(
                f,
                "{UNEXPECTED}, {place}: \"{pciback}\" by xen-pciback, \"{bulkhead}\" by Bulkhead"
            )?;
        }
        for known in self.stale() {
            writeln!(f, "{STALE}: {}, {}", known.at.function, known.at.name)?;
        }
        let (all, meant) = self.count(|_| true);
        writeln!(
            f,
            "{} pairs of listings, {all} differences, {meant} meant",
            self.subject.listings
        )
    }
}

/// A cell with the beginning of what a line says.
fn quoted(text: &str) -> String {
    match text {
        "" => "no such line".to_owned(),
        text => format!("`{text}`"),
    }
}

/// The tables of meant differences and of words that are not compared, in Markdown.
pub fn render() -> String {
    let known = comparison::render::<Lspci>();
    let varying = table(
        &["Not compared", "When", "Why"],
        VARYING.iter().map(|varying| {
            let what = match varying.after {
                "" => varying.line.trim_start_matches(", ").to_owned(),
                after => format!("{}, behind `{after}`", varying.line),
            };
            [what, list(varying.states), varying.reason.to_owned()]
        }),
    );
    format!("{known}\n{varying}")
}

fn read(dir: &Path, name: &str, state: State) -> Result<String> {
    let path = dir.join(format!("{name}.{state}"));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(!text.trim().is_empty(), "{} is empty", path.display());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
0000:00:05.0 0108: 1b36:0010 (rev 02) (prog-if 02)
\tControl: I/O+ Mem+ BusMaster+ DisINTx-
\tInterrupt: pin A routed to IRQ 16
\tCapabilities: [40] MSI-X: Enable- Count=65 Masked-
\t\tVector table: BAR=0 offset=00002000
\tCapabilities: [d0] MSI: Enable- Count=1/1
\t\tAddress: 0000000000000000  Data: 0000
\t\t\t ExtTag- RBE+
";

    fn found(state: State, from: &str, to: &str) -> Vec<(String, String, String)> {
        assert!(LISTING.contains(from), "{from}");
        differences("nvme", state, LISTING, &LISTING.replace(from, to))
            .into_iter()
            .map(|difference| (difference.place.line, difference.pciback, difference.bulkhead))
            .collect()
    }
    fn one(line: &str, pciback: &str, bulkhead: &str) -> Vec<(String, String, String)> {
        vec![(line.into(), pciback.into(), bulkhead.into())]
    }

    #[test]
    fn equal_listings_have_no_differences() {
        assert_eq!(found(State::Bare, "Mem+", "Mem+"), []);
    }

    #[test]
    fn a_difference_is_a_word_of_a_line() {
        for (from, to, line) in [
            ("DisINTx-", "DisINTx+", "Control"),
            ("(rev 02)", "(rev 03)", ""),
            ("RBE+", "RBE-", "Capabilities: [d0], "),
            ("offset=00002000", "offset=0", "Capabilities: [40], Vector table"),
        ] {
            let word = |text: &str| text.split(' ').next_back().unwrap_or_default().to_owned();
            assert_eq!(found(State::Bare, from, to), one(line, &word(from), &word(to)));
        }
        assert_eq!(
            found(State::Driven, "Enable- Count=65", "Enable+ Count=65"),
            one("Capabilities: [40]", "Enable-", "Enable+")
        );
    }

    #[test]
    fn a_line_that_only_one_has_differs_as_a_whole() {
        assert_eq!(
            found(State::Bare, "\tInterrupt: pin A routed to IRQ 16\n", ""),
            one("Interrupt", "pin A routed to IRQ 16", "")
        );
    }

    #[test]
    fn where_messages_go_and_how_the_guests_kernel_numbers_its_interrupts_is_not_compared() {
        let (address, number) = ("Address: 0000000000000000", "IRQ 16");
        for state in [State::Bare, State::Driven] {
            assert_eq!(found(state, address, "Address: 00000000fee00358"), []);
        }
        assert_eq!(found(State::Driven, number, "IRQ 9"), []);
        assert_eq!(found(State::Driven, "pin A", "pin ?"), one("Interrupt", "A", "?"));
        assert_eq!(found(State::Bare, number, "IRQ 9"), one("Interrupt", "16", "9"));
    }

    fn comparison(found: Vec<Difference<InLine, String>>) -> Comparison<Lspci> {
        Comparison::new(Lspci { listings: 1 }, found)
    }

    fn differs(
        function: &str,
        state: State,
        line: &str,
        pciback: &str,
        bulkhead: &str,
    ) -> Difference<InLine, String> {
        Difference {
            place: InLine {
                function: function.into(),
                state,
                line: line.into(),
            },
            pciback: pciback.into(),
            bulkhead: bulkhead.into(),
        }
    }

    #[test]
    fn the_documentation_has_these_tables() {
        comparison::assert_in_parity(&render(), "config-sweep known-lspci");
    }

    #[test]
    fn a_line_that_is_not_there_is_not_the_beginning_of_one_that_is() {
        assert!(begins("Enable+ Count=65", "Enable+") && begins("", ""));
        assert!(!begins("Enable+", "") && !begins("", "Enable+"));
    }

    #[test]
    fn what_is_listed_has_to_show_and_nothing_else_may() {
        let shown =
            |Known {
                 at,
                 pciback,
                 bulkhead,
                 ..
             }: &Known<Line>| differs(at.function, at.state, at.name, pciback, bulkhead);
        let mut found: Vec<_> = KNOWN.iter().map(shown).collect();
        assert!(comparison(found.clone()).holds());
        found.push(differs(
            "e1000",
            State::Bare,
            "Control",
            "BusMaster-",
            "BusMaster+",
        ));
        let text = comparison(found).to_string();
        assert!(text.contains("UNEXPECTED, e1000, bare: Control"), "{text}");
        assert!(!text.contains("STALE"), "{text}");
        let text = comparison(Vec::new()).to_string();
        assert_eq!(text.matches("STALE").count(), KNOWN.len(), "{text}");
    }

    #[test]
    fn a_difference_is_meant_only_with_its_function_state_line_and_words() {
        let meant = |function, state, line, bulkhead| {
            let found = vec![differs(function, state, line, "DisINTx-", bulkhead)];
            comparison(found).unexpected().next().is_none()
        };
        assert!(meant("nvme", State::Driven, "Control", "DisINTx+"));
        assert!(!meant("edu", State::Driven, "Control", "DisINTx+"));
        assert!(!meant("nvme", State::Bare, "Control", "DisINTx+"));
        assert!(!meant("nvme", State::Driven, "Status", "DisINTx+"));
        assert!(!meant("nvme", State::Driven, "Control", ""));
    }
}
