//! The report of `bulkhead check`, as text and as JSON.

use crate::layout::{COLUMNS, Lines, Render};
use serde::Serialize;
use std::fmt;

/// All about the devices that were named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// True if all of them would be accepted.
    pub fit: bool,
    /// Why the host can give away no device at all.
    pub host: Option<String>,
    /// The guest, if one was named.
    pub guest: Option<Guest>,
    /// Number of MSI and MSI-X interrupts that Xen allows a guest.
    pub spare_pirqs: u32,
    /// The devices, in the order in which they were named.
    pub devices: Vec<DeviceReport>,
    /// What the administrator should know about all of them together.
    pub notes: Vec<String>,
}

/// The guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its number.
    pub domid: u16,
    /// Number of MSI and MSI-X interrupts that it uses now.
    pub pirqs_used: u32,
}

/// One of the names, and what is known about its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceReport {
    /// As it was named.
    pub name: String,
    /// True if it would be accepted.
    pub fit: bool,
    /// Why not: what `attach` would say.
    pub refusals: Vec<String>,
    /// What the administrator should know.
    pub notes: Vec<String>,
    /// Absent if there is no such device.
    #[serde(flatten)]
    pub device: Option<DeviceFacts>,
}

/// A device as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceFacts {
    /// Its address.
    pub bdf: String,
    /// Vendor and device.
    pub ids: String,
    /// Its product name, if the host has the list of names (`pci.ids`).
    pub called: Option<String>,
    /// Base class, subclass and programming interface, hex.
    pub class: String,
    /// What holds it now, in words.
    pub held_by: String,
    /// How it would be reset.
    pub reset: Reset,
    /// The other functions whose DMA the IOMMU cannot tell from its own.
    pub group: Vec<String>,
    /// The functions that may pass its DMA on past the IOMMU, because their ACS is missing or off.
    pub without_acs: Vec<String>,
    /// The functions whose memory lies in a page with its own.
    pub shares_page_with: Vec<String>,
    /// Its interrupt line; absent if it has none.
    pub line: Option<Line>,
    /// Number of interrupts of its MSI capability. The guest gets one.
    pub msi: u32,
    /// The entries of its MSI-X table.
    pub msix: u32,
    /// Memory that the firmware has reserved for its DMA, which its guest's DMA can reach too; absent if the firmware
    /// has no table of it.
    pub reserved: Option<Vec<String>>,
    /// Its terms as far as they are not the defaults; empty if they are.
    pub terms: String,
}

/// Reset methods of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reset {
    /// The ways that Linux lists, in its order.
    pub methods: Vec<String>,
    /// The one that it will take; absent if none works.
    pub used: Option<String>,
    /// The functions that keep the bus from being reset, where that is all there is.
    pub blocked_by: Vec<String>,
}

/// INTx line of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Line {
    /// Its GSI; absent as long as dom0 has not enabled the device.
    pub gsi: Option<u32>,
    /// Who uses it too.
    pub shared_with: Vec<String>,
    /// True if the guest would get it.
    pub offered: bool,
}

/// The base classes of PCI (PCI Code and ID Assignment Specification, section 1).
const CLASSES: [&str; 20] = [
    "old device",
    "mass storage controller",
    "network controller",
    "display controller",
    "multimedia device",
    "memory controller",
    "bridge",
    "communication controller",
    "system peripheral",
    "input device",
    "docking station",
    "processor",
    "serial bus controller",
    "wireless controller",
    "intelligent I/O controller",
    "satellite communication controller",
    "encryption controller",
    "signal processing controller",
    "processing accelerator",
    "instrumentation",
];

fn class_name(class: &str) -> &'static str {
    // The base class stands in the first two digits.
    let base = class
        .get(..2)
        .and_then(|digits| usize::from_str_radix(digits, 16).ok());
    base.and_then(|base| CLASSES.get(base).copied())
        .unwrap_or("device of another class")
}

