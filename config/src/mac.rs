//! Ethernet addresses of stubs.

use std::fmt;
use std::str::FromStr;

/// An address of one network card: neither a group's nor all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac([u8; 6]);

/// A text that is no [`Mac`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacError;

impl fmt::Display for MacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an Ethernet address of one card, such as 00:16:3e:12:34:56")
    }
}

impl std::error::Error for MacError {}

impl Mac {
    /// Xen's part of the Ethernet addresses, `00:16:3e`, as registered with the IEEE.
    const XEN: [u8; 3] = [0x00, 0x16, 0x3e];

    /// The address of the stub of a guest on a machine. It stays the same over restarts of guest and host, so that a DHCP
    /// server gives the same lease and a monitor finds the stub again. The last 23 bits are a digest of both texts.
    /// Half of Xen's addresses is left to others, as `xl` leaves it.
    pub fn derived(machine: &str, guest: &str) -> Self {
        let [.., high, middle, low] = digest(&[machine.trim(), guest]).to_be_bytes();
        let [first, second, third] = Self::XEN;
        Self([first, second, third, high & 0x7f, middle, low])
    }
}

/// FNV-1a with 64 bits, its halves mixed. The standard library's hashes may change with its version.
fn digest(texts: &[&str]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let step = |digest: u64, byte: u8| (digest ^ u64::from(byte)).wrapping_mul(PRIME);
    let mut digest = BASIS;
    for text in texts {
        // Neither text holds this byte, so it separates them.
        digest = step(text.bytes().fold(digest, step), 0xff);
    }
    digest ^ (digest >> 32)
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let byte = |part: &str| {
            let is_hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes: [u8; 6] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(MacError)?;
        // The lowest bit of the first byte marks a group's address (IEEE 802).
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(MacError);
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const MACHINE: &str = "8f2b3c4d5e6f708192a3b4c5d6e7f809\n";

    #[test]
    fn the_address_of_a_stub_stays_the_same_for_ever() {
        // If this fails, leases and targets of every host change with an upgrade.
        assert_eq!(Mac::derived(MACHINE, "web").to_string(), "00:16:3e:0b:67:fd");
        assert_eq!(Mac::derived(MACHINE.trim(), "web"), Mac::derived(MACHINE, "web"));
    }

    #[test]
    fn guests_and_machines_have_addresses_of_their_own() {
        let mut seen = BTreeSet::new();
        for guest in 0..500 {
            for machine in ["a", "b"] {
                seen.insert(Mac::derived(machine, &format!("guest-{guest}")).to_string());
            }
        }
        assert_eq!(seen.len(), 1000);
        assert_ne!(Mac::derived("ab", "c"), Mac::derived("a", "bc"));
    }

    #[test]
    fn what_is_no_address_of_one_card_is_refused() {
        for text in [
            "",
            "00:16:3e:12:34",
            "00:16:3e:12:34:56:78",
            "00:16:3e:12:34:5",
            "00:16:3e:12:34:+5",
            "00-16-3e-12-34-56",
            "00:16:3e:12:34:5g",
            "01:16:3e:12:34:56",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(machine: String, guest: String) {
            let mac = Mac::derived(&machine, &guest);
            prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            prop_assert!(mac.0[3] < 0x80);
        }
    }
}
