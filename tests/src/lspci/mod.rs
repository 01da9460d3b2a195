//! What `lspci -vvv` tells a guest of a function, through xen-pciback and through Bulkhead, side by side.
//!
//! Listings are taken word by word: a difference names the line and what each says there. Those of [`known`] are meant,
//! and each of them has to show; what [`known::VARYING`] names is not compared.

pub mod difference;
pub mod known;

use anyhow::{Context as _, Result, ensure};
use difference::{Difference, Found, State};
use known::{KNOWN, Known, VARYING};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

/// The words of each line of a function's listing. A line is named by what stands before its colon, a capability by its
/// offset; one that is further in has the name of the line that it belongs to before its own.
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

/// Finds all differences between two listings of one function but for those of [`VARYING`].
pub fn differences(state: State, pciback: &str, bulkhead: &str) -> Vec<Difference> {
    let (pciback, bulkhead) = (lines(pciback), lines(bulkhead));
    let names: BTreeSet<&String> = pciback.keys().chain(bulkhead.keys()).collect();
    let mut found = Vec::new();
    for line in names {
        let (theirs, ours) = (compared(state, line, &pciback), compared(state, line, &bulkhead));
        let mut add = |theirs: &[&str], ours: &[&str]| {
            if theirs != ours {
                found.push(Difference {
                    line: line.clone(),
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

fn is_meant(found: &Found) -> bool {
    KNOWN.iter().any(|known| known.covers(found))
}

/// All differences of all functions.
#[derive(Debug)]
pub struct Comparison {
    /// How many pairs of listings were compared.
    pub listings: usize,
    /// All of them.
    pub found: Vec<Found>,
}

impl Comparison {
    /// Reads what the two backends gave: of each function `NAME.bare` and `NAME.driven`, in both directories.
    ///
    /// # Errors
    /// A file that is missing, empty or that only one of them has.
    pub fn load(pciback: &Path, bulkhead: &Path) -> Result<Self> {
        let mut comparison = Self {
            listings: 0,
            found: Vec::new(),
        };
        for state in [State::Bare, State::Driven] {
            let names = names(pciback, state)?;
            ensure!(
                !names.is_empty() && names == self::names(bulkhead, state)?,
                "{} and {} hold listings of different functions, or none",
                pciback.display(),
                bulkhead.display()
            );
            for function in names {
                let (theirs, ours) = (
                    read(pciback, &function, state)?,
                    read(bulkhead, &function, state)?,
                );
                comparison.listings += 1;
                let found = differences(state, &theirs, &ours);
                comparison.found.extend(found.into_iter().map(|difference| Found {
                    function: function.clone(),
                    state,
                    difference,
                }));
            }
        }
        Ok(comparison)
    }

    /// Those that are not meant.
    pub fn unexpected(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| !is_meant(found))
    }

    /// Those that are meant and do not show wherever they should.
    pub fn stale(&self) -> impl Iterator<Item = &'static Known> {
        let shows = |known: &Known, state| {
            let here = |found: &&Found| found.state == state && known.covers(found);
            self.found.iter().find(here).is_some()
        };
        KNOWN
            .iter()
            .filter(move |known| !known.states.iter().all(|state| shows(known, *state)))
    }

    /// Whether all is as it should be.
    pub fn holds(&self) -> bool {
        self.unexpected().next().is_none() && self.stale().next().is_none()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Found {
            function,
            state,
            difference,
        } in self.unexpected()
        {
            writeln!(
                f,
                "UNEXPECTED, {function}, {state}: {}: \"{}\" by xen-pciback, \"{}\" by Bulkhead",
                difference.line, difference.pciback, difference.bulkhead
            )?;
        }
        for known in self.stale() {
            writeln!(
                f,
                "STALE: listed, and does not show: {}, {}",
                known.function, known.line
            )?;
        }
        writeln!(
            f,
            "{} pairs of listings, {} differences, {} meant",
            self.listings,
            self.found.len(),
            self.found.iter().filter(|found| is_meant(found)).count()
        )
    }
}

fn names(dir: &Path, state: State) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(&format!(".{state}")).map(str::to_owned));
    }
    Ok(names)
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
        differences(state, LISTING, &LISTING.replace(from, to))
            .into_iter()
            .map(|difference| (difference.line, difference.pciback, difference.bulkhead))
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

    fn comparison(found: Vec<Found>) -> Comparison {
        Comparison { listings: 1, found }
    }

    fn differs(function: &str, state: State, line: &str, pciback: &str, bulkhead: &str) -> Found {
        Found {
            function: function.into(),
            state,
            difference: Difference {
                line: line.into(),
                pciback: pciback.into(),
                bulkhead: bulkhead.into(),
            },
        }
    }

    #[test]
    fn what_is_listed_has_to_show_and_nothing_else_may() {
        let shown = |known: &'static Known| {
            known
                .states
                .iter()
                .map(|&state| differs(known.function, state, known.line, known.pciback, known.bulkhead))
        };
        let mut found: Vec<Found> = KNOWN.iter().flat_map(shown).collect();
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
}
