//! The settings: words of the kernel command line, which the toolstack writes (`docs/telemetry.md`).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::Ipv4Addr;
use drivers::store;
use log::LevelFilter;
use metrics::STUB_PORT;
use xenbus::printable::Printable;

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// The stub's address.
    pub address: Ipv4Addr,
    /// From 1 to 32.
    pub prefix: u8,
}

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the guest; empty if it is not told.
    pub guest: String,
    /// `None`: by DHCP.
    pub network: Option<StaticAddress>,
    /// The way to other networks, for a static address.
    pub gateway: Option<Ipv4Addr>,
    /// TCP port of the metrics; `None`: they are not served.
    pub metrics: Option<u16>,
    /// Where log lines are sent.
    pub syslog: Option<(Ipv4Addr, u16)>,
    /// Lines of less weight are not sent.
    pub syslog_level: LevelFilter,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            guest: String::new(),
            network: None,
            gateway: None,
            metrics: Some(STUB_PORT),
            syslog: None,
            syslog_level: LevelFilter::Trace,
        }
    }
}

/// A word that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord<'a> {
    word: &'a str,
    expected: &'static str,
}

impl fmt::Display for BadWord<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Printable(self.word.as_bytes());
        write!(f, "command line: \"{word}\": expected {}", self.expected)
    }
}

impl Settings {
    /// Reads the command line. Words that others read are left out.
    ///
    /// # Errors
    /// The first word that cannot be used.
    pub fn parse(command_line: &str) -> Result<Self, BadWord<'_>> {
        let mut settings = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            settings
                .take(key, value)
                .map_err(|expected| BadWord { word, expected })?;
        }
        Ok(settings)
    }

    /// Takes one word; an error says what was expected.
    fn take(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "guest" => self.guest = decode(value).ok_or("a name, with other bytes as %XX")?,
            "ip" if value == "dhcp" => self.network = None,
            "ip" => self.network = Some(network(value).ok_or("dhcp or ADDRESS/LENGTH")?),
            "gateway" => self.gateway = Some(host(value).ok_or("an IPv4 address of a host")?),
            "metrics" if value == "off" => self.metrics = None,
            "metrics" => self.metrics = Some(port(value).ok_or("off or a TCP port")?),
            "syslog" => self.syslog = Some(target(value).ok_or("ADDRESS:PORT")?),
            "sysloglevel" => {
                self.syslog_level = value.parse().map_err(|_| "error, warn, info, debug or trace")?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn port(text: &str) -> Option<u16> {
    number(text).filter(|&port| port != 0)
}

fn network(text: &str) -> Option<StaticAddress> {
    let (address, prefix) = text.split_once('/')?;
    let network = StaticAddress {
        address: host(address)?,
        prefix: number(prefix)?,
    };
    (1..=32).contains(&network.prefix).then_some(network)
}

/// True for an address that one host can have. smoltcp panics where it is to send to the others.
#[inline(never)]
pub fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_multicast() || address.is_broadcast() || address.is_unspecified())
}

fn host(text: &str) -> Option<Ipv4Addr> {
    ipv4(text).filter(|&address| is_host(address))
}

fn target(text: &str) -> Option<(Ipv4Addr, u16)> {
    let (address, number) = text.split_once(':')?;
    Some((host(address)?, port(number)?))
}

/// Reads an address. The parser of the standard library takes the same texts, and 900 bytes more of the image.
fn ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        // To some, a zero in front means that the number is octal.
        let part = parts
            .next()
            .filter(|part| *part == "0" || !part.starts_with('0'))?;
        *octet = number(part)?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// Reads a decimal number that fits.
fn number<N: TryFrom<u32>>(text: &str) -> Option<N> {
    store::decimal(text)?.try_into().ok()
}

/// Reads a text whose bytes other than letters, digits, `.`, `_` and `-` are written as `%XX`.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || (rest.next()? as char).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_command_line_sets_all_there_is() {
        let text = "loglevel=info guest=my%20web.1 ip=10.0.0.9/24 gateway=10.0.0.1 metrics=9100 syslog=10.0.0.5:514 \
                    sysloglevel=warn other";
        let settings = Settings::parse(text).unwrap();
        assert_eq!(
            settings,
            Settings {
                guest: "my web.1".into(),
                network: Some(StaticAddress {
                    address: Ipv4Addr::new(10, 0, 0, 9),
                    prefix: 24
                }),
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
                metrics: Some(9100),
                syslog: Some((Ipv4Addr::new(10, 0, 0, 5), 514)),
                syslog_level: LevelFilter::Warn,
            }
        );
    }

    #[test]
    fn without_words_there_are_defaults() {
        let settings = Settings::parse("loglevel=debug").unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(Settings::parse("metrics=off ip=dhcp").unwrap().metrics, None);
    }

    #[test]
    fn an_address_is_what_the_standard_library_takes_for_one() {
        for text in [
            "10.0.0.9",
            "0.0.0.0",
            "255.255.255.255",
            "256.0.0.1",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.",
            ".1.2.3",
            "1..2.3",
            "01.2.3.4",
            "00.0.0.0",
            "1.2.3.+4",
            "1.2.3.-4",
            " 1.2.3.4",
            "1.2.3.4 ",
            "1.2.3.0x4",
            "1.2.3.4294967300",
            "",
        ] {
            assert_eq!(ipv4(text), text.parse().ok(), "{text}");
        }
    }

    #[test]
    fn a_word_that_cannot_be_used_is_named() {
        for word in [
            "ip=10.0.0.9",
            "ip=10.0.0.9/33",
            "ip=10.0.0.9/0",
            "ip=224.0.0.1/4",
            "ip=0.0.0.0/8",
            "ip=255.255.255.255/32",
            "ip=",
            "gateway=x",
            "gateway=0.0.0.0",
            "gateway=224.0.0.1",
            "syslog=0.0.0.0:514",
            "syslog=255.255.255.255:514",
            "metrics=0",
            "metrics=65536",
            "syslog=10.0.0.5",
            "syslog=10.0.0.5:",
            "syslog=host:514",
            "sysloglevel=loud",
            "guest=%",
            "guest=%f",
            "guest=%ff",
        ] {
            let error = Settings::parse(word).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("expected"), "{error}");
        }
    }
}
