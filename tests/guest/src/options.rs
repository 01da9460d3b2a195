//! Options of the guest, on its kernel command line (`extra=` of its configuration).

use core::fmt;
use core::str::FromStr;
use drivers::platform::DomId;

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Carry out a plan and record the answers.
    Ops,
    /// Attack the backend.
    Hostile,
    /// Change requests while the backend handles them.
    Race,
    /// Flood the backend.
    Flood,
    /// Connect, and do nothing more.
    Idle,
    /// Measure how long requests take.
    Measure,
    /// Measure how long an event to another guest and back takes.
    Ping,
    /// Answer these events.
    Pong,
    /// Keep a processor busy.
    Burn,
    /// Be a network backend that attacks its frontend.
    Netback,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "ops" => Ok(Self::Ops),
            "hostile" => Ok(Self::Hostile),
            "race" => Ok(Self::Race),
            "flood" => Ok(Self::Flood),
            "idle" => Ok(Self::Idle),
            "measure" => Ok(Self::Measure),
            "ping" => Ok(Self::Ping),
            "pong" => Ok(Self::Pong),
            "burn" => Ok(Self::Burn),
            "netback" => Ok(Self::Netback),
            _ => Err(()),
        }
    }
}

/// Options of the command line. Other words, such as `loglevel=`, are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `mode=NAME`: [`Mode::Ops`] if absent.
    pub mode: Mode,
    /// `seed=N`: seed of the random requests or responses. 1 if absent.
    pub seed: u64,
    /// `count=N`: number of random requests or responses, or of measured ones of each kind. 1000 if absent.
    pub count: usize,
    /// `rounds=N`: how often everything is measured. 1 if absent.
    pub rounds: usize,
    /// `peer=DOMID`: the guest that answers our events. 0 if absent.
    pub peer: DomId,
}

/// An option with a wrong value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption<'a>(pub &'a str);

impl fmt::Display for BadOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command line: {} means nothing here", self.0)
    }
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// [`BadOption`].
    pub fn parse(line: &str) -> Result<Self, BadOption<'_>> {
        let mut options = Self {
            mode: Mode::Ops,
            seed: 1,
            count: 1000,
            rounds: 1,
            peer: 0,
        };
        for word in line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("mode", value)) => options.mode = parse(word, value)?,
                Some(("seed", value)) => options.seed = parse(word, value)?,
                Some(("count", value)) => options.count = parse(word, value)?,
                Some(("rounds", value)) => options.rounds = parse(word, value)?,
                Some(("peer", value)) => options.peer = parse(word, value)?,
                _ => {}
            }
        }
        Ok(options)
    }
}

fn parse<'a, V: FromStr>(word: &'a str, value: &str) -> Result<V, BadOption<'a>> {
    value.parse().map_err(|_| BadOption(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_passed_over() {
        let options = Options::parse("console=hvc0 mode=ops seed=7  count=20 rounds=2 peer=5 loglevel=debug");
        let expected = Options {
            mode: Mode::Ops,
            seed: 7,
            count: 20,
            rounds: 2,
            peer: 5,
        };
        assert_eq!(options, Ok(expected));
        assert_eq!(Options::parse("mode=ops seed=x"), Err(BadOption("seed=x")));
        assert_eq!(Options::parse("mode=peace"), Err(BadOption("mode=peace")));
    }
}
