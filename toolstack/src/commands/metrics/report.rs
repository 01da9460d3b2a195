//! The status of the host, as metrics.

use crate::status::{DeviceErrors, DeviceStatus, Served, Status, StubStatus};
use metrics::stub::{self, Stub};
use metrics::{Exposition, Family, Format, families};
use std::fmt;
use std::time::Duration;

/// What there is to tell.
pub struct Observation<'a> {
    /// The status; `None` if it cannot be read.
    pub status: Option<&'a Status>,
    /// Most pirqs of a guest for MSI and MSI-X, if known.
    pub pirqs: Option<u32>,
    /// Time since 1970.
    pub now: Duration,
}

impl Observation<'_> {
    /// The metrics in `format`.
    pub fn text(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let mut out = Exposition::new(&mut text, format);
        out.family(&families::BUILD)?;
        out.sample(&[&env!("CARGO_PKG_VERSION")], 1)?;
        let is_up = self.status.is_some_and(|status| status.service.running);
        single(&mut out, &families::SERVICE_UP, is_up.into())?;
        if let Some(status) = self.status {
            self.write_service(&mut out, status)?;
            self.write_stubs(&mut out, status)?;
        }
        out.end()?;
        Ok(text)
    }

    fn write_service(&self, out: &mut Exposition<'_>, status: &Status) -> fmt::Result {
        if let Some(history) = &status.service.history {
            out.family(&families::SERVICE_UPTIME)?;
            out.sample(&[], self.since(history.started))?;
            out.family(&families::SERVICE_TAKEOVERS)?;
            out.sample(&[&"died"], history.died)?;
            out.sample(&[&"hung"], history.hung)?;
        }
        let held_guests = status.starts.iter().filter(|start| start.is_paused()).count();
        for (family, count) in [
            (&families::QUARANTINED_DEVICES, status.quarantined.len()),
            (&families::HELD_DEVICES, status.held.len() + status.mapped.len()),
            (&families::HELD_GUESTS, held_guests),
            (&families::FAILED_GUESTS, status.failed.len()),
            (&families::PROBLEMS, status.problems.len()),
        ] {
            single(out, family, count as u64)?;
        }
        Ok(())
    }

    fn write_stubs(&self, out: &mut Exposition<'_>, status: &Status) -> fmt::Result {
        let stubs: Vec<_> = status.stubs.iter().map(|stub| (stub, self.stub(stub))).collect();
        out.family(&families::STUB_SERVED)?;
        for (status, stub) in &stubs {
            out.sample(&stub.labels(&"")[..3], status.served.is_some())?;
        }
        let own: Vec<_> = stubs.iter().map(|(_, stub)| stub.clone()).collect();
        stub::write(out, &own)?;

        let served = || {
            stubs
                .iter()
                .filter_map(|(status, stub)| Some((stub, status.served.as_ref()?)))
        };
        for (family, count) in [
            (
                &families::DOM0_REQUESTS,
                (|served| served.requests) as fn(&Served) -> u64,
            ),
            (&families::DOM0_REQUESTS_FAILED, |served| served.failed),
        ] {
            out.family(family)?;
            for (stub, served) in served() {
                out.sample(&stub.labels(&"")[..3], count(served))?;
            }
        }
        out.family(&families::DOM0_WRITES_REFUSED)?;
        for (stub, served) in served() {
            let writes = served.refused.iter().map(|write| (write.offset, write.count));
            let named: u64 = writes.clone().map(|(_, count)| count).sum();
            stub::write_registers(out, stub, writes, named + served.refused_besides)?;
        }
        out.family(&families::GUEST_PIRQS_LEFT)?;
        for (status, stub) in &stubs {
            if let Some(most) = self.pirqs {
                let left = u64::from(most).saturating_sub(status.msi_pirqs() as u64);
                out.sample(&stub.labels(&"")[..3], left)?;
            }
        }
        type Count = fn(&StubStatus, &DeviceStatus) -> Option<u64>;
        for (family, count) in [
            (
                &families::DEVICE_PIRQS,
                (|_, device| Some(device.msi_pirqs() as u64)) as Count,
            ),
            (&families::DEVICE_ERRORS, |stub, device| {
                errors(stub, device, |errors| errors.errors)
            }),
            (&families::DEVICE_ERRORS_RECOVERED, |stub, device| {
                errors(stub, device, |errors| errors.recovered)
            }),
            (&families::DEVICE_ERRORS_CORRECTED, |_, device| {
                device.corrected_errors
            }),
        ] {
            out.family(family)?;
            for (status, stub) in &stubs {
                for device in &status.devices {
                    if let Some(count) = count(status, device) {
                        out.sample(&stub.labels(&device.bdf), count)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What a stub counts by itself, and what dom0 knows of that.
    fn stub<'a>(&self, stub: &'a StubStatus) -> Stub<'a> {
        let served = stub.served.as_ref();
        Stub {
            guest: &stub.guest.name,
            domain: stub.guest.domid,
            stub: &stub.domain.name,
            uptime: stub.created.map(|created| self.since(created)),
            poisonous: served.map_or(0, |served| served.poisonous.len() as u64),
            recreated: served.map(|served| served.revivals),
            counters: served.and_then(Served::counters),
        }
    }

    /// Time since then, in seconds since 1970. A clock that was set back meanwhile counts as no time.
    fn since(&self, then: u64) -> Duration {
        self.now.saturating_sub(Duration::from_secs(then))
    }
}

/// A count of the device's errors: 0 before it has had any, and `None` while nobody counts them.
fn errors(stub: &StubStatus, device: &DeviceStatus, count: fn(&DeviceErrors) -> u64) -> Option<u64> {
    let served = stub.served.as_ref()?;
    let errors = served.errors.iter().find(|errors| errors.bdf == device.bdf);
    Some(errors.map_or(0, count))
}

/// Writes a family of one sample without labels.
fn single(out: &mut Exposition<'_>, family: &'static Family, value: u64) -> fmt::Result {
    out.family(family)?;
    out.sample(&[], value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::domain;
    use crate::records::{GuestStart, Stage};
    use crate::status::{Quarantined, RefusedWrite, tests::status};
    use std::collections::BTreeSet;
    use xenbus::counters::{Class, Counter, Counters};

    const NOW: Duration = Duration::from_secs(1_795_972_345);

    fn text(status: Option<&Status>, format: Format) -> String {
        let seen = Observation {
            status,
            pirqs: Some(32),
            now: NOW,
        };
        seen.text(format).unwrap()
    }

    /// The samples whose name or labels contain this.
    fn samples<'a>(text: &'a str, part: &str) -> Vec<&'a str> {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains(part));
        samples.collect()
    }

    /// A stub of which all is told that can be, and of all as much as can be.
    fn worst() -> Status {
        let mut status = status();
        let mut counters = Counters::default();
        for counter in Counter::ALL {
            counters.set(counter, u64::MAX);
        }
        for register in 0..100 {
            counters.add_dropped_write("00:01.0".parse().unwrap(), register * 4);
        }
        for class in Class::ALL {
            counters.add_latency(class, Duration::from_secs(2));
        }
        let stub = &mut status.stubs[0];
        stub.devices[0].corrected_errors = Some(u64::MAX);
        let served = stub.served.as_mut().unwrap();
        served.add_counters(&counters);
        served.refused = (0..100)
            .map(|register| RefusedWrite {
                bdf: "0000:00:05.0".into(),
                offset: register * 4,
                reason: "no".into(),
                count: 1,
            })
            .collect();
        served.refused_besides = 7;
        served.poisonous = vec![served.poisonous[0].clone(); 4];
        served.errors = vec![DeviceErrors {
            bdf: "0000:00:05.0".into(),
            errors: 3,
            recovered: 2,
            last: "recovered".into(),
        }];
        status
    }

    #[test]
    fn a_host_in_both_formats() {
        let mut status = status();
        status.quarantined.push(Quarantined {
            bdf: "0000:00:06.0".into(),
            reason: "it is mute".into(),
        });
        let stage = Stage::Failed {
            reason: "no".into(),
            held: true,
        };
        status.starts.push(GuestStart {
            guest: domain(7, "mail"),
            stage,
        });
        insta::assert_snapshot!("openmetrics", text(Some(&status), Format::OpenMetrics));
        insta::assert_snapshot!("prometheus", text(Some(&status), Format::Prometheus));
    }

    #[test]
    fn a_stub_with_one_device_has_sixty_series_at_most() {
        let text = text(Some(&worst()), Format::Prometheus);
        let series = samples(&text, "stub=\"web-bulkhead\"");
        assert!(series.len() <= 60, "{}:\n{}", series.len(), series.join("\n"));
        let names: BTreeSet<&str> = series
            .iter()
            .map(|line| line.rsplit_once(' ').unwrap().0)
            .collect();
        assert_eq!(names.len(), series.len(), "a series is told twice");
        let other = samples(&text, "dom0_writes_refused_total{");
        assert!(other[4].ends_with("register=\"other\"} 103"), "{other:?}");
    }

    #[test]
    fn every_family_of_the_table_that_is_not_the_stubs_alone_is_written_once() {
        let text = text(Some(&worst()), Format::OpenMetrics);
        let headers = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut names: Vec<&str> = headers.filter_map(|header| header.split(' ').next()).collect();
        let from_here = |family: &&&families::Family| family.source != families::Source::Stub;
        let expected = families::ALL.iter().filter(from_here);
        let mut expected: Vec<&str> = expected.map(|family| family.name).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_service_that_is_down_is_told_whether_the_records_can_be_read_or_not() {
        let mut down = status();
        down.service.running = false;
        down.service.history = None;
        down.stubs[0].served = None;
        let records = text(Some(&down), Format::Prometheus);
        for expected in [
            "bulkhead_service_up 0",
            "bulkhead_stub_served{guest=\"web\",domain=\"3\",stub=\"web-bulkhead\"} 0",
            "bulkhead_stub_uptime_seconds{guest=\"web\",domain=\"3\",stub=\"web-bulkhead\"} 4245.000000",
        ] {
            assert!(
                records.lines().any(|line| line == expected),
                "{expected}:\n{records}"
            );
        }
        // What is not known is not told as 0.
        for unknown in [
            "restarts",
            "requests",
            "poisonous",
            "errors{",
            "service_takeovers",
        ] {
            assert_eq!(samples(&records, unknown), [""; 0]);
        }
        let nothing = text(None, Format::OpenMetrics);
        let told = samples(&nothing, "");
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[1], "bulkhead_service_up 0");
        assert!(nothing.ends_with("# EOF\n"));
    }

    #[test]
    fn pirqs_are_told_by_device_and_the_rest_by_guest() {
        let mut status = status();
        let left = |status: &Status| {
            let text = text(Some(status), Format::Prometheus);
            let [used, left] = ["device_pirqs{", "guest_pirqs_left{"].map(|name| {
                let sample = samples(&text, name)[0];
                sample.rsplit_once(' ').unwrap().1.to_owned()
            });
            (used, left)
        };
        assert_eq!(left(&status), ("2".into(), "30".into()));
        // INTx takes none of them.
        status.stubs[0].devices[0].mode = "intx".into();
        assert_eq!(left(&status), ("0".into(), "32".into()));
        status.stubs[0].devices[0].mode = "msi-x".into();
        status.stubs[0].devices[0].pirqs = (0..40).collect();
        assert_eq!(left(&status), ("40".into(), "0".into()));
    }
}
