//! What one stub counts, as metrics.

use crate::exposition::{Exposition, Value};
use crate::families::{self, Family};
use core::fmt::{self, Display};
use core::time::Duration;
use xenbus::counters::{Class, Counter, Counters};

/// Registers that are named one by one in a metric. A stock driver may use up some: e1000e's writes three that are dropped.
pub const REGISTERS_MAX: usize = 4;

/// A stub, and what is known of it.
#[derive(Clone, Debug)]
pub struct Stub<'a> {
    /// Name of the guest.
    pub guest: &'a str,
    /// The guest's domid.
    pub domain: u16,
    /// Name of the stub.
    pub stub: &'a str,
    /// Time since the stub's domain was created; `None` if unknown.
    pub uptime: Option<Duration>,
    /// Poisonous requests that the stub refuses now.
    pub poisonous: u64,
    /// How often it came back as a new domain; `None` in the stub, which does not know.
    pub recreated: Option<u64>,
    /// Its counters; `None` before it has published any.
    pub counters: Option<Counters>,
}

/// What a family tells of a stub.
enum Part {
    /// [`Stub::uptime`].
    Uptime,
    /// [`Stub::poisonous`].
    Poisonous,
    /// Returns, by their kind.
    Restarts,
    /// A sample for each of these rows.
    Counts(&'static [Row]),
    /// Dropped writes, by register.
    DroppedWrites,
    /// A histogram for each class of requests.
    Latencies,
}

/// A sample: the value of the family's last label, if it has one of its own, and the counters that add up to the number.
type Row = (&'static str, &'static [Counter]);

/// The families, in the order in which they are written.
static PARTS: [(&Family, Part); 11] = [
    (&families::STUB_UPTIME, Part::Uptime),
    (&families::RESTARTS, Part::Restarts),
    (&families::POISONOUS_REQUESTS, Part::Poisonous),
    (
        &families::WRITES_FORWARDED,
        Part::Counts(&[("", &[Counter::WritesForwarded])]),
    ),
    (
        &families::REQUESTS_REFUSED,
        Part::Counts(&[("", &[Counter::Refused])]),
    ),
    (
        &families::SPURIOUS_EVENTS,
        Part::Counts(&[("", &[Counter::SpuriousEvents])]),
    ),
    (
        &families::LATE_ANSWERS,
        Part::Counts(&[("", &[Counter::LateAnswers])]),
    ),
    (
        &families::REQUESTS,
        Part::Counts(&[
            ("conf_read", &[Counter::Reads]),
            (
                "conf_write",
                &[
                    Counter::WritesForwarded,
                    Counter::WritesAbsorbed,
                    Counter::WritesDropped,
                ],
            ),
            ("enable_msi", &[Counter::MsiEnabled]),
            ("disable_msi", &[Counter::MsiDisabled]),
            ("enable_msix", &[Counter::MsixEnabled]),
            ("disable_msix", &[Counter::MsixDisabled]),
        ]),
    ),
    (
        &families::FAILURES,
        Part::Counts(&[
            ("guest", &[Counter::BlamedGuest]),
            ("device", &[Counter::BlamedDevice]),
            ("toolstack", &[Counter::BlamedToolstack]),
            ("stub", &[Counter::BlamedSelf]),
        ]),
    ),
    (&families::WRITES_DROPPED, Part::DroppedWrites),
    (&families::REQUEST_DURATION, Part::Latencies),
];

impl Stub<'_> {
    /// Values of the labels that all metrics of a stub have, and of one more.
    pub fn labels<'l>(&'l self, last: &'l dyn Display) -> [&'l dyn Display; 4] {
        [&self.guest, &self.domain, &self.stub, last]
    }

    /// Writes a sample of the family that was begun last. `last` is the value of the label that the family has besides those
    /// of all metrics of a stub. Without such a label it is not written.
    pub fn sample(
        &self,
        out: &mut Exposition<'_>,
        last: &dyn Display,
        value: impl Into<Value>,
    ) -> fmt::Result {
        self.write_sample(out, last, value.into())
    }

    // One copy of it in the stub's image.
    #[inline(never)]
    fn write_sample(&self, out: &mut Exposition<'_>, last: &dyn Display, value: Value) -> fmt::Result {
        out.sample(&self.labels(last), value)
    }

    /// Writes the samples of one family.
    fn write(&self, out: &mut Exposition<'_>, part: &Part) -> fmt::Result {
        match (part, &self.counters) {
            (Part::Uptime, _) => self.uptime.map_or(Ok(()), |uptime| self.sample(out, &"", uptime)),
            (Part::Poisonous, Some(_)) => self.sample(out, &"", self.poisonous),
            (Part::Restarts, counters) => {
                let in_place = counters.as_ref().map(|all| all.get(Counter::Restarts));
                for (cause, count) in [("in_place", in_place), ("recreated", self.recreated)] {
                    if let Some(count) = count {
                        self.sample(out, &cause, count)?;
                    }
                }
                Ok(())
            }
            (Part::Counts(rows), Some(counters)) => rows.iter().try_for_each(|(label, parts)| {
                // A stub that was taken over may have written any number.
                let sum = parts
                    .iter()
                    .fold(0, |sum: u64, &part| sum.saturating_add(counters.get(part)));
                self.sample(out, label, sum)
            }),
            (Part::DroppedWrites, Some(counters)) => {
                let writes = counters
                    .dropped_writes()
                    .map(|write| (write.offset, write.count.into()));
                write_registers(out, self, writes, counters.get(Counter::WritesDropped))
            }
            (Part::Latencies, Some(counters)) => Class::ALL
                .into_iter()
                .try_for_each(|class| out.histogram(&self.labels(&class.name()), &counters.latency(class))),
            (_, None) => Ok(()),
        }
    }
}

