//! The status, as `bulkhead status --json` prints it and the service sends it.

use crate::handover::shared_intx::LineStatus;
use crate::host::launcher::ServiceHistory;
use crate::host::pci_ids::PciIds;
use crate::host::store::StoreError;
use crate::records::failed::Failed;
use crate::records::{GuestStart, RecordError};
use crate::serde_text;
use crate::status::process::ProcessStats;
use crate::terms::Terms;
use bulkhead_config::telemetry::{Metrics, Telemetry};
use pci::bdf::Bdf;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;
use xen::xenctrl::DomId;
use xenbus::counters::{BOUNDS, Class, Counter, Counters, DroppedWrite, Histogram};
use xenbus::device::SlotMode;
use xenbus::handover_block;
use xenbus::pciif::Request;

/// All about the attachments and held devices of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Dom0's end of all second hops.
    pub service: ServiceStatus,
    /// One for each stub that serves a guest.
    pub stubs: Vec<StubStatus>,
    /// Devices that xen-pciback holds for guests to come.
    #[serde(default)]
    pub held: Vec<String>,
    /// Devices that stay held because a guest that had them still lives, and may have them mapped.
    #[serde(default)]
    pub mapped: Vec<Mapped>,
    /// Devices that did not recover from their last guest.
    pub quarantined: Vec<Quarantined>,
    /// Guests that lost their devices, because their stub could not be brought back.
    #[serde(default)]
    pub failed: Vec<Failed>,
    /// Guests that wait for the devices that they are to have, or could not have them.
    #[serde(default)]
    pub starts: Vec<GuestStart>,
    /// Guests with a declaration.
    #[serde(default)]
    pub declared: Vec<DeclaredGuest>,
    /// Guests that have ended, and have their devices again when they start.
    #[serde(default)]
    pub carried: Vec<CarriedGuest>,
    /// What is wrong, such as a damaged record.
    pub problems: Vec<String>,
}

/// A guest that has its devices whenever it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeclaredGuest {
    /// The guest, by name or UUID.
    pub guest: String,
    /// Its devices with their terms, as on the command line.
    pub devices: Vec<String>,
    /// The file.
    pub file: String,
}

/// A guest that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CarriedGuest {
    /// Its name.
    pub guest: String,
    /// Its UUID.
    pub uuid: String,
    /// The devices that it had.
    pub devices: Vec<String>,
}

/// A device that a guest may still have mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mapped {
    /// The device.
    pub bdf: String,
    /// The guest that had it.
    pub guest: String,
}

/// State of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// If false, writes of guests and changes of their interrupt mode fail.
    pub running: bool,
    /// What its process holds; absent if it does not run, or its kernel does not tell.
    #[serde(default, rename = "holds")]
    pub process: Option<ProcessStats>,
    /// What has become of it since its start; absent if it does not run.
    #[serde(default)]
    pub history: Option<ServiceHistory>,
}

/// One stub with its guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StubStatus {
    /// The stub, and the state of its second hop.
    #[serde(flatten)]
    pub domain: DomainStatus,
    /// The guest, and the state of its pcifront.
    pub guest: DomainStatus,
    /// How the guest addresses the devices: `vpci` or `passthrough`.
    #[serde(default, with = "serde_text::text")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub slots: SlotMode,
    /// When the stub's domain was created, in seconds since 1970; absent if its toolstack has not written that down.
    #[serde(default)]
    pub created: Option<u64>,
    /// The stub's network; absent if it has none.
    #[serde(default)]
    pub network: Option<NetworkStatus>,
    /// The guest's devices.
    pub devices: Vec<DeviceStatus>,
    /// What the service has seen of the stub; absent while the stub is not served.
    pub served: Option<Served>,
    /// The job that runs for the stub, or why the stub is not served.
    #[serde(default)]
    pub remark: Option<String>,
}

/// The network of a stub, as it was created with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NetworkStatus {
    /// The xenbus state of its frontend, such as `connected`.
    pub state: String,
    /// The bridge that it is on.
    pub bridge: String,
    /// The domain that has the bridge; absent if it is dom0.
    pub backend: Option<String>,
    /// The stub's Ethernet address; absent if it was given none.
    pub mac: Option<String>,
    /// The stub's IP address with the length of the network's part, or `dhcp`.
    pub address: String,
    /// The router; absent if none was named.
    pub gateway: Option<String>,
    /// The TCP port at which metrics are served; absent if they are not.
    pub metrics: Option<u16>,
    /// Address and UDP port to which the log is sent; absent if it is not.
    pub syslog: Option<String>,
}

