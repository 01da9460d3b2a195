//! The network of a stub: where it serves its metrics, and where it sends its log.
//!
//! The text is `bridge=NAME[,KEY=VALUE]…`, on the command line, in a declaration and in the policy file. What the stub
//! must know of it stands on its kernel's command line ([`Telemetry::words`]).

use crate::mac::Mac;
use metrics::STUB_PORT;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

/// The network of a stub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// The bridge that the stub's interface is put on, in the backend's domain.
    pub bridge: String,
    /// The domain that has the bridge, by name or number; dom0 if there is none.
    pub backend: Option<String>,
    /// The stub's Ethernet address, if it is not [`Mac::derived`].
    pub mac: Option<Mac>,
    /// The hotplug script, by its name in Xen's directory or its path, if it is not xl's usual one.
    pub script: Option<String>,
    /// The stub's address.
    pub address: Address,
    /// The router. With DHCP the server names it.
    pub gateway: Option<Ipv4Addr>,
    /// Where the log goes.
    pub syslog: Option<SocketAddrV4>,
    /// The least urgent messages that go there, if not all that the console has.
    pub syslog_level: Option<LogLevel>,
    /// Where the metrics are served.
    pub metrics: Metrics,
}

/// How a stub gets its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Address {
    /// From a DHCP server.
    #[default]
    Dhcp,
    /// It is told.
    Static {
        /// The address.
        ip: Ipv4Addr,
        /// Bits of the network's part, 1 to 31.
        prefix: u8,
    },
}

/// Where a stub serves its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// At this TCP port, 1 or more.
    Port(u16),
    /// Nowhere.
    Off,
}

/// The levels of the stub's log, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What has failed.
    Error,
    /// What may fail.
    Warn,
    /// What the stub does.
    Info,
    /// Why.
    Debug,
    /// Every request.
    Trace,
}

/// Whether a stub has a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TelemetryChoice {
    /// It has none.
    Off,
    /// It has this one.
    On(Telemetry),
}

/// Why a text is no [`Telemetry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TelemetryError {
    /// A key that does not exist.
    Unknown {
        /// The key.
        key: String,
    },
    /// A key that is given twice.
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A key with a wrong value.
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// No bridge is named.
    NoBridge,
}

/// The keys, with what their values should be.
const KEYS: [(&str, &str); 9] = [
    (
        "bridge",
        "the name of a bridge: at most 15 letters, digits and any of . _ -",
    ),
    (
        "backend",
        "the name of a domain of letters, digits and any of . _ -, or its number",
    ),
    (
        "mac",
        "an Ethernet address of one card, such as 00:16:3e:12:34:56",
    ),
    (
        "script",
        "the name or path of a script of letters, digits and any of . _ - /",
    ),
    (
        "address",
        "dhcp, or the address of one host with the length of its network's part, such as 10.0.0.9/24",
    ),
    (
        "gateway",
        "the address of a router within the network of a static address, such as 10.0.0.1",
    ),
    (
        "syslog",
        "the address and UDP port of a syslog server, such as 10.0.0.5:514, outside the stub's network only if there is a \
         gateway",
    ),
    (
        "syslog-level",
        "error, warn, info, debug or trace, and a syslog server",
    ),
    (
        "metrics",
        "a TCP port from 1 to 65535, or off if there is a syslog server: nothing would be told without both",
    ),
];

impl fmt::Display for TelemetryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { key } => {
                let keys = KEYS.map(|(key, _)| key).join(", ");
                write!(
                    f,
                    "telemetry has no key {key:?}: there are {keys}, and it begins with bridge=NAME"
                )
            }
            Self::Twice { key } => write!(f, "{key} is given twice: give it once"),
            Self::Value { key, value, expected } => write!(f, "{key}={value}: expected {expected}"),
            Self::NoBridge => f.write_str("telemetry wants a bridge for the stub: begin with bridge=NAME"),
        }
    }
}

impl std::error::Error for TelemetryError {}

