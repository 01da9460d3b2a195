//! The text of metrics, family by family.

use crate::families::{Family, Kind};
use crate::format::Format;
use core::fmt::{self, Display, Write};
use core::time::Duration;
use xenbus::counters::{BOUNDS, Histogram};

/// Writes metrics in one of the formats.
///
/// All samples of a family follow its header, as both formats demand: a family is written once. [`Exposition::end`] must
/// come last.
pub struct Exposition<'a> {
    to: &'a mut dyn Write,
    format: Format,
    family: &'static Family,
}

/// A number of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number without a unit.
    Count(u64),
    /// A time, written in seconds.
    Time(Duration),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Count(truth.into())
    }
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            // No floating-point number: the stub's kernel has none.
            Self::Time(time) => write!(f, "{}.{:06}", time.as_secs(), time.subsec_micros()),
        }
    }
}

impl<'a> Exposition<'a> {
    /// Text in `format`, to `to`.
    pub fn new(to: &'a mut dyn Write, format: Format) -> Self {
        Self {
            to,
            format,
            family: &crate::families::STUB_UPTIME,
        }
    }

    /// Begins a family with its type, unit and help.
    pub fn family(&mut self, family: &'static Family) -> fmt::Result {
        self.family = family;
        let kind = match (self.format, family.kind) {
            (_, Kind::Counter) => "counter",
            (_, Kind::Gauge) | (Format::Prometheus, Kind::Info) => "gauge",
            (Format::OpenMetrics, Kind::Info) => "info",
            (_, Kind::Histogram) => "histogram",
        };
        // In the older format a family has the name of its samples.
        let suffix = match self.format {
            Format::OpenMetrics => "",
            Format::Prometheus => family.kind.suffix(),
        };
        let name = family.name;
        write!(self.to, "# TYPE {name}{suffix} {kind}\n# HELP {name}{suffix} ")?;
        let quotes = self.format == Format::OpenMetrics;
        write!(Escaped { to: self.to, quotes }, "{}", family.help)?;
        self.to.write_char('\n')?;
        match family.unit {
            Some(unit) if self.format == Format::OpenMetrics => writeln!(self.to, "# UNIT {name} {unit}"),
            _ => Ok(()),
        }
    }

    /// Writes a sample of the family that was begun last. `labels` are the values of the family's labels, in their order.
    /// More values than labels are left out.
    pub fn sample(&mut self, labels: &[&dyn Display], value: impl Into<Value>) -> fmt::Result {
        self.line(self.family.kind.suffix(), labels, None, value.into())
    }

    /// Writes a histogram of the family that was begun last. `labels` are as for [`Exposition::sample`].
    pub fn histogram(&mut self, labels: &[&dyn Display], histogram: &Histogram) -> fmt::Result {
        let mut sum: u64 = 0;
        for (index, &count) in histogram.buckets.iter().enumerate() {
            // A stub may have written any number.
            sum = sum.saturating_add(count);
            let bound = Bound(BOUNDS.get(index).copied());
            self.line("_bucket", labels, Some(&bound), Value::Count(sum))?;
        }
        self.line("_sum", labels, None, Value::Time(histogram.sum()))?;
        self.line("_count", labels, None, Value::Count(sum))
    }

    /// Ends the text.
    pub fn end(self) -> fmt::Result {
        match self.format {
            Format::OpenMetrics => self.to.write_str("# EOF\n"),
            Format::Prometheus => Ok(()),
        }
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[&dyn Display],
        bound: Option<&dyn Display>,
        value: Value,
    ) -> fmt::Result {
        write!(self.to, "{}{suffix}", self.family.name)?;
        let mut before = '{';
        for (name, label) in self.family.labels.iter().zip(labels) {
            self.label(&mut before, name, *label)?;
        }
        if let Some(bound) = bound {
            self.label(&mut before, "le", bound)?;
        }
        if before == ',' {
            self.to.write_char('}')?;
        }
        writeln!(self.to, " {value}")
    }

    /// Writes one label, after what stands `before` it.
    fn label(&mut self, before: &mut char, name: &str, value: &dyn Display) -> fmt::Result {
        write!(self.to, "{before}{name}=\"")?;
        *before = ',';
        let quotes = true;
        write!(Escaped { to: self.to, quotes }, "{value}")?;
        self.to.write_char('"')
    }
}

/// Upper bound of a bucket, in microseconds; `None` for the last bucket, which has none. Written in seconds.
struct Bound(Option<u32>);

impl Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(micros) = self.0 else {
            return f.write_str("+Inf");
        };
        // As short as people write it: without the zeros at the end.
        let (mut digits, mut places) = (micros, 6);
        while places > 1 && digits.is_multiple_of(10) {
            digits /= 10;
            places -= 1;
        }
        write!(f, "0.{digits:0places$}")
    }
}

/// Escapes what is written: backslashes, ends of lines, and quotes if `quotes` is true.
struct Escaped<'a> {
    to: &'a mut dyn Write,
    quotes: bool,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|letter| match letter {
            '\n' => self.to.write_str("\\n"),
            '\\' => self.to.write_str("\\\\"),
            '"' if self.quotes => self.to.write_str("\\\""),
            _ => self.to.write_char(letter),
        })
    }
}
