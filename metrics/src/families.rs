//! The table of all metrics.

use crate::families::Kind::{Counter, Gauge, Histogram, Info};

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows, and begins at 0 again if what counts it starts anew.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Always 1. Its labels tell something.
    Info,
    /// Counts of times, by upper bound.
    Histogram,
}

impl Kind {
    /// What the name of a sample has after the family's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Counter => "_total",
            Info => "_info",
            Gauge | Histogram => "",
        }
    }

    /// The kind in one word.
    pub const fn name(self) -> &'static str {
        match self {
            Counter => "counter",
            Gauge => "gauge",
            Info => "info",
            Histogram => "histogram",
        }
    }
}

/// Who writes a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `bulkhead metrics` in dom0, and a stub that serves its own metrics.
    Both,
    /// `bulkhead metrics` in dom0 alone.
    Dom0,
    /// A stub that serves its own metrics, and nobody else.
    Stub,
}

/// A metric, with all of its labels.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name without the suffix of its kind. It ends with the unit, if there is one.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its unit: a base unit of Prometheus.
    pub unit: Option<&'static str>,
    /// The names of its labels, but for the bounds of a histogram.
    pub labels: &'static [&'static str],
    /// What it tells, in one sentence.
    pub help: &'static str,
    /// Who writes it.
    pub source: Source,
}

