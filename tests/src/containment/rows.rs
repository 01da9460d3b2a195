//! The rows of `docs/containment.md`: events, their figures, and the limits of these.

use std::fmt;

/// Limit of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// This number and no other.
    Exactly(f64),
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
    /// Less than another figure of the same run: its name, and a name for the reader.
    Below(&'static str, &'static str),
    /// No limit: the figure is for comparison.
    Free,
}

impl Limit {
    /// Whether `value` keeps the limit; `other` finds another figure of the same run.
    pub fn is_kept_by(self, value: f64, other: impl Fn(&str) -> Option<f64>) -> bool {
        match self {
            Self::Exactly(limit) => (value - limit).abs() < f64::EPSILON,
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Below(name, _) => other(name).is_some_and(|limit| value < limit),
            Self::Free => true,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(limit) => write!(f, "{limit}"),
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
            Self::Below(_, theirs) => write!(f, "less than {theirs}"),
            Self::Free => Ok(()),
        }
    }
}

/// One figure of the report.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// What it means, for the reader.
    pub means: &'static str,
    /// The scenario that prints it.
    pub scenario: &'static str,
    /// Its name there.
    pub figure: &'static str,
    /// The unit of its limit: the first word after the number. Empty for a plain count, even if the scenario prints a word.
    pub unit: &'static str,
    /// Its limit.
    pub limit: Limit,
}

/// One event, and its figures.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What happens.
    pub what: &'static str,
    /// Its figures.
    pub measures: &'static [Measure],
}

/// A figure by columns: what it means, scenario, figure, unit, limit.
const fn measure(
    means: &'static str,
    scenario: &'static str,
    figure: &'static str,
    unit: &'static str,
    limit: Limit,
) -> Measure {
    Measure {
        means,
        scenario,
        figure,
        unit,
        limit,
    }
}

use Limit::{AtLeast, AtMost, Below, Exactly, Free};

/// How long an unmodified guest waits for the answer to one request (pcifront's `do_pci_op`): 2 s.
const TIMEOUT_US: Limit = AtMost(2_000_000.0);
const TIMEOUT_MS: Limit = AtMost(2_000.0);
const NONE: Limit = Exactly(0.0);

