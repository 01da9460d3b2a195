//! The status as text, for people.

use super::model::{
    CarriedGuest, DeclaredGuest, DeviceStatus, DomainStatus, DroppedWrites, Mapped, NetworkStatus,
    PoisonousRequest, Quarantined, RefusedWrite, Status, StubStatus,
};
use crate::layout::{COLUMNS, Lines, Render};
use crate::terms::Terms;
use std::collections::BTreeMap;
use std::fmt;
use xenbus::device::SlotMode;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(COLUMNS))
    }
}

/// First an overview, guest by guest. Then a paragraph for each thing that somebody should know, which begins with the device
/// or the stub that it is about.
impl Render for Status {
    fn render(&self, columns: usize) -> String {
        let mut lines = Lines::new(columns);
        let service = if self.service.running {
            "running"
        } else {
            "DOWN: guests' writes and interrupt changes fail (start it with `bulkhead serve`)"
        };
        lines.line(format_args!("service: {service}"));
        if let Some(process) = &self.service.process {
            lines.line(process);
        }
        if self.stubs.is_empty() {
            lines.line("no devices are passed through");
        }
        self.stubs.iter().for_each(|stub| stub.overview(&mut lines));
        self.about_devices(&mut lines);
        self.stubs.iter().for_each(|stub| stub.about_errors(&mut lines));
        self.stubs.iter().for_each(|stub| stub.about_stub(&mut lines));
        if !self.held.is_empty() {
            lines.line(format_args!("held for guests: {}", self.held.join(", ")));
        }
        for Mapped { bdf, guest } in &self.mapped {
            lines.line(format_args!(
                "held: {bdf}, which guest {guest} had and may still have mapped: `bulkhead release {bdf}` when that has ended"
            ));
        }
        for Quarantined { bdf, reason } in &self.quarantined {
            lines.line(format_args!(
                "quarantine: {bdf}, because {reason}: `bulkhead release {bdf}` tries its reset again"
            ));
        }
        for failed in &self.failed {
            lines.line(format_args!("failed: {failed}"));
        }
        for start in &self.starts {
            lines.line(start);
        }
        for DeclaredGuest { guest, devices, .. } in &self.declared {
            lines.line(format_args!(
                "declared: guest {guest} has {} whenever it starts",
                devices.join(" ")
            ));
        }
        for CarriedGuest { guest, devices, .. } in &self.carried {
            lines.line(format_args!(
                "guest {guest} has ended, and has {} again when it starts: `bulkhead destroy {guest}` gives them to dom0",
                devices.join(" ")
            ));
        }
        for problem in &self.problems {
            lines.line(format_args!("problem: {problem}"));
        }
        lines.into_text()
    }
}

impl Status {
    fn about_devices(&self, lines: &mut Lines) {
        for stub in &self.stubs {
            if stub.slots == SlotMode::Passthrough {
                lines.line(format_args!(
                    "guest {} sees its devices at their addresses in dom0",
                    stub.guest.name
                ));
            }
        }
        let devices = self.stubs.iter().flat_map(|stub| &stub.devices);
        for device in devices.clone() {
            if let Some(line) = &device.line {
                lines.line(line.told(&device.bdf));
            }
        }
        for device in devices.filter(|device| device.terms != Terms::default()) {
            lines.line(format_args!("{}: {}", device.bdf, device.terms));
        }
        for (physical, virtuals) in self.physical_functions() {
            lines.line(format_args!(
                "{physical} has to stay in dom0 with its driver: guests have its virtual functions {}",
                virtuals.join(", ")
            ));
        }
    }

    /// The physical functions of which guests have virtual functions, with these.
    fn physical_functions(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut physical_functions = BTreeMap::<_, Vec<_>>::new();
        for device in self.stubs.iter().flat_map(|stub| &stub.devices) {
            if let Some(physical) = &device.virtual_function_of {
                physical_functions
                    .entry(physical.as_str())
                    .or_default()
                    .push(device.bdf.as_str());
            }
        }
        physical_functions
    }
}

impl DeviceStatus {
    pub(super) fn interrupts(&self) -> String {
        let withheld = if self.gsi.is_some() && !self.line_offered {
            ", INTx withheld"
        } else {
            ""
        };
        match self.mode.as_str() {
            "msi-x" => format!("MSI-X, {} vectors{withheld}", self.pirqs.len()),
            "msi" => format!("MSI{withheld}"),
            "intx" => "INTx".into(),
            _ => format!("none{withheld}"),
        }
    }