impl NetworkStatus {
    /// The network that the stub was created with, whose frontend has this state.
    pub fn new(telemetry: &Telemetry, state: String) -> Self {
        Self {
            state,
            bridge: telemetry.bridge.clone(),
            backend: telemetry.backend.clone(),
            mac: telemetry.mac.map(|mac| mac.to_string()),
            address: telemetry.address.to_string(),
            gateway: telemetry.gateway.map(|gateway| gateway.to_string()),
            metrics: match telemetry.metrics {
                Metrics::Port(port) => Some(port),
                Metrics::Off => None,
            },
            syslog: telemetry.syslog.map(|syslog| syslog.to_string()),
        }
    }
}

/// What the service knows of a stub.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// What it has seen; `None` while the stub is not served.
    pub served: Option<Served>,
    /// A remark for the administrator.
    pub remark: Option<String>,
}

/// A domain, and the state of its frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DomainStatus {
    /// Its domid.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// The xenbus state of its frontend, such as `connected`; [`GONE`] if the domain does not exist any more.
    pub state: String,
}

/// State of a domain that does not exist any more.
pub const GONE: &str = "gone";

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceStatus {
    /// Its address.
    pub bdf: String,
    /// Vendor and device id.
    pub ids: String,
    /// Its product name, if the host has the list of names (`pci.ids`).
    #[serde(default)]
    pub called: Option<String>,
    /// `intx`, `msi`, `msi-x`, or `none` where the line is withheld or absent.
    pub mode: String,
    /// The guest's pirqs in use.
    pub pirqs: Vec<u32>,
    /// GSI of the device's INTx line, if it has one.
    pub gsi: Option<u32>,
    /// False if the line is withheld, or absent.
    pub line_offered: bool,
    /// The physical function of a virtual one.
    #[serde(default)]
    pub virtual_function_of: Option<String>,
    /// State of the line, if guest and dom0 share it.
    #[serde(default)]
    pub line: Option<LineStatus>,
    /// How it will be reset when it leaves the guest, such as `FLR`; absent if it cannot be.
    pub reset: Option<String>,
    /// Terms on which the guest has it.
    #[serde(default)]
    pub terms: Terms,
    /// Errors that the hardware corrected, as dom0's kernel counts them; absent if it counts none.
    #[serde(default)]
    pub corrected_errors: Option<u64>,
}

/// What the service has seen of a stub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Served {
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub failed: u64,
    /// Writes that the guard of the service refused. A sound stub sends none of these.
    pub refused: Vec<RefusedWrite>,
    /// Refused writes to registers beyond those in `refused`.
    #[serde(default)]
    pub refused_besides: u64,
    /// The stub's own counters, by name; empty before it has published any.
    pub counters: BTreeMap<String, u64>,
    /// How long requests took in the stub, by class; empty before it has published any counters.
    #[serde(default)]
    pub latencies: BTreeMap<String, Latency>,
    /// The writes that the stub dropped, by register.
    pub dropped: Vec<DroppedWrites>,
    /// Poison requests: they brought the stub down twice, and are refused for a time.
    #[serde(default)]
    pub poisonous: Vec<PoisonousRequest>,
    /// How often the stub was brought back since the service began to serve it.
    #[serde(default)]
    pub revivals: u64,
    /// The devices that had errors, or lost their state in a suspend of the host, since the service began to serve the stub.
    #[serde(default)]
    pub errors: Vec<DeviceErrors>,
}

/// Errors of a device that could not be corrected, and what came of them. A device without errors has lost its state in a
/// suspend of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceErrors {
    /// The device.
    pub bdf: String,
    /// Errors that dom0's kernel has reported.
    pub errors: u64,
    /// How often the device and the guest's driver recovered from errors.
    pub recovered: u64,
    /// How the last error or suspend ended; empty while the first is being dealt with.
    pub last: String,
}

