//! Terms: what a guest may do with a device.
//!
//! They are decided when the device is given, from the policy file and the command line, and recorded. The service
//! goes by the record, whatever the files say later.

use crate::serde_text;
use bulkhead_config::options::AerFate;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use xenbus::device::Quirks;

/// The terms on which a guest has a device: what it may do beyond the usual, or less.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Terms {
    /// Writes to registers that no table names go to the device.
    pub permissive: bool,
    /// Registers of which the guest may write some bits.
    #[serde(with = "serde_text::text")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub quirks: Quirks,
    /// Whether the guest may use MSI and MSI-X.
    pub msi: Msi,
    /// True: the guest gets the INTx line although others use it. False: it does not. `None`: it does if the device
    /// has no other interrupts.
    pub share_intx: Option<bool>,
    /// Fate of the device after an error without recovery.
    #[cfg_attr(test, schemars(with = "String"))]
    pub aer: AerFate,
}

impl FromStr for Terms {
    type Err = serde_json::Error;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(word)
    }
}

impl Terms {
    /// The terms as one argument for a command that gives the device again.
    pub fn to_word(&self) -> String {
        serde_text::json(self)
    }

    /// True if the guest may write registers that no table names.
    pub fn reach_unlisted(&self) -> bool {
        self.permissive || !self.quirks.is_empty()
    }
}

/// Whether a guest may use MSI and MSI-X.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Msi {
    /// MSI and MSI-X are allowed.
    #[default]
    On,
    /// MSI and MSI-X are refused, by the rule in these words.
    Off(String),
}

impl Msi {
    /// True if MSI and MSI-X are allowed.
    pub fn is_on(&self) -> bool {
        *self == Self::On
    }
}

/// The terms that differ from the usual, in words; empty if none does.
impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unusual = Vec::new();
        if self.permissive {
            unusual.push("permissive".to_owned());
        }
        if !self.quirks.is_empty() {
            unusual.push(format!("quirks {}", self.quirks));
        }
        if let Msi::Off(rule) = &self.msi {
            unusual.push(format!("MSI off: {rule}"));
        }
        match self.share_intx {
            Some(true) => unusual.push("INTx even if shared".to_owned()),
            Some(false) => unusual.push("INTx never shared".to_owned()),
            None => {}
        }
        if self.aer != AerFate::default() {
            unusual.push(format!("after an error: {}", self.aer));
        }
        f.write_str(&unusual.join("; "))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn terms_can_be_asked_for_again_word_for_word() {
        for terms in [Terms::default(), unusual()] {
            let word = terms.to_word();
            assert_eq!(word.parse::<Terms>().unwrap(), terms, "{word}");
        }
        assert!("permissive".parse::<Terms>().is_err());
    }

    /// Terms of which none is the usual one.
    pub fn unusual() -> Terms {
        Terms {
            permissive: true,
            quirks: "44:2:ff;60:1:1".parse().unwrap(),
            msi: Msi::Off("policy.toml, bridge 0000:00:1c.0".into()),
            share_intx: Some(true),
            aer: AerFate::Destroy,
        }
    }

    #[test]
    fn only_what_is_unusual_is_told() {
        assert_eq!(Terms::default().to_string(), "");
        assert_eq!(
            unusual().to_string(),
            "permissive; quirks 44:2:ff;60:1:1; MSI off: policy.toml, bridge 0000:00:1c.0; INTx even if shared; \
             after an error: destroy"
        );
    }

    #[test]
    fn terms_are_read_as_they_were_written_and_what_is_missing_is_usual() {
        let text = serde_json::to_string(&unusual()).unwrap();
        assert_eq!(serde_json::from_str::<Terms>(&text).unwrap(), unusual());
        assert_eq!(serde_json::from_str::<Terms>("{}").unwrap(), Terms::default());
        assert!(serde_json::from_str::<Terms>(r#"{"quirks":"44:3:ff"}"#).is_err());
    }
}
