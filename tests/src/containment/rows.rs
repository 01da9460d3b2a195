//! The rows of `docs/containment.md`: what is shown, by which figures, within which limits.

use std::fmt;

/// What a figure must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// This and nothing else.
    Exactly(f64),
    /// No more.
    AtMost(f64),
    /// No less.
    AtLeast(f64),
    /// None: for comparison.
    Free,
}

impl Limit {
    /// Whether `value` keeps to it.
    pub fn is_kept_by(self, value: f64) -> bool {
        match self {
            Self::Exactly(limit) => (value - limit).abs() < f64::EPSILON,
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
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
            Self::Free => Ok(()),
        }
    }
}

/// One figure of the report.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// In words.
    pub means: &'static str,
    /// The scenario that prints it.
    pub scenario: &'static str,
    /// Its name there.
    pub figure: &'static str,
    /// The unit that it is printed in; empty for a plain count.
    pub unit: &'static str,
    /// What it must keep to.
    pub limit: Limit,
}

/// Something that is shown, by several figures.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What happens.
    pub what: &'static str,
    /// What is measured then.
    pub measures: &'static [Measure],
}

/// As the columns read: what it means, scenario, figure, unit, limit.
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

use Limit::{AtLeast, AtMost, Exactly, Free};

/// How long an unmodified guest waits for the answer to one request (pcifront's `do_pci_op`), in microseconds.
const PATIENCE: Limit = AtMost(2_000_000.0);
const NONE: Limit = Exactly(0.0);

/// All that the document shows, in its order.
pub const ROWS: &[Row] = &[
    Row {
        what: "A panic or fault at every injection point of the stub: it restarts in its domain",
        measures: &[
            measure("restarts", "stub-restarts", "restarts", "", AtLeast(12.0)),
            measure("pings lost", "stub-restarts", "restart-pings-lost", "pings", NONE),
            measure(
                "time to service again, p50",
                "stub-restarts",
                "restart-p50",
                "us",
                PATIENCE,
            ),
            measure(
                "time to service again, max",
                "stub-restarts",
                "restart-max",
                "us",
                PATIENCE,
            ),
        ],
    },
    Row {
        what: "The stub destroyed (`xl destroy`), ten times under traffic",
        measures: &[
            measure(
                "pings lost",
                "stub-destroyed",
                "destroyed-pings-lost",
                "pings",
                NONE,
            ),
            measure(
                "time to service again, p50",
                "stub-destroyed",
                "destroyed-p50",
                "us",
                PATIENCE,
            ),
            measure(
                "time to service again, max",
                "stub-destroyed",
                "destroyed-max",
                "us",
                PATIENCE,
            ),
        ],
    },
    Row {
        what: "The stub hangs, ten times under traffic",
        measures: &[
            measure("pings lost", "stub-destroyed", "hang-pings-lost", "pings", NONE),
            measure(
                "time to service again, p50",
                "stub-destroyed",
                "hang-p50",
                "us",
                PATIENCE,
            ),
            measure(
                "time to service again, max",
                "stub-destroyed",
                "hang-max",
                "us",
                PATIENCE,
            ),
        ],
    },
    Row {
        what: "The service killed (`kill -9`), ten times under traffic",
        measures: &[
            measure(
                "pings lost",
                "service-killed",
                "service-killed-pings-lost",
                "pings",
                NONE,
            ),
            measure(
                "time to service again, p50",
                "service-killed",
                "service-killed-p50",
                "us",
                PATIENCE,
            ),
            measure(
                "time to service again, max",
                "service-killed",
                "service-killed-max",
                "us",
                PATIENCE,
            ),
        ],
    },
    Row {
        what: "Mixed kills of guest, stub and service, two devices",
        measures: &[
            measure("rounds", "kills", "kills-rounds", "", AtLeast(12.0)),
            measure(
                "pings lost by those that were to survive",
                "kills",
                "kills-pings-lost",
                "pings",
                NONE,
            ),
            measure("kinds of things that leaked", "kills", "kills-leaks", "", NONE),
        ],
    },
    Row {
        what: "Guests destroyed in the middle of heavy DMA, MSI-X on: network card and disk",
        measures: &[
            measure(
                "guests",
                "guest-destroyed",
                "dma-guests-destroyed",
                "guests",
                AtLeast(5.0),
            ),
            measure(
                "IOMMU faults between the guest's end and the reset",
                "guest-destroyed",
                "dma-faults-before-reset",
                "faults",
                Free,
            ),
            measure(
                "IOMMU faults after the reset",
                "guest-destroyed",
                "dma-faults-after-reset",
                "faults",
                NONE,
            ),
        ],
    },
];

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
        assert!(Exactly(0.0).is_kept_by(0.0) && !Exactly(0.0).is_kept_by(1.0));
        assert!(AtMost(2.0).is_kept_by(2.0) && !AtMost(2.0).is_kept_by(2.1));
        assert!(AtLeast(2.0).is_kept_by(2.0) && !AtLeast(2.0).is_kept_by(1.9));
        assert!(Free.is_kept_by(-1.0));
    }
}
