//! Log lines as syslog messages (RFC 5424), for UDP (RFC 5426).

use crate::buffer::Buffer;
use crate::line_ring::Line;
use core::fmt::{self, Write};
use core::time::Duration;
use log::Level;
use pci::bdf::Bdf;

/// Most octets of a message: what every receiver must take (RFC 5424, 6.1).
pub const MESSAGE_MAX: usize = 480;

/// Facility `daemon` (RFC 5424, table 1).
const FACILITY: u8 = 3;
/// Most octets of the host name here; RFC 5424 allows 255.
const HOST_MAX: usize = 64;

/// Where the lines come from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Name of the stub, for HOSTNAME.
    pub stub: &'a str,
    /// Number of the stub's domain, for PROCID.
    pub domid: u16,
    /// Name of the guest.
    pub guest: &'a str,
    /// Real addresses of the guest's devices.
    pub devices: &'a [Bdf],
    /// Time from the Unix epoch to the stub's boot; `None` if the clock is not known.
    pub booted: Option<Duration>,
}

/// Severity of a level (RFC 5424, table 2).
const fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Writes `line` as one message; returns its length. A message that is too long ends early.
pub fn encode(line: &Line, origin: &Origin<'_>, into: &mut [u8; MESSAGE_MAX]) -> usize {
    let mut message = Buffer::new(into);
    // Refused only when the message is full: then it ends there.
    let _ = write(&mut message, line, origin);
    message.length()
}

fn write(out: &mut Buffer<'_>, line: &Line, origin: &Origin<'_>) -> fmt::Result {
    write!(out, "<{}>1 ", FACILITY * 8 + severity(line.level))?;
    match origin.booted {
        Some(booted) => write!(out, "{}", Timestamp(booted + line.uptime))?,
        None => out.write_str("-")?,
    }
    out.write_char(' ')?;
    let name = origin.stub.bytes().take(HOST_MAX);
    for byte in name {
        out.write_char(if byte.is_ascii_graphic() { byte.into() } else { '_' })?;
    }
    if origin.stub.is_empty() {
        out.write_char('-')?;
    }
    // Bulkhead has no enterprise number of its own. This one is set aside for such use (RFC 5612).
    write!(out, " bulkhead-stub {} - [bulkhead@32473 guest=\"", origin.domid)?;
    for character in origin.guest.chars().take(HOST_MAX) {
        // RFC 5424, 6.3.3.
        if matches!(character, '"' | '\\' | ']') {
            out.write_char('\\')?;
        }
        out.write_char(character)?;
    }
    out.write_char('"')?;
    for device in origin.devices {
        // Room is left for what was logged, however many devices there are.
        if out.room() < line.text().len() + 64 {
            break;
        }
        write!(out, " device=\"{device}\"")?;
    }
    write!(out, "][meta sequenceId=\"{}\"] ", sequence_id(line.number))?;
    out.write_bytes(line.text())
}

/// `sequenceId` is from 1 to 2147483647 (RFC 5424, 7.3.1).
const fn sequence_id(number: u32) -> u32 {
    match number & 0x7fff_ffff {
        0 => 1,
        id => id,
    }
}

/// A time since the Unix epoch in UTC, as RFC 3339 writes it, with microseconds.
struct Timestamp(Duration);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: u64 = 24 * 60 * 60;
        let seconds = self.0.as_secs();
        let (year, month, day) = date(seconds / DAY);
        let second = seconds % DAY;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.0.subsec_micros()
        )
    }
}