impl LogLevel {
    const WORDS: [(Self, &'static str); 5] = [
        (Self::Error, "error"),
        (Self::Warn, "warn"),
        (Self::Info, "info"),
        (Self::Debug, "debug"),
        (Self::Trace, "trace"),
    ];
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::WORDS.iter().find(|(level, _)| level == self);
        f.write_str(word.map_or("", |(_, word)| word))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp => f.write_str("dhcp"),
            Self::Static { ip, prefix } => write!(f, "{ip}/{prefix}"),
        }
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Off => f.write_str("off"),
        }
    }
}

impl Address {
    /// `dhcp`, or the address of a host in a network that has others.
    fn parse(text: &str) -> Option<Self> {
        if text == "dhcp" {
            return Some(Self::Dhcp);
        }
        let (ip, prefix) = text.split_once('/')?;
        let (ip, prefix): (Ipv4Addr, u8) = (ip.parse().ok()?, digits(prefix)?);
        let address = Self::Static { ip, prefix };
        let mask = address.mask()?;
        let host = ip.to_bits() & !mask;
        // The first and the last address of a network are no host's, but with two addresses both are (RFC 3021).
        let is_host = prefix == 31 || (host != 0 && host != !mask);
        (is_host && is_of_a_host(ip)).then_some(address)
    }

    /// The address, if it is told.
    pub fn ip(self) -> Option<Ipv4Addr> {
        match self {
            Self::Dhcp => None,
            Self::Static { ip, .. } => Some(ip),
        }
    }

    /// The bits of the network's part; `None` with DHCP, or if the length is none.
    fn mask(self) -> Option<u32> {
        match self {
            Self::Static { prefix, .. } if (1..=31).contains(&prefix) => Some(u32::MAX << (32 - prefix)),
            _ => None,
        }
    }

    /// True unless it is known that an address is outside the network.
    fn may_reach(self, other: Ipv4Addr) -> bool {
        match (self, self.mask()) {
            (Self::Static { ip, .. }, Some(mask)) => (ip.to_bits() ^ other.to_bits()) & mask == 0,
            _ => true,
        }
    }
}

/// A number without a sign or a zero in front.
fn digits<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|number: &T| number.to_string() == text)
}

/// True for an address that one host can have.
fn is_of_a_host(ip: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is this network, and from 224.0.0.0 on come groups and what is reserved (RFC 6890).
    !ip.is_loopback() && (1..224).contains(&ip.octets()[0])
}

fn is_plain(text: &str, besides: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || besides.contains(c))
}

/// A text with each byte that is no letter, digit, `.`, `_` or `-` as `%XX`, so that it is one word of a command line.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'.' | b'_' | b'-' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

impl Telemetry {
    /// The interface, in the words of xl's `vif=`.
    pub fn vif(&self, mac: Mac) -> String {
        let mut vif = format!("mac={mac},bridge={}", self.bridge);
        for (key, value) in [("backend", &self.backend), ("script", &self.script)] {
            if let Some(value) = value {
                vif += &format!(",{key}={value}");
            }
        }
        vif
    }

    /// What only one stub can have, as `KEY=VALUE`; `None` if any number of stubs can have this network.
    pub fn of_one_stub(&self) -> Option<String> {
        match (self.mac, self.address) {
            (Some(mac), _) => Some(format!("mac={mac}")),
            (None, Address::Static { .. }) => Some(format!("address={}", self.address)),
            (None, Address::Dhcp) => None,
        }
    }

    /// What the stub of this guest must know, in words of its kernel's command line.
    pub fn words(&self, guest: &str) -> String {
        let mut words = format!("guest={} ip={}", escaped(guest), self.address);
        if let Some(gateway) = self.gateway {
            words += &format!(" gateway={gateway}");
        }
        words += &format!(" metrics={}", self.metrics);
        if let Some(syslog) = self.syslog {
            words += &format!(" syslog={syslog}");
        }
        if let Some(level) = self.syslog_level {
            words += &format!(" sysloglevel={level}");
        }
        words
    }

    /// The network of a domain that was created with these keys of [`Telemetry`] for its interface, and this command line.
    ///
    /// # Errors
    /// A value that no such stub can have.
    pub fn of_domain(interface: &[(&str, &str)], command_line: &str) -> Result<Self, TelemetryError> {
        let interface = interface.iter().map(|(key, value)| format!("{key}={value}"));
        let words = command_line.split_ascii_whitespace().filter_map(|word| {
            let (word, value) = word.split_once('=')?;
            let (_, key) = WORDS.iter().find(|(other, _)| *other == word)?;
            Some(format!("{key}={value}"))
        });
        let parts: Vec<String> = interface.chain(words).collect();
        parts.join(",").parse()
    }