fn listed(names: &[String], otherwise: &str) -> String {
    if names.is_empty() {
        otherwise.to_owned()
    } else {
        names.join(", ")
    }
}

/// Columns of the titles of rows.
const TITLE: usize = 12;

impl Render for Report {
    fn render(&self, columns: usize) -> String {
        let mut lines = Lines::new(columns);
        if let Some(refusal) = &self.host {
            lines.line(format_args!("host: {refusal}"));
        }
        self.devices.iter().for_each(|entry| entry.describe(&mut lines));
        for note in &self.notes {
            lines.line(format_args!("note: {note}"));
        }
        match &self.guest {
            Some(guest) => lines.line(format_args!(
                "guest {} ({}) uses {} of {} messages (MSI, MSI-X)",
                guest.name, guest.domid, guest.pirqs_used, self.spare_pirqs
            )),
            None => lines.line(format_args!(
                "a guest can have {} messages (MSI, MSI-X) in all",
                self.spare_pirqs
            )),
        }
        lines.line(if self.fit {
            "all can be given to a guest"
        } else {
            "not all can be given to a guest"
        });
        lines.into_text()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(COLUMNS))
    }
}

impl DeviceReport {
    fn describe(&self, lines: &mut Lines) {
        lines.line(&self.name);
        if let Some(device) = &self.device {
            device.describe(lines);
        }
        for note in &self.notes {
            lines.row(2, "note", TITLE, note);
        }
        if self.fit {
            lines.row(2, "fit", TITLE, "yes");
        }
        for refusal in self.refusals.iter().filter(|_| !self.fit) {
            lines.row(2, "NOT FIT", TITLE, refusal);
        }
    }
}

impl DeviceFacts {
    fn describe(&self, lines: &mut Lines) {
        let mut row = |title: &str, text: &dyn fmt::Display| lines.row(2, title, TITLE, text);
        row(
            "device",
            &format_args!("{} {}, {}", self.bdf, self.ids, class_name(&self.class)),
        );
        if let Some(called) = &self.called {
            row("called", called);
        }
        row("held by", &self.held_by);
        row("reset", &self.reset);
        row("IOMMU group", &listed(&self.group, "alone"));
        match self.without_acs.as_slice() {
            [] => row("ACS", &"the IOMMU sees all of its DMA"),
            at => row(
                "ACS",
                &format_args!("missing or off in {}: its DMA may pass the IOMMU", at.join(", ")),
            ),
        }
        row("page shared", &listed(&self.shares_page_with, "with nobody"));
        match &self.line {
            Some(line) => row("INTx", line),
            None => row("INTx", &"none"),
        }
        row("messages", &format_args!("MSI {}, MSI-X {}", self.msi, self.msix));
        match self.reserved.as_deref() {
            None => row("reserved", &"unknown: the firmware has no table DMAR or IVRS"),
            Some([]) => {}
            Some(ranges) => row("reserved", &ranges.join(", ")),
        }
        if !self.terms.is_empty() {
            row("terms", &self.terms);
        }
    }
}

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.used, self.blocked_by.as_slice()) {
            (Some(used), _) => {
                f.write_str(used)?;
                if self.methods.len() > 1 {
                    write!(f, " (of {})", self.methods.join(", "))?;
                }
                Ok(())
            }
            (None, []) => f.write_str("none"),
            (None, others) => write!(f, "none: a reset of its bus would hit {} too", others.join(", ")),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(gsi) = self.gsi else {
            return f.write_str("known once dom0 has turned the device on (`bulkhead seize` does)");
        };
        write!(f, "GSI {gsi}")?;
        match (self.shared_with.as_slice(), self.offered) {
            ([], _) => f.write_str(", not shared"),
            (others, true) => write!(f, ", given though shared with {}", others.join(", ")),
            (others, false) => write!(f, ", withheld: shared with {}", others.join(", ")),
        }
    }
}

#[cfg(test)]
pub(in crate::commands) mod tests {
    use super::*;

