//! What `bulkhead status` tells: stubs, guests, devices, interrupt modes, counters.

use crate::acking::LineStatus;
use crate::checks::Claims;
use crate::domains::is_alive;
use crate::failed::Failed;
use crate::holdings::Holdings;
use crate::host::Host;
use crate::interrupts::Mode;
use crate::record::{self, Attachment, Device, RecordError};
use crate::reset::Plan;
use crate::store::StoreError;
use crate::sysfs::{PCIBACK, Sysfs};
use crate::terms::Terms;
use crate::xenctrl::DomId;
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;
use xenbus::client::Store as _;
use xenbus::counters::{Counter, Counters};
use xenbus::device::SlotMode;
use xenbus::path::{Device as Hop, key};
use xenbus::pciif::Request;
use xenbus::state::XenbusState;
use xenbus::survivor;

/// Everything about all attachments of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Dom0's end of all stubs.
    pub service: Service,
    /// One for each stub that serves a guest.
    pub stubs: Vec<StubStatus>,
    /// Devices that xen-pciback holds for guests to come.
    #[serde(default)]
    pub held: Vec<String>,
    /// Devices that did not recover from their last guest.
    pub quarantined: Vec<Quarantined>,
    /// Guests that lost their devices, because their stub could not be brought back.
    #[serde(default)]
    pub failed: Vec<Failed>,
    /// What is wrong, such as a damaged record.
    pub problems: Vec<String>,
}

/// The service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// If not, guests' writes and changes of their interrupt mode fail.
    pub running: bool,
    /// What it holds; absent if it does not run, or cannot tell.
    #[serde(default)]
    pub holds: Option<Holdings>,
}

/// One stub with its guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StubStatus {
    /// The stub, and the state of its second hop.
    #[serde(flatten)]
    pub domain: DomainStatus,
    /// The guest, and the state of its pcifront.
    pub guest: DomainStatus,
    /// How the guest addresses them: `vpci` or `passthrough`.
    #[serde(default, with = "record::text")]
    pub slots: SlotMode,
    /// The devices.
    pub devices: Vec<DeviceStatus>,
    /// What the service has seen of the stub; absent while it serves it not.
    pub served: Option<Served>,
}

/// A domain and its end of its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStatus {
    /// Its number.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// The xenbus state of its frontend, such as `connected`; [`GONE`] if the domain is no more.
    pub state: String,
}

/// State of a domain that is no more.
pub const GONE: &str = "gone";

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its address.
    pub bdf: String,
    /// Vendor and device.
    pub ids: String,
    /// `intx`, `msi`, `msi-x`, or `none` where the line is withheld or absent.
    pub mode: String,
    /// The guest's pirqs in use.
    pub pirqs: Vec<u32>,
    /// The interrupt line, if the device has one.
    pub gsi: Option<u32>,
    /// False if the line is withheld, or absent.
    pub line_offered: bool,
    /// The physical function of a virtual one.
    #[serde(default)]
    pub virtual_function_of: Option<String>,
    /// The line, if it is the guest's and dom0's at once.
    #[serde(default)]
    pub line: Option<LineStatus>,
    /// How it will be reset when it leaves the guest, such as `FLR`; absent if it cannot be.
    pub reset: Option<String>,
    /// On what terms the guest has it.
    #[serde(default)]
    pub terms: Terms,
    /// Errors that the hardware corrected, as dom0's kernel counts them; absent if it hears of none.
    #[serde(default)]
    pub corrected_errors: Option<u64>,
}

/// What the service has seen of a stub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Writes that the service's own guard refused: a sound stub never sends one.
    pub refused: Vec<RefusedWrite>,
    /// The stub's own counters, by name; empty before it has published any.
    pub counters: BTreeMap<String, u64>,
    /// The writes that the stub dropped, by register.
    pub dropped: Vec<DroppedWrites>,
    /// The guest's requests that brought the stub down twice and are refused since, the latest first.
    #[serde(default)]
    pub poisonous: Vec<PoisonousRequest>,
    /// How often the stub was brought back since the service began to serve it.
    #[serde(default)]
    pub revivals: u64,
    /// The devices that had errors since the service began to serve the stub.
    #[serde(default)]
    pub errors: Vec<DeviceErrors>,
}