    /// Takes one `KEY=VALUE`.
    fn take(draft: &mut Draft, part: &str) -> Result<(), TelemetryError> {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(&(key, expected)) = KEYS.iter().find(|(known, _)| *known == key) else {
            return Err(TelemetryError::Unknown { key: key.to_owned() });
        };
        fn set<T>(
            slot: &mut Option<T>,
            key: &'static str,
            value: Option<T>,
        ) -> Option<Result<(), TelemetryError>> {
            let before = slot.replace(value?);
            Some(match before {
                None => Ok(()),
                Some(_) => Err(TelemetryError::Twice { key }),
            })
        }
        let text = |besides: &str, longest| is_plain(value, besides, longest).then(|| value.to_owned());
        let taken = match key {
            // Linux's IFNAMSIZ (include/uapi/linux/if.h) is 16, with a zero at the end.
            "bridge" => set(
                &mut draft.bridge,
                key,
                text("._-", 15).filter(|name| name != "." && name != ".."),
            ),
            "backend" => set(&mut draft.backend, key, text("._-", 64)),
            "mac" => set(&mut draft.mac, key, value.parse().ok()),
            "script" => set(&mut draft.script, key, text("._-/", 128)),
            "address" => set(&mut draft.address, key, Address::parse(value)),
            "gateway" => set(
                &mut draft.gateway,
                key,
                value.parse().ok().filter(|ip| is_of_a_host(*ip)),
            ),
            "syslog" => {
                let target: Option<SocketAddrV4> = value.parse().ok();
                let target = target.filter(|target| target.to_string() == value);
                let target = target.filter(|target| is_of_a_host(*target.ip()) && target.port() != 0);
                set(&mut draft.syslog, key, target)
            }
            "syslog-level" => {
                let level = LogLevel::WORDS.iter().find(|(_, word)| *word == value);
                set(&mut draft.syslog_level, key, level.map(|(level, _)| *level))
            }
            _ => {
                let port = digits(value).filter(|port| *port != 0).map(Metrics::Port);
                set(
                    &mut draft.metrics,
                    key,
                    port.or((value == "off").then_some(Metrics::Off)),
                )
            }
        };
        taken.unwrap_or_else(|| {
            Err(TelemetryError::Value {
                key,
                value: value.to_owned(),
                expected,
            })
        })
    }
}

/// Words of a stub's command line, with the keys whose values they have.
const WORDS: [(&str, &str); 5] = [
    ("ip", "address"),
    ("gateway", "gateway"),
    ("metrics", "metrics"),
    ("syslog", "syslog"),
    ("sysloglevel", "syslog-level"),
];

/// What has been read so far.
#[derive(Default)]
struct Draft {
    bridge: Option<String>,
    backend: Option<String>,
    mac: Option<Mac>,
    script: Option<String>,
    address: Option<Address>,
    gateway: Option<Ipv4Addr>,
    syslog: Option<SocketAddrV4>,
    syslog_level: Option<LogLevel>,
    metrics: Option<Metrics>,
}

impl Draft {
    /// The whole, if its parts fit together.
    fn finish(self) -> Result<Telemetry, TelemetryError> {
        let address = self.address.unwrap_or_default();
        let misfit = |key: &str, value: String| {
            let known = KEYS.iter().find(|(known, _)| *known == key);
            let (key, expected) = known.copied().unwrap_or_default();
            TelemetryError::Value { key, value, expected }
        };
        if let Some(gateway) = self.gateway {
            let is_static = matches!(address, Address::Static { ip, .. } if ip != gateway);
            if !is_static || !address.may_reach(gateway) {
                return Err(misfit("gateway", gateway.to_string()));
            }
        }
        if let Some(syslog) = self.syslog
            && self.gateway.is_none()
            && !address.may_reach(*syslog.ip())
        {
            return Err(misfit("syslog", syslog.to_string()));
        }
        if let (Some(level), None) = (self.syslog_level, self.syslog) {
            return Err(misfit("syslog-level", level.to_string()));
        }
        if let (Some(Metrics::Off), None) = (self.metrics, self.syslog) {
            return Err(misfit("metrics", Metrics::Off.to_string()));
        }
        Ok(Telemetry {
            bridge: self.bridge.ok_or(TelemetryError::NoBridge)?,
            backend: self.backend,
            mac: self.mac,
            script: self.script,
            address,
            gateway: self.gateway,
            syslog: self.syslog,
            syslog_level: self.syslog_level,
            metrics: self.metrics.unwrap_or(Metrics::Port(STUB_PORT)),
        })
    }
}

