//! What may differ between two listings.

use super::difference::{Found, State};
use crate::markdown::{list, table};

/// A difference that is meant.
#[derive(Debug)]
pub struct Known {
    /// Which function, by the name of its listing.
    pub function: &'static str,
    /// When it shows.
    pub states: &'static [State],
    /// In which line.
    pub line: &'static str,
    /// How that begins through xen-pciback.
    pub pciback: &'static str,
    /// How that begins through Bulkhead; empty: there is no such line.
    pub bulkhead: &'static str,
    /// Why that is right.
    pub reason: &'static str,
}

/// All of them. Each must show in a run of the whole comparison, or it is stale.
pub const KNOWN: &[Known] = &[
    Known {
        function: "nvme",
        states: &[State::Driven],
        line: "Capabilities: [40]",
        pciback: "Enable-",
        bulkhead: "Enable+",
        reason: "MSI-X, which nvme turns on, off and on as it starts: the second time xen-pciback refuses it",
    },
    Known {
        function: "nvme",
        states: &[State::Driven],
        line: "Control",
        pciback: "DisINTx-",
        bulkhead: "DisINTx+",
        reason: "as above: nvme runs on MSI-X, not on its line",
    },
];

impl Known {
    /// Whether what was found is this one.
    pub fn covers(&self, found: &Found) -> bool {
        let begins = |text: &str, how: &str| text.starts_with(how) && text.is_empty() == how.is_empty();
        self.function == found.function
            && self.states.contains(&found.state)
            && self.line == found.difference.line
            && begins(&found.difference.pciback, self.pciback)
            && begins(&found.difference.bulkhead, self.bulkhead)
    }
}

/// What is not compared, because it is another one for every guest.
#[derive(Debug)]
pub struct Varying {
    /// When.
    pub states: &'static [State],
    /// The end of a line's name.
    pub line: &'static str,
    /// Behind which of its words; empty: the whole line.
    pub after: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// All of them.
pub const VARYING: &[Varying] = &[
    Varying {
        states: &[State::Bare, State::Driven],
        line: ", Address",
        after: "",
        reason: "Xen picks anew where messages go, and what it picked for an earlier guest may still stand there",
    },
    Varying {
        states: &[State::Driven],
        line: "Interrupt",
        after: "IRQ",
        reason: "with a driver it is a number of the guest's kernel, not one of the device",
    },
];

impl Varying {
    /// Whether it speaks of `line`.
    pub fn covers(&self, state: State, line: &str) -> bool {
        self.states.contains(&state) && line.ends_with(self.line)
    }

    /// The words of the line that are compared.
    pub fn strip<'a>(&self, words: &[&'a str]) -> Vec<&'a str> {
        let kept = match self.after {
            "" => 0,
            after => words
                .iter()
                .position(|word| *word == after)
                .map_or(words.len(), |at| at + 1),
        };
        words[..kept].to_vec()
    }
}

/// Both tables, in markdown.
pub fn render() -> String {
    let quoted = |text: &str| match text {
        "" => "no such line".to_owned(),
        text => format!("`{text}`"),
    };
    let known = table(
        ["Function", "When", "Line", "xen-pciback", "Bulkhead", "Why"],
        KNOWN.iter().map(|known| {
            [
                known.function.to_owned(),
                list(known.states),
                quoted(known.line),
                quoted(known.pciback),
                quoted(known.bulkhead),
                known.reason.to_owned(),
            ]
        }),
    );
    let varying = table(
        ["Not compared", "When", "Why"],
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_these_tables() {
        crate::markdown::assert_in_parity(&render(), "config-sweep known-lspci");
    }
}