/// Errors of a device that could not be corrected, and what came of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceErrors {
    /// The device.
    pub bdf: String,
    /// How many dom0's kernel has told of.
    pub errors: u64,
    /// How often the device and the guest's driver recovered.
    pub recovered: u64,
    /// How the last ones ended; empty while that is not known.
    pub last: String,
}

/// A request that the stub refuses because it failed over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoisonousRequest {
    /// What the guest asked for, in short.
    pub request: String,
    /// The request as it lay in the guest's page, before its MSI-X entries, in hex.
    pub bytes: String,
}

/// Writes to one register that the guard refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedWrite {
    /// The device.
    pub bdf: String,
    /// Offset of the register.
    pub offset: u16,
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// Writes to one register that the stub dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedWrites {
    /// The device's slot and function on the guest's bus, such as `00.0`.
    pub slot: String,
    /// Offset of the register.
    pub offset: u16,
    /// How many.
    pub count: u32,
}

/// A device that is given to nobody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its address.
    pub bdf: String,
    /// Why.
    pub reason: String,
}

/// The status could not be found out.
#[derive(Debug, Error)]
pub enum StatusError {
    /// The records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The domains.
    #[error("cannot read the state of a domain in xenstore")]
    Store(#[from] StoreError),
}

impl StubStatus {
    /// How many pirqs the guest has for messages of its devices.
    pub fn messages(&self) -> usize {
        let devices = self
            .devices
            .iter()
            .filter(|device| device.mode.starts_with("msi"));
        devices.map(|device| device.pirqs.len()).sum()
    }
}

impl Served {
    /// Takes the stub's counters in. They are shown, never acted upon.
    pub fn add_counters(&mut self, counters: &Counters) {
        let named = Counter::ALL
            .iter()
            .map(|&counter| (counter.name().to_owned(), counters.get(counter)));
        self.counters = named.collect();
        let dropped = counters.dropped_writes().map(|write| DroppedWrites {
            slot: format!("{:02x}:{:02x}.{:x}", write.bus, write.devfn >> 3, write.devfn & 7),
            offset: write.offset,
            count: write.count,
        });
        self.dropped = dropped.collect();
    }