impl FromStr for Telemetry {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        let mut draft = Draft::default();
        text.split(',')
            .try_for_each(|part| Self::take(&mut draft, part))?;
        draft.finish()
    }
}

/// What differs from the defaults, in the order of the keys.
impl fmt::Display for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_usual = self.metrics == Metrics::Port(STUB_PORT);
        let values = [
            self.backend.clone(),
            self.mac.map(|mac| mac.to_string()),
            self.script.clone(),
            (self.address != Address::Dhcp).then(|| self.address.to_string()),
            self.gateway.map(|gateway| gateway.to_string()),
            self.syslog.map(|syslog| syslog.to_string()),
            self.syslog_level.map(|level| level.to_string()),
            (!is_usual).then(|| self.metrics.to_string()),
        ];
        write!(f, "bridge={}", self.bridge)?;
        for ((key, _), value) in KEYS.iter().skip(1).zip(values) {
            if let Some(value) = value {
                write!(f, ",{key}={value}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for TelemetryChoice {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "off" => Ok(Self::Off),
            text => text.parse().map(Self::On),
        }
    }
}

impl fmt::Display for TelemetryChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(telemetry) => telemetry.fmt(f),
        }
    }
}

impl TelemetryChoice {
    /// The network, if there is to be one.
    pub fn network(&self) -> Option<&Telemetry> {
        match self {
            Self::Off => None,
            Self::On(telemetry) => Some(telemetry),
        }
    }
}

