//! Options of a device, on the command line or in the policy file.

use crate::name::{Name, NameError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use xenbus::device::{Quirks, ValueError};

/// Options of a device; `None` if the administrator has not set one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether the guest may use MSI and MSI-X.
    pub msi: Option<bool>,
    /// Whether writes to registers that no table names go to the device.
    pub permissive: Option<bool>,
    /// Registers of which the guest may write some bits.
    pub quirks: Option<Quirks>,
    /// Whether the guest gets an INTx line that others use too.
    pub share_intx: Option<bool>,
    /// What happens after an error that the guest does not handle.
    pub aer: Option<AerFate>,
}

impl Options {
    /// These options. One that is not set is taken from `weaker`.
    pub fn or(self, weaker: Self) -> Self {
        Self {
            msi: self.msi.or(weaker.msi),
            permissive: self.permissive.or(weaker.permissive),
            quirks: self.quirks.or(weaker.quirks),
            share_intx: self.share_intx.or(weaker.share_intx),
            aer: self.aer.or(weaker.aer),
        }
    }

    /// Sets the option of one `KEY=VALUE`.
    fn take(&mut self, text: &str) -> Result<(), OptionError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let wrong = |expected: String| OptionError::Value {
            option: text.to_owned(),
            expected,
        };
        let twice = || OptionError::Twice { key: key.to_owned() };
        fn set<T>(
            slot: &mut Option<T>,
            value: T,
            twice: impl FnOnce() -> OptionError,
        ) -> Result<(), OptionError> {
            match slot.replace(value) {
                None => Ok(()),
                Some(_) => Err(twice()),
            }
        }
        let switch = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(wrong("0 or 1".into())),
        };
        match key {
            "permissive" => set(&mut self.permissive, switch()?, twice),
            "msi" => set(&mut self.msi, switch()?, twice),
            "share-intx" => set(&mut self.share_intx, switch()?, twice),
            "aer" => {
                let fate = value
                    .parse()
                    .map_err(|_: AerFateError| wrong("leave, detach or destroy".into()))?;
                set(&mut self.aer, fate, twice)
            }
            "quirk" => {
                // The one option that may be repeated: a device can have several.
                let quirks = self.quirks.get_or_insert_default();
                let added = value.parse().and_then(|quirk| quirks.add(quirk));
                added.map_err(|error: ValueError| wrong(error.expected().into()))
            }
            _ => Err(OptionError::Unknown { key: key.to_owned() }),
        }
    }
}

/// A device on the command line, written `NAME[,KEY=VALUE]…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The device.
    pub name: Name,
    /// Its options.
    pub options: Options,
}

/// Why a text is no device with options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionError {
    /// It names no device.
    Name(NameError),
    /// The option does not exist.
    Unknown {
        /// Its name.
        key: String,
    },
    /// An option is given twice.
    Twice {
        /// Its name.
        key: String,
    },
    /// An option has a wrong value.
    Value {
        /// The option with its value.
        option: String,
        /// What it should be.
        expected: String,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(error) => error.fmt(f),
            Self::Unknown { key } => write!(
                f,
                "a device has no option {key:?}: there are permissive=0|1, msi=0|1, quirk=REG:SIZE:MASK, \
                 share-intx=0|1 and aer=leave|detach|destroy"
            ),
            Self::Twice { key } => write!(f, "option {key} is given twice: give it once"),
            Self::Value { option, expected } => write!(f, "{option:?}: expected {expected}"),
        }
    }
}

impl std::error::Error for OptionError {}

impl From<Name> for Wanted {
    fn from(name: Name) -> Self {
        let options = Options::default();
        Self { name, options }
    }
}

/// In the words that stand for it on the command line.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            msi,
            permissive,
            quirks,
            share_intx,
            aer,
        } = &self.options;
        write!(f, "{}", self.name)?;
        for (key, switch) in [
            ("permissive", permissive),
            ("msi", msi),
            ("share-intx", share_intx),
        ] {
            if let Some(switch) = switch {
                write!(f, ",{key}={}", u8::from(*switch))?;
            }
        }
        for quirk in quirks.iter().flat_map(Quirks::as_slice) {
            write!(f, ",quirk={quirk}")?;
        }
        aer.map_or(Ok(()), |aer| write!(f, ",aer={aer}"))
    }
}

impl FromStr for Wanted {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut parts = text.split(',');
        let name = parts
            .next()
            .unwrap_or_default()
            .parse()
            .map_err(OptionError::Name)?;
        let mut options = Options::default();
        parts.try_for_each(|part| options.take(part))?;
        Ok(Self { name, options })
    }
}