/// Year, month and day of a day since 1970-01-01. The limit on years keeps the loop short for any clock.
fn date(days: u64) -> (u64, u64, u64) {
    /// Days of 400 years, after which the calendar repeats.
    const CYCLE: u64 = 146_097;
    const FEBRUARY: usize = 1;
    const MONTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970 + days / CYCLE * 400;
    let mut day = days % CYCLE;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    for (index, length) in MONTHS.into_iter().enumerate() {
        let length = length + u64::from(index == FEBRUARY && is_leap(year));
        if day < length {
            month = index as u64 + 1;
            break;
        }
        day -= length;
    }
    (year.min(9999), month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;

    const ORIGIN: Origin<'_> = Origin {
        stub: "web-bulkhead",
        domid: 7,
        guest: "web",
        devices: &[Bdf::from_devfn(0, 3, 0)],
        booted: Some(Duration::from_secs(1_796_055_693)),
    };

    fn message(line: &Line, origin: &Origin<'_>) -> String {
        let mut into = [0; MESSAGE_MAX];
        let length = encode(line, origin, &mut into);
        String::from_utf8(into[..length].to_vec()).unwrap()
    }

    fn line(text: &[u8]) -> Line {
        Line::new(5, Level::Warn, Duration::from_micros(1_000_042), text)
    }

    #[test]
    fn a_line_is_a_message_of_rfc_5424() {
        assert_eq!(
            message(&line(b"second hop connected"), &ORIGIN),
            "<28>1 2026-11-30T16:21:34.000042Z web-bulkhead bulkhead-stub 7 - \
             [bulkhead@32473 guest=\"web\" device=\"0000:03:00.0\"][meta sequenceId=\"5\"] second hop connected"
        );
    }

    #[test]
    fn a_clock_that_is_not_known_is_nil() {
        let origin = Origin {
            booted: None,
            ..ORIGIN
        };
        assert!(message(&line(b"x"), &origin).starts_with("<28>1 - web-bulkhead "));
    }

    #[test]
    fn severities_are_those_of_the_levels() {
        for (level, start) in [
            (Level::Error, "<27>1 "),
            (Level::Warn, "<28>1 "),
            (Level::Info, "<30>1 "),
            (Level::Debug, "<31>1 "),
        ] {
            let line = Line::new(1, level, Duration::ZERO, b"x");
            assert!(message(&line, &ORIGIN).starts_with(start));
        }
    }

    #[test]
    fn names_cannot_break_the_syntax() {
        let origin = Origin {
            stub: "a b\n",
            guest: "q\"] \\",
            ..ORIGIN
        };
        let text = message(&line(b"x"), &origin);
        assert!(text.contains(" a_b_ bulkhead-stub "), "{text}");
        assert!(text.contains(r#"guest="q\"\] \\" device"#), "{text}");
        let nameless = Origin { stub: "", ..ORIGIN };
        assert!(message(&line(b"x"), &nameless).contains("Z - bulkhead-stub"));
    }

    #[test]
    fn many_devices_leave_room_for_the_longest_line() {
        let devices: Vec<Bdf> = (0..=255).map(|devfn| Bdf::from_devfn(0, 0, devfn)).collect();
        let origin = Origin {
            devices: &devices,
            stub: &"n".repeat(200),
            guest: &"g".repeat(200),
            ..ORIGIN
        };
        let text = message(&line(&[b'x'; 240]), &origin);
        assert!(text.len() <= MESSAGE_MAX);
        assert!(text.ends_with(&"x".repeat(200)), "{text}");
        let text = message(&line(b"short"), &ORIGIN_WITH(&devices));
        assert!(
            text.ends_with(" short") && text.matches("device=").count() > 5,
            "{text}"
        );
    }

    #[allow(non_snake_case)]
    fn ORIGIN_WITH(devices: &[Bdf]) -> Origin<'_> {
        Origin { devices, ..ORIGIN }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(Timestamp(Duration::from_secs(seconds)).to_string(), text);
        }
        // Any clock ends.
        let _ = Timestamp(Duration::MAX).to_string();
    }

    #[test]
    fn a_sequence_id_is_never_0() {
        assert_eq!(
            [0, 1, 0x8000_0000, u32::MAX].map(sequence_id),
            [1, 1, 1, 0x7fff_ffff]
        );
    }
}