    pub fn report() -> Report {
        let device = DeviceFacts {
            bdf: "0000:00:05.0".into(),
            ids: "8086:10d3".into(),
            called: Some("Intel Corporation 82574L".into()),
            class: "020000".into(),
            held_by: "dom0's driver e1000e".into(),
            reset: Reset {
                methods: vec!["PM".into(), "bus".into()],
                used: Some("PM".into()),
                blocked_by: vec![],
            },
            group: vec![],
            without_acs: vec![],
            shares_page_with: vec![],
            line: Some(Line {
                gsi: Some(22),
                shared_with: vec!["0000:00:09.0".into()],
                offered: false,
            }),
            msi: 1,
            msix: 5,
            reserved: Some(vec![]),
            terms: String::new(),
        };
        Report {
            fit: false,
            host: None,
            guest: None,
            spare_pirqs: 32,
            devices: vec![
                DeviceReport {
                    name: "0000:00:05.0".into(),
                    fit: true,
                    refusals: vec![],
                    notes: vec!["mind the line".into()],
                    device: Some(device),
                },
                DeviceReport {
                    name: "00:5".into(),
                    fit: false,
                    refusals: vec!["\"00:5\" is no device".into()],
                    notes: vec![],
                    device: None,
                },
            ],
            notes: vec![],
        }
    }

    #[test]
    fn all_that_there_is_to_tell() {
        insta::assert_snapshot!(report().to_string());
    }

    #[test]
    fn people_read_one_fact_a_line_and_the_verdict_last() {
        let expected = "\
0000:00:05.0
  device       0000:00:05.0 8086:10d3, network controller
  called       Intel Corporation 82574L
  held by      dom0's driver e1000e
  reset        PM (of PM, bus)
  IOMMU group  alone
  ACS          the IOMMU sees all of its DMA
  page shared  with nobody
  INTx         GSI 22, withheld: shared with 0000:00:09.0
  messages     MSI 1, MSI-X 5
  note         mind the line
  fit          yes
00:5
  NOT FIT      \"00:5\" is no device
a guest can have 32 messages (MSI, MSI-X) in all
not all can be given to a guest
";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn missing_acs_and_reserved_memory_that_is_unknown_are_told() {
        let told = |device: &DeviceFacts| {
            let mut lines = Lines::new(1000);
            device.describe(&mut lines);
            lines.into_text()
        };
        let mut device = report().devices.remove(0).device.unwrap();
        device.without_acs = vec!["0000:00:1c.0".into()];
        device.reserved = None;
        let text = told(&device);
        assert!(
            text.contains("  ACS          missing or off in 0000:00:1c.0: its DMA may pass"),
            "{text}"
        );
        assert!(
            text.contains("  reserved     unknown: the firmware has no table DMAR or IVRS\n"),
            "{text}"
        );
        device.reserved = Some(vec!["0x1000-0x1fff".into()]);
        assert!(told(&device).contains("  reserved     0x1000-0x1fff\n"));
    }

    #[test]
    fn a_reset_that_is_blocked_names_who_blocks_it() {
        let reset = Reset {
            methods: vec!["bus".into()],
            used: None,
            blocked_by: vec!["0000:02:02.0".into()],
        };
        assert_eq!(
            reset.to_string(),
            "none: a reset of its bus would hit 0000:02:02.0 too"
        );
        assert_eq!(Reset::default().to_string(), "none");
    }

    #[test]
    fn programs_find_the_facts_by_these_names() {
        let json = serde_json::to_value(report()).unwrap();
        for (pointer, value) in [
            ("/fit", serde_json::json!(false)),
            ("/devices/0/name", "0000:00:05.0".into()),
            ("/devices/0/called", "Intel Corporation 82574L".into()),
            ("/devices/0/fit", true.into()),
            ("/devices/0/reset/used", "PM".into()),
            ("/devices/0/line/gsi", 22.into()),
            ("/devices/0/msix", 5.into()),
            ("/devices/1/refusals/0", "\"00:5\" is no device".into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        }
        assert_eq!(json.pointer("/devices/1/bdf"), None);
    }
}
