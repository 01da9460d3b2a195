//! The interrupt mode of a function, and its form as text in the record.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use xenbus::pciif::MAX_VECTORS;

/// The interrupt mode of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// INTx, if the function has a line.
    #[default]
    Intx,
    /// MSI, with the pirq of its one vector.
    Msi(u16),
    /// MSI-X: entry and pirq of each mapped vector.
    Msix(Vec<(u16, u16)>),
}

impl Mode {
    /// The pirqs in use, besides that of the line.
    pub fn pirqs(&self) -> Vec<u16> {
        match self {
            Self::Intx => Vec::new(),
            Self::Msi(pirq) => vec![*pirq],
            Self::Msix(entries) => entries.iter().map(|&(_, pirq)| pirq).collect(),
        }
    }
}

/// A change of mode that is about to be made. It is recorded first, so that the pirqs that it maps are found again if
/// this process dies before it has recorded them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// MSI is turned on.
    Msi,
    /// MSI-X is turned on, for so many entries.
    Msix(usize),
    /// Any change: the record is lost, and so is the mode.
    Unknown,
}

impl ModeChange {
    /// Largest number of pirqs that it maps.
    pub fn pirqs(self) -> usize {
        match self {
            Self::Msi => 1,
            Self::Msix(entries) => entries,
            Self::Unknown => MAX_VECTORS,
        }
    }
}

/// The form of the record, in place of the mode: `intx changing msi`, `intx changing msix 3`.
impl fmt::Display for ModeChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Msi => write!(f, "{CHANGING}msi"),
            Self::Msix(entries) => write!(f, "{CHANGING}msix {entries}"),
            Self::Unknown => write!(f, "{CHANGING}unknown"),
        }
    }
}

const CHANGING: &str = "intx changing ";

impl FromStr for ModeChange {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text.strip_prefix(CHANGING).ok_or(ModeError)?.split_once(' ') {
            None if text.ends_with(" msi") => Ok(Self::Msi),
            None if text.ends_with(" unknown") => Ok(Self::Unknown),
            Some(("msix", entries)) => entries.parse().map(Self::Msix).map_err(|_| ModeError),
            _ => Err(ModeError),
        }
    }
}

/// What is to be recorded of a function's interrupts. Each is written before it comes true.
#[derive(Clone, Copy, Debug)]
pub enum ModeRecord<'a> {
    /// A change is about to be made.
    Change(ModeChange),
    /// The mode that is on.
    Mode(&'a Mode),
}

impl fmt::Display for ModeRecord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(change) => change.fmt(f),
            Self::Mode(mode) => mode.fmt(f),
        }
    }
}

/// What the record says of a function's interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The mode that is on, or is about to be turned on in the device.
    Mode(Mode),
    /// A change that was begun. Changes begin from INTx only.
    Change(ModeChange),
    /// The record is lost or damaged, for this reason.
    Unknown(String),
}

impl Recorded {
    /// The mode to go on from.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Mode(mode) => mode.clone(),
            Self::Change(_) | Self::Unknown(_) => Mode::Intx,
        }
    }

    /// The change whose end is not recorded, if there is one.
    pub fn change(&self) -> Option<ModeChange> {
        match self {
            Self::Mode(_) => None,
            Self::Change(change) => Some(*change),
            Self::Unknown(_) => Some(ModeChange::Unknown),
        }
    }
}

impl FromStr for Recorded {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let change = text.parse().map(Self::Change);
        change.or_else(|ModeError| text.parse().map(Self::Mode))
    }
}

/// The form of the record: `intx`, `msi 55`, `msix 0=55 1=54`.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intx => f.write_str("intx"),
            Self::Msi(pirq) => write!(f, "msi {pirq}"),
            Self::Msix(entries) => {
                f.write_str("msix")?;
                entries
                    .iter()
                    .try_for_each(|(entry, pirq)| write!(f, " {entry}={pirq}"))
            }
        }
    }
}

/// A text that is no interrupt mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an interrupt mode: expected intx, msi PIRQ or msix ENTRY=PIRQ…")]
pub struct ModeError;

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let mut words = text.split(' ');
        let kind = words.next();
        let mode = match kind {
            Some("intx") => Self::Intx,
            Some("msi") => Self::Msi(words.next().and_then(|word| word.parse().ok()).ok_or(ModeError)?),
            Some("msix") => {
                let pair = |word: &str| {
                    let (entry, pirq) = word.split_once('=').ok_or(ModeError)?;
                    Ok((
                        entry.parse().map_err(|_| ModeError)?,
                        pirq.parse().map_err(|_| ModeError)?,
                    ))
                };
                return words.map(pair).collect::<Result<_, _>>().map(Self::Msix);
            }
            _ => return Err(ModeError),
        };
        words.next().is_none().then_some(mode).ok_or(ModeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_written_down_and_read_back() {
        for (text, mode) in [
            ("intx", Mode::Intx),
            ("msi 55", Mode::Msi(55)),
            ("msix 0=55 4=54", Mode::Msix(vec![(0, 55), (4, 54)])),
        ] {
            assert_eq!(mode.to_string(), text);
            assert_eq!(text.parse(), Ok(mode));
        }
        for text in [
            "",
            "msi",
            "msi x",
            "msi 1 2",
            "intx 1",
            "msix 0",
            "msix 0=x",
            "msix 70000=1",
            "MSI 1",
        ] {
            assert_eq!(text.parse::<Mode>(), Err(ModeError), "{text}");
        }
    }

    #[test]
    fn a_change_is_written_down_and_read_back_and_counts_as_the_line() {
        for (text, change) in [
            ("intx changing msi", ModeChange::Msi),
            ("intx changing msix 128", ModeChange::Msix(128)),
            ("intx changing unknown", ModeChange::Unknown),
        ] {
            assert_eq!(change.to_string(), text);
            assert_eq!(text.parse(), Ok(change));
            let recorded: Recorded = text.parse().unwrap();
            assert_eq!((recorded.mode(), recorded.change()), (Mode::Intx, Some(change)));
        }
        let recorded: Recorded = "msi 55".parse().unwrap();
        assert_eq!((recorded.mode(), recorded.change()), (Mode::Msi(55), None));
        let lost = Recorded::Unknown("gone".into());
        assert_eq!(
            (lost.mode(), lost.change()),
            (Mode::Intx, Some(ModeChange::Unknown))
        );
        for text in [
            "intx",
            "intx changing",
            "intx changing msix",
            "intx changing msix x",
            "msi 55",
        ] {
            assert_eq!(text.parse::<ModeChange>(), Err(ModeError), "{text}");
        }
    }
}
