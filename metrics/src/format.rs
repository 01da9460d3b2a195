//! The two text formats, and which of them a client gets.

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Text format 0.0.4 of Prometheus.
    Prometheus,
}

/// Full weight of a media range, in thousandths (RFC 9110, section 12.4.2).
const FULL_WEIGHT: u16 = 1000;

/// How closely a media range names a format: by `*/*`, by its type, or in full. The closest one has the say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    Any,
    Type,
    Named,
}

impl Format {
    /// Value of the header `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Type, subtype and version of the format.
    const fn media(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
            Self::Prometheus => ("text", "plain", "0.0.4"),
        }
    }

    /// The format for a client with this value of the header `Accept`.
    ///
    /// The format with the higher weight wins. Of two equal weights OpenMetrics wins if it is named. A client that names
    /// neither, or sends no header (an empty value), gets [`Format::Prometheus`], which every reader of metrics knows.
    pub fn negotiate(accept: &str) -> Self {
        let open_metrics = Self::OpenMetrics.preference(accept);
        let prometheus = Self::Prometheus.preference(accept);
        match open_metrics {
            Some((weight, closeness)) if weight > 0 => {
                let other = prometheus.map_or(0, |(weight, _)| weight);
                if weight > other || weight == other && closeness == Closeness::Named {
                    Self::OpenMetrics
                } else {
                    Self::Prometheus
                }
            }
            _ => Self::Prometheus,
        }
    }

    /// Weight of the format, and how closely it is named; `None` if no media range fits.
    fn preference(self, accept: &str) -> Option<(u16, Closeness)> {
        let mut best: Option<(u16, Closeness)> = None;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let (wanted, sub, version) = self.media();
            let closeness = match name.split_once('/') {
                Some(("*", "*")) => Closeness::Any,
                Some((main, "*")) if main.eq_ignore_ascii_case(wanted) => Closeness::Type,
                Some((main, minor))
                    if main.eq_ignore_ascii_case(wanted) && minor.eq_ignore_ascii_case(sub) =>
                {
                    Closeness::Named
                }
                _ => continue,
            };
            let (mut weight, mut fits) = (FULL_WEIGHT, true);
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                let (key, value) = (key.trim(), value.trim().trim_matches('"'));
                if key.eq_ignore_ascii_case("q") {
                    // A weight that is none counts as a refusal.
                    weight = parse_weight(value).unwrap_or(0);
                } else if key.eq_ignore_ascii_case("version") {
                    fits = value == version;
                }
            }
            // Of two ranges as close as each other the better one counts: a client may name several variants.
            if fits && best.is_none_or(|(w, c)| (closeness, weight) > (c, w)) {
                best = Some((weight, closeness));
            }
        }
        best
    }
}

/// A weight as `0.25`, in thousandths; at most three digits after the point.
fn parse_weight(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let mut thousandths = 0;
    for place in 0..3 {
        let digit = fraction.as_bytes().get(place).map_or(0, |digit| digit - b'0');
        thousandths = thousandths * 10 + u16::from(digit);
    }
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(FULL_WEIGHT),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Format::{OpenMetrics, Prometheus};
    use super::*;

    #[test]
    fn the_format_with_the_higher_weight_wins() {
        for (accept, expected) in [
            // Prometheus 2.53 and 3.x.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            // One that knows only an older OpenMetrics.
            (
                "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Prometheus,
            ),
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/html, */*;q=0.8", Prometheus),
            ("image/png", Prometheus),
            ("text/plain", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            (
                "Application/OpenMetrics-Text; VERSION=\"1.0.0\"; Q=1.000",
                OpenMetrics,
            ),
            ("application/*", OpenMetrics),
            ("application/*, text/*", Prometheus),
            ("text/plain, application/openmetrics-text", OpenMetrics),
            (
                "text/plain;q=0.4, application/openmetrics-text;q=0.39",
                Prometheus,
            ),
            (
                "text/plain;q=0.4, application/openmetrics-text;q=0.401",
                OpenMetrics,
            ),
            // The closest range has the say, wherever it stands.
            ("*/*, application/openmetrics-text;q=0.1", Prometheus),
            ("text/plain;q=0.1, */*;q=0.5", OpenMetrics),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;q=0, text/plain;q=0", Prometheus),
            // What cannot be read does no harm.
            ("application/openmetrics-text;q=2, text/plain;q=0.1", Prometheus),
            (
                "application/openmetrics-text;q=0.1234, text/plain;q=0.1",
                Prometheus,
            ),
            (
                "application/openmetrics-text;q=0.+1, text/plain;q=0.1",
                Prometheus,
            ),
            (";;;,,,=/;q", Prometheus),
        ] {
            assert_eq!(Format::negotiate(accept), expected, "{accept}");
        }
    }

    #[test]
    fn weights_are_thousandths() {
        for (text, weight) in [
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("0", Some(0)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.001", Some(1)),
            ("1.001", None),
            ("0.0001", None),
            ("", None),
            (".5", None),
        ] {
            assert_eq!(parse_weight(text), weight, "{text}");
        }
    }
}