    /// Takes in the requests that the stub refuses for good. They are shown, never acted upon.
    pub fn add_poisonous(&mut self, requests: &[survivor::Op]) {
        let described = requests.iter().map(|op| PoisonousRequest {
            request: Request::from_head(op).to_string(),
            bytes: survivor::hex(op),
        });
        self.poisonous = described.collect();
    }
}

/// Finds out the status from the records; `served` holds what the service has seen, by stub.
pub fn collect(
    host: &mut Host,
    service_running: bool,
    mut served: BTreeMap<DomId, Served>,
) -> Result<Status, StatusError> {
    let (attachments, damaged) = Attachment::all(&mut host.store)?;
    let mut status = Status {
        service: Service {
            running: service_running,
            holds: None,
        },
        problems: damaged.iter().map(ToString::to_string).collect(),
        ..Status::default()
    };
    for attachment in attachments {
        let (guest, stub) = (attachment.guest.domid, attachment.stub.domid);
        let guest_state = Hop::first_hop(stub, guest).frontend_node(key::STATE);
        let stub_state = Hop::second_hop(stub).frontend_node(key::STATE);
        let devices = attachment.devices.iter().zip(&attachment.modes);
        status.stubs.push(StubStatus {
            domain: domain_status(host, &attachment.stub, &stub_state)?,
            guest: domain_status(host, &attachment.guest, &guest_state)?,
            slots: attachment.slots,
            devices: devices
                .map(|(device, mode)| {
                    let reset = Plan::of(device.bdf, &host.sysfs).used();
                    let line = device.gsi.filter(|_| device.line_offered);
                    DeviceStatus {
                        corrected_errors: host.sysfs.correctable_errors(device.bdf),
                        reset: reset.map(|method| method.to_string()),
                        line: line.and_then(|gsi| LineStatus::of(device.bdf, gsi, &host.sysfs)),
                        ..device_status(device, mode)
                    }
                })
                .collect(),
            served: served.remove(&stub),
        });
    }
    status.problems.extend(gone(&status.stubs, &host.sysfs));
    for (bdf, reason) in record::quarantined(&mut host.store)? {
        let bdf = bdf.to_string();
        status.quarantined.push(Quarantined { bdf, reason });
    }
    status.failed = Failed::all(&mut host.store)?;
    status.held = held(host);
    Ok(status)
}

/// The devices that xen-pciback holds and nobody has. While the claims are in doubt, which is told, none counts.
fn held(host: &mut Host) -> Vec<String> {
    let Ok(claims) = Claims::read(&mut host.store) else {
        return Vec::new();
    };
    let mut held = host.sysfs.functions().unwrap_or_default();
    held.retain(|&bdf| {
        host.sysfs.driver(bdf).as_deref() == Some(PCIBACK)
            && claims.taken.iter().all(|claim| claim.bdf != bdf)
            && claims.quarantined.iter().all(|&(other, _)| other != bdf)
    });
    held.iter().map(ToString::to_string).collect()
}

/// The devices that a guest has although dom0 has removed them, as it does with virtual functions.
fn gone(stubs: &[StubStatus], sysfs: &Sysfs) -> Vec<String> {
    let mut problems = Vec::new();
    for stub in stubs {
        let is_gone = |name: &str| name.parse().is_ok_and(|bdf| !sysfs.exists(bdf));
        for DeviceStatus { bdf, .. } in stub.devices.iter().filter(|device| is_gone(&device.bdf)) {
            problems.push(format!(
                "{bdf} is gone: dom0 removed it while guest {0} has it. Xen may stop the host when guest {0} lets go of its \
                 interrupts: end what else runs here before you end that guest",
                stub.guest.name
            ));
        }
    }
    problems
}

fn domain_status(host: &mut Host, domain: &record::Domain, state: &str) -> Result<DomainStatus, StoreError> {
    let state = if is_alive(&mut host.store, domain)? {
        let state = host.store.read_optional(state)?.unwrap_or_default();
        format!("{:?}", XenbusState::parse(&state)).to_lowercase()
    } else {
        GONE.to_owned()
    };
    Ok(DomainStatus {
        domid: domain.domid,
        name: domain.name.clone(),
        state,
    })
}

/// What the record says of a device.
fn device_status(device: &Device, mode: &Mode) -> DeviceStatus {
    let line = device.gsi.filter(|_| device.line_offered);
    let (name, pirqs) = match mode {
        Mode::Line => (
            if line.is_some() { "intx" } else { "none" },
            line.into_iter().collect(),
        ),
        Mode::Msi(pirq) => ("msi", vec![u32::from(*pirq)]),
        Mode::Msix(entries) => ("msi-x", entries.iter().map(|&(_, pirq)| pirq.into()).collect()),
    };
    DeviceStatus {
        bdf: device.bdf.to_string(),
        ids: device.ids.to_string(),
        mode: name.into(),
        pirqs,
        gsi: device.gsi,
        line_offered: device.line_offered,
        virtual_function_of: device.physical.map(|physical| physical.to_string()),
        line: None,
        reset: None,
        terms: device.terms.clone(),
        corrected_errors: None,
    }
}

/// For people.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let service = if self.service.running {
            "running"
        } else {
            "DOWN: guests' writes and interrupt changes fail (start it with `bulkhead serve`)"
        };
        writeln!(f, "service: {service}")?;
        if let Some(holds) = &self.service.holds {
            writeln!(f, "{holds}")?;
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
            writeln!(f, "{} sees its devices where they are in dom0", stub.guest.name)?;
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
    /// The physical functions whose virtual ones guests have, with these.
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
    fn interrupts(&self) -> String {
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
                "{name}: REFUSES {request}, which brought it down twice; its bytes, for a report: {bytes}"
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{device, virtual_function};
    use crate::sysfs::tests::Tree;

    fn status() -> Status {
        let domain = |domid, name: &str| DomainStatus {
            domid,
            name: name.into(),
            state: "connected".into(),
        };
        let mut counters = Counters::default();
        counters.add(Counter::Reads);
        counters.add_dropped_write("00:01.0".parse().unwrap(), 0x0d);
        let mut served = Served {
            requests: 12,
            failed: 1,
            ..Served::default()
        };
        served.add_counters(&counters);
        let mut read: survivor::Op = [0; _];
        (read[20], read[24]) = (0x60, 4);
        served.add_poisonous(&[read]);
        served.refused.push(RefusedWrite {
            bdf: "0000:00:05.0".into(),
            offset: 0x10,
            reason: "no".into(),
            count: 2,
        });
        Status {
            service: Service {
                running: true,
                holds: None,
            },
            stubs: vec![StubStatus {
                domain: domain(4, "web-bulkhead"),
                guest: domain(3, "web"),
                slots: SlotMode::Passthrough,
                devices: vec![DeviceStatus {
                    reset: Some("FLR".into()),
                    ..device_status(&device("00:05.0"), &Mode::Msix(vec![(0, 55), (1, 54)]))
                }],
                served: Some(served),
            }],
            held: vec![],
            quarantined: vec![],
            failed: vec![],
            problems: vec![],
        }
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
    }

    #[test]
    fn requests_that_brought_a_stub_down_are_told_with_their_bytes() {
        let text = status().to_string();
        assert!(
            text.contains(
                "REFUSES conf_read 0000:00:00.0 offset 0x60 size 4, which brought it down twice; its bytes, for a \
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
            let device = device_status(&virtual_function(bdf), &Mode::Line);
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
    fn a_device_that_dom0_has_removed_is_told() {
        let tree = Tree::new();
        let expected = "0000:00:05.0 is gone: dom0 removed it while guest web has it. Xen may stop the host when guest \
                        web lets go of its interrupts: end what else runs here before you end that guest";
        assert_eq!(gone(&status().stubs, &tree.sysfs()), [expected]);
        tree.add("0000:00:05.0", &[]);
        assert_eq!(gone(&status().stubs, &tree.sysfs()), [""; 0]);
    }

    #[test]
    fn a_service_that_is_down_is_said_first() {
        let text = Status::default().to_string();
        assert!(text.starts_with("service: DOWN"), "{text}");
        assert!(text.contains("no devices are passed through"), "{text}");
    }

    #[test]
    fn machines_find_the_stub_the_guest_and_the_mode_by_these_names() {
        let json = serde_json::to_value(status()).unwrap();
        for (pointer, value) in [
            ("/service/running", serde_json::json!(true)),
            ("/stubs/0/name", "web-bulkhead".into()),
            ("/stubs/0/state", "connected".into()),
            ("/stubs/0/guest/domid", 3.into()),
            ("/stubs/0/devices/0/mode", "msi-x".into()),
            ("/stubs/0/devices/0/pirqs/1", 54.into()),
            ("/stubs/0/served/counters/reads", 1.into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        }
    }

    #[test]
    fn machines_read_back_what_was_told() {
        let status = status();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    #[test]
    fn a_withheld_line_is_no_interrupt_and_is_said() {
        let without = Device {
            line_offered: false,
            ..device("00:05.0")
        };
        let status = device_status(&without, &Mode::Line);
        assert_eq!((status.mode.as_str(), status.pirqs.as_slice()), ("none", &[][..]));
        assert_eq!(status.interrupts(), "none, INTx withheld");
        let offered = device_status(&device("00:05.0"), &Mode::Line);
        assert_eq!(
            (offered.mode.as_str(), offered.pirqs.as_slice()),
            ("intx", &[20][..])
        );
    }

    #[test]
    fn a_guest_that_has_its_devices_where_they_are_in_dom0_is_named() {
        let mut status = status();
        assert!(
            status
                .to_string()
                .contains("web sees its devices where they are in dom0\n")
        );
        status.stubs[0].slots = SlotMode::Vpci;
        assert!(!status.to_string().contains("where they are"));
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["stubs"][0]["slots"], "vpci");
    }

    #[test]
    fn devices_without_a_guest_are_told_with_the_next_step() {
        let status = Status {
            held: vec!["0000:00:05.0".into()],
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
                "quarantine: 0000:00:06.0, because it is mute: `bulkhead release 0000:00:06.0` tries its reset again"
            ),
            "{text}"
        );
    }
}