/// All rows, in the order of the document.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    Row {
        what: "The stub panics or faults at every injection point: it restarts in its domain",
        measures: &[
            measure("failures", "stub-restarts", "restart-failures", "", AtLeast(12.0)),
            measure("pings lost", "stub-restarts", "restart-pings-lost", "", NONE),
            measure("wrong answers to the guest", "stub-restarts", "restart-wrong-answers", "", NONE),
            measure("time to service again, p50", "stub-restarts", "restart-p50", "us", TIMEOUT_US),
            measure("time to service again, max", "stub-restarts", "restart-max", "us", TIMEOUT_US),
        ],
    },
    Row {
        what: "The stub is destroyed (`xl destroy`) ten times under traffic: it is created again",
        measures: &[
            measure("pings lost", "stub-destroyed", "destroyed-pings-lost", "", NONE),
            measure("accesses that the guest gave up", "stub-destroyed", "destroyed-given-up", "", NONE),
            measure("time to service again, p50", "stub-destroyed", "destroyed-p50", "ms", TIMEOUT_MS),
            measure("time to service again, max", "stub-destroyed", "destroyed-max", "ms", TIMEOUT_MS),
        ],
    },
    Row {
        what: "The stub hangs ten times under traffic: its timer ends it, and it restarts in its domain",
        measures: &[
            measure("pings lost", "stub-restarts", "hang-pings-lost", "", NONE),
            measure("longest access of the guest, p50", "stub-restarts", "hang-p50", "ms", TIMEOUT_MS),
            measure("longest access of the guest, max", "stub-restarts", "hang-max", "ms", TIMEOUT_MS),
        ],
    },
    Row {
        what: "The stub hangs with its timer's upcall masked: Xen's watchdog ends it after 10 s, and it is created again",
        measures: &[
            measure("time from the hang to another stub", "stub-restarts", "watchdog-return", "ms", AtMost(15_000.0)),
            measure("pings lost", "stub-restarts", "watchdog-pings-lost", "", NONE),
        ],
    },
    Row {
        what: "The service is killed (`kill -9`) under traffic: its worker ten times, then its launcher three times",
        measures: &[
            measure("pings lost, worker", "service-killed", "worker-killed-pings-lost", "", NONE),
            measure("worker: time to service again, p50", "service-killed", "worker-killed-p50", "ms", TIMEOUT_MS),
            measure("worker: time to service again, max", "service-killed", "worker-killed-max", "ms", TIMEOUT_MS),
            measure("launcher: time to service again, max", "service-killed", "launcher-killed-max", "ms", TIMEOUT_MS),
        ],
    },
    Row {
        what: "Mixed kills of guests, stubs and the service, three devices",
        measures: &[
            measure("rounds", "kills", "kills-rounds", "", AtLeast(12.0)),
            measure("guests killed", "kills", "kills-guests", "", Free),
            measure("stubs killed", "kills", "kills-stubs", "", Free),
            measure("times the service was killed", "kills", "kills-services", "", Free),
            measure("pings lost by the guests that are left", "kills", "kills-pings-lost", "", NONE),
            measure("leaks: kinds of pirqs, event channels, grants, memory, xenstore nodes, domains, open files that grew",
                "kills", "kills-leaks", "", NONE),
        ],
    },
    Row {
        what: "A guest attacks its backend in every way that the advisories describe",
        measures: &[
            measure("attacks", "hostile", "attacks", "", Free),
            measure("random requests", "hostile", "requests-of-garbage", "", Free),
            measure("restarts of the stub", "hostile", "stub-restarts", "", NONE),
            measure("a second guest's pings lost", "hostile", "pings-lost", "", NONE),
            measure("log lines of the stub", "hostile", "log-lines-stub", "", AtMost(600.0)),
            measure("log lines of the service", "hostile", "log-lines-service", "", AtMost(600.0)),
            measure("log lines of dom0's kernel", "hostile", "log-lines-dom0-kernel", "", AtMost(600.0)),
            measure("log lines of Xen", "hostile", "log-lines-xen", "", AtMost(600.0)),
        ],
    },
    Row {
        what: "Floods of events and requests: dom0's processor time, by Bulkhead and by xen-pciback",
        measures: &[
            measure("events, Bulkhead", "flood", "events-dom0-bulkhead", "", Below("events-dom0-pciback", "xen-pciback's")),
            measure("events, xen-pciback", "flood", "events-dom0-pciback", "", Free),
            measure("reads, Bulkhead", "flood", "reads-dom0-bulkhead", "", Below("reads-dom0-pciback", "xen-pciback's")),
            measure("reads, xen-pciback", "flood", "reads-dom0-pciback", "", Free),
            measure("writes, Bulkhead", "flood", "writes-dom0-bulkhead", "", Free),
            measure("writes, xen-pciback", "flood", "writes-dom0-pciback", "", Free),
            measure("writes carried out, Bulkhead", "flood", "writes-count-bulkhead", "", AtMost(4_000.0)),
            measure("writes carried out, xen-pciback", "flood", "writes-count-pciback", "", Free),
            measure("refused requests, Bulkhead", "flood", "refused-dom0-bulkhead", "", Below("refused-dom0-pciback", "xen-pciback's")),
            measure("refused requests, xen-pciback", "flood", "refused-dom0-pciback", "", Free),
            measure("a second guest's pings lost", "flood", "pings-lost", "", NONE),
            measure("log lines, Bulkhead", "flood", "log-lines-bulkhead", "", AtMost(200.0)),
            measure("log lines, xen-pciback", "flood", "log-lines-pciback", "", Free),
        ],
    },
    Row {
        what: "Guests are destroyed during heavy DMA with MSI-X on: network card and disk",
        measures: &[
            measure("guests", "guest-destroyed", "dma-guests-destroyed", "", AtLeast(5.0)),
            measure("IOMMU faults between the guest's end and the reset", "guest-destroyed", "dma-faults-before-reset", "", Free),
            measure("IOMMU faults after the reset", "guest-destroyed", "dma-faults-after-reset", "", NONE),
        ],
    },
];

/// Limits that the figures of `docs/containment.jsonl` break, as [`broken`](super::broken) names them, and why.
pub const MISSED: &[(&str, &str)] = &[
    ("trixie/stub-destroyed: destroyed-given-up", LIBXL_TIME),
    ("trixie/stub-destroyed: destroyed-max", LIBXL_TIME),
];
const LIBXL_TIME: &str = "one return of ten took longer than the guest's timeout: libxl needs 0.3 to 1.1 s to create the \
    domain on the emulated machine, and the speed of that machine varies by a factor of two";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_figure_has_one_row() {
        let measures: Vec<_> = ROWS.iter().flat_map(|row| row.measures).collect();
        let names: BTreeSet<_> = measures
            .iter()
            .map(|measure| (measure.scenario, measure.figure))
            .collect();
        assert_eq!(names.len(), measures.len());
    }

    #[test]
    fn a_limit_is_kept_or_not() {
        let keeps = |limit: Limit, value| limit.is_kept_by(value, |name| (name == "theirs").then_some(2.0));
        assert!(keeps(Exactly(0.0), 0.0) && !keeps(Exactly(0.0), 1.0));
        assert!(keeps(AtMost(2.0), 2.0) && !keeps(AtMost(2.0), 2.1));
        assert!(keeps(AtLeast(2.0), 2.0) && !keeps(AtLeast(2.0), 1.9));
        assert!(keeps(Below("theirs", ""), 1.9) && !keeps(Below("theirs", ""), 2.0));
        assert!(!keeps(Below("nobody's", ""), 0.0));
        assert!(keeps(Free, -1.0));
    }
}
