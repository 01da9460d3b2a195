//! The status as text, for people.

use super::model::{
    DeviceStatus, DomainStatus, DroppedWrites, Mapped, PoisonousRequest, Quarantined, RefusedWrite, Status,
    StubStatus,
};
use crate::terms::Terms;
use comfy_table::{Table, presets};
use std::collections::BTreeMap;
use std::fmt;
use xenbus::device::SlotMode;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = if self.service.running {
            "running"
        } else {
            "DOWN: guests' writes and interrupt changes fail (start it with `bulkhead serve`)"
        };
        writeln!(f, "service: {service}")?;
        if let Some(process) = &self.service.process {
            writeln!(f, "{process}")?;
        }
        if self.stubs.is_empty() {
            writeln!(f, "no devices are passed through")?;
        } else {
            writeln!(f, "{}", self.devices_table())?;
        }
        for stub in self
            .stubs
            .iter()
            .filter(|stub| stub.slots == SlotMode::Passthrough)
        {
            writeln!(
                f,
                "guest {} sees its devices at their addresses in dom0",
                stub.guest.name
            )?;
        }
        let devices = self.stubs.iter().flat_map(|stub| &stub.devices);
        for device in devices.clone() {
            if let Some(line) = &device.line {
                writeln!(f, "{}", line.told(&device.bdf))?;
            }
        }
        for device in devices.filter(|device| device.terms != Terms::default()) {
            writeln!(f, "{}: {}", device.bdf, device.terms)?;
        }
        for (physical, virtuals) in self.physical_functions() {
            writeln!(
                f,
                "{physical} has to stay in dom0 with its driver: guests have its virtual functions {}",
                virtuals.join(", ")
            )?;
        }
        self.stubs.iter().try_for_each(|stub| stub.fmt_errors(f))?;
        self.stubs.iter().try_for_each(|stub| stub.fmt_served(f))?;
        if !self.held.is_empty() {
            writeln!(f, "held for guests: {}", self.held.join(", "))?;
        }
        for Mapped { bdf, guest } in &self.mapped {
            writeln!(
                f,
                "held: {bdf}, which guest {guest} had and may still have mapped: `bulkhead release {bdf}` when that has ended"
            )?;
        }
        for device in &self.quarantined {
            let Quarantined { bdf, reason } = device;
            writeln!(
                f,
                "quarantine: {bdf}, because {reason}: `bulkhead release {bdf}` tries its reset again"
            )?;
        }
        self.failed
            .iter()
            .try_for_each(|failed| writeln!(f, "failed: {failed}"))?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "problem: {problem}"))
    }
}

impl Status {
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

    fn devices_table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED);
        table.set_header(["guest", "stub", "device", "ids", "interrupts", "pirqs", "reset"]);
        for stub in &self.stubs {
            for device in &stub.devices {
                let pirqs: Vec<_> = device.pirqs.iter().map(u32::to_string).collect();
                table.add_row([
                    stub.guest.to_string(),
                    stub.domain.to_string(),
                    device.bdf.clone(),
                    device.ids.clone(),
                    device.interrupts(),
                    pirqs.join(" "),
                    device.reset.clone().unwrap_or_else(|| "none".into()),
                ]);
            }
        }
        table
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
}

impl fmt::Display for DomainStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.name, self.domid, self.state)
    }
}

impl StubStatus {
    fn fmt_errors(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for device in &self.devices {
            if let Some(count @ 1..) = device.corrected_errors {
                writeln!(f, "{}: {count} errors that the hardware corrected", device.bdf)?;
            }
        }
        let errors = self.served.iter().flat_map(|served| &served.errors);
        for device in errors {
            let last = match device.last.as_str() {
                "" => "being dealt with",
                last => last,
            };
            let (bdf, errors, recovered) = (&device.bdf, device.errors, device.recovered);
            writeln!(
                f,
                "{bdf}: errors {errors}, recovered {recovered}; the last: {last}"
            )?;
        }
        Ok(())
    }