    /// Two lines in the overview: what the device is, and how it interrupts and is reset.
    fn overview(&self, lines: &mut Lines) {
        let called = self.called.as_deref().unwrap_or_default();
        lines.row(2, &self.bdf, 13, format_args!("{} {called}", self.ids));
        let pirqs: Vec<_> = self.pirqs.iter().map(u32::to_string).collect();
        let pirqs = match pirqs.as_slice() {
            [] => String::new(),
            [pirq] => format!(" (pirq {pirq})"),
            _ => format!(" (pirqs {})", pirqs.join(" ")),
        };
        let reset = self.reset.as_deref().unwrap_or("nothing: it has no method");
        lines.row(
            2,
            "",
            13,
            format_args!("{}{pirqs}; reset by {reset}", self.interrupts()),
        );
    }
}

impl fmt::Display for DomainStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.name, self.domid, self.state)
    }
}

impl fmt::Display for NetworkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, bridge {}", self.state, self.bridge)?;
        if let Some(backend) = &self.backend {
            write!(f, " of domain {backend}")?;
        }
        if let Some(mac) = &self.mac {
            write!(f, " as {mac}")?;
        }
        match self.address.as_str() {
            "dhcp" => write!(f, ", address by DHCP")?,
            address => write!(f, ", address {address}")?,
        }
        if let Some(gateway) = &self.gateway {
            write!(f, " by way of {gateway}")?;
        }
        if let Some(port) = self.metrics {
            write!(f, "; metrics at port {port}")?;
        }
        if let Some(syslog) = &self.syslog {
            write!(f, "; log to {syslog}")?;
        }
        Ok(())
    }
}

impl StubStatus {
    fn overview(&self, lines: &mut Lines) {
        lines.line(format_args!("guest {}, through stub {}", self.guest, self.domain));
        if let Some(network) = &self.network {
            lines.row(2, "network", 13, format_args!("{network}"));
        }
        self.devices.iter().for_each(|device| device.overview(lines));
    }

    fn about_errors(&self, lines: &mut Lines) {
        for device in &self.devices {
            if let Some(count @ 1..) = device.corrected_errors {
                lines.line(format_args!(
                    "{}: {count} errors that the hardware corrected",
                    device.bdf
                ));
            }
        }
        for device in self.served.iter().flat_map(|served| &served.errors) {
            let last = match device.last.as_str() {
                "" => "being dealt with",
                last => last,
            };
            let (bdf, errors, recovered) = (&device.bdf, device.errors, device.recovered);
            if errors == 0 {
                lines.line(format_args!("{bdf}: {last}"));
                continue;
            }
            lines.line(format_args!(
                "{bdf}: errors {errors}, recovered {recovered}; the last: {last}"
            ));
        }
    }

