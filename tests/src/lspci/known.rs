//! Lines that may differ between two listings.

use super::difference::{InLine, State};
use crate::comparison::Known;

/// A line in which a difference is meant.
#[derive(Debug)]
pub struct Line {
    /// Which function, by the name of its listing.
    pub function: &'static str,
    /// When it shows.
    pub state: State,
    /// The name of the line.
    pub name: &'static str,
}

/// All of them. Each must show in a run of the whole comparison, or it is stale. What a backend does is the beginning
/// of what the line says; empty: there is no such line.
pub static KNOWN: &[Known<Line>] = &[
    Known {
        at: Line {
            function: "nvme",
            state: State::Driven,
            name: "Capabilities: [40]",
        },
        pciback: "Enable-",
        bulkhead: "Enable+",
        reason: "nvme turns MSI-X on, off and on again when it starts; xen-pciback refuses the second time",
    },
    Known {
        at: Line {
            function: "nvme",
            state: State::Driven,
            name: "Control",
        },
        pciback: "DisINTx-",
        bulkhead: "DisINTx+",
        reason: "as above: nvme runs on MSI-X, not on INTx",
    },
];

impl Line {
    /// Whether a difference shows here.
    pub fn is(&self, place: &InLine) -> bool {
        self.function == place.function && self.state == place.state && self.name == place.line
    }
}

/// Words that are not compared, because they differ from guest to guest.
#[derive(Debug)]
pub struct Varying {
    /// When.
    pub states: &'static [State],
    /// The end of a line's name.
    pub line: &'static str,
    /// The words after this one are not compared; empty: the whole line.
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
        reason: "Xen chooses the address anew for each guest, and the register may still have the address of an \
                 earlier guest",
    },
    Varying {
        states: &[State::Driven],
        line: "Interrupt",
        after: "IRQ",
        reason: "with a driver this is a number of the guest's kernel, not of the device",
    },
];

impl Varying {
    /// Whether it is about `line`.
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