    fn fmt_served(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.domain.name;
        if let Some(remark) = &self.remark {
            writeln!(f, "{name}: {remark}")?;
        }
        let Some(served) = &self.served else {
            return writeln!(f, "{name}: not served");
        };
        write!(
            f,
            "{name}: {} requests to dom0, {} failed",
            served.requests, served.failed
        )?;
        if served.revivals > 0 {
            write!(f, ", brought back {} times", served.revivals)?;
        }
        // Counters at zero are left out, or the line would be long and say little.
        for (counter, value) in served.counters.iter().filter(|(_, value)| **value > 0) {
            write!(f, ", {counter} {value}")?;
        }
        writeln!(f)?;
        for write in &served.dropped {
            let DroppedWrites { slot, offset, count } = write;
            writeln!(
                f,
                "{name}: dropped {count} writes to register {offset:#x} of the guest's {slot}"
            )?;
        }
        for PoisonousRequest { request, bytes } in &served.poisonous {
            writeln!(
                f,
                "{name}: REFUSES {request} for a while, because it brought the stub down twice; its bytes, for a report: {bytes}"
            )?;
        }
        for write in &served.refused {
            let RefusedWrite {
                bdf,
                offset,
                reason,
                count,
            } = write;
            writeln!(
                f,
                "{name}: REFUSED {count} writes to register {offset:#x} of {bdf}: {reason}"
            )?;
        }
        if served.refused_besides > 0 {
            writeln!(
                f,
                "{name}: REFUSED {} writes to further registers: a sound stub sends none of these",
                served.refused_besides
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::collect::device_status;
    use super::super::model::DeviceErrors;
    use super::super::model::tests::status;
    use super::*;
    use crate::records::interrupt_mode::Mode;
    use crate::records::tests::virtual_function;

    #[test]
    fn all_that_there_is_to_tell() {
        insta::assert_snapshot!(status().to_string());
    }

    #[test]
    fn people_see_guest_stub_device_mode_and_pirqs_in_one_row() {
        let text = status().to_string();
        let row = text
            .lines()
            .find(|line| line.contains("0000:00:05.0") && line.contains("web"))
            .unwrap();
        for cell in [
            "web (3) connected",
            "web-bulkhead (4)",
            "8086:10d3",
            "MSI-X, 2 vectors",
            "55 54",
            "FLR",
        ] {
            assert!(row.contains(cell), "{cell} in {row}");
        }
    }

    #[test]
    fn dropped_and_refused_writes_are_named_by_register() {
        let text = status().to_string();
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
        let text = many.to_string();
        assert!(
            text.contains("web-bulkhead: REFUSED 4000 writes to further registers"),
            "{text}"
        );
    }

    #[test]
    fn requests_that_brought_a_stub_down_are_told_with_their_bytes() {
        let text = status().to_string();
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
            !status
                .to_string()
                .lines()
                .any(|line| line.starts_with("0000:00:05.0"))
        );
        status.stubs[0].devices[0].terms = crate::terms::tests::unusual();
        let text = status.to_string();
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
        let text = status.to_string();
        let line = "\n0000:01:00.0 has to stay in dom0 with its driver: guests have its virtual functions 0000:01:10.0, \
                    0000:01:10.2\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn errors_of_devices_are_told_with_what_came_of_them() {
        let mut status = status();
        assert!(!status.to_string().contains("errors"));
        status.stubs[0].devices[0].corrected_errors = Some(3);
        status.stubs[0].served.as_mut().unwrap().errors = vec![DeviceErrors {
            bdf: "0000:00:05.0".into(),
            errors: 2,
            recovered: 1,
            last: "the guest handles no errors: it is left as it is".into(),
        }];
        let text = status.to_string();
        for line in [
            "\n0000:00:05.0: 3 errors that the hardware corrected\n",
            "\n0000:00:05.0: errors 2, recovered 1; the last: the guest handles no errors: it is left as it is\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_service_that_is_down_is_said_first() {
        let text = Status::default().to_string();
        assert!(text.starts_with("service: DOWN"), "{text}");
        assert!(text.contains("no devices are passed through"), "{text}");
    }

    #[test]
    fn a_guest_that_has_its_devices_where_they_are_in_dom0_is_named() {
        let mut status = status();
        assert!(
            status
                .to_string()
                .contains("guest web sees its devices at their addresses in dom0\n")
        );
        status.stubs[0].slots = SlotMode::Vpci;
        assert!(!status.to_string().contains("at their addresses"));
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
        let text = status.to_string();
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
