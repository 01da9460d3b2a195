//! What an administrator may choose for a device.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What becomes of a guest's device after an error that the guest does not handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AerFate {
    /// Nothing: the error is told, the device stays as it is.
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
    fn a_fate_is_read_as_it_is_written() {
        assert_eq!(AerFate::default(), AerFate::Leave);
        for fate in [AerFate::Leave, AerFate::Detach, AerFate::Destroy] {
            assert_eq!(fate.to_string().parse(), Ok(fate));
        }
        assert_eq!("kill".parse::<AerFate>(), Err(AerFateError));
    }
}