/// A request that the stub refuses because it failed over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PoisonousRequest {
    /// The request in words.
    pub request: String,
    /// The request as it lay in the guest's page, without its MSI-X entries, in hex.
    pub bytes: String,
}

/// Writes to one register that the guard refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// How long requests of one class took, from when the stub took a request until it gave the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latency {
    /// Requests by time, from the shortest to the longest.
    pub buckets: Vec<Bucket>,
    /// All times together, in microseconds.
    pub sum_micros: u64,
}

/// Requests that took longer than the bucket before allows, and no longer than this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bucket {
    /// Upper bound in microseconds; absent in the last bucket, which has none.
    pub most_micros: Option<u32>,
    /// How many.
    pub count: u64,
}

/// Writes to one register that the stub dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DroppedWrites {
    /// The device's slot and function on the guest's bus, such as `00.0`.
    pub slot: String,
    /// Offset of the register.
    pub offset: u16,
    /// How many.
    pub count: u32,
}

/// A device in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quarantined {
    /// Its address.
    pub bdf: String,
    /// Why.
    pub reason: String,
}

/// Why the status could not be found out.
#[derive(Debug, Error)]
pub enum StatusError {
    /// The records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The domains.
    #[error("cannot read the state of a domain in xenstore")]
    Store(#[from] StoreError),
}

impl Status {
    /// Adds the products' names. The service cannot: it gives up all files but a few.
    pub fn add_names(&mut self, names: &PciIds) {
        for device in self.stubs.iter_mut().flat_map(|stub| &mut stub.devices) {
            device.called = device.ids.parse().ok().and_then(|ids| names.name(ids));
        }
    }
}

impl StubStatus {
    /// Number of pirqs that the guest has for MSI and MSI-X.
    pub fn msi_pirqs(&self) -> usize {
        self.devices.iter().map(DeviceStatus::msi_pirqs).sum()
    }
}

impl DeviceStatus {
    /// Number of pirqs that it uses for MSI or MSI-X.
    pub fn msi_pirqs(&self) -> usize {
        let has_msi = self.mode.starts_with("msi");
        if has_msi { self.pirqs.len() } else { 0 }
    }
}

impl Served {
    /// Adds the stub's counters. A stub may write anything there, so they are shown and never acted upon.
    pub fn add_counters(&mut self, counters: &Counters) {
        let named = Counter::ALL
            .iter()
            .map(|&counter| (counter.name().to_owned(), counters.get(counter)));
        self.counters = named.collect();
        let latencies = Class::ALL.map(|class| (class.name().to_owned(), counters.latency(class).into()));
        self.latencies = latencies.into();
        let dropped = counters.dropped_writes().map(|write| DroppedWrites {
            slot: format!("{:02x}:{:02x}.{:x}", write.bus, write.devfn >> 3, write.devfn & 7),
            offset: write.offset,
            count: write.count,
        });
        self.dropped = dropped.collect();
    }

    /// The stub's counters as it has published them; `None` before it has.
    pub fn counters(&self) -> Option<Counters> {
        if self.counters.is_empty() {
            return None;
        }
        let mut counters = Counters::default();
        for counter in Counter::ALL {
            counters.set(
                counter,
                self.counters.get(counter.name()).copied().unwrap_or_default(),
            );
        }
        for class in Class::ALL {
            if let Some(latency) = self.latencies.get(class.name()) {
                counters.set_latency(class, &latency.into());
            }
        }
        counters.set_dropped_writes(self.dropped.iter().filter_map(|write| {
            let guest_bdf: Bdf = write.slot.parse().ok()?;
            Some(DroppedWrite {
                bus: guest_bdf.bus(),
                devfn: guest_bdf.devfn(),
                offset: write.offset,
                count: write.count,
            })
        }));
        Some(counters)
    }