    fn about_stub(&self, lines: &mut Lines) {
        let name = &self.domain.name;
        if let Some(remark) = &self.remark {
            lines.line(format_args!("{name}: {remark}"));
        }
        let Some(served) = &self.served else {
            return lines.line(format_args!("{name}: not served"));
        };
        let mut counts = format!("{} requests to dom0, {} failed", served.requests, served.failed);
        if served.revivals > 0 {
            counts += &format!(", brought back {} times", served.revivals);
        }
        // Counters at zero are left out, or the line would be long and say little.
        for (counter, value) in served.counters.iter().filter(|(_, value)| **value > 0) {
            counts += &format!(", {counter} {value}");
        }
        lines.line(format_args!("{name}: {counts}"));
        for DroppedWrites { slot, offset, count } in &served.dropped {
            lines.line(format_args!(
                "{name}: dropped {count} writes to register {offset:#x} of the guest's {slot}"
            ));
        }
        for PoisonousRequest { request, bytes } in &served.poisonous {
            lines.line(format_args!(
                "{name}: REFUSES {request} for a while, because it brought the stub down twice; its bytes, for a report: {bytes}"
            ));
        }
        for write in &served.refused {
            let RefusedWrite {
                bdf,
                offset,
                reason,
                count,
            } = write;
            lines.line(format_args!(
                "{name}: REFUSED {count} writes to register {offset:#x} of {bdf}: {reason}"
            ));
        }
        if served.refused_besides > 0 {
            lines.line(format_args!(
                "{name}: REFUSED {} writes to further registers: a sound stub sends none of these",
                served.refused_besides
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::collect::device_status;
    use super::super::model::DeviceErrors;
    use super::super::model::tests::status;
    use super::*;
    use crate::host::pci_ids::PciIds;
    use crate::records::interrupt_mode::Mode;
    use crate::records::tests::virtual_function;
    use crate::records::{GuestStart, Stage};

    /// In lines as long as they need to be.
    fn unwrapped(status: &Status) -> String {
        status.render(10_000)
    }

    #[test]
    fn all_that_there_is_to_tell() {
        insta::assert_snapshot!(status().to_string());
    }

    #[test]
    fn of_a_network_only_what_there_is_of_it_is_told() {
        let told = |text: &str, state: &str| {
            let network = NetworkStatus::new(&text.parse().unwrap(), state.into());
            network.to_string()
        };
        assert_eq!(
            told("bridge=b,syslog=10.0.0.5:514,metrics=off", "initialising"),
            "initialising, bridge b, address by DHCP; log to 10.0.0.5:514"
        );
        assert_eq!(
            told(
                "bridge=b,backend=sys-net,address=10.0.0.9/24,gateway=10.0.0.1",
                "closed"
            ),
            "closed, bridge b of domain sys-net, address 10.0.0.9/24 by way of 10.0.0.1; metrics at port 9743"
        );
    }

    #[test]
    fn people_see_guest_stub_device_name_mode_pirqs_and_reset_at_a_glance() {
        let mut status = status();
        status.add_names(&PciIds::from("8086  Intel Corporation\n\t10d3  82574L\n"));
        let text = status.to_string();
        let expected = "\
guest web (3) connected, through stub web-bulkhead (4) connected
  network       connected, bridge xenbr0 as 00:16:3e:12:34:56, address by DHCP;
                metrics at port 9743; log to 10.0.0.5:514
  0000:00:05.0  8086:10d3 Intel Corporation 82574L
                MSI-X, 2 vectors (pirqs 55 54); reset by FLR
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn guests_that_are_to_have_devices_whenever_they_start_are_listed_with_the_next_step() {
        let status = Status {
            starts: vec![GuestStart {
                guest: crate::records::tests::domain(7, "mail"),
                stage: Stage::Failed {
                    reason: "0000:00:06.0 is in use".into(),
                    held: true,
                },
            }],
            declared: vec![DeclaredGuest {
                guest: "mail".into(),
                devices: vec!["0000:00:06.0,msi=0".into(), "0000:00:07.0".into()],
                file: "/etc/bulkhead/guests.d/mail.toml".into(),
            }],
            carried: vec![CarriedGuest {
                guest: "news".into(),
                uuid: "0".into(),
                devices: vec!["0000:00:08.0".into()],
            }],
            ..Status::default()
        };
        insta::assert_snapshot!(status.to_string());
    }

    #[test]
    fn all_fits_80_columns_but_for_a_word_that_is_longer() {
        let mut status = status();
        let stub = &mut status.stubs[0];
        stub.guest.name =
            "a guest with a long name, which xl allows, and more words than fit on a line".into();
        let device = &mut stub.devices[0];
        device.called = Some("Advanced Micro Devices, Inc. [AMD] Starship/Matisse PTDMA ".repeat(2));
        device.pirqs = (40..168).collect();
        device.terms = crate::terms::tests::unusual();
        status.problems = vec!["something is wrong, and it takes many words to say so: ".repeat(3)];
        for columns in [40, 80, 132] {
            let text = status.render(columns);
            let long = text
                .lines()
                .find(|line| line.chars().count() > columns && line.trim_start().contains(' '));
            assert_eq!(long, None);
        }
        let long = status.render(COLUMNS);
        let long: Vec<_> = long
            .lines()
            .filter(|line| line.chars().count() > COLUMNS)
            .collect();
        assert_eq!(long, [""; 0]);
    }

    #[test]
    fn dropped_and_refused_writes_are_named_by_register() {
        let text = unwrapped(&status());
        assert!(
            text.contains("12 requests to dom0, 1 failed, reads 1, writes_dropped 1"),
            "{text}"
        );
        assert!(
            text.contains("dropped 1 writes to register 0xd of the guest's 00:01.0"),
            "{text}"
        );
        assert!(
            text.contains("REFUSED 2 writes to register 0x10 of 0000:00:05.0: no"),
            "{text}"
        );
        assert!(!text.contains("further registers"), "{text}");
        let mut many = status();
        many.stubs[0].served.as_mut().unwrap().refused_besides = 4000;
        let text = unwrapped(&many);
        assert!(
            text.contains("web-bulkhead: REFUSED 4000 writes to further registers"),
            "{text}"
        );
    }

    #[test]
    fn requests_that_brought_a_stub_down_are_told_with_their_bytes() {
        let text = unwrapped(&status());
        assert!(
            text.contains(
                "REFUSES conf_read 0000:00:00.0 offset 0x60 size 4 for a while, because it brought the stub down twice; its bytes, for a \
                 report: 0000000000000000000000000000000000000000600000000400000000000000"
            ),
            "{text}"
        );
        let json = serde_json::to_value(status()).unwrap();
        let request = &json["stubs"][0]["served"]["poisonous"][0]["request"];
        assert_eq!(request, "conf_read 0000:00:00.0 offset 0x60 size 4");
    }

    #[test]
    fn terms_are_told_of_the_devices_whose_terms_are_not_the_usual_ones() {
        let mut status = status();
        assert!(
            !unwrapped(&status)
                .lines()
                .any(|line| line.starts_with("0000:00:05.0"))
        );
        status.stubs[0].devices[0].terms = crate::terms::tests::unusual();
        let text = unwrapped(&status);
        let line = text
            .lines()
            .find(|line| line.starts_with("0000:00:05.0"))
            .unwrap();
        assert!(
            line.contains("MSI off: policy.toml, bridge 0000:00:1c.0"),
            "{line}"
        );
    }

    #[test]
    fn a_physical_function_is_named_with_its_virtual_ones_that_guests_have() {
        let mut status = status();
        for bdf in ["01:10.0", "01:10.2"] {
            let device = device_status(&virtual_function(bdf), &Mode::Intx);
            status.stubs[0].devices.push(device);
        }
        let text = unwrapped(&status);
        let line = "\n0000:01:00.0 has to stay in dom0 with its driver: guests have its virtual functions 0000:01:10.0, \
                    0000:01:10.2\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn errors_of_devices_are_told_with_what_came_of_them() {
        let mut status = status();
        assert!(!unwrapped(&status).contains("errors"));
        status.stubs[0].devices[0].corrected_errors = Some(3);
        status.stubs[0].served.as_mut().unwrap().errors = vec![
            DeviceErrors {
                bdf: "0000:00:05.0".into(),
                errors: 2,
                recovered: 1,
                last: "the guest handles no errors: it is left as it is".into(),
            },
            DeviceErrors {
                bdf: "0000:00:06.0".into(),
                errors: 0,
                recovered: 0,
                last: "suspend of the host: recovered by a reset".into(),
            },
        ];
        let text = unwrapped(&status);
        for line in [
            "\n0000:00:05.0: 3 errors that the hardware corrected\n",
            "\n0000:00:05.0: errors 2, recovered 1; the last: the guest handles no errors: it is left as it is\n",
            "\n0000:00:06.0: suspend of the host: recovered by a reset\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_service_that_is_down_is_said_first() {
        let text = unwrapped(&Status::default());
        assert!(text.starts_with("service: DOWN"), "{text}");
        assert!(text.contains("no devices are passed through"), "{text}");
    }

    #[test]
    fn a_guest_that_has_its_devices_where_they_are_in_dom0_is_named() {
        let mut status = status();
        assert!(unwrapped(&status).contains("guest web sees its devices at their addresses in dom0\n"));
        status.stubs[0].slots = SlotMode::Vpci;
        assert!(!unwrapped(&status).contains("at their addresses"));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["stubs"][0]["slots"], "vpci");
    }

    #[test]
    fn devices_without_a_guest_are_told_with_the_next_step() {
        let status = Status {
            held: vec!["0000:00:05.0".into()],
            mapped: vec![Mapped {
                bdf: "0000:00:07.0".into(),
                guest: "web".into(),
            }],
            quarantined: vec![Quarantined {
                bdf: "0000:00:06.0".into(),
                reason: "it is mute".into(),
            }],
            ..Status::default()
        };
        let text = unwrapped(&status);
        assert!(text.contains("held for guests: 0000:00:05.0\n"), "{text}");
        assert!(
            text.contains(
                "held: 0000:00:07.0, which guest web had and may still have mapped: `bulkhead release 0"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "quarantine: 0000:00:06.0, because it is mute: `bulkhead release 0000:00:06.0` tries its reset again"
            ),
            "{text}"
        );
    }
}
