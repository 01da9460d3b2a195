//! The nodes of the device, as the toolstack has written them.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use drivers::error::{Blame, SetupError};
use drivers::platform::DomId;
use drivers::store::{self, Nodes};

/// A network address of an Ethernet card.
pub type Mac = [u8; 6];

/// The backend of the device, and what it is to be called in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Domain of the backend.
    pub backend: DomId,
    /// Its directory.
    pub directory: String,
    /// The own address.
    pub mac: Mac,
}

impl Peer {
    /// Reads the nodes below the frontend's `directory`.
    ///
    /// # Errors
    /// xenstore's; a missing or bad node, blamed on the toolstack.
    pub fn read(store: &mut dyn Nodes, directory: &str) -> Result<Self, Box<SetupError>> {
        let toolstack = Blame::Toolstack;
        Ok(Self {
            backend: store::domid(store, &format!("{directory}/backend-id"), "a domain number")?,
            directory: store::value(
                store,
                &format!("{directory}/backend"),
                toolstack,
                "the path of the backend's directory",
                |text| text.starts_with('/').then(|| text.to_string()),
            )?,
            mac: store::value(
                store,
                &format!("{directory}/mac"),
                toolstack,
                "the address of one card, such as 00:16:3e:01:02:03",
                parse_mac,
            )?,
        })
    }
}

/// Reads an address such as `00:16:3e:01:02:03`, which is neither one of a group nor all zeros.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = store::hex(part)?.try_into().ok()?;
    }
    let group = mac[0] & 1 != 0;
    let sound = parts.next().is_none() && !group && mac != Mac::default();
    sound.then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_bytes_of_one_card() {
        assert_eq!(
            parse_mac("00:16:3E:0a:ff:01"),
            Some([0, 0x16, 0x3e, 0x0a, 0xff, 1])
        );
        for bad in [
            "",
            "00:16:3e:0a:ff",
            "00:16:3e:0a:ff:01:02",
            "00:16:3e:0a:ff:1",
            "00:16:3e:0a:ff:001",
            "00-16-3e-0a-ff-01",
            "00:16:3e:0a:ff:0g",
            "00:16:3e:0a:ff:+1",
            "01:16:3e:0a:ff:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "00:16:3e:0a:ff:01 ",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