    /// Adds the poison requests that the stub has published. They are shown and never acted upon.
    pub fn add_poisonous(&mut self, requests: &[handover_block::Op]) {
        let described = requests.iter().map(|op| PoisonousRequest {
            request: Request::from_head(op).to_string(),
            bytes: handover_block::hex(op),
        });
        self.poisonous = described.collect();
    }
}

impl From<Histogram> for Latency {
    fn from(histogram: Histogram) -> Self {
        let bounds = BOUNDS.into_iter().map(Some).chain([None]);
        let buckets = bounds.zip(histogram.buckets);
        Self {
            buckets: buckets
                .map(|(most_micros, count)| Bucket { most_micros, count })
                .collect(),
            sum_micros: histogram.sum_micros,
        }
    }
}

impl From<&Latency> for Histogram {
    fn from(latency: &Latency) -> Self {
        let mut histogram = Self {
            sum_micros: latency.sum_micros,
            ..Self::default()
        };
        for (to, bucket) in histogram.buckets.iter_mut().zip(&latency.buckets) {
            *to = bucket.count;
        }
        histogram
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::records::interrupt_mode::Mode;
    use crate::records::tests::device;
    use crate::status::collect::device_status;
    use std::time::Duration;

    /// One guest with one device.
    pub fn status() -> Status {
        let domain = |domid, name: &str| DomainStatus {
            domid,
            name: name.into(),
            state: "connected".into(),
        };
        let mut counters = Counters::default();
        counters.add(Counter::Reads);
        counters.add_dropped_write("00:01.0".parse().unwrap(), 0x0d);
        counters.add_latency(Class::ConfRead, Duration::from_micros(120));
        let mut served = Served {
            requests: 12,
            failed: 1,
            ..Served::default()
        };
        served.add_counters(&counters);
        let mut read: handover_block::Op = [0; _];
        (read[20], read[24]) = (0x60, 4);
        served.add_poisonous(&[read]);
        served.refused.push(RefusedWrite {
            bdf: "0000:00:05.0".into(),
            offset: 0x10,
            reason: "no".into(),
            count: 2,
        });
        Status {
            service: ServiceStatus {
                running: true,
                process: None,
                history: Some(ServiceHistory {
                    started: 1_795_968_000,
                    died: 1,
                    hung: 0,
                }),
            },
            stubs: vec![StubStatus {
                domain: domain(4, "web-bulkhead"),
                guest: domain(3, "web"),
                slots: SlotMode::Passthrough,
                created: Some(1_795_968_100),
                network: Some(NetworkStatus::new(
                    &"bridge=xenbr0,mac=00:16:3e:12:34:56,syslog=10.0.0.5:514"
                        .parse()
                        .unwrap(),
                    "connected".into(),
                )),
                devices: vec![DeviceStatus {
                    reset: Some("FLR".into()),
                    ..device_status(&device("00:05.0"), &Mode::Msix(vec![(0, 55), (1, 54)]))
                }],
                served: Some(served),
                remark: None,
            }],
            held: vec![],
            mapped: vec![],
            quarantined: vec![],
            failed: vec![],
            starts: vec![],
            declared: vec![],
            carried: vec![],
            problems: vec![],
        }
    }

    #[test]
    fn machines_find_the_stub_the_guest_and_the_mode_by_these_names() {
        let json = serde_json::to_value(status()).unwrap();
        for (pointer, value) in [
            ("/service/running", serde_json::json!(true)),
            ("/service/holds", serde_json::Value::Null),
            ("/stubs/0/name", "web-bulkhead".into()),
            ("/stubs/0/state", "connected".into()),
            ("/stubs/0/guest/domid", 3.into()),
            ("/stubs/0/network/bridge", "xenbr0".into()),
            ("/stubs/0/network/metrics", 9743.into()),
            ("/stubs/0/devices/0/mode", "msi-x".into()),
            ("/stubs/0/devices/0/pirqs/1", 54.into()),
            ("/stubs/0/served/counters/reads", 1.into()),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer}");
        }
    }

    #[test]
    fn the_counters_of_a_stub_are_read_back_as_it_published_them() {
        let mut counters = Counters::default();
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            counters.set(counter, 1 << index);
        }
        for register in 0..20 {
            counters.add_dropped_write("0000:ff:1f.7".parse().unwrap(), register);
        }
        for (class, micros) in Class::ALL.into_iter().zip([1, 300, 1_000_000]) {
            counters.add_latency(class, Duration::from_micros(micros));
        }
        let mut served = Served::default();
        assert_eq!(served.counters(), None);
        served.add_counters(&counters);
        assert_eq!(served.counters(), Some(counters));
    }

    #[test]
    fn machines_read_back_what_was_told() {
        let status = status();
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }
}