/// Declares the families and the table of them.
macro_rules! families {
    ($($name:ident = $source:ident $text:literal $kind:ident $unit:expr, [$($label:literal)*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $name: Family = Family {
                name: concat!("bulkhead_", $text),
                kind: $kind,
                unit: $unit,
                labels: &[$($label),*],
                help: $help,
                source: Source::$source,
            };
        )*

        /// All families.
        pub static ALL: [&Family; [$(stringify!($name)),*].len()] = [$(&$name),*];
    };
}

/// Unit of all times.
const SECONDS: Option<&str> = Some("seconds");

families! {
    BUILD = Dom0 "build" Info None, ["version"],
        "Version of the command that writes these metrics.";
    SERVICE_UP = Dom0 "service_up" Gauge None, [],
        "1 if dom0's service answers.";
    SERVICE_UPTIME = Dom0 "service_uptime_seconds" Gauge SECONDS, [],
        "Time since dom0's service was started.";
    SERVICE_TAKEOVERS = Dom0 "service_takeovers" Counter None, ["cause"],
        "Workers of dom0's service that were replaced, by what befell them.";
    QUARANTINED_DEVICES = Dom0 "quarantined_devices" Gauge None, [],
        "Devices that did not recover from their last guest.";
    HELD_DEVICES = Dom0 "held_devices" Gauge None, [],
        "Devices that are held for guests to come.";
    HELD_GUESTS = Dom0 "held_guests" Gauge None, [],
        "Guests that are kept paused until they have their devices.";
    FAILED_GUESTS = Dom0 "failed_guests" Gauge None, [],
        "Guests that lost their devices because their stub could not be brought back.";
    PROBLEMS = Dom0 "problems" Gauge None, [],
        "Problems that the status tells, such as damaged records.";

    STUB_SERVED = Dom0 "stub_served" Gauge None, ["guest" "domain" "stub"],
        "1 if dom0's service serves the stub.";
    STUB_UPTIME = Both "stub_uptime_seconds" Gauge SECONDS, ["guest" "domain" "stub"],
        "Time since the stub's domain was created.";
    REQUESTS = Both "stub_requests" Counter None, ["guest" "domain" "stub" "op"],
        "Requests of the guest that the stub has served.";
    WRITES_FORWARDED = Both "stub_writes_forwarded" Counter None, ["guest" "domain" "stub"],
        "Configuration writes that the stub passed on towards the device.";
    WRITES_DROPPED = Both "stub_writes_dropped" Counter None, ["guest" "domain" "stub" "register"],
        "Configuration writes that the stub dropped because no policy handles them.";
    REQUESTS_REFUSED = Both "stub_requests_refused" Counter None, ["guest" "domain" "stub"],
        "Requests of the guest that the stub answered with an error.";
    POISONOUS_REQUESTS = Both "stub_poisonous_requests" Gauge None, ["guest" "domain" "stub"],
        "Requests that the stub refuses for a time because they brought it down twice.";
    SPURIOUS_EVENTS = Both "stub_spurious_events" Counter None, ["guest" "domain" "stub"],
        "Events of the guest without a request.";
    LATE_ANSWERS = Both "stub_late_answers" Counter None, ["guest" "domain" "stub"],
        "Answers that came after the guest had given up.";
    FAILURES = Both "stub_failures" Counter None, ["guest" "domain" "stub" "cause"],
        "Failed requests, by who caused the failure.";
    RESTARTS = Both "stub_restarts" Counter None, ["guest" "domain" "stub" "cause"],
        "Returns of the stub: in place after a failure of its own, or as a new domain.";
    REQUEST_DURATION = Both "stub_request_duration_seconds" Histogram SECONDS, ["guest" "domain" "stub" "op"],
        "Time from when the stub took a request until it gave the answer, which may be an error.";

    NETWORK_FRAMES = Stub "stub_network_frames" Counter None, ["guest" "domain" "stub" "op"],
        "Frames that the stub's own network device received and sent.";
    NETWORK_FRAMES_DROPPED = Stub "stub_network_frames_dropped" Counter None, ["guest" "domain" "stub" "op"],
        "Frames that the stub or the backend of its network device dropped.";
    NETWORK_FAULTS = Stub "stub_network_faults" Counter None, ["guest" "domain" "stub"],
        "Connections to the backend of the stub's network device that ended because it broke the protocol.";
    LOG_LINES_SENT = Stub "stub_log_lines_sent" Counter None, ["guest" "domain" "stub"],
        "Log lines that the stub sent by syslog since it started.";
    LOG_LINES_LOST = Stub "stub_log_lines_lost" Counter None, ["guest" "domain" "stub"],
        "Log lines that the stub could not send before newer ones displaced them.";
    WAKEUPS = Stub "stub_wakeups" Counter None, ["guest" "domain" "stub"],
        "Times that the stub woke up or went on after a request.";

    DOM0_REQUESTS = Dom0 "dom0_requests" Counter None, ["guest" "domain" "stub"],
        "Requests of the stub that dom0's service has answered.";
    DOM0_REQUESTS_FAILED = Dom0 "dom0_requests_failed" Counter None, ["guest" "domain" "stub"],
        "Requests of the stub that dom0's service answered with an error.";
    DOM0_WRITES_REFUSED = Dom0 "dom0_writes_refused" Counter None, ["guest" "domain" "stub" "register"],
        "Configuration writes of the stub that the guard in dom0 refused. A sound stub sends none.";
    DEVICE_PIRQS = Dom0 "device_pirqs" Gauge None, ["guest" "domain" "stub" "device"],
        "Pirqs of the guest that the device uses for MSI and MSI-X.";
    GUEST_PIRQS_LEFT = Dom0 "guest_pirqs_left" Gauge None, ["guest" "domain" "stub"],
        "Pirqs for MSI and MSI-X that the guest can still have by Xen's limit.";
    DEVICE_ERRORS = Dom0 "device_errors" Counter None, ["guest" "domain" "stub" "device"],
        "Errors of the device that the hardware could not correct (AER).";
    DEVICE_ERRORS_RECOVERED = Dom0 "device_errors_recovered" Counter None, ["guest" "domain" "stub" "device"],
        "Errors from which the device and the guest's driver recovered.";
    DEVICE_ERRORS_CORRECTED = Dom0 "device_errors_corrected" Counter None, ["guest" "domain" "stub" "device"],
        "Errors of the device that the hardware corrected (AER).";
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn names_differ_and_are_names_of_prometheus() {
        let mut names: Vec<_> = ALL.iter().map(|family| family.name).collect();
        for name in &names {
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
        }
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn a_name_has_its_unit_at_its_end_and_no_suffix_that_the_kind_adds() {
        for Family { name, unit, .. } in ALL {
            for suffix in ["_total", "_info", "_count", "_sum", "_bucket", "_created"] {
                assert!(!name.ends_with(suffix), "{name}");
            }
            assert_eq!(name.strip_suffix("_seconds").map(|_| "seconds"), *unit, "{name}");
        }
    }

    #[test]
    fn labels_are_those_that_the_documents_name() {
        let known = [
            "guest", "domain", "stub", "device", "op", "register", "cause", "version",
        ];
        for family in ALL {
            assert!(
                family.labels.iter().all(|label| known.contains(label)),
                "{}",
                family.name
            );
            assert!(family.help.ends_with('.'), "{}", family.name);
        }
    }
}