/// Writes the families that a stub counts by itself, for each of these stubs.
pub fn write(out: &mut Exposition<'_>, stubs: &[Stub<'_>]) -> fmt::Result {
    for (family, part) in &PARTS {
        out.family(family)?;
        for stub in stubs {
            stub.write(out, part)?;
        }
    }
    Ok(())
}

/// Writes a sample for each of the first [`REGISTERS_MAX`] registers of `writes`, which are offset and count, and one with
/// the register `other` for what is left of `all`.
///
/// Registers of several functions with one offset are one register here. The first ones are named, not those with the
/// highest counts: so no metric vanishes because another one grows.
pub fn write_registers(
    out: &mut Exposition<'_>,
    stub: &Stub<'_>,
    writes: impl Iterator<Item = (u16, u64)>,
    all: u64,
) -> fmt::Result {
    let mut named = [(0, 0u64); REGISTERS_MAX];
    let mut rest = all;
    for (offset, count) in writes {
        let entry = named
            .iter_mut()
            .find(|(other, sum)| *sum == 0 || *other == offset);
        if let Some((register, sum)) = entry {
            *register = offset;
            *sum = sum.saturating_add(count);
            rest = rest.saturating_sub(count);
        }
    }
    for (register, count) in named.into_iter().filter(|&(_, count)| count > 0) {
        stub.sample(out, &format_args!("{register:#05x}"), count)?;
    }
    stub.sample(out, &"other", rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use alloc::string::String;
    use alloc::vec::Vec;

    /// Two stubs: one that has counted much, and one that has published nothing yet.
    fn stubs() -> [Stub<'static>; 2] {
        let mut counters = Counters::default();
        for (times, counter) in Counter::ALL.into_iter().enumerate() {
            counters.set(counter, times as u64);
        }
        for (function, register) in [
            ("00:00.0", 0x3e),
            ("00:01.0", 0x3e),
            ("00:00.0", 0x100),
            ("00:00.0", 4),
        ] {
            counters.add_dropped_write(function.parse().unwrap(), register);
        }
        for register in 0x40..0x50 {
            counters.add_dropped_write("00:00.0".parse().unwrap(), register);
        }
        for micros in [40, 50, 51, 900, 3_000_000] {
            counters.add_latency(Class::ConfRead, Duration::from_micros(micros));
        }
        let new = Stub {
            guest: "a \"new\"\nC:\\guest",
            domain: 0x7fef,
            stub: "new-bulkhead",
            uptime: None,
            poisonous: 0,
            recreated: Some(0),
            counters: None,
        };
        let old = Stub {
            guest: "web",
            domain: 3,
            stub: "web-bulkhead",
            uptime: Some(Duration::from_micros(90_061_000_007)),
            poisonous: 1,
            recreated: None,
            counters: Some(counters),
        };
        [old, new]
    }

    fn text(format: Format, stubs: &[Stub<'_>]) -> String {
        let mut text = String::new();
        let mut out = Exposition::new(&mut text, format);
        write(&mut out, stubs).unwrap();
        out.end().unwrap();
        text
    }

    #[test]
    fn two_stubs_in_both_formats() {
        insta::assert_snapshot!("openmetrics", text(Format::OpenMetrics, &stubs()));
        insta::assert_snapshot!("prometheus", text(Format::Prometheus, &stubs()));
    }

    #[test]
    fn each_sample_has_all_labels_of_its_family_and_stands_below_its_header() {
        let text = text(Format::OpenMetrics, &stubs());
        let mut family = None;
        let mut seen = Vec::new();
        for line in text.lines() {
            if let Some(header) = line.strip_prefix("# TYPE ") {
                let name = header.split(' ').next().unwrap();
                assert!(!seen.contains(&name), "{name} is written twice");
                seen.push(name);
                family = families::ALL.iter().find(|family| family.name == name);
                assert!(family.is_some(), "{name}");
            }
            if let Some((name, rest)) = line.split_once('{') {
                let family = family.unwrap();
                assert!(name.starts_with(family.name), "{line}");
                let labels = rest.matches("=\"").count() - usize::from(name.ends_with("_bucket"));
                assert_eq!(labels, family.labels.len(), "{line}");
            }
        }
        let both = families::ALL
            .iter()
            .filter(|family| family.source == families::Source::Both);
        let both: Vec<_> = both.map(|family| family.name).collect();
        seen.sort_unstable();
        let mut sorted = both.clone();
        sorted.sort_unstable();
        assert_eq!(seen, sorted);
    }

    #[test]
    fn registers_beyond_the_first_ones_are_summed_up() {
        let [stub, _] = stubs();
        let registers = |writes: &[(u16, u64)], all| {
            let mut text = String::new();
            let mut out = Exposition::new(&mut text, Format::Prometheus);
            out.family(&families::WRITES_DROPPED).unwrap();
            write_registers(&mut out, &stub, writes.iter().copied(), all).unwrap();
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            let ends = samples.map(|line| line.split_once("register=").unwrap().1.replace('"', ""));
            ends.collect::<Vec<_>>()
        };
        assert_eq!(registers(&[], 0), ["other} 0"]);
        assert_eq!(
            registers(&[(4, 2), (0x3e, 1), (4, 5), (0xffe, 1), (8, 7), (9, 1)], 17),
            ["0x004} 7", "0x03e} 1", "0xffe} 1", "0x008} 7", "other} 1"]
        );
        // Numbers that do not fit one another, as a stub that was taken over can write them.
        assert_eq!(
            registers(&[(4, u64::MAX), (4, 1)], 3),
            ["0x004} 18446744073709551615", "other} 0"]
        );
    }

    #[test]
    fn numbers_that_a_stub_made_up_do_no_harm() {
        let [mut stub, _] = stubs();
        let mut block = Counters::default().encode();
        block[8..].fill(0xff);
        for entry in block[xenbus::counters::TABLE..].as_chunks_mut::<8>().0 {
            (entry[2], entry[3]) = (0xff, 0x0f);
        }
        stub.counters = Some(Counters::decode(&block).unwrap());
        assert!(text(Format::OpenMetrics, &[stub]).ends_with("# EOF\n"));
    }
}