/// As its text.
impl Serialize for TelemetryChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TelemetryChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: &str = "bridge=xenbr0,backend=sys-net,mac=00:16:3e:12:34:56,script=vif-bridge,address=10.0.0.9/24,\
                       gateway=10.0.0.1,syslog=10.1.0.5:514,syslog-level=warn,metrics=9100";

    fn parse(text: &str) -> Telemetry {
        text.parse().unwrap()
    }

    #[test]
    fn a_bridge_is_enough_and_the_rest_has_defaults() {
        let plain = parse("bridge=xenbr0");
        let expected = Telemetry {
            bridge: "xenbr0".into(),
            backend: None,
            mac: None,
            script: None,
            address: Address::Dhcp,
            gateway: None,
            syslog: None,
            syslog_level: None,
            metrics: Metrics::Port(9743),
        };
        assert_eq!(plain, expected);
        assert_eq!(plain.to_string(), "bridge=xenbr0");
        let mac = "00:16:3e:00:00:01".parse().unwrap();
        assert_eq!(plain.vif(mac), "mac=00:16:3e:00:00:01,bridge=xenbr0");
        assert_eq!(plain.words("web"), "guest=web ip=dhcp metrics=9743");
    }

    #[test]
    fn all_that_is_said_reaches_xl_and_the_stub() {
        let all = parse(ALL);
        assert_eq!(all.to_string(), ALL);
        let mac = all.mac.unwrap();
        assert_eq!(
            all.vif(mac),
            "mac=00:16:3e:12:34:56,bridge=xenbr0,backend=sys-net,script=vif-bridge"
        );
        assert_eq!(
            all.words("my web/\u{fc}%"),
            "guest=my%20web%2F%C3%BC%25 ip=10.0.0.9/24 gateway=10.0.0.1 metrics=9100 syslog=10.1.0.5:514 sysloglevel=warn"
        );
        assert_eq!(
            parse("metrics=off,bridge=b,syslog=10.0.0.5:514").words("w"),
            "guest=w ip=dhcp metrics=off syslog=10.0.0.5:514"
        );
    }

    #[test]
    fn a_mistake_is_told_with_the_key_the_value_and_what_was_expected() {
        for (text, expected) in [
            ("", "telemetry has no key \"\": there are bridge, backend, mac, "),
            (
                "on",
                "telemetry has no key \"on\": there are bridge, backend, mac, script, address, gateway, syslog, \
                 syslog-level, metrics, and it begins with bridge=NAME",
            ),
            ("bridge=b,Mac=1", "telemetry has no key \"Mac\""),
            (
                "address=dhcp",
                "telemetry wants a bridge for the stub: begin with bridge=NAME",
            ),
            ("bridge=b,bridge=b", "bridge is given twice: give it once"),
            ("bridge=b,metrics=off,metrics=1", "metrics is given twice"),
            ("bridge=", "bridge=: expected the name of a bridge"),
            ("bridge=..", "bridge=..: expected the name of a bridge"),
            (
                "bridge=a-name-of-16-let",
                "bridge=a-name-of-16-let: expected the name of a bridge: at most 15",
            ),
            (
                "bridge=b,backend=a b",
                "backend=a b: expected the name of a domain",
            ),
            (
                "bridge=b,mac=1",
                "mac=1: expected an Ethernet address of one card",
            ),
            (
                "bridge=b,script=a;b",
                "script=a;b: expected the name or path of a script",
            ),
            (
                "bridge=b,address=10.0.0.9",
                "address=10.0.0.9: expected dhcp, or the address",
            ),
            (
                "bridge=b,address=10.0.0.9/+8",
                "address=10.0.0.9/+8: expected dhcp",
            ),
            ("bridge=b,address=10.0.0.9/0", "address=10.0.0.9/0: expected dhcp"),
            (
                "bridge=b,address=10.0.0.9/32",
                "address=10.0.0.9/32: expected dhcp",
            ),
            (
                "bridge=b,address=10.0.0.0/24",
                "address=10.0.0.0/24: expected dhcp",
            ),
            (
                "bridge=b,address=10.0.0.255/24",
                "address=10.0.0.255/24: expected dhcp",
            ),
            (
                "bridge=b,address=127.0.0.1/8",
                "address=127.0.0.1/8: expected dhcp",
            ),
            (
                "bridge=b,address=224.0.0.9/24",
                "address=224.0.0.9/24: expected dhcp",
            ),
            (
                "bridge=b,gateway=10.0.0.1",
                "gateway=10.0.0.1: expected the address of a router within",
            ),
            (
                "bridge=b,address=10.0.0.9/24,gateway=10.0.1.1",
                "gateway=10.0.1.1: expected",
            ),
            (
                "bridge=b,address=10.0.0.9/24,gateway=10.0.0.9",
                "gateway=10.0.0.9: expected",
            ),
            (
                "bridge=b,syslog=10.0.0.5",
                "syslog=10.0.0.5: expected the address and UDP port",
            ),
            ("bridge=b,syslog=10.0.0.5:0", "syslog=10.0.0.5:0: expected"),
            ("bridge=b,syslog=10.0.0.5:0514", "syslog=10.0.0.5:0514: expected"),
            (
                "bridge=b,address=10.0.0.9/24,syslog=10.1.0.5:514",
                "syslog=10.1.0.5:514: expected",
            ),
            ("bridge=b,syslog-level=warn", "syslog-level=warn: expected"),
            (
                "bridge=b,syslog=10.0.0.5:514,syslog-level=all",
                "syslog-level=all: expected error, warn, ",
            ),
            (
                "bridge=b,metrics=0",
                "metrics=0: expected a TCP port from 1 to 65535, or off",
            ),
            (
                "bridge=b,metrics=off",
                "metrics=off: expected a TCP port from 1 to 65535, or off if there is a syslog server: nothing would be told",
            ),
            ("bridge=b,metrics=65536", "metrics=65536: expected a TCP port"),
            ("bridge=b,metrics", "metrics=: expected a TCP port"),
        ] {
            let error = text.parse::<Telemetry>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn two_hosts_on_a_wire_need_no_other_addresses() {
        let pair = parse("bridge=b,address=10.0.0.0/31,syslog=10.0.0.1:514");
        assert_eq!(
            pair.to_string(),
            "bridge=b,address=10.0.0.0/31,syslog=10.0.0.1:514"
        );
    }

    #[test]
    fn no_network_is_a_choice_too() {
        assert_eq!("off".parse(), Ok(TelemetryChoice::Off));
        assert_eq!(TelemetryChoice::Off.to_string(), "off");
        assert_eq!(TelemetryChoice::Off.network(), None);
        let on: TelemetryChoice = ALL.parse().unwrap();
        assert_eq!((on.to_string().as_str(), on.network()), (ALL, Some(&parse(ALL))));
        assert!("none".parse::<TelemetryChoice>().is_err());
    }

    fn telemetry() -> impl Strategy<Value = Telemetry> {
        let optional = |text: &'static str| proptest::option::of(text);
        let mac = proptest::option::of(("[a-f0-9]{8,32}", "[a-z]{1,9}"));
        let address = proptest::option::of((0x0100_0001_u32..0x7f00_0000, 1_u8..31));
        let syslog = proptest::option::of((1_u16.., proptest::option::of(0..LogLevel::WORDS.len())));
        let names = (
            "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,14}",
            optional("[a-zA-Z0-9._-]{1,64}"),
        );
        let others = (
            optional("[a-z./-]{1,20}"),
            any::<bool>(),
            proptest::option::of(1_u16..),
        );
        (names, mac, address, syslog, others).prop_map(
            |((bridge, backend), mac, address, syslog, (script, has_gateway, port))| {
                // The second host of a network, whose first one is the router.
                let network = address.map(|(bits, prefix)| (bits & (u32::MAX << (32 - prefix)), prefix));
                let host = |number| network.map(|(bits, _)| Ipv4Addr::from_bits(bits | number));
                let is_big = network.is_some_and(|(bits, prefix)| prefix < 30 && bits >> 24 != 0);
                let address = match (host(2), network) {
                    (Some(ip), Some((_, prefix))) if is_big => Address::Static { ip, prefix },
                    _ => Address::Dhcp,
                };
                let gateway = host(1).filter(|_| is_big && has_gateway);
                let target = host(3).filter(|_| is_big).unwrap_or(Ipv4Addr::new(10, 0, 0, 5));
                Telemetry {
                    bridge,
                    backend,
                    mac: mac.map(|(machine, guest)| Mac::derived(&machine, &guest)),
                    script,
                    address,
                    gateway,
                    syslog: syslog.map(|(port, _)| SocketAddrV4::new(target, port)),
                    syslog_level: syslog
                        .and_then(|(_, level)| level)
                        .map(|level| LogLevel::WORDS[level].0),
                    metrics: match port {
                        None if syslog.is_some() => Metrics::Off,
                        port => Metrics::Port(port.unwrap_or(STUB_PORT)),
                    },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(telemetry in telemetry(), guest: String) {
            let text = telemetry.to_string();
            prop_assert_eq!(text.parse(), Ok(telemetry.clone()));
            // What the domain was created from tells the same.
            let mac = telemetry.mac.unwrap_or_else(|| Mac::derived("", &guest));
            let vif = telemetry.vif(mac);
            let interface: Vec<_> = vif.split(',').filter_map(|part| part.split_once('=')).collect();
            let words = format!("loglevel=info {}", telemetry.words(&guest));
            let found = Telemetry::of_domain(&interface, &words);
            prop_assert_eq!(found, Ok(Telemetry { mac: Some(mac), ..telemetry }));
        }

        #[test]
        fn no_text_is_read_as_what_it_does_not_say(text in "(bridge|mac|address|syslog|metrics|off|[a-z,=0-9./:]){1,9}") {
            if let Ok(telemetry) = text.parse::<Telemetry>() {
                prop_assert_eq!(telemetry.to_string().parse(), Ok(telemetry));
            }
        }

        #[test]
        fn the_words_have_no_blank_of_the_guests(guest: String) {
            let words = parse("bridge=b").words(&guest);
            prop_assert_eq!(words.split(' ').count(), 3);
            prop_assert!(words.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\'));
        }
    }
}