/// What happens after an error of a device that the guest does not handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AerFate {
    /// Nothing: the error is logged, and the device stays as it is.
    #[default]
    Leave,
    /// The device is taken from the guest.
    Detach,
    /// The guest is destroyed.
    Destroy,
}

/// A text that names no [`AerFate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AerFateError;

impl fmt::Display for AerFateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected leave, detach or destroy")
    }
}

impl std::error::Error for AerFateError {}

impl fmt::Display for AerFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leave => "leave",
            Self::Detach => "detach",
            Self::Destroy => "destroy",
        })
    }
}

impl FromStr for AerFate {
    type Err = AerFateError;

    fn from_str(text: &str) -> Result<Self, AerFateError> {
        match text {
            "leave" => Ok(Self::Leave),
            "detach" => Ok(Self::Detach),
            "destroy" => Ok(Self::Destroy),
            _ => Err(AerFateError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_asked_for_by_name_and_options() {
        let wanted: Wanted =
            "8086:10d3@03:00.0,permissive=1,msi=0,quirk=44:2:ff,quirk=60:1:1,share-intx=1,aer=detach"
                .parse()
                .unwrap();
        let options = Options {
            msi: Some(false),
            permissive: Some(true),
            quirks: Some("44:2:ff;60:1:1".parse().unwrap()),
            share_intx: Some(true),
            aer: Some(AerFate::Detach),
        };
        let name: Name = "8086:10d3@03:00.0".parse().unwrap();
        let expected = Wanted {
            name: name.clone(),
            options,
        };
        assert_eq!(wanted, expected);
        assert_eq!(wanted.to_string().parse(), Ok(wanted));
        let plain = Wanted::from(name);
        assert_eq!("8086:10d3@03:00.0".parse(), Ok(plain.clone()));
        assert_eq!(plain.to_string(), "8086:10d3@0000:03:00.0");
    }

    #[test]
    fn an_option_that_is_unknown_doubled_or_nonsense_is_refused_by_name() {
        for (options, expected) in [
            (
                "fast=1",
                "a device has no option \"fast\": there are permissive=0|1, msi=0|1, ",
            ),
            ("", "a device has no option \"\""),
            ("Permissive=1", "a device has no option \"Permissive\""),
            ("msi=0,msi=0", "option msi is given twice"),
            (
                "msi=1,permissive=1,permissive=0",
                "option permissive is given twice",
            ),
            ("aer=leave,aer=leave", "option aer is given twice"),
            ("msi", "\"msi\": expected 0 or 1"),
            ("msi=off", "\"msi=off\": expected 0 or 1"),
            ("share-intx=2", "\"share-intx=2\": expected 0 or 1"),
            ("aer=kill", "\"aer=kill\": expected leave, detach or destroy"),
            (
                "quirk=44:3:ff",
                "\"quirk=44:3:ff\": expected a quirk's size of 1, 2 or 4",
            ),
            (
                "quirk=44:2:ff,quirk=45:1:1",
                "\"quirk=45:1:1\": expected quirks of different registers",
            ),
        ] {
            let error = format!("03:00.0,{options}")
                .parse::<Wanted>()
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = "eth0,msi=0".parse::<Wanted>().unwrap_err().to_string();
        assert!(error.starts_with("\"eth0\" names no PCI device"), "{error}");
    }

    #[test]
    fn what_is_said_wins_over_what_the_weaker_ones_say() {
        let [strong, weak] = ["msi=1,quirk=44:1:1", "msi=0,permissive=1,quirk=60:1:1"].map(|options| {
            let wanted: Wanted = format!("03:00.0,{options}").parse().unwrap();
            wanted.options
        });
        let both = strong.or(weak);
        assert_eq!((both.msi, both.permissive), (Some(true), Some(true)));
        assert_eq!(both.quirks.unwrap().to_string(), "44:1:1");
        assert_eq!((both.share_intx, both.aer), (None, None));
    }

    #[test]
    fn a_fate_is_read_as_it_is_written() {
        assert_eq!(AerFate::default(), AerFate::Leave);
        for fate in [AerFate::Leave, AerFate::Detach, AerFate::Destroy] {
            assert_eq!(fate.to_string().parse(), Ok(fate));
        }
        assert_eq!("kill".parse::<AerFate>(), Err(AerFateError));
    }
}
