//! Names of devices: by address, by path, by ids.
//!
//! | form | meaning |
//! |---|---|
//! | `0000:03:00.0`, `03:00.0` | the device at this address |
//! | `0000:00:1c.0/00.0` | the path from this bridge down to the device, by device and function numbers: bus numbers change when cards come and go, slots do not |
//! | `8086:10d3@…` | the device at that address or path, if it has this vendor id and device id |
//! | `8086:10d3` | the device with this vendor id and device id |

use pci::bdf::Bdf;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::fmt;
use std::str::FromStr;
use xenbus::device::Ids;

/// A device's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// By ids.
    Ids(Ids),
    /// By address or path.
    At {
        /// The ids that it must have.
        ids: Option<Ids>,
        /// Where it is.
        place: Place,
    },
}

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where to begin; the device itself if there are no steps.
    pub root: Bdf,
    /// From each bridge to the next, down to the device.
    pub steps: Vec<Step>,
}

/// Device and function number on the bus below a bridge, written `00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(u8);

impl Step {
    /// Both numbers in one byte, as in [`Bdf::devfn`].
    pub const fn devfn(self) -> u8 {
        self.0
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError(String);

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if has_wide_segment(&self.0) {
            return write!(
                f,
                "{:?} lies in a PCI domain above ffff, which Linux makes for what is behind a controller such as Intel's VMD; \
                 Xen knows no such device: name the controller, or turn it off in the firmware",
                self.0
            );
        }
        write!(
            f,
            "{:?} names no PCI device: expected an address (0000:03:00.0), a path (0000:00:1c.0/00.0), either after what \
             the device is (8086:10d3@0000:03:00.0), or that alone (8086:10d3)",
            self.0
        )
    }
}

impl std::error::Error for NameError {}

impl From<Bdf> for Name {
    fn from(bdf: Bdf) -> Self {
        Self::At {
            ids: None,
            place: Place {
                root: bdf,
                steps: Vec::new(),
            },
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.0 >> 3, self.0 & 7)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root)?;
        self.steps.iter().try_for_each(|step| write!(f, "/{step}"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ids(ids) => write!(f, "{ids}"),
            Self::At {
                ids: Some(ids),
                place,
            } => write!(f, "{ids}@{place}"),
            Self::At { ids: None, place } => write!(f, "{place}"),
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = || match text.split_once('@') {
            Some((ids, place)) => Some(Self::At {
                ids: Some(ids.parse().ok()?),
                place: parse_place(place)?,
            }),
            None => match text.parse() {
                Ok(ids) => Some(Self::Ids(ids)),
                Err(_) => parse_place(text).map(|place| Self::At { ids: None, place }),
            },
        };
        name().ok_or_else(|| NameError(text.to_owned()))
    }
}

/// True for an address with more than four digits before its first colon; lspci prints such addresses too.
fn has_wide_segment(text: &str) -> bool {
    let address = text.split_once('@').map_or(text, |(_, address)| address);
    let segment = address.split(':').next().unwrap_or_default();
    address.matches(':').count() == 2
        && segment.len() > 4
        && segment.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn parse_place(text: &str) -> Option<Place> {
    let mut parts = text.split('/');
    let root = parts.next()?.parse().ok()?;
    let steps = parts.map(parse_step).collect::<Option<_>>()?;
    Some(Place { root, steps })
}

fn parse_step(text: &str) -> Option<Step> {
    if text.contains(':') {
        return None;
    }
    // The parser needs a bus number; any will do, because only the devfn is kept.
    let on_a_bus: Bdf = format!("00:{text}").parse().ok()?;
    Some(Step(on_a_bus.devfn()))
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_in_a_domain_that_xen_does_not_know_is_named_as_that() {
        for text in ["10000:e1:00.0", "8086:0a54@10000:e1:00.0"] {
            let told = text.parse::<Name>().unwrap_err().to_string();
            assert!(told.contains("in a PCI domain above ffff"), "{told}");
        }
        for text in ["10000:00.0", "00000x:00:00.0", "nonsense"] {
            let told = text.parse::<Name>().unwrap_err().to_string();
            assert!(told.contains("names no PCI device"), "{told}");
        }
    }

    #[test]
    fn a_name_is_read_in_every_form_and_written_in_full() {
        for (text, full) in [
            ("0000:03:00.0", "0000:03:00.0"),
            ("03:1f.7", "0000:03:1f.7"),
            ("8086:10d3", "8086:10d3"),
            ("8086:10d3@03:00.0", "8086:10d3@0000:03:00.0"),
            ("0000:00:1c.0/00.0", "0000:00:1c.0/00.0"),
            ("00:1c.0/0.0/1f.7", "0000:00:1c.0/00.0/1f.7"),
            ("8086:10d3@0000:00:1c.0/00.0", "8086:10d3@0000:00:1c.0/00.0"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(full.parse(), Ok(name));
        }
    }

    #[test]
    fn an_address_is_a_name() {
        let bdf: Bdf = "0000:03:00.0".parse().unwrap();
        assert_eq!("0000:03:00.0".parse(), Ok(Name::from(bdf)));
    }

    #[test]
    fn what_names_nothing_is_refused_with_the_forms() {
        for text in [
            "",
            "03",
            "eth0",
            "8086",
            "8086:10d3@",
            "@03:00.0",
            "8086:10d3@8086:10d3",
            "03:00.0@8086:10d3",
            "00:1c.0/",
            "/00.0",
            "00:1c.0/20.0",
            "00:1c.0/00.8",
            "00:1c.0/01:00.0",
            "00:1c.0//00.0",
        ] {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{text:?} names no PCI device")),
                "{error}"
            );
        }
    }
}
